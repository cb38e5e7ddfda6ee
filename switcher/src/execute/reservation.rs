//! Address space, reserved whole and given back whole.
//!
//! Windows and jump tables are gigabytes of *addresses*, nearly all of which never get memory
//! behind them. One reservation is one mapping; what it is filled with later replaces parts of
//! it in place, so nothing else in the process can ever land inside.

use super::SetupError;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ptr::{null_mut, without_provenance_mut};

/// A run of address space that belongs to its owner until dropped.
pub(crate) struct Reservation {
    /// The whole of it, guards included.
    start: u64,
    length: u64,
    /// The useful part.
    base: u64,
}

/// What a reservation looks like.
pub(crate) struct Shape {
    /// What it is for, to be told when it fails.
    pub(crate) purpose: &'static str,
    /// Useful bytes: a multiple of the page size.
    pub(crate) bytes: u64,
    /// The useful part starts at a multiple of this power of two, at least the page size.
    pub(crate) align: u64,
    /// Bytes before and after the useful part that stay inaccessible: a multiple of the page size.
    pub(crate) guard: u64,
    /// How the useful part may be accessed at first.
    pub(crate) rights: ProtFlags,
}

impl Reservation {
    pub(crate) fn new(shape: &Shape) -> Result<Self, SetupError> {
        Self::try_new(shape).map_err(|source| SetupError::AddressSpace {
            purpose: shape.purpose,
            gib: shape.bytes >> 30,
            source,
        })
    }

    fn try_new(shape: &Shape) -> io::Result<Self> {
        // An aligned piece surely lies inside when there is room for one alignment more.
        let length = shape.bytes + 2 * shape.guard;
        let (start, room) = (reserve(length + shape.align)?, length + shape.align);
        let base = (start + shape.guard).next_multiple_of(shape.align);
        let reservation = Self { start: base - shape.guard, length, base };
        let (end, all) = (reservation.start + length, start + room);
        // SAFETY: both surplus ends were just reserved here, and nobody else knows of them.
        unsafe {
            give_back(start, reservation.start - start);
            give_back(end, all - end);
        }
        if shape.rights != ProtFlags::empty() {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: replaces the useful part of the reservation, which nothing uses yet.
            unsafe { mmap_anonymous(pointer(base), shape.bytes as usize, shape.rights, flags)? };
            // SAFETY: advice about that same mapping. Huge pages would put two megabytes behind
            // each touched entry; a kernel without them may refuse the advice.
            let _ =
                unsafe { madvise(pointer(base), shape.bytes as usize, Advice::LinuxNoHugepage) };
        }
        Ok(reservation)
    }

    /// Address of the useful part.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the whole range is this reservation's own.
        unsafe { give_back(self.start, self.length) };
    }
}

fn reserve(bytes: u64) -> io::Result<u64> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping at an address the kernel chooses disturbs nobody.
    let start = unsafe { mmap_anonymous(null_mut(), bytes as usize, ProtFlags::empty(), flags)? };
    Ok(start.addr() as u64)
}

/// # Safety
/// The range must belong to the caller, and nothing may use it afterwards.
unsafe fn give_back(start: u64, bytes: u64) {
    if bytes > 0 {
        // SAFETY: the caller's promise.
        let _ = unsafe { munmap(pointer(start), bytes as usize) };
    }
}

/// An address as the pointer that system calls want.
pub(crate) fn pointer(address: u64) -> *mut std::ffi::c_void {
    without_provenance_mut(address as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_useful_part_is_aligned_and_the_surplus_is_given_back() {
        let shape = Shape {
            purpose: "a test",
            bytes: 4 << 30,
            align: 4 << 30,
            guard: 1 << 20,
            rights: ProtFlags::empty(),
        };
        let first = Reservation::new(&shape).unwrap();
        assert_eq!(first.base() % (4 << 30), 0);
        assert_eq!(first.start, first.base() - (1 << 20));
        assert_eq!(first.length, (4 << 30) + (2 << 20));
    }

    #[test]
    fn what_cannot_be_had_says_what_would_help() {
        let shape = Shape {
            purpose: "a test",
            bytes: 1 << 50,
            align: 4096,
            guard: 0,
            rights: ProtFlags::empty(),
        };
        let error = Reservation::new(&shape).err().unwrap().to_string();
        assert!(error.contains("ulimit -v"), "{error}");
    }
}
