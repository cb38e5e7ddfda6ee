//! What PCI says of configuration, and what virtio says of its registers.

use crate::driver::{BAR, DRIVER_OK, FEATURES_OK, Guest, NEEDS_RESET, Queue, bar};
use lguest_devices::pci::BAR_BYTES;
use lguest_devices::virtio::console::Console;
use lguest_devices::virtio::{EVENT_IDX, INDIRECT_DESCRIPTORS, VERSION_1};
use std::io::{Read, pipe};

fn guest() -> Guest {
    Guest::new(vec![Console::default().into_model(), Console::default().into_model()])
}

/// The capabilities in the list: type, offset in configuration, offset in the registers, length.
fn capabilities(guest: &mut Guest, slot: u8) -> Vec<(u8, u8, u32, u32)> {
    let mut all = Vec::new();
    assert_ne!(guest.config_read(slot, 6, 2) & 0x10, 0);
    let mut at = guest.config_read(slot, 0x34, 1) as u8;
    while at != 0 {
        assert_eq!((at & 3, guest.config_read(slot, at, 1)), (0, 9));
        let (kind, bar) = (guest.config_read(slot, at + 3, 1), guest.config_read(slot, at + 4, 1));
        assert_eq!(bar, 0);
        let place = (guest.config_read(slot, at + 8, 4), guest.config_read(slot, at + 12, 4));
        all.push((kind as u8, at, place.0, place.1));
        at = guest.config_read(slot, at + 1, 1) as u8;
    }
    all
}

#[test]
fn devices_say_what_they_are() {
    let mut guest = guest();
    // The bridge, by its class; the original has no more to say either.
    assert_eq!(guest.config_read(0, 8, 4) >> 8, 0x06_0000);
    assert_eq!(guest.config_read(1, 0, 4), 0x1043_1af4);
    assert_eq!(guest.config_read(1, 8, 4), 0x0780_0001);
    assert!(guest.config_read(1, 0x2e, 2) >= 0x40);
    assert_eq!(guest.config_read(1, 0x0e, 1), 0);
    assert_eq!(guest.config_read(2, 0x3c, 2), 0x0102);
    // No others: not in other slots, functions or buses.
    assert_eq!(guest.config_read(3, 0, 4), u32::MAX);
    for address in [1 << 31 | 1 << 11 | 1 << 8, 1 << 31 | 1 << 11 | 1 << 16, 1 << 11] {
        assert!(guest.bus.port_out(0xcf8, 4, address));
        assert_eq!(guest.bus.port_in(0xcfc, 4), Some(u32::MAX));
        assert!(guest.bus.port_out(0xcfc, 4, 0));
    }
}

#[test]
fn ports_are_the_buss_own_at_some_sizes_only() {
    let mut guest = guest();
    assert!(guest.bus.port_out(0xcf8, 4, u32::MAX));
    assert_eq!(guest.bus.port_in(0xcf8, 4), Some(0x80ff_fffc));
    // Smaller accesses are to other things that live there.
    for (port, bytes) in [(0xcf8, 1), (0xcf9, 1), (0xcf8, 2), (0xcfb, 1), (0xcf7, 4), (0xd00, 4)] {
        assert_eq!(guest.bus.port_in(port, bytes), None);
        assert!(!guest.bus.port_out(port, bytes, 0));
    }
    for (port, bytes) in [(0xcfd, 4), (0xcff, 2), (0xcfc, 8), (0xcfc, 0)] {
        assert_eq!(guest.bus.port_in(port, bytes), None);
        assert!(!guest.bus.port_out(port, bytes, 0));
    }
    assert_eq!(guest.config_read(1, 2, 1), 0x43);
    assert_eq!(guest.config_read(1, 2, 2), 0x1043);
}

#[test]
fn registers_can_be_measured_and_moved() {
    let mut guest = guest();
    assert_eq!(guest.config_read(1, 0x10, 4), BAR);
    guest.config_write(1, 4, 2, 4);
    let mut byte = [0x77];
    assert!(!guest.bus.read(BAR, &mut byte) && byte == [0x77], "not before they're switched on");
    guest.config_write(1, 0x10, 4, u32::MAX);
    assert_eq!(guest.config_read(1, 0x10, 4), !(BAR_BYTES - 1));
    // The other five don't exist.
    for register in (0x14..0x28).step_by(4) {
        guest.config_write(1, register, 4, u32::MAX);
        assert_eq!(guest.config_read(1, register, 4), 0);
    }
    guest.config_write(1, 0x10, 4, 0xe000_0abc);
    guest.config_write(1, 4, 2, 2);
    assert!(guest.bus.read(0xe000_0000 + 18, &mut byte) && byte == [2]);
    assert!(!guest.bus.read(BAR, &mut byte));
    // Only accesses that are inside.
    let mut word = [0; 4];
    assert!(guest.bus.read(0xe000_0ffc, &mut word) && !guest.bus.read(0xe000_0ffd, &mut word));
    assert!(!guest.bus.read(0xdfff_ffff, &mut word) && !guest.bus.write(0xe000_1000, &[0]));
}

#[test]
fn what_cant_be_written_stays() {
    let mut guest = guest();
    let window = capabilities(&mut guest, 2).last().unwrap().1;
    let before: Vec<u32> = (0..64).map(|n| guest.config_read(2, 4 * n, 4)).collect();
    for register in (0..64).map(|n| 4 * n) {
        // All but what can be: command, cache line and latency, registers, interrupt line, and the window.
        if ![0x04, 0x0c, 0x10, 0x3c].contains(&register) {
            guest.config_write(2, register, 4, !before[usize::from(register) / 4]);
        }
    }
    for register in (0..64).map(|n| 4 * n).filter(|at| *at < window || *at > window + 16) {
        assert_eq!(guest.config_read(2, register, 4), before[usize::from(register) / 4]);
    }
    guest.config_write(2, 0x3c, 1, 7);
    assert_eq!(guest.config_read(2, 0x3c, 2), 0x0107);
}

#[test]
fn capabilities_show_where_the_registers_are() {
    let mut guest = guest();
    let all = capabilities(&mut guest, 1);
    let kinds: Vec<u8> = all.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    for (kind, at, offset, length) in all {
        let expected = match kind {
            1 => (16, 0, 56),
            2 => (20, 0x80, 2),
            3 => (16, 0x40, 1),
            4 => (16, 0x100, 12),
            _ => (20, 0, 0),
        };
        assert_eq!((guest.config_read(1, at + 2, 1), offset, length), expected);
        assert!(offset + length <= BAR_BYTES);
    }
}

#[test]
fn the_window_reaches_registers_without_an_address() {
    let mut guest = guest();
    let window = capabilities(&mut guest, 1).last().unwrap().1;
    let mut through = |offset: u32, bytes: u32, write: Option<u32>| {
        guest.config_write(1, window + 4, 1, 0);
        guest.config_write(1, window + 8, 4, offset);
        guest.config_write(1, window + 12, 4, bytes);
        if let Some(value) = write {
            guest.config_write(1, window + 16, bytes, value);
        }
        guest.config_read(1, window + 16, bytes)
    };
    assert_eq!(through(18, 2, None), 2);
    assert_eq!(through(20, 1, Some(3)), 3);
    assert_eq!(through(0, 4, Some(1)), 1);
    assert_eq!(through(4, 4, None), (VERSION_1 >> 32) as u32);
    assert_eq!(through(22, 2, Some(1)), 1);
    assert_eq!(through(24, 2, None), 64);
    // Elsewhere or of other sizes, there is no access.
    for (offset, bytes) in [(BAR_BYTES, 4), (2, 4), (20, 0), (20, 3), (u32::MAX - 3, 4)] {
        guest.config_write(1, window + 8, 4, offset);
        guest.config_write(1, window + 12, 4, bytes);
        guest.config_write(1, window + 16, 4, 0);
        assert_eq!(guest.config_read(1, window + 16, 4), 0);
    }
    // Nor in other sets of registers.
    guest.config_write(1, window + 4, 1, 1);
    guest.config_write(1, window + 8, 4, 20);
    guest.config_write(1, window + 12, 4, 1);
    guest.config_write(1, window + 16, 1, 0);
    guest.config_write(1, 4, 2, 2);
    assert_eq!(guest.status(1), 3);
}

#[test]
fn the_window_is_how_a_kernel_speaks_early() {
    let (mut screen, output) = pipe().unwrap();
    let console = Console { output: Some(output.into()), ..Console::default() };
    let mut guest = Guest::new(vec![console.into_model()]);
    let all = capabilities(&mut guest, 1);
    let (_, _, config, length) = all[3];
    assert!(length >= 12);
    for character in b"Linux version" {
        let window = all[4].1;
        guest.config_write(1, window + 4, 1, 0);
        guest.config_write(1, window + 12, 4, 4);
        guest.config_write(1, window + 8, 4, config + 8);
        guest.config_write(1, window + 16, 4, u32::from(*character));
    }
    let mut said = [0; 13];
    screen.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"Linux version");
}

#[test]
fn features_are_agreed_on() {
    let mut guest = guest();
    guest.agree(1, VERSION_1);
    let offered = guest.offered(1);
    assert_eq!(offered, VERSION_1 | EVENT_IDX | INDIRECT_DESCRIPTORS | 4);
    guest.write(1, 0, 4, 2);
    assert_eq!(guest.read(1, 4, 4), 0);
    assert_eq!(guest.status(1), 3 | FEATURES_OK);
    // From here on they stay.
    guest.write(1, 8, 4, 0);
    guest.write(1, 12, 4, 4);
    assert_eq!(guest.read(1, 12, 4), 0);
    for wrong in [0, 4, VERSION_1 | 1, VERSION_1 | 1 << 40] {
        guest.agree(1, wrong);
        assert_eq!(guest.status(1), 3, "{wrong:#x}");
    }
}

#[test]
fn what_a_driver_said_is_taken_back_by_a_reset_alone() {
    let mut guest = guest();
    let registers = |guest: &mut Guest| [0, 8, 12, 20].map(|at| guest.read(1, at, 4));
    guest.config_write(1, 4, 2, 2);
    let fresh = registers(&mut guest);
    guest.agree(1, VERSION_1 | EVENT_IDX);
    guest.write(1, 0, 4, 1);
    guest.write(1, 8, 4, 0);
    guest.write(1, 22, 2, 1);
    let said = registers(&mut guest);
    assert_eq!(said, [1, 0, EVENT_IDX as u32, 1 << 16 | 3 | u32::from(FEATURES_OK)]);
    guest.set_status(1, 1);
    assert_eq!(registers(&mut guest), said);
    guest.set_status(1, 0);
    assert_eq!(registers(&mut guest), fresh);
    guest.write(1, 8, 4, 1);
    assert_eq!(guest.read(1, 12, 4), 0);
}

#[test]
fn without_features_agreed_on_nothing_starts() {
    let mut guest = guest();
    guest.agree(1, 0);
    guest.set_status(1, 3 | DRIVER_OK);
    assert_eq!(guest.status(1), 3 | DRIVER_OK | NEEDS_RESET);
    assert_eq!((guest.read(1, 0x3f, 1), guest.read(1, 0x80, 1)), (0, 0));
    assert_eq!(guest.read(1, 0x40, 1), 2, "an interrupt for a change");
    assert_eq!(guest.read(1, 0x40, 1), 0, "once");
    guest.set_status(1, 0);
    assert_eq!(guest.status(1), 0);
    // That it needs one is the device's to say.
    guest.set_status(1, NEEDS_RESET);
    assert_eq!(guest.status(1), 0);
    guest.start(1, 0);
}

#[test]
fn queues_are_set_up_one_by_one() {
    let mut guest = guest();
    guest.agree(1, VERSION_1);
    let queue = Queue::new(&guest.memory, 1, 1, false);
    guest.write(1, 22, 2, 1);
    // Sizes: powers of 2 up to the device's.
    for (size, is) in [(3, 64), (128, 64), (0, 64), (64, 64), (16, 16)] {
        guest.write(1, 24, 2, size);
        assert_eq!(guest.read(1, 24, 2), is);
    }
    for no in [0, 2] {
        guest.write(1, 28, 2, no);
        assert_eq!(guest.read(1, 28, 2), 0);
    }
    guest.enable(1, &queue);
    assert_eq!((guest.read(1, 24, 2), guest.read(1, 28, 2)), (8, 1));
    assert_eq!(guest.read(1, 32, 4), queue.descriptors);
    assert_eq!(guest.read(1, 30, 2), 0);
    // What is enabled stays as it is.
    guest.write(1, 24, 2, 16);
    guest.write(1, 32, 4, 0);
    guest.write(1, 28, 2, 0);
    assert_eq!((guest.read(1, 24, 2), guest.read(1, 28, 2)), (8, 1));
    assert_eq!(guest.read(1, 32, 4), queue.descriptors);
    guest.write(1, 22, 2, 0);
    assert_eq!((guest.read(1, 24, 2), guest.read(1, 28, 2)), (64, 0));
    // There is no third one.
    guest.write(1, 22, 2, 2);
    guest.write(1, 24, 2, 8);
    assert_eq!(guest.read(1, 24, 2), 0);
    // Fields are written whole or not at all, and halves of addresses go where they belong.
    guest.write(1, 22, 1, 0);
    assert_eq!(guest.read(1, 22, 2), 2);
    guest.write(1, 22, 2, 0);
    guest.write(1, 44, 4, 0x1234);
    guest.write(1, 40, 4, 0x5678);
    assert_eq!((guest.read(1, 40, 4), guest.read(1, 44, 4)), (0x5678, 0x1234));
    assert_eq!((guest.read(1, 16, 2), guest.read(1, 26, 2)), (0xffff, 0xffff));
    guest.set_status(1, 0);
    guest.write(1, 22, 2, 1);
    assert_eq!((guest.read(1, 24, 2), guest.read(1, 28, 2), guest.read(1, 32, 4)), (64, 0, 0));
}

#[test]
fn interrupts_can_be_turned_off() {
    let mut guest = guest();
    guest.agree(1, 0);
    guest.config_write(1, 4, 2, 0x406);
    guest.set_status(1, 3 | DRIVER_OK);
    assert_eq!((guest.lines.count(1), guest.read(1, 0x40, 1)), (0, 2));
    // The command's upper byte alone.
    guest.config_write(1, 5, 1, 0);
    guest.set_status(1, 0);
    guest.set_status(1, DRIVER_OK);
    assert_eq!((guest.lines.count(1), guest.lines.count(2)), (1, 0));
}

#[test]
fn there_are_thirty_one_slots() {
    let mut guest = guest();
    for slot in 3..=31 {
        guest.bus.add(Console::default().into_model(), bar(slot), slot).unwrap();
    }
    assert!(guest.bus.add(Console::default().into_model(), 0, 0).is_err());
    assert_eq!(guest.config_read(31, 0x10, 4), bar(31));
    assert_eq!(guest.bus.into_models().len(), 31);
}
