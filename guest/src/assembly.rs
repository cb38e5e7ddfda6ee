//! The instructions that Rust has no words for, and the code that is copied into call sites.
//!
//! This is a room where unsafe code lives. What it lets out is safe to call, except where it says
//! otherwise.
//!
//! The code for interrupts works on one word of memory, `irq_enabled` at the start of
//! [`LGUEST_DATA`]. Its address is known when the kernel is linked, so enabling interrupts is one
//! `mov`. Each piece stands between two labels, so that [`patching`](crate::patching) can copy it,
//! and ends in `ret`, so that it can be called until then.

use crate::lguest::shared_page::LGUEST_DATA;
use crate::processor::Cpuid;
use core::arch::{asm, global_asm};

/// A piece of code at a label.
type Code = unsafe extern "C" fn();

unsafe extern "C" {
    /// An absolute symbol: its address is the number.
    static kernel_page_offset: u8;

    fn lguest_save_flags();
    fn lguest_save_flags_end();
    fn lguest_restore_flags();
    fn lguest_restore_flags_end();
    fn lguest_irq_disable();
    fn lguest_irq_disable_end();
    fn lguest_irq_enable();
    fn lguest_irq_enable_end();
    fn lguest_iret();
    fn lguest_noirq_start();
    fn lguest_noirq_end();
}

// ANCHOR: flag_code
// The operations on the interrupt flag. They change eax only where they return it, and no flags.
global_asm!(
    ".pushsection .text.lguest_flags, \"ax\", @progbits",
    ".globl lguest_save_flags",
    "lguest_save_flags:",
    "    mov eax, dword ptr [{irq_enabled}]",
    ".globl lguest_save_flags_end",
    "lguest_save_flags_end:",
    "    ret",
    ".globl lguest_restore_flags",
    "lguest_restore_flags:",
    "    mov dword ptr [{irq_enabled}], eax", // a whole eflags word: only bit 9 counts
    ".globl lguest_restore_flags_end",
    "lguest_restore_flags_end:",
    "    ret",
    ".globl lguest_irq_disable",
    "lguest_irq_disable:",
    "    mov dword ptr [{irq_enabled}], 0",
    ".globl lguest_irq_disable_end",
    "lguest_irq_disable_end:",
    "    ret",
    ".globl lguest_irq_enable",
    "lguest_irq_enable:",
    "    mov dword ptr [{irq_enabled}], {enabled}",
    ".globl lguest_irq_enable_end",
    "lguest_irq_enable_end:",
    "    ret",
    ".popsection",
    irq_enabled = sym LGUEST_DATA,
    enabled = const crate::interrupts::ENABLED,
);
// ANCHOR_END: flag_code

// ANCHOR: guest_iret
// Returning from a trap or an interrupt.
//
// The processor's own iret, at level 1, can't enable interrupts: the saved flags must be stored to
// irq_enabled. But an interrupt that came between that store and the iret would come on top of a
// frame that is already half left; and each one could do so again. So the Host is asked to deliver
// none while eip is between the labels. The data segment may be the user's by now: memory is
// reached through ss.
global_asm!(
    ".pushsection .text.lguest_iret, \"ax\", @progbits",
    ".globl lguest_iret",
    "lguest_iret:",
    "    push eax",
    "    mov eax, dword ptr ss:[esp + 12]", // saved eflags, above eax, eip and cs
    ".globl lguest_noirq_start",
    "lguest_noirq_start:",
    "    mov dword ptr ss:[{irq_enabled}], eax",
    "    pop eax",
    "    iretd",
    ".globl lguest_noirq_end",
    "lguest_noirq_end:",
    // Where a kernel's assembly jumps instead of saying iret.
    ".globl paravirt_iret",
    "paravirt_iret:",
    "    jmp dword ptr ss:[{calls} + {iret}]",
    ".popsection",
    irq_enabled = sym LGUEST_DATA,
    calls = sym FLAG_CALLS,
    iret = const core::mem::offset_of!(FlagCalls, iret),
);
// ANCHOR_END: guest_iret

/// What the call sites of [`interrupts`](crate::interrupts) call until they are patched.
#[repr(C)]
pub(crate) struct FlagCalls {
    /// eax = flags
    pub(crate) save_flags: Code,
    /// flags = eax
    pub(crate) restore_flags: Code,
    /// Disables interrupts.
    pub(crate) irq_disable: Code,
    /// Enables interrupts.
    pub(crate) irq_enable: Code,
    /// Jumped to, never called.
    pub(crate) iret: Code,
}

/// The back end's.
pub(crate) static FLAG_CALLS: FlagCalls = FlagCalls {
    save_flags: lguest_save_flags,
    restore_flags: lguest_restore_flags,
    irq_disable: lguest_irq_disable,
    irq_enable: lguest_irq_enable,
    iret: lguest_iret,
};

/// The bytes between two labels.
fn between(start: Code, end: Code) -> &'static [u8] {
    let length = (end as usize) - (start as usize);
    // SAFETY: both labels are in one section of this file, in this order; code is readable, and
    // this code is never written.
    unsafe { core::slice::from_raw_parts(start as *const u8, length) }
}

/// The code that takes the place of a call to [`FlagCalls::save_flags`].
pub(crate) fn save_flags_template() -> &'static [u8] {
    between(lguest_save_flags, lguest_save_flags_end)
}

/// The code that takes the place of a call to [`FlagCalls::restore_flags`].
pub(crate) fn restore_flags_template() -> &'static [u8] {
    between(lguest_restore_flags, lguest_restore_flags_end)
}

/// The code that takes the place of a call to [`FlagCalls::irq_disable`].
pub(crate) fn irq_disable_template() -> &'static [u8] {
    between(lguest_irq_disable, lguest_irq_disable_end)
}

/// The code that takes the place of a call to [`FlagCalls::irq_enable`].
pub(crate) fn irq_enable_template() -> &'static [u8] {
    between(lguest_irq_enable, lguest_irq_enable_end)
}

/// Where no interrupt may be delivered: start and end.
pub(crate) fn noirq_range() -> (u32, u32) {
    (lguest_noirq_start as *const () as u32, lguest_noirq_end as *const () as u32)
}

/// The kernel's `kernel_page_offset`.
pub(crate) fn page_offset() -> u32 {
    (&raw const kernel_page_offset).addr() as u32
}

// ANCHOR: hypercall_instruction
/// Makes a hypercall: the registers go in as `[eax, edx, ebx, ecx]`, and eax comes back.
///
/// # Safety
/// A hypercall can change anything: what memory means, what it holds, where execution goes on.
pub(crate) unsafe fn hypercall([eax, edx, ebx, ecx]: [u32; 4]) -> u32 {
    let answer;
    // SAFETY: the Host changes no register but eax. What else the call does is the caller's
    // promise.
    unsafe {
        asm!(
            "int {vector}",
            vector = const lguest_abi::hypercall::VECTOR,
            inlateout("eax") eax => answer,
            in("edx") edx,
            in("ebx") ebx,
            in("ecx") ecx,
        );
    }
    answer
}
// ANCHOR_END: hypercall_instruction

/// The instruction `cpuid`, unfiltered. Any privilege level may use it.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let mut answer = Cpuid { eax: leaf, ebx: 0, ecx: subleaf, edx: 0 };
    // SAFETY: it changes these four registers only. Every processor with the instructions this
    // kernel is compiled for has it.
    unsafe {
        asm!(
            "cpuid",
            inlateout("eax") answer.eax,
            lateout("ebx") answer.ebx,
            inlateout("ecx") answer.ecx,
            lateout("edx") answer.edx,
            options(nomem, nostack, preserves_flags),
        );
    }
    answer
}

/// The time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it reads a counter.
    unsafe {
        asm!("rdtsc", lateout("eax") low, lateout("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Loads fs and gs with the null selector.
pub(crate) fn clear_fs_and_gs() {
    // SAFETY: compiled kernel code uses neither; a kernel that does is told by
    // `Segments::load_tls`.
    unsafe {
        asm!("mov fs, {0:e}", "mov gs, {0:e}", in(reg) 0, options(nomem, nostack, preserves_flags));
    }
}
