//! The FPU's registers: 512 bytes that most switches needn't move.
//!
//! They stay those of the process that used them last. When another one runs, the processor is told to trap on
//! FPU use (TS); the first use brings trap 7, and only then the registers change hands.
//! The kernel itself is compiled without them.
//!
//! This is a room where unsafe code lives: saving and restoring.

use super::SCHEDULER;
use core::arch::asm;
use lguest_guest::machine;

/// The FPU's registers in memory, as `fxsave` leaves them.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub(crate) struct FpuState([u8; 512]);

impl FpuState {
    /// As a program finds them: empty, rounding to nearest, all exceptions masked (System V ABI for i386).
    pub(super) const fn initial() -> Self {
        const CONTROL_WORD: [u8; 2] = 0x037f_u16.to_le_bytes();
        const MXCSR: [u8; 2] = 0x1f80_u16.to_le_bytes();
        let mut bytes = [0; 512];
        [bytes[0], bytes[1]] = CONTROL_WORD;
        [bytes[24], bytes[25]] = MXCSR;
        Self(bytes)
    }

    /// Saves the registers. TS must be clear.
    pub(super) fn save(&mut self) {
        // SAFETY: `fxsave` writes 512 bytes, aligned to 16.
        unsafe { asm!("fxsave [{}]", in(reg) &raw mut self.0, options(nostack, preserves_flags)) };
    }

    /// Loads the registers. TS must be clear.
    pub(super) fn restore(&self) {
        // SAFETY: they are what `fxsave` saved or `initial` made, which the processor accepts; kernel code uses none.
        unsafe {
            asm!("fxrstor [{}]", in(reg) &raw const self.0, options(nostack, preserves_flags))
        };
    }
}

/// Trap 7: the current process uses the FPU, and it holds another one's registers.
pub(crate) fn first_use() {
    machine().clts();
    SCHEDULER.with(|scheduler| scheduler.pass_fpu());
}
