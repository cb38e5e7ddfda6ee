//! The shell's one room for `unsafe`: the way in, the heap, and `int $0x80`.
//!
//! Everything else of the shell is safe code on top of [`call`]. A call can't break the shell's own memory as
//! long as the pointers it passes lead to what the call may touch; so the typed faces in
//! [`system`](crate::system) only pass pointers to slices that they hold.

#![allow(unsafe_code)]

use crate::console;
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;
use lguest_system_calls::number;
use linked_list_allocator::LockedHeap;

/// Bytes of heap: a command line and its words are small.
const HEAP_BYTES: usize = 256 << 10;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

static mut HEAP_MEMORY: [u8; HEAP_BYTES] = [0; HEAP_BYTES];

// At the start esp points to argc, and above it lie argv and the environment (System V ABI for
// i386, "Process Initialization"). The C convention wants its argument on an aligned stack.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",  // the outermost frame
    "mov eax, esp",  // argc is here
    "and esp, -16",
    "sub esp, 12",
    "push eax",
    "call {begin}",
    "ud2",           // it doesn't return
    begin = sym begin,
);

/// Sets the heap up, reads the arguments, and runs.
///
/// # Safety
/// Called once, by `_start`, with the stack the kernel made.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    let heap = &raw mut HEAP_MEMORY;
    // SAFETY: nothing else names HEAP_MEMORY, and this runs once, before any allocation.
    unsafe { HEAP.lock().init(heap.cast(), HEAP_BYTES) };
    // SAFETY: the kernel put argc at the stack's start, that many pointers to strings behind it,
    // and both stay as they are for as long as the process lives.
    let arguments: Vec<&str> = unsafe {
        let count = stack.read();
        let strings = stack.add(1).cast::<*const c_char>();
        (0..count)
            .map(|at| CStr::from_ptr(strings.add(at).read()).to_str().unwrap_or("?"))
            .collect()
    };
    exit(crate::run(&arguments))
}

/// Makes system call `number` with its arguments.
pub(crate) fn call(number: u32, arguments: [usize; 3]) -> u32 {
    let [ebx, ecx, edx] = arguments;
    let answer;
    // SAFETY: the kernel touches only what the arguments name, and `system` names only what it
    // holds. It keeps all registers but eax.
    unsafe {
        asm!("int 0x80", inlateout("eax") number => answer, in("ebx") ebx, in("ecx") ecx, in("edx") edx);
    }
    answer
}

/// Maps `bytes` of new memory and touches each of its pages once; says whether there was enough.
pub(crate) fn touch_new_pages(bytes: usize) -> bool {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let answer: u32;
    // SAFETY: a new anonymous mapping replaces nothing. ebp and esi can't be named as operands, so
    // they are kept on the stack.
    unsafe {
        asm!(
            "push esi", "push edi", "push ebp",
            "mov esi, {flags}", "mov edi, -1", "xor ebp, ebp",
            "int 0x80",
            "pop ebp", "pop edi", "pop esi",
            flags = const PRIVATE_ANONYMOUS,
            inlateout("eax") number::MMAP2 => answer,
            in("ebx") 0, in("ecx") bytes, in("edx") READ_WRITE,
        );
    }
    let Ok(start) = lguest_system_calls::Errno::check(answer) else {
        return false;
    };
    for at in (start..start + bytes as u32).step_by(4096) {
        // SAFETY: it lies in the mapping just made.
        unsafe { (at as *mut u8).write_volatile(1) };
    }
    call(number::MUNMAP, [start as usize, bytes, 0]);
    true
}

/// One round of [`fpu`](crate::fpu)'s computation: `rounds` steps of x ← (x·a + c) mod m on the
/// x87 stack, and as many additions of x's start in xmm0. What it computes stays in the FPU's registers all the
/// while, so a switch that loses them shows. Answers the last x, and the sum
/// as the bits of a double.
pub(crate) fn fpu_rounds(start: u32, [a, c, m]: [u32; 3], rounds: u32) -> (u64, u64) {
    let numbers = [start, a, c, m].map(double);
    let mut results = [0_u64; 2];
    // SAFETY: it reads four doubles, writes two quadwords, and leaves the x87 stack as empty as it was. The
    // rest of this program is compiled without FPU registers, so none of them is in use.
    unsafe {
        asm!(
            "fninit",
            "fld qword ptr [{n} + 24]",  // m
            "fld qword ptr [{n}]",       // x, above it
            "movsd xmm1, [{n}]",
            "xorpd xmm0, xmm0",
            "2:",
            "fmul qword ptr [{n} + 8]",  // x·a: below 2⁶³, so exact in 64 bits of mantissa
            "fadd qword ptr [{n} + 16]",
            "3:",
            "fprem",
            "fnstsw ax",
            "test ah, 4",                // C2: not yet reduced far enough
            "jnz 3b",
            "addsd xmm0, xmm1",
            "dec ecx",
            "jnz 2b",
            "fistp qword ptr [{r}]",
            "fstp st(0)",
            "movsd [{r} + 8], xmm0",
            n = in(reg) numbers.as_ptr(),
            r = in(reg) results.as_mut_ptr(),
            inout("ecx") rounds => _,
            out("eax") _,
        );
    }
    (results[0], results[1])
}

/// The bits of a whole number as a double, made without an FPU.
const fn double(number: u32) -> u64 {
    if number == 0 {
        return 0;
    }
    let exponent = 31 - number.leading_zeros();
    (exponent as u64 + 1023) << 52 | ((number as u64) << (52 - exponent)) & ((1 << 52) - 1)
}

/// Ends this process.
pub(crate) fn exit(status: u32) -> ! {
    loop {
        call(number::EXIT_GROUP, [status as usize, 0, 0]);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::print(format_args!("shell: {info}\n"));
    exit(101)
}
