//! Interrupts: enabling and disabling them, and the chip that masks them.
//!
//! `paravirt_iret` is a symbol for the kernel's assembly to jump to, with eip, cs, eflags (and esp, ss)
//! on the stack, in place of the instruction `iret`.

/// Whether interrupts are enabled: bit 9 ([`ENABLED`]), as in eflags. The other bits are 0 or meaningless.
pub fn save_flags() -> u32;
/// Sets interrupts as an earlier [`save_flags`] found them.
pub fn restore_flags(flags: u32);
/// Disables interrupts.
pub fn disable();
/// Enables interrupts.
pub fn enable();
/// Runs something with interrupts disabled.
pub fn without<R>(body: impl FnOnce() -> R) -> R;

/// The operations on interrupts that go through the table.
pub trait Interrupts {
    /// Sleeps until an interrupt was delivered, with interrupts enabled.
    fn safe_halt(&self);
    /// Masks interrupt line `irq`, 0..=31.
    fn mask_irq(&self, irq: u8);
    /// Unmasks interrupt line `irq`, 0..=31.
    fn unmask_irq(&self, irq: u8);
    /// Reads a register of the local APIC. A guest has none: 0.
    fn apic_read(&self, register: u32) -> u32;
    /// Writes a register of the local APIC. A guest has none: nothing happens.
    fn apic_write(&self, register: u32, value: u32);
}
