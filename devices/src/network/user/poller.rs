//! **Waiting for many**: one descriptor (epoll) says which of the others have something.
//!
//! It says so when that changes, not while it is so: whoever is told remembers until the system says "not now". So a thread
//! with hundreds of connections asks nothing about those where nothing happens.

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use smoltcp::time::Duration;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Who has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The guest's cable.
    Link,
    /// The host's end of a stream, by its number.
    Stream(u64),
    /// The host's end of a conversation in datagrams.
    Datagrams(u64),
    /// A forward's listener.
    StreamForward(u64),
    /// A forward's socket.
    DatagramForward(u64),
}

/// What there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) who: Who,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// Events told at once.
const EVENTS: usize = 64;
/// Kinds of [`Who`].
const KINDS: u64 = 5;

pub(super) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(super) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Tells of that descriptor from now on, until it is closed.
    pub(super) fn watch(&self, descriptor: impl AsFd, who: Who) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
        Ok(epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(who.into()), flags)?)
    }

    /// Waits until there is something, or for so long, and calls `tell` with each.
    pub(super) fn wait(
        &self,
        longest: Option<Duration>,
        mut tell: impl FnMut(Event),
    ) -> io::Result<()> {
        let longest = longest.map(|longest| Timespec {
            tv_sec: longest.secs().try_into().unwrap_or(i64::MAX),
            // Rounded up, by whoever counts in microseconds: a deadline has passed when it's said to have.
            tv_nsec: (longest.micros() * 1000).try_into().unwrap_or(0),
        });
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut events, longest.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events {
            use epoll::EventFlags as Flags;
            let flags = event.flags;
            // Trouble is learnt by trying.
            let trouble = flags.intersects(Flags::ERR | Flags::HUP);
            let readable = trouble || flags.intersects(Flags::IN | Flags::RDHUP);
            let writable = trouble || flags.contains(Flags::OUT);
            if let Some(who) = Who::from_number(event.data.u64()) {
                tell(Event { who, readable, writable });
            }
        }
        Ok(())
    }
}

impl From<Who> for u64 {
    fn from(who: Who) -> u64 {
        match who {
            Who::Link => 0,
            Who::Stream(id) => id * KINDS + 1,
            Who::Datagrams(id) => id * KINDS + 2,
            Who::StreamForward(index) => index * KINDS + 3,
            Who::DatagramForward(index) => index * KINDS + 4,
        }
    }
}

impl Who {
    fn from_number(number: u64) -> Option<Who> {
        let rest = number / KINDS;
        match number % KINDS {
            0 => (rest == 0).then_some(Who::Link),
            1 => Some(Who::Stream(rest)),
            2 => Some(Who::Datagrams(rest)),
            3 => Some(Who::StreamForward(rest)),
            _ => Some(Who::DatagramForward(rest)),
        }
    }
}
