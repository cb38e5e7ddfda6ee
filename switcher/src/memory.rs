//! The guest's physical memory: shared, always changing, and never borrowed.
//!
//! Guest code writes to its memory whenever it likes, so Rust never holds a reference into it: every
//! access here is a volatile or atomic one through a raw pointer into the Switcher's own complete
//! mapping, and a value is read once and then judged. This is one of the few places with `unsafe`
//! code, and its rule is simple: a [`Range`]'s mapping lives as long as the `Range`, and
//! [`GuestMemory::locate`] is the only way to get a pointer.
//!
//! Memory is a list of ranges of files (a memfd for RAM, perhaps a shared page of another
//! process), because the windows in [`crate::execute`] map the same files again.
//!
//! It also keeps, for each frame, which 128-byte lines have been translated to host code. A write
//! to such a line is noted, and a virtual CPU looks at the notes before it runs guest code
//! again: so nobody who writes memory, not even a device, can forget about self-modifying code.

#![allow(unsafe_code)]

use crate::address::{GuestPhys, PAGE_SIZE};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes covered by one bit of a frame's line mask: a page has 32 lines.
const LINE: u32 = PAGE_SIZE / 32;

/// An access to physical addresses where there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory at physical {at}..+{len:#x}")]
pub struct OutsideMemory {
    /// First byte of the access.
    pub at: GuestPhys,
    /// Its length in bytes.
    pub len: u32,
}

/// One run of physical addresses, and the run of a file that holds its bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRange<'a> {
    /// Its first address.
    pub start: GuestPhys,
    /// Its length.
    pub bytes: u32,
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Where in the file the range begins.
    pub offset: u64,
}

/// One run of physical addresses, backed by a run of a file.
struct Range {
    start: u32,
    bytes: u32,
    file: OwnedFd,
    offset: u64,
    base: NonNull<u8>,
}

impl Range {
    fn new(start: u32, bytes: u32, file: OwnedFd, offset: u64) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses disturbs nobody.
        let base =
            unsafe { mmap(null_mut(), bytes as usize, rights, MapFlags::SHARED, &file, offset)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes, file, offset, base })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what mmap gave; pointers into it never outlive a call.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

/// What is known of one frame's translated code.
#[derive(Default)]
struct CodeMark {
    /// A bit for each line that was translated since the last write to one.
    lines: AtomicU32,
    /// Counts the writes to translated lines.
    version: AtomicU32,
}

/// How often translated lines have been written to, and in which frame the last time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CodeWrites {
    count: u32,
    frame: u32,
}

impl CodeWrites {
    /// The frame of the only write since `seen`; `None` when there were others.
    pub(crate) fn only_since(self, seen: Self) -> Option<u32> {
        (self.count == seen.count.wrapping_add(1)).then_some(self.frame)
    }

    /// A moment before these writes, with an unknown number of them since.
    pub(crate) fn long_before(self) -> Self {
        Self { count: self.count.wrapping_sub(2), ..self }
    }

    fn from_bits(bits: u64) -> Self {
        Self { count: (bits >> 32) as u32, frame: bits as u32 }
    }

    fn bits(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.frame)
    }
}

/// The guest's physical memory. Shared by reference between virtual CPUs and devices.
pub struct GuestMemory {
    ranges: Vec<Range>,
    marks: Vec<CodeMark>,
    /// [`CodeWrites::bits`]: one word, so that count and frame belong together.
    code_writes: AtomicU64,
}

// SAFETY: the mappings belong to the structure, are never moved while it lives, and are only
// accessed by volatile and atomic operations; everything else in it is Sync by itself.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Memory from physical address 0 to `bytes`, zero-filled, in a memfd of its own.
    ///
    /// # Errors
    /// `InvalidInput` when `bytes` is 0 or no multiple of the page size; otherwise what the
    /// system says when it has no memory, descriptors or address space to give.
    pub fn new(bytes: u32) -> io::Result<Self> {
        check_pages(0, bytes)?;
        let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, u64::from(bytes))?;
        Self { ranges: Vec::new(), marks: Vec::new(), code_writes: AtomicU64::new(0) }.with_file(
            GuestPhys(0),
            file,
            0,
            bytes,
        )
    }

    /// The same memory with another range: `bytes` of `file` from `offset` on appear at `at`.
    ///
    /// # Errors
    /// `InvalidInput` when an address, the offset or the length isn't page-aligned, or the range is
    /// empty, wraps, or overlaps one that is there; otherwise the system's error.
    pub fn with_file(
        mut self,
        at: GuestPhys,
        file: OwnedFd,
        offset: u64,
        bytes: u32,
    ) -> io::Result<Self> {
        check_pages(at.0, bytes)?;
        let overlaps = |range: &Range| {
            u64::from(at.0) < u64::from(range.start) + u64::from(range.bytes)
                && u64::from(range.start) < u64::from(at.0) + u64::from(bytes)
        };
        if !offset.is_multiple_of(u64::from(PAGE_SIZE)) || self.ranges.iter().any(overlaps) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.ranges.push(Range::new(at.0, bytes, file, offset)?);
        self.ranges.sort_by_key(|range| range.start);
        let frames = self.size().div_ceil(PAGE_SIZE) as usize;
        self.marks.resize_with(frames, CodeMark::default);
        Ok(self)
    }

    /// What it is made of, in order of address, for whoever maps the same files: they then tell of each of their writes by
    /// [`GuestMemory::note_write`].
    pub fn ranges(&self) -> impl Iterator<Item = MemoryRange<'_>> {
        self.ranges.iter().map(|range| MemoryRange {
            start: GuestPhys(range.start),
            bytes: range.bytes,
            file: range.file.as_fd(),
            offset: range.offset,
        })
    }

    /// One past the highest physical address, saturated at 2³²−1.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.ranges.last().map_or(0, |range| range.start.saturating_add(range.bytes))
    }

    /// Whether all of `at..at + len` is memory. Nothing at all (`len` 0) is, anywhere inside.
    #[must_use]
    pub fn contains(&self, at: GuestPhys, len: u32) -> bool {
        self.check(at, len as usize).is_ok()
    }

    /// Copies `into.len()` bytes out. An access may run from one range into the next.
    ///
    /// # Errors
    /// When not all of it is memory; nothing is read then.
    pub fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), OutsideMemory> {
        self.check(at, into.len())?;
        let mut done = 0;
        while done < into.len() {
            let (from, room) = self.locate(at.0 + done as u32).ok_or(outside(at, into.len()))?;
            let piece = room.min(into.len() - done);
            // SAFETY: `from` is valid for `room` bytes, and the destination is the host's own
            // memory, which guest memory never overlaps. The copy goes through a pointer the
            // compiler knows nothing about, so each byte is read once.
            unsafe { into[done..].as_mut_ptr().copy_from_nonoverlapping(from, piece) };
            done += piece;
        }
        Ok(())
    }

    /// Copies `from` in, and notes it where it hits translated code.
    ///
    /// # Errors
    /// When not all of it is memory; nothing is written then.
    pub fn write(&self, at: GuestPhys, from: &[u8]) -> Result<(), OutsideMemory> {
        self.check(at, from.len())?;
        let mut done = 0;
        while done < from.len() {
            let (to, room) = self.locate(at.0 + done as u32).ok_or(outside(at, from.len()))?;
            let piece = room.min(from.len() - done);
            // SAFETY: as in `read`, with the roles exchanged.
            unsafe { to.copy_from_nonoverlapping(from[done..].as_ptr(), piece) };
            done += piece;
        }
        self.note_write(at, from.len());
        Ok(())
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn read_u8(&self, at: GuestPhys) -> Result<u8, OutsideMemory> {
        let mut bytes = [0];
        self.read(at, &mut bytes)?;
        Ok(bytes[0])
    }

    /// Reads a little-endian 16-bit value, in one access.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn read_u16(&self, at: GuestPhys) -> Result<u16, OutsideMemory> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit value; atomically when `at` is a multiple of 4.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn read_u32(&self, at: GuestPhys) -> Result<u32, OutsideMemory> {
        if let Some(cell) = self.cell(at) {
            return Ok(cell.load(Ordering::Acquire));
        }
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write_u8(&self, at: GuestPhys, value: u8) -> Result<(), OutsideMemory> {
        self.write(at, &[value])
    }

    /// Writes a little-endian 16-bit value.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write_u16(&self, at: GuestPhys, value: u16) -> Result<(), OutsideMemory> {
        self.write(at, &value.to_le_bytes())
    }

    /// Writes a little-endian 32-bit value; atomically when `at` is a multiple of 4.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write_u32(&self, at: GuestPhys, value: u32) -> Result<(), OutsideMemory> {
        let Some(cell) = self.cell(at) else {
            return self.write(at, &value.to_le_bytes());
        };
        cell.store(value, Ordering::Release);
        self.note_write(at, 4);
        Ok(())
    }

    /// Sets bits in the 32-bit value at `at` atomically and returns what was there: how a page-table walk
    /// sets accessed and dirty. Only a write when a bit changes.
    ///
    /// # Errors
    /// When there is no memory, or `at` isn't a multiple of 4.
    pub fn fetch_or_u32(&self, at: GuestPhys, bits: u32) -> Result<u32, OutsideMemory> {
        let cell = self.cell(at).ok_or(outside(at, 4))?;
        let before = cell.load(Ordering::Acquire);
        if before & bits == bits {
            return Ok(before);
        }
        let before = cell.fetch_or(bits, Ordering::AcqRel);
        self.note_write(at, 4);
        Ok(before)
    }

    /// The file and the offset in it that hold `frame`, and how many of `pages` follow it there:
    /// what a window needs to map it. `None` where there is no memory.
    pub(crate) fn backing(&self, frame: u32, pages: u32) -> Option<(BorrowedFd<'_>, u64, u32)> {
        let at = frame.checked_mul(PAGE_SIZE)?;
        let range = self.range(at)?;
        let inside = at - range.start;
        let room = (range.bytes - inside) / PAGE_SIZE;
        Some((range.file.as_fd(), range.offset + u64::from(inside), room.min(pages)))
    }

    /// Where the `len` bytes at `at` lie in this process, if they are memory and of one piece: for translated code's own use,
    /// for as long as this memory lives.
    pub(crate) fn host_address(&self, at: GuestPhys, len: usize) -> Option<u64> {
        let (start, room) = self.locate(at.0)?;
        (room >= len).then(|| start.expose_provenance() as u64)
    }

    /// Number of frames from 0 to the highest.
    pub(crate) fn frames(&self) -> u32 {
        self.marks.len() as u32
    }

    /// Notes that the bytes at `at`, within one page, have been translated, so that a later write is
    /// noticed.
    pub(crate) fn mark_code(&self, at: GuestPhys, len: u32) {
        if let Some(mark) = self.marks.get(at.page_number() as usize) {
            mark.lines.fetch_or(lines(at.offset(), len), Ordering::AcqRel);
        }
    }

    /// How often translated lines of this frame have been written to.
    pub(crate) fn code_version(&self, frame: u32) -> u32 {
        self.marks.get(frame as usize).map_or(0, |mark| mark.version.load(Ordering::Acquire))
    }

    /// The writes to translated lines: one look tells that nothing changed.
    pub(crate) fn code_writes(&self) -> CodeWrites {
        CodeWrites::from_bits(self.code_writes.load(Ordering::Acquire))
    }

    /// Drops the marks of a frame whose code has been thrown away, as if it had been written to:
    /// another virtual CPU may still hold code of it. Gives the writes up to and with this one, if it counts.
    pub(crate) fn unmark_code(&self, frame: u32) -> Option<CodeWrites> {
        self.note_lines(frame, u32::MAX)
    }

    /// Notes a write to the lines in `mask`: whatever was translated from them is stale. Gives the writes up to
    /// and with this one, if anything was.
    fn note_lines(&self, frame: u32, mask: u32) -> Option<CodeWrites> {
        let mark = self.marks.get(frame as usize)?;
        if mark.lines.load(Ordering::Acquire) & mask == 0 {
            return None;
        }
        mark.lines.store(0, Ordering::Release);
        mark.version.fetch_add(1, Ordering::AcqRel);
        let next = |bits| {
            let count = CodeWrites::from_bits(bits).count.wrapping_add(1);
            CodeWrites { count, frame }
        };
        let one_more = |bits| Some(next(bits).bits());
        let before = self.code_writes.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        before.ok().map(next)
    }

    /// Notes a write that was made through another mapping of the same files. The methods here that write do so
    /// themselves. Where there is no memory, there is nothing to note.
    pub fn note_write(&self, at: GuestPhys, len: usize) {
        let (mut at, mut left) = (at, len as u32);
        while left > 0 {
            let piece = left.min(PAGE_SIZE - at.offset());
            self.note_lines(at.page_number(), lines(at.offset(), piece));
            at = at.wrapping_add(piece);
            left -= piece;
        }
    }

    fn check(&self, at: GuestPhys, len: usize) -> Result<(), OutsideMemory> {
        let end = u64::from(at.0) + len as u64;
        let mut next = u64::from(at.0);
        loop {
            let found = u32::try_from(next).ok().and_then(|next| self.range(next));
            let range = found.ok_or(outside(at, len))?;
            next = u64::from(range.start) + u64::from(range.bytes);
            if end <= next {
                return Ok(());
            }
        }
    }

    fn range(&self, at: u32) -> Option<&Range> {
        self.ranges.iter().find(|range| at >= range.start && at - range.start < range.bytes)
    }

    /// Where the byte at `at` lies in this process, and how many follow it there.
    fn locate(&self, at: u32) -> Option<(*mut u8, usize)> {
        let range = self.range(at)?;
        let inside = (at - range.start) as usize;
        // SAFETY: `inside` is less than the length of the mapping.
        let pointer = unsafe { range.base.as_ptr().add(inside) };
        Some((pointer, range.bytes as usize - inside))
    }

    /// The aligned 32-bit value at `at` as an atomic; `None` when unaligned or outside.
    fn cell(&self, at: GuestPhys) -> Option<&AtomicU32> {
        if !at.0.is_multiple_of(4) {
            return None;
        }
        let (pointer, _) = self.locate(at.0)?;
        // SAFETY: valid for 4 bytes, since ranges are whole pages; aligned, since they start at
        // one; lives as long as the range, hence as `self`. Rust only touches it atomically or by
        // copies on the same thread.
        Some(unsafe { AtomicU32::from_ptr(pointer.cast()) })
    }
}

fn outside(at: GuestPhys, len: usize) -> OutsideMemory {
    OutsideMemory { at, len: u32::try_from(len).unwrap_or(u32::MAX) }
}

fn check_pages(start: u32, bytes: u32) -> io::Result<()> {
    let whole = start.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE);
    let fits = bytes > 0 && start.checked_add(bytes).is_some();
    if whole && fits { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The bits of the lines that `len` bytes from `offset` on touch, within one page.
fn lines(offset: u32, len: u32) -> u32 {
    if len == 0 {
        return 0;
    }
    let (first, last) = (offset / LINE, ((offset + len - 1) / LINE).min(31));
    (u32::MAX << first) & (u32::MAX >> (31 - last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let file = memfd_create("more", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 0x3000).unwrap();
        GuestMemory::new(0x4000)
            .unwrap()
            .with_file(GuestPhys(0x4000), file, 0x1000, 0x2000)
            .unwrap()
    }

    #[test]
    fn an_access_may_run_from_one_range_into_the_next() {
        let memory = memory();
        assert_eq!(memory.size(), 0x6000);
        memory.write(GuestPhys(0x3ffe), &[1, 2, 3, 4]).unwrap();
        assert_eq!(memory.read_u32(GuestPhys(0x3ffe)).unwrap(), 0x0403_0201);
        assert_eq!(memory.read_u16(GuestPhys(0x4000)).unwrap(), 0x0403);
    }

    #[test]
    fn outside_is_an_error_and_changes_nothing() {
        let memory = memory();
        let error = memory.write(GuestPhys(0x5ffe), &[1; 4]).unwrap_err();
        assert_eq!(error, OutsideMemory { at: GuestPhys(0x5ffe), len: 4 });
        assert_eq!(memory.read_u16(GuestPhys(0x5ffe)).unwrap(), 0);
        assert!(memory.read_u32(GuestPhys(u32::MAX - 1)).is_err());
        assert!(memory.read_u32(GuestPhys(0x6000)).is_err());
        assert!(memory.contains(GuestPhys(0), 0x6000) && !memory.contains(GuestPhys(0), 0x6001));
    }

    #[test]
    fn odd_ranges_are_refused() {
        assert!(GuestMemory::new(0).is_err());
        assert!(GuestMemory::new(5).is_err());
        let file = memfd_create("more", MemfdFlags::CLOEXEC).unwrap();
        let overlap = memory().with_file(GuestPhys(0x5000), file, 0, 0x1000);
        assert!(overlap.is_err());
    }

    #[test]
    fn writes_to_translated_lines_are_noted_and_others_are_not() {
        let memory = memory();
        let version = memory.code_version(1);
        memory.mark_code(GuestPhys(0x1080), 4);
        memory.write_u32(GuestPhys(0x107c), 1).unwrap();
        assert_eq!((memory.code_version(1), memory.code_writes().count), (version, 0));
        memory.write(GuestPhys(0x107e), &[0; 4]).unwrap();
        let once = CodeWrites { count: 1, frame: 1 };
        assert_eq!((memory.code_version(1), memory.code_writes()), (version + 1, once));
        memory.write_u32(GuestPhys(0x1080), 1).unwrap();
        assert_eq!(memory.code_writes(), once, "the mark is gone after the first write");
    }

    #[test]
    fn one_write_tells_its_frame_and_several_tell_none() {
        let memory = memory();
        let start = memory.code_writes();
        memory.mark_code(GuestPhys(0x3000), 4);
        memory.write_u32(GuestPhys(0x3000), 1).unwrap();
        let once = memory.code_writes();
        assert_eq!((once.only_since(start), once.only_since(once)), (Some(3), None));
        memory.mark_code(GuestPhys(0x2000), 4);
        assert_eq!(memory.unmark_code(2), Some(memory.code_writes()));
        assert_eq!(memory.unmark_code(2), None);
        let twice = memory.code_writes();
        assert_eq!((twice.only_since(once), twice.only_since(start)), (Some(2), None));
    }

    #[test]
    fn writes_through_other_mappings_are_noted_too() {
        let memory = memory();
        memory.mark_code(GuestPhys(0x4ffc), 4);
        let range = memory.ranges().nth(1).unwrap();
        assert_eq!((range.start, range.bytes, range.offset), (GuestPhys(0x4000), 0x2000, 0x1000));
        rustix::io::pwrite(range.file, &[0x90; 8], 0x1ff8).unwrap();
        memory.note_write(GuestPhys(0x4ff8), 8);
        assert_eq!((memory.read_u8(GuestPhys(0x4ffc)), memory.code_version(4)), (Ok(0x90), 1));
        // Where there is no memory, nothing is noted and nothing fails.
        memory.note_write(GuestPhys(u32::MAX), 2);
        assert_eq!(memory.code_writes().count, 1);
    }

    #[test]
    fn accessed_bits_are_set_once() {
        let memory = memory();
        memory.mark_code(GuestPhys(0), 4096);
        assert_eq!(memory.fetch_or_u32(GuestPhys(8), 0x20).unwrap(), 0);
        assert_eq!(memory.fetch_or_u32(GuestPhys(8), 0x20).unwrap(), 0x20);
        assert_eq!(memory.code_writes().count, 1);
        assert!(memory.fetch_or_u32(GuestPhys(9), 1).is_err());
    }
}
