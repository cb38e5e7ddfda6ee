//! Faults that the kernel expects of itself.
//!
//! A few instructions use what a process chose: an address, a selector. Each is noted in the section
//! `kernel_fixups`, as its own address and that of where to go on when it faults.
//!
//! This is a room where unsafe code lives: a list that the linker makes.

use super::frame::TrapFrame;

/// An entry of the list.
#[repr(C)]
struct Fixup {
    at: u32,
    go_on: u32,
}

unsafe extern "C" {
    static __start_kernel_fixups: Fixup;
    static __stop_kernel_fixups: Fixup;
}

/// Sees to it that the kernel goes on where it said. False when it didn't expect this fault.
pub(crate) fn apply(frame: &mut TrapFrame) -> bool {
    if frame.is_from_user() {
        return false;
    }
    let start = &raw const __start_kernel_fixups;
    let bytes = (&raw const __stop_kernel_fixups).addr() - start.addr();
    // SAFETY: between the linker's two symbols are whole entries, which are never written.
    let list = unsafe { core::slice::from_raw_parts(start, bytes / size_of::<Fixup>()) };
    match list.iter().find(|fixup| fixup.at == frame.eip) {
        Some(fixup) => {
            frame.eip = fixup.go_on;
            true
        }
        None => false,
    }
}
