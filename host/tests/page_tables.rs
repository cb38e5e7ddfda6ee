//! Page tables: what the guest's own say, and when the Host must notice a change.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall, number};
use lguest_host::Kill;
use lguest_switcher::GuestVirt;
use tiny_guest::*;

/// A second page directory, with its own table for user addresses.
const OTHER: u32 = FREE;
const OTHER_TABLE: u32 = FREE + 0x1000;
/// A frame with something in it.
const FRAME: u32 = FREE + 0x2000;
const FRAME_2: u32 = FREE + 0x3000;

/// Where the entry for a user page is, as the kernel sees it.
fn entry(page: u32) -> u32 {
    virt(USER_TABLE + page * 4)
}

fn page(index: u32) -> u32 {
    USER_CODE + index * 0x1000
}

fn set_pte(address: u32, value: u32) -> Hypercall {
    Hypercall::SetPte { directory: Phys(DIRECTORY), address: Virt(address), value: value.into() }
}

const FLUSH_USER: Hypercall = Hypercall::FlushTlb { scope: FlushScope::User };
const FLUSH_ALL: Hypercall = Hypercall::FlushTlb { scope: FlushScope::All };

/// A guest with two frames to tell apart, and the other directory prepared: the same kernel, other user pages.
fn guest() -> TinyGuest {
    let guest = TinyGuest::new();
    guest.put_word(FRAME, 0x1111);
    guest.put_word(FRAME_2, 0x2222);
    guest.put_word(OTHER + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
    guest.put_word(OTHER + (USER_CODE >> 22) * 4, OTHER_TABLE | 7);
    guest.put_word(USER_TABLE + 4 * 4, FRAME | 7);
    guest.put_word(OTHER_TABLE + 4 * 4, FRAME_2 | 7);
    guest
}

#[test]
fn a_read_sets_accessed_and_a_write_dirty() {
    let outcome = guest()
        .kernel(|c| {
            look(c, 0, page(4))?;
            look(c, 1, entry(4))?;
            c.mov(dword_ptr(page(4)), 5)?;
            look(c, 2, entry(4))
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x1111);
    assert_eq!(outcome.result(1), FRAME | 7 | ACCESSED);
    assert_eq!(outcome.result(2), FRAME | 7 | ACCESSED | DIRTY);
    assert_eq!(outcome.guest.word(FRAME), 5);
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

#[test]
fn a_failed_access_sets_nothing() {
    let outcome = guest()
        .handler(14, |c| {
            look(c, 0, entry(4))?;
            c.pop(eax)?;
            c.note(1, eax)?;
            c.power_off()
        })
        .user(|c| c.mov(eax, dword_ptr(page(4))))
        .kernel(|c| c.enter_user())
        .with_word(USER_TABLE + 4 * 4, FRAME | 3)
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), FRAME | 3);
    assert_eq!(outcome.result(1), 5, "present, not a write, user");
}

#[test]
fn rights_need_both_levels() {
    // Read-only in the directory, in the table; supervisor in the directory, in the table.
    for (directory, table, write, error) in
        [(5, 7, true, 7), (7, 5, true, 7), (3, 7, false, 5), (7, 3, false, 5)]
    {
        let outcome = guest()
            .handler(14, |c| {
                c.pop(eax)?;
                c.note(0, eax)?;
                c.power_off()
            })
            .user(move |c| {
                if write {
                    c.mov(dword_ptr(0x0840_0000), 1)
                } else {
                    c.mov(eax, dword_ptr(0x0840_0000))
                }
            })
            .kernel(|c| c.enter_user())
            .with_word(DIRECTORY + 0x21 * 4, OTHER_TABLE | directory)
            .with_word(OTHER_TABLE, FRAME | table)
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), error, "{directory:x} {table:x}");
    }
}

#[test]
fn the_kernel_respects_read_only_pages() {
    let outcome = guest()
        .reporting(14, 1)
        .kernel(|c| c.mov(dword_ptr(page(4)), 1))
        .with_word(USER_TABLE + 4 * 4, FRAME | 5)
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 3);
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
fn set_pte_changes_a_mapping() {
    let outcome = guest()
        .kernel(|c| {
            look(c, 0, page(4))?;
            c.mov(dword_ptr(entry(4)), FRAME_2 | 7)?;
            c.hypercall(set_pte(page(4), FRAME_2 | 7))?;
            look(c, 1, page(4))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
}

#[test]
fn set_pte_0_takes_a_mapping_away() {
    let outcome = guest()
        .handler(14, |c| {
            c.note_number(1, 1)?;
            c.power_off()
        })
        .kernel(|c| {
            look(c, 0, page(4))?;
            c.mov(dword_ptr(entry(4)), 0)?;
            c.hypercall(set_pte(page(4), 0))?;
            look(c, 0, page(4))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 1]);
}

#[test]
fn set_pte_is_taken_at_its_word() {
    // Accessed and dirty in the value: nothing needs to be marked in the table any more.
    let outcome = guest()
        .gate(128, 0xf, 3, |c| {
            look(c, 0, entry(4))?;
            c.power_off()
        })
        .user(|c| {
            c.mov(dword_ptr(page(4)), 7)?;
            c.int(0x80)
        })
        .kernel(|c| {
            c.hypercall(set_pte(page(4), FRAME_2 | 0x67))?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.guest.word(FRAME_2), 7);
    assert_eq!(outcome.result(0), FRAME | 7);
}

#[test]
fn set_pte_that_write_protects_is_noticed_by_the_next_write() {
    let outcome = guest()
        .reporting(14, 1)
        .kernel(|c| {
            c.mov(dword_ptr(page(4)), 7)?;
            c.mov(dword_ptr(entry(4)), FRAME | 0x65)?;
            c.hypercall(set_pte(page(4), FRAME | 0x65))?;
            look(c, 8, page(4))?;
            c.mov(dword_ptr(page(4)), 8)
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (7, 3));
}

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

#[test]
fn set_pte_for_a_kernel_address_counts_in_all_address_spaces() {
    let address = 0xd000_0000;
    let guest = guest();
    for directory in [DIRECTORY, OTHER] {
        guest.put_word(directory + 0x340 * 4, SCRATCH | 3);
    }
    let outcome = guest
        .with_word(SCRATCH, FRAME | 3)
        .kernel(|c| {
            look(c, 0, address)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            look(c, 1, address)?;
            c.mov(dword_ptr(virt(SCRATCH)), FRAME_2 | 3)?;
            c.hypercall(set_pte(address, FRAME_2 | 3))?;
            look(c, 2, address)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(DIRECTORY) })?;
            look(c, 3, address)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2, 3].map(|s| outcome.result(s)), [0x1111, 0x1111, 0x2222, 0x2222]);
}

#[test]
fn set_pte_for_an_unknown_directory_changes_nothing() {
    let outcome = guest()
        .kernel(|c| {
            look(c, 0, page(4))?;
            let directory = Phys(OTHER);
            c.hypercall(Hypercall::SetPte { directory, address: Virt(page(4)), value: 0 })?;
            look(c, 1, page(4))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x1111]);
}

#[test]
fn new_pgtable_switches_and_keeps_what_it_knew() {
    let outcome = guest()
        .kernel(|c| {
            for (slot, directory) in [(0, DIRECTORY), (1, OTHER), (2, DIRECTORY), (3, OTHER)] {
                c.hypercall(Hypercall::NewPgtable { directory: Phys(directory) })?;
                look(c, slot, page(4))?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2, 3].map(|s| outcome.result(s)), [0x1111, 0x2222, 0x1111, 0x2222]);
}

#[test]
fn more_address_spaces_than_are_kept() {
    const SPACES: u32 = 40;
    let guest = guest();
    for space in 0..SPACES {
        let directory = 0x10_0000 + space * 0x2000;
        guest.put_word(directory + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
        guest.put_word(directory + (USER_CODE >> 22) * 4, (directory + 0x1000) | 7);
        guest.put_word(directory + 0x1000 + 4 * 4, (0x8_0000 + space * 0x1000) | 7);
        guest.put_word(0x8_0000 + space * 0x1000, space);
    }
    let outcome = guest
        .kernel(|c| {
            for round in 0..2 {
                for space in 0..SPACES {
                    let directory = Phys(0x10_0000 + space * 0x2000);
                    c.hypercall(Hypercall::NewPgtable { directory })?;
                    look(c, round * SPACES + space, page(4))?;
                }
            }
            Ok(())
        })
        .run()
        .powered_off();
    for slot in 0..2 * SPACES {
        assert_eq!(outcome.result(slot), slot % SPACES);
    }
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

#[test]
fn another_directory_may_have_another_kernel() {
    // A kernel page at the same address, through other tables.
    let address = 0xd000_0000;
    let outcome = guest()
        .with_word(DIRECTORY + 0x340 * 4, SCRATCH | 3)
        .with_word(OTHER + 0x340 * 4, OTHER_TABLE | 3)
        .with_word(SCRATCH, FRAME | 0x63)
        .with_word(OTHER_TABLE, FRAME_2 | 0x63)
        .kernel(|c| {
            look(c, 0, address)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            look(c, 1, address)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(DIRECTORY) })?;
            look(c, 2, address)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2].map(|slot| outcome.result(slot)), [0x1111, 0x2222, 0x1111]);
}

#[test]
fn another_directory_may_grant_less_of_the_same_kernel() {
    const ADDRESS: u32 = 0xd000_0000;
    // No table there, and one to read from.
    for (flags, error) in [(2, 2), (1, 3)] {
        let guest = guest().reporting(14, 1).with_word(SCRATCH, FRAME | 0x63);
        guest.put_word(DIRECTORY + 0x340 * 4, SCRATCH | 3);
        guest.put_word(OTHER + 0x340 * 4, SCRATCH | flags);
        let outcome = guest.kernel(|c| {
            c.mov(dword_ptr(ADDRESS), 5)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            c.mov(dword_ptr(ADDRESS), 6)
        });
        let outcome = outcome.run().powered_off();
        assert_eq!((outcome.result(0), outcome.guest.word(FRAME)), (error, 5), "flags {flags}");
    }
}

#[test]
fn flush_tlb_0_forgets_user_mappings_that_changed() {
    for flush in [FLUSH_USER, FLUSH_ALL] {
        let outcome = guest()
            .kernel(|c| {
                look(c, 0, page(4))?;
                c.mov(dword_ptr(entry(4)), FRAME_2 | 7)?;
                c.hypercall(flush)?;
                look(c, 1, page(4))
            })
            .run()
            .powered_off();
        assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
    }
}

#[test]
fn a_flush_restores_accessed_and_dirty_tracking() {
    let outcome = guest()
        .kernel(|c| {
            c.mov(dword_ptr(page(4)), 1)?;
            // Cleared as a kernel does that looks for pages to throw out.
            c.and(dword_ptr(entry(4)), !0x60)?;
            c.hypercall(FLUSH_USER)?;
            look(c, 0, page(4))?;
            look(c, 1, entry(4))?;
            c.mov(dword_ptr(page(4)), 2)?;
            look(c, 2, entry(4))
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(1) & 0x60, ACCESSED);
    assert_eq!(outcome.result(2) & 0x60, ACCESSED | DIRTY);
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
fn flush_tlb_of_all_reaches_the_kernel_and_other_spaces() {
    let address = 0xd000_0000;
    let guest = guest();
    for directory in [DIRECTORY, OTHER] {
        guest.put_word(directory + 0x340 * 4, SCRATCH | 3);
    }
    let outcome = guest
        .with_word(SCRATCH, FRAME | 0x63)
        .kernel(|c| {
            look(c, 0, address)?;
            look(c, 1, page(4))?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            c.mov(dword_ptr(virt(SCRATCH)), FRAME_2 | 0x63)?;
            c.mov(dword_ptr(entry(4)), FRAME_2 | 7)?;
            c.hypercall(FLUSH_ALL)?;
            look(c, 2, address)?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(DIRECTORY) })?;
            look(c, 3, page(4))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2, 3].map(|s| outcome.result(s)), [0x1111, 0x1111, 0x2222, 0x2222]);
}

#[test]
fn set_pmd_rereads_a_top_level_entry() {
    let slot = USER_CODE >> 22;
    let outcome = guest()
        .kernel(|c| {
            look(c, 0, page(4))?;
            c.mov(dword_ptr(virt(DIRECTORY) + slot * 4), OTHER_TABLE | 7)?;
            c.hypercall(Hypercall::SetPmd { directory: Phys(DIRECTORY), index: slot })?;
            look(c, 1, page(4))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
}

#[test]
fn set_pmd_of_the_last_entry_is_ignored() {
    TinyGuest::new()
        .kernel(|c| {
            for index in [1023, 1024, u32::MAX] {
                c.hypercall(Hypercall::SetPmd { directory: Phys(DIRECTORY), index })?;
            }
            Ok(())
        })
        .run()
        .powered_off();
}

#[test]
fn the_launchers_linear_map_is_marked_so_that_it_never_faults() {
    let outcome = guest().kernel(|c| look(c, 0, virt(LINEAR_TABLE))).run().powered_off();
    assert_eq!(outcome.result(0), 0x67);
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

#[test]
fn an_access_that_crosses_pages_sets_both() {
    let outcome = guest()
        .kernel(|c| {
            c.mov(dword_ptr(page(5) - 2), 0x4444_3333)?;
            look(c, 0, entry(4))?;
            look(c, 1, entry(5))
        })
        .with_word(USER_TABLE + 5 * 4, FRAME_2 | 7)
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot) & 0x60), [0x60, 0x60]);
    assert_eq!(outcome.guest.word(FRAME_2), 0x4444);
    assert_eq!(outcome.guest.word(FRAME + 0xffc), 0x3333_0000);
}

#[test]
fn set_pmd_of_another_directory_reaches_the_kernel_window_too() {
    // Both directories change, and only the one that isn't current is told of.
    let (address, slot) = (0xd000_0000, 0x340);
    let guest = guest();
    guest.put_word(FREE + 0x4000, FRAME_2 | 0x63);
    for directory in [DIRECTORY, OTHER] {
        guest.put_word(directory + slot * 4, SCRATCH | 0x23);
    }
    let outcome = guest
        .with_word(SCRATCH, FRAME | 0x63)
        .kernel(|c| {
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(DIRECTORY) })?;
            look(c, 0, address)?;
            for directory in [DIRECTORY, OTHER] {
                c.mov(dword_ptr(virt(directory) + slot * 4), (FREE + 0x4000) | 0x23)?;
            }
            c.hypercall(Hypercall::SetPmd { directory: Phys(OTHER), index: slot })?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(OTHER) })?;
            look(c, 1, address)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
}

#[test]
fn a_directory_may_be_its_own_page_table() {
    // The last but one entry: the tables appear at 0xff80_0000, the directory at 0xffbf_e000.
    let map = 0x3fe << 22;
    let outcome = guest()
        .with_word(DIRECTORY + 0x3fe * 4, DIRECTORY | 3)
        .kernel(|c| {
            look(c, 0, map + (PAGE_OFFSET >> 12) * 4)?;
            look(c, 1, map + (0x3fe << 12) + (USER_CODE >> 22) * 4)?;
            // And the tables can be written there.
            look(c, 2, page(4))?;
            c.mov(dword_ptr(map + (page(4) >> 12) * 4), FRAME_2 | 7)?;
            c.hypercall(FLUSH_USER)?;
            look(c, 3, page(4))
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x67, "page 0");
    assert_eq!(outcome.result(1) & !0x60, USER_TABLE | 7);
    assert_eq!([2, 3].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
}

#[test]
fn lguest_init_drops_what_was_shown_before() {
    let outcome = guest()
        .bare(|c| {
            look(c, 0, page(4))?;
            c.mov(dword_ptr(entry(4)), FRAME_2 | 7)?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            look(c, 1, page(4))?;
            c.power_off()
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x1111, 0x2222]);
}

#[test]
fn a_page_is_read_only_until_its_first_write_and_then_dirty() {
    // Prepared as accessed, so that a neighbour is shown along with it.
    let outcome = guest()
        .with_word(USER_TABLE + 5 * 4, (FRAME + 0x1000) | 0x27)
        .with_word(USER_TABLE + 4 * 4, FRAME | 0x27)
        .kernel(|c| {
            look(c, 0, page(4))?;
            look(c, 1, entry(5))?;
            c.mov(dword_ptr(page(5)), 9)?;
            look(c, 2, entry(5))?;
            look(c, 3, entry(4))
        })
        .run()
        .powered_off();
    let [word, before, after, neighbour] = results(&outcome);
    assert_eq!((word, before & 0x60, after & 0x60), (0x1111, ACCESSED, ACCESSED | DIRTY));
    assert_eq!(neighbour & 0x60, ACCESSED);
}

#[test]
fn the_directorys_entry_is_marked_accessed_and_keeps_its_other_bits() {
    let slot = USER_CODE >> 22;
    let outcome = guest()
        .kernel(|c| {
            look(c, 0, page(4))?;
            look(c, 1, virt(DIRECTORY) + slot * 4)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(1), USER_TABLE | 7 | ACCESSED);
}
