//! Which pages a test case sees: between them lie absent ones, so that faults are compared too.

use crate::state::DATA_SELECTOR;
use std::fmt;

/// Bytes in a page.
pub const PAGE: u32 = 4096;

/// A run of pages that are there.
///
/// All of them can be executed, as on any processor without the NX bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Address of the first byte: page-aligned, not 0.
    pub start: u32,
    /// Pages, at least 1. The region may end at 4 GiB but not beyond.
    pub pages: u32,
    /// Whether the pages can be written.
    pub writable: bool,
}

impl Region {
    /// Bytes in the region.
    #[must_use]
    pub const fn len(&self) -> usize {
        (self.pages * PAGE) as usize
    }

    /// Never: a region has pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub const fn contains(&self, address: u32) -> bool {
        address >= self.start && address - self.start < self.pages * PAGE
    }
}

/// All the memory there is, and the segments of the local descriptor table.
#[derive(Clone, Debug)]
pub struct Layout {
    regions: Vec<Region>,
    segments: Vec<u64>,
}

/// What is wrong with a list of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}: unaligned, empty, at address 0, beyond 4 GiB, or overlapping another region")]
pub struct BadRegion(pub Region);

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages at {:#010x}", self.pages, self.start)
    }
}

impl Layout {
    /// A layout of these regions.
    ///
    /// # Errors
    /// The first region that can't be.
    pub fn new(regions: &[Region]) -> Result<Self, BadRegion> {
        for (index, region) in regions.iter().enumerate() {
            let end = |r: &Region| u64::from(r.start) + u64::from(r.pages) * u64::from(PAGE);
            let overlaps = |other: &Region| {
                u64::from(region.start) < end(other) && u64::from(other.start) < end(region)
            };
            let shaped = region.start != 0 && region.start % PAGE == 0 && region.pages != 0;
            if !shaped || end(region) > 1 << 32 || regions[..index].iter().any(overlaps) {
                return Err(BadRegion(*region));
            }
        }
        Ok(Self { regions: regions.to_vec(), segments: Vec::new() })
    }

    /// The same memory, with these raw descriptors as the local descriptor table. Linux makes
    /// them level 3 and accessed, whatever they say.
    #[must_use]
    pub fn with_segments(mut self, descriptors: &[u64]) -> Self {
        self.segments = descriptors.to_vec();
        self
    }

    /// The local descriptor table.
    #[must_use]
    pub fn segments(&self) -> &[u64] {
        &self.segments
    }

    /// The selector of entry `index` of the local descriptor table.
    #[must_use]
    pub const fn selector(index: usize) -> u16 {
        (index as u16) << 3 | 7
    }

    /// Whether a data segment register can hold `selector`: null, Linux's flat data segment, or a
    /// present data segment of the local descriptor table.
    #[must_use]
    pub fn is_data_selector(&self, selector: u16) -> bool {
        let local =
            |index: usize| self.segments.get(index).is_some_and(|raw| raw >> 40 & 0x98 == 0x90);
        matches!(selector, 0..=3 | DATA_SELECTOR)
            || selector & 7 == 7 && local(usize::from(selector >> 3))
    }

    /// The regions, in the order their bytes have in [`Case::memory`](crate::Case::memory).
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes in all regions together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.iter().map(Region::len).sum()
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The region that `address` lies in, and where the byte is in [`Case::memory`](crate::Case::memory).
    #[must_use]
    pub fn locate(&self, address: u32) -> Option<(Region, usize)> {
        let mut offset = 0;
        for region in &self.regions {
            if region.contains(address) {
                return Some((*region, offset + (address - region.start) as usize));
            }
            offset += region.len();
        }
        None
    }

    /// The address of byte `offset` of [`Case::memory`](crate::Case::memory).
    #[must_use]
    pub fn address_of(&self, mut offset: usize) -> Option<u32> {
        for region in &self.regions {
            if offset < region.len() {
                return Some(region.start + offset as u32);
            }
            offset -= region.len();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_may_touch_4_gib_but_not_cross_it() {
        let region = Region { start: 0xffff_f000, pages: 1, writable: true };
        assert!(Layout::new(&[region]).is_ok());
        assert!(Layout::new(&[Region { pages: 2, ..region }]).is_err());
        assert!(Layout::new(&[region, region]).is_err());
    }

    #[test]
    fn bytes_are_found_both_ways() {
        let first = Region { start: 0x1000, pages: 1, writable: true };
        let second = Region { start: 0xffff_f000, pages: 1, writable: false };
        let layout = Layout::new(&[first, second]).expect("valid");
        assert_eq!(layout.locate(0xffff_ffff), Some((second, 0x1fff)));
        assert_eq!(layout.address_of(0x1fff), Some(0xffff_ffff));
        assert_eq!(layout.locate(0x2000), None);
        assert_eq!(layout.address_of(0x2000), None);
    }
}
