//! **Who may use an image at once**: one who writes, or any number who read.
//!
//! Two guests that write to one disk destroy it, and so does a guest beside the program that repairs it. QEMU and its tools
//! guard their images by locks on single bytes of the file, and we speak the same language, so that they and we keep out of
//! each other's way. Each thing that can be done to an image has two bytes: a lock on one says *I do this*, and a lock on the
//! other *nobody else may*. All the locks are shared ones; whoever has taken his looks whether others' contradict them, and
//! steps back if so. (Two who come in the same instant may both step back.)
//!
//! They are locks of the open file, not of the process (`F_OFD_SETLK` in fcntl(2)): they end when its last descriptor is
//! closed, whichever way the process ends.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock};
use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be read, while nobody writes.
    Read,
    /// To be read and written, while nobody else writes or relies on its contents.
    Write,
}

/// Where these bytes begin. QEMU's documentation doesn't say, but `/proc/PID/fdinfo` of a QEMU does.
const I_DO: i64 = 100;
const NOBODY_ELSE_MAY: i64 = 200;

/// The things that can be done to an image, as offsets from these two.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What a use does.
const fn does(usage: Use) -> &'static [i64] {
    match usage {
        Use::Read => &[READ],
        Use::Write => &[READ, WRITE, RESIZE],
    }
}

/// What nobody else may do meanwhile, whatever the use.
const FORBIDDEN: &[i64] = &[WRITE, RESIZE];

/// Why an image couldn't be locked.
#[derive(Debug)]
pub(super) enum LockError {
    InUse(Holder),
    System(io::Error),
}

/// The locks on one open file, while this is alive.
///
/// Closing the file would be enough, if there were never a child process that has just been forked and hasn't yet run its
/// program: it has all our descriptors for that moment.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // If this fails, closing has to do.
        let everything = flock { l_len: 0, ..range(F_UNLCK, 0) };
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&everything));
    }
}

/// Locks `file` for a use.
pub(super) fn lock(file: &File, usage: Use) -> Result<Lock, LockError> {
    let lock = Lock(file.try_clone().map_err(LockError::System)?);
    let system = |error: Errno| LockError::System(error.into());
    for byte in on(I_DO, does(usage)).chain(on(NOBODY_ELSE_MAY, FORBIDDEN)) {
        fcntl(file, FcntlArg::F_OFD_SETLK(&range(F_RDLCK, byte))).map_err(system)?;
    }
    for byte in on(NOBODY_ELSE_MAY, does(usage)).chain(on(I_DO, FORBIDDEN)) {
        if is_locked_by_another(file, byte).map_err(system)? {
            return Err(LockError::InUse(Holder::find([file, &lock.0])));
        }
    }
    Ok(lock)
}

/// The bytes that say this of each of these.
fn on(say: i64, what: &[i64]) -> impl Iterator<Item = i64> {
    what.iter().map(move |what| say + what)
}

fn is_locked_by_another(file: &File, byte: i64) -> Result<bool, Errno> {
    // What is asked is whether an exclusive lock could be had. It isn't taken, so the file needn't be writable.
    let mut answer = range(F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    Ok(i32::from(answer.l_type) != F_UNLCK)
}

/// One byte of a file. The kinds of lock fit their field: they are 0, 1 and 2.
fn range(kind: i32, byte: i64) -> flock {
    flock { l_type: kind as i16, l_whence: SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Who has an image, as far as we may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process itself, by another descriptor.
    Ourselves,
    /// Another process, and its command's name.
    Process(u32, String),
    /// Someone whose files we can't look at.
    Unknown,
}

impl Holder {
    /// The kernel tells nobody whose such a lock is; but each process shows, for each of its files, whether there is a lock.
    fn find(ours: [&File; 2]) -> Self {
        let Ok(image) = ours[0].metadata() else { return Self::Unknown };
        let ourselves = std::process::id();
        for process in numbered("/proc") {
            for descriptor in numbered(&format!("/proc/{process}/fd")) {
                let is_image = fs::metadata(format!("/proc/{process}/fd/{descriptor}"))
                    .is_ok_and(|other| (other.dev(), other.ino()) == (image.dev(), image.ino()));
                let is_this = process == ourselves
                    && ours.iter().any(|file| i64::from(file.as_raw_fd()) == i64::from(descriptor));
                if !is_image || is_this {
                    continue;
                }
                let facts = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}"))
                    .unwrap_or_default();
                if !facts.contains("lock:") {
                    continue;
                }
                if process == ourselves {
                    return Self::Ourselves;
                }
                let command =
                    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
                return Self::Process(process, command.trim_end().to_owned());
            }
        }
        Self::Unknown
    }
}

/// The entries of a directory that are numbers.
fn numbered(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(Path::new(directory)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ourselves => write!(out, "this very process"),
            Self::Process(process, command) => write!(out, "process {process} ({command})"),
            Self::Unknown => write!(out, "another process"),
        }
    }
}
