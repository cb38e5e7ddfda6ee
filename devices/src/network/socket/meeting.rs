//! **Meeting at a path**: who comes first listens there, who comes second calls.
//!
//! A socket's file stays when its listener dies; then callers are refused, and the next to come takes the path over. Two who
//! come at once might each remove the other's file, so whoever looks for a place holds a lock (flock(2)) on a file beside the
//! path, for that moment only.

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What one can be.
pub(super) enum Place {
    /// The first.
    Listening(Listener),
    /// The second.
    Joined(UnixStream),
}

/// Finds a place. `None`: somebody else is about to, and it should be tried again soon.
pub(super) fn meet(path: &Path) -> io::Result<Option<Place>> {
    let Some(_lock) = Lock::take(path)? else { return Ok(None) };
    match call(path) {
        Ok(stream) => Ok(Some(Place::Joined(stream))),
        // More callers than the listener has room for.
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(Errno::NOENT) => Listener::at(path).map(|listener| Some(Place::Listening(listener))),
        // Any file refuses callers, and only a socket may be removed.
        Err(Errno::CONNREFUSED) if fs::symlink_metadata(path)?.file_type().is_socket() => {
            fs::remove_file(path)?;
            Listener::at(path).map(|listener| Some(Place::Listening(listener)))
        }
        Err(Errno::CONNREFUSED) => {
            Err(io::Error::new(ErrorKind::AlreadyExists, "a file is there, and it is no socket"))
        }
        Err(error) => Err(error.into()),
    }
}

fn call(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// The first one's socket, whose file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    file: Identity,
}

impl Listener {
    fn at(path: &Path) -> io::Result<Listener> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Listener {
            listener,
            path: path.to_owned(),
            file: Identity::of(&fs::symlink_metadata(path)?),
        })
    }

    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    /// Nobody takes over a path while its listener lives, and it still does: so the file that is ours now stays ours until it's
    /// gone.
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| Identity::of(&now) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Which file a file is, whatever it's called.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The right to look for a place.
struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// `None` while another has it.
    fn take(path: &Path) -> io::Result<Option<Lock>> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let path = PathBuf::from(beside);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Who had it before us has removed the file; then what we locked is a file that nobody else will find.
        let ours = Identity::of(&file.metadata()?);
        let is_there = fs::symlink_metadata(&path).is_ok_and(|now| Identity::of(&now) == ours);
        Ok(is_there.then_some(Lock { _file: file, path }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While we hold the lock: so it is the file that is locked.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_listening(place: &io::Result<Option<Place>>) -> bool {
        matches!(place, Ok(Some(Place::Listening(_))))
    }

    #[test]
    fn the_first_listens_the_second_calls_and_no_file_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        let first = meet(&path);
        assert!(is_listening(&first));
        assert!(matches!(meet(&path), Ok(Some(Place::Joined(_)))));
        drop(first);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_ones_file_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        assert!(is_listening(&meet(&path)));
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        fs::write(&path, "precious").unwrap();
        let error = meet(&path).err().unwrap();
        assert_eq!(error.to_string(), "a file is there, and it is no socket");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_file_that_took_the_sockets_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        let first = meet(&path);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn of_many_who_come_at_once_one_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        for _ in 0..20 {
            // A dead one's file, over which they could fight.
            drop(UnixListener::bind(&path).unwrap());
            let come = || loop {
                if let Some(place) = meet(&path).unwrap() {
                    return place;
                }
            };
            let places: Vec<Place> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(come)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(
                places.iter().filter(|place| matches!(place, Place::Listening(_))).count(),
                1
            );
        }
    }
}
