//! Walking the guest's own page tables.
//!
//! The guest keeps ordinary two-level tables in its memory: a page directory of 1024 entries, each
//! naming a page table of 1024 entries, each naming a frame (SDM volume 3, section "32-Bit
//! Paging"). Later guests may have three levels, and start with none at all. No processor ever reads them. The Host does, as one would: it checks the rights, and
//! sets the accessed and dirty bits. What it learns goes into the Switcher's windows, which are
//! the *shadow* of these tables: the story goes on in `shadow.rs`.
//!
//! What the interface doesn't allow (large pages, write-through, frames that don't exist) ends the guest
//! when it is used.

mod table;

use crate::kill::Kill;
use lguest_abi::Generation;
use lguest_abi::paging::{
    ACCESSED, DIRECTORY_FLAGS, DIRTY, FORBIDDEN_PAGE_FLAGS, FRAME_MASK, PRESENT, PSE, USER, WRITE,
    fault,
};
use lguest_switcher::GuestMemory;
use lguest_switcher::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use lguest_switcher::environment::{Access, Mapping, PageFault};
pub(crate) use table::Table;

/// Pages that are looked at around a faulting one: 16 cost little more to map than one.
const FAULT_AROUND: u32 = 16;

/// Pages that are mapped at once while memory is shown one-to-one.
const ONE_TO_ONE_PAGES: u32 = 4096;

// ANCHOR: levels
/// How many levels of tables lead from an address to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Levels {
    /// None yet: every address is its own frame's.
    None,
    /// A directory and tables of 1024 entries of 32 bits.
    Two,
    /// Four pointers to directories, and these and tables of 512 entries of 64 bits (SDM volume 3, section "PAE
    /// Paging").
    Three,
}
// ANCHOR_END: levels

/// The addresses that one table of the last level maps are a *slot*: 4 MiB, or 2 MiB where there are three levels.
impl Levels {
    /// Entries of a table of the last level.
    const fn entries(self) -> u32 {
        match self {
            Self::None | Self::Two => 1024,
            Self::Three => 512,
        }
    }

    /// Bytes of an entry.
    pub(crate) const fn entry_bytes(self) -> u32 {
        match self {
            Self::None | Self::Two => 4,
            Self::Three => 8,
        }
    }

    /// An entry that the guest passed in two words: the upper one says nothing where entries have 32 bits.
    pub(crate) const fn entry(self, words: u64) -> u64 {
        match self {
            Self::None | Self::Two => words & 0xffff_ffff,
            Self::Three => words,
        }
    }

    /// Bytes of a slot.
    pub(crate) const fn slot_bytes(self) -> u32 {
        self.entries() * PAGE_SIZE
    }

    /// Pages of a slot.
    pub(crate) const fn slot_pages(self) -> u32 {
        self.entries()
    }

    /// How many slots there are.
    pub(crate) const fn slots(self) -> u32 {
        u32::MAX / self.slot_bytes() + 1
    }

    /// Which slot `address` is in.
    pub(crate) const fn slot_of(self, address: GuestVirt) -> u32 {
        address.0 / self.slot_bytes()
    }

    /// First address of a slot.
    pub(crate) const fn slot_start(self, slot: u32) -> GuestVirt {
        GuestVirt(slot.wrapping_mul(self.slot_bytes()))
    }

    /// How many slots an entry of the uppermost table leads to.
    pub(crate) const fn slots_per_root_entry(self) -> u32 {
        match self {
            Self::None | Self::Two => 1,
            Self::Three => 512,
        }
    }

    /// Bytes of the uppermost table, to which it is aligned.
    pub(crate) const fn root_bytes(self) -> u32 {
        match self {
            Self::None | Self::Two => PAGE_SIZE,
            Self::Three => 32,
        }
    }

    /// The uppermost table that a value of CR3 names.
    pub(crate) const fn root(self, cr3: u32) -> GuestPhys {
        GuestPhys(cr3 & !(self.root_bytes() - 1))
    }

    /// The slots from here on are the Host's: no guest may have anything there.
    pub(crate) const fn reserved(self) -> u32 {
        self.slot_bytes().wrapping_neg()
    }
}

/// How a guest's page tables look, and what may be in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rules {
    pub(crate) levels: Levels,
    /// Flags that an entry of the last level may not have.
    forbidden: u32,
    /// Frames beyond memory belong to devices.
    devices: bool,
    /// An access to the topmost addresses ends the guest if its tables have anything there; else
    /// nothing is ever mapped there, whatever they say.
    top_is_forbidden: bool,
}

impl Rules {
    /// Those of a guest's first instruction.
    pub(crate) fn new(generation: Generation) -> Self {
        let levels = if generation.starts_with_page_tables() { Levels::Two } else { Levels::None };
        let strict = generation <= Generation::V2_6_24;
        let forbidden = if strict { FORBIDDEN_PAGE_FLAGS } else { PSE };
        let devices = generation == Generation::V4_0;
        // Linux's table for the topmost addresses is there from the start, and empty; and which address a
        // program of its users tries is nothing that it could prevent.
        let top_is_forbidden = generation == Generation::First;
        Self { levels, forbidden, devices, top_is_forbidden }
    }

    /// Whether a present entry of the last level is one the interface allows.
    pub(crate) fn check_entry(
        self,
        memory: &GuestMemory,
        entry: u64,
        address: GuestVirt,
    ) -> Result<(), Kill> {
        let frame = GuestPhys(entry as u32 & FRAME_MASK);
        let in_memory = self.devices || memory.contains(frame, PAGE_SIZE);
        if entry >> 32 != 0 || entry as u32 & self.forbidden != 0 || !in_memory {
            return Err(Kill::BadPageTableEntry { entry, address });
        }
        Ok(())
    }
}

/// Why an access doesn't go through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The guest gets a page fault.
    Fault(PageFault),
    /// The tables are such that the guest ends.
    Kill(Kill),
}

impl Refused {
    /// The end of the guest that this means where a page fault would be one too.
    pub(crate) fn kill_or(self, otherwise: Kill) -> Kill {
        match self {
            Self::Fault(_) => otherwise,
            Self::Kill(kill) => kill,
        }
    }
}

impl From<Kill> for Refused {
    fn from(kill: Kill) -> Self {
        Self::Kill(kill)
    }
}

/// An entry that leads to a table of the last level: it passed the rules, or is absent (0).
#[derive(Clone, Copy)]
pub(crate) struct Directory {
    flags: u32,
    /// Where it is.
    at: GuestPhys,
}

impl Directory {
    /// Absent.
    const NONE: Self = Self { flags: 0, at: GuestPhys(0) };

    /// Reads and judges the entry for the slot that `address` is in, below the uppermost table `root`.
    pub(crate) fn read(
        memory: &GuestMemory,
        levels: Levels,
        root: GuestPhys,
        address: GuestVirt,
    ) -> Result<Self, Kill> {
        let slot = levels.slot_of(address);
        let mut table = root;
        if levels == Levels::Three {
            let at = root.wrapping_add(slot / levels.slots_per_root_entry() * 8);
            let entry = read_entry(memory, levels, at)?;
            if entry as u32 & PRESENT == 0 {
                return Ok(Self::NONE);
            }
            table = Self::checked(memory, entry, PRESENT, address)?;
        }
        let index = slot % levels.entries();
        let at = table.wrapping_add(index * levels.entry_bytes());
        let entry = read_entry(memory, levels, at)?;
        if entry as u32 & PRESENT == 0 {
            return Ok(Self::NONE);
        }
        Self::checked(memory, entry, DIRECTORY_FLAGS, address)?;
        Ok(Self { flags: entry as u32, at })
    }

    /// The table that a present entry names, if it has no other flags than these.
    fn checked(
        memory: &GuestMemory,
        entry: u64,
        flags: u32,
        address: GuestVirt,
    ) -> Result<GuestPhys, Kill> {
        let frame = GuestPhys(entry as u32 & FRAME_MASK);
        let bad = entry as u32 & !FRAME_MASK & !flags != 0 || entry >> 32 != 0;
        if bad || !memory.contains(frame, PAGE_SIZE) {
            return Err(Kill::BadPageDirectoryEntry { entry, address });
        }
        Ok(frame)
    }

    pub(crate) fn is_present(self) -> bool {
        self.flags & PRESENT != 0
    }

    fn table(self) -> GuestPhys {
        GuestPhys(self.flags & FRAME_MASK)
    }

    /// What `entry` in the table may show; see [`showable`].
    pub(crate) fn showable(self, entry: u64, address: GuestVirt) -> Option<Mapping> {
        showable(self.flags, entry, address)
    }
}

/// The entry at `at`.
fn read_entry(memory: &GuestMemory, levels: Levels, at: GuestPhys) -> Result<u64, Kill> {
    let word = |at| memory.read_u32(at).map_err(|_| bad_table(at));
    let low = word(at)?;
    let high = if levels == Levels::Three { word(at.wrapping_add(4))? } else { 0 };
    Ok(u64::from(high) << 32 | u64::from(low))
}

fn bad_table(at: GuestPhys) -> Kill {
    Kill::BadAddress { what: "page table", start: at, bytes: 4 }
}

/// What a page table entry and the directory entry above it may show *without asking again*: only
/// a page whose accessed bit is set, and writable only if it is dirty already, so that these bits
/// stay right.
fn showable(directory: u32, entry: u64, address: GuestVirt) -> Option<Mapping> {
    let beyond = entry >> 32 != 0;
    let entry = entry as u32;
    if beyond || entry & (PRESENT | ACCESSED) != PRESENT | ACCESSED || directory & PRESENT == 0 {
        return None;
    }
    let rights = directory & entry;
    Some(Mapping {
        virt: address.page(),
        phys: GuestPhys(entry & FRAME_MASK),
        pages: 1,
        writable: rights & WRITE != 0 && entry & DIRTY != 0,
        user: rights & USER != 0,
    })
}

/// One access, as the processor would make it.
#[derive(Clone, Copy)]
pub(crate) struct Walk<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) rules: Rules,
    /// The uppermost table.
    pub(crate) root: GuestPhys,
    /// CR0.WP: read-only pages are read-only for the kernel too.
    pub(crate) write_protect: bool,
    /// Where the kernel's addresses begin.
    pub(crate) kernel_start: u32,
}

impl Walk<'_> {
    /// Finds the page for an access, sets its accessed and dirty bits, and says what may be
    /// mapped.
    pub(crate) fn access(
        &self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, Refused> {
        let write = access == Access::Write;
        let wanted = if write { fault::WRITE } else { 0 } | if user { fault::USER } else { 0 };
        let refused = |present| Refused::Fault(PageFault { address, error: wanted | present });
        let levels = self.rules.levels;
        if levels == Levels::None {
            return self.one_to_one(address).ok_or(refused(0));
        }

        let directory = Directory::read(self.memory, levels, self.root, address)?;
        if !directory.is_present() {
            return Err(refused(0));
        }
        if address.0 >= levels.reserved() {
            return Err(match self.rules.top_is_forbidden {
                true => Kill::ReservedAddress { what: "an access", address }.into(),
                false => refused(0),
            });
        }
        let index = address.page_number() % levels.entries();
        let at = directory.table().wrapping_add(index * levels.entry_bytes());
        let entry = read_entry(self.memory, levels, at)?;
        let flags = entry as u32;
        if flags & PRESENT == 0 {
            return Err(refused(0));
        }
        let rights = directory.flags & flags;
        let overrides = write && !user && !self.write_protect && rights & WRITE == 0;
        if user && rights & USER == 0 || write && rights & WRITE == 0 && !overrides {
            return Err(refused(fault::PRESENT));
        }
        self.rules.check_entry(self.memory, entry, address)?;

        let marks = if write { ACCESSED | DIRTY } else { ACCESSED };
        self.mark(directory.at, directory.flags, ACCESSED)?;
        self.mark(at, flags, marks)?;
        let page = |writable, user| Mapping {
            virt: address.page(),
            phys: GuestPhys(flags & FRAME_MASK),
            pages: 1,
            writable,
            user,
        };
        if overrides {
            // For this one access of the kernel: nobody else may see the page so.
            return Ok(page(true, false));
        }
        let writable = rights & WRITE != 0 && (flags | marks) & DIRTY != 0;
        let mapping = page(writable, rights & USER != 0);
        // A page whose bits were set before is one of a series prepared by the guest, or one of
        // many that were shown before a flush: then its neighbours are worth a look.
        if flags & marks == marks { Ok(self.widen(directory, mapping)) } else { Ok(mapping) }
    }

    /// All memory where it is, for everybody: there is no user code yet. `None` beyond it.
    fn one_to_one(&self, address: GuestVirt) -> Option<Mapping> {
        let page = address.page_number();
        if !self.memory.contains(GuestPhys(page * PAGE_SIZE), PAGE_SIZE) {
            return None;
        }
        // Not across the border between the kernel's addresses and the others.
        let border = self.kernel_start / PAGE_SIZE;
        let group = page / ONE_TO_ONE_PAGES * ONE_TO_ONE_PAGES;
        let end = (group + ONE_TO_ONE_PAGES).min(self.memory.size() / PAGE_SIZE);
        let (first, end) =
            if page < border { (group, end.min(border)) } else { (group.max(border), end) };
        let (virt, phys) = (GuestVirt(first * PAGE_SIZE), GuestPhys(first * PAGE_SIZE));
        Some(Mapping { virt, phys, pages: end - first, writable: true, user: true })
    }

    /// Sets bits of an entry, unless they are set.
    fn mark(&self, at: GuestPhys, entry: u32, marks: u32) -> Result<(), Kill> {
        if entry & marks == marks {
            return Ok(());
        }
        self.memory.fetch_or_u32(at, marks).map(drop).map_err(|_| bad_table(at))
    }

    /// Extends a one-page mapping over neighbours, inside an aligned group of pages, that go on
    /// in both kinds of address and may be shown with the same rights.
    fn widen(&self, directory: Directory, mapping: Mapping) -> Mapping {
        let levels = self.rules.levels;
        let index = mapping.virt.page_number() % levels.entries();
        let group = index / FAULT_AROUND * FAULT_AROUND;
        let start = directory.table().wrapping_add(group * levels.entry_bytes());
        let mut bytes = [0u8; FAULT_AROUND as usize * 8];
        let bytes = &mut bytes[..(FAULT_AROUND * levels.entry_bytes()) as usize];
        if self.memory.read(start, bytes).is_err() {
            return mapping;
        }
        let goes_on = |other: u32| {
            let distance = other.wrapping_sub(index).wrapping_mul(PAGE_SIZE);
            let entry = entry_in(bytes, levels, other - group);
            let phys = mapping.phys.wrapping_add(distance);
            entry & u64::from(self.rules.forbidden) == 0
                && self.memory.contains(phys, PAGE_SIZE)
                && showable(directory.flags, entry, mapping.virt.wrapping_add(distance))
                    .is_some_and(|m| {
                        (m.phys, m.writable, m.user) == (phys, mapping.writable, mapping.user)
                    })
        };
        let first = (group..index).rev().take_while(|&i| goes_on(i)).last().unwrap_or(index);
        let last =
            (index + 1..group + FAULT_AROUND).take_while(|&i| goes_on(i)).last().unwrap_or(index);
        let back = (index - first) * PAGE_SIZE;
        Mapping {
            virt: GuestVirt(mapping.virt.0 - back),
            phys: GuestPhys(mapping.phys.0.wrapping_sub(back)),
            pages: last - first + 1,
            ..mapping
        }
    }
}

/// Entry `index` of a piece of table.
fn entry_in(bytes: &[u8], levels: Levels, index: u32) -> u64 {
    let size = levels.entry_bytes() as usize;
    let start = index as usize * size;
    let mut entry = [0; 8];
    if let Some(found) = bytes.get(start..start + size) {
        entry[..size].copy_from_slice(found);
    }
    u64::from_le_bytes(entry)
}

/// Sets accessed and dirty in the launcher's own linear page tables: those that map, writable, what lies
/// `page_offset` below. Gives the runs that it found, so that they can be mapped in a few pieces.
///
/// Nobody has used these tables yet, and the Host alone looks at their bits before the guest
/// does; so setting them early takes nothing from anybody, and saves a fault for every page.
pub(crate) fn adopt_linear_map(
    memory: &GuestMemory,
    rules: Rules,
    root: GuestPhys,
    page_offset: u32,
) -> Vec<Mapping> {
    let levels = rules.levels;
    let mut runs: Vec<Mapping> = Vec::new();
    for slot in levels.slot_of(GuestVirt(page_offset))..levels.slots() - 1 {
        let start = levels.slot_start(slot);
        let Ok(directory) = Directory::read(memory, levels, root, start) else { continue };
        let mut bytes = [0; PAGE_SIZE as usize];
        if !directory.is_present() || memory.read(directory.table(), &mut bytes).is_err() {
            continue;
        }
        for index in 0..levels.entries() {
            let virt = start.wrapping_add(index * PAGE_SIZE);
            let phys = GuestPhys(virt.0.wrapping_sub(page_offset));
            let entry = entry_in(&bytes, levels, index);
            let plain = entry as u32 & !USER == phys.0 | PRESENT | WRITE;
            if !plain || rules.check_entry(memory, entry, virt).is_err() {
                continue;
            }
            let marked = entry | u64::from(ACCESSED | DIRTY);
            bytes[(index * levels.entry_bytes()) as usize] = marked as u8;
            let Some(page) = showable(directory.flags, marked, virt) else { continue };
            match runs.last_mut() {
                Some(run) if continues(run, &page) => run.pages += 1,
                _ => runs.push(page),
            }
        }
        // The table was read from there a moment ago, and nobody runs.
        if memory.write(directory.table(), &bytes).is_err() {
            return Vec::new();
        }
    }
    runs
}

/// `page` comes right after `run`, in both kinds of address and with the same rights.
fn continues(run: &Mapping, page: &Mapping) -> bool {
    let bytes = run.pages * PAGE_SIZE;
    run.virt.wrapping_add(bytes) == page.virt
        && run.phys.wrapping_add(bytes) == page.phys
        && (run.writable, run.user) == (page.writable, page.user)
}
