//! Physical memory, a page at a time.
//!
//! A [`Frame`] owns its page: whoever has it may use the bytes, and when it is dropped the page is
//! free again. A bit for each page says whether it is free. The lowest free one is given out, so that pages
//! made one after another tend to be neighbours: the Host maps neighbours in one go.
//!
//! This is a room where unsafe code lives: a page's bytes as a reference.

use super::shared_pages;
use crate::interrupt_lock::InterruptLock;
use core::mem;
use core::ops::Range;
use core::ptr;
use lguest_abi::Phys;
use lguest_abi::paging::PAGE_SIZE;
use lguest_guest::memory;

/// Bits in a word of the map.
const BITS: u32 = u32::BITS;

/// Words of the map: enough for the gigabyte that the linear map can show at most.
const WORDS: usize = (1 << 30) / (PAGE_SIZE * BITS) as usize;

/// Which frames are free.
struct Frames {
    /// A bit for each frame, set while it is free.
    map: [u32; WORDS],
    /// No word below this one has a bit set.
    lowest: usize,
    free: u32,
    total: u32,
}

static FRAMES: InterruptLock<Frames> =
    InterruptLock::new(Frames { map: [0; WORDS], lowest: 0, free: 0, total: 0 });

/// A page of memory of one's own.
#[derive(Debug)]
pub(crate) struct Frame {
    phys: Phys,
}

impl Frame {
    /// A free page, with anything in it. None when memory has run out, and nothing can be given back.
    pub(crate) fn allocate() -> Option<Self> {
        loop {
            if let Some(phys) = FRAMES.with(Frames::take) {
                return Some(Self { phys });
            }
            if !shared_pages::give_back_unused() {
                return None;
            }
        }
    }

    /// A free page, full of zeros. None when memory has run out.
    pub(crate) fn allocate_zeroed() -> Option<Self> {
        let mut frame = Self::allocate()?;
        frame.bytes().fill(0);
        Some(frame)
    }

    /// Where it is.
    pub(crate) fn phys(&self) -> Phys {
        self.phys
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8; PAGE_SIZE as usize] {
        // SAFETY: the frame is this one's alone, the linear map shows it, and any bytes are good bytes.
        unsafe { &mut *page(self.phys).cast() }
    }

    /// Gives up ownership, to a page-table entry for example.
    pub(crate) fn into_phys(self) -> Phys {
        let phys = self.phys;
        mem::forget(self);
        phys
    }

    /// Takes ownership back.
    ///
    /// # Safety
    /// It must have been given up by [`into_phys`](Self::into_phys), and nobody else may take or use it.
    pub(crate) unsafe fn from_phys(phys: Phys) -> Self {
        Self { phys }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        FRAMES.with(|frames| frames.give_back(self.phys));
    }
}

impl Frames {
    fn take(&mut self) -> Option<Phys> {
        let (at, word) =
            (self.lowest..).zip(&mut self.map[self.lowest..]).find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= !(1 << bit);
        self.lowest = at;
        self.free -= 1;
        Some(Phys((at as u32 * BITS + bit) * PAGE_SIZE))
    }

    fn give_back(&mut self, phys: Phys) {
        let frame = phys.0 / PAGE_SIZE;
        let at = (frame / BITS) as usize;
        let bit = 1 << (frame % BITS);
        assert!(self.map[at] & bit == 0, "frame {phys} was free already");
        self.map[at] |= bit;
        self.lowest = self.lowest.min(at);
        self.free += 1;
    }
}

/// A frame in the linear map.
fn page(phys: Phys) -> *mut u8 {
    ptr::with_exposed_provenance_mut(memory::virt(phys).0 as usize)
}

/// Adds free memory. Parts of pages at its ends are left out.
///
/// # Safety
/// It must be memory in the linear map, and nothing else may ever use it.
pub(crate) unsafe fn add(range: Range<Phys>) {
    let start = range.start.0.next_multiple_of(PAGE_SIZE);
    let end = range.end.0 & !(PAGE_SIZE - 1);
    FRAMES.with(|frames| {
        for phys in (start..end).step_by(PAGE_SIZE as usize) {
            frames.give_back(Phys(phys));
            frames.total += 1;
        }
    });
}

/// How many frames there are, and how many of them are free.
pub(crate) fn usage() -> (u32, u32) {
    FRAMES.with(|frames| (frames.total, frames.free))
}
