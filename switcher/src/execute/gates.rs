//! Gates: from user code into its kernel and back, without Rust.
//!
//! A system call is two transitions, `int` and `iret`. What they take is known beforehand, and nearly always the same; so
//! it is done here, in a few dozen instructions, by code that is as much Rust's as the exit stub is. A gate does what
//! [`Exit::SoftwareInterrupt`](crate::Exit::SoftwareInterrupt) and `iretd` would come to, or it does *nothing*: whatever isn't as
//! usual, Rust decides, and finds everything as it was at the instruction.
//!
//! So each gate has three stretches:
//! 1. *Noting*: what Rust would need is put into the frame. No register changes, nor do flags.
//! 2. *Asking*: is all as usual? Memory is touched as the processor would, which may fault. Only scratch registers, eax, ecx and the
//!    flags change, and their values are in the frame.
//! 3. *Passing*: nothing can go wrong any more.
//!
//! A fault can only happen while asking; a kick may come at any time. In the first two stretches the signal handler sends the
//! thread the long way, to the places that [`interrupted`] knows, and then a kick finds it in Rust. The third is so short that a kick
//! there comes again a little later.
//!
//! The registers are those of translated code ([`crate::frame`]); what a tail has put into r13d and r9d is as
//! [`Reason::Interrupt`] and [`Reason::Sensitive`] want it.

use super::crossing::leave;
use crate::cpu::{AC, ID, IF, IOPL, LIVE_FLAGS, NT, RF, TF, VM};
use crate::frame::{Frame, GATE_FRAME, GateSlots, Reason, SegmentSlot, WorldSlot};
use std::arch::naked_asm;
use std::mem::offset_of;
use std::ops::Range;

/// Flags with which a transition isn't as usual: a trap behind it, a task, another mode, or an `iret` that may change IF.
const UNUSUAL: u32 = TF | NT | RF | VM | IOPL;

/// The virtual flags that `iretd` takes from the stack at levels 1 to 3, with IOPL 0.
const RETURNED: u32 = TF | NT | RF | AC | ID;

/// What the host's flags register has set beside the guest's: bit 1, and IF, which nobody here can change.
const ALWAYS: u32 = 0x202;

/// The highest esp from which [`GATE_FRAME`] bytes can be read.
const HIGHEST: u32 = GATE_FRAME.wrapping_neg();

/// Offset of a field of the gates in the frame.
macro_rules! gates {
    ($field:ident) => {
        offset_of!(Frame, gates) + offset_of!(GateSlots, $field)
    };
}

/// Offset of a world's field in the frame; 0 is the kernel's.
const fn world(number: usize, field: usize) -> usize {
    offset_of!(Frame, worlds) + number * size_of::<WorldSlot>() + field
}

/// Offset of what the frame has of segment register `number`.
const fn segment(number: usize) -> usize {
    offset_of!(Frame, segments) + number * size_of::<SegmentSlot>()
}

/// Offset of its selector.
const fn selector(number: usize) -> usize {
    segment(number) + offset_of!(SegmentSlot, selector)
}

/// Offset of whether a return to level 3 changes it.
const fn inner(number: usize) -> usize {
    segment(number) + offset_of!(SegmentSlot, inner)
}

/// Where [`GateSlots::call`] leads: `int` in user code.
///
/// # Safety
/// Not a function to call: translated code of level 3 jumps here, with flat segments and nothing that stops it behind an
/// instruction.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn call() {
    naked_asm!(
        // Noting.
        ".globl lguest_switcher_call",
        ".hidden lguest_switcher_call",
        "lguest_switcher_call:",
        "mov [r15 + {EIP}], r13d",
        "mov [r15 + {DETAIL}], r9d",
        "mov dword ptr [r15 + {REASON}], {INTERRUPT}",
        "mov [r15 + {EAX}], eax",
        "mov [r15 + {ECX}], ecx",
        "pushfq",
        "pop qword ptr [r15 + {FLAGS}]",
        // Asking. Is it the vector, are the flags as usual, and has Rust nothing to do?
        ".globl lguest_switcher_call_asks",
        ".hidden lguest_switcher_call_asks",
        "lguest_switcher_call_asks:",
        "cmp r9b, [r15 + {VECTOR}]",
        "jne 9f",
        "mov ecx, [r15 + {VIRTUAL}]",
        "test ecx, {UNUSUAL}",
        "jne 9f",
        "cmp dword ptr [r15 + {PENDING}], 0",
        "jne 9f",
        "mov rax, [r15 + {QUIET}]",
        "cmp byte ptr [rax], 0xff",
        "jne 9f",
        // eflags as pushed: what computations left, what is virtual, and IF as the kernel has it.
        "mov rax, [r15 + {INTERRUPTS}]",
        "mov eax, [rax]",
        "and eax, {IF}",
        "and ecx, {NOT_IF}",
        "or eax, ecx",
        "mov ecx, [r15 + {FLAGS}]",
        "and ecx, {LIVE}",
        "lea eax, [rax + rcx + 2]",
        // The frame, on the kernel's stack, in its window.
        "mov r10, [r15 + {KERNEL_WINDOW}]",
        "mov r9d, [r15 + {TOP}]",
        "mov [r10 + r9 + 8], eax",
        "mov [r10 + r9], r13d",
        "mov eax, [r15 + {CS}]",
        "mov [r10 + r9 + 4], eax",
        "mov [r10 + r9 + 12], r12d",
        "mov eax, [r15 + {SS}]",
        "mov [r10 + r9 + 16], eax",
        // Passing: esp, the world, cs and ss, and on at the handler.
        ".globl lguest_switcher_call_passes",
        ".hidden lguest_switcher_call_passes",
        "lguest_switcher_call_passes:",
        "cmp dword ptr [r15 + {DISABLES}], 0",
        "je 2f",
        "mov rax, [r15 + {INTERRUPTS}]",
        "mov dword ptr [rax], 0",
        "2:",
        "mov r12d, r9d",
        "mov r14, r10",
        "wrgsbase r10",
        "mov r11, [r15 + {KERNEL_TABLE}]",
        "mov dword ptr [r15 + {USER}], 0",
        "inc qword ptr [r15 + {PASSES}]",
        "mov eax, [r15 + {KERNEL_CODE}]",
        "mov [r15 + {CS}], eax",
        "mov eax, [r15 + {KERNEL_STACK}]",
        "mov [r15 + {SS}], eax",
        "mov r13d, [r15 + {HANDLER}]",
        "push qword ptr [r15 + {FLAGS}]",
        "popfq",
        "mov eax, [r15 + {EAX}]",
        "mov ecx, [r15 + {ECX}]",
        "mov r9d, [r11 + r13*4]",
        "lea r9, [r9 + r8]",
        "jmp r9",
        ".globl lguest_switcher_call_end",
        ".hidden lguest_switcher_call_end",
        "lguest_switcher_call_end:",
        "9:",
        "jmp {refuse}",
        EIP = const offset_of!(Frame, eip),
        DETAIL = const offset_of!(Frame, detail),
        REASON = const offset_of!(Frame, reason),
        INTERRUPT = const Reason::Interrupt as u32,
        EAX = const offset_of!(Frame, gpr),
        ECX = const offset_of!(Frame, gpr) + 4,
        FLAGS = const gates!(flags),
        VECTOR = const gates!(vector),
        VIRTUAL = const offset_of!(Frame, virtual_flags),
        UNUSUAL = const UNUSUAL,
        PENDING = const offset_of!(Frame, pending),
        QUIET = const gates!(quiet),
        INTERRUPTS = const gates!(interrupts),
        IF = const IF,
        NOT_IF = const !IF as i32,
        LIVE = const LIVE_FLAGS,
        KERNEL_WINDOW = const world(0, offset_of!(WorldSlot, window)),
        KERNEL_TABLE = const world(0, offset_of!(WorldSlot, table)),
        TOP = const gates!(esp),
        CS = const selector(1),
        SS = const selector(2),
        DISABLES = const gates!(disables),
        USER = const offset_of!(Frame, user),
        PASSES = const gates!(passes),
        KERNEL_CODE = const gates!(code),
        KERNEL_STACK = const gates!(stack),
        HANDLER = const gates!(handler),
        refuse = sym refuse,
    )
}

/// Where [`GateSlots::back`] leads: `iretd` in the kernel.
///
/// # Safety
/// Not a function to call: translated code of an inner level jumps here, with flat segments and nothing that stops it behind
/// an instruction.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn back() {
    naked_asm!(
        // Noting.
        ".globl lguest_switcher_back",
        ".hidden lguest_switcher_back",
        "lguest_switcher_back:",
        "mov [r15 + {EIP}], r13d",
        "mov dword ptr [r15 + {REASON}], {SENSITIVE}",
        "mov [r15 + {EAX}], eax",
        "mov [r15 + {ECX}], ecx",
        "pushfq",
        "pop qword ptr [r15 + {FLAGS}]",
        // Asking. Are the flags as usual, has Rust nothing to do, and is no segment register to be emptied?
        ".globl lguest_switcher_back_asks",
        ".hidden lguest_switcher_back_asks",
        "lguest_switcher_back_asks:",
        "mov ecx, [r15 + {VIRTUAL}]",
        "test ecx, {UNUSUAL}",
        "jne 9f",
        "mov eax, [r15 + {PENDING}]",
        "or eax, [r15 + {INNER_ES}]",
        "or eax, [r15 + {INNER_DS}]",
        "or eax, [r15 + {INNER_FS}]",
        "or eax, [r15 + {INNER_GS}]",
        "jne 9f",
        "mov rax, [r15 + {QUIET}]",
        "cmp byte ptr [rax], 0xff",
        "jne 9f",
        // The frame on the stack: to the user's segments, with the flags that are there?
        "cmp r12d, {HIGHEST}",
        "ja 9f",
        "movzx eax, word ptr [r14 + r12 + 4]",
        "cmp eax, [r15 + {USER_CODE}]",
        "jne 9f",
        "movzx eax, word ptr [r14 + r12 + 16]",
        "cmp eax, [r15 + {USER_STACK}]",
        "jne 9f",
        "mov eax, [r14 + r12 + 8]",
        "xor ecx, eax",
        "test ecx, {RETURNED}",
        "jne 9f",
        "and eax, {LIVE}",
        "mov r13d, [r14 + r12]",
        "mov r9d, [r14 + r12 + 12]",
        // Passing: flags, esp, the world, cs and ss, and on at the popped eip.
        ".globl lguest_switcher_back_passes",
        ".hidden lguest_switcher_back_passes",
        "lguest_switcher_back_passes:",
        "or eax, {ALWAYS}",
        "push rax",
        "mov r12d, r9d",
        "mov r14, [r15 + {USER_WINDOW}]",
        "wrgsbase r14",
        "mov r11, [r15 + {USER_TABLE}]",
        "mov dword ptr [r15 + {USER}], 1",
        "inc qword ptr [r15 + {PASSES}]",
        "mov eax, [r15 + {USER_CODE}]",
        "mov [r15 + {CS}], eax",
        "mov eax, [r15 + {USER_STACK}]",
        "mov [r15 + {SS}], eax",
        "popfq",
        "mov eax, [r15 + {EAX}]",
        "mov ecx, [r15 + {ECX}]",
        "mov r9d, [r11 + r13*4]",
        "lea r9, [r9 + r8]",
        "jmp r9",
        ".globl lguest_switcher_back_end",
        ".hidden lguest_switcher_back_end",
        "lguest_switcher_back_end:",
        "9:",
        "jmp {refuse}",
        EIP = const offset_of!(Frame, eip),
        REASON = const offset_of!(Frame, reason),
        SENSITIVE = const Reason::Sensitive as u32,
        EAX = const offset_of!(Frame, gpr),
        ECX = const offset_of!(Frame, gpr) + 4,
        FLAGS = const gates!(flags),
        VIRTUAL = const offset_of!(Frame, virtual_flags),
        UNUSUAL = const UNUSUAL,
        PENDING = const offset_of!(Frame, pending),
        INNER_ES = const inner(0),
        INNER_DS = const inner(3),
        INNER_FS = const inner(4),
        INNER_GS = const inner(5),
        QUIET = const gates!(quiet),
        HIGHEST = const HIGHEST as i32,
        USER_CODE = const gates!(code) + 4,
        USER_STACK = const gates!(stack) + 4,
        RETURNED = const RETURNED,
        LIVE = const LIVE_FLAGS,
        ALWAYS = const ALWAYS,
        USER_WINDOW = const world(1, offset_of!(WorldSlot, window)),
        USER_TABLE = const world(1, offset_of!(WorldSlot, table)),
        USER = const offset_of!(Frame, user),
        PASSES = const gates!(passes),
        CS = const selector(1),
        SS = const selector(2),
        refuse = sym refuse,
    )
}

/// The long way from where a gate has begun to ask: everything is as it was at the instruction, and translated code leaves.
///
/// # Safety
/// Not a function to call: it expects the registers of a gate.
#[unsafe(naked)]
unsafe extern "C" fn refuse() {
    naked_asm!(
        "push qword ptr [r15 + {FLAGS}]",
        "popfq",
        "mov eax, [r15 + {EAX}]",
        "mov ecx, [r15 + {ECX}]",
        "jmp {leave}",
        FLAGS = const gates!(flags),
        EAX = const offset_of!(Frame, gpr),
        ECX = const offset_of!(Frame, gpr) + 4,
        leave = sym leave,
    )
}

/// Where [`GateSlots::call`] leads while there is no gate, and the long way from where one has changed nothing yet.
///
/// # Safety
/// As [`call`].
#[unsafe(naked)]
unsafe extern "C" fn no_call() {
    naked_asm!(
        "mov [r15 + {EIP}], r13d",
        "mov [r15 + {DETAIL}], r9d",
        "mov dword ptr [r15 + {REASON}], {INTERRUPT}",
        "jmp {leave}",
        EIP = const offset_of!(Frame, eip),
        DETAIL = const offset_of!(Frame, detail),
        REASON = const offset_of!(Frame, reason),
        INTERRUPT = const Reason::Interrupt as u32,
        leave = sym leave,
    )
}

/// The same for [`GateSlots::back`].
///
/// # Safety
/// As [`back`].
#[unsafe(naked)]
unsafe extern "C" fn no_return() {
    naked_asm!(
        "mov [r15 + {EIP}], r13d",
        "mov dword ptr [r15 + {REASON}], {SENSITIVE}",
        "jmp {leave}",
        EIP = const offset_of!(Frame, eip),
        REASON = const offset_of!(Frame, reason),
        SENSITIVE = const Reason::Sensitive as u32,
        leave = sym leave,
    )
}

/// What [`GateSlots::call`] and [`GateSlots::back`] are.
pub(crate) fn addresses(open: bool) -> [u64; 2] {
    let functions: [unsafe extern "C" fn(); 2] =
        if open { [call, back] } else { [no_call, no_return] };
    functions.map(address)
}

fn address(function: unsafe extern "C" fn()) -> u64 {
    (function as *const ()).addr() as u64
}

/// What a signal handler does with a thread that it finds in a gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Interrupted {
    /// It goes on here: the long way.
    At(u64),
    /// It is about to be in translated code again.
    Passing,
}

/// What becomes of a thread that stands at host address `rip`, if that is in a gate. Safe in a signal handler.
pub(crate) fn interrupted(rip: u64) -> Option<Interrupted> {
    let [call, back] = stretches();
    for (gate, nothing_done) in [(call, no_call as unsafe extern "C" fn()), (back, no_return)] {
        let [noting, asking, passing] = gate;
        if noting.contains(&rip) {
            return Some(Interrupted::At(address(nothing_done)));
        } else if asking.contains(&rip) {
            return Some(Interrupted::At(address(refuse)));
        } else if passing.contains(&rip) {
            return Some(Interrupted::Passing);
        }
    }
    None
}

/// The stretches of both gates.
fn stretches() -> [[Range<u64>; 3]; 2] {
    unsafe extern "C" {
        #[link_name = "lguest_switcher_call"]
        safe static CALL: u8;
        #[link_name = "lguest_switcher_call_asks"]
        safe static CALL_ASKS: u8;
        #[link_name = "lguest_switcher_call_passes"]
        safe static CALL_PASSES: u8;
        #[link_name = "lguest_switcher_call_end"]
        safe static CALL_END: u8;
        #[link_name = "lguest_switcher_back"]
        safe static BACK: u8;
        #[link_name = "lguest_switcher_back_asks"]
        safe static BACK_ASKS: u8;
        #[link_name = "lguest_switcher_back_passes"]
        safe static BACK_PASSES: u8;
        #[link_name = "lguest_switcher_back_end"]
        safe static BACK_END: u8;
    }
    let calls =
        [&raw const CALL, &raw const CALL_ASKS, &raw const CALL_PASSES, &raw const CALL_END];
    let backs =
        [&raw const BACK, &raw const BACK_ASKS, &raw const BACK_PASSES, &raw const BACK_END];
    [calls, backs].map(|labels| {
        let [noting, asking, passing, end] = labels.map(|label| label.addr() as u64);
        [noting..asking, asking..passing, passing..end]
    })
}
