//! **The cable** between a network device and the thread that is its network: a pair of sockets that keep frames apart.
//!
//! The system's own socket buffer is the queue in it, so it is bounded, and a full one is said to the sender, never waited
//! for. Pulling out the device's end ends the thread; a thread that ends is a network that is gone.

use super::{LONGEST_FRAME, Network};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

/// Bytes of the shortest frame: its header. Shorter ones are nobody's.
pub(super) const HEADER: usize = 14;

/// One end of a cable.
#[derive(Debug)]
pub(super) struct End(OwnedFd);

/// What became of a frame on the way in.
pub(super) enum Arrival {
    /// One of so many bytes came.
    Frame(usize),
    /// None is there.
    Nothing,
    /// The other end is gone.
    Unplugged,
}

/// Both ends of a new cable.
pub(super) fn cable() -> io::Result<(End, End)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((End(one), End(other)))
}

impl End {
    /// Takes the next frame.
    pub(super) fn receive(&self, frame: &mut [u8]) -> io::Result<Arrival> {
        loop {
            match rustix::net::recv(&self.0, &mut *frame, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(Arrival::Unplugged),
                Ok((length, _)) => return Ok(Arrival::Frame(length)),
                Err(Errno::AGAIN) => return Ok(Arrival::Nothing),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(Arrival::Unplugged),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a frame, if there is room: `false` when not. One that no Ethernet has is dropped here, which also keeps an empty
    /// one from looking like the other end's going.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<bool> {
        if !(HEADER..=LONGEST_FRAME).contains(&frame.len()) {
            return Ok(true);
        }
        loop {
            match rustix::net::send(&self.0, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(true),
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
                // Longer than this system's buffers ever have room for.
                Err(Errno::MSGSIZE) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A network that a thread is: the device's end of the cable.
#[derive(Debug)]
pub(super) struct Plug {
    /// There until it's pulled out.
    end: Option<End>,
    thread: Option<JoinHandle<()>>,
}

impl Plug {
    /// Lets `serve` be the network, in a thread of its own, with the other end of a new cable. It returns soon after that end
    /// says [`Arrival::Unplugged`].
    pub(super) fn into(name: &str, serve: impl FnOnce(End) + Send + 'static) -> io::Result<Plug> {
        let (end, other) = cable()?;
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || serve(other))?;
        Ok(Plug { end: Some(end), thread: Some(thread) })
    }

    fn end(&self) -> &End {
        self.end.as_ref().expect("only drop pulls it out")
    }
}

impl Network for Plug {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.end().as_fd()
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match self.end().receive(frame)? {
            Arrival::Frame(length) => Ok(Some(length)),
            Arrival::Nothing => Ok(None),
            Arrival::Unplugged => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the network's thread has ended"))
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        self.end().send(frame)
    }
}

impl Drop for Plug {
    /// The thread has descriptors, ports and a socket's file to give back: whoever drops the network may want them next.
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It has said why it panicked, if it did.
            let _ = thread.join();
        }
    }
}
