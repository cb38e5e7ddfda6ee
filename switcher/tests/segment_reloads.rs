//! Loads of a segment register with what it holds already: left out where nobody could have changed the descriptor unnoticed.

mod guest;

use guest::Guest;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::{Gpr, SegmentRegister};

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
