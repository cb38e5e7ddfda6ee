//! Loads of a segment register with what it holds already: left out where nobody could have changed the descriptor unnoticed.

mod guest;

use guest::breakpoints::ENDED;
use guest::{Guest, Random};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Exit, Gpr, Segment, SegmentRegister};
use std::time::Duration;

/// Loads ds, es, fs and gs with what they hold, in both ways and with both operand sizes, and some flags behind them.
fn reloading(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, 0xabcd_0010u32)?;
    a.mov(ecx, 0xffff_0010u32)?;
    for _ in 0..2 {
        a.mov(ds, eax)?;
        a.mov(es, cx)?;
        a.mov(fs, ecx)?;
        a.mov(gs, ax)?;
    }
    a.stc()?;
    a.push(ds)?;
    a.push(fs)?;
    a.db(&[0x66, 0x06])?; // push es, 16 bits
    a.db(&[0x66, 0x07])?; // pop es, 16 bits
    a.pop(gs)?;
    a.pop(ds)?;
    a.setb(bl)
}

#[test]
fn a_load_that_changes_nothing_is_left_out_where_descriptors_are_settled() {
    for settled in [false, true] {
        let mut guest = Guest::kernel(reloading);
        guest.tables.settled = settled;
        guest.finish();
        let first = guest.tables.look_ups;
        guest.start_kernel(guest::KERNEL);
        guest.finish();
        // ds and es were set anew by the test, fs and gs stand.
        let second = guest.tables.look_ups - first;
        assert_eq!((first, second), if settled { (4, 2) } else { (11, 11) });
        assert_eq!(guest.gpr(Gpr::Ebx) & 0xff, 1, "flags stay");
        assert_eq!(guest.gpr(Gpr::Ecx), 0xffff_0010);
        assert_eq!(guest.gpr(Gpr::Esp), guest::KERNEL_STACK);
        for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Gs] {
            assert_eq!(guest.vcpu.cpu.segment(register).selector, 0x10);
        }
    }
}

#[test]
fn a_descriptor_that_changed_is_looked_up_again() {
    let mut guest = Guest::kernel(|a| {
        a.mov(eax, 0x10)?;
        a.mov(fs, eax)?;
        a.mov(ebx, dword_ptr(guest::KERNEL_DATA).fs())
    });
    guest.tables.settled = true;
    guest.poke(guest::KERNEL_DATA, &[1, 2, 3, 4, 5, 6, 7, 8]);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 0x0403_0201);
    // The same, 4 bytes further on.
    guest.tables.descriptors[2] = 0x00cf_9300_0004_ffff;
    for (told, found) in [(false, 0x0403_0201), (true, 0x0807_0605)] {
        if told {
            guest.vcpu.descriptors_changed(2..3);
        }
        let eip = guest::KERNEL;
        guest.vcpu.cpu.set_eip(eip);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Ebx), found);
    }
    // Others' changes don't matter.
    guest.tables.descriptors[2] = 0x00cf_9300_0000_ffff;
    guest.vcpu.descriptors_changed(3..6);
    guest.vcpu.cpu.set_eip(guest::KERNEL);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 0x0807_0605);
}

#[test]
fn a_descriptor_that_changed_is_not_exchanged() {
    let mut guest = Guest::kernel(|a| {
        a.mov(eax, 0x28)?;
        a.mov(fs, eax)?;
        a.mov(ebx, dword_ptr(guest::KERNEL_DATA).fs())?;
        a.xor(eax, eax)?;
        a.mov(fs, eax)
    });
    guest.tables.settled = true;
    guest.poke(guest::KERNEL_DATA, &[1, 2, 3, 4, 5, 6, 7, 8]);
    guest.tables.descriptors.push(0x00cf_9300_0000_ffff);
    for (base, found) in [(0, 0x0403_0201), (4, 0x0807_0605)] {
        guest.tables.descriptors[5] = 0x00cf_9300_0000_ffff | base << 16;
        guest.vcpu.descriptors_changed(5..6);
        guest.vcpu.cpu.set_eip(guest::KERNEL);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Ebx), found);
    }
}

#[test]
fn a_null_selector_is_loaded_once() {
    let mut guest = Guest::kernel(|a| {
        a.xor(eax, eax)?;
        a.mov(gs, eax)?;
        a.mov(gs, eax)?;
        a.mov(al, 3)?;
        a.mov(gs, eax)
    });
    guest.finish();
    assert_eq!(guest.tables.look_ups, 0);
    assert_eq!(guest.vcpu.cpu.segment(SegmentRegister::Gs).selector, 3, "a null one with a level");
}

/// Loads of fs and gs as kernels make them, in rounds, with what the segments show noted behind each.
fn exchanging(seed: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut random = Random(seed);
        a.mov(ebp, 6)?;
        a.mov(edi, guest::KERNEL_DATA + 0x1000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        for _ in 0..10 {
            // Null ones, flat data, and segments with bases, one of them for level 3.
            let selector = [0, 3, 0x10, 0x28, 0x30, 0x3b, 0x3b][random.below(7) as usize];
            let second = random.below(2) == 0;
            match random.below(3) {
                0 => {
                    a.mov(eax, selector)?;
                    if second { a.mov(gs, eax)? } else { a.mov(fs, eax)? }
                }
                1 => {
                    a.push(selector)?;
                    if second { a.pop(gs)? } else { a.pop(fs)? }
                }
                _ => {}
            }
            a.stc()?;
            a.mov(eax, fs)?;
            a.mov(ebx, gs)?;
            a.rcl(eax, 8)?;
            a.add(eax, ebx)?;
            a.stosd()?;
            // Only what isn't null can be read.
            for register in [fs, gs] {
                let mut null = a.create_label();
                a.mov(eax, register)?;
                a.test(eax, 0xfffc)?;
                a.jz(null)?;
                let place = dword_ptr(guest::KERNEL_DATA);
                a.mov(eax, if register == fs { place.fs() } else { place.gs() })?;
                a.stosd()?;
                a.set_label(&mut null)?;
                a.nop()?;
            }
        }
        a.dec(ebp)?;
        a.jnz(again)
    }
}

/// What the program noted, what fs and gs hold in the end, and how often a descriptor was looked up.
fn outcome(seed: u32, settled: bool) -> (Vec<u32>, [Segment; 2], u32) {
    let mut guest = Guest::kernel(exchanging(seed));
    guest.tables.settled = settled;
    let based = |base: u64, level: u64| 0x00cf_9300_0000_ffff | base << 16 | level << 45;
    guest.tables.descriptors.extend([based(4, 0), based(8, 0), based(12, 3)]);
    let data: Vec<u8> = (0..64).collect();
    guest.poke(guest::KERNEL_DATA, &data);
    let mut random = Random(seed);
    guest.vcpu.set_alarm(Some(Duration::from_micros(random.below(30).into())));
    loop {
        match guest.run() {
            Exit::Kicked => {
                // A descriptor changes, back and forth.
                guest.vcpu.set_alarm(Some(Duration::from_micros(random.below(30).into())));
                guest.vcpu.descriptors_changed(5..7);
            }
            exit => break assert_eq!(exit, ENDED),
        }
    }
    let notes = (0..0x200).map(|at| guest.peek(guest::KERNEL_DATA + 0x1000 + at * 4)).collect();
    let segments = [SegmentRegister::Fs, SegmentRegister::Gs].map(|it| guest.vcpu.cpu.segment(it));
    (notes, segments, guest.tables.look_ups)
}

#[test]
fn segments_that_are_exchanged_are_those_that_would_be_loaded() {
    let (mut spared, mut needed) = (0, 0);
    for seed in 0..60 {
        let (notes, segments, look_ups) = outcome(seed, false);
        let (same_notes, same_segments, fewer) = outcome(seed, true);
        assert_eq!((same_notes, same_segments), (notes, segments), "seed {seed}");
        (spared, needed) = (spared + look_ups - fewer.min(look_ups), needed + look_ups);
    }
    assert!(spared * 4 > needed, "{spared} of {needed}");
}

#[test]
fn another_level_has_to_ask() {
    // Level 0 has had a segment of its own in fs; level 1 may not load it.
    let mut guest = Guest::kernel(|a| {
        a.mov(eax, 0x10)?;
        a.mov(fs, eax)?;
        a.xor(eax, eax)?;
        a.mov(fs, eax)?;
        a.mov(eax, 0x10)?;
        a.mov(fs, eax)?;
        a.xor(eax, eax)?;
        a.mov(fs, eax)
    });
    guest.tables.settled = true;
    guest.finish();
    assert_eq!(guest.tables.look_ups, 1, "the second time they were exchanged");
    guest.start_kernel(guest::KERNEL);
    let cpu = &mut guest.vcpu.cpu;
    cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(0x09));
    cpu.set_segment(SegmentRegister::Ss, Segment::flat_data(0x11));
    assert_eq!(guest.exception(), Exception::protection(0x10));
    // A program of level 3 finds nothing to exchange either.
    guest.start_user(guest::KERNEL);
    guest.tables.pages.values_mut().for_each(|page| page.user = true);
    assert_eq!(guest.exception(), Exception::protection(0x10));
}

#[test]
fn a_segment_that_was_put_aside_shows_the_current_address_space() {
    let mut guest = Guest::kernel(|a| {
        for selector in [0x23, 0x10, 0x23] {
            a.mov(eax, selector)?;
            a.mov(gs, eax)?;
        }
        a.nop()
    });
    guest.provide(guest::USER, 1, true);
    guest.assemble(guest::USER, |a| a.mov(eax, dword_ptr(guest::DATA).gs()));
    guest.tables.settled = true;
    guest.poke(guest::DATA, &[1, 0, 0, 0]);
    // Level 3's segment is there, and read in the first space; then it is put aside.
    guest.vcpu.set_alarm(None);
    guest.finish();
    guest.start_user(guest::USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 1);
    let set_aside = |guest: &mut Guest, selector: u32| {
        guest.assemble(guest::KERNEL, |a| {
            a.mov(eax, selector)?;
            a.mov(gs, eax)
        });
        guest.start_kernel(guest::KERNEL);
        guest.finish();
    };
    set_aside(&mut guest, 0x10);
    let other = guest.vcpu.create_space().expect("room for another");
    guest.vcpu.switch_space(other);
    guest.provide(guest::DATA, 1, true);
    guest.poke(guest::DATA, &[2, 0, 0, 0]);
    let look_ups = guest.tables.look_ups;
    set_aside(&mut guest, 0x23);
    assert_eq!(guest.tables.look_ups, look_ups, "exchanged");
    guest.start_user(guest::USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 2);
}
