//! The Guest: what a 32-bit x86 kernel needs to run under lguest.
//!
//! A kernel on a bare PC talks to its processor: it loads tables, switches stacks, turns interrupts
//! off and on. Under lguest it runs at privilege level 1, where it may do none of that, so it asks
//! its Host instead. This crate holds the asking. It is a library that any 32-bit kernel can use,
//! and knows nothing of a particular one.
//!
//! Everything that differs between a bare PC and a guest goes through one table of operations,
//! [`Machine`], which [`machine()`] returns. There is one back end, [`lguest`], and room for a
//! native one. The four operations that are too frequent for a table, on the interrupt flag, are
//! in [`interrupts`]: their call sites are rewritten in place at boot.
//!
//! # How the story goes
//!
//! 1. [`entry`]: the Host jumps to the code behind the words `GenuineLguest`.
//! 2. [`lguest`]: the kernel introduces itself, and calls are made, or queued.
//! 3. [`interrupts`], [`segments`], [`processor`], [`page_tables`]: the operations.
//! 4. [`time`], [`power`], [`dma`], [`device_pages`]: the world outside.
//!
//! It goes on in the crate `lguest-drivers`, and on the other side of the calls in `lguest-host`.
//!
//! # What a kernel provides
//!
//! | symbol | what it is |
//! |---|---|
//! | `kernel_page_offset` | an absolute symbol: where the linear map starts (from the linker script) |
//! | `kernel_boot_stack_top` | the end of a stack for booting |
//! | `kernel_main` | `extern "C" fn(&'static `[`BootParams`](boot::BootParams)`) -> !` |
//!
//! Its linker script keeps the section `.lguest.entry` (code) in the image, gives the
//! image's entry as `lguest_entry`, and places `lguest_sites` (read-only data) under its own name.
//! Code must be writable while [`patching`] rewrites it, as it is under the launcher's page tables.
//!
//! # Unsafe code
//!
//! It lives in five rooms: [`assembly`] (instructions), [`interrupts`] (call sites), [`patching`]
//! (rewriting them), [`boot`] and [`device_pages`] (memory that others laid out), beside `unsafe
//! fn`s, which pass their conditions on to the kernel.

#![no_std]
// The story goes through private rooms too, and the documentation is built with them.
#![allow(rustdoc::private_intra_doc_links)]

pub mod boot;
pub mod device_pages;
pub mod dma;
pub mod interrupts;
pub mod lazy;
pub mod lguest;
pub mod machine;
pub mod memory;
pub mod page_tables;
pub mod patching;
pub mod power;
pub mod processor;
pub mod segments;
pub mod time;

mod assembly;
mod entry;

pub use machine::{Machine, machine};
