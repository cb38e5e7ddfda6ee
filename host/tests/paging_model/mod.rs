//! What a guest may see of its pages, by the interface alone.
//!
//! A processor looks into the page tables when it must, and otherwise may go by what it remembers of them: that is what calls
//! are for, which tell of changes. So for each page of each address space the model keeps all that the tables have
//! said, while that space was current, *since the last call that covers it*, and what they said at that call. Besides what they say now, an
//! access may go by any of these, as far as it has the right and leaves no mark out: a page that isn't marked as accessed is never
//! remembered, and one that isn't marked as dirty never for writing. A page fault is always by the tables of now. What an access
//! does to memory, marks included, is compared word by word.
//!
//! There are several address spaces. Their pages are in two *slots*, right before and right behind the border between them (a
//! slot is what one table of the last level maps), and each slot has three tables to choose from, which several spaces may have.
//! Where there are three levels, so it is with the tables in the middle. Two pages more are at the kernel's addresses,
//! in all spaces, by one table. All of this is in one part of memory, the *arena*.

#![allow(unreachable_pub, reason = "as of other modules that test programs share")]

use crate::puppet::*;
use crate::tiny_guest::*;
use lguest_host::{GuestMemory, GuestPhys};
use std::collections::BTreeMap;

/// Tables that there are for a slot, and for the middle.
pub const CHOICES: u32 = 3;
/// Pages at users' addresses, then at the kernel's.
pub const USER_PAGES: usize = 6;
pub const PAGES: usize = 8;
pub const FRAME_COUNT: u32 = 8;
/// The words of a frame that are used. The one in the middle belongs to code, too.
pub const PLACES: [u32; 3] = [0, CODE_WORD, 0xffc];
pub const CODE_WORD: u32 = 0x800;
/// The arena: frames, tables of slots, tables of the middle, the kernel's table, and the uppermost.
const ARENA: u32 = FREE;
const TABLES: u32 = ARENA + 0x8000;
const MIDDLES: u32 = ARENA + 0xe000;
const KERNEL_TABLE: u32 = ARENA + 0x1_1000;
const ROOTS: u32 = ARENA + 0x1_2000;
/// Where users' slots meet, for either number of levels.
const BORDERS: [u32; 2] = [0x1040_0000, 0x5020_0000];
/// Of the pages at the kernel's addresses, behind the linear map.
const KERNEL_PAGES: u32 = PAGE_OFFSET + MEMORY + 0x3000;
/// CR0.WP.
pub const WP: u32 = 1 << 16;
const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;

pub fn frame(number: u32) -> u32 {
    ARENA + number * 0x1000
}

/// What the tables have said of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    frame: u32,
    write: bool,
    user: bool,
    dirty: bool,
}

impl Translation {
    /// By an entry of the last level, and the one above it.
    fn of(above: u32, entry: u32) -> Option<Self> {
        let remembered = above & PRESENT != 0 && entry & (PRESENT | ACCESSED) == PRESENT | ACCESSED;
        let rights = above & entry;
        remembered.then_some(Self {
            frame: entry & !0xfff,
            write: rights & WRITE != 0,
            user: rights & USER != 0,
            dirty: entry & DIRTY != 0,
        })
    }

    fn allows(&self, access: &Access, write_protect: bool) -> bool {
        let overrides = !access.user && !write_protect;
        (self.user || !access.user) && (!access.writes() || self.dirty && (self.write || overrides))
    }
}

impl Access {
    fn writes(&self) -> bool {
        matches!(self.what, Use::Write | Use::Add)
    }

    /// The word in its page that it is about.
    fn place(&self) -> u32 {
        if self.what == Use::Execute { CODE_WORD } else { self.address & 0xfff }
    }
}

/// What an access may come to: a report, and the words that are other ones now.
type Effect = (Report, BTreeMap<u32, u32>);

/// All that is remembered of a page.
type Memories = Vec<Translation>;

pub struct Model {
    pub wide: bool,
    pub current: usize,
    pub write_protect: bool,
    /// How many address spaces there are.
    pub spaces: usize,
    /// The words that may change.
    words: BTreeMap<u32, u32>,
    /// What user code may go by in each space, and the kernel at users' addresses.
    users: Vec<[Memories; PAGES]>,
    /// What the kernel may go by at its own addresses.
    kernel: [Memories; PAGES - USER_PAGES],
    /// The arena at first.
    arena: Vec<u8>,
}

impl Model {
    pub fn new(wide: bool, spaces: usize) -> Self {
        Self {
            wide,
            current: 0,
            write_protect: true,
            words: BTreeMap::new(),
            spaces,
            users: vec![Default::default(); spaces],
            kernel: Default::default(),
            arena: Vec::new(),
        }
    }

    pub fn address(&self, page: usize) -> u32 {
        match page.checked_sub(USER_PAGES) {
            None => BORDERS[usize::from(self.wide)] + page as u32 * 0x1000 - 0x3000,
            Some(page) => KERNEL_PAGES + page as u32 * 0x1000,
        }
    }

    pub fn root(&self, space: usize) -> u32 {
        ROOTS + space as u32 * if self.wide { 0x20 } else { 0x1000 }
    }

    /// Where a space names its table of the middle, and the number of that.
    pub fn pointer(&self, space: usize) -> (u32, u32) {
        let number = BORDERS[1] >> 30;
        (self.root(space) + number * 8, number)
    }

    /// The number of a slot, in the table above it.
    pub fn slot_index(&self, slot: u32) -> u32 {
        let address = self.address(slot as usize * 3);
        if self.wide { address >> 21 & 511 } else { address >> 22 }
    }

    pub fn middle(&self, choice: u32) -> u32 {
        MIDDLES + choice * 0x1000
    }

    pub fn table(&self, slot: u32, choice: u32) -> u32 {
        TABLES + (slot * CHOICES + choice) * 0x1000
    }

    /// Where the entry for a page is in a table.
    pub fn entry(&self, table: u32, page: usize) -> u32 {
        let number = self.address(page) >> 12;
        if self.wide { table + number % 512 * 8 } else { table + number % 1024 * 4 }
    }

    /// Where a kernel page's entry is.
    pub fn kernel_entry(&self, page: usize) -> u32 {
        self.entry(if self.wide { KERNEL_TABLE } else { LINEAR_TABLE }, page)
    }

    /// Where the entry is that chooses the table of a slot; none where the middle is absent.
    pub fn above(&self, space: usize, slot: u32) -> Option<u32> {
        let index = self.slot_index(slot);
        if !self.wide {
            return Some(self.root(space) + index * 4);
        }
        let middle = self.word(self.pointer(space).0);
        (middle & PRESENT != 0).then_some((middle & !0xfff) + index * 8)
    }

    pub fn word(&self, at: u32) -> u32 {
        self.words[&at]
    }

    /// The two entries that a space has for a page, and where they are.
    pub fn entries(&self, space: usize, page: usize) -> Option<[(u32, u32); 2]> {
        if page >= USER_PAGES {
            let at = self.kernel_entry(page);
            return Some([(0, PRESENT | WRITE | USER | ACCESSED), (at, self.word(at))]);
        }
        let above = self.above(space, page as u32 / 3)?;
        let table = self.word(above);
        let at = self.entry(table & !0xfff, page);
        (table & PRESENT != 0).then(|| [(above, table), (at, self.word(at))])
    }

    fn arena_bytes(&self) -> usize {
        (ROOTS - ARENA) as usize + self.spaces * 0x1000
    }

    /// Everything into memory. Nothing is to change but the words noted here.
    pub fn lay_out(&mut self, guest: &TinyGuest) {
        let mut word = |at, word| {
            guest.put_word(at, word);
            self.words.insert(at, word);
        };
        for number in 0..FRAME_COUNT {
            for place in PLACES {
                word(frame(number) + place, (number + 1) << 24 | place);
            }
            let [before, after] = CODE_THERE;
            guest.put(frame(number) + CODE_WORD - before.len() as u32, before);
            guest.put(frame(number) + CODE_WORD + 4, after);
        }
        self.lay_out_tables(guest);
        let mut arena = vec![0; self.arena_bytes()];
        guest.memory.read(GuestPhys(ARENA), &mut arena).expect("in memory");
        self.arena = arena;
        self.remember();
    }

    fn lay_out_tables(&mut self, guest: &TinyGuest) {
        let mut noted = Vec::new();
        let width = if self.wide { 8 } else { 4 };
        for slot in 0..2 {
            for choice in 0..CHOICES {
                for page in slot * 3..slot * 3 + 3 {
                    let at = self.entry(self.table(slot, choice), page as usize);
                    noted.push((at, frame(page) | FLAGS));
                }
            }
        }
        for space in 0..self.spaces as u32 {
            let root = self.root(space as usize);
            let choice = space % CHOICES;
            let chooser = if self.wide { self.middle(choice) } else { root };
            for slot in 0..2 {
                let at = chooser + self.slot_index(slot) * width;
                noted.push((at, self.table(slot, choice) | FLAGS));
            }
            // All spaces have the program that user code consists of, and the kernel.
            if self.wide {
                noted.push((self.pointer(space as usize).0, chooser | PRESENT));
                guest.put_wide(root, MIDDLE_LOW | PRESENT);
                guest.put_wide(root + 3 * 8, MIDDLE_HIGH | PRESENT);
            } else {
                guest.put_word(root, LINEAR_TABLE | FLAGS | ACCESSED);
                guest.put_word(root + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | FLAGS | ACCESSED);
                guest.put_word(root + (USER_CODE >> 22) * 4, USER_TABLE | FLAGS | ACCESSED);
            }
        }
        if self.wide {
            let kernel = MIDDLE_HIGH + (KERNEL_PAGES >> 21 & 511) * 8;
            guest.put_wide(kernel, KERNEL_TABLE | FLAGS | ACCESSED);
        }
        for page in USER_PAGES..PAGES {
            noted.push((self.kernel_entry(page), frame(page as u32) | FLAGS));
        }
        for (at, word) in noted {
            guest.put_word(at, word);
            self.words.insert(at, word);
        }
    }

    /// The guest stores these words.
    pub fn store(&mut self, stores: &[(u32, u32)]) {
        self.words.extend(stores.iter().copied());
        self.remember();
    }

    fn translation(&self, space: usize, page: usize) -> Option<Translation> {
        let [(_, above), (_, entry)] = self.entries(space, page)?;
        Translation::of(above, entry)
    }

    /// What the tables of the current space say now may be gone by from now on.
    pub fn remember(&mut self) {
        for page in 0..PAGES {
            self.look(self.current, page);
        }
    }

    fn look(&mut self, space: usize, page: usize) {
        let found = self.translation(space, page);
        note(&mut self.users[space][page], found);
        if let Some(kernel) = page.checked_sub(USER_PAGES) {
            note(&mut self.kernel[kernel], found);
        }
    }

    /// A call has told that a page of a space may have changed. It is looked at again then, or when it is used.
    pub fn forget(&mut self, space: usize, page: usize) {
        self.users[space][page].clear();
        if let Some(kernel) = page.checked_sub(USER_PAGES) {
            self.kernel[kernel].clear();
        }
        self.look(space, page);
    }

    /// SET_PTE, which is taken at its word even if the table says something else. A kernel page is every space's.
    pub fn take(&mut self, space: usize, page: usize, value: u32) {
        let above = self.entries(space, page).map(|[(_, above), _]| above);
        let taken = above.and_then(|above| Translation::of(above, value));
        let all = if page < USER_PAGES { space..space + 1 } else { 0..self.spaces };
        for space in all {
            self.forget(space, page);
            note(&mut self.users[space][page], taken);
        }
        if let Some(kernel) = page.checked_sub(USER_PAGES) {
            note(&mut self.kernel[kernel], taken);
        }
    }

    /// What an access may come to.
    pub fn may_come_to(&self, access: &Access) -> Vec<Effect> {
        let page = (0..PAGES).find(|&page| self.address(page) == access.address & !0xfff);
        let page = page.expect("one of our pages");
        let memories = match page.checked_sub(USER_PAGES) {
            Some(kernel) if !access.user => &self.kernel[kernel],
            _ => &self.users[self.current][page],
        };
        let may = |access: Access| {
            let allowed =
                memories.iter().filter(move |memory| memory.allows(&access, self.write_protect));
            allowed.map(|memory| memory.frame)
        };
        let reads = may(Access { what: Use::Read, ..*access });
        let walked = self.walked(access, page);
        let marks: BTreeMap<u32, u32> = walked.1.clone().split_off(&TABLES);
        let mut results = vec![walked];
        for frame in may(*access) {
            results.push(self.carried_out(access, frame, []));
            if !access.user {
                // The kernel may have looked, and go by what it remembers all the same.
                results.push(self.carried_out(access, frame, marks.clone()));
            }
        }
        if access.what == Use::Add {
            // It reads first. That and writing are two accesses, which needn't go by the same.
            for frame in reads {
                let added = self.word(frame + access.place()).wrapping_add(access.value);
                for index in 0..results.len() {
                    let (report, mut changed) = results[index].clone();
                    changed.range_mut(..TABLES).for_each(|(_, word)| *word = added);
                    results.push((report, changed));
                }
            }
        }
        results
    }

    /// By the tables as they are now.
    fn walked(&self, access: &Access, page: usize) -> Effect {
        let error = u32::from(access.writes()) * 2 + u32::from(access.user) * 4;
        let fault = |present| {
            let report = Report::Fault { error: error | present, address: access.address };
            (report, BTreeMap::new())
        };
        let Some([(above_at, above), (at, entry)]) = self.entries(self.current, page) else {
            return fault(0);
        };
        if entry & PRESENT == 0 {
            return fault(0);
        }
        let marks = if access.writes() { ACCESSED | DIRTY } else { ACCESSED };
        let marked = entry | ACCESSED | DIRTY;
        let Some(all) = Translation::of(above, marked) else { return fault(0) };
        if !all.allows(access, self.write_protect) {
            return fault(1);
        }
        let marked = [(above_at, above, above | ACCESSED), (at, entry, entry | marks)];
        let changed = marked.into_iter().filter(|(_, before, after)| before != after);
        self.carried_out(access, all.frame, changed.map(|(at, _, after)| (at, after)))
    }

    /// With what is marked before.
    fn carried_out(
        &self,
        access: &Access,
        frame: u32,
        marks: impl IntoIterator<Item = (u32, u32)>,
    ) -> Effect {
        let at = frame + access.place();
        let before = self.word(at);
        let after = match access.what {
            Use::Read | Use::Execute => before,
            Use::Write => access.value,
            Use::Add => before.wrapping_add(access.value),
        };
        let changed = marks.into_iter().chain((after != before).then_some((at, after))).collect();
        (Report::Done(if access.writes() { access.value } else { before }), changed)
    }

    /// The words that aren't what the model has.
    pub fn changed(&self, memory: &GuestMemory) -> BTreeMap<u32, u32> {
        let now = |at| memory.read_u32(GuestPhys(at)).expect("in memory");
        let words = self.words.iter().map(|(&at, &before)| (at, before, now(at)));
        words.filter(|(_, before, now)| before != now).map(|(at, _, now)| (at, now)).collect()
    }

    /// An access has changed these.
    pub fn follow(&mut self, changed: BTreeMap<u32, u32>) {
        self.words.extend(changed);
        self.remember();
    }

    /// The first address in the arena where something is that shouldn't be.
    pub fn spoilt(&self, memory: &GuestMemory) -> Option<u32> {
        let mut wanted = self.arena.clone();
        for (&at, word) in self.words.range(ARENA..ARENA + self.arena.len() as u32) {
            wanted[(at - ARENA) as usize..][..4].copy_from_slice(&word.to_le_bytes());
        }
        let mut found = vec![0; self.arena.len()];
        memory.read(GuestPhys(ARENA), &mut found).expect("in memory");
        let different = wanted.iter().zip(&found).position(|(wanted, found)| wanted != found);
        different.map(|at| ARENA + at as u32)
    }
}

fn note(memories: &mut Memories, found: Option<Translation>) {
    memories.extend(found.filter(|found| !memories.contains(found)));
}
