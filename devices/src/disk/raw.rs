//! **A raw image**: the bytes of the disk are the bytes of the file.
//!
//! Nothing is kept here: what was written is the kernel's at once, and outlives this process however it ends. A flush makes it
//! outlive the machine. Holes of the file stay holes until they are written to.

use super::locks::Lock;
use super::open::MAGIC_OF_QCOW2;
use super::{Disk, SECTOR};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

pub(super) struct RawDisk {
    pub(super) file: File,
    pub(super) _lock: Lock,
    pub(super) name: String,
    /// What the file's length is. The disk may end with the sector in the middle of which the file does.
    pub(super) length: u64,
    pub(super) is_read_only: bool,
    /// Nobody said that this is a raw image, it just didn't look like another: see [`RawDisk::would_change_format`].
    pub(super) is_guess: bool,
}

impl RawDisk {
    /// Whether a guest is about to make its raw image look like a qcow2 one. Whoever opened it next would believe that, and
    /// with it the size, the contents and the backing file that the guest made up. Where the format was said and not
    /// guessed the guest may write what it likes, for then nobody looks.
    fn would_change_format(&self, offset: u64, from: &[u8]) -> bool {
        self.is_guess && offset == 0 && from.starts_with(&MAGIC_OF_QCOW2)
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.length.next_multiple_of(SECTOR)
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let in_file = usize::try_from(self.length.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(into.len());
        let (in_file, beyond) = into.split_at_mut(in_file);
        beyond.fill(0);
        self.file.read_exact_at(in_file, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the image has become shorter since it was opened")
            }
            _ => error,
        })
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        if self.is_read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        if self.would_change_format(offset, from) {
            let why = "this would turn the image into a qcow2 one for whoever opens it next; format=raw permits it";
            return Err(io::Error::new(ErrorKind::PermissionDenied, why));
        }
        self.file.write_all_at(from, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_read_only { Ok(()) } else { self.file.sync_data() }
    }
}
