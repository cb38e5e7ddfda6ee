//! A process's address space: what its addresses are meant to be, and what is there already.
//!
//! Nothing is there until it is touched, but for the program itself: its bytes are in the
//! archive, and are copied when it is loaded, those that can be written for each process anew.
//!
//! This is a room where unsafe code lives: one line, on how long shared pages live.

use super::frames::Frame;
use super::page_tables::{OutOfMemory, PageTables};
use super::shared_pages::SharedPages;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use lguest_abi::{Phys, Virt};
use lguest_kernel_logic::areas::{
    Access, Area, Areas, HIGHEST, LOWEST, PAGE, STACK_LIMIT, TooManyAreas,
};
use lguest_system_calls::Errno;

/// Where stacks end. A page is left free below the kernel.
pub(crate) const STACK_TOP: u32 = HIGHEST - PAGE;

/// Where memory that a process asks for is looked for, downward: below where the stack can grow to.
const MAPPINGS_TOP: u32 = STACK_TOP - STACK_LIMIT - (1 << 20);

/// What became of a page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// What was missing is there now.
    Mended,
    /// The process may not do that.
    Forbidden,
    /// It may, but there is no memory left.
    OutOfMemory,
}

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Self::ENOMEM
    }
}

/// An address space.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    tables: PageTables,
    areas: Areas,
    heap: Range<u32>,
    ahead: Ahead,
    /// What the tables show of others': dropped after them.
    shared: Vec<Arc<SharedPages>>,
}

/// How far page faults go ahead of what is touched: not at all, until it looks as if pages were touched in order.
#[derive(Debug, Default)]
struct Ahead {
    /// The page that comes next, if they are.
    next: u32,
    /// How many pages were made at the last fault.
    pages: u32,
}

/// Pages that are made at one fault at most.
const AHEAD_MAX: u32 = 16;

impl Ahead {
    /// How many pages to make at a fault.
    fn pages_at(&mut self, page: u32) -> u32 {
        self.pages = if page == self.next { (self.pages * 2).min(AHEAD_MAX) } else { 1 };
        self.next = page + self.pages * PAGE;
        self.pages
    }
}

impl AddressSpace {
    /// An empty one.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            tables: PageTables::new()?,
            areas: Areas::new(),
            heap: 0..0,
            ahead: Ahead::default(),
            shared: Vec::new(),
        })
    }

    /// The page directory, for the Host.
    pub(crate) fn directory(&mut self) -> Phys {
        self.tables.tell()
    }

    /// How many pages are there.
    pub(crate) fn pages(&self) -> u32 {
        self.tables.pages()
    }

    /// Puts bytes into an area, in a process that hasn't run yet. Pages that aren't there are made, with
    /// zeros around the bytes.
    pub(crate) fn place(
        &mut self,
        address: u32,
        bytes: &[u8],
        access: Access,
    ) -> Result<(), Errno> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = at % PAGE;
            let page = Virt(at - offset);
            if !self.tables.is_mapped(page) {
                let frame = Frame::allocate_zeroed().ok_or(OutOfMemory)?;
                self.tables.map(page, frame, access)?;
            } else if access == Access::Write {
                self.tables.protect(page.0..page.0 + PAGE, access);
            }
            let (now, later) = rest.split_at(rest.len().min((PAGE - offset) as usize));
            let place = self.tables.page(page).ok_or(Errno::EFAULT)?;
            place[offset as usize..][..now.len()].copy_from_slice(now);
            at += now.len() as u32;
            rest = later;
        }
        Ok(())
    }

    /// Shows a segment's pages, which other processes may use too, in a process that hasn't run yet.
    pub(crate) fn share(&mut self, address: u32, pages: Arc<SharedPages>) -> Result<(), Errno> {
        let first = address & !(PAGE - 1);
        for (page, frame) in (first..).step_by(PAGE as usize).zip(pages.frames()) {
            // SAFETY: the pages stay as long as `shared` has them: longer than the tables.
            unsafe { self.tables.map_shared(Virt(page), frame)? };
        }
        self.shared.push(pages);
        Ok(())
    }

    /// Makes addresses an area, with whole pages. What is mapped there stays.
    pub(crate) fn add_area(
        &mut self,
        range: Range<u32>,
        access: Access,
        is_stack: bool,
    ) -> Result<(), Errno> {
        let start = range.start & !(PAGE - 1);
        let end = range.end.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
        if start < LOWEST || end > HIGHEST || start >= end {
            return Err(Errno::ENOMEM);
        }
        self.areas.add(Area { start, end, access, is_stack }).map_err(no_room)
    }

    /// Says where the heap starts; it has no size yet.
    pub(crate) fn set_heap_start(&mut self, start: u32) {
        let start = start.next_multiple_of(PAGE);
        self.heap = start..start;
    }

    /// Moves the heap's end, if that can be. Answers where it is now.
    pub(crate) fn move_heap_end(&mut self, end: u32) -> u32 {
        let old_pages = self.heap.end.next_multiple_of(PAGE);
        let Some(new_pages) = end.checked_next_multiple_of(PAGE) else {
            return self.heap.end;
        };
        let moved = if end < self.heap.start {
            false
        } else if new_pages > old_pages {
            // A gap is kept above it, so that running over the end is noticed.
            let wanted = old_pages..new_pages;
            let with_gap = wanted.start..wanted.end.saturating_add(PAGE);
            with_gap.end <= MAPPINGS_TOP
                && self.areas.is_free(&with_gap)
                && self.add_area(wanted, Access::Write, false).is_ok()
        } else {
            new_pages == old_pages || self.unmap(new_pages..old_pages).is_ok()
        };
        if moved {
            self.heap.end = end;
        }
        self.heap.end
    }

    /// Finds room for `length` bytes, at `hint` if that is free.
    pub(crate) fn find_room(&self, hint: u32, length: u32) -> Option<Range<u32>> {
        let length = length.checked_next_multiple_of(PAGE)?;
        let hint = hint & !(PAGE - 1);
        let hinted = hint..hint.checked_add(length).unwrap_or(0);
        let fits = hint >= LOWEST && hinted.end > hint && hinted.end <= MAPPINGS_TOP;
        if fits && self.areas.is_free(&hinted) {
            return Some(hinted);
        }
        self.areas.find_free(length, MAPPINGS_TOP)
    }

    /// Whether nothing is in a range.
    pub(crate) fn is_free(&self, range: &Range<u32>) -> bool {
        self.areas.is_free(range)
    }

    /// Removes a range of whole pages.
    pub(crate) fn unmap(&mut self, range: Range<u32>) -> Result<(), Errno> {
        check_pages(&range)?;
        self.areas.remove(range.clone()).map_err(no_room)?;
        self.tables.unmap(range);
        Ok(())
    }

    /// Changes how a range of whole pages may be used.
    pub(crate) fn protect(&mut self, range: Range<u32>, access: Access) -> Result<(), Errno> {
        check_pages(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        let covered = self.areas.protect(range.clone(), access).map_err(no_room)?;
        self.tables.protect(range, access);
        if covered { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Moves an area's contents to where there is room for more (`mremap`). Answers the new address.
    pub(crate) fn resize(
        &mut self,
        old: Range<u32>,
        new_length: u32,
        may_move: bool,
    ) -> Result<u32, Errno> {
        check_pages(&old)?;
        let new_length = new_length.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
        let old_length = old.end - old.start;
        let area =
            *self.areas.find(old.start).filter(|area| area.end >= old.end).ok_or(Errno::EFAULT)?;
        if new_length <= old_length {
            self.unmap(old.start + new_length..old.end)?;
            return Ok(old.start);
        }
        let more = old.end..old.start.checked_add(new_length).ok_or(Errno::ENOMEM)?;
        if more.end <= MAPPINGS_TOP && self.areas.is_free(&more) {
            self.add_area(more, area.access, false)?;
            return Ok(old.start);
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let new = self.areas.find_free(new_length, MAPPINGS_TOP).ok_or(Errno::ENOMEM)?;
        self.add_area(new.clone(), area.access, false)?;
        self.tables.relocate(old.start, new.start, old_length)?;
        self.unmap(old)?;
        Ok(new.start)
    }

    /// Deals with a page fault at a user address.
    pub(crate) fn fault(&mut self, address: u32, write: bool) -> Fault {
        let known = self.areas.find(address).is_some() || self.areas.grow_stack(address);
        let area = self.areas.find(address).copied().filter(|_| known);
        let needed = if write { Access::Write } else { Access::Read };
        let Some(area) = area.filter(|area| area.access >= needed) else {
            return Fault::Forbidden;
        };
        let page = address & !(PAGE - 1);
        if self.tables.is_mapped(Virt(page)) {
            return match write.then(|| self.tables.make_own(Virt(page))) {
                Some(Ok(true)) => Fault::Mended,
                Some(Ok(false)) | None => Fault::Forbidden,
                Some(Err(OutOfMemory)) => Fault::OutOfMemory,
            };
        }
        let pages = self.ahead.pages_at(page);
        match self.make_pages(page, pages, &area) {
            Ok(()) => Fault::Mended,
            Err(OutOfMemory) => Fault::OutOfMemory,
        }
    }

    /// Makes the page that is missing, and more behind it as far as the area, memory and what is there already let it.
    fn make_pages(&mut self, first: u32, pages: u32, area: &Area) -> Result<(), OutOfMemory> {
        let frame = Frame::allocate_zeroed().ok_or(OutOfMemory)?;
        if pages == 1 {
            return self.tables.map(Virt(first), frame, area.access);
        }
        self.tables.map_untold(Virt(first), frame, area.access)?;
        let end = area.end.min(first + pages * PAGE);
        for page in (first + PAGE..end).step_by(PAGE as usize) {
            if self.tables.is_mapped(Virt(page)) {
                break;
            }
            let Some(frame) = Frame::allocate_zeroed() else { break };
            self.tables.map_untold(Virt(page), frame, area.access)?;
        }
        Ok(())
    }
}

/// Whether a range consists of whole pages of user addresses.
fn check_pages(range: &Range<u32>) -> Result<(), Errno> {
    let good = range.start.is_multiple_of(PAGE)
        && range.end.is_multiple_of(PAGE)
        && range.start <= range.end
        && range.end <= HIGHEST;
    if good { Ok(()) } else { Err(Errno::EINVAL) }
}

fn no_room(_: TooManyAreas) -> Errno {
    Errno::ENOMEM
}
