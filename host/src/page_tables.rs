//! Walking the guest's own page tables.
//!
//! The guest keeps ordinary two-level tables in its memory: a page directory of 1024 entries, each
//! naming a page table of 1024 entries, each naming a frame (SDM volume 3, section "32-Bit
//! Paging"). No processor ever reads them. The Host does, as one would: it checks the rights, and
//! sets the accessed and dirty bits. What it learns goes into the Switcher's windows, which are
//! the *shadow* of these tables: the story goes on in `shadow.rs`.
//!
//! What the interface doesn't allow (large pages, write-through, frames that don't exist) ends the guest
//! when it is used.

use crate::kill::Kill;
use lguest_abi::paging::{
    ACCESSED, DIRECTORY_ENTRY_BYTES, DIRECTORY_FLAGS, DIRTY, ENTRIES, FORBIDDEN_PAGE_FLAGS,
    FRAME_MASK, PRESENT, RESERVED_DIRECTORY_INDEX, USER, WRITE, fault,
};
use lguest_switcher::GuestMemory;
use lguest_switcher::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use lguest_switcher::environment::{Access, Mapping, PageFault};

/// The top 4 MiB are the Host's: no guest may have anything there.
pub(crate) const RESERVED: u32 = RESERVED_DIRECTORY_INDEX * DIRECTORY_ENTRY_BYTES;

/// Pages that are looked at around a faulting one: 16 cost little more to map than one.
const FAULT_AROUND: u32 = 16;

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

/// Index of the directory entry for `address`.
pub(crate) const fn slot_of(address: GuestVirt) -> u32 {
    address.0 / DIRECTORY_ENTRY_BYTES
}

/// First address of directory entry `slot`, 0..1024.
pub(crate) const fn slot_start(slot: u32) -> GuestVirt {
    GuestVirt(slot.wrapping_mul(DIRECTORY_ENTRY_BYTES))
}

/// A top-level entry that passed the rules, or is absent (0).
#[derive(Clone, Copy)]
struct Directory(u32);

impl Directory {
    /// Reads and judges the top-level entry for `address`.
    fn read(memory: &GuestMemory, root: GuestPhys, address: GuestVirt) -> Result<Self, Kill> {
        let entry = read_entry(memory, root, slot_of(address))?;
        if entry & PRESENT == 0 {
            return Ok(Self(0));
        }
        let frame = GuestPhys(entry & FRAME_MASK);
        if entry & !FRAME_MASK & !DIRECTORY_FLAGS != 0 || !memory.contains(frame, PAGE_SIZE) {
            return Err(Kill::BadPageDirectoryEntry { entry, address });
        }
        Ok(Self(entry))
    }

    fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    fn table(self) -> GuestPhys {
        GuestPhys(self.0 & FRAME_MASK)
    }
}

/// Entry `index` of the table (of either level) at `table`.
fn read_entry(memory: &GuestMemory, table: GuestPhys, index: u32) -> Result<u32, Kill> {
    let at = table.page().wrapping_add(index % ENTRIES * 4);
    memory.read_u32(at).map_err(|_| bad_table(at))
}

fn bad_table(at: GuestPhys) -> Kill {
    Kill::BadAddress { what: "page table", start: at, bytes: 4 }
}

/// Whether a present page table entry is one the interface allows.
pub(crate) fn check_entry(
    memory: &GuestMemory,
    entry: u32,
    address: GuestVirt,
) -> Result<(), Kill> {
    let frame = GuestPhys(entry & FRAME_MASK);
    if entry & FORBIDDEN_PAGE_FLAGS != 0 || !memory.contains(frame, PAGE_SIZE) {
        return Err(Kill::BadPageTableEntry { entry, address });
    }
    Ok(())
}

/// What a page table entry and the directory entry above it may show *without asking again*: only
/// a page whose accessed bit is set, and writable only if it is dirty already, so that these bits
/// stay right.
pub(crate) fn showable(directory: u32, entry: u32, address: GuestVirt) -> Option<Mapping> {
    if entry & (PRESENT | ACCESSED) != PRESENT | ACCESSED || directory & PRESENT == 0 {
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
    /// The page directory.
    pub(crate) root: GuestPhys,
    /// CR0.WP: read-only pages are read-only for the kernel too.
    pub(crate) write_protect: bool,
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

        let directory = Directory::read(self.memory, self.root, address)?;
        if !directory.is_present() {
            return Err(refused(0));
        }
        if address.0 >= RESERVED {
            return Err(Kill::ReservedAddress { what: "an access", address }.into());
        }
        let entry = read_entry(self.memory, directory.table(), address.page_number())?;
        if entry & PRESENT == 0 {
            return Err(refused(0));
        }
        let rights = directory.0 & entry;
        let overrides = write && !user && !self.write_protect && rights & WRITE == 0;
        if user && rights & USER == 0 || write && rights & WRITE == 0 && !overrides {
            return Err(refused(fault::PRESENT));
        }
        check_entry(self.memory, entry, address)?;

        let marks = if write { ACCESSED | DIRTY } else { ACCESSED };
        self.mark(self.root, slot_of(address), directory.0, ACCESSED)?;
        self.mark(directory.table(), address.page_number(), entry, marks)?;
        let page = |writable, user| Mapping {
            virt: address.page(),
            phys: GuestPhys(entry & FRAME_MASK),
            pages: 1,
            writable,
            user,
        };
        if overrides {
            // For this one access of the kernel: nobody else may see the page so.
            return Ok(page(true, false));
        }
        let writable = rights & WRITE != 0 && (entry | marks) & DIRTY != 0;
        let mapping = page(writable, rights & USER != 0);
        // A page whose bits were set before is one of a series prepared by the guest, or one of
        // many that were shown before a flush: then its neighbours are worth a look.
        if entry & marks == marks { Ok(self.widen(directory, mapping)) } else { Ok(mapping) }
    }

    /// Sets bits of an entry, unless they are set.
    fn mark(&self, table: GuestPhys, index: u32, entry: u32, marks: u32) -> Result<(), Kill> {
        if entry & marks == marks {
            return Ok(());
        }
        let at = table.page().wrapping_add(index % ENTRIES * 4);
        self.memory.fetch_or_u32(at, marks).map(drop).map_err(|_| bad_table(at))
    }

    /// Extends a one-page mapping over neighbours, inside an aligned group of pages, that go on
    /// in both kinds of address and may be shown with the same rights.
    fn widen(&self, directory: Directory, mapping: Mapping) -> Mapping {
        let index = mapping.virt.page_number() % ENTRIES;
        let group = index / FAULT_AROUND * FAULT_AROUND;
        let mut entries = [0u8; FAULT_AROUND as usize * 4];
        if self.memory.read(directory.table().wrapping_add(group * 4), &mut entries).is_err() {
            return mapping;
        }
        let goes_on = |other: u32| {
            let distance = other.wrapping_sub(index).wrapping_mul(PAGE_SIZE);
            let entry = word(&entries, (other - group) as usize);
            let phys = mapping.phys.wrapping_add(distance);
            entry & FORBIDDEN_PAGE_FLAGS == 0
                && self.memory.contains(phys, PAGE_SIZE)
                && showable(directory.0, entry, mapping.virt.wrapping_add(distance)).is_some_and(
                    |m| (m.phys, m.writable, m.user) == (phys, mapping.writable, mapping.user),
                )
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

/// Word `index` of a piece of table.
fn word(bytes: &[u8], index: usize) -> u32 {
    bytes
        .get(index * 4..index * 4 + 4)
        .and_then(|slice| slice.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A page table read as a whole, to judge many of its pages at once.
pub(crate) struct Table {
    directory: u32,
    entries: [u8; PAGE_SIZE as usize],
}

impl Table {
    /// Reads the table of directory entry `slot`; one without present pages if there is none, or
    /// none that is allowed.
    pub(crate) fn read(memory: &GuestMemory, root: GuestPhys, slot: u32) -> Self {
        let mut table = Self { directory: 0, entries: [0; PAGE_SIZE as usize] };
        if let Ok(directory) = Directory::read(memory, root, slot_start(slot))
            && directory.is_present()
            && slot_start(slot).0 < RESERVED
            && memory.read(directory.table(), &mut table.entries).is_ok()
        {
            table.directory = directory.0;
        }
        table
    }

    /// What may be shown at `address`, which lies in this table's slot, without asking again.
    pub(crate) fn showable(&self, address: GuestVirt) -> Option<Mapping> {
        let entry = word(&self.entries, (address.page_number() % ENTRIES) as usize);
        if entry & FORBIDDEN_PAGE_FLAGS != 0 {
            return None;
        }
        showable(self.directory, entry, address)
    }
}

/// Sets accessed and dirty in the launcher's own linear page tables: those that map, writable, what lies
/// `page_offset` below. Gives the runs that it found, so that they can be mapped in a few pieces.
///
/// Nobody has used these tables yet, and the Host alone looks at their bits before the guest
/// does; so setting them early takes nothing from anybody, and saves a fault for every page.
pub(crate) fn adopt_linear_map(
    memory: &GuestMemory,
    root: GuestPhys,
    page_offset: u32,
) -> Vec<Mapping> {
    let mut runs: Vec<Mapping> = Vec::new();
    for slot in slot_of(GuestVirt(page_offset))..slot_of(GuestVirt(RESERVED)) {
        let Ok(directory) = Directory::read(memory, root, slot_start(slot)) else { continue };
        let mut bytes = [0; PAGE_SIZE as usize];
        if !directory.is_present() || memory.read(directory.table(), &mut bytes).is_err() {
            continue;
        }
        for index in 0..ENTRIES {
            let virt = slot_start(slot).wrapping_add(index * PAGE_SIZE);
            let phys = GuestPhys(virt.0.wrapping_sub(page_offset));
            let entry = word(&bytes, index as usize);
            let plain = entry & !USER == phys.0 | PRESENT | WRITE;
            if !plain || check_entry(memory, entry, virt).is_err() {
                continue;
            }
            let marked = entry | ACCESSED | DIRTY;
            bytes[index as usize * 4] = marked as u8;
            let Some(page) = showable(directory.0, marked, virt) else { continue };
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
