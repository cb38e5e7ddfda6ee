//! Instructions that run over the end of their page: found by the jump table, and forgotten when either page changes.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Breakpoint, Exit, Gpr, GuestVirt, PAGE_SIZE, View};

/// The page in which the instruction begins.
const FIRST: u32 = USER + PAGE_SIZE;
const SECOND: u32 = FIRST + PAGE_SIZE;
/// Where it begins: a byte of it is in the first page, and its operand in the second.
const AT: u32 = SECOND - 1;

/// Calls `mov eax, n; ret` at [`AT`] twice, and adds up. Both pages have frames of their own.
fn calling() -> Guest {
    let mut guest = Guest::user(|a| {
        a.xor(ebx, ebx)?;
        a.mov(ecx, 3)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(u64::from(AT))?;
        a.add(ebx, eax)?;
        a.mov(edx, AT)?;
        a.call(edx)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.poke(AT, &[0xb8, 1, 0, 0, 0, 0xc3]);
    guest
}

/// Runs it again, and says what the instruction loaded, six times.
#[track_caller]
fn sum(guest: &mut Guest) -> u32 {
    guest.start_user(USER);
    guest.finish();
    guest.gpr(Gpr::Ebx)
}

/// Shows the guest another frame at `page`, as its tables would. Its contents are the old one's, with `byte` at `offset`.
fn exchange(guest: &mut Guest, page: u32, offset: u32, byte: u8) {
    let before: Vec<u8> = (0..PAGE_SIZE).map(|at| guest.peek_byte(page + at)).collect();
    guest.provide(page, 1, true);
    guest.poke(page, &before);
    guest.poke(page + offset, &[byte]);
}

#[test]
fn a_second_page_that_is_another_counts_at_once() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    exchange(&mut guest, SECOND, 0, 7);
    // Nobody has said so yet: the old one may still be shown. Now it is said.
    guest.vcpu.unmap(View::AllUsers, GuestVirt(SECOND), 1);
    assert_eq!(sum(&mut guest), 42);
    guest.vcpu.unmap_all(View::AllUsers);
    assert_eq!(sum(&mut guest), 42);
}

#[test]
fn a_first_page_that_is_another_counts_at_once() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    exchange(&mut guest, FIRST, PAGE_SIZE - 1, 0xb9); // mov ecx, 1: the loop ends at once.
    guest.vcpu.unmap(View::AllUsers, GuestVirt(FIRST), 1);
    guest.start_user(USER);
    guest.set_gpr(Gpr::Eax, 100);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 200);
}

#[test]
fn a_page_that_is_shown_in_another_s_place_counts_at_once() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    exchange(&mut guest, SECOND, 0, 9);
    let page = guest.tables.pages[&(SECOND / PAGE_SIZE)];
    let mapping = lguest_switcher::Mapping {
        virt: GuestVirt(SECOND),
        phys: lguest_switcher::GuestPhys(page.frame * PAGE_SIZE),
        pages: 1,
        writable: true,
        user: true,
    };
    guest.vcpu.map(View::AllUsers, mapping);
    assert_eq!(sum(&mut guest), 54);
}

#[test]
fn a_write_into_either_page_counts_at_once() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    guest.poke(SECOND, &[5]);
    assert_eq!(sum(&mut guest), 30);
    guest.poke(AT, &[0x05]); // add eax, 5
    guest.start_user(USER);
    guest.set_gpr(Gpr::Eax, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 5 * 21);
}

#[test]
fn the_guest_s_own_store_counts_at_once() {
    let mut guest = Guest::user(|a| {
        a.xor(ebx, ebx)?;
        for value in [1, 2, 3] {
            a.mov(byte_ptr(SECOND), value)?;
            for _ in 0..2 {
                a.call(u64::from(AT))?;
                a.add(ebx, eax)?;
            }
        }
        a.nop()
    });
    guest.poke(AT, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for _ in 0..3 {
        assert_eq!(sum(&mut guest), 12);
    }
}

#[test]
fn address_spaces_have_their_own() {
    let mut guest = calling();
    let first = guest.vcpu.current_space();
    assert_eq!(sum(&mut guest), 6);
    let pages = guest.tables.pages.clone();
    exchange(&mut guest, SECOND, 0, 4);
    let others = std::mem::replace(&mut guest.tables.pages, pages.clone());
    let second = guest.vcpu.create_space().expect("room for another");
    for _ in 0..3 {
        guest.tables.pages.clone_from(&others);
        guest.vcpu.switch_space(second);
        assert_eq!(sum(&mut guest), 24);
        guest.tables.pages.clone_from(&pages);
        guest.vcpu.switch_space(first);
        assert_eq!(sum(&mut guest), 6);
    }
}

#[test]
fn a_breakpoint_is_met() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    guest.vcpu.set_breakpoints([Some(Breakpoint::execute(GuestVirt(AT))), None, None, None]);
    guest.start_user(USER);
    assert_eq!((guest.run(), guest.vcpu.cpu.eip()), (Exit::Debug(1), AT));
    guest.vcpu.set_breakpoints([None; 4]);
    assert_eq!(sum(&mut guest), 6);
}

#[test]
fn a_second_page_that_is_gone_faults() {
    let mut guest = calling();
    assert_eq!(sum(&mut guest), 6);
    guest.tables.pages.remove(&(SECOND / PAGE_SIZE));
    guest.vcpu.unmap(View::AllUsers, GuestVirt(SECOND), 1);
    guest.start_user(USER);
    assert_eq!(guest.exception(), page_fault(SECOND, 4));
    assert_eq!(guest.vcpu.cpu.eip(), AT);
}
