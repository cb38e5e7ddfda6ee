//! Where the Host jumps to.
//!
//! It finds the place by the thirteen bytes in front of it. There is paging, thanks to the
//! launcher, there are flat segments, and esi holds the physical address of the boot parameters;
//! nothing else is to be relied on, not even a stack.

use crate::boot::{self, BootParams};
use crate::{lguest, patching};
use core::arch::global_asm;

unsafe extern "C" {
    /// The kernel's first function, entered with interrupts off, on the boot stack.
    safe fn kernel_main(params: &'static BootParams) -> !;
}

// ANCHOR: guest_entry
global_asm!(
    ".pushsection .lguest.entry, \"axR\", @progbits",
    ".ascii \"GenuineLguest\"",
    ".globl lguest_entry",
    "lguest_entry:",
    "    mov esp, offset kernel_boot_stack_top",
    "    xor ebp, ebp",                       // the end of the chain of frames
    "    add esi, offset kernel_page_offset", // where the linear map shows the boot parameters
    "    sub esp, 12",                        // the stack is a multiple of 16 at a call
    "    push esi",
    "    call {start}",
    "    ud2", // it doesn't return
    ".popsection",
    start = sym start,
);
// ANCHOR_END: guest_entry

// ANCHOR: guest_start
/// The first Rust code to run.
///
/// # Safety
/// `params` must be the launcher's boot parameters, in the linear map. It is called once.
unsafe extern "C" fn start(params: *const u8) -> ! {
    // SAFETY: that is this function's own condition, and nobody holds the copy yet.
    let params = unsafe { boot::copy(params) };
    lguest::introduce();
    patching::patch_call_sites();
    kernel_main(params)
}
// ANCHOR_END: guest_start
