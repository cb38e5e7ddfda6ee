//! Data that the whole kernel shares, interrupt handlers included.
//!
//! There is one processor, and a process in the kernel gives it up only where it says so. So what
//! can come in between is an interrupt, and a lock is no more than disabling them for a
//! moment. What is left to check is that nobody locks what he has locked already.
//!
//! This is a room where unsafe code lives: the cell that hands out the reference.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use lguest_guest::interrupts;

/// A value that is used with interrupts disabled, by one at a time.
#[derive(Debug)]
pub(crate) struct InterruptLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: there is one processor, and `with` gives out one reference at a time.
unsafe impl<T: Send> Sync for InterruptLock<T> {}

impl<T> InterruptLock<T> {
    /// Around a value.
    pub(crate) const fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Uses the value. Interrupts are disabled meanwhile; `body` doesn't switch to another process.
    ///
    /// # Panics
    /// When it is being used further up the stack.
    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        interrupts::without(|| {
            assert!(!self.locked.swap(true, Ordering::Acquire), "locked twice");
            // SAFETY: `locked` says that nobody else has a reference, and until it is reset nobody gets one.
            let result = body(unsafe { &mut *self.value.get() });
            self.locked.store(false, Ordering::Release);
            result
        })
    }
}
