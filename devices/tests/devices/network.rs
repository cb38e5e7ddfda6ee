//! Frames, both ways and both at once.

use crate::driver::{Guest, LONG, Queue};
use lguest_devices::network::Network;
use lguest_devices::virtio::VERSION_1;
use lguest_devices::virtio::network::{MacAddress, network};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const ADDRESS: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

const HEADER: u32 = 0x4_0000;
const FRAME: u32 = 0x5_0000;

/// A cable: each datagram is a frame.
pub(crate) struct Cable {
    socket: UnixDatagram,
    /// How many frames have come out of it.
    received: Arc<AtomicU32>,
}

impl Cable {
    /// Its two ends.
    pub(crate) fn pair() -> (Self, UnixDatagram) {
        let (socket, far) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        far.set_read_timeout(Some(LONG)).unwrap();
        (Self { socket, received: Arc::default() }, far)
    }
}

impl Network for Cable {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.recv(frame) {
            Ok(length) => {
                self.received.fetch_add(1, Ordering::Relaxed);
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        match self.socket.send(frame) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn guest() -> (Guest, UnixDatagram) {
    let (cable, far) = Cable::pair();
    (Guest::new(vec![network(Box::new(cable), ADDRESS)]), far)
}

fn receive(far: &UnixDatagram) -> Vec<u8> {
    let mut frame = vec![0; 0x1_0000];
    let length = far.recv(&mut frame).unwrap();
    frame.truncate(length);
    frame
}

fn frame(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|n| (n as u8).wrapping_mul(seed)).collect()
}

fn send(guest: &mut Guest, queue: &mut Queue, bytes: &[u8]) {
    guest.put(FRAME, bytes);
    queue.add(&[(HEADER, 12, false), (FRAME, bytes.len() as u32, false)]);
    guest.ring_if_wanted(1, queue);
    guest.wait(1, queue);
}

#[test]
fn it_has_an_address() {
    let (mut guest, _far) = guest();
    assert_eq!(guest.config_read(1, 0, 4), 0x1041_1af4);
    guest.agree(1, VERSION_1);
    assert_eq!(guest.offered(1) & 0xff, 1 << 5);
    assert_eq!((guest.read(1, 0x100, 4), guest.read(1, 0x104, 4)), (2, 0x100));
    let (one, another) = (MacAddress::random().unwrap(), MacAddress::random().unwrap());
    assert!(one != another && one.0[0] & 3 == 2 && another.0[0] & 3 == 2);
}

#[test]
fn frames_go_out_without_their_headers() {
    let (mut guest, far) = guest();
    let queue = &mut guest.start(1, 0)[TRANSMIT];
    guest.put(HEADER, &[0xee; 12]);
    for length in [14, 60, 1514, 40_000] {
        send(&mut guest, queue, &frame(3, length));
        assert!(receive(&far) == frame(3, length));
    }
    // All in one buffer, and cut in the middle of the header.
    guest.put(FRAME, &[&[0xee; 12][..], &frame(5, 60)].concat());
    queue.add(&[(FRAME, 72, false)]);
    queue.add(&[(FRAME, 5, false), (FRAME + 5, 67, false)]);
    guest.ring_if_wanted(1, queue);
    assert!(receive(&far) == frame(5, 60) && receive(&far) == frame(5, 60));
}

#[test]
fn what_is_no_frame_goes_nowhere() {
    let (mut guest, far) = guest();
    let queue = &mut guest.start(1, 0)[TRANSMIT];
    for length in [0, 13] {
        send(&mut guest, queue, &frame(1, length));
    }
    queue.add(&[(HEADER, 11, false)]);
    queue.add(&[(HEADER, 12, true)]);
    queue.add(&[(HEADER, 12, false), (0, 65_551, false)]);
    guest.ring_if_wanted(1, queue);
    for _ in 0..3 {
        guest.wait(1, queue);
    }
    send(&mut guest, queue, &frame(7, 14));
    assert_eq!(receive(&far), frame(7, 14));
}

#[test]
fn frames_come_in_with_a_header() {
    let (mut guest, far) = guest();
    far.send(&frame(9, 60)).unwrap();
    let queue = &mut guest.start(1, 0)[RECEIVE];
    let head = queue.add(&[(HEADER, 12, true), (FRAME, 1514, true)]);
    guest.ring_if_wanted(1, queue);
    assert_eq!(guest.wait(1, queue), (head, 72));
    assert_eq!(guest.bytes(HEADER, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(guest.bytes(FRAME, 61), [frame(9, 60), vec![0]].concat());
    // And when the buffer is there first.
    let head = queue.add(&[(FRAME, 2000, true)]);
    guest.ring_if_wanted(1, queue);
    thread::sleep(Duration::from_millis(10));
    assert_eq!(queue.take_used(), None);
    far.send(&frame(11, 1514)).unwrap();
    assert_eq!(guest.wait(1, queue), (head, 1526));
}

#[test]
fn a_frame_that_doesnt_fit_is_dropped() {
    let (mut guest, far) = guest();
    let queue = &mut guest.start(1, 0)[RECEIVE];
    let head = queue.add(&[(FRAME, 12 + 60, true)]);
    guest.ring_if_wanted(1, queue);
    for (seed, length) in [(11, 61), (13, 60)] {
        far.send(&frame(seed, length)).unwrap();
    }
    assert_eq!(guest.wait(1, queue), (head, 72));
    assert_eq!(guest.bytes(FRAME + 12, 60), frame(13, 60));
}

#[test]
fn frames_wait_for_room_on_the_cable() {
    let (mut guest, far) = guest();
    let queue = &mut guest.start(1, 0)[TRANSMIT];
    let mut sent = 0u32;
    // Until the cable is full, and one more.
    let mut full = false;
    while !full {
        full = queue.used_index() != sent as u16;
        guest.put(FRAME + 0x400 * (sent % 8), &frame(sent as u8, 1000));
        queue.add(&[(HEADER, 12, false), (FRAME + 0x400 * (sent % 8), 1000, false)]);
        guest.ring_if_wanted(1, queue);
        sent += 1;
        let patience = Instant::now() + Duration::from_millis(200);
        while queue.used_index() != sent as u16 && Instant::now() < patience {
            thread::sleep(Duration::from_micros(100));
        }
    }
    for nth in 0..sent {
        assert!(receive(&far) == frame(nth as u8, 1000), "frame {nth} of {sent}");
    }
}

#[test]
fn a_cable_that_is_cut_takes_frames_nowhere() {
    let (mut guest, far) = guest();
    let mut queues = guest.start(1, 0);
    let [receive, transmit] = &mut queues[..] else { panic!() };
    receive.add(&[(FRAME, 2000, true)]);
    guest.ring_if_wanted(1, receive);
    drop(far);
    for _ in 0..20 {
        send(&mut guest, transmit, &frame(1, 60));
    }
    assert_eq!(receive.take_used(), None);
}

#[test]
fn both_ways_at_once() {
    let (mut guest, far) = guest();
    let echo = thread::spawn(move || {
        for nth in 0..2000u32 {
            far.send(&receive(&far)).unwrap();
            // Now and then one that nobody asked for.
            if nth % 16 == 0 {
                far.send(&[0xbb; 64]).unwrap();
            }
        }
    });
    let mut queues = guest.start(1, 1 << 29);
    let [receive, transmit] = &mut queues[..] else { panic!() };
    for n in 0..8 {
        receive.add(&[(0x8_0000 + 0x1000 * n, 0x1000, true)]);
    }
    guest.ring_if_wanted(1, receive);
    let mut next = 0;
    for nth in 0..2000u32 {
        let bytes = frame(nth as u8 | 1, 60 + (nth % 1000) as usize);
        send(&mut guest, transmit, &bytes);
        loop {
            let (_, written) = guest.wait(1, receive);
            let got = guest.bytes(0x8_0000 + 0x1000 * next + 12, written as usize - 12);
            receive.add(&[(0x8_0000 + 0x1000 * next, 0x1000, true)]);
            guest.ring_if_wanted(1, receive);
            next = (next + 1) % 8;
            if got != [0xbb; 64] {
                assert!(got == bytes);
                break;
            }
        }
    }
    echo.join().unwrap();
}

#[test]
fn frames_dont_go_to_the_last_drivers_buffer() {
    let (cable, far) = Cable::pair();
    let received = Arc::clone(&cable.received);
    let mut guest = Guest::new(vec![network(Box::new(cable), ADDRESS)]);
    let queue = &mut guest.start(1, 0)[RECEIVE];
    // It is too small for this one, so it is kept for the next.
    queue.add(&[(FRAME, 40, true)]);
    guest.ring_if_wanted(1, queue);
    far.send(&frame(3, 60)).unwrap();
    while received.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let queue = &mut guest.start(1, 0)[RECEIVE];
    far.send(&frame(3, 20)).unwrap();
    thread::sleep(Duration::from_millis(10));
    assert_eq!((queue.take_used(), guest.bytes(FRAME, 40)), (None, vec![0; 40]));
    queue.add(&[(FRAME, 2000, true)]);
    guest.ring_if_wanted(1, queue);
    assert_eq!(guest.wait(1, queue), (0, 32));
}
