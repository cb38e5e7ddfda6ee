//! Devices' pages: memory beyond what the memory map reports, shared with the launcher.
//!
//! The linear map doesn't show it, and where in virtual addresses there is room is the kernel's to
//! say: it implements [`MapPages`]. What comes back is a [`DevicePages`], whose words are read and
//! written one by one, each exactly once, since the other side may change them at any time.
//!
//! This is a room where unsafe code lives: memory that isn't Rust's.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use lguest_abi::paging::PAGE_SIZE;
use lguest_abi::{Phys, Virt};

/// How a kernel maps pages that aren't its memory.
///
/// # Safety
/// The address that [`map_pages`](Self::map_pages) returns must show the pages, readable and
/// writable, and be used for nothing else, until it is given to [`unmap_pages`](Self::unmap_pages).
pub unsafe trait MapPages: Sync {
    /// Maps `pages` pages of physical memory from `start` on at a free, page-aligned virtual
    /// address other than 0. None when there is no room.
    fn map_pages(&self, start: Phys, pages: u32) -> Option<Virt>;

    /// Takes that back.
    fn unmap_pages(&self, start: Virt, pages: u32);
}

/// Some pages of a device, mapped until this is dropped.
pub struct DevicePages {
    mapper: &'static dyn MapPages,
    start: NonNull<u8>,
    pages: u32,
}

// SAFETY: the memory is reached by atomic accesses only, and by whom doesn't matter.
unsafe impl Send for DevicePages {}
// SAFETY: as above.
unsafe impl Sync for DevicePages {}

impl DevicePages {
    /// Maps `pages` pages from `start` on. None when the kernel has no room for them.
    #[must_use]
    pub fn map(mapper: &'static dyn MapPages, start: Phys, pages: u32) -> Option<Self> {
        let address = mapper.map_pages(start, pages)?;
        let start = NonNull::new(ptr::with_exposed_provenance_mut(address.0 as usize))?;
        Some(Self { mapper, start, pages })
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.pages * PAGE_SIZE
    }

    /// The byte at an offset.
    ///
    /// # Panics
    /// When the offset is beyond the pages.
    #[must_use]
    pub fn read_u8(&self, offset: u32) -> u8 {
        let at = self.place::<u8>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Acquire)
    }

    /// The u16 at an even offset.
    ///
    /// # Panics
    /// When the offset is odd or beyond the pages.
    #[must_use]
    pub fn read_u16(&self, offset: u32) -> u16 {
        let at = self.place::<u16>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU16::from_ptr(at) }.load(Ordering::Acquire)
    }

    /// The u32 at an offset that is a multiple of 4.
    ///
    /// # Panics
    /// When the offset isn't, or is beyond the pages.
    #[must_use]
    pub fn read_u32(&self, offset: u32) -> u32 {
        let at = self.place::<u32>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU32::from_ptr(at) }.load(Ordering::Acquire)
    }

    /// Writes the byte at an offset.
    ///
    /// # Panics
    /// When the offset is beyond the pages.
    pub fn write_u8(&self, offset: u32, value: u8) {
        let at = self.place::<u8>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU8::from_ptr(at) }.store(value, Ordering::Release);
    }

    /// Writes the u16 at an even offset.
    ///
    /// # Panics
    /// When the offset is odd or beyond the pages.
    pub fn write_u16(&self, offset: u32, value: u16) {
        let at = self.place::<u16>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU16::from_ptr(at) }.store(value, Ordering::Release);
    }

    /// Writes the u32 at an offset that is a multiple of 4.
    ///
    /// # Panics
    /// When the offset isn't, or is beyond the pages.
    pub fn write_u32(&self, offset: u32, value: u32) {
        let at = self.place::<u32>(offset);
        // SAFETY: `place` checked it, and such memory is only reached by atomics.
        unsafe { AtomicU32::from_ptr(at) }.store(value, Ordering::Release);
    }

    /// Where a `T` at an offset is: aligned, and inside the pages.
    fn place<T>(&self, offset: u32) -> *mut T {
        let size = size_of::<T>() as u32;
        let inside = offset.is_multiple_of(size) && offset < self.bytes();
        assert!(inside, "no word of a device at offset {offset}");
        self.start.as_ptr().wrapping_add(offset as usize).cast()
    }
}

impl Drop for DevicePages {
    fn drop(&mut self) {
        let start = Virt(self.start.as_ptr().expose_provenance() as u32);
        self.mapper.unmap_pages(start, self.pages);
    }
}
