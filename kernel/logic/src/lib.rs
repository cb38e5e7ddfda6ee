//! The parts of the guest's kernel and shell that only think.
//!
//! Reading an archive, a program's headers, a line that was typed: none of it needs the
//! machine, so it is kept apart from what does, without a line of unsafe code, and tested where
//! it is written, by `cargo test`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod archive;
pub mod areas;
pub mod calendar;
pub mod command_line;
pub mod line_discipline;
pub mod program;
pub mod start_stack;
