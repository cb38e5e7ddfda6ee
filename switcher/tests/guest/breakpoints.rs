//! Words for tests of breakpoints.

use super::{END, Guest};
use lguest_switcher::cpu::RF;
use lguest_switcher::{Breakpoint, Exit, GuestVirt};

/// How a program ends.
pub(crate) const ENDED: Exit = Exit::SoftwareInterrupt { vector: END, length: 2 };

/// Sets the first breakpoints.
pub(crate) fn set<const N: usize>(guest: &mut Guest, breakpoints: [Breakpoint; N]) {
    let mut slots = [None; 4];
    for (slot, breakpoint) in slots.iter_mut().zip(breakpoints) {
        *slot = Some(breakpoint);
    }
    guest.vcpu.set_breakpoints(slots);
}

pub(crate) fn execute(at: u32) -> Breakpoint {
    Breakpoint::execute(GuestVirt(at))
}

pub(crate) fn write(at: u32, len: u32) -> Breakpoint {
    Breakpoint::write(GuestVirt(at), len)
}

pub(crate) fn read_write(at: u32, len: u32) -> Breakpoint {
    Breakpoint::read_write(GuestVirt(at), len)
}

pub(crate) fn eip(guest: &Guest) -> u32 {
    guest.vcpu.cpu.eip()
}

pub(crate) fn has_rf(guest: &Guest) -> bool {
    guest.vcpu.cpu.eflags() & RF != 0
}

/// Runs into these breakpoints.
#[track_caller]
pub(crate) fn hit(guest: &mut Guest, bits: u32) -> u32 {
    assert_eq!(guest.run(), Exit::Debug(bits), "at {:#x}", eip(guest));
    eip(guest)
}

/// Lets the instruction at eip run although it has a breakpoint, as a handler does that returns with RF set.
pub(crate) fn pass(guest: &mut Guest) {
    guest.vcpu.cpu.set_eflags(guest.vcpu.cpu.eflags() | RF);
}
