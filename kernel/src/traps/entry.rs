//! The assembly between the processor and [`dispatch`](super::dispatch).
//!
//! Each vector leads to a few bytes that push which one it is; from there on all are alike.
//!
//! ds and es could be anything. As nearly always they are the flat segment for user data, which
//! is as good for the kernel; only when not, it is loaded, since loading a segment is dear in
//! a guest. The kernel uses neither fs nor gs, so they stay the process's until another one runs.
//!
//! This is a room where unsafe code lives: assembly.

use super::dispatch::trap;
use super::frame::TrapFrame;
use core::arch::global_asm;
use core::mem::offset_of;
use lguest_abi::Virt;
use lguest_abi::segments::USER_DS;
use lguest_abi::traps::SYSCALL;

/// Bytes between two vectors' entries.
const ENTRY_BYTES: u32 = 16;

unsafe extern "C" {
    static trap_entries: u8;
    static system_call_entry: u8;
    static leave_kernel: u8;
}

/// Where a vector's entry is: one of the first 64, or the system call's.
pub(super) fn of(vector: u8) -> Virt {
    if vector == SYSCALL {
        return Virt((&raw const system_call_entry).addr() as u32);
    }
    Virt((&raw const trap_entries).addr() as u32 + u32::from(vector) * ENTRY_BYTES)
}

/// Where the kernel is left with the registers in the frame that the stack pointer points to.
pub(super) fn leave() -> Virt {
    Virt((&raw const leave_kernel).addr() as u32)
}

global_asm!(
    ".pushsection .text.trap_entries, \"ax\", @progbits",
    ".balign 16",
    "trap_entries:",
    ".irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63",
    "    .balign 16",
    "    .if !(\\vector == 8 || (\\vector >= 10 && \\vector <= 14) || \\vector == 17)",
    "    push 0", // in place of an error code
    "    .endif",
    "    push \\vector",
    "    jmp enter_kernel",
    ".endr",

    ".balign 16",
    "system_call_entry:",
    "    push 0",
    "    push {system_call}",
    // and on into:

    // The rest of the frame. The direction flag is clear in compiled code; the other flags are saved already.
    "enter_kernel:",
    "    sub esp, 8", // es and ds
    "    push eax",
    "    push ebp",
    "    push edi",
    "    push esi",
    "    push edx",
    "    push ecx",
    "    push ebx",
    "    cld",
    "    mov eax, ds",
    "    mov edx, es",
    "    mov [esp + {ds}], eax", // through ss
    "    mov [esp + {es}], edx",
    "    cmp ax, {user_ds}",
    "    jne 2f",
    "    cmp dx, {user_ds}",
    "    jne 2f",
    "1:  mov ebx, esp", // the frame; kept by the call
    "    and esp, -16",
    "    sub esp, 12",
    "    push ebx",
    "    xor ebp, ebp", // the end of the chain of frames
    "    call {trap}",
    "    mov esp, ebx",

    // esp points to a frame, and interrupts are disabled.
    "leave_kernel:",
    "    cmp word ptr [esp + {ds}], {user_ds}",
    "    jne 3f",
    "    cmp word ptr [esp + {es}], {user_ds}",
    "    jne 3f",
    "4:  pop ebx",
    "    pop ecx",
    "    pop edx",
    "    pop esi",
    "    pop edi",
    "    pop ebp",
    "    pop eax",
    "    lea esp, [esp + 16]", // ds, es, vector, error code
    "    jmp paravirt_iret",

    // Odd segments, coming in.
    "2:  mov eax, {user_ds}",
    "    mov ds, eax",
    "    mov es, eax",
    "    jmp 1b",

    // Odd segments, going out. What they meant may have changed meanwhile: then they are null.
    "3:  mov es, [esp + {es}]",
    "5:  mov ds, [esp + {ds}]",
    "    jmp 4b",
    "6:  xor eax, eax",
    "    mov es, eax",
    "    jmp 5b",
    "7:  xor eax, eax",
    "    mov ds, eax",
    "    jmp 4b",
    ".popsection",
    ".pushsection kernel_fixups, \"aR\", @progbits",
    ".balign 4",
    ".long 3b, 6b, 5b, 7b",
    ".popsection",

    ds = const offset_of!(TrapFrame, ds),
    es = const offset_of!(TrapFrame, es),
    user_ds = const USER_DS,
    system_call = const SYSCALL,
    trap = sym trap,
);
