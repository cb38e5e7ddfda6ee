//! The guest's files: what the initrd holds, and the shell, which comes with the kernel.
//!
//! They can only be read. [`open`] is what a process has opened; [`status`] puts what `stat` tells into Linux's forms.
//!
//! This is a room where unsafe code lives: the initrd as a slice.

pub(crate) mod open;
pub(crate) mod status;

use crate::interrupt_lock::InterruptLock;
use crate::memory::layout;
use lguest_guest::boot::BootParams;
use lguest_guest::memory;
use lguest_kernel_logic::archive::{Archive, File};
use lguest_system_calls::SHELL;

/// The shell's image, compiled before the kernel.
static SHELL_IMAGE: &[u8] = include_bytes!(env!("LGUEST_SHELL"));

static ARCHIVE: InterruptLock<Archive<'static>> = InterruptLock::new(Archive::new(&[]));

/// The mode of a program's file.
const PROGRAM: u32 = 0o100_755;

/// Finds the initrd. Answers how many files are in it; None when there is none, or the linear map doesn't show it.
pub(crate) fn init(boot: &BootParams) -> Option<usize> {
    let range = boot.initrd().filter(|range| range.end <= layout::linear_end(boot))?;
    let start = core::ptr::with_exposed_provenance(memory::virt(range.start).0 as usize);
    let bytes = (range.end.0 - range.start.0) as usize;
    // SAFETY: the launcher put it there, the linear map shows it, and its memory is never given to anybody.
    let archive = Archive::new(unsafe { core::slice::from_raw_parts(start, bytes) });
    ARCHIVE.with(|place| *place = archive);
    Some(archive.files().count())
}

/// The archive.
pub(crate) fn archive() -> Archive<'static> {
    ARCHIVE.with(|archive| *archive)
}

/// The file at a path; links are followed.
pub(crate) fn find(path: &str) -> Option<File<'static>> {
    special(path).or_else(|| archive().find(path))
}

/// The file at a path; a link is the file.
pub(crate) fn find_link(path: &str) -> Option<File<'static>> {
    special(path).or_else(|| archive().find_link(path))
}

/// The files that aren't in the archive.
fn special(path: &str) -> Option<File<'static>> {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    match (parts.next(), parts.next()) {
        (Some(name), None) if name == SHELL.trim_start_matches('/') => Some(File {
            path: SHELL.trim_start_matches('/'),
            mode: PROGRAM,
            inode: 2,
            modified: 0,
            contents: SHELL_IMAGE,
            links: None,
        }),
        _ => None,
    }
}
