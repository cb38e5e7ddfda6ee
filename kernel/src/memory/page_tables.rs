//! A process's page tables.
//!
//! They own the frames that they map, but for those of programs, which are shared. As long as the Host has never seen a directory, changes
//! are only written; once it was used, each is told as well. Before a directory's memory is used for anything else,
//! its user half is taken back entry by entry, since the Host knows directories by their address.
//!
//! This is a room where unsafe code lives: entries that own frames.

use super::frames::Frame;
use super::kernel_map::{self, Table, directory_index, table_at, table_index};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::paging::{
    ACCESSED, DIRECTORY_ENTRY_BYTES, DIRTY, FRAME_MASK, PAGE_SIZE, PRESENT, USER, WRITE,
};
use lguest_abi::{Phys, Virt};
use lguest_guest::lazy::{Lazy, LazyMode};
use lguest_guest::{interrupts, machine, memory};
use lguest_kernel_logic::areas::Access;

/// Flags for a process's tables.
const TABLE: u32 = PRESENT | WRITE | USER | ACCESSED;
/// The entry owns a frame, whether it may be touched or not: a bit that the processor leaves to the kernel.
const OWNED: u32 = 1 << 9;
/// The entry has a frame that others have too: it is never written. Such a bit as well.
const SHARED: u32 = 1 << 10;
/// Flags for a page that is only read.
const READ_ONLY: u32 = PRESENT | USER | ACCESSED;
/// Flags for a page that is written. Claiming that it was already spares the Host the wait for the first write.
const READ_WRITE: u32 = READ_ONLY | WRITE | DIRTY;

/// Pages in a range from which on one flush is cheaper than telling of each.
const MANY: u32 = 32;

/// The flags that go with whose a page is ([`OWNED`] or [`SHARED`]), and what a process may do with it.
const fn flags(whose: u32, access: Access) -> u32 {
    let usable = match access {
        Access::None => 0,
        Access::Read => READ_ONLY,
        // A shared page is written only once it has been copied.
        Access::Write if whose == SHARED => READ_ONLY,
        Access::Write => READ_WRITE,
    };
    whose | usable
}

/// Memory has run out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfMemory;

/// A page directory, the user half's tables, and all frames they map.
#[derive(Debug)]
pub(crate) struct PageTables {
    directory: Frame,
    /// The Host has seen it.
    told: bool,
    pages: u32,
}

impl PageTables {
    /// Empty ones, but for the kernel's half.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let tables =
            Self { directory: Frame::allocate_zeroed().ok_or(OutOfMemory)?, told: false, pages: 0 };
        kernel_map::share_with(tables.directory());
        Ok(tables)
    }

    /// Where the directory is. Whoever asks is going to tell the Host.
    pub(crate) fn tell(&mut self) -> Phys {
        self.told = true;
        self.directory.phys()
    }

    /// How many pages are mapped.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether something is mapped at a user address.
    pub(crate) fn is_mapped(&self, address: Virt) -> bool {
        self.entry(address)
            .is_some_and(|entry| entry.load(Ordering::Relaxed) & (OWNED | SHARED) != 0)
    }

    /// Maps a frame at a user address where nothing is mapped, and tells the Host.
    pub(crate) fn map(
        &mut self,
        address: Virt,
        frame: Frame,
        access: Access,
    ) -> Result<(), OutOfMemory> {
        let entry = self.entry_or_new(address)?;
        self.set(address, entry, frame.into_phys().0 | flags(OWNED, access));
        self.pages += 1;
        Ok(())
    }

    /// Maps a frame, but leaves it to the Host to find out when the page is used: then it looks at its
    /// neighbours too, and maps as many as it can in one go.
    pub(crate) fn map_untold(
        &mut self,
        address: Virt,
        frame: Frame,
        access: Access,
    ) -> Result<(), OutOfMemory> {
        let entry = self.entry_or_new(address)?;
        entry.store(frame.into_phys().0 | flags(OWNED, access), Ordering::Relaxed);
        self.pages += 1;
        Ok(())
    }

    /// Maps a frame that is somebody else's, to be read only, in tables the Host hasn't seen.
    ///
    /// # Safety
    /// The frame must stay what it is as long as these tables live.
    pub(crate) unsafe fn map_shared(
        &mut self,
        address: Virt,
        frame: Phys,
    ) -> Result<(), OutOfMemory> {
        let entry = self.entry_or_new(address)?;
        entry.store(frame.0 | flags(SHARED, Access::Read), Ordering::Relaxed);
        self.pages += 1;
        Ok(())
    }

    /// Makes a shared page the process's own, by copying it, so that it can be written. False if it isn't shared.
    pub(crate) fn make_own(&mut self, address: Virt) -> Result<bool, OutOfMemory> {
        let shared = self.entry(address).map(|entry| (entry, entry.load(Ordering::Relaxed)));
        let Some((entry, value)) = shared.filter(|(_, value)| value & SHARED != 0) else {
            return Ok(false);
        };
        let mut frame = Frame::allocate().ok_or(OutOfMemory)?;
        // SAFETY: whoever mapped it said that it stays, and nobody writes to it.
        frame.bytes().copy_from_slice(unsafe { &*frame_bytes(value) });
        self.set(address, entry, frame.into_phys().0 | flags(OWNED, Access::Write));
        Ok(true)
    }

    /// The bytes of the page at an address, if one is mapped: for a process that isn't running yet.
    pub(crate) fn page(&mut self, address: Virt) -> Option<&mut [u8; PAGE_SIZE as usize]> {
        let value = self.entry(address)?.load(Ordering::Relaxed);
        if value & OWNED == 0 || self.told {
            return None;
        }
        // SAFETY: the frame is owned by these tables, which are borrowed, and no process has used them.
        Some(unsafe { &mut *frame_bytes(value) })
    }

    /// Changes what may be done with the mapped pages of a range.
    pub(crate) fn protect(&mut self, range: Range<u32>, access: Access) {
        self.each(range, |tables, address, entry, value| {
            let whose = value & (OWNED | SHARED);
            tables.set(address, entry, value & FRAME_MASK | flags(whose, access));
        });
    }

    /// Frees the mapped pages of a range.
    pub(crate) fn unmap(&mut self, range: Range<u32>) {
        self.each(range, |tables, address, entry, value| {
            tables.set(address, entry, 0);
            tables.pages -= 1;
            if value & OWNED != 0 {
                // SAFETY: it was given up in `map`, to the entry that is gone now.
                drop(unsafe { Frame::from_phys(Phys(value & FRAME_MASK)) });
            }
        });
    }

    /// Moves what is mapped from one range to another one, `bytes` long, where nothing is mapped.
    pub(crate) fn relocate(&mut self, from: u32, to: u32, bytes: u32) -> Result<(), OutOfMemory> {
        // All tables first, so that nothing can fail half-way.
        for offset in (0..bytes).step_by(PAGE_SIZE as usize) {
            self.entry_or_new(Virt(to + offset))?;
        }
        self.each(from..from + bytes, |tables, address, entry, value| {
            tables.set(address, entry, 0);
            let target = Virt(address.0 - from + to);
            if let Some(entry) = tables.entry(target) {
                tables.set(target, entry, value);
            }
        });
        Ok(())
    }

    /// Calls `body` for each page that is mapped in a range. The Host is told of the changes one by one in a lazy
    /// mode, or, when there may be many, not at all but to look for itself in the end.
    fn each(&mut self, range: Range<u32>, body: impl Fn(&mut Self, Virt, &'static AtomicU32, u32)) {
        let was_told = self.told;
        let is_large = (range.end - range.start) / PAGE_SIZE > MANY;
        let looks = was_told && is_large && machine().read_cr3() == self.directory.phys();
        interrupts::without(|| {
            self.told = was_told && !looks;
            let lazy = self.told.then(|| Lazy::enter(LazyMode::Mmu));
            let mut address = range.start;
            while address < range.end {
                let Some(entry) = self.entry(Virt(address)) else {
                    // No table: go on where the next one begins.
                    address = (address | (DIRECTORY_ENTRY_BYTES - 1)).saturating_add(1);
                    continue;
                };
                let value = entry.load(Ordering::Relaxed);
                if value & (OWNED | SHARED) != 0 {
                    body(self, Virt(address), entry, value);
                }
                address += PAGE_SIZE;
            }
            drop(lazy);
            self.told = was_told;
            if looks {
                machine().flush_tlb_user();
            }
        });
    }

    /// Writes an entry, and tells the Host if it has to know.
    fn set(&self, address: Virt, entry: &AtomicU32, value: u32) {
        if self.told {
            // SAFETY: it is a user address: nothing the kernel relies on.
            unsafe { machine().set_pte_at(self.directory.phys(), address, entry, value) };
        } else {
            entry.store(value, Ordering::Relaxed);
        }
    }

    fn directory(&self) -> &'static Table {
        // SAFETY: it is a directory as long as the tables live; references to its entries don't leave this file.
        unsafe { table_at(self.directory.phys()) }
    }

    /// The entry for an address, if there is a table for it.
    fn entry(&self, address: Virt) -> Option<&'static AtomicU32> {
        let value = self.directory()[directory_index(address)].load(Ordering::Relaxed);
        // SAFETY: a present entry leads to a table, which lives as long as the directory. Nor does this reference leave the file.
        let table =
            (value & PRESENT != 0).then(|| unsafe { table_at(Phys(value & FRAME_MASK)) })?;
        Some(&table[table_index(address)])
    }

    /// The entry for an address; a table is made if there is none.
    fn entry_or_new(&mut self, address: Virt) -> Result<&'static AtomicU32, OutOfMemory> {
        if let Some(entry) = self.entry(address) {
            return Ok(entry);
        }
        let table = Frame::allocate_zeroed().ok_or(OutOfMemory)?.into_phys();
        self.set_directory(directory_index(address), table.0 | TABLE);
        self.entry(address).ok_or(OutOfMemory)
    }

    /// Writes an entry of the directory, and tells the Host if it has to know.
    fn set_directory(&self, index: usize, value: u32) {
        let entry = &self.directory()[index];
        if self.told {
            // SAFETY: it is in the user half: nothing the kernel relies on.
            unsafe { machine().set_pmd(entry, value) };
        } else {
            entry.store(value, Ordering::Relaxed);
        }
    }

    /// Takes back the whole user half. The directory must not be in use.
    fn clear(&mut self) {
        let tables = 0..directory_index(memory::page_offset());
        for index in tables {
            let value = self.directory()[index].load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                continue;
            }
            // One call for the table: the Host forgets all that it maps.
            self.set_directory(index, 0);
            // SAFETY: the table was given up to the entry that is gone now, and so were its frames to its own entries.
            unsafe {
                let table = Phys(value & FRAME_MASK);
                for entry in table_at(table) {
                    let page = entry.load(Ordering::Relaxed);
                    if page & OWNED != 0 {
                        drop(Frame::from_phys(Phys(page & FRAME_MASK)));
                    }
                }
                drop(Frame::from_phys(table));
            }
        }
        self.pages = 0;
    }
}

/// Where the linear map shows the frame of an entry.
fn frame_bytes(value: u32) -> *mut [u8; PAGE_SIZE as usize] {
    core::ptr::with_exposed_provenance_mut(memory::virt(Phys(value & FRAME_MASK)).0 as usize)
}

impl Drop for PageTables {
    fn drop(&mut self) {
        debug_assert!(machine().read_cr3() != self.directory.phys(), "page tables dropped in use");
        interrupts::without(|| {
            let lazy = self.told.then(|| Lazy::enter(LazyMode::Mmu));
            self.clear();
            drop(lazy);
        });
    }
}
