//! The three calls for DMA.

use super::hypercalls::hcall;
use crate::memory::phys_of;
use core::sync::atomic::Ordering;
use lguest_abi::dma::Dma;
use lguest_abi::{Hypercall, Phys};

/// Sends what `dma` describes to a key, and returns how many bytes were taken: 0 also when it
/// failed. `dma` must be in the linear map.
pub fn send_dma(key: Phys, dma: &Dma) -> u32 {
    // On failure nobody writes it.
    dma.used_len.store(0, Ordering::Relaxed);
    hcall(Hypercall::SendDma { key, dma: phys_of(dma) });
    dma.used_len.load(Ordering::Acquire)
}

/// Offers an array of buffers, in the linear map, to whoever sends to `key`; interrupt `irq`
/// (1..=31) tells when one was filled. False when the Host has no place for it, or no such
/// interrupt.
///
/// # Safety
/// From now on, until [`unbind_dma`], somebody else may write to the memory that these describe
/// whenever their `used_len` is 0: it must be memory of which Rust expects that.
///
/// # Panics
/// When `irq` is 0, which would mean the opposite, or there are 2²⁴ buffers or more.
pub unsafe fn bind_dma(key: Phys, array: &'static [Dma], irq: u8) -> bool {
    assert!(irq != 0, "interrupt 0 is the clock's");
    assert!(array.len() < 1 << 24, "too many buffers");
    let count = array.len() as u32;
    hcall(Hypercall::BindDma { key, array: phys_of(array), count, irq }) != 0
}

/// Withdraws an array from a key. False when it wasn't there.
pub fn unbind_dma(key: Phys, array: &'static [Dma]) -> bool {
    hcall(Hypercall::BindDma { key, array: phys_of(array), count: 0, irq: 0 }) != 0
}
