//! Interrupts of a guest: 32 lines, masked by a word of memory.

use super::Lguest;
use super::hypercalls::hcall;
use super::shared_page::LGUEST_DATA;
use crate::interrupts::Interrupts;
use core::sync::atomic::Ordering;
use lguest_abi::Hypercall;
use lguest_abi::traps::IRQS;

impl Interrupts for Lguest {
    fn safe_halt(&self) {
        hcall(Hypercall::Halt);
    }

    fn mask_irq(&self, irq: u8) {
        LGUEST_DATA.data.blocked_interrupts.fetch_or(line(irq), Ordering::Relaxed);
    }

    fn unmask_irq(&self, irq: u8) {
        LGUEST_DATA.data.blocked_interrupts.fetch_and(!line(irq), Ordering::Relaxed);
    }

    fn apic_read(&self, _register: u32) -> u32 {
        0
    }

    fn apic_write(&self, _register: u32, _value: u32) {}
}

/// The bit of an interrupt line.
fn line(irq: u8) -> u32 {
    assert!(irq < IRQS, "no interrupt line {irq}");
    1 << irq
}
