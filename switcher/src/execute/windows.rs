//! Windows: the guest's 4 GiB of virtual addresses, as 4 GiB of ours.
//!
//! A window mirrors one view of the guest's page tables. It begins as a reservation where every
//! access faults; each page that the guest may touch becomes a shared mapping of its frame, so the
//! hardware does the guest's paging. It is aligned to 4 GiB, so that the low half of an address in
//! it is the guest's address, and has guard pages at both ends for accesses that run across one.
//!
//! Beside the mappings, each window keeps a record of what the embedder answered for a page. Whether a
//! recorded page is mapped is another question: a page that was only ever executed isn't, and
//! nothing is after [`Windows::drop_mappings`].
//!
//! Frames whose code has been translated are kept read-only in every window, however writable the guest
//! has them, so that a store to one is noticed. For that there is a map from frames back to
//! the pages that show them.
//!
//! Pages with data breakpoints aren't mapped in any window, or read-only.

mod places;

use super::SetupError;
use super::mapping_account as account;
use super::reservation::{Reservation, Shape, pointer};
use crate::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use crate::breakpoints::WatchedPage;
use crate::environment::Mapping;
use crate::memory::GuestMemory;
use places::{Places, place};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use std::sync::Arc;

/// Bytes of a window.
const WINDOW: u64 = 1 << 32;
/// Bytes that fault before and after a window: more than any operand that starts inside is long.
const GUARD: u64 = 1 << 20;
/// Runs up to this many pages get their host page tables filled at once: they were just asked for.
const POPULATE: u32 = 32;
/// Pages covered by one piece of a window's record.
const PIECE: usize = 1024;

/// What is recorded of one page: the frame's number from bit 12 on, and flags. 0: nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Record(u32);

impl Record {
    const KNOWN: u32 = 1;
    const WRITABLE: u32 = 2;
    const USER: u32 = 4;
    const MAPPED: u32 = 8;
    const PROTECTED: u32 = 16;

    fn new(frame: u32, writable: bool, user: bool) -> Self {
        let flag = |on: bool, bit| if on { bit } else { 0 };
        Self(frame << 12 | Self::KNOWN | flag(writable, Self::WRITABLE) | flag(user, Self::USER))
    }

    fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// The embedder has told what this page shows.
    pub(crate) fn is_known(self) -> bool {
        self.has(Self::KNOWN)
    }

    /// The embedder lets the guest write.
    pub(crate) fn is_writable(self) -> bool {
        self.has(Self::WRITABLE)
    }

    /// There is a host mapping behind it.
    pub(crate) fn is_mapped(self) -> bool {
        self.has(Self::MAPPED)
    }

    /// Mapped read-only, although the guest may write, because the frame holds translated code or the
    /// page has breakpoints on writes.
    pub(crate) fn is_protected(self) -> bool {
        self.has(Self::PROTECTED)
    }

    /// The frame's number.
    pub(crate) fn frame(self) -> u32 {
        self.0 >> 12
    }

    fn rights(self) -> ProtFlags {
        if self.is_writable() && !self.is_protected() {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        }
    }

    /// Whether the kernel keeps this page and the one after it in one mapping.
    fn merges_with(self, next: Self) -> bool {
        if !self.is_mapped() || !next.is_mapped() {
            return self.is_mapped() == next.is_mapped();
        }
        self.frame() + 1 == next.frame() && self.rights() == next.rights()
    }

    fn as_mapping(self, page: u32) -> Mapping {
        Mapping {
            virt: GuestVirt(page * PAGE_SIZE),
            phys: GuestPhys(self.frame() * PAGE_SIZE),
            pages: 1,
            writable: self.is_writable(),
            user: self.has(Self::USER),
        }
    }
}

/// The number of a window.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u16);

/// One window.
struct Window {
    space: Reservation,
    record: Vec<Option<Box<[Record; PIECE]>>>,
    /// Pages mapped.
    mapped: u32,
    /// Mappings the kernel has for it.
    mappings: usize,
}

impl Window {
    fn new() -> Result<Self, SetupError> {
        let space = Reservation::new(&Shape {
            purpose: "a window onto the guest's memory",
            bytes: WINDOW,
            align: WINDOW,
            guard: GUARD,
            rights: ProtFlags::empty(),
        })?;
        account::changed(0, 1);
        Ok(Self {
            space,
            record: vec![None; (WINDOW / 4096) as usize / PIECE],
            mapped: 0,
            mappings: 1,
        })
    }

    fn get(&self, page: u32) -> Record {
        let piece = self.record.get(page as usize / PIECE).and_then(Option::as_deref);
        piece.map_or(Record::default(), |piece| piece[page as usize % PIECE])
    }

    fn set(&mut self, page: u32, record: Record) {
        let old = self.get(page);
        self.mapped = self.mapped + u32::from(record.is_mapped()) - u32::from(old.is_mapped());
        if let Some(piece) = self.record.get_mut(page as usize / PIECE) {
            piece.get_or_insert_with(|| Box::new([Record::default(); PIECE]))
                [page as usize % PIECE] = record;
        }
    }

    /// Host address of a page.
    fn address(&self, page: u32) -> u64 {
        self.space.base() + u64::from(page) * u64::from(PAGE_SIZE)
    }

    /// Borders between mappings that lie in or at the ends of `pages` pages from `page` on.
    fn borders(&self, page: u32, pages: u32) -> usize {
        let first = page.saturating_sub(1);
        let last = (page + pages).min((WINDOW / 4096) as u32 - 1);
        (first..last).filter(|&page| !self.get(page).merges_with(self.get(page + 1))).count()
    }

    /// Changes records by `change`, and keeps the count of mappings right.
    fn update(&mut self, page: u32, pages: u32, change: impl FnOnce(&mut Self)) {
        let before = self.borders(page, pages);
        change(self);
        let mappings = self.mappings + self.borders(page, pages) - before;
        account::changed(self.mappings, mappings);
        self.mappings = mappings;
    }

    /// Pages with a record, in order.
    fn known(&self) -> impl Iterator<Item = (u32, Record)> {
        let pieces = self.record.iter().enumerate();
        pieces.filter_map(|(i, piece)| Some((i, piece.as_deref()?))).flat_map(|(i, piece)| {
            let pages = piece.iter().enumerate().filter(|(_, record)| record.is_known());
            pages.map(move |(j, &record)| ((i * PIECE + j) as u32, record))
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        account::changed(self.mappings, 0);
    }
}

/// The process has too many mappings, or the kernel won't make another.
#[derive(Debug)]
pub(crate) struct NoMapping;

/// All windows of one virtual CPU.
pub(crate) struct Windows {
    memory: Arc<GuestMemory>,
    windows: Vec<Option<Window>>,
    places: Places,
    /// A bit for each frame that holds translated code.
    code: Vec<u64>,
    watched: Vec<WatchedPage>,
    limit: usize,
}

impl Windows {
    /// No window yet. All windows of the process together get at most `limit` mappings.
    pub(crate) fn new(memory: Arc<GuestMemory>, limit: usize) -> Self {
        let frames = memory.frames() as usize;
        Self {
            memory,
            windows: Vec::new(),
            places: Places::new(frames),
            code: vec![0; frames.div_ceil(64)],
            watched: Vec::new(),
            limit,
        }
    }

    /// Another window, empty.
    pub(crate) fn create(&mut self) -> Result<Slot, SetupError> {
        let window = Some(Window::new()?);
        if let Some(free) = self.windows.iter().position(Option::is_none) {
            self.windows[free] = window;
            return Ok(Slot(free as u16));
        }
        if self.windows.len() >= Places::SLOTS {
            return Err(SetupError::Config("more than 4094 address spaces"));
        }
        self.windows.push(window);
        Ok(Slot(self.windows.len() as u16 - 1))
    }

    /// Gives a window back.
    pub(crate) fn destroy(&mut self, slot: Slot) {
        self.forget_all(slot);
        if let Some(window) = self.windows.get_mut(slot.0 as usize) {
            *window = None;
        }
    }

    /// Host address of guest address 0 in a window.
    pub(crate) fn base(&self, slot: Slot) -> u64 {
        self.window(slot).map_or(crate::frame::POISON, |window| window.space.base())
    }

    /// What is recorded of a page.
    pub(crate) fn get(&self, slot: Slot, page: u32) -> Record {
        self.window(slot).map_or(Record::default(), |window| window.get(page))
    }

    /// Pages mapped in a window.
    pub(crate) fn mapped_pages(&self, slot: Slot) -> u32 {
        self.window(slot).map_or(0, |window| window.mapped)
    }

    /// What a window shows at one page, in the embedder's terms.
    pub(crate) fn shown(&self, slot: Slot, page: u32) -> Option<Mapping> {
        let record = self.get(slot, page);
        record.is_known().then(|| record.as_mapping(page))
    }

    /// Goes through the runs a window shows, by rising address.
    pub(crate) fn for_each_run(&self, slot: Slot, f: &mut dyn FnMut(Mapping)) {
        let mut run: Option<Mapping> = None;
        for (page, record) in self.window(slot).iter().flat_map(|window| window.known()) {
            let next = record.as_mapping(page);
            match &mut run {
                Some(run) if continues(run, &next) => run.pages += 1,
                _ => {
                    if let Some(run) = run.replace(next) {
                        f(run);
                    }
                }
            }
        }
        if let Some(run) = run {
            f(run);
        }
    }

    /// Records one page without mapping it: for code that is only executed.
    pub(crate) fn record(&mut self, slot: Slot, page: u32, mapping: &Mapping) {
        let frame = mapping.phys.page_number() + (page - mapping.virt.page_number());
        if !self.get(slot, page).is_known() && self.is_memory(frame) {
            self.set_unmapped(slot, page, Record::new(frame, mapping.writable, mapping.user));
        }
    }

    /// Sets the record of a page that isn't mapped, and won't be.
    fn set_unmapped(&mut self, slot: Slot, page: u32, record: Record) {
        if let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) {
            self.places.replace(window.get(page), record.frame(), place(slot, page));
            window.set(page, record);
        }
    }

    /// Makes a window show a run of pages. What isn't memory is left out.
    pub(crate) fn map(&mut self, slot: Slot, mapping: &Mapping) -> Result<(), NoMapping> {
        let (mut page, mut frame) = (mapping.virt.page_number(), mapping.phys.page_number());
        let mut left = mapping.pages.min((WINDOW / 4096) as u32 - page);
        while left > 0 {
            let wanted = |frame| Record::new(frame, mapping.writable, mapping.user);
            let pages = self.memory.backing(frame, left).map_or(1, |(_, _, pages)| pages);
            let pages = self.watched_alike(page, pages);
            if self.is_hidden(page) && self.is_memory(frame) {
                self.set_unmapped(slot, page, wanted(frame));
            } else if self.is_memory(frame) {
                self.map_run(slot, page, wanted(frame), pages)?;
            }
            (page, frame, left) = (page + pages, frame.wrapping_add(pages), left - pages);
        }
        Ok(())
    }

    /// Maps `pages` pages whose frames follow each other in one file.
    fn map_run(
        &mut self,
        slot: Slot,
        page: u32,
        wanted: Record,
        pages: u32,
    ) -> Result<(), NoMapping> {
        let Some((first, last)) = self.differing(slot, page, wanted, pages) else {
            return Ok(());
        };
        let (page, pages) = (page + first, last - first + 1);
        let wanted = Record(wanted.0 + (first << 12));
        let stores_fault = |i: &u32| self.is_code(wanted.frame() + i) || self.is_watched(page + i);
        let protected: Vec<u32> = (0..pages).filter(stores_fault).collect();
        let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Ok(());
        };
        if account::count() + 2 + 2 * protected.len() > self.limit {
            return Err(NoMapping);
        }
        let (file, offset, _) = self.memory.backing(wanted.frame(), pages).ok_or(NoMapping)?;
        let populate = if pages <= POPULATE { MapFlags::POPULATE } else { MapFlags::empty() };
        let flags = MapFlags::SHARED | MapFlags::FIXED | populate;
        let (address, bytes) = (window.address(page), pages as usize * PAGE_SIZE as usize);
        // SAFETY: the range lies inside the window's reservation, which only translated code
        // uses, and that isn't running.
        unsafe { mmap(pointer(address), bytes, wanted.rights(), flags, file, offset) }
            .map_err(|_| NoMapping)?;
        window.update(page, pages, |window| {
            for i in 0..pages {
                let (old, place) = (window.get(page + i), place(slot, page + i));
                self.places.replace(old, wanted.frame() + i, place);
                window.set(page + i, Record((wanted.0 + (i << 12)) | Record::MAPPED));
            }
        });
        for i in protected {
            self.protect(place(slot, page + i));
        }
        Ok(())
    }

    /// First and last of the pages (counted from `page`) that don't show what is wanted.
    fn differing(&self, slot: Slot, page: u32, wanted: Record, pages: u32) -> Option<(u32, u32)> {
        let differs = |i: &u32| {
            let there = self.get(slot, page + i).0 & !Record::PROTECTED;
            there != (wanted.0 + (i << 12)) | Record::MAPPED
        };
        let first = (0..pages).find(differs)?;
        let last = (0..pages).rev().find(differs)?;
        Some((first, last))
    }

    /// Forgets what a run of pages shows.
    pub(crate) fn forget(&mut self, slot: Slot, page: u32, pages: u32) {
        let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        let end = page.saturating_add(pages).min((WINDOW / 4096) as u32);
        let known: Vec<u32> = (page..end).filter(|&page| window.get(page).is_known()).collect();
        let (Some(&first), Some(&last)) = (known.first(), known.last()) else {
            return;
        };
        if known.iter().any(|&page| window.get(page).is_mapped()) {
            close(window.address(first), u64::from(last - first + 1) * u64::from(PAGE_SIZE));
        }
        window.update(first, last - first + 1, |window| {
            for page in known {
                self.places.remove(window.get(page).frame(), place(slot, page));
                window.set(page, Record::default());
            }
        });
    }

    /// Forgets everything a window shows.
    pub(crate) fn forget_all(&mut self, slot: Slot) {
        let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        for (page, record) in window.known() {
            self.places.remove(record.frame(), place(slot, page));
        }
        window.record.fill(None);
        if window.mapped > 0 {
            close(window.address(0), WINDOW);
        }
        account::changed(window.mappings, 1);
        (window.mapped, window.mappings) = (0, 1);
    }

    /// Unmaps everything in a window; the records stay.
    pub(crate) fn drop_mappings(&mut self, slot: Slot) {
        let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        close(window.address(0), WINDOW);
        for record in window.record.iter_mut().flatten().flat_map(|piece| piece.iter_mut()) {
            record.0 &= !(Record::MAPPED | Record::PROTECTED);
        }
        account::changed(window.mappings, 1);
        (window.mapped, window.mappings) = (0, 1);
    }

    /// From now on `frame` holds translated code: it becomes read-only wherever it is shown.
    pub(crate) fn protect_frame(&mut self, frame: u32) {
        if let Some(word) = self.code.get_mut(frame as usize / 64) {
            *word |= 1 << (frame % 64);
        }
        for place in self.places.of(frame) {
            self.protect(place);
        }
    }

    /// `frame` holds no translated code any more.
    pub(crate) fn unprotect_frame(&mut self, frame: u32) {
        if let Some(word) = self.code.get_mut(frame as usize / 64) {
            *word &= !(1 << (frame % 64));
        }
        for place in self.places.of(frame) {
            self.change_protection(place, false);
        }
    }

    /// Whether `frame` holds translated code.
    pub(crate) fn is_code(&self, frame: u32) -> bool {
        let word = self.code.get(frame as usize / 64).copied().unwrap_or(0);
        word >> (frame % 64) & 1 != 0
    }

    /// From now on these are the pages with data breakpoints.
    pub(crate) fn watch(&mut self, pages: Vec<WatchedPage>) {
        if pages == self.watched {
            return;
        }
        let before = std::mem::replace(&mut self.watched, pages);
        let pages: Vec<u32> = before.iter().chain(&self.watched).map(|there| there.page).collect();
        for page in pages {
            for slot in 0..self.windows.len() as u16 {
                self.unmap(Slot(slot), page);
            }
        }
    }

    /// Unmaps one page; its record stays.
    fn unmap(&mut self, slot: Slot, page: u32) {
        let Some(window) = self.windows.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        let record = window.get(page);
        if record.is_mapped() {
            close(window.address(page), PAGE_SIZE.into());
            let unmapped = Record(record.0 & !(Record::MAPPED | Record::PROTECTED));
            window.update(page, 1, |window| window.set(page, unmapped));
        }
    }

    /// How many of `pages` pages from `page` on can be mapped alike: one with breakpoints goes by itself.
    fn watched_alike(&self, page: u32, pages: u32) -> u32 {
        let distances = self.watched.iter().filter_map(|watched| watched.page.checked_sub(page));
        distances.fold(pages, |pages, distance| pages.min(distance.max(1)))
    }

    /// Whether a page has data breakpoints.
    fn is_watched(&self, page: u32) -> bool {
        self.watched.iter().any(|watched| watched.page == page)
    }

    /// Whether a page isn't even to be read directly.
    fn is_hidden(&self, page: u32) -> bool {
        self.watched.iter().any(|watched| watched.page == page && !watched.readable)
    }

    fn is_memory(&self, frame: u32) -> bool {
        self.memory.backing(frame, 1).is_some()
    }

    fn protect(&mut self, place: u32) {
        self.change_protection(place, true);
    }

    fn change_protection(&mut self, place: u32, protect: bool) {
        let (slot, page) = (place >> 20, place & 0xf_ffff);
        let protect = protect || self.is_watched(page);
        let Some(window) = self.windows.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let record = window.get(page);
        if !record.is_mapped() || !record.is_writable() || record.is_protected() == protect {
            return;
        }
        let changed = Record(record.0 ^ Record::PROTECTED);
        let rights = MprotectFlags::from_bits_retain(changed.rights().bits());
        // SAFETY: one page inside the window, mapped; only translated code uses it, and that isn't
        // running.
        let done = unsafe { mprotect(pointer(window.address(page)), PAGE_SIZE as usize, rights) };
        if done.is_ok() {
            window.update(page, 1, |window| window.set(page, changed));
            return;
        }
        // Splitting a mapping can fail for want of mappings; taking the page away needs none more
        // than that, and taking the whole window away needs none at all.
        self.drop_mappings(Slot(slot as u16));
    }

    fn window(&self, slot: Slot) -> Option<&Window> {
        self.windows.get(slot.0 as usize)?.as_ref()
    }
}

/// Whether `next`, one page, goes on where `run` ends.
fn continues(run: &Mapping, next: &Mapping) -> bool {
    let bytes = run.pages.wrapping_mul(PAGE_SIZE);
    run.virt.wrapping_add(bytes) == next.virt
        && run.phys.wrapping_add(bytes) == next.phys
        && (run.writable, run.user) == (next.writable, next.user)
}

/// Makes a range inside a window fault again.
fn close(address: u64, bytes: u64) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the callers pass ranges inside a window's reservation, which only translated code uses,
    // and that isn't running.
    let done =
        unsafe { mmap_anonymous(pointer(address), bytes as usize, ProtFlags::empty(), flags) };
    // Replacing mappings by one that joins its neighbours needs at most one mapping more, which
    // the account keeps in reserve.
    assert!(done.is_ok(), "the kernel refuses to unmap a window: {done:?}");
}

#[cfg(test)]
mod tests;
