//! **The shell**: the guest's prompt, a program for level 3 like any other.
//!
//! It reads a line, and either does what the line asks for itself ([`commands`]) or looks the name
//! up among the guest's files and runs that as a process of its own. What it knows of the kernel
//! is the crate `lguest-system-calls`, and nothing else.
//!
//! Some of its commands are processes too (`spin`, `fpu`, `bench`): for those it starts itself again, and
//! [`run`] tells by the first argument what it's to be.

#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod bench;
mod commands;
mod console;
mod fpu;
mod machine;
mod prompt;
mod system;

use alloc::vec::Vec;

/// Where [`machine`]'s entry leads: the arguments are there, and so is the heap. Answers the exit status.
fn run(arguments: &[&str]) -> u32 {
    match arguments.first().copied() {
        Some("spin") => commands::spin(),
        Some("fpu") => fpu::both(),
        Some("fpu-half") => fpu::half(arguments.get(1).copied()),
        Some("bench") => bench::all(),
        Some("bench-yield") => bench::yield_forever(),
        _ => prompt::serve(),
    }
}

/// The programs that the shell is, besides the prompt.
const PROGRAMS: [&str; 3] = ["spin", "fpu", "bench"];

/// The arguments of a command as a started process gets them.
fn words(command: &[alloc::string::String]) -> Vec<&str> {
    command.iter().map(alloc::string::String::as_str).collect()
}
