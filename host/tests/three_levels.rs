//! Page tables of three levels: four pointers, middle tables, and entries of 64 bits.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};
use lguest_abi::lguest_data::offset;
use lguest_host::{Generation, Kill};
use lguest_switcher::GuestVirt;
use tiny_guest::*;

const RESERVE_MEM: u32 = 1368;
/// Frames with something in them.
const FRAME: u32 = FREE + 0x2000;
const FRAME_2: u32 = FREE + 0x3000;
/// Another table of pointers, and its tables.
const OTHER: u32 = FREE + 0x4000;
const OTHER_MIDDLE: u32 = FREE + 0x5000;
const OTHER_TABLE: u32 = FREE + 0x6000;
/// How often user code has looked.
const LOOKS: u32 = SCRATCH + 0x900;
/// The kernel's addresses behind its linear map: the next entry of its middle table.
const KERNEL: u32 = PAGE_OFFSET + MEMORY;

/// A page of user addresses, and where its entry is.
const fn page(index: u32) -> u32 {
    USER_CODE + index * 0x1000
}

const fn entry(index: u32) -> u32 {
    WIDE_USER_TABLE + index * 8
}

/// A guest with such tables, and frames to tell apart: the first is in user page 4.
fn wide(generation: Generation) -> TinyGuest {
    let guest = TinyGuest::of(generation).wide();
    guest.put_word(FRAME, 0x1111);
    guest.put_word(FRAME_2, 0x2222);
    guest.put_wide(entry(4), FRAME | USED);
    guest
}

fn new_pgtable(directory: u32) -> Hypercall {
    Hypercall::NewPgtable { directory: Phys(directory) }
}

/// Something that the kernel does.
type Step<'a> = &'a dyn Fn(&mut Code) -> Assembled;

/// User code looks into its page 4, again and again; in between its kernel does one thing after the other. What it saw is
/// noted from slot 0 on. It ends with a fault there at the latest, whose address is noted in slot 15.
///
/// (Where the kernel itself looks at a user's addresses, the tables are walked each time: that shows nothing.)
fn user_looks(guest: TinyGuest, steps: &[Step<'_>]) -> Outcome {
    let guest = guest.gate(0x80, 0xf, 3, |c| {
        c.mov(eax, dword_ptr(virt(LOOKS)))?;
        c.inc(dword_ptr(virt(LOOKS)))?;
        c.mov(dword_ptr(eax * 4 + virt(RESULTS)), ebp)?;
        for (number, step) in (0..).zip(steps) {
            let mut next = c.create_label();
            c.cmp(eax, number)?;
            c.jne(next)?;
            step(c)?;
            c.iretd()?;
            c.set_label(&mut next)?;
        }
        c.power_off()
    });
    let guest = guest.handler(14, |c| {
        note_field(c, 15, offset::CR2)?;
        c.power_off()
    });
    let guest = guest.user(|c| {
        c.mov(ebp, dword_ptr(page(4)))?;
        c.int(0x80)?;
        c.jmp(u64::from(USER_CODE))
    });
    guest.kernel(|c| c.enter_user()).run().powered_off()
}

// What is reserved.

#[test]
fn reserve_mem_is_less_with_three_levels() {
    for generation in WIDE {
        // What is behind the pointers is nobody's, even where a directory would have the kernel's entry.
        let behind = POINTERS + (PAGE_OFFSET >> 22) * 4;
        let used = wide(generation).with_word(behind, 0x1234_5002);
        let guests =
            [(TinyGuest::of(generation), 4 << 20), (wide(generation), 2 << 20), (used, 2 << 20)];
        for (guest, bytes) in guests {
            let outcome = guest.kernel(|_| Ok(())).run().powered_off();
            assert_eq!(outcome.field(RESERVE_MEM), bytes, "{generation}");
        }
    }
}

#[test]
fn the_topmost_addresses_are_the_hosts() {
    for generation in WIDE {
        for (guest, first) in
            [(TinyGuest::of(generation), 0xffc0_0000), (wide(generation), 0xffe0_0000)]
        {
            let directory = Phys(guest.root);
            for (address, good) in [(first - 0x1000, true), (first, false), (0xffff_f000, false)] {
                let again = TinyGuest::of(generation);
                let again = if guest.root == POINTERS { again.wide() } else { again };
                let (address, value) = (Virt(address), u64::from(FRAME | USED));
                let call = Hypercall::SetPte { directory, address, value };
                let outcome = again.kernel(|c| c.hypercall(call)).run();
                if good {
                    outcome.powered_off();
                } else {
                    let address = GuestVirt(address.0);
                    outcome.killed(Kill::ReservedAddress { what: "SET_PTE", address });
                }
            }
        }
    }
}

// Three levels.

#[test]
fn user_code_runs_in_three_levels() {
    for generation in WIDE {
        let guest = wide(generation)
            .gate(0x80, 0xf, 3, |c| {
                c.note(0, eax)?;
                c.power_off()
            })
            .user(|c| {
                c.mov(dword_ptr(USER_DATA), 5)?;
                c.push(6)?;
                c.pop(eax)?;
                c.add(eax, dword_ptr(USER_DATA))?;
                c.int(0x80)
            })
            .kernel(|c| c.enter_user());
        let outcome = guest.run().powered_off();
        assert_eq!(outcome.result(0), 11, "{generation}");
        let flags = [0, 1, 2].map(|index| outcome.guest.word(entry(index)) & 0xfff);
        assert_eq!(flags, [FLAGS | ACCESSED, USED, USED], "{generation}");
    }
}

#[test]
fn the_accessed_bit_is_set_in_the_middle_and_not_among_the_pointers() {
    let guest = wide(Generation::V4_0);
    let outcome = guest.kernel(|c| look(c, 0, page(2))).run().powered_off();
    let middle = outcome.guest.word(MIDDLE_LOW + (USER_CODE >> 21) * 8);
    assert_eq!(middle, WIDE_USER_TABLE | FLAGS | ACCESSED);
    assert_eq!(outcome.guest.word(POINTERS), MIDDLE_LOW | 1);
}

#[test]
fn each_level_may_be_absent() {
    for generation in WIDE {
        // No pointer; no middle entry; no entry.
        for address in [0x4000_0000, USER_CODE + 0x20_0000, page(3)] {
            let guest = wide(generation).reporting(14, 1).kernel(|c| look(c, 0, address));
            let outcome = guest.run().powered_off();
            assert_eq!((outcome.result(0), outcome.field(offset::CR2)), (0, address));
        }
    }
}

#[test]
fn what_three_levels_may_not_have() {
    // Pointers have nothing but present; middle entries what a directory's have; neither has anything in its upper half, nor
    // a page entry. Large pages don't exist, and nothing before 4.0 is beyond memory.
    let (middle, last) = (MIDDLE_LOW + (USER_CODE >> 21) * 8, entry(4));
    let cases = [
        (POINTERS, u64::from(MIDDLE_LOW) | 3),
        (POINTERS, u64::from(MIDDLE_LOW) | 5),
        (POINTERS, u64::from(MIDDLE_LOW) | 0x21),
        (POINTERS, u64::from(MIDDLE_LOW) | 1 | 1 << 32),
        (POINTERS, u64::from(MEMORY + 0x1000) | 1),
        (middle, u64::from(WIDE_USER_TABLE) | 0x87),
        (middle, u64::from(WIDE_USER_TABLE) | 0xf),
        (middle, u64::from(WIDE_USER_TABLE) | 0x107),
        (middle, u64::from(WIDE_USER_TABLE) | 7 | 1 << 63),
        (middle, u64::from(MEMORY + 0x1000) | 7),
        (last, u64::from(FRAME) | 0x87),
        (last, u64::from(FRAME) | 7 | 1 << 32),
        (last, u64::from(FRAME) | 7 | 1 << 63),
        (last, 0xffff_ffff_ffff_f007),
    ];
    for generation in WIDE {
        for (at, entry) in cases {
            let outcome = wide(generation).kernel(|c| {
                c.mov(dword_ptr(virt(at) + 4), (entry >> 32) as u32)?;
                c.mov(dword_ptr(virt(at)), entry as u32)?;
                c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })?;
                look(c, 0, page(4))
            });
            let address = GuestVirt(page(4));
            outcome.run().killed(if at == last {
                Kill::BadPageTableEntry { entry, address }
            } else {
                Kill::BadPageDirectoryEntry { entry, address }
            });
        }
    }
}

#[test]
fn a_page_that_is_shown_may_not_have_them_later_either() {
    for generation in WIDE {
        for bit in [7, 32, 63] {
            let outcome = wide(generation)
                .gate(0x80, 0xf, 3, |c| {
                    let half = virt(entry(4)) + bit / 32 * 4;
                    c.or(dword_ptr(half), 1u32 << (bit % 32))?;
                    c.hypercall(Hypercall::FlushTlb { scope: FlushScope::User })?;
                    c.iretd()
                })
                .user(|c| {
                    c.mov(eax, dword_ptr(page(4)))?;
                    c.int(0x80)?;
                    c.mov(eax, dword_ptr(page(4)))
                })
                .kernel(|c| c.enter_user());
            let (entry, address) = (u64::from(FRAME | USED) | 1 << bit, GuestVirt(page(4)));
            outcome.run().killed(Kill::BadPageTableEntry { entry, address });
        }
    }
}

// What the Host shows, and when it must look again.

fn set_pte(directory: u32, address: u32, value: u64) -> Hypercall {
    Hypercall::SetPte { directory: Phys(directory), address: Virt(address), value }
}

#[test]
fn set_pte_has_64_bits() {
    for generation in WIDE {
        // Taken at its word, whatever the table says.
        let set = |value| move |c: &mut Code| c.hypercall(set_pte(POINTERS, page(4), value));
        let (other, none) = (set(u64::from(FRAME_2 | USED)), set(0xffff_ffff_0000_0000));
        let absent = |c: &mut Code| {
            c.mov(dword_ptr(virt(entry(4))), 0)?;
            none(c)
        };
        let outcome = user_looks(wide(generation), &[&other, &absent]);
        assert_eq!(results(&outcome), [0x1111, 0x2222, 0], "{generation}");
        assert_eq!(outcome.result(15), page(4), "{generation}");
        for value in [u64::from(FRAME | USED) | 1 << 32, u64::from(FRAME | USED) | 1 << 63] {
            let outcome =
                wide(generation).kernel(|c| c.hypercall(set_pte(POINTERS, page(4), value)));
            let (entry, address) = (value, GuestVirt(page(4)));
            outcome.run().killed(Kill::BadPageTableEntry { entry, address });
        }
    }
}

#[test]
fn set_pte_of_a_kernel_address_is_for_all_address_spaces() {
    for generation in WIDE {
        let guest = with_kernel_pages(wide(generation));
        let outcome = guest.kernel(|c| {
            look(c, 0, KERNEL)?;
            c.hypercall(set_pte(OTHER, KERNEL, u64::from(FRAME_2 | USED)))?;
            look(c, 1, KERNEL)
        });
        // The directory that is named has no such table: then nothing is shown, and the current one's is found again.
        assert_eq!(results(&outcome.run().powered_off()), [0x1111, 0x1111], "{generation}");
        let outcome = with_kernel_pages(wide(generation)).kernel(|c| {
            look(c, 0, KERNEL)?;
            c.hypercall(set_pte(POINTERS, KERNEL, u64::from(FRAME_2 | USED)))?;
            look(c, 1, KERNEL)
        });
        assert_eq!(results(&outcome.run().powered_off()), [0x1111, 0x2222], "{generation}");
    }
}

/// The first frame is at the kernel's addresses behind its linear map, too.
fn with_kernel_pages(guest: TinyGuest) -> TinyGuest {
    guest.put_wide(MIDDLE_HIGH + 8, OTHER_TABLE | FLAGS);
    guest.put_wide(OTHER_TABLE, FRAME | USED);
    guest
}

/// The second frame is in user page 4 of these pointers; the kernel is the same.
fn with_other_space(guest: TinyGuest, pointers: u32) -> TinyGuest {
    guest.put_wide(pointers, OTHER_MIDDLE | 1);
    guest.put_wide(pointers + 3 * 8, MIDDLE_HIGH | 1);
    guest.put_wide(OTHER_MIDDLE + (USER_CODE >> 21) * 8, OTHER_TABLE | FLAGS);
    for page in 0..3 {
        guest.put_wide(OTHER_TABLE + page * 8, (USER_FRAMES + page * 0x1000) | FLAGS);
    }
    guest.put_wide(OTHER_TABLE + 4 * 8, FRAME_2 | USED);
    guest
}

#[test]
fn set_pgd_looks_at_a_pointer_again() {
    for generation in WIDE {
        let set_pgd = |index| Hypercall::SetPmd { directory: Phys(POINTERS), index };
        let nothing_there = |c: &mut Code| {
            // There are no more than four.
            for index in [4, 511, 1023, 0x7fff_ffff, u32::MAX] {
                c.hypercall(set_pgd(index))?;
            }
            Ok(())
        };
        let change = |c: &mut Code| {
            c.mov(dword_ptr(virt(POINTERS)), OTHER_MIDDLE | 1)?;
            c.hypercall(set_pgd(0))
        };
        let guest = with_other_space(wide(generation), OTHER);
        let outcome = user_looks(guest, &[&nothing_there, &change]);
        assert_eq!(results(&outcome), [0x1111, 0x1111, 0x2222], "{generation}");
    }
}

#[test]
fn set_pgd_of_the_kernels_pointer_looks_at_its_window_again() {
    for generation in WIDE {
        let guest = with_kernel_pages(wide(generation));
        guest.put_wide(OTHER_MIDDLE, WIDE_LINEAR_TABLE | FLAGS);
        let outcome = guest.reporting(14, 1).kernel(|c| {
            look(c, 2, KERNEL)?;
            c.mov(dword_ptr(virt(POINTERS) + 3 * 8), OTHER_MIDDLE | 1)?;
            c.hypercall(Hypercall::SetPmd { directory: Phys(POINTERS), index: 3 })?;
            look(c, 3, KERNEL)
        });
        let outcome = outcome.run().powered_off();
        assert_eq!([2, 3].map(|slot| outcome.result(slot)), [0x1111, 0], "{generation}");
        assert_eq!(outcome.field(offset::CR2), KERNEL, "{generation}");
    }
}

fn set_middle(table: u32, index: u32) -> Hypercall {
    Hypercall::SetMiddle { table: Phys(table), index }
}

#[test]
fn set_pmd_looks_at_a_middle_entry_again() {
    for generation in WIDE {
        let index = USER_CODE >> 21;
        let nothing_there = |c: &mut Code| {
            for (table, index) in [(MIDDLE_LOW, 512), (MIDDLE_LOW, u32::MAX), (u32::MAX, 0)] {
                c.hypercall(set_middle(table, index))?;
            }
            Ok(())
        };
        let change = |c: &mut Code| {
            c.mov(dword_ptr(virt(MIDDLE_LOW) + index * 8), OTHER_TABLE | FLAGS)?;
            c.hypercall(set_middle(MIDDLE_LOW, index))
        };
        let guest = with_other_space(wide(generation), OTHER);
        let outcome = user_looks(guest, &[&nothing_there, &change]);
        assert_eq!(results(&outcome), [0x1111, 0x1111, 0x2222], "{generation}");
        // And one of the kernel's.
        let outcome = with_kernel_pages(wide(generation)).reporting(14, 1).kernel(|c| {
            look(c, 2, KERNEL)?;
            c.mov(dword_ptr(virt(MIDDLE_HIGH) + 8), 0)?;
            c.hypercall(set_middle(MIDDLE_HIGH, 1))?;
            look(c, 3, KERNEL)
        });
        let outcome = outcome.run().powered_off();
        assert_eq!([2, 3].map(|slot| outcome.result(slot)), [0x1111, 0], "{generation}");
    }
}

#[test]
fn set_pmd_reaches_an_address_space_that_is_not_current() {
    for generation in WIDE {
        let index = USER_CODE >> 21;
        let switch = |c: &mut Code| c.hypercall(new_pgtable(OTHER));
        let change = |c: &mut Code| {
            c.mov(dword_ptr(virt(MIDDLE_LOW) + index * 8), OTHER_TABLE | FLAGS)?;
            c.hypercall(set_middle(MIDDLE_LOW, index))?;
            // So that the two can be told apart.
            c.mov(dword_ptr(virt(FRAME_2)), 0x3333)?;
            c.hypercall(new_pgtable(POINTERS))
        };
        let guest = with_other_space(wide(generation), OTHER);
        let outcome = user_looks(guest, &[&switch, &change]);
        assert_eq!(results(&outcome), [0x1111, 0x2222, 0x3333], "{generation}");
    }
}

#[test]
fn address_spaces_differ_by_pointers_that_share_a_page() {
    for generation in WIDE {
        let guest = with_other_space(wide(generation), POINTERS + 0x20);
        // The lowest five bits say nothing.
        let there = |c: &mut Code| c.hypercall(new_pgtable(POINTERS + 0x3f));
        let back = |c: &mut Code| c.hypercall(new_pgtable(POINTERS + 1));
        let outcome = user_looks(guest, &[&there, &back, &there]);
        assert_eq!(results(&outcome), [0x1111, 0x2222, 0x1111, 0x2222], "{generation}");
    }
}

#[test]
fn the_kernels_window_follows_the_pointer_that_differs() {
    for generation in WIDE {
        let guest = with_kernel_pages(wide(generation));
        // The other space has a middle table of its own for the kernel, that maps another frame there.
        guest.put_wide(OTHER + 3 * 8, OTHER_MIDDLE | 1);
        guest.put_wide(OTHER_MIDDLE, WIDE_LINEAR_TABLE | FLAGS);
        guest.put_wide(OTHER_MIDDLE + 8, SCRATCH | FLAGS);
        guest.put_wide(SCRATCH, FRAME_2 | USED);
        let outcome = guest.kernel(|c| {
            for (slot, root) in (0..).zip([POINTERS, OTHER, POINTERS]) {
                c.hypercall(new_pgtable(root))?;
                look(c, slot, KERNEL)?;
            }
            Ok(())
        });
        let wanted = [0x1111, 0x2222, 0x1111];
        assert_eq!(results(&outcome.run().powered_off()), wanted, "{generation}");
    }
}

#[test]
fn nobody_looks_again_unless_told() {
    for generation in WIDE {
        let change = |c: &mut Code| c.mov(dword_ptr(virt(entry(4))), FRAME_2 | USED);
        for (scope, seen) in
            [(None, 0x1111), (Some(FlushScope::User), 0x2222), (Some(FlushScope::All), 0x2222)]
        {
            let flush = |c: &mut Code| {
                change(c)?;
                scope.map_or(Ok(()), |scope| c.hypercall(Hypercall::FlushTlb { scope }))
            };
            let outcome = user_looks(wide(generation), &[&flush]);
            assert_eq!(results(&outcome), [0x1111, seen], "{generation}, {scope:?}");
        }
    }
}

#[test]
fn a_full_flush_reaches_spaces_that_are_not_current_when_they_are() {
    for generation in WIDE {
        let there = |c: &mut Code| c.hypercall(new_pgtable(OTHER));
        let change = |c: &mut Code| {
            c.mov(dword_ptr(virt(entry(4))), SCRATCH | USED)?;
            c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })
        };
        let back = |c: &mut Code| c.hypercall(new_pgtable(POINTERS));
        let guest = with_other_space(wide(generation), OTHER).with_word(SCRATCH, 0x4444);
        let outcome = user_looks(guest, &[&there, &change, &back]);
        assert_eq!(results(&outcome), [0x1111, 0x2222, 0x2222, 0x4444], "{generation}");
    }
}
