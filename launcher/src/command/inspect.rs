//! `lguest inspect`: what the loader sees in a kernel.
//!
//! The lines are explained in the command's help. They are for people; that they keep their order and their names is for
//! scripts.

use crate::arguments::Inspect;
use crate::failure::Failure;
use crate::kernel_file;
use lguest::Kernel;
use lguest::loader::{BzImage, Format};
use signal_hook::consts::SIGPIPE;
use std::fmt::Display;
use std::io::{self, Write};

/// Prints it, or why it is no kernel.
pub(crate) fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let kernel = kernel_file::read(&arguments.kernel, arguments.abi)?;
    let out = &mut io::stdout().lock();
    let written = writeln!(out, "{}: {}", arguments.kernel.display(), kernel.format())
        .and_then(|()| describe(&kernel, out));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Signal(SIGPIPE),
        _ => Failure::System("the description can't be written", error),
    })
}

fn describe(kernel: &Kernel, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    if let Some(banner) = kernel.banner() {
        line(out, "banner", banner)?;
    }
    match kernel.generation() {
        Ok(generation) => {
            line(out, "interface", format_args!("{generation}: {}", generation.kernels()))?;
        }
        Err(none) => line(out, "interface", format_args!("none: {none}"))?,
    }
    line(out, "guest support", if kernel.has_guest_support() { "yes" } else { "not seen" })?;
    if let Format::BzImage(bzimage) = kernel.format() {
        describe_bzimage(&bzimage, out)?;
    }
    line(out, "load address", kernel.start())?;
    line(out, "memory", memory(kernel))?;
    line(out, "mapped at", kernel.page_offset())?;
    line(out, "entry", kernel.entry())?;
    writeln!(out)?;
    writeln!(out, "  physical    virtual     in file    in memory")?;
    for segment in kernel.segments() {
        let virt = segment.phys().wrapping_add(kernel.page_offset().0);
        let (file, memory) = (segment.bytes().len(), segment.size());
        writeln!(out, "  {}  {virt}  {file:>9}  {memory:>9}", segment.phys())?;
    }
    Ok(())
}

/// What a bzImage says beside what is in its kernel.
fn describe_bzimage(BzImage { header, payload }: &BzImage, out: &mut impl Write) -> io::Result<()> {
    line(out, "boot protocol", header.protocol)?;
    let sizes = format_args!(
        "{}, {} bytes at {:#x}, unpacked {}",
        payload.compression, payload.packed, payload.at, payload.unpacked
    );
    line(out, "payload", sizes)?;
    line(out, "command line", format_args!("{} bytes", header.command_line_limit))?;
    match header.relocatable {
        Some(alignment) => {
            line(out, "relocatable", format_args!("yes, to multiples of {alignment:#x}"))
        }
        None => line(out, "relocatable", "no"),
    }
}

/// How far it reaches in memory, loaded and, if that is further, starting.
fn memory(kernel: &Kernel) -> String {
    let loaded = kernel.end();
    let starting = match kernel.format() {
        Format::BzImage(BzImage { header, .. }) => header.init_size,
        Format::Elf => None,
    };
    let starting = starting.map(|size| u64::from(kernel.start().0) + u64::from(size));
    match starting.filter(|&starting| starting > loaded) {
        Some(starting) => format!("to {loaded:#010x}, and to {starting:#010x} while it starts"),
        None => format!("to {loaded:#010x}"),
    }
}

fn line(out: &mut impl Write, name: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "  {name:<14} {value}")
}
