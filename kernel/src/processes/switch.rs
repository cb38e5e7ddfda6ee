//! Passing the processor on: from one kernel stack to another, and fs and gs.
//!
//! This is a room where unsafe code lives: assembly.

use core::arch::{asm, global_asm};

unsafe extern "C" {
    /// Saves the stack pointer through `save` and goes on where the stack `load` was left.
    fn switch_stacks(save: *mut u32, load: u32);
}

// What the caller of a C function relies on is kept on the stack that is left.
global_asm!(
    ".pushsection .text.switch_stacks, \"ax\", @progbits",
    "switch_stacks:",
    "    mov eax, [esp + 4]", // save
    "    mov edx, [esp + 8]", // load
    "    push ebp",
    "    push ebx",
    "    push esi",
    "    push edi",
    "    mov [eax], esp",
    "    mov esp, edx",
    "    pop edi",
    "    pop esi",
    "    pop ebx",
    "    pop ebp",
    "    ret",
    ".popsection",
);

/// A switch that is decided on: everything but the stack is the next process's already.
pub(super) struct Switch {
    pub(super) save: *mut u32,
    pub(super) load: u32,
}

impl Switch {
    /// Goes to the other stack. Comes back when somebody switches to this one. Interrupts are disabled.
    pub(super) fn carry_out(self) {
        // SAFETY: only the scheduler makes a `Switch`: `save` is in the process that leaves, which isn't dropped
        // while it may come back, and `load` is the stack pointer that was saved (or made) for the one that comes.
        unsafe { switch_stacks(self.save, self.load) };
    }
}

/// fs and gs: a process's, since the kernel uses neither.
pub(super) fn read_segments() -> (u16, u16) {
    let (fs, gs): (u32, u32);
    // SAFETY: it reads two registers.
    unsafe {
        asm!("mov {0:e}, fs", "mov {1:e}, gs", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    (fs as u16, gs as u16)
}

/// Loads fs and gs. What they meant may be gone; then they are null.
pub(super) fn load_segments((fs, gs): (u16, u16)) {
    // SAFETY: the kernel doesn't use them, and a selector that can't be loaded goes to the fix-up.
    unsafe {
        asm!(
            "2: mov fs, {fs:e}",
            "3: mov gs, {gs:e}",
            "4:",
            ".pushsection .text.switch_fixups, \"ax\", @progbits",
            "5: xor {fs:e}, {fs:e}",
            "   jmp 2b",
            "6: xor {gs:e}, {gs:e}",
            "   jmp 3b",
            ".popsection",
            ".pushsection kernel_fixups, \"aR\", @progbits",
            ".balign 4",
            ".long 2b, 5b, 3b, 6b",
            ".popsection",
            fs = inout(reg) u32::from(fs) => _,
            gs = inout(reg) u32::from(gs) => _,
        );
    }
}
