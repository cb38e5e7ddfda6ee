//! Code that is written to: by itself, by other code, by a device, through another mapping.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Gpr, PAGE_SIZE};

/// `mov eax, value; ret` at `at`; the value is at `at + 1`.
fn constant(guest: &mut Guest, at: u32, value: u32) {
    guest.assemble(at, |a| {
        a.mov(eax, value)?;
        a.ret()
    });
}

/// A loop that stores its counter (in ecx) at `patched`, calls `called` and adds up eax in ebx.
fn patching(
    rounds: u32,
    patched: u32,
    called: u32,
) -> impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    move |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, rounds)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(patched), ecx)?;
        a.mov(edx, called)?;
        a.call(edx)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    }
}

#[test]
fn stores_into_code_take_effect_at_once() {
    // In another page, in the same page, and in the same page by a store that runs over two.
    for called in [USER + 0x1000, USER + 0x800, USER + 0xffe] {
        let mut guest = Guest::user(patching(1000, called + 1, called));
        constant(&mut guest, called, 0);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Ebx), 500_500, "{called:#x}");
    }
}

#[test]
fn so_do_stores_through_another_mapping_of_the_frame() {
    let mut guest = Guest::user(patching(1000, DATA + 0x801, USER + 0x1800));
    let code = (USER + 0x1000) / PAGE_SIZE;
    let page = guest.tables.pages[&code];
    guest.tables.pages.insert(DATA / PAGE_SIZE, page);
    constant(&mut guest, USER + 0x1800, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 500_500);
}

#[test]
fn a_program_may_change_its_very_next_instruction() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 100)?; // 5 bytes
        a.set_label(&mut again)?;
        a.mov(byte_ptr(USER + 5 + 6 + 1), cl)?; // 6 bytes
        a.mov(eax, 0)?; // its immediate was just written
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.set_gpr(Gpr::Ebx, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 5050);
}

#[test]
fn code_that_changes_all_the_time_is_translated_in_small_pieces() {
    const ROUNDS: u32 = 1000;
    // What follows the program in its page, zeros, could be translated as well: each time 256 instructions.
    let mut guest = Guest::user(patching(ROUNDS, USER + 0x801, USER + 0x800));
    constant(&mut guest, USER + 0x800, 0);
    guest.finish();
    let statistics = guest.vcpu.statistics();
    assert!(statistics.code_writes >= u64::from(ROUNDS - 1), "{statistics:?}");
    assert!(statistics.instructions < u64::from(ROUNDS) * 64, "{statistics:?}");
}

#[test]
fn a_device_may_write_code() {
    let mut guest = Guest::user(|a| {
        a.mov(edx, USER + 0x1000)?;
        a.call(edx)
    });
    for value in 1..20u32 {
        constant(&mut guest, USER + 0x1000, value);
        guest.start_user(USER);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), value);
    }
}

#[test]
fn strings_and_stacks_may_write_code() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.mov(ebp, esp)?;
        a.mov(esp, USER + 0x1005)?;
        a.push(ecx)?;
        a.mov(esp, ebp)?;
        a.mov(edx, USER + 0x1000)?;
        a.call(edx)?;
        a.add(ebx, eax)?;
        a.push(ecx)?;
        a.mov(esi, DATA)?;
        a.mov(edi, USER + 0x1000)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        a.pop(ecx)?;
        a.call(edx)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    constant(&mut guest, USER + 0x1000, 0);
    guest.poke(DATA, &[0xb8, 1, 0, 0, 0, 0xc3]);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 5050 + 100);
}

#[test]
fn busy_data_beside_code_does_not_thrash() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 5000)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(USER + 0xf00))?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.finish();
    assert_eq!(guest.peek(USER + 0xf00), 5000);
    let statistics = guest.vcpu.statistics();
    assert!(statistics.code_writes < 20 && statistics.faults < 20, "{statistics:?}");
    assert!(statistics.units < 20, "{statistics:?}");
}

#[test]
fn a_kernel_that_patches_itself_through_its_linear_map() {
    let mut guest = Guest::kernel(patching(300, KERNEL + 0x4001, KERNEL + 0x1000));
    let page = guest.tables.pages[&((KERNEL + 0x1000) / PAGE_SIZE)];
    guest.tables.pages.insert((KERNEL + 0x4000) / PAGE_SIZE, page);
    constant(&mut guest, KERNEL + 0x1000, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 300 * 301 / 2);
}
