//! **A qcow2 image**: a disk that takes as much room as was written to it, and may be built upon another image.
//!
//! The crate `imago` knows the format. What is ours is which files are opened. A qcow2 image may name a *backing file*, whose
//! contents show wherever the image has none of its own. The name is whatever the image's maker wrote there, `/etc/shadow` for
//! example; so only files that the user has named, too, are opened, to be read only.
//!
//! After each write the image's tables are stored, so that nothing is lost with this process, however it ends. If it is killed
//! inside a write, the image has clusters that nobody uses, or tables that aren't counted as used, which the next one who
//! opens it here mends ([`reference_counts`]); before QEMU does, `qemu-img check -r all` should. That is also what it takes when
//! the *machine* fails between two flushes, for what order it stores things in then is its own affair.

mod header;
mod reference_counts;

use self::header::{Header, invalid};
use self::reference_counts::mend;
use super::Disk;
use super::config::Format;
use super::locks::{Lock, Use};
use super::open::{Image, OpenError};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use std::fs;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

struct Qcow2Disk {
    /// Nothing, once the image has turned out to be a trap.
    access: Option<FormatAccess<ImageFile>>,
    size: u64,
    /// Of all the layers. They come after what they protect, which writes as it is dropped.
    _locks: Vec<Lock>,
    name: String,
    is_read_only: bool,
}

/// Opens a qcow2 image, and those of the `allowed` files that it is built upon.
pub(super) fn open(image: Image, allowed: &[PathBuf]) -> Result<impl Disk + use<>, OpenError> {
    let (name, is_read_only) = (image.name(), !image.is_writable());
    let mut layers = Layers { allowed, opened: Vec::new(), locks: Vec::new() };
    let access = layers.qcow2(image)?;
    let size = access.size();
    Ok(Qcow2Disk { access: Some(access), size, _locks: layers.locks, name, is_read_only })
}

/// An image and those below it, while they are opened.
struct Layers<'a> {
    allowed: &'a [PathBuf],
    /// Which files have been opened, so that none is twice: images built upon each other have no end.
    opened: Vec<(u64, u64)>,
    locks: Vec<Lock>,
}

impl Layers<'_> {
    fn qcow2(&mut self, image: Image) -> Result<FormatAccess<ImageFile>, OpenError> {
        self.opened.push(image.identity()?);
        let path = image.path.clone();
        let broken = |source| OpenError::Qcow2 { file: path.clone(), source };
        let header = Header::read(&image).map_err(broken)?;
        // To be writable, an image is changed as it is opened. One that we refuse, we leave as it is.
        let attempt = open_image(&image, false).map_err(broken)?;
        if attempt.requires_external_data_file() {
            let why = "its data is in another file, which isn't supported (`qemu-img convert` makes one file of the two)";
            return Err(broken(io::Error::new(ErrorKind::Unsupported, why)));
        }
        let backing = match attempt.implicit_backing_file() {
            Some(name) => Some(self.backing(
                &path,
                name,
                attempt.implicit_backing_format().map(String::as_str),
            )?),
            None => None,
        };
        let writable = image.is_writable();
        let mut qcow2 = if writable {
            mend(&image.file, &header).map_err(broken)?;
            open_image(&image, true).map_err(broken)?
        } else {
            attempt
        };
        qcow2.set_data_file(None);
        qcow2.set_backing(backing);
        self.locks.push(image.lock);
        Ok(FormatAccess::new(qcow2))
    }

    fn backing(
        &mut self,
        image: &Path,
        name: &str,
        format: Option<&str>,
    ) -> Result<FormatAccess<ImageFile>, OpenError> {
        let path = image.parent().unwrap_or(Path::new("")).join(name);
        if !self.allowed.iter().any(|allowed| is_same_file(allowed, &path)) {
            return Err(OpenError::BackingNotAllowed { file: image.to_owned(), backing: path });
        }
        let below = Image::open(&path, Use::Read)?;
        if self.opened.contains(&below.identity()?) {
            return Err(OpenError::BackingLoop { file: image.to_owned(), backing: path });
        }
        // Where the image doesn't say, a guess is safe: if it is wrong, it leads to no file that the user hasn't named.
        let format = match format {
            Some("qcow2") => Format::Qcow2,
            Some("raw" | "file") => Format::Raw,
            None => below.guess_format()?,
            Some(other) => {
                let why = format!(
                    "what it is built upon has the format `{other}`, and only raw and qcow2 are known"
                );
                return Err(OpenError::Qcow2 {
                    file: image.to_owned(),
                    source: io::Error::new(ErrorKind::Unsupported, why),
                });
            }
        };
        match format {
            Format::Qcow2 => self.qcow2(below),
            Format::Raw => {
                let raw = storage(&below, false).and_then(|file| Raw::open_image(file, false));
                self.locks.push(below.lock);
                Ok(FormatAccess::new(raw.map_err(|source| OpenError::Open { file: path, source })?))
            }
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|facts| (facts.dev(), facts.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// The image's file, as `imago` wants it.
fn storage(image: &Image, writable: bool) -> io::Result<ImageFile> {
    ImageFile::from_open_file(image.file.try_clone()?, StorageOpenOptions::new().write(writable))
}

/// Opens the image alone, without what it is built upon.
fn open_image(image: &Image, writable: bool) -> io::Result<Qcow2<ImageFile>> {
    let file = storage(image, writable)?;
    undeceived(|| Qcow2::open_image(file, writable)).unwrap_or_else(|| Err(contradiction()))
}

/// Does something to an image. `imago` doesn't doubt all that an image says of itself, and panics when it finds the
/// contradiction: then there is nothing.
fn undeceived<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}

fn contradiction() -> io::Error {
    invalid("the qcow2 image contradicts itself")
}

impl Qcow2Disk {
    /// Does something to the image. If it turns out to be a trap, its tables are half changed: they are never stored, and the
    /// disk is no more.
    fn guarded(
        &mut self,
        act: impl FnOnce(&FormatAccess<ImageFile>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(access) = &self.access else { return Err(contradiction()) };
        undeceived(|| act(access)).unwrap_or_else(|| {
            mem::forget(self.access.take());
            Err(contradiction())
        })
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // It would be done without us, but not as carefully. What went wrong is nobody's business any more: a guest that
        // wants to be sure flushes.
        let _ = self.guarded(FormatAccess::flush);
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.guarded(|access| access.read(into, offset))
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        if self.is_read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.guarded(|access| access.write(from, offset).and_then(|()| access.flush()))
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_read_only {
            return Ok(());
        }
        // Tables that couldn't be stored with their write may be able to now.
        self.guarded(|access| access.flush().and_then(|()| access.sync()))
    }
}
