//! Rings as no good driver has them. Whatever is in them, the device gives up or goes on: it doesn't crash, hang or grow, and a reset
//! brings it back.

use crate::block::Plate;
use crate::driver::{FEATURES_OK, Guest, INDIRECT, MEMORY, NEXT, Queue, WRITE};
use crate::network::Cable;
use lguest_devices::virtio::VERSION_1;
use lguest_devices::virtio::block::block;
use lguest_devices::virtio::console::Console;
use lguest_devices::virtio::entropy::entropy;
use lguest_devices::virtio::network::{MacAddress, network};
use lguest_switcher::GuestPhys;
use proptest::prelude::*;
use std::io::{PipeWriter, Write, pipe};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Where the devices are.
const CONSOLE: u8 = 1;
const BLOCK: u8 = 2;
const NETWORK: u8 = 3;
const ENTROPY: u8 = 4;

/// A guest with a device of each kind, and what keeps them busy.
fn guest() -> (Guest, PipeWriter, UnixDatagram) {
    let (input, keyboard) = pipe().unwrap();
    let console = Console { input: Some(input.into()), ..Console::default() };
    let (cable, far) = Cable::pair();
    let models = vec![
        console.into_model(),
        block(Box::new(Plate::new())),
        network(Box::new(cable), MacAddress([2; 6])),
        entropy(),
    ];
    (Guest::new(models), keyboard, far)
}

/// Offers chain 0 of these descriptors, with a table of them at 0x6_0000 too.
fn offer(guest: &mut Guest, queue: &mut Queue, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, to) in descriptors.iter().enumerate() {
        queue.put_descriptor(queue.descriptors, index as u16, *to);
    }
    queue.offer(0);
    guest.ring(1, queue);
}

/// Resets a device, and sees that it works.
fn works_again(guest: &mut Guest, slot: u8) {
    let mut queues = guest.start(slot, 0);
    let (queue, chain): (_, &[_]) = match slot {
        CONSOLE => (1, &[(0x4_0000, 8, false)]),
        BLOCK => (0, &[(0x4_0000, 16, false), (0x4_1000, 1, true)]),
        NETWORK => (1, &[(0x4_0000, 12, false), (0x4_1000, 60, false)]),
        _ => (0, &[(0x4_0000, 8, true)]),
    };
    let head = queues[queue].add(chain);
    guest.ring_if_wanted(slot, &mut queues[queue]);
    assert_eq!(guest.wait(slot, &mut queues[queue]).0, head);
}

#[test]
fn chains_that_cant_be_right_break_the_device() {
    let (mut guest, ..) = guest();
    let table = 0x6_0000;
    let wrong: [&[(u64, u32, u16, u16)]; 16] = [
        &[(MEMORY.into(), 1, 0, 0)],
        &[(u64::from(MEMORY) - 1, 2, 0, 0)],
        &[(1 << 32, 1, 0, 0)],
        &[(u64::MAX, 1, 0, 0)],
        &[(u64::MAX - 3, u32::MAX, WRITE, 0)],
        &[(0, u32::MAX, 0, 0)],
        // Loops, and links to where there is nothing.
        &[(0x4_0000, 1, NEXT, 0)],
        &[(0x4_0000, 0, NEXT, 1), (0x4_0000, 0, NEXT, 0)],
        &[(0x4_0000, 1, NEXT, 8)],
        &[(0x4_0000, 1, NEXT, 0xffff)],
        // Something to read after something to write.
        &[(0x4_0000, 1, WRITE | NEXT, 1), (0x4_0000, 1, 0, 0)],
        // Tables: outside, empty, of a broken length, too long, of other tables, a loop.
        &[(MEMORY.into(), 16, INDIRECT, 0)],
        &[(table, 0, INDIRECT, 0)],
        &[(table, 17, INDIRECT, 0)],
        &[(table, 0x10_0000, INDIRECT, 0)],
        &[(table + 0x1000, 16, INDIRECT, 0)],
    ];
    for descriptors in wrong {
        let mut queues = guest.start(1, 0);
        queues[0].put_descriptor(table as u32 + 0x1000, 0, (table, 16, INDIRECT, 0));
        offer(&mut guest, &mut queues[TRANSMIT], descriptors);
        guest.wait_broken(1);
        assert_eq!(guest.read(1, 0x40, 1), 2);
        assert_eq!(queues[TRANSMIT].take_used(), None);
        guest.ring(1, &queues[TRANSMIT]);
        works_again(&mut guest, CONSOLE);
    }
}

#[test]
fn tables_can_be_too_long_without_end() {
    let (mut guest, ..) = guest();
    for (chain, loops) in [(1024, false), (1025, false), (1025, true)] {
        let mut queues = guest.start(1, 0);
        let table = 0x8_0000;
        for nth in 0..chain {
            let next = if loops { 0 } else { nth + 1 };
            let more = if nth + 1 < chain || loops { NEXT } else { 0 };
            queues[0].put_descriptor(table, nth, (0x4_0000, 0, more, next));
        }
        let table = (table.into(), 0x7_fff0, INDIRECT, 0);
        offer(&mut guest, &mut queues[TRANSMIT], &[table]);
        if chain == 1024 {
            guest.wait(1, &mut queues[TRANSMIT]);
        } else {
            guest.wait_broken(1);
        }
    }
    works_again(&mut guest, CONSOLE);
}

#[test]
fn rings_that_cant_be_right_break_the_device() {
    let (mut guest, ..) = guest();
    // A head that the table doesn't have.
    let mut queues = guest.start(1, 0);
    queues[TRANSMIT].offer(8);
    guest.ring(1, &queues[TRANSMIT]);
    guest.wait_broken(1);
    // More chains than there can be.
    let queues = guest.start(1, 0);
    let available = GuestPhys(queues[TRANSMIT].available);
    guest.memory.write_u16(available.wrapping_add(2), 9).unwrap();
    guest.ring(1, &queues[TRANSMIT]);
    guest.wait_broken(1);
    // Rings not in memory, or not where rings can be.
    for field in 0..3 {
        for at in [MEMORY - 16, MEMORY, 0xffff_fff0, 0x1_0001] {
            guest.agree(1, VERSION_1);
            let mut queue = Queue::new(&guest.memory, 1, 1, false);
            *[&mut queue.descriptors, &mut queue.available, &mut queue.used][field] = at;
            guest.enable(1, &queue);
            guest.set_status(1, 15);
            guest.wait_broken(1);
        }
    }
    guest.agree(1, VERSION_1);
    let queue = Queue::new(&guest.memory, 1, 1, false);
    guest.write(1, 22, 2, 1);
    guest.write(1, 36, 4, 1);
    guest.write(1, 28, 2, 1);
    guest.enable(1, &queue);
    guest.set_status(1, 15);
    guest.wait_broken(1);
    works_again(&mut guest, CONSOLE);
}

#[test]
fn buffers_without_room_come_back_empty() {
    let (mut guest, mut keyboard, _far) = guest();
    keyboard.write_all(b"a").unwrap();
    let mut queues = guest.start(1, 0);
    let receive = &mut queues[RECEIVE];
    let none = receive.add(&[(0x4_0000, 0, true)]);
    let wrong = receive.add(&[(0x4_0000, 8, false)]);
    let right = receive.add(&[(0x4_0000, 8, true)]);
    guest.ring(1, receive);
    assert_eq!(guest.wait(1, receive), (none, 0));
    assert_eq!(guest.wait(1, receive), (wrong, 0));
    assert_eq!(guest.wait(1, receive), (right, 1));
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let at = prop_oneof![
        3 => 0x4_0000u64..0x4_1000,
        2 => 0x6_0000u64..0x6_0100,
        1 => any::<u64>(),
        1 => (u64::from(MEMORY) - 64)..(u64::from(MEMORY) + 64),
    ];
    let len = prop_oneof![3 => 0u32..64, 1 => (1u32..9).prop_map(|n| 16 * n), 1 => any::<u32>()];
    (at, len, 0u16..8, prop_oneof![5 => 0u16..8, 1 => any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the rings, the device comes back.
    #[test]
    fn anything_in_the_rings(
        table in prop::collection::vec(descriptor(), 8),
        other in prop::collection::vec(descriptor(), 8),
        heads in prop::collection::vec(prop_oneof![6 => 0u16..8, 1 => any::<u16>()], 1..9),
        jump in prop_oneof![4 => Just(0u16), 1 => any::<u16>()],
        features in prop_oneof![Just(0u64), Just(1 << 29)],
        wait in any::<bool>(),
    ) {
        let (mut guest, mut keyboard, far) = guest();
        keyboard.write_all(b"some input").unwrap();
        far.send(&[0xee; 60]).unwrap();
        for slot in [CONSOLE, BLOCK, NETWORK, ENTROPY] {
            let mut queues = guest.start(slot, features);
            for queue in &mut queues {
                for index in 0..8 {
                    queue.put_descriptor(queue.descriptors, index, table[usize::from(index)]);
                    queue.put_descriptor(0x6_0000, index, other[usize::from(index)]);
                }
                heads.iter().for_each(|head| queue.offer(*head));
                if jump != 0 {
                    guest.memory.write_u16(GuestPhys(queue.available + 2), jump).unwrap();
                }
                guest.ring(slot, queue);
            }
            if wait {
                guest.lines.wait(slot, Duration::from_millis(2));
            }
            prop_assert_ne!(guest.status(slot) & FEATURES_OK, 0);
            works_again(&mut guest, slot);
        }
    }
}
