//! How calls are made: at once, or written down for later.
//!
//! [`hcall`] makes a call at once. [`async_hcall`] writes it into a ring that the Host serves
//! before the next call, or whenever it gets to run. [`lazy_hcall`] picks between the two: in a
//! [lazy mode](crate::lazy) many calls are about to come, and can wait for each other.
//!
//! They are not public, because a call can do anything to memory. The operations that use them say
//! what they need.

use super::shared_page::LGUEST_DATA;
use crate::assembly;
use crate::interrupts;
use crate::lazy::LazyMode;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use lguest_abi::Hypercall;
use lguest_abi::lguest_data::{HCALL_DONE, HCALL_PENDING, HCALL_RING_SIZE};

static LAZY_MODE: AtomicU8 = AtomicU8::new(LazyMode::None as u8);

/// The ring's slot for the next call that waits. Only used with interrupts off.
static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);

/// Makes a call at once, and returns what the Host left in eax. Whatever waits in the ring goes
/// first.
#[inline]
pub(crate) fn hcall(call: Hypercall) -> u32 {
    hcall_words(words(call))
}

/// Puts a call into the ring; when that is full, makes it at once, which empties the ring.
#[inline]
pub(crate) fn async_hcall(call: Hypercall) {
    async_hcall_words(words(call));
}

/// Makes a call that has no answer: at once, or later when a lazy mode is on.
#[inline]
pub(crate) fn lazy_hcall(call: Hypercall) {
    match lazy_mode() {
        LazyMode::None => {
            hcall(call);
        }
        LazyMode::Mmu | LazyMode::Cpu => async_hcall(call),
    }
}

/// The words of a call: three arguments are all that the first generation has.
#[inline]
fn words(call: Hypercall) -> [u32; 4] {
    let [number, first, second, third, _] = call.encode();
    [number, first, second, third]
}

#[inline]
fn hcall_words(words: [u32; 4]) -> u32 {
    // SAFETY: each operation of this back end that could break memory safety is itself an unsafe
    // function, and there the condition is stated.
    unsafe { assembly::hypercall(words) }
}

// ANCHOR: async_hcall
fn async_hcall_words(words @ [eax, edx, ebx, ecx]: [u32; 4]) {
    // A handler may want the next slot too.
    interrupts::without(|| {
        let slot = NEXT_SLOT.load(Ordering::Relaxed);
        let data = &LGUEST_DATA.data;
        let (entry, status) = (&data.hcalls[slot], &data.hcall_status[slot]);
        if status.load(Ordering::Acquire) != HCALL_DONE {
            hcall_words(words);
            return;
        }
        entry.eax.store(eax, Ordering::Relaxed);
        entry.edx.store(edx, Ordering::Relaxed);
        entry.ebx.store(ebx, Ordering::Relaxed);
        entry.ecx.store(ecx, Ordering::Relaxed);
        // The arguments must be there when the Host sees the status.
        status.store(HCALL_PENDING, Ordering::Release);
        NEXT_SLOT.store((slot + 1) % HCALL_RING_SIZE, Ordering::Relaxed);
    });
}
// ANCHOR_END: async_hcall

/// Empties the ring.
pub(crate) fn flush() {
    hcall(Hypercall::FlushAsync);
}

/// The lazy mode that is on.
pub(crate) fn lazy_mode() -> LazyMode {
    match LAZY_MODE.load(Ordering::Relaxed) {
        mode if mode == LazyMode::Mmu as u8 => LazyMode::Mmu,
        mode if mode == LazyMode::Cpu as u8 => LazyMode::Cpu,
        _ => LazyMode::None,
    }
}

/// Turns a lazy mode on, or off by [`LazyMode::None`].
pub(crate) fn set_lazy_mode(mode: LazyMode) {
    LAZY_MODE.store(mode as u8, Ordering::Relaxed);
}
