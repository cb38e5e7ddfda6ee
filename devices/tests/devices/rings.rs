//! Rings as good drivers use them: sleeping and waking, tables of descriptors, code in a buffer.

use crate::driver::{Guest, INDIRECT, NEXT, Queue, WRITE};
use lguest_devices::virtio::console::Console;
use lguest_devices::virtio::{EVENT_IDX, INDIRECT_DESCRIPTORS};
use std::hint::spin_loop;
use std::io::{PipeWriter, Write, pipe};
use std::thread;
use std::time::Duration;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn guest() -> (Guest, PipeWriter) {
    let (input, keyboard) = pipe().unwrap();
    let console = Console { input: Some(input.into()), ..Console::default() };
    (Guest::new(vec![console.into_model()]), keyboard)
}

/// Sends many chains, one or more at a time, ringing and sleeping only when told to. A call that gets lost leaves it waiting.
fn no_call_gets_lost(features: u64) {
    let (mut guest, _keyboard) = guest();
    let mut queues = guest.start(1, features);
    let transmit = &mut queues[TRANSMIT];
    for round in 0..20_000u32 {
        let many = 1 + round * 7 % 5;
        // The device is now looking for more, or falling asleep, or asleep.
        for _ in 0..round * 31 % 211 {
            spin_loop();
        }
        for _ in 0..many {
            transmit.add(&[(0x4_0000, 1, false)]);
        }
        guest.ring_if_wanted(1, transmit);
        for _ in 0..many {
            guest.wait(1, transmit);
        }
    }
}

#[test]
fn no_call_gets_lost_by_flags() {
    no_call_gets_lost(0);
}

#[test]
fn no_call_gets_lost_by_indices() {
    no_call_gets_lost(EVENT_IDX);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    for features in [0, EVENT_IDX] {
        let (mut guest, _keyboard) = guest();
        let mut queues = guest.start(1, features);
        let transmit = &mut queues[TRANSMIT];
        if features == 0 {
            transmit.set_no_interrupt();
        } else {
            // It wants one at the fourth.
            transmit.want_interrupt_after(3);
        }
        for _ in 0..3 {
            transmit.add(&[(0x4_0000, 1, false)]);
        }
        guest.ring(1, transmit);
        while transmit.used_index() != 3 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(10));
        assert_eq!(guest.lines.count(1), 0);
    }
}

#[test]
fn descriptors_may_be_in_a_table_elsewhere() {
    let (mut guest, mut keyboard) = guest();
    keyboard.write_all(b"12345678").unwrap();
    let mut queues = guest.start(1, INDIRECT_DESCRIPTORS);
    let receive = &mut queues[RECEIVE];
    // Longer than the queue, not at a multiple of 16, and not in order.
    let table = 0x6_0004;
    for nth in 0..32 {
        let more = if nth == 31 { 0 } else { NEXT };
        let to = (0x4_0000 + 2 * u64::from(nth), 1, WRITE | more, (nth * 5 + 5) % 64);
        receive.put_descriptor(table, nth * 5 % 64, to);
    }
    receive.put_descriptor(receive.descriptors, 3, (table.into(), 64 * 16, INDIRECT, 0));
    receive.offer(3);
    guest.ring_if_wanted(1, receive);
    assert_eq!(guest.wait(1, receive), (3, 8));
    let spread = guest.bytes(0x4_0000, 64);
    assert_eq!(
        spread.iter().step_by(2).copied().filter(|byte| *byte != 0).collect::<Vec<_>>().len(),
        8
    );
}

#[test]
fn bells_before_the_driver_is_ready_mean_nothing() {
    let (mut guest, mut keyboard) = guest();
    keyboard.write_all(b"early").unwrap();
    guest.agree(1, 1 << 32);
    let mut receive = Queue::new(&guest.memory, 1, 0, false);
    guest.enable(1, &receive);
    receive.add(&[(0x4_0000, 8, true)]);
    guest.ring(1, &receive);
    thread::sleep(Duration::from_millis(10));
    assert_eq!(receive.take_used(), None);
    // What is there already when it becomes so is found without a bell, and the other queue needn't be set up.
    guest.set_status(1, 15);
    assert_eq!(guest.wait(1, &mut receive), (0, 5));
    // But now it can't be any more.
    let transmit = Queue::new(&guest.memory, 1, 1, false);
    guest.enable(1, &transmit);
    assert_eq!((guest.read(1, 28, 2), guest.read(1, 32, 4)), (0, 0));
}
