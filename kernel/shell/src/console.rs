//! Printing to standard output, a line at a time.

use crate::system;
use alloc::string::String;
use core::fmt::{Arguments, Write};

/// Prints, in one write if it can be: what several processes print at once isn't mixed up.
pub(crate) fn print(text: Arguments<'_>) {
    let mut line = String::new();
    // Writing to a string doesn't fail.
    let _ = line.write_fmt(text);
    let mut rest = line.as_bytes();
    while let Ok(written @ 1..) = system::write(system::STDOUT, rest) {
        rest = rest.get(written as usize..).unwrap_or_default();
    }
}

/// `println!`, by way of the kernel.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
pub(crate) use say;
