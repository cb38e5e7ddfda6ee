//! How the processor comes into the kernel: interrupts, system calls and mistakes.
//!
//! [`gates`] says where each vector leads; [`entry`] is the assembly there, which saves the registers as a
//! [`frame`]; [`dispatch`] looks at what happened. [`fixups`] are for faults that the kernel expects of itself.

pub(crate) mod dispatch;
mod entry;
pub(crate) mod fixups;
pub(crate) mod frame;
pub(crate) mod gates;

/// Where a new process's kernel stack goes on: leaving the kernel with the frame on it.
pub(crate) fn leave_address() -> lguest_abi::Virt {
    entry::leave()
}
