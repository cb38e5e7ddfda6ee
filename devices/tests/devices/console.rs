//! The console's two directions, and its emergency exit.

use crate::driver::Guest;
use lguest_devices::virtio::EVENT_IDX;
use lguest_devices::virtio::console::Console;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A guest with a console in slot 1, and the terminal's ends of its pipes.
fn guest() -> (Guest, PipeWriter, PipeReader) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let console = Console {
        input: Some(input.into()),
        output: Some(output.into()),
        size: Some((80, 25)),
        ..Console::default()
    };
    (Guest::new(vec![console.into_model()]), keyboard, screen)
}

fn read(mut screen: &PipeReader, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    screen.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn output_is_written_before_its_buffer_comes_back() {
    let (mut guest, _keyboard, screen) = guest();
    let mut queues = guest.start(1, 1);
    guest.put(0x4_0000, b"Hello, ");
    guest.put(0x5_0000, b"world");
    let transmit = &mut queues[TRANSMIT];
    let head = transmit.add(&[(0x4_0000, 7, false), (0x5_0000, 0, false), (0x5_0000, 5, false)]);
    guest.ring_if_wanted(1, transmit);
    assert_eq!(guest.wait(1, transmit), (head, 0));
    assert_eq!(read(&screen, 12), b"Hello, world");
}

#[test]
fn input_goes_to_the_buffers_in_turn() {
    let (mut guest, mut keyboard, _screen) = guest();
    keyboard.write_all(b"abcdef").unwrap();
    let mut queues = guest.start(1, 0);
    let receive = &mut queues[RECEIVE];
    let first = receive.add(&[(0x4_0000, 4, true)]);
    guest.ring_if_wanted(1, receive);
    assert_eq!(guest.wait(1, receive), (first, 4));
    assert_eq!(guest.bytes(0x4_0000, 5), b"abcd\0");
    let second = receive.add(&[(0x4_0010, 1, true), (0x4_0020, 16, true)]);
    guest.ring_if_wanted(1, receive);
    assert_eq!(guest.wait(1, receive), (second, 2));
    assert_eq!(
        (guest.bytes(0x4_0010, 2), guest.bytes(0x4_0020, 2)),
        (b"e\0".into(), b"f\0".into())
    );
    // And when there is a buffer first, input later.
    let third = receive.add(&[(0x4_0030, 16, true)]);
    guest.ring_if_wanted(1, receive);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(receive.take_used(), None);
    keyboard.write_all(b"x").unwrap();
    assert_eq!(guest.wait(1, receive), (third, 1));
}

#[test]
fn the_end_of_input_is_no_input() {
    let (mut guest, keyboard, screen) = guest();
    let mut queues = guest.start(1, 0);
    let [receive, transmit] = &mut queues[..] else { panic!() };
    receive.add(&[(0x4_0000, 4, true)]);
    guest.ring_if_wanted(1, receive);
    drop(keyboard);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(receive.take_used(), None);
    guest.put(0x5_0000, b"on");
    transmit.add(&[(0x5_0000, 2, false)]);
    guest.ring_if_wanted(1, transmit);
    guest.wait(1, transmit);
    assert_eq!(read(&screen, 2), b"on");
}

#[test]
fn its_configuration_tells_the_size() {
    let (mut guest, ..) = guest();
    guest.agree(1, 1 << 32);
    assert_eq!(guest.offered(1) & 0xff, 0b101);
    assert_eq!((guest.read(1, 0x100, 2), guest.read(1, 0x102, 2)), (80, 25));
    let mut none = Guest::new(vec![Console::default().into_model()]);
    none.agree(1, 1 << 32);
    assert_eq!(none.offered(1) & 0xff, 0b100);
}

#[test]
fn emergency_writes_need_no_driver() {
    let (mut guest, _keyboard, screen) = guest();
    guest.config_write(1, 4, 2, 2);
    for character in b"panic" {
        guest.write(1, 0x104, 4, u32::from(b'?'));
        guest.write(1, 0x108, 4, u32::from(*character));
    }
    assert_eq!(read(&screen, 5), b"panic");
}

#[test]
fn a_reset_needs_no_reader() {
    let (mut guest, _keyboard, screen) = guest();
    let mut queues = guest.start(1, 0);
    for _ in 0..4 {
        queues[TRANSMIT].add(&[(0x0, 0x10_0000, false)]);
    }
    guest.ring(1, &queues[TRANSMIT]);
    thread::sleep(Duration::from_millis(20));
    // The pipe is full, and nobody reads: this must come to an end all the same.
    guest.set_status(1, 0);
    assert_eq!(guest.status(1), 0);
    let mut used = guest.bytes(queues[TRANSMIT].used, 64);
    thread::sleep(Duration::from_millis(10));
    assert!(used == guest.bytes(queues[TRANSMIT].used, 64), "nothing is written after a reset");
    // And the device works again.
    let drained = thread::spawn(move || {
        let mut screen = screen;
        let mut all = Vec::new();
        screen.read_to_end(&mut all).unwrap();
        all
    });
    let mut queues = guest.start(1, EVENT_IDX);
    guest.put(0x4_0000, b"again");
    queues[TRANSMIT].add(&[(0x4_0000, 5, false)]);
    guest.ring_if_wanted(1, &mut queues[TRANSMIT]);
    guest.wait(1, &mut queues[TRANSMIT]);
    drop(guest);
    used = drained.join().unwrap();
    assert!(used.ends_with(b"again"));
}

#[test]
fn a_reader_that_left_is_told_of_once() {
    let failure = Arc::new(OnceLock::new());
    let (screen, output) = pipe().unwrap();
    let told = Arc::clone(&failure);
    let console = Console {
        output: Some(output.into()),
        output_failed: Some(Box::new(move |error| told.set(error).unwrap())),
        ..Console::default()
    };
    let mut guest = Guest::new(vec![console.into_model()]);
    drop(screen);
    let mut queues = guest.start(1, 0);
    for _ in 0..2 {
        queues[TRANSMIT].add(&[(0x4_0000, 5, false)]);
        guest.ring_if_wanted(1, &mut queues[TRANSMIT]);
        guest.wait(1, &mut queues[TRANSMIT]);
    }
    assert_eq!(failure.get(), Some(&rustix::io::Errno::PIPE));
}

#[test]
fn input_doesnt_go_to_the_last_drivers_buffer() {
    let (mut guest, mut keyboard, _screen) = guest();
    let mut queues = guest.start(1, 0);
    queues[RECEIVE].add(&[(0x4_0000, 16, true)]);
    guest.ring_if_wanted(1, &mut queues[RECEIVE]);
    thread::sleep(Duration::from_millis(10));
    let mut queues = guest.start(1, 0);
    keyboard.write_all(b"key").unwrap();
    thread::sleep(Duration::from_millis(10));
    assert_eq!((queues[RECEIVE].take_used(), guest.bytes(0x4_0000, 3)), (None, vec![0; 3]));
    queues[RECEIVE].add(&[(0x5_0000, 16, true)]);
    guest.ring_if_wanted(1, &mut queues[RECEIVE]);
    assert_eq!(guest.wait(1, &mut queues[RECEIVE]), (0, 3));
    assert_eq!(guest.bytes(0x5_0000, 3), b"key");
}
