//! The system calls that the worker may make: three, and only from 64-bit code.
//!
//! The code under test is random, and a random `int 0x80` is a system call. Seccomp tells the two
//! kinds of caller apart by the *architecture* of the call, which is i386 for everything that
//! compatibility mode can issue. A forbidden call kills the process; the parent starts another.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS, sock_filter,
};
use std::mem::offset_of;

/// The kernel's name for a call made by 64-bit code (`linux/audit.h`): machine 62, 64 bits,
/// little-endian.
const AUDIT_ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// What handing over needs, and nothing else.
const ALLOWED: [libc::c_long; 3] = [libc::SYS_futex, libc::SYS_rt_sigreturn, libc::SYS_exit_group];

/// The filter, as a program for the kernel's packet-filter machine.
pub(crate) fn program() -> Vec<sock_filter> {
    let load = |at: usize| statement(BPF_LD | BPF_W | BPF_ABS, at as u32);
    let verdict = |verdict| statement(BPF_RET | BPF_K, verdict);
    // A test that jumps over the next statement when the value is a different one.
    let skip_unless = |value| jump(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
    let skip_if = |value| jump(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0);

    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        skip_if(AUDIT_ARCH_X86_64),
        verdict(SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    for number in ALLOWED {
        program.extend([skip_unless(number as u32), verdict(SECCOMP_RET_ALLOW)]);
    }
    program.push(verdict(SECCOMP_RET_KILL_PROCESS));
    program
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

fn jump(code: u32, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: if_true, jf: if_false, k: value }
}
