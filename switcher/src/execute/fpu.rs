//! Whose x87 registers are in the processor.
//!
//! Rust never touches x87 or MMX registers, so the guest's simply stay in the processor between
//! runs: saving them would cost more than the whole rest of a crossing. Only when another virtual CPU
//! runs on the same thread are they saved, in an area that the thread remembers; and when a
//! virtual CPU moves to another thread, which is why it must be
//! [parked](crate::Vcpu::park) first.

use std::arch::asm;
use std::cell::{RefCell, UnsafeCell};
use std::rc::Rc;

/// Bytes that `fnsave` stores in 64-bit mode: the environment and eight registers of ten bytes.
const BYTES: usize = 108;

/// The x87 state of one virtual CPU while it isn't in the processor.
#[derive(Clone, Copy)]
pub(crate) struct SavedFpu([u8; BYTES]);

impl SavedFpu {
    /// As after `fninit`: all exceptions masked, full precision, all registers empty (SDM volume 1,
    /// section "x87 FPU State Initialization").
    pub(crate) fn initial() -> Self {
        let mut saved = [0; BYTES];
        saved[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        saved[8..10].copy_from_slice(&0xffff_u16.to_le_bytes());
        Self(saved)
    }
}

/// A virtual CPU's claim to the x87 registers of its thread.
pub(crate) struct Fpu(Rc<UnsafeCell<SavedFpu>>);

thread_local! {
    /// Whose state is in the processor.
    static OWNER: RefCell<Option<Rc<UnsafeCell<SavedFpu>>>> = const { RefCell::new(None) };
}

impl Fpu {
    pub(crate) fn new(saved: SavedFpu) -> Self {
        Self(Rc::new(UnsafeCell::new(saved)))
    }

    /// Makes sure that this virtual CPU's state is in the processor.
    pub(crate) fn claim(&self) {
        OWNER.with_borrow_mut(|owner| {
            if owner.as_ref().is_some_and(|owner| Rc::ptr_eq(owner, &self.0)) {
                return;
            }
            evict(owner);
            // SAFETY: `self.0` is only touched here and in `evict`, on this thread.
            unsafe { restore(self.0.get()) };
            *owner = Some(self.0.clone());
        });
    }

    /// Takes the state out of the processor, and leaves a clean x87 behind.
    pub(crate) fn release(self) -> SavedFpu {
        self.leave();
        // SAFETY: as in `claim`.
        unsafe { *self.0.get() }
    }

    fn leave(&self) {
        OWNER.with_borrow_mut(|owner| {
            if owner.as_ref().is_some_and(|owner| Rc::ptr_eq(owner, &self.0)) {
                evict(owner);
            }
        });
    }
}

impl Drop for Fpu {
    fn drop(&mut self) {
        // A thread that is ending has forgotten its owner already; nothing is left to do then.
        let _ = OWNER.try_with(|_| self.leave());
    }
}

fn evict(owner: &mut Option<Rc<UnsafeCell<SavedFpu>>>) {
    if let Some(owner) = owner.take() {
        // SAFETY: as in `claim`. `fnsave` initialises the x87 state afterwards, which is what Rust
        // and C expect to find.
        unsafe { asm!("fnsave [{}]", in(reg) &raw mut (*owner.get()).0, options(nostack)) };
    }
}

/// # Safety
/// `saved` must be readable.
unsafe fn restore(saved: *const SavedFpu) {
    // SAFETY: the caller's promise; Rust doesn't use the registers that change, which the clobbers
    // tell the compiler too.
    unsafe {
        asm!(
            "frstor [{}]", in(reg) saved, options(nostack, readonly),
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control_word() -> u16 {
        let mut word = 0u16;
        // SAFETY: stores two bytes.
        unsafe { asm!("fnstcw [{}]", in(reg) &raw mut word, options(nostack)) };
        word
    }

    fn set_control_word(word: u16) {
        // SAFETY: loads two bytes; only masks and rounding change.
        unsafe { asm!("fldcw [{}]", in(reg) &raw const word, options(nostack)) };
    }

    #[test]
    fn each_virtual_cpu_finds_its_own_state() {
        let (a, b) = (Fpu::new(SavedFpu::initial()), Fpu::new(SavedFpu::initial()));
        a.claim();
        assert_eq!(control_word(), 0x37f);
        set_control_word(0x27f);
        b.claim();
        assert_eq!(control_word(), 0x37f);
        set_control_word(0xf7f);
        a.claim();
        a.claim();
        assert_eq!(control_word(), 0x27f);
        drop(b);
        assert_eq!(control_word(), 0x27f);
        let saved = a.release();
        assert_eq!(control_word(), 0x37f);
        Fpu::new(saved).claim();
        assert_eq!(control_word(), 0x37f, "the claim was dropped at once, and cleaned up");
    }
}
