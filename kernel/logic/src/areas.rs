//! What a process's addresses are meant to be: a list of areas, told apart from its page tables.
//!
//! Page tables say what is there; areas say what will be there when it's touched. A page fault asks
//! here whether the access is allowed, and a stack grows here. Addresses are a multiple of the
//! page size wherever a page is meant.

use alloc::vec::Vec;
use core::ops::Range;

/// Bytes in a page.
pub const PAGE: u32 = 4096;

/// The lowest address a process can use: null pointers with an offset must fault.
pub const LOWEST: u32 = 0x1_0000;

/// Where a process's addresses end and the kernel's begin.
pub const HIGHEST: u32 = 0xc000_0000;

/// How far a stack can grow, in bytes.
pub const STACK_LIMIT: u32 = 8 << 20;

/// How many areas a process can have.
pub const MAX_AREAS: usize = 1024;

/// How an area may be used. What can be read can be executed, as on a 386.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// Not at all.
    None,
    /// Read.
    Read,
    /// Read and written.
    Write,
}

/// A range of addresses that are used alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// The first page's address.
    pub start: u32,
    /// The address behind the last page.
    pub end: u32,
    /// How it may be used.
    pub access: Access,
    /// Whether it grows downward when what is below it is touched.
    pub is_stack: bool,
}

impl Area {
    /// Its addresses.
    #[must_use]
    pub const fn range(&self) -> Range<u32> {
        self.start..self.end
    }
}

/// There are [`MAX_AREAS`] areas already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyAreas;

/// A process's areas, in order, without overlaps.
#[derive(Debug, Default)]
pub struct Areas {
    list: Vec<Area>,
}

impl Areas {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Area> {
        self.list.iter()
    }

    /// The area an address is in.
    #[must_use]
    pub fn find(&self, address: u32) -> Option<&Area> {
        self.list.iter().find(|area| area.range().contains(&address))
    }

    /// Whether nothing is in a range.
    #[must_use]
    pub fn is_free(&self, range: &Range<u32>) -> bool {
        self.list.iter().all(|area| area.end <= range.start || range.end <= area.start)
    }

    /// The highest free range of `length` bytes that ends at or below `below`, if there is one.
    #[must_use]
    pub fn find_free(&self, length: u32, below: u32) -> Option<Range<u32>> {
        let mut end = below;
        for area in self.list.iter().rev() {
            if end.saturating_sub(area.end) >= length {
                break;
            }
            end = end.min(area.start);
        }
        let start = end.checked_sub(length).filter(|start| *start >= LOWEST)?;
        Some(start..end)
    }

    /// Adds an area, in place of whatever was there.
    ///
    /// # Errors
    /// When there are too many; then nothing has changed.
    pub fn add(&mut self, area: Area) -> Result<(), TooManyAreas> {
        self.remove(area.range())?;
        // A neighbour of the same kind just becomes longer: heaps grow by many small steps.
        if let Some(before) = self.list.iter_mut().find(|before| {
            before.end == area.start
                && before.access == area.access
                && !before.is_stack
                && !area.is_stack
        }) {
            before.end = area.end;
            return Ok(());
        }
        // So does the one above: memory is given out downward.
        if let Some(after) = self.list.iter_mut().find(|after| {
            after.start == area.end
                && after.access == area.access
                && !after.is_stack
                && !area.is_stack
        }) {
            after.start = area.start;
            return Ok(());
        }
        self.check_room()?;
        let at = self.list.partition_point(|other| other.start < area.start);
        self.list.insert(at, area);
        Ok(())
    }

    /// Removes a range; areas that reach into it are cut.
    ///
    /// # Errors
    /// When cutting one in two would make too many; then nothing has changed.
    pub fn remove(&mut self, range: Range<u32>) -> Result<(), TooManyAreas> {
        self.split_at(range.start)?;
        self.split_at(range.end)?;
        self.list.retain(|area| area.end <= range.start || range.end <= area.start);
        Ok(())
    }

    /// Changes how a range may be used. False when part of it isn't in an area; the rest is changed all the same.
    ///
    /// # Errors
    /// When cutting areas makes too many; then nothing has changed.
    pub fn protect(&mut self, range: Range<u32>, access: Access) -> Result<bool, TooManyAreas> {
        self.split_at(range.start)?;
        self.split_at(range.end)?;
        let mut covered = range.start;
        for area in &mut self.list {
            if area.start >= range.start && area.end <= range.end {
                area.access = access;
                if area.start == covered {
                    covered = area.end;
                }
            }
        }
        Ok(covered == range.end)
    }

    /// Lets a stack grow to an address below it, if there is one above within reach, and nothing between.
    pub fn grow_stack(&mut self, address: u32) -> bool {
        let page = address & !(PAGE - 1);
        let at = self.list.partition_point(|area| area.end <= page);
        let below = at
            .checked_sub(1)
            .and_then(|below| self.list.get(below))
            .map_or(LOWEST, |area| area.end);
        match self.list.get_mut(at) {
            // A page is left free between a stack and what is below it.
            Some(area) if area.is_stack && page > below && area.end - page <= STACK_LIMIT => {
                area.start = area.start.min(page);
                true
            }
            _ => false,
        }
    }

    /// How many pages all areas have together.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.list.iter().map(|area| (area.end - area.start) / PAGE).sum()
    }

    /// Sees to it that no area goes across an address.
    fn split_at(&mut self, address: u32) -> Result<(), TooManyAreas> {
        let across = |area: &Area| area.start < address && address < area.end;
        let Some(at) = self.list.iter().position(across) else {
            return Ok(());
        };
        self.check_room()?;
        let upper = Area { start: address, ..self.list[at] };
        self.list[at].end = address;
        // A stack's lower part isn't next to the stack any more: it stays as it is.
        self.list[at].is_stack = false;
        self.list.insert(at + 1, upper);
        Ok(())
    }

    fn check_room(&self) -> Result<(), TooManyAreas> {
        if self.list.len() < MAX_AREAS { Ok(()) } else { Err(TooManyAreas) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u32, end: u32, access: Access) -> Area {
        Area { start: start * PAGE, end: end * PAGE, access, is_stack: false }
    }

    fn list(areas: &Areas) -> Vec<(u32, u32, Access)> {
        areas.iter().map(|a| (a.start / PAGE, a.end / PAGE, a.access)).collect()
    }

    #[test]
    fn mappings_one_below_the_other_are_one_area() {
        let mut areas = Areas::new();
        for page in (100..100 + 2 * MAX_AREAS as u32).rev() {
            areas.add(area(page, page + 1, Access::Write)).unwrap();
        }
        assert_eq!(list(&areas), [(100, 100 + 2 * MAX_AREAS as u32, Access::Write)]);
    }

    #[test]
    fn a_new_area_takes_the_place_of_old_ones() {
        let mut areas = Areas::new();
        areas.add(area(100, 200, Access::Write)).unwrap();
        areas.add(area(120, 130, Access::Read)).unwrap();
        let expected =
            [(100, 120, Access::Write), (120, 130, Access::Read), (130, 200, Access::Write)];
        assert_eq!(list(&areas), expected);
        areas.remove(110 * PAGE..190 * PAGE).unwrap();
        assert_eq!(list(&areas), [(100, 110, Access::Write), (190, 200, Access::Write)]);
        assert_eq!(areas.pages(), 20);
    }

    #[test]
    fn a_heap_that_grows_stays_one_area() {
        let mut areas = Areas::new();
        for step in 0..10 {
            areas.add(area(100 + step, 101 + step, Access::Write)).unwrap();
        }
        assert_eq!(list(&areas), [(100, 110, Access::Write)]);
    }

    #[test]
    fn protecting_cuts_and_tells_of_holes() {
        let mut areas = Areas::new();
        areas.add(area(100, 110, Access::Write)).unwrap();
        assert_eq!(areas.protect(105 * PAGE..107 * PAGE, Access::Read), Ok(true));
        let expected =
            [(100, 105, Access::Write), (105, 107, Access::Read), (107, 110, Access::Write)];
        assert_eq!(list(&areas), expected);
        assert_eq!(areas.protect(109 * PAGE..112 * PAGE, Access::None), Ok(false));
    }

    #[test]
    fn free_ranges_are_found_from_the_top() {
        let mut areas = Areas::new();
        areas.add(area(100, 110, Access::Read)).unwrap();
        areas.add(area(115, 120, Access::Read)).unwrap();
        assert_eq!(areas.find_free(PAGE, 120 * PAGE), Some(114 * PAGE..115 * PAGE));
        assert_eq!(areas.find_free(6 * PAGE, 120 * PAGE), Some(94 * PAGE..100 * PAGE));
        assert_eq!(areas.find_free(PAGE, 130 * PAGE), Some(129 * PAGE..130 * PAGE));
        assert_eq!(areas.find_free(90 * PAGE, 120 * PAGE), None);
        assert!(areas.is_free(&(110 * PAGE..115 * PAGE)));
        assert!(!areas.is_free(&(109 * PAGE..111 * PAGE)));
    }

    #[test]
    fn a_stack_grows_within_reach() {
        let mut areas = Areas::new();
        let top = 0xb000_0000;
        areas
            .add(Area { start: top - PAGE, end: top, access: Access::Write, is_stack: true })
            .unwrap();
        assert!(areas.grow_stack(top - 10 * PAGE + 5));
        assert_eq!(areas.find(top - 10 * PAGE).unwrap().end, top);
        assert!(areas.grow_stack(top - STACK_LIMIT));
        assert!(!areas.grow_stack(top - STACK_LIMIT - 1));
        assert!(!areas.grow_stack(top + PAGE));
    }

    #[test]
    fn a_stack_keeps_off_its_neighbour() {
        let mut areas = Areas::new();
        areas.add(area(100, 110, Access::Write)).unwrap();
        areas
            .add(Area { start: 120 * PAGE, end: 121 * PAGE, access: Access::Write, is_stack: true })
            .unwrap();
        assert!(!areas.grow_stack(110 * PAGE));
        assert!(areas.grow_stack(111 * PAGE));
    }

    #[test]
    fn there_is_an_end_to_areas() {
        let mut areas = Areas::new();
        areas.add(area(100, 10_000, Access::Write)).unwrap();
        let made = (0..).take_while(|n| {
            areas.protect((200 + 2 * n) * PAGE..(201 + 2 * n) * PAGE, Access::Read).is_ok()
        });
        assert!(made.count() >= MAX_AREAS / 2 - 1);
        assert!(areas.iter().count() <= MAX_AREAS);
    }
}
