//! **Opening a disk**: from what the user said to something a guest can read and write.
//!
//! An image is opened once, judged, and locked ([`locks`](super::locks)) before a byte of it is believed. Then its format
//! decides: [`raw`](super::raw) or [`qcow2`], and over either there may be a [`snapshot`](super::snapshot).

use super::config::{DiskConfig, Format, Writes, escaped};
use super::locks::{Holder, Lock, LockError, Use, lock};
use super::qcow2;
use super::raw::RawDisk;
use super::snapshot::Snapshot;
use super::{Disk, LONGEST_NAME, SECTOR};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What a qcow2 image begins with.
pub(super) const MAGIC_OF_QCOW2: [u8; 4] = *b"QFI\xfb";

/// Why a disk can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("can't open the disk image `{}`: {source}{}", file.display(), remedy(source))]
    Open {
        /// The image.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is something that has no fixed size.
    #[error("`{}` is {what}; a disk image is a regular file or a block device", file.display())]
    NotAnImage {
        /// What was to be an image.
        file: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// It has no bytes.
    #[error("the disk image `{0}` is empty; give it a size first, as in `truncate -s 1G {0}`", file.display())]
    Empty {
        /// The image.
        file: PathBuf,
    },
    /// It ends inside a sector, where a guest could write beyond its end.
    #[error(
        "the disk image `{0}` has {length} bytes, and sectors have {SECTOR}; lengthen it, as in `truncate -s {1} {0}`, or only \
         read it (ro or snapshot)", file.display(), length.next_multiple_of(SECTOR)
    )]
    PartialSector {
        /// The image.
        file: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// Somebody else has it.
    #[error(
        "the disk image `{}` is in use by {by}; only ro and snapshot disks can share an image, as long as nobody writes to it",
        file.display()
    )]
    InUse {
        /// The image.
        file: PathBuf,
        /// Who has it.
        by: Holder,
    },
    /// Its file system has no locks.
    #[error("can't lock the disk image `{}` against being used twice: {source}", file.display())]
    Lock {
        /// The image.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is damaged, or uses something we don't know.
    #[error("`{}` is no qcow2 image that can be used: {source}; `qemu-img check` tells more", file.display())]
    Qcow2 {
        /// The image.
        file: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It names another file, which the user hasn't.
    #[error(
        "the disk image `{}` is built upon `{}`, whose contents the guest would see; if it may, add `,backing={}`",
        file.display(), backing.display(), escaped(backing)
    )]
    BackingNotAllowed {
        /// The image.
        file: PathBuf,
        /// The file it names.
        backing: PathBuf,
    },
    /// It is built upon itself.
    #[error("the disk image `{}` is built upon `{}`, which is itself built upon it", file.display(), backing.display())]
    BackingLoop {
        /// The image.
        file: PathBuf,
        /// The file it names.
        backing: PathBuf,
    },
    /// There is no room for what is to be forgotten.
    #[error("can't make a temporary file for a snapshot of `{}`: {source}", file.display())]
    Overlay {
        /// The image.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What would help against the system's refusal.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "; `truncate -s 1G FILE` would make one",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; ro and snapshot disks needn't be writable"
        }
        _ => "",
    }
}

impl DiskConfig {
    /// Opens the disk.
    ///
    /// # Errors
    /// The image isn't there or can't be used, or somebody else uses it.
    pub fn open(&self) -> Result<Box<dyn Disk>, OpenError> {
        let usage = match self.writes {
            Writes::Image => Use::Write,
            Writes::Refused | Writes::Forgotten => Use::Read,
        };
        let image = Image::open(&self.file, usage)?;
        let room =
            (self.writes == Writes::Forgotten).then(|| image.room_for_overlay()).transpose()?;
        let disk: Box<dyn Disk> = match self.format.map_or_else(|| image.guess_format(), Ok)? {
            Format::Raw => Box::new(image.into_raw_disk(self.format.is_none())?),
            Format::Qcow2 => Box::new(qcow2::open(image, &self.backing)?),
        };
        Ok(match room {
            Some(overlay) => Box::new(Snapshot::new(disk, overlay)),
            None => disk,
        })
    }
}

/// An image that has been opened and locked.
pub(super) struct Image {
    pub(super) file: File,
    pub(super) lock: Lock,
    pub(super) path: PathBuf,
    pub(super) length: u64,
    pub(super) usage: Use,
    is_device: bool,
}

impl Image {
    pub(super) fn open(path: &Path, usage: Use) -> Result<Self, OpenError> {
        let path = path.to_owned();
        let failed = |source| OpenError::Open { file: path.clone(), source };
        // Judged before it is opened, which may wait forever if this is a pipe, and after, for it may have been changed.
        Self::judge(&path, &fs::metadata(&path).map_err(failed)?)?;
        let mut file =
            OpenOptions::new().read(true).write(usage == Use::Write).open(&path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        Self::judge(&path, &facts)?;
        let lock = lock(&file, usage).map_err(|error| match error {
            LockError::InUse(by) => OpenError::InUse { file: path.clone(), by },
            LockError::System(source) => OpenError::Lock { file: path.clone(), source },
        })?;
        // A device's length isn't among its facts.
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if length == 0 {
            return Err(OpenError::Empty { file: path });
        }
        Ok(Self { file, lock, path, length, usage, is_device: facts.file_type().is_block_device() })
    }

    fn judge(path: &Path, facts: &fs::Metadata) -> Result<(), OpenError> {
        let kind = facts.file_type();
        let what = match kind {
            _ if kind.is_file() || kind.is_block_device() => return Ok(()),
            _ if kind.is_dir() => "a directory",
            _ if kind.is_fifo() => "a pipe",
            _ if kind.is_socket() => "a socket",
            _ => "a character device",
        };
        Err(OpenError::NotAnImage { file: path.to_owned(), what })
    }

    pub(super) fn is_writable(&self) -> bool {
        self.usage == Use::Write
    }

    /// Which file this is, whatever it was called.
    pub(super) fn identity(&self) -> Result<(u64, u64), OpenError> {
        let facts = self
            .file
            .metadata()
            .map_err(|source| OpenError::Open { file: self.path.clone(), source })?;
        Ok((facts.dev(), facts.ino()))
    }

    /// The format that an image has if nobody said. A raw image can look like any other if a guest made it so, which is why
    /// [`RawDisk`] doesn't let a guest.
    pub(super) fn guess_format(&self) -> Result<Format, OpenError> {
        let mut start = [0; MAGIC_OF_QCOW2.len()];
        match self.file.read_exact_at(&mut start, 0) {
            Ok(()) if start == MAGIC_OF_QCOW2 => Ok(Format::Qcow2),
            Err(source) if source.kind() != ErrorKind::UnexpectedEof => {
                Err(OpenError::Open { file: self.path.clone(), source })
            }
            _ => Ok(Format::Raw),
        }
    }

    fn into_raw_disk(self, is_guess: bool) -> Result<RawDisk, OpenError> {
        if self.is_writable() && !self.length.is_multiple_of(SECTOR) {
            return Err(OpenError::PartialSector { file: self.path, length: self.length });
        }
        let is_read_only = !self.is_writable();
        Ok(RawDisk {
            name: self.name(),
            file: self.file,
            _lock: self.lock,
            length: self.length,
            is_read_only,
            is_guess,
        })
    }

    /// What a guest may call it: as much of the file's name as fits. Linux makes file names of it, so it is plain.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.chars()
            .map(|c| if c.is_ascii_graphic() && c != '/' { c } else { '_' })
            .take(LONGEST_NAME)
            .collect()
    }

    /// A file without a name. Where the image is there is room for images; but that may be a directory where we can't write,
    /// and what is beside a device is memory.
    fn room_for_overlay(&self) -> Result<File, OpenError> {
        let beside =
            self.path.parent().filter(|_| !self.is_device).map(|directory| {
                match directory.as_os_str() {
                    here if here.is_empty() => tempfile::tempfile_in("."),
                    _ => tempfile::tempfile_in(directory),
                }
            });
        let room = match beside {
            Some(Ok(file)) => Ok(file),
            _ => tempfile::tempfile(),
        };
        room.map_err(|source| OpenError::Overlay { file: self.path.clone(), source })
    }
}
