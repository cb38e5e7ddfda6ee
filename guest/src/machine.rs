//! The table of operations, and which back end fills it.
//!
//! Each chapter declares a trait for its part of what a processor does for a kernel. A [`Machine`]
//! does all of them, and [`machine()`] says which one this is.

use crate::interrupts::Interrupts;
use crate::lguest::Lguest;
use crate::page_tables::PageTables;
use crate::power::Power;
use crate::processor::Processor;
use crate::segments::Segments;
use crate::time::Time;

/// What a kernel runs on.
pub trait Machine: Interrupts + Segments + Processor + PageTables + Time + Power + Sync {
    /// Its name, for a line at boot.
    fn name(&self) -> &'static str;
}

/// What this kernel runs on.
///
/// There is one kind so far. A native back end would be told apart here, by which entry point was
/// taken.
#[must_use]
pub fn machine() -> &'static dyn Machine {
    &Lguest
}
