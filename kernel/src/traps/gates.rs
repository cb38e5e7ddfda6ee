//! The tables that the processor looks things up in: segments, and where each vector leads.
//!
//! This is a room where unsafe code lives: loading them.

use super::entry;
use alloc::boxed::Box;
use core::arch::asm;
use lguest_abi::segments::{
    FLAT_KERNEL_CODE, FLAT_KERNEL_DATA, FLAT_USER_CODE, FLAT_USER_DATA, GDT_ENTRIES,
    KERNEL_CODE_ENTRY, KERNEL_CS, KERNEL_DATA_ENTRY, USER_CODE_ENTRY, USER_DATA_ENTRY, USER_DS,
};
use lguest_abi::traps::{BREAKPOINT, FIRST_IRQ, IRQS, OVERFLOW, SYSCALL, is_settable};
use lguest_guest::machine;
use lguest_guest::segments::{Descriptor, Gate};

/// The segments: all flat.
static SEGMENTS: [Descriptor; GDT_ENTRIES as usize] = {
    let mut table = [Descriptor(0); GDT_ENTRIES as usize];
    table[KERNEL_CODE_ENTRY as usize] = Descriptor(FLAT_KERNEL_CODE);
    table[KERNEL_DATA_ENTRY as usize] = Descriptor(FLAT_KERNEL_DATA);
    table[USER_CODE_ENTRY as usize] = Descriptor(FLAT_USER_CODE);
    table[USER_DATA_ENTRY as usize] = Descriptor(FLAT_USER_DATA);
    table
};

/// Loads both tables. From here on the kernel is told of what goes wrong.
pub(crate) fn init() {
    let last = FIRST_IRQ + IRQS - 1;
    let mut gates = Box::new([Gate::ABSENT; SYSCALL as usize + 1]);
    for vector in (0..=last).filter(|vector| is_settable(u32::from(*vector))) {
        // User code may raise two traps by instructions of their own.
        let level = if matches!(vector, BREAKPOINT | OVERFLOW) { 3 } else { 0 };
        gates[usize::from(vector)] = Gate::interrupt(KERNEL_CS, entry::of(vector), level);
    }
    // A system call leaves interrupts enabled.
    gates[usize::from(SYSCALL)] = Gate::trap(KERNEL_CS, entry::of(SYSCALL), 3);
    // SAFETY: the segments in use stay what they were; the gates lead to code made for them.
    unsafe {
        machine().load_gdt(&SEGMENTS);
        machine().load_idt(Box::leak(gates));
    }
    use_user_data_segment();
}

/// The kernel uses the segment that processes use, so that coming in needn't load another one.
fn use_user_data_segment() {
    // SAFETY: it is flat, and its level is no hindrance to a lower one.
    unsafe {
        asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(USER_DS), options(nostack, preserves_flags));
    }
}
