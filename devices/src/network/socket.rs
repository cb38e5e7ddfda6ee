//! **The socket network**: a cable to another guest, or to another program, through a Unix socket's path.
//!
//! Two guests that are given the same path find each other, whichever comes first (`meeting`). Between them, frames go as
//! QEMU's `-netdev stream` and passt write them (`framing`), so either of those can be the other end as well. It may come
//! and go: what is sent while nobody is there is lost, as with a cable that's not plugged in.
//!
//! A thread does this, since there are several descriptors: the device's cable, the connection, and a listener.

mod framing;
mod meeting;

use super::Network;
use super::cable::{Arrival, End, Plug};
use framing::{Incoming, Outgoing};
use meeting::{Listener, Place};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of the longest path that an address has room for: unix(7), less the zero at the end.
pub const LONGEST_PATH: usize = 107;

/// How long somebody else may take to find a place, when we start.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to be apart before looking for the other again.
const APART: Duration = Duration::from_millis(200);
/// How long to wait while somebody else is finding a place.
const MOMENT: Duration = Duration::from_millis(10);

/// Takes a place at `path`: the listener's, or the one of who calls it.
///
/// # Errors
/// Neither can be had.
pub fn open(path: &Path) -> io::Result<Box<dyn Network>> {
    let began = Instant::now();
    let place = loop {
        match meeting::meet(path)? {
            Some(place) => break place,
            None if began.elapsed() < PATIENCE => std::thread::sleep(MOMENT),
            None => {
                let why = "somebody else has been about to listen or to call there for seconds";
                return Err(io::Error::new(ErrorKind::WouldBlock, why));
            }
        }
    };
    let mut exchange = Exchange::new(path.to_owned(), place);
    Ok(Box::new(Plug::into("socket network", move |end| {
        if let Err(error) = exchange.run(&end) {
            eprintln!("lguest: socket {}: the network has ended: {error}", exchange.path.display());
        }
    })?))
}

/// What the thread has.
struct Exchange {
    path: PathBuf,
    listener: Option<Listener>,
    peer: Option<Peer>,
    /// When to look for the other, if there is neither of those.
    next: Instant,
    /// Something was wrong and has been said, so it isn't said each time.
    said: bool,
}

/// The other end.
struct Peer {
    stream: UnixStream,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The cable had no room for what came.
    blocked: bool,
}

impl Exchange {
    fn new(path: PathBuf, place: Place) -> Exchange {
        let mut exchange =
            Exchange { path, listener: None, peer: None, next: Instant::now(), said: false };
        exchange.take(place);
        exchange
    }

    fn take(&mut self, place: Place) {
        self.said = false;
        match place {
            Place::Listening(listener) => self.listener = Some(listener),
            Place::Joined(stream) => self.peer = Some(Peer::new(stream)),
        }
    }

    /// Works until the cable is pulled out.
    fn run(&mut self, end: &End) -> io::Result<()> {
        let mut frame = vec![0; super::LONGEST_FRAME];
        loop {
            if self.is_apart() && Instant::now() >= self.next {
                self.meet();
            }
            self.wait(end)?;
            // What a peer said before it went is heard before another takes its place.
            self.hear(end)?;
            self.accept();
            if !self.speak(end, &mut frame)? {
                return Ok(());
            }
        }
    }

    fn is_apart(&self) -> bool {
        self.listener.is_none() && self.peer.is_none()
    }

    fn meet(&mut self) {
        self.next = Instant::now() + APART;
        match meeting::meet(&self.path) {
            Ok(Some(place)) => self.take(place),
            Ok(None) => self.next = Instant::now() + MOMENT,
            Err(error) => self.say_once(&format!("{error}; will try again")),
        }
    }

    fn say_once(&mut self, what: &str) {
        if !std::mem::replace(&mut self.said, true) {
            eprintln!("lguest: socket {}: {what}", self.path.display());
        }
    }

    /// Waits until one of the descriptors has something that can be dealt with.
    fn wait(&self, end: &End) -> io::Result<()> {
        let mut cable = PollFlags::IN;
        let mut descriptors = Vec::with_capacity(3);
        if let Some(peer) = &self.peer {
            cable = peer.cable_wants();
            descriptors.push(PollFd::new(&peer.stream, peer.stream_wants()));
        }
        descriptors.push(PollFd::new(end, cable));
        descriptors.extend(
            self.listener
                .iter()
                .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
        );
        let apart = self.is_apart().then(|| self.next.saturating_duration_since(Instant::now()));
        let apart =
            apart.map(|apart| Timespec { tv_sec: 0, tv_nsec: i64::from(apart.subsec_nanos()) });
        match poll(&mut descriptors, apart.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets in who calls, if nobody is there.
    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok(stream) if self.peer.is_none() => self.peer = Some(Peer::new(stream)),
                Ok(_) => self.say_once("a third wanted to join, but a cable has two ends"),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.say_once(&format!("can't let the other in: {error}")),
            }
        }
    }

    /// Takes what the other says to the cable.
    fn hear(&mut self, end: &End) -> io::Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        if let Err(gone) = peer.hear(end)? {
            self.part(gone);
        }
        Ok(())
    }

    /// Takes what the cable has to the other; `false` if it was pulled out.
    fn speak(&mut self, end: &End, frame: &mut [u8]) -> io::Result<bool> {
        while self.peer.as_ref().is_none_or(|peer| peer.outgoing.has_room()) {
            match end.receive(frame)? {
                Arrival::Unplugged => return Ok(false),
                Arrival::Nothing => break,
                Arrival::Frame(length) => {
                    self.peer.iter_mut().for_each(|peer| peer.outgoing.push(&frame[..length]));
                }
            }
        }
        if let Some(Err(error)) = self.peer.as_mut().map(|peer| peer.outgoing.write(&peer.stream)) {
            self.part(Gone::from(error));
        }
        Ok(true)
    }

    fn part(&mut self, gone: Gone) {
        self.peer = None;
        self.next = Instant::now() + APART;
        if let Gone::Garbage(why) = gone {
            // Each time: whoever sends such things should be looked after.
            eprintln!("lguest: socket {}: {why}; its connection is closed", self.path.display());
        }
    }
}

/// Why a peer isn't there any more.
enum Gone {
    /// It went.
    Left,
    /// It sent what makes no sense.
    Garbage(framing::BadLength),
}

impl From<io::Error> for Gone {
    /// Whatever the system calls it, the connection is no more.
    fn from(_: io::Error) -> Gone {
        Gone::Left
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Peer {
        Peer {
            stream,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            blocked: false,
        }
    }

    fn stream_wants(&self) -> PollFlags {
        let mut wants = PollFlags::empty();
        wants.set(PollFlags::IN, !self.blocked);
        wants.set(PollFlags::OUT, !self.outgoing.is_empty());
        wants
    }

    fn cable_wants(&self) -> PollFlags {
        let mut wants = PollFlags::empty();
        wants.set(PollFlags::IN, self.outgoing.has_room());
        wants.set(PollFlags::OUT, self.blocked);
        wants
    }

    /// Reads once, so that who never stops talking is still answered.
    fn hear(&mut self, end: &End) -> io::Result<Result<(), Gone>> {
        let mut has_read = false;
        loop {
            match self.incoming.frame() {
                Err(garbage) => return Ok(Err(Gone::Garbage(garbage))),
                Ok(Some(frame)) => {
                    self.blocked = !end.send(frame)?;
                    if self.blocked {
                        return Ok(Ok(()));
                    }
                    self.incoming.take_frame();
                }
                Ok(None) if has_read => return Ok(Ok(())),
                Ok(None) => match self.incoming.read(&self.stream) {
                    Ok(0) => return Ok(Err(Gone::Left)),
                    Ok(_) => has_read = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Ok(())),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Ok(Err(error.into())),
                },
            }
        }
    }
}
