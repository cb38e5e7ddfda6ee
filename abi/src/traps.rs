//! Interrupt and trap vectors.
//!
//! Vectors 0..=31 are the processor's traps (SDM volume 3, section "Exception and Interrupt
//! Vectors"), the next 32 are devices' interrupts, 128 is the system call. What a guest sets for
//! others is ignored.

/// Divide error.
pub const DIVIDE: u8 = 0;
/// Single step, breakpoint registers.
pub const DEBUG: u8 = 1;
/// Not a guest's; ignored.
pub const NMI: u8 = 2;
/// `int3`.
pub const BREAKPOINT: u8 = 3;
/// `into`.
pub const OVERFLOW: u8 = 4;
/// `bound`.
pub const BOUND: u8 = 5;
/// Invalid opcode.
pub const INVALID_OPCODE: u8 = 6;
/// FPU use while TS is set.
pub const NO_FPU: u8 = 7;
/// Double fault; ignored.
pub const DOUBLE_FAULT: u8 = 8;
/// Invalid TSS.
pub const INVALID_TSS: u8 = 10;
/// Segment not present.
pub const SEGMENT_NOT_PRESENT: u8 = 11;
/// Stack fault.
pub const STACK: u8 = 12;
/// General protection.
pub const PROTECTION: u8 = 13;
/// Page fault.
pub const PAGE_FAULT: u8 = 14;
/// Not a guest's; ignored.
pub const SPURIOUS: u8 = 15;
/// x87 error.
pub const X87: u8 = 16;
/// Alignment check.
pub const ALIGNMENT: u8 = 17;
/// SIMD floating-point error.
pub const SIMD: u8 = 19;

/// Vector of interrupt 0; interrupt n has vector `FIRST_IRQ + n`.
pub const FIRST_IRQ: u8 = 32;
/// How many interrupts there are.
pub const IRQS: u8 = 32;
/// Vector of a system call.
pub const SYSCALL: u8 = 0x80;

/// Whether a guest may choose this vector for its system calls.
#[must_use]
pub const fn is_for_system_calls(vector: u8) -> bool {
    matches!(vector, 0x40 | SYSCALL)
}

/// The interrupt of the clock.
pub const TIMER_IRQ: u8 = 0;

/// A gate's type nibble: interrupts are disabled on entry.
pub const GATE_INTERRUPT: u8 = 0xe;
/// A gate's type nibble: interrupts stay as they were.
pub const GATE_TRAP: u8 = 0xf;

/// Whether a trap pushes an error code.
#[must_use]
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// Whether what a guest sets for this vector counts.
#[must_use]
pub const fn is_settable(vector: u32) -> bool {
    match vector {
        2 | 8 | 15 | 31 => false,
        0..=63 | 128 => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settable_vectors() {
        assert!(is_settable(u32::from(PAGE_FAULT)));
        assert!(is_settable(u32::from(SYSCALL)));
        assert!(is_settable(u32::from(FIRST_IRQ) + u32::from(IRQS) - 1));
        assert!(!is_settable(64));
        assert!(!is_settable(129));
        assert!(!is_settable(u32::MAX));
        assert!(!is_settable(u32::from(crate::hypercall::VECTOR)));
    }
}
