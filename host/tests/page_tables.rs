//! Page tables: what the guest's own say, and when the Host must notice a change.

mod address_spaces;
mod tiny_guest;

use address_spaces::*;
use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::Hypercall;
use tiny_guest::*;

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
