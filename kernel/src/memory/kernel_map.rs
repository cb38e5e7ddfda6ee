//! The kernel's own addresses: the linear map, and a window for devices' pages.
//!
//! The launcher's page tables were good enough to start with. They map everything for everybody, so
//! that user code could read the kernel; here the kernel makes its own, which are in each process's
//! page directory too. The Host learns of them by one call, at the end.
//!
//! This is a room where unsafe code lives: the tables, and switching to them.

use super::frames::Frame;
use super::layout;
use crate::interrupt_lock::InterruptLock;
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::paging::{
    ACCESSED, DIRECTORY_ENTRY_BYTES, DIRTY, ENTRIES, FRAME_MASK, PAGE_SIZE, PRESENT, WRITE,
};
use lguest_abi::{Phys, Virt};
use lguest_guest::boot::BootParams;
use lguest_guest::device_pages::MapPages;
use lguest_guest::{machine, memory};

/// A page directory or a page table.
pub(crate) type Table = [AtomicU32; ENTRIES as usize];

#[repr(C, align(4096))]
struct Aligned(Table);

/// The page directory in use while no process is. Only its upper part, the kernel's, has anything in it.
static DIRECTORY: Aligned = Aligned([const { AtomicU32::new(0) }; ENTRIES as usize]);

/// The table for devices' pages.
static DEVICE_TABLE: Aligned = Aligned([const { AtomicU32::new(0) }; ENTRIES as usize]);

/// Flags for the kernel's pages. The accessed and dirty bits spare the Host the wait for a first use.
const READ_ONLY: u32 = PRESENT | ACCESSED;
const READ_WRITE: u32 = PRESENT | WRITE | ACCESSED | DIRTY;
/// Flags for the tables themselves.
const TABLE: u32 = PRESENT | WRITE | ACCESSED;

/// The table at a physical address.
///
/// # Safety
/// There must be one, and it must stay there while the reference is used.
pub(crate) unsafe fn table_at<'a>(phys: Phys) -> &'a Table {
    let table = core::ptr::with_exposed_provenance(memory::virt(phys).0 as usize);
    // SAFETY: the caller says that there is a table; its entries are atomics, so references may be shared.
    unsafe { &*table }
}

/// Which entry of a page directory an address belongs to.
pub(crate) const fn directory_index(address: Virt) -> usize {
    (address.0 / DIRECTORY_ENTRY_BYTES) as usize
}

/// Which entry of its page table an address belongs to.
pub(crate) const fn table_index(address: Virt) -> usize {
    (address.0 / PAGE_SIZE % ENTRIES) as usize
}

/// Where the directory without a process is.
pub(crate) fn directory() -> Phys {
    memory::phys_of(&DIRECTORY.0)
}

/// Puts the kernel's entries into a new page directory.
pub(crate) fn share_with(new: &Table) {
    let kernel = directory_index(memory::page_offset())..;
    for (place, entry) in new[kernel.clone()].iter().zip(&DIRECTORY.0[kernel]) {
        place.store(entry.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Makes the kernel's tables and switches to them. The launcher's are unused then.
///
/// # Panics
/// When memory is too small for them.
pub(crate) fn init(boot: &BootParams) {
    let read_only = layout::read_only_image();
    let end = layout::linear_end(boot).0;
    for table_start in (0..end).step_by(DIRECTORY_ENTRY_BYTES as usize) {
        let Some(frame) = Frame::allocate_zeroed() else {
            panic!("there is too little memory for page tables");
        };
        let table_phys = frame.into_phys();
        // SAFETY: it was given up to be a table for ever.
        let table = unsafe { table_at(table_phys) };
        for (phys, entry) in (table_start..end).step_by(PAGE_SIZE as usize).zip(table) {
            let written = !read_only.contains(&memory::virt(Phys(phys)));
            let flags = if written { READ_WRITE } else { READ_ONLY };
            entry.store(phys | flags, Ordering::Relaxed);
        }
        let at = directory_index(memory::virt(Phys(table_start)));
        DIRECTORY.0[at].store(table_phys.0 | TABLE, Ordering::Relaxed);
    }
    let device_table = memory::phys_of(&DEVICE_TABLE.0).0;
    DIRECTORY.0[directory_index(layout::device_window().start)]
        .store(device_table | TABLE, Ordering::Relaxed);
    // SAFETY: it maps all that the launcher's tables do for the kernel, at the same addresses.
    unsafe { machine().write_cr3(directory()) };
}

/// Maps devices' pages into their window.
#[derive(Debug)]
pub(crate) struct DeviceWindow {
    /// How many pages of the window are used or were.
    used: InterruptLock<u32>,
}

/// The window.
pub(crate) static DEVICE_WINDOW: DeviceWindow = DeviceWindow { used: InterruptLock::new(0) };

// SAFETY: each page of the window is given out once.
unsafe impl MapPages for DeviceWindow {
    fn map_pages(&self, start: Phys, pages: u32) -> Option<Virt> {
        let first = self.used.with(|used| {
            let first = *used;
            *used = first.checked_add(pages).filter(|end| *end <= ENTRIES)?;
            Some(first)
        })?;
        let window = layout::device_window().start.0;
        for page in 0..pages {
            let address = Virt(window + (first + page) * PAGE_SIZE);
            let frame = (start.0 & FRAME_MASK) + page * PAGE_SIZE;
            // SAFETY: nothing was mapped there, and this is its entry in every directory.
            unsafe {
                let entry = &DEVICE_TABLE.0[table_index(address)];
                machine().set_pte_at(directory(), address, entry, frame | READ_WRITE);
            }
        }
        Some(Virt(window + first * PAGE_SIZE))
    }

    fn unmap_pages(&self, start: Virt, pages: u32) {
        // The addresses aren't used again: a window of a thousand pages is plenty for sixteen devices.
        for page in 0..pages {
            let address = Virt(start.0 + page * PAGE_SIZE);
            // SAFETY: whoever had it mapped is done with it.
            unsafe {
                let entry = &DEVICE_TABLE.0[table_index(address)];
                machine().set_pte_at(directory(), address, entry, 0);
            }
        }
    }
}
