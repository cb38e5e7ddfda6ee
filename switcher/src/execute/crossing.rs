//! The way into translated code and out of it.
//!
//! [`enter`] is a function for Rust: it is called, and some time later it returns. In between, all
//! registers belong to the guest, in the roles that [`crate::frame`] lists; only rsp stays Rust's,
//! so that signal handlers and a debugger find a stack.
//!
//! What a crossing must keep, and how:
//! - the guest's eight general registers, flags and xmm0–xmm7 go to the frame and come back;
//! - MXCSR is swapped where the two differ, so that an exception the guest unmasked can't fire inside
//!   Rust; the flags that computations leave in it don't count as a difference on the way out;
//! - DF is cleared on the way out, as every compiled function expects;
//! - the x87 and MMX registers stay in the processor, as the guest left them. Rust never touches
//!   them. (C code with `long double` would meet the guest's control word and any exception it left
//!   pending: don't call such between [`Vcpu`](crate::Vcpu) calls on one thread.)
//! - the GS base is set beforehand, by [`super::gs_base`].
//!
//! # A signal on the way in
//!
//! The entry looks at [`Frame::kicked`] as late as it can, but a signal may still come between the look and
//! the jump. The signal handler knows that stretch, [`committed`], and makes it go to [`bail_out`]
//! instead: nothing of the guest has run, so the frame is still right.

use crate::frame::{Frame, Reason};
use std::arch::naked_asm;
use std::mem::offset_of;
use std::ops::Range;

/// The bits of MXCSR that change how instructions behave; the others record what happened.
const MXCSR_CONTROL: u32 = 0xffc0;

/// How translated code is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Entry {
    /// By a jump.
    Jump = 0,
    /// By `iretq`, which serializes: for the first entry after code was written.
    Serialize = 1,
}

/// Runs translated code from host address `target` on, until it leaves. `frame.reason` tells why
/// it did; it is [`Reason::Kicked`] without anything having run when `frame.kicked` was set.
///
/// # Safety
/// `frame` holds the addresses of the window, jump table, code cache and exit stub that `target` was
/// translated for, the GS base is that window, `target` is a point of the code cache, and
/// [`super::signals`] knows of the frame.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn enter(frame: *mut Frame, target: u64, entry: Entry) {
    naked_asm!(
        // The registers a function must keep. Seven pushes and the call keep rsp at 16 bytes.
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rax",
        "mov r15, rdi",
        // Rust's MXCSR stays on the stack; the guest's is loaded if it is another.
        "stmxcsr [rsp]",
        "mov [r15 + {HOST_RSP}], rsp",
        "mov eax, [r15 + {MXCSR}]",
        "cmp eax, [rsp]",
        "je 2f",
        "ldmxcsr [r15 + {MXCSR}]",
        "2:",
        "movaps xmm0, [r15 + {XMM}]",
        "movaps xmm1, [r15 + {XMM} + 16]",
        "movaps xmm2, [r15 + {XMM} + 32]",
        "movaps xmm3, [r15 + {XMM} + 48]",
        "movaps xmm4, [r15 + {XMM} + 64]",
        "movaps xmm5, [r15 + {XMM} + 80]",
        "movaps xmm6, [r15 + {XMM} + 96]",
        "movaps xmm7, [r15 + {XMM} + 112]",
        // What stays in registers while translated code runs. r13 is scratch: it carries the target.
        "mov r8, [r15 + {CODE}]",
        "mov r11, [r15 + {TABLE}]",
        "mov r14, [r15 + {WINDOW}]",
        "mov r13, rsi",
        // From here to the end of this function a signal handler that wants the processor goes to
        // `bail_out`.
        ".globl lguest_switcher_committed",
        ".hidden lguest_switcher_committed",
        "lguest_switcher_committed:",
        "cmp dword ptr [r15 + {KICKED}], 0",
        "jne {bail_out}",
        "test edx, edx",
        "jne 3f",
        // The flags, then everything that doesn't touch them.
        "mov eax, [r15 + {FLAGS}]",
        "push rax",
        "popfq",
        "mov eax, [r15 + {EAX}]",
        "mov ecx, [r15 + {ECX}]",
        "mov edx, [r15 + {EDX}]",
        "mov ebx, [r15 + {EBX}]",
        "mov r12d, [r15 + {ENTRY_ESP}]",
        "mov ebp, [r15 + {EBP}]",
        "mov esi, [r15 + {ESI}]",
        "mov edi, [r15 + {EDI}]",
        "jmp r13",
        // The same by iretq, which pops rip, cs, flags, rsp and ss.
        "3:",
        "mov r9, rsp",
        "mov eax, ss",
        "push rax",
        "push r9",
        "mov eax, [r15 + {FLAGS}]",
        "push rax",
        "mov eax, cs",
        "push rax",
        "push r13",
        "mov eax, [r15 + {EAX}]",
        "mov ecx, [r15 + {ECX}]",
        "mov edx, [r15 + {EDX}]",
        "mov ebx, [r15 + {EBX}]",
        "mov r12d, [r15 + {ENTRY_ESP}]",
        "mov ebp, [r15 + {EBP}]",
        "mov esi, [r15 + {ESI}]",
        "mov edi, [r15 + {EDI}]",
        "iretq",
        ".globl lguest_switcher_committed_end",
        ".hidden lguest_switcher_committed_end",
        "lguest_switcher_committed_end:",
        HOST_RSP = const offset_of!(Frame, host_rsp),
        MXCSR = const offset_of!(Frame, mxcsr),
        XMM = const offset_of!(Frame, xmm),
        CODE = const offset_of!(Frame, code),
        TABLE = const offset_of!(Frame, table),
        WINDOW = const offset_of!(Frame, window),
        KICKED = const offset_of!(Frame, kicked),
        FLAGS = const offset_of!(Frame, flags),
        EAX = const offset_of!(Frame, gpr),
        ECX = const offset_of!(Frame, gpr) + 4,
        EDX = const offset_of!(Frame, gpr) + 8,
        EBX = const offset_of!(Frame, gpr) + 12,
        ENTRY_ESP = const offset_of!(Frame, entry_esp),
        EBP = const offset_of!(Frame, gpr) + 20,
        ESI = const offset_of!(Frame, gpr) + 24,
        EDI = const offset_of!(Frame, gpr) + 28,
        bail_out = sym bail_out,
    )
}

/// Where translated code, and the signal handler in its name, jump to leave: saves the guest's
/// registers and returns from [`enter`]. The reason, detail and eip are in the frame already.
///
/// # Safety
/// Not a function to call: it expects translated code's registers.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn leave() {
    naked_asm!(
        // ANCHOR: leave
        "mov [r15 + {EAX}], eax",
        "mov [r15 + {ECX}], ecx",
        "mov [r15 + {EDX}], edx",
        "mov [r15 + {EBX}], ebx",
        "mov [r15 + {ESP}], r12d",
        "mov [r15 + {EBP}], ebp",
        "mov [r15 + {ESI}], esi",
        "mov [r15 + {EDI}], edi",
        "pushfq",
        "pop rax",
        "mov [r15 + {FLAGS}], eax",
        "cld",
        "movaps [r15 + {XMM}], xmm0",
        "movaps [r15 + {XMM} + 16], xmm1",
        "movaps [r15 + {XMM} + 32], xmm2",
        "movaps [r15 + {XMM} + 48], xmm3",
        "movaps [r15 + {XMM} + 64], xmm4",
        "movaps [r15 + {XMM} + 80], xmm5",
        "movaps [r15 + {XMM} + 96], xmm6",
        "movaps [r15 + {XMM} + 112], xmm7",
        // Rust's MXCSR comes back only if the guest's would make a difference to it.
        "mov rsp, [r15 + {HOST_RSP}]",
        "stmxcsr [r15 + {MXCSR}]",
        // ANCHOR_END: leave
        "mov eax, [r15 + {MXCSR}]",
        "xor eax, [rsp]",
        "test eax, {CONTROL}",
        "jne 3f",
        "2:",
        "pop rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        "3:",
        "ldmxcsr [rsp]",
        "jmp 2b",
        HOST_RSP = const offset_of!(Frame, host_rsp),
        MXCSR = const offset_of!(Frame, mxcsr),
        XMM = const offset_of!(Frame, xmm),
        FLAGS = const offset_of!(Frame, flags),
        EAX = const offset_of!(Frame, gpr),
        ECX = const offset_of!(Frame, gpr) + 4,
        EDX = const offset_of!(Frame, gpr) + 8,
        EBX = const offset_of!(Frame, gpr) + 12,
        ESP = const offset_of!(Frame, gpr) + 16,
        EBP = const offset_of!(Frame, gpr) + 20,
        ESI = const offset_of!(Frame, gpr) + 24,
        EDI = const offset_of!(Frame, gpr) + 28,
        CONTROL = const MXCSR_CONTROL,
    )
}

/// Where an entry that shall not happen goes: returns from [`enter`] with the frame's guest
/// state untouched.
///
/// # Safety
/// Not a function to call: it expects the registers of [`enter`]'s committed stretch.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn bail_out() {
    naked_asm!(
        "mov rsp, [r15 + {HOST_RSP}]",
        "cld",
        "ldmxcsr [rsp]",
        "mov dword ptr [r15 + {REASON}], {KICKED}",
        "pop rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        HOST_RSP = const offset_of!(Frame, host_rsp),
        REASON = const offset_of!(Frame, reason),
        KICKED = const Reason::Kicked as u32,
    )
}

/// Host addresses in [`enter`] from the last look at [`Frame::kicked`] to the jump.
pub(crate) fn committed() -> Range<u64> {
    unsafe extern "C" {
        #[link_name = "lguest_switcher_committed"]
        safe static COMMITTED: u8;
        #[link_name = "lguest_switcher_committed_end"]
        safe static COMMITTED_END: u8;
    }
    (&raw const COMMITTED).addr() as u64..(&raw const COMMITTED_END).addr() as u64
}

/// Address of the exit stub, for [`Frame::exit`].
pub(crate) fn leave_address() -> u64 {
    (leave as unsafe extern "C" fn() as *const ()).addr() as u64
}

/// Address of the stub for entries that shall not happen.
pub(crate) fn bail_out_address() -> u64 {
    (bail_out as unsafe extern "C" fn() as *const ()).addr() as u64
}
