//! `lguest inspect`: what the loader sees in a kernel.

use crate::failure::Failure;
use lguest::Kernel;
use signal_hook::consts::SIGPIPE;
use std::io::{self, Write};
use std::path::Path;

/// Prints it, or why it is no kernel.
pub(crate) fn inspect(path: &Path) -> Result<(), Failure> {
    let kernel = Kernel::read(path).map_err(Failure::Kernel)?;
    describe(path, &kernel, &mut io::stdout().lock()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Signal(SIGPIPE),
        _ => Failure::System("the description can't be written", error),
    })
}

fn describe(path: &Path, kernel: &Kernel, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}: {}", path.display(), kernel.format())?;
    writeln!(out)?;
    writeln!(out, "  physical    virtual     in file    in memory")?;
    for segment in kernel.segments() {
        let virt = segment.phys().wrapping_add(kernel.page_offset().0);
        let (file, memory) = (segment.bytes().len(), segment.size());
        writeln!(out, "  {}  {virt}  {file:>9}  {memory:>9}", segment.phys())?;
    }
    writeln!(out)?;
    writeln!(out, "  memory is mapped at  {}", kernel.page_offset())?;
    writeln!(out, "  the lguest entry is  {}", kernel.entry())?;
    writeln!(out, "  it takes memory to   {:#010x}", kernel.end())
}
