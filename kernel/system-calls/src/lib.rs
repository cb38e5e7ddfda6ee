//! What the guest's programs can ask of its kernel.
//!
//! A program puts a number into eax and up to six arguments into ebx, ecx, edx, esi, edi and ebp,
//! and says `int $0x80`. The answer comes back in eax: a value, or an error as a small negative
//! number. Numbers and errors are those of Linux on i386, so that its programs run unchanged;
//! a few calls of our own ([`private`]) serve the shell.
//!
//! The kernel and the shell both read this, and nothing else of each other.

#![no_std]
#![forbid(unsafe_code)]

pub mod errno;
pub mod number;
pub mod private;

pub use errno::Errno;

/// Where the shell's image is among the guest's files. It comes with the kernel, not with the initrd.
pub const SHELL: &str = "/shell";
