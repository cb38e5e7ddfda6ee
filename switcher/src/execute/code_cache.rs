//! Translated code: written through one address, run through another.
//!
//! The memory is a memfd that is mapped twice, once for writing and once for running, so that no page
//! is ever both at one address. It has two halves that fill from their starts: *hot* for the straight run
//! of guest instructions, *cold* for what is rarely needed (the stubs that leave), so that the
//! hot code stays dense. When either is full the whole cache is emptied: nothing in it is
//! precious, and it never leaks.
//!
//! A processor may run stale bytes when code was written through another address and no
//! *serializing* instruction came between (SDM volume 3, "Handling Self- and Cross-Modifying
//! Code"). So the cache remembers that it was written to, and the next entry is made by `iretq`,
//! which serializes: see [`super::crossing`].

use super::SetupError;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::{NonNull, null_mut};

/// What goes at the start of the cache, and how far it is filled.
pub(crate) struct CodeCache {
    /// The view for writing.
    writable: NonNull<u8>,
    /// The view for running.
    executable: NonNull<u8>,
    bytes: u32,
    hot: u32,
    cold: u32,
    written: bool,
}

// SAFETY: both views belong to the cache, and any thread may use them.
unsafe impl Send for CodeCache {}

/// The cache has no room for a unit: it must be emptied first.
#[derive(Debug)]
pub(crate) struct CacheFull;

impl CodeCache {
    /// A cache of `bytes` bytes (a multiple of two pages), with `runtime` at offset 0.
    pub(crate) fn new(bytes: u32, runtime: &[u8]) -> Result<Self, SetupError> {
        let mut cache = Self::map(bytes).map_err(SetupError::CodeCache)?;
        cache.reset(runtime);
        Ok(cache)
    }

    fn map(bytes: u32) -> io::Result<Self> {
        // Since Linux 6.3 a memfd should say whether it may be executed; older kernels refuse the flag.
        let flags = MemfdFlags::CLOEXEC;
        let file = memfd_create("translated-code", flags | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("translated-code", flags))?;
        ftruncate(&file, u64::from(bytes))?;
        let view = |rights| {
            // SAFETY: a fresh mapping at an address the kernel chooses disturbs nobody.
            let start =
                unsafe { mmap(null_mut(), bytes as usize, rights, MapFlags::SHARED, &file, 0)? };
            NonNull::new(start.cast::<u8>()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let writable = view(ProtFlags::READ | ProtFlags::WRITE)?;
        let executable = view(ProtFlags::READ | ProtFlags::EXEC).inspect_err(|_| {
            // SAFETY: the view that was just made, and that nobody will use.
            let _ = unsafe { munmap(writable.as_ptr().cast(), bytes as usize) };
        })?;
        Ok(Self { writable, executable, bytes, hot: 0, cold: 0, written: false })
    }

    /// Address of offset 0 in the view for running.
    pub(crate) fn base(&self) -> u64 {
        self.executable.addr().get() as u64
    }

    /// Bytes of the whole cache.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Where the next unit's hot and cold pieces will be placed.
    pub(crate) fn cursors(&self) -> (u32, u32) {
        (self.hot, self.cold)
    }

    /// Empties the cache, and puts `runtime` at its start.
    pub(crate) fn reset(&mut self, runtime: &[u8]) {
        (self.hot, self.cold) = (runtime.len() as u32, self.bytes / 2);
        assert!(self.hot <= self.cold, "the runtime stubs fit the hot half");
        self.copy(0, runtime);
    }

    /// Places a unit's two pieces at the cursors.
    pub(crate) fn place(&mut self, hot: &[u8], cold: &[u8]) -> Result<(), CacheFull> {
        let (middle, end) = (self.bytes / 2, self.bytes);
        let fits = |at: u32, piece: &[u8], end: u32| piece.len() <= (end - at) as usize;
        if !fits(self.hot, hot, middle) || !fits(self.cold, cold, end) {
            return Err(CacheFull);
        }
        self.copy(self.hot, hot);
        self.copy(self.cold, cold);
        self.hot += hot.len() as u32;
        self.cold += cold.len() as u32;
        Ok(())
    }

    /// Makes the branch whose 32-bit displacement is at `site` go to `target`.
    pub(crate) fn patch(&mut self, site: u32, target: u32) {
        let displacement = target.wrapping_sub(site.wrapping_add(4));
        self.copy(site, &displacement.to_le_bytes());
    }

    /// Whether anything was written since the last time this was asked: then the next entry must
    /// serialize.
    pub(crate) fn take_written(&mut self) -> bool {
        std::mem::take(&mut self.written)
    }

    fn copy(&mut self, at: u32, from: &[u8]) {
        assert!(at as usize + from.len() <= self.bytes as usize, "inside the code cache");
        // SAFETY: inside the view for writing, as just checked; `&mut self` and the fact that no
        // translated code runs while Rust does make it exclusive.
        unsafe {
            let to = self.writable.as_ptr().add(at as usize);
            to.copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
        self.written = true;
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        for view in [self.writable, self.executable] {
            // SAFETY: both views are this cache's own, and no code in it runs any more.
            let _ = unsafe { munmap(view.as_ptr().cast(), self.bytes as usize) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(cache: &CodeCache, at: u32) -> u8 {
        // SAFETY: inside the view for running, which is readable.
        unsafe { cache.executable.as_ptr().add(at as usize).read_volatile() }
    }

    #[test]
    fn what_is_written_shows_in_the_other_view() {
        let mut cache = CodeCache::new(0x4000, &[0x90; 64]).unwrap();
        assert_eq!(cache.cursors(), (64, 0x2000));
        assert!(cache.take_written() && !cache.take_written());
        cache.place(&[0xe9, 0, 0, 0, 0], &[0xc3]).unwrap();
        assert_eq!(cache.cursors(), (69, 0x2001));
        cache.patch(65, 0x2000);
        assert!(cache.take_written());
        assert_eq!([64, 65, 66, 67, 68].map(|at| byte(&cache, at)), [0xe9, 0xbb, 0x1f, 0, 0]);
        assert_eq!(byte(&cache, 0x2000), 0xc3);
    }

    #[test]
    fn a_full_cache_takes_nothing_and_works_again_when_reset() {
        let mut cache = CodeCache::new(0x2000, &[]).unwrap();
        assert!(cache.place(&[0; 0x1001], &[]).is_err());
        assert!(cache.place(&[], &[0; 0x1001]).is_err());
        cache.place(&[0; 0x1000], &[0; 0x1000]).unwrap();
        assert!(cache.place(&[0], &[]).is_err());
        cache.reset(&[1]);
        cache.place(&[2], &[3]).unwrap();
        assert_eq!([0, 1, 0x1000].map(|at| byte(&cache, at)), [1, 2, 3]);
    }
}
