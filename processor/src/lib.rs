//! **The Processor's privileged half**: what only kernels use, as the manual says it.
//!
//! The Switcher runs code, and leaves when it meets an instruction that is for kernels: what that
//! means depends on registers and tables that the Switcher doesn't have. They are here, with the
//! instructions that work on them.
//!
//! Two kinds of system are built on it. [`bare`] is the manual's own: a kernel at level 0 whose page
//! tables, descriptor tables and gates lie in its memory. The lguest Host is the other: its kernel runs at
//! level 1, and says by hypercall what another would write into tables. What is different
//! between them is a method of [`System`]; everything else is here once.
//!
//! The story, in order:
//! - [`system`]: what a system decides for itself;
//! - [`registers`]: control, debug and model-specific registers, and the tables' registers;
//! - [`instructions`]: the privileged instructions, by groups: `flags`, `control`, `descriptor_tables`,
//!   `model_specific`, `ports`, `fast_calls`;
//! - [`cpuid`]: what processor this is; [`stack`]: where on a stack something is; [`exceptions`]: which of them are
//!   faults;
//! - [`paging`]: the walk through page tables;
//! - [`bare`]: gates, delivery, and a processor that has all of it.
//!
//! "SDM" is Intel's *64 and IA-32 Architectures Software Developer's Manual*.

#![forbid(unsafe_code)]

pub mod bare;
pub mod cpuid;
pub mod exceptions;
pub mod instructions;
pub mod paging;
pub mod registers;
pub mod stack;
pub mod system;

pub use instructions::{Done, Effect, execute};
pub use registers::{SystemRegisters, SystemSegment, TableRegister};
pub use system::{PagingChange, System, Table};
