//! Physical memory, a page at a time.
//!
//! A [`Frame`] owns its page: whoever has it may use the bytes, and when it is dropped the page is
//! free again. Memory that was never used is given out from the bottom up, so that a big request gets
//! neighbours, and boot needn't touch it; what came back is kept in a list threaded through the free
//! pages themselves.
//!
//! This is a room where unsafe code lives: a page's bytes as a reference.

use crate::interrupt_lock::InterruptLock;
use core::mem;
use core::ops::Range;
use core::ptr;
use lguest_abi::Phys;
use lguest_abi::paging::PAGE_SIZE;
use lguest_guest::memory;

/// How many separate pieces of memory can be added.
const MAX_PIECES: usize = 16;

/// Which frames are free.
struct Frames {
    /// Memory that was never used.
    fresh: [Range<u32>; MAX_PIECES],
    /// The first frame of the list of those that came back; 0 when there is none.
    returned: u32,
    free: u32,
    total: u32,
}

static FRAMES: InterruptLock<Frames> = InterruptLock::new(Frames {
    fresh: [const { 0..0 }; MAX_PIECES],
    returned: 0,
    free: 0,
    total: 0,
});

/// A page of memory of one's own.
#[derive(Debug)]
pub(crate) struct Frame {
    phys: Phys,
}

impl Frame {
    /// A free page, with anything in it. None when memory has run out.
    pub(crate) fn allocate() -> Option<Self> {
        FRAMES.with(Frames::take).map(|phys| Self { phys })
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
        FRAMES.with(|frames| frames.give_back(self.phys.0));
    }
}

impl Frames {
    fn take(&mut self) -> Option<Phys> {
        let phys = if self.returned != 0 {
            let phys = self.returned;
            // SAFETY: it is in the list, so it is ours, and its first word is the list's next frame.
            self.returned = unsafe { page(Phys(phys)).cast::<u32>().read() };
            phys
        } else {
            let piece = self.fresh.iter_mut().find(|piece| piece.start < piece.end)?;
            let phys = piece.start;
            piece.start += PAGE_SIZE;
            phys
        };
        self.free -= 1;
        Some(Phys(phys))
    }

    fn give_back(&mut self, phys: u32) {
        // SAFETY: whoever gave it back doesn't use it any more: it is ours.
        unsafe { page(Phys(phys)).cast::<u32>().write(self.returned) };
        self.returned = phys;
        self.free += 1;
    }
}

/// A frame in the linear map.
fn page(phys: Phys) -> *mut u8 {
    ptr::with_exposed_provenance_mut(memory::virt(phys).0 as usize)
}

/// Adds free memory. Parts of pages at its ends are left out; so are pieces beyond a small number.
///
/// # Safety
/// It must be memory in the linear map, and nothing else may ever use it. Frame 0 must not be in it.
pub(crate) unsafe fn add(range: Range<Phys>) {
    let start = range.start.0.next_multiple_of(PAGE_SIZE);
    let end = range.end.0 & !(PAGE_SIZE - 1);
    FRAMES.with(|frames| {
        if let Some(piece) = frames.fresh.iter_mut().find(|piece| piece.start >= piece.end)
            && start < end
        {
            *piece = start..end;
            frames.free += (end - start) / PAGE_SIZE;
            frames.total += (end - start) / PAGE_SIZE;
        }
    });
}

/// How many frames there are, and how many of them are free.
pub(crate) fn usage() -> (u32, u32) {
    FRAMES.with(|frames| (frames.total, frames.free))
}
