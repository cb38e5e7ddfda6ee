//! The walk through page tables.
//!
//! Two levels of tables of 1024 entries lead from a linear address to a frame (SDM volume 3, section "32-Bit
//! Paging"). An entry of the first level may also name a page of 4 MiB, if CR4.PSE is set. On the way the
//! processor checks the rights, and marks what it used: accessed, and dirty.

use lguest_switcher::{Access, GuestMemory, GuestPhys, GuestVirt, Mapping, PAGE_SIZE, PageFault};

/// The entry leads somewhere.
const PRESENT: u32 = 1 << 0;
/// What it leads to may be written.
const WRITE: u32 = 1 << 1;
/// What it leads to may be touched at level 3.
const USER: u32 = 1 << 2;
/// It has been used.
const ACCESSED: u32 = 1 << 5;
/// The page has been written to.
const DIRTY: u32 = 1 << 6;
/// A first-level entry that names a page of 4 MiB.
const LARGE: u32 = 1 << 7;
/// Bits of such an entry that must be 0, in a processor whose physical addresses have 32 bits.
const LARGE_RESERVED: u32 = 0x003f_e000;
/// Where a table, or a page of 4 KiB, starts.
const FRAME: u32 = 0xffff_f000;
/// Where a page of 4 MiB starts.
const LARGE_FRAME: u32 = 0xffc0_0000;
/// Bytes and pages that an entry of the first level leads to.
const LARGE_BYTES: u32 = 1 << 22;
const LARGE_PAGES: u32 = LARGE_BYTES / PAGE_SIZE;

/// Error code: a reserved bit was set. (Bits 0 to 2 are those of an entry.)
const RESERVED: u32 = 1 << 3;

/// How addresses are to be understood.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// Where the tables are. Physical addresses without memory read as zeros: nothing is present.
    pub memory: &'a GuestMemory,
    /// The first-level table.
    pub root: GuestPhys,
    /// CR0.WP: read-only pages are read-only for the kernel too.
    pub write_protect: bool,
    /// CR4.PSE.
    pub large_pages: bool,
}

/// An entry, and where it is.
#[derive(Clone, Copy)]
struct Entry {
    at: GuestPhys,
    value: u32,
}

impl Walk<'_> {
    /// Finds the page for an access, marks what led there, and says what may be shown without asking again: a page
    /// that isn't marked dirty only for reading.
    ///
    /// # Errors
    /// The page fault of SDM volume 3, section "Page-Fault Exceptions"; nothing is marked then.
    pub fn access(
        &self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        let write = access == Access::Write;
        let asked = if write { WRITE } else { 0 } | if user { USER } else { 0 };
        let fault = |bits| PageFault { address, error: asked | bits };

        let directory = self.entry(self.root.page(), address.0 >> 22);
        if directory.value & PRESENT == 0 {
            return Err(fault(0));
        }
        let large = self.large_pages && directory.value & LARGE != 0;
        if large && directory.value & LARGE_RESERVED != 0 {
            return Err(fault(PRESENT | RESERVED));
        }
        let last = if large {
            directory
        } else {
            self.entry(GuestPhys(directory.value & FRAME), address.0 >> 12)
        };
        if last.value & PRESENT == 0 {
            return Err(fault(0));
        }
        let rights = directory.value & last.value;
        let overrides = write && !user && !self.write_protect && rights & WRITE == 0;
        if user && rights & USER == 0 || write && rights & WRITE == 0 && !overrides {
            return Err(fault(PRESENT));
        }
        if !large {
            self.mark(directory, ACCESSED);
        }
        let marks = if write { ACCESSED | DIRTY } else { ACCESSED };
        self.mark(last, marks);
        let (virt, phys, pages) = if large {
            (address.0 & LARGE_FRAME, last.value & LARGE_FRAME, LARGE_PAGES)
        } else {
            (address.0 & FRAME, last.value & FRAME, 1)
        };
        let dirty = (last.value | marks) & DIRTY != 0;
        Ok(Mapping {
            virt: GuestVirt(virt),
            phys: GuestPhys(phys),
            pages,
            // What the kernel writes to without the right, nobody else may see so.
            writable: overrides || rights & WRITE != 0 && dirty,
            user: !overrides && rights & USER != 0,
        })
    }

    /// Entry `index` (of which the low ten bits count) of a table.
    fn entry(&self, table: GuestPhys, index: u32) -> Entry {
        let at = table.wrapping_add(index % 1024 * 4);
        Entry { at, value: self.memory.read_u32(at).unwrap_or(0) }
    }

    fn mark(&self, entry: Entry, marks: u32) {
        if entry.value & marks != marks {
            // It was read a moment ago, so there is memory.
            let _ = self.memory.fetch_or_u32(entry.at, marks);
        }
    }
}
