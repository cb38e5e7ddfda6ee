//! What to do about a trap.

use super::fixups;
use super::frame::TrapFrame;
use crate::console::println;
use crate::memory::page_faults;
use crate::processes::{self, Ending, fpu};
use crate::{clock, keyboard, system_calls};
use lguest_abi::traps::{self, FIRST_IRQ, IRQS, SYSCALL, TIMER_IRQ};
use lguest_guest::interrupts;
use lguest_guest::lguest::shared_page::LGUEST_DATA;

/// Called by [`entry`](super::entry) for each trap and interrupt, with the registers of whoever was
/// interrupted. Comes back with interrupts disabled.
pub(super) extern "C" fn trap(frame: &mut TrapFrame) {
    match frame.vector as u8 {
        SYSCALL => system_calls::handle(frame),
        traps::PAGE_FAULT => page_faults::handle(frame),
        traps::NO_FPU if frame.is_from_user() => fpu::first_use(),
        vector if (FIRST_IRQ..FIRST_IRQ + IRQS).contains(&vector) => interrupt(vector - FIRST_IRQ),
        _ => mistake(frame),
    }
    interrupts::disable();
    if frame.is_from_user() {
        processes::before_user();
    }
}

/// A device wants something.
fn interrupt(irq: u8) {
    if irq == TIMER_IRQ {
        clock::interrupt();
    } else if keyboard::irq() == Some(irq) {
        keyboard::interrupt();
    }
}

/// Somebody did what can't be done.
fn mistake(frame: &mut TrapFrame) {
    let name = name(frame.vector as u8);
    if frame.is_from_user() {
        println!("{}: killed by {name} (eip {:#010x})", processes::current_name(), frame.eip);
        processes::exit(ending(frame.vector as u8));
    }
    if fixups::apply(frame) {
        return;
    }
    // The process's own segments may be such that there is no way back to it.
    let data = &LGUEST_DATA.data;
    let leaving = data.noirq_start.load(core::sync::atomic::Ordering::Relaxed)
        ..data.noirq_end.load(core::sync::atomic::Ordering::Relaxed);
    if leaving.contains(&frame.eip) {
        println!("{}: killed, its segments are unusable", processes::current_name());
        processes::exit(Ending::FAULT);
    }
    panic!("{name} in the kernel at {:#010x} (error {:#x})", frame.eip, frame.error);
}

/// How a trap ends a process: by the signal that Linux has for it.
fn ending(vector: u8) -> Ending {
    match vector {
        traps::DIVIDE | traps::X87 | traps::SIMD => Ending::NO_RESULT,
        traps::DEBUG | traps::BREAKPOINT => Ending::TRAPPED,
        traps::INVALID_OPCODE => Ending::INVALID_INSTRUCTION,
        traps::ALIGNMENT => Ending::UNALIGNED,
        _ => Ending::FAULT,
    }
}

/// A trap in words.
fn name(vector: u8) -> &'static str {
    match vector {
        traps::DIVIDE => "a division error",
        traps::DEBUG => "a debug trap",
        traps::BREAKPOINT => "a breakpoint",
        traps::OVERFLOW => "an overflow trap",
        traps::BOUND => "a bound check",
        traps::INVALID_OPCODE => "an invalid instruction",
        traps::NO_FPU => "use of the FPU",
        traps::INVALID_TSS | traps::SEGMENT_NOT_PRESENT | traps::STACK => "a bad segment",
        traps::PROTECTION => "a forbidden instruction",
        traps::X87 | traps::SIMD => "a floating-point error",
        traps::ALIGNMENT => "an unaligned access",
        _ => "an unknown trap",
    }
}
