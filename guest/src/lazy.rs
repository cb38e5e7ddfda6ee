//! Lazy modes: calls that may wait for each other.
//!
//! A call into the Host costs; many calls in a row can be made as one. A kernel that is
//! about to set many page-table entries, or to switch from one process to another, says so first.
//! Until it says that it is done, calls that can wait are written into a ring, and the Host carries
//! them out together.

use crate::lguest::hypercalls;
use core::marker::PhantomData;

/// What is being done lazily.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LazyMode {
    /// Nothing: each call is made at once.
    None = 0,
    /// Many changes to page tables.
    Mmu = 1,
    /// A switch from one process to another.
    Cpu = 2,
}

/// A lazy mode lasts as long as this lives. It is left, and what waits is carried out, when it is
/// dropped.
///
/// There is one at a time, and it doesn't outlive a switch of stacks. Keep interrupts off, or see
/// to it that no handler enters a lazy mode; one that needs its calls done at once says [`flush`].
#[derive(Debug)]
pub struct Lazy {
    // Not Send: it is the running processor's.
    here: PhantomData<*mut ()>,
}

impl Lazy {
    /// Enters a lazy mode.
    ///
    /// # Panics
    /// When one is already on, or `mode` is [`LazyMode::None`].
    #[must_use]
    pub fn enter(mode: LazyMode) -> Self {
        assert!(mode != LazyMode::None, "no lazy mode to enter");
        assert!(hypercalls::lazy_mode() == LazyMode::None, "lazy modes don't nest");
        hypercalls::set_lazy_mode(mode);
        Self { here: PhantomData }
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        hypercalls::set_lazy_mode(LazyMode::None);
        flush();
    }
}

/// The lazy mode that is on.
#[must_use]
pub fn mode() -> LazyMode {
    hypercalls::lazy_mode()
}

/// Has what waits carried out at once. A lazy mode that is on stays on.
pub fn flush() {
    hypercalls::flush();
}
