//! Devices' pages: memory beyond what the memory map reports, shared with the launcher.
//!
//! The kernel's page tables don't show it, and where in virtual addresses there is room is the
//! kernel's to say: it implements [`MapPages`]. What comes back is a [`DevicePages`], whose words are read and written one by
//! one, each exactly once, since the other side may change them at any time.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use lguest_abi::paging::PAGE_SIZE;
use lguest_abi::{Phys, Virt};

/// How a kernel maps pages that aren't its memory.
///
/// # Safety
/// The address that [`map_pages`](Self::map_pages) returns must show the pages, readable and writable, and be used
/// for nothing else, until it is given to [`unmap_pages`](Self::unmap_pages).
pub unsafe trait MapPages {
    /// Maps `pages` pages of physical memory at any free, page-aligned virtual address. None when there is no room.
    fn map_pages(&self, start: Phys, pages: u32) -> Option<Virt>;

    /// Takes that back.
    fn unmap_pages(&self, start: Virt, pages: u32);
}

/// Some pages of a device, mapped until this is dropped.
pub struct DevicePages<'a> {
    mapper: &'a dyn MapPages,
    start: NonNull<u8>,
    pages: u32,
}
