//! DMA: sending bytes out of the guest, and offering memory for bytes that come in.
//!
//! See [`lguest_abi::dma`] for how buffers are described. A *key* names who is meant: a device's
//! driver knows its device's. [`send`] and [`Inbox`] are what a simple driver needs; drivers that
//! do their own book-keeping of buffers use [`send_dma`], [`bind_dma`] and [`unbind_dma`].

use crate::memory::phys_of;
use core::sync::atomic::{AtomicU8, Ordering};
use lguest_abi::Phys;
use lguest_abi::dma::{Dma, SECTIONS, Section};
use lguest_abi::paging::PAGE_SIZE;

pub use crate::lguest::dma::{bind_dma, send_dma, unbind_dma};

/// The pieces of some bytes of the linear map, cut where pages end.
pub fn sections<T>(bytes: &[T]) -> impl Iterator<Item = Section> {
    const { assert!(size_of::<T>() == 1) };
    let mut at = phys_of(bytes).0;
    let end = at.saturating_add(bytes.len() as u32);
    core::iter::from_fn(move || {
        let len = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
        let section = Section { addr: Phys(at), len: len as u16 };
        at += len;
        (len != 0).then_some(section)
    })
}

/// Sends bytes of the linear map to a key, sixteen pages at a time.
///
/// Returns how many were taken: fewer than there are when the other side had enough, or nobody is
/// there.
pub fn send(key: Phys, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let dma = Dma::new();
        dma.set_sections(sections(rest));
        match send_dma(key, &dma) {
            0 => break,
            used => taken += used as usize,
        }
    }
    taken.min(bytes.len())
}

/// A buffer of `BYTES` bytes that somebody else fills: a static, bound to a key.
///
/// Its bytes are the other side's while it is free, and the guest's from the interrupt on until it
/// is [`clear`](Self::clear)ed.
#[derive(Debug)]
pub struct Inbox<const BYTES: usize> {
    dma: Dma,
    bytes: [AtomicU8; BYTES],
}

impl<const BYTES: usize> Inbox<BYTES> {
    /// An empty one, not bound.
    #[must_use]
    pub const fn new() -> Self {
        assert!(BYTES < (SECTIONS - 1) * PAGE_SIZE as usize);
        Self { dma: Dma::new(), bytes: [const { AtomicU8::new(0) }; BYTES] }
    }

    /// Offers it to whoever sends to `key`; interrupt `irq` tells when it was filled. False when
    /// the Host has no place for it.
    pub fn bind(&'static self, key: Phys, irq: u8) -> bool {
        self.dma.set_sections(sections(&self.bytes));
        // SAFETY: the sections are this buffer's bytes, which live for ever and are atomics.
        unsafe { bind_dma(key, core::slice::from_ref(&self.dma), irq) }
    }

    /// How many bytes are in it; 0 while it is free.
    #[must_use]
    pub fn filled(&self) -> usize {
        (self.dma.used_len.load(Ordering::Acquire) as usize).min(BYTES)
    }

    /// Byte `index` of what came, if there are so many.
    #[must_use]
    pub fn byte(&self, index: usize) -> Option<u8> {
        self.bytes.get(..self.filled())?.get(index).map(|byte| byte.load(Ordering::Relaxed))
    }

    /// Gives it back to be filled again.
    pub fn clear(&self) {
        self.dma.used_len.store(0, Ordering::Release);
    }
}

impl<const BYTES: usize> Default for Inbox<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}
