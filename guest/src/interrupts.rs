//! Interrupts: enabling and disabling them, and the chip that masks them.
//!
//! Kernels do nothing as often as this, so it doesn't go through the table of operations. Each
//! place that saves, restores, sets or clears the interrupt flag is a *call site*: a call through
//! [`FlagCalls`], with room around it, and a note of where it is in the section `lguest_sites`. At
//! boot [`patching`](crate::patching) replaces each by the back end's own code: for lguest, one
//! `mov`.
//!
//! For the kernel's assembly there is the symbol `paravirt_iret`, to jump to in place of saying
//! `iret`, with eip, cs, eflags (and for user mode esp and ss) on the stack.
//!
//! This is a room where unsafe code lives: the call sites.

use crate::assembly::{FLAG_CALLS, FlagCalls};
use crate::patching::Operation;
use core::arch::asm;
use core::mem::offset_of;

/// The bit of the flags that says interrupts are enabled.
pub const ENABLED: u32 = lguest_abi::lguest_data::IRQ_ENABLED;

// ANCHOR: call_site
/// A call through one pointer of `FLAG_CALLS`, padded, and noted in `lguest_sites`.
///
/// The notes are [`Site`](crate::patching::Site)s. The section is kept by the linker, and so is
/// each function that it notes.
macro_rules! call_site {
    ($field:ident, $operation:expr, padding: $padding:literal, $($operands:tt)*) => {
        asm!(
            "661:",
            "call dword ptr [{calls} + {field}]", // six bytes
            $padding,
            "662:",
            ".pushsection lguest_sites, \"aR\", @progbits",
            ".balign 4",
            ".long 661b",
            ".byte {operation}, 662b - 661b, 0, 0",
            ".popsection",
            calls = sym FLAG_CALLS,
            field = const offset_of!(FlagCalls, $field),
            operation = const $operation as u8,
            $($operands)*
        )
    };
}
// ANCHOR_END: call_site

/// Whether interrupts are enabled: [`ENABLED`] is set or not. The other bits mean nothing.
#[must_use]
#[inline]
pub fn save_flags() -> u32 {
    let flags;
    // SAFETY: the code called changes eax only.
    unsafe {
        call_site!(
            save_flags, Operation::SaveFlags, padding: "",
            out("eax") flags, options(preserves_flags)
        );
    }
    flags
}

/// Sets interrupts as an earlier [`save_flags`] found them.
#[inline]
pub fn restore_flags(flags: u32) {
    // SAFETY: the code called changes no register. A handler that runs now keeps them too.
    unsafe {
        call_site!(restore_flags, Operation::RestoreFlags, padding: "", in("eax") flags);
    }
}

/// Disables interrupts.
#[inline]
pub fn disable() {
    // SAFETY: the code called changes no register.
    unsafe {
        call_site!(
            irq_disable, Operation::Disable, padding: ".byte 0x0f, 0x1f, 0x40, 0x00",
            options(preserves_flags)
        );
    }
}

/// Enables interrupts. One that waits is delivered right away.
#[inline]
pub fn enable() {
    // SAFETY: the code called changes no register. A handler that runs now keeps them too.
    unsafe {
        call_site!(
            irq_enable, Operation::Enable, padding: ".byte 0x0f, 0x1f, 0x40, 0x00",
            options(preserves_flags)
        );
    }
}

/// Runs `body` with interrupts disabled, and leaves them as they were.
#[inline]
pub fn without<R>(body: impl FnOnce() -> R) -> R {
    let flags = save_flags();
    disable();
    let result = body();
    restore_flags(flags);
    result
}

/// The operations on interrupts that go through the table.
pub trait Interrupts {
    /// Enables interrupts and sleeps until one is delivered. None that comes in between is missed.
    fn safe_halt(&self);

    /// Masks interrupt line `irq`, 0..=31: it waits.
    ///
    /// # Panics
    /// When there is no such line.
    fn mask_irq(&self, irq: u8);

    /// Unmasks interrupt line `irq`, 0..=31.
    ///
    /// # Panics
    /// When there is no such line.
    fn unmask_irq(&self, irq: u8);

    /// Reads a register of the local APIC. A guest has none: 0.
    fn apic_read(&self, register: u32) -> u32;

    /// Writes a register of the local APIC. A guest has none: nothing happens.
    fn apic_write(&self, register: u32, value: u32);
}
