//! What the Host shows against what it should: random changes of page tables, each told by the call that is meant for it.
//!
//! There are two address spaces. Each has pages in two slots (a slot is what one table of the last level maps); for each
//! slot there are two tables to choose from, and where there are three levels, two middle tables as well. No table is
//! in both spaces, since calls name one. A page behind the linear map is the kernel's, in both. The model is the arrays that
//! the changes are made to; user code looks at all pages after each change.

mod random;
mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};
use lguest_host::Generation;
use random::Random;
use tiny_guest::*;

/// The pages that user code looks at: two in each of two slots.
const PAGES: [u32; 4] = [0x1000_0000, 0x1000_5000, 0x1040_0000, 0x1040_1000];
const KERNEL_PAGE: u32 = PAGE_OFFSET + MEMORY + 0x3000;
/// Words that one look leaves: four of user pages, and one of the kernel's.
const WORDS: u32 = 5;
/// Frames to tell apart, and tables: pages from here on.
const FRAMES: u32 = FREE;
const TABLES: u32 = FREE + 0x1_0000;
const MIDDLES: u32 = FREE + 0x3_0000;
const KERNEL_TABLE: u32 = FREE + 0x4_0000;
const OTHER_ROOT: u32 = FREE + 0x4_1000;
/// How often user code has looked.
const LOOKS: u32 = SCRATCH + 0x900;
const CHANGES: u32 = 40;

/// What the page tables say, by numbers.
struct Model {
    wide: bool,
    /// Which space is current.
    current: u32,
    /// Which of its two middle tables each space has.
    middle: [u32; 2],
    /// Which of its two tables each middle table has for each slot.
    table: [[u32; 2]; 4],
    /// Which frame each of two pages is, in each table.
    frame: [[u32; 2]; 16],
    kernel: u32,
}

impl Model {
    /// The number of the middle table that a space has now; with two levels, that of its directory.
    fn middle_of(&self, space: u32) -> u32 {
        space * 2 + self.middle[space as usize]
    }

    fn table_of(&self, space: u32, slot: u32) -> u32 {
        let middle = self.middle_of(space);
        middle * 4 + slot * 2 + self.table[middle as usize][slot as usize]
    }

    fn root(&self, space: u32) -> u32 {
        match (space, self.wide) {
            (0, false) => DIRECTORY,
            (0, true) => POINTERS,
            _ => OTHER_ROOT,
        }
    }

    /// Where the entry is that leads to the table of a slot, and its number there.
    fn slot_entry(&self, space: u32, slot: u32) -> (u32, u32) {
        let address = PAGES[slot as usize * 2];
        if self.wide {
            (MIDDLES + self.middle_of(space) * 0x1000 + (address >> 21) * 8, address >> 21)
        } else {
            (self.root(space) + (address >> 22) * 4, address >> 22)
        }
    }

    /// Where the entry for a page is.
    fn entry(&self, table: u32, address: u32) -> u32 {
        let base = if table == u32::MAX { KERNEL_TABLE } else { TABLES + table * 0x1000 };
        if self.wide { base + (address >> 12 & 511) * 8 } else { base + (address >> 12 & 1023) * 4 }
    }

    /// What a look sees.
    fn seen(&self) -> [u32; WORDS as usize] {
        let user = |page: u32| {
            let table = self.table_of(self.current, page / 2);
            word_of(self.frame[table as usize][page as usize % 2])
        };
        [user(0), user(1), user(2), user(3), word_of(self.kernel)]
    }

    /// Everything into memory.
    fn lay_out(&self, guest: &TinyGuest) {
        for frame in 0..8 {
            guest.put_word(FRAMES + frame * 0x1000, word_of(frame));
        }
        let copy = |from: u32, to: u32| {
            let mut bytes = [0; 4096];
            guest.memory.read(lguest_host::GuestPhys(from), &mut bytes).expect("in memory");
            guest.put(to, &bytes);
        };
        // The kernel, and user code, are in all tables.
        copy(self.root(0), OTHER_ROOT);
        if self.wide {
            guest.put_wide(MIDDLE_HIGH + (KERNEL_PAGE >> 21 & 511) * 8, KERNEL_TABLE | 7);
            for middle in 0..4 {
                copy(MIDDLE_LOW, MIDDLES + middle * 0x1000);
            }
            for space in 0..2 {
                guest.put_wide(self.root(space), (MIDDLES + self.middle_of(space) * 0x1000) | 1);
            }
        } else {
            // The slot of the linear map has room behind it.
            copy(LINEAR_TABLE, KERNEL_TABLE);
            for space in 0..2 {
                let at = self.root(space) + (PAGE_OFFSET >> 22) * 4;
                guest.put_word(at, KERNEL_TABLE | 7);
            }
        }
        guest.put_word(self.entry(u32::MAX, KERNEL_PAGE), FRAMES | 0x67);
        for middle in 0..4 {
            for (slot, address) in (0..).zip([PAGES[0], PAGES[2]]) {
                let entry = (TABLES + (middle * 4 + slot * 2) * 0x1000) | 7;
                if self.wide {
                    guest.put_word(MIDDLES + middle * 0x1000 + (address >> 21) * 8, entry);
                } else if middle % 2 == 0 {
                    guest.put_word(self.root(middle / 2) + (address >> 22) * 4, entry);
                }
            }
        }
        for table in 0..16 {
            for page in 0..2 {
                let at = self.entry(table, PAGES[(table / 2 % 2 * 2 + page) as usize]);
                guest.put_word(at, FRAMES | 0x67);
            }
        }
    }
}

/// What is in a frame.
fn word_of(frame: u32) -> u32 {
    0x1111 * (frame + 1)
}

/// A change: words to store, physical addresses first, and the call that tells.
type Change = (Vec<(u32, u32)>, Hypercall);

/// Makes a change to the model, and says how the guest makes it.
fn change(random: &mut Random, model: &mut Model) -> Change {
    let (space, slot) = (random.below(2), random.below(2));
    let table = model.table_of(space, slot);
    let (page, frame) = (random.below(2), random.below(8));
    let address = PAGES[(slot * 2 + page) as usize];
    let directory = Phys(model.root(space));
    // Seen before or not, writable or not: none of that changes where it leads.
    let flags = [7, 0x27, 0x67, 5, 0x25][random.below(5) as usize];
    let value = (FRAMES + frame * 0x1000) | flags;
    match random.below(7) {
        0 | 1 => {
            model.frame[table as usize][page as usize] = frame;
            let call = Hypercall::SetPte { directory, address: Virt(address), value: value.into() };
            (vec![(model.entry(table, address), value)], call)
        }
        2 => {
            model.frame[table as usize][page as usize] = frame;
            let current = space == model.current;
            let scope = if current { FlushScope::User } else { FlushScope::All };
            (vec![(model.entry(table, address), value)], Hypercall::FlushTlb { scope })
        }
        3 => {
            let middle = model.middle_of(space);
            model.table[middle as usize][slot as usize] ^= 1;
            let (at, index) = model.slot_entry(space, slot);
            let entry = (TABLES + model.table_of(space, slot) * 0x1000) | 7;
            let call = if model.wide {
                Hypercall::SetMiddle { table: Phys(at & !0xfff), index }
            } else {
                Hypercall::SetPmd { directory, index }
            };
            (vec![(at, entry)], call)
        }
        4 if model.wide => {
            model.middle[space as usize] ^= 1;
            let entry = (MIDDLES + model.middle_of(space) * 0x1000) | 1;
            (vec![(directory.0, entry)], Hypercall::SetPmd { directory, index: 0 })
        }
        4 | 5 => {
            model.current ^= 1;
            let directory = Phys(model.root(model.current));
            (Vec::new(), Hypercall::NewPgtable { directory })
        }
        _ => {
            model.kernel = frame;
            let (address, value) = (Virt(KERNEL_PAGE), value | 0x60);
            let call = Hypercall::SetPte { directory, address, value: value.into() };
            (vec![(model.entry(u32::MAX, KERNEL_PAGE), value)], call)
        }
    }
}

/// A kernel that makes these changes, one after each look of its user code.
fn guest_that_makes(guest: TinyGuest, changes: &[Change]) -> TinyGuest {
    let guest = guest.gate(0x80, 0xf, 3, |c| {
        c.mov(ecx, dword_ptr(virt(LOOKS)))?;
        c.inc(dword_ptr(virt(LOOKS)))?;
        c.imul_3(eax, ecx, WORDS * 4)?;
        for (word, register) in (0..).zip([ebx, ebp, esi, edi]) {
            c.mov(dword_ptr(eax + (virt(RESULTS) + word * 4)), register)?;
        }
        c.mov(edx, dword_ptr(KERNEL_PAGE))?;
        c.mov(dword_ptr(eax + (virt(RESULTS) + 16)), edx)?;
        for (number, (stores, call)) in (0..).zip(changes) {
            let mut next = c.create_label();
            c.cmp(ecx, number)?;
            c.jne(next)?;
            for (at, word) in stores {
                c.mov(dword_ptr(virt(*at)), *word)?;
            }
            c.hypercall(*call)?;
            c.iretd()?;
            c.set_label(&mut next)?;
        }
        c.power_off()
    });
    let guest = guest.user(|c| {
        for (register, page) in [ebx, ebp, esi, edi].into_iter().zip(PAGES) {
            c.mov(register, dword_ptr(page))?;
        }
        c.int(0x80)?;
        c.jmp(u64::from(USER_CODE))
    });
    guest.kernel(|c| c.enter_user())
}

#[test]
fn whatever_is_told_is_seen() {
    let kinds = [
        (Generation::V2_6_24, false),
        (Generation::V2_6_30, false),
        (Generation::V2_6_30, true),
        (Generation::V4_0, false),
        (Generation::V4_0, true),
    ];
    for (generation, wide) in kinds {
        for seed in 1..=40 {
            let guest = TinyGuest::of(generation);
            let guest = if wide { guest.wide() } else { guest };
            let mut model = Model {
                wide,
                current: 0,
                middle: [0; 2],
                table: [[0; 2]; 4],
                frame: [[0; 2]; 16],
                kernel: 0,
            };
            model.lay_out(&guest);
            let mut random = Random(seed << 32 | 0x9e37_79b9);
            let mut wanted = vec![model.seen()];
            let changes: Vec<Change> = (0..CHANGES)
                .map(|_| {
                    let change = change(&mut random, &mut model);
                    wanted.push(model.seen());
                    change
                })
                .collect();
            let outcome = guest_that_makes(guest, &changes).run().powered_off();
            for (look, wanted) in (0..).zip(wanted) {
                let seen: [u32; 5] =
                    std::array::from_fn(|word| outcome.result(look * WORDS + word as u32));
                let before = look.checked_sub(1).map(|change| &changes[change as usize]);
                let case = format!("{generation}, wide {wide}, seed {seed}, look {look}");
                assert_eq!(seen, wanted, "{case}, after {before:x?}");
            }
        }
    }
}
