//! Pages as user code sees them. It runs in a window of its own, which is to follow when tables change; the kernel may look at the same
//! pages by another way.

mod address_spaces;
mod tiny_guest;

use address_spaces::*;
use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{Hypercall, number};
use lguest_host::Kill;
use lguest_switcher::GuestVirt;
use tiny_guest::*;

/// User code does something twice, and calls its kernel after each; `change` is what that does the first time. What eax was the
/// second time is in slot 0, or else the error of a page fault.
fn user_before_and_after(
    guest: TinyGuest,
    act: impl Fn(&mut Code) -> Assembled,
    change: impl Fn(&mut Code) -> Assembled,
) -> Outcome {
    let guest = guest.reporting(14, 1).gate(128, 0xf, 3, |c| {
        let mut first = c.create_label();
        c.cmp(ebx, 1)?;
        c.je(first)?;
        c.note(0, eax)?;
        c.power_off()?;
        c.set_label(&mut first)?;
        change(c)?;
        c.iretd()
    });
    let guest = guest.user(|c| {
        for time in [1, 2] {
            c.mov(ebx, time)?;
            act(c)?;
            c.int(0x80)?;
        }
        Ok(())
    });
    guest.kernel(|c| c.enter_user()).run().powered_off()
}

#[test]
fn user_code_sets_them_too() {
    let outcome = guest()
        .gate(128, 0xf, 3, |c| {
            look(c, 0, entry(4))?;
            look(c, 1, entry(5))?;
            c.power_off()
        })
        .user(|c| {
            c.mov(eax, dword_ptr(page(4)))?;
            c.mov(dword_ptr(page(5)), eax)?;
            c.int(0x80)
        })
        .kernel(|c| c.enter_user())
        .with_word(USER_TABLE + 5 * 4, FRAME_2 | 7)
        .run()
        .powered_off();
    assert_eq!(outcome.result(0) & 0x60, ACCESSED);
    assert_eq!(outcome.result(1) & 0x60, ACCESSED | DIRTY);
    assert_eq!(outcome.guest.word(FRAME_2), 0x1111);
}

/// Without CR0.WP the kernel may write where user code may only read.
#[test]
fn what_the_kernel_may_write_without_wp_user_code_still_may_not() {
    let outcome = guest()
        .with_word(USER_TABLE + 4 * 4, FRAME | 5)
        .reporting(14, 1)
        .gate(128, 0xf, 3, |c| {
            c.mov(dword_ptr(page(4)), 7)?;
            c.iretd()
        })
        .user(|c| {
            c.mov(eax, dword_ptr(page(4)))?;
            c.int(0x80)?;
            c.mov(dword_ptr(page(4)), 8)
        })
        .kernel(|c| {
            c.mov(eax, cr0)?;
            c.and(eax, !(1 << 16))?;
            c.mov(cr0, eax)?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(0), outcome.guest.word(FRAME)), (7, 7));
}

#[test]
fn set_pte_takes_rights_from_user_code_that_had_them() {
    // None at all, for the kernel alone, for reading alone.
    for (value, error) in [(0, 6), (FRAME | 0x63, 7), (FRAME | 0x65, 7)] {
        let write = |c: &mut Code| c.mov(dword_ptr(page(4)), 7);
        let outcome = user_before_and_after(guest(), write, |c| {
            c.mov(dword_ptr(entry(4)), value)?;
            c.hypercall(set_pte(page(4), value))
        });
        assert_eq!(outcome.result(0), error, "{value:#x}");
    }
}

/// Two pages in a row, in one run of frames, that different tables map.
#[test]
fn a_flush_looks_into_the_next_table_where_that_begins() {
    const BORDER: u32 = 0x0840_0000;
    let guest = guest()
        .with_word(USER_TABLE + 1023 * 4, FRAME | USED)
        .with_word(DIRECTORY + (BORDER >> 22) * 4, OTHER_TABLE | 7)
        .with_word(OTHER_TABLE, FRAME_2 | USED);
    let read = |c: &mut Code| {
        c.mov(eax, dword_ptr(BORDER - 0x1000))?;
        c.mov(eax, dword_ptr(BORDER))
    };
    let outcome = user_before_and_after(guest, read, |c| {
        c.mov(dword_ptr(virt(OTHER_TABLE)), FRAME | USED)?;
        c.hypercall(FLUSH_USER)
    });
    assert_eq!(outcome.result(0), 0x1111);
}

#[test]
fn loading_cr3_looks_at_everything_again() {
    let read = |c: &mut Code| c.mov(eax, dword_ptr(page(4)));
    let outcome = user_before_and_after(guest(), read, |c| {
        c.mov(dword_ptr(entry(4)), FRAME_2 | USED)?;
        c.mov(eax, cr3)?;
        c.mov(cr3, eax)
    });
    assert_eq!(outcome.result(0), 0x2222);
}

#[test]
fn set_pte_for_a_kernel_address_that_user_code_may_read_counts_for_it_too() {
    let read = |c: &mut Code| c.mov(eax, dword_ptr(virt(FRAME)));
    let outcome = user_before_and_after(guest(), read, |c| {
        c.mov(dword_ptr(virt(LINEAR_TABLE) + (FRAME >> 12) * 4), FRAME_2 | USED)?;
        c.hypercall(set_pte(virt(FRAME), FRAME_2 | USED))
    });
    assert_eq!(outcome.result(0), 0x2222);
}

/// Programs in as many address spaces look into their own page in turn.
#[test]
fn user_code_in_more_address_spaces_than_are_kept() {
    const SPACES: u32 = 40;
    const FIRST: u32 = 0x10_0000;
    let guest = guest().gate(128, 0xf, 3, |c| {
        let (mut more, mut known) = (c.create_label(), c.create_label());
        c.mov(ecx, dword_ptr(virt(SCRATCH)))?;
        c.mov(dword_ptr(ecx * 4 + virt(RESULTS)), eax)?;
        c.inc(ecx)?;
        c.mov(dword_ptr(virt(SCRATCH)), ecx)?;
        c.cmp(ecx, 2 * SPACES)?;
        c.jne(more)?;
        c.power_off()?;
        c.set_label(&mut more)?;
        c.mov(edx, ecx)?;
        c.sub(edx, SPACES)?;
        c.jae(known)?;
        c.mov(edx, ecx)?;
        c.set_label(&mut known)?;
        c.shl(edx, 13)?;
        c.add(edx, FIRST)?;
        c.mov(eax, number::NEW_PGTABLE)?;
        c.int(0x1f)?;
        c.iretd()
    });
    for space in 0..SPACES {
        let (directory, table) = (FIRST + space * 0x2000, FIRST + space * 0x2000 + 0x1000);
        guest.put_word(directory + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
        guest.put_word(directory + (USER_CODE >> 22) * 4, table | 7);
        for page in 0..3 {
            guest.put_word(table + page * 4, (USER_FRAMES + page * 0x1000) | 7);
        }
        guest.put_word(table + 4 * 4, (0x8_0000 + space * 0x1000) | 7);
        guest.put_word(0x8_0000 + space * 0x1000, space);
    }
    let outcome = guest
        .user(|c| {
            c.mov(eax, dword_ptr(page(4)))?;
            c.int(0x80)?;
            c.jmp(u64::from(USER_CODE))
        })
        .kernel(|c| {
            c.hypercall(Hypercall::NewPgtable { directory: Phys(FIRST) })?;
            c.enter_user()
        })
        .run()
        .powered_off();
    for slot in 0..2 * SPACES {
        assert_eq!(outcome.result(slot), slot % SPACES);
    }
}

/// Cleared as a kernel does that has saved a page: where its program goes on to write, it must save it again.
#[test]
fn a_page_that_was_saved_is_marked_by_the_programs_next_write() {
    let saved = (FRAME | 7 | ACCESSED).into();
    let set_pte =
        Hypercall::SetPte { directory: Phys(DIRECTORY), address: Virt(page(4)), value: saved };
    let ways: [&dyn Fn(&mut Code) -> Assembled; 4] = [
        &|c| c.hypercall(FLUSH_USER),
        &|c| c.hypercall(FLUSH_ALL),
        &|c| c.hypercall(set_pte),
        &|c| c.invlpg(ptr(page(4))),
    ];
    for (number, way) in ways.into_iter().enumerate() {
        let write_and_look = |c: &mut Code| {
            c.mov(dword_ptr(page(4)), ebx)?;
            c.mov(eax, dword_ptr(entry(4)))
        };
        let outcome = user_before_and_after(guest(), write_and_look, |c| {
            c.and(dword_ptr(entry(4)), !DIRTY)?;
            way(c)
        });
        assert_eq!(outcome.result(0), FRAME | 7 | ACCESSED | DIRTY, "way {number}");
    }
}

#[test]
fn a_page_that_isnt_allowed_isnt_shown_along_with_its_neighbours() {
    const LARGE: u32 = 0x80;
    let entry = FRAME_2 | USED | LARGE;
    let outcome = guest()
        .with_word(USER_TABLE + 4 * 4, FRAME | USED)
        .with_word(USER_TABLE + 5 * 4, entry)
        .user(|c| {
            c.mov(eax, dword_ptr(page(4)))?;
            c.mov(eax, dword_ptr(page(5)))
        })
        .kernel(|c| c.enter_user());
    let (entry, address) = (entry.into(), GuestVirt(page(5)));
    outcome.run().killed(Kill::BadPageTableEntry { entry, address });
}

#[test]
fn user_code_cannot_touch_supervisor_pages() {
    let outcome = guest()
        .reporting(14, 2)
        .user(|c| c.mov(eax, dword_ptr(virt(FRAME))))
        .kernel(|c| {
            // The launcher's tables let user code in everywhere; a kernel's wouldn't.
            c.mov(dword_ptr(virt(LINEAR_TABLE) + (FRAME >> 12) * 4), FRAME | 0x63)?;
            c.hypercall(set_pte(virt(FRAME), FRAME | 0x63))?;
            look(c, 8, virt(FRAME))?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(8), 0x1111);
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [5, USER_CODE]);
}
