//! **Streams**: the guest's TCP connections, and finding the one that a packet is of.

use super::addresses::{Pair, from_host, on_host};
use super::poller::{Event, Poller, Who};
use super::resolver::Resolver;
use super::splice::{Fate, Splice};
use super::stack::Stack;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpPacket;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};

/// Connections at a time. Each has a descriptor of this process, of which there may be a thousand, and two buffers.
const STREAMS: usize = 256;

/// When to try again what the system had no means for, or a guest that isn't up yet.
pub(super) const LATER: Duration = Duration::from_millis(250);

pub(super) struct Streams {
    splices: HashMap<u64, Splice>,
    pairs: HashMap<Pair, u64>,
    /// The number of the next one. None is used twice, so what is told of a connection that's gone finds nobody.
    next: u64,
    forwards: Vec<Listening>,
}

/// The host's end of a forward.
struct Listening {
    listener: TcpListener,
    guest: SocketAddrV4,
    /// Somebody may be waiting to be let in, and should be then.
    due: Option<Instant>,
}

impl Streams {
    pub(super) fn new(
        forwards: Vec<(TcpListener, SocketAddrV4)>,
        poller: &Poller,
    ) -> io::Result<Streams> {
        let mut streams = Streams {
            splices: HashMap::new(),
            pairs: HashMap::new(),
            next: 0,
            forwards: Vec::new(),
        };
        for (index, (listener, guest)) in forwards.into_iter().enumerate() {
            poller.watch(&listener, Who::StreamForward(index as u64))?;
            streams.forwards.push(Listening { listener, guest, due: None });
        }
        Ok(streams)
    }

    /// A packet of the guest's: `segment` is what is in `packet`.
    pub(super) fn packet(
        &mut self,
        stack: &mut Stack,
        poller: &Poller,
        resolver: &mut Resolver,
        pair: Pair,
        (packet, segment): (&[u8], &TcpPacket<&[u8]>),
    ) {
        if let Some(&id) = self.pairs.get(&pair) {
            let Some(splice) = self.splices.get_mut(&id) else { return };
            let fate = splice.packet(stack, packet, segment);
            return self.settle(id, fate);
        }
        if !segment.syn() || segment.ack() || segment.rst() {
            return stack.refuse(packet);
        }
        let Some(address) = on_host(pair.there, || resolver.address()) else {
            return stack.refuse(packet);
        };
        // Who isn't answered calls again, and may find room then.
        if !self.has_room() && !self.make_room() {
            return;
        }
        let id = self.next;
        let called =
            call(address).and_then(|host| poller.watch(&host, Who::Stream(id)).map(|()| host));
        match called {
            Ok(host) => self.insert(Splice::calling(pair, host, packet)),
            Err(_) => stack.refuse(packet),
        }
    }

    /// Something happened on the host's side of one.
    pub(super) fn event(&mut self, stack: &mut Stack, id: u64, event: Event) {
        let Some(splice) = self.splices.get_mut(&id) else { return };
        let fate = splice.event(stack, event);
        self.settle(id, fate);
    }

    /// Somebody calls at a forward.
    pub(super) fn called(&mut self, index: u64, now: Instant) {
        if let Some(forward) =
            usize::try_from(index).ok().and_then(|index| self.forwards.get_mut(index))
        {
            forward.due = Some(now);
        }
    }

    /// Lets in who waits at the forwards, as far as there's room, and a guest. The others wait in the kernel.
    pub(super) fn let_in(&mut self, stack: &mut Stack, poller: &Poller) {
        for index in 0..self.forwards.len() {
            while self.forwards[index].due.is_some_and(|due| due <= stack.now) && self.has_room() {
                let forward = &mut self.forwards[index];
                if !stack.link.finds(*forward.guest.ip()) {
                    forward.due = Some(stack.now + LATER);
                    break;
                }
                match forward.listener.accept() {
                    Ok((host, caller)) => {
                        let guest = forward.guest;
                        self.connect(stack, poller, host, caller, guest);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => forward.due = None,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    // No descriptor left, say. There may be one later.
                    Err(_) => forward.due = Some(stack.now + LATER),
                }
            }
        }
    }

    fn connect(
        &mut self,
        stack: &mut Stack,
        poller: &Poller,
        host: TcpStream,
        caller: SocketAddr,
        guest: SocketAddrV4,
    ) {
        let Some(pair) = from_host(caller, guest, |pair| self.pairs.contains_key(pair)) else {
            return;
        };
        let ready = host
            .set_nonblocking(true)
            .and_then(|()| host.set_nodelay(true))
            .and_then(|()| poller.watch(&host, Who::Stream(self.next)));
        if let (Ok(()), Ok(splice)) = (ready, Splice::called(pair, host, stack)) {
            self.insert(splice);
        }
    }

    /// Serves those that have something to do.
    pub(super) fn serve(&mut self, stack: &mut Stack) {
        let is_due = |splice: &Splice| splice.due.is_some_and(|due| due <= stack.now);
        let due: Vec<u64> =
            self.splices.iter().filter(|(_, splice)| is_due(splice)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(splice) = self.splices.get_mut(&id) else { continue };
            let fate = splice.serve(stack);
            self.settle(id, fate);
        }
    }

    /// When one of them has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let forwards =
            self.forwards.iter().filter(|_| self.has_room()).filter_map(|forward| forward.due);
        self.splices.values().filter_map(|splice| splice.due).chain(forwards).min()
    }

    fn insert(&mut self, splice: Splice) {
        self.pairs.insert(splice.pair, self.next);
        self.splices.insert(self.next, splice);
        self.next += 1;
    }

    fn settle(&mut self, id: u64, fate: Fate) {
        if fate == Fate::GoesOn {
            return;
        }
        if let Some(splice) = self.splices.remove(&id) {
            self.pairs.remove(&splice.pair);
            splice.end(fate);
        }
    }

    fn has_room(&self) -> bool {
        self.splices.len() < STREAMS
    }

    /// Drops the call that has waited longest for an answer. A guest that calls everywhere where nobody is must not find that
    /// it can call nobody; nor one that is called where it doesn't answer.
    fn make_room(&mut self) -> bool {
        let oldest =
            self.splices.iter().filter(|(_, splice)| splice.is_calling()).map(|(id, _)| *id).min();
        oldest.is_some_and(|id| {
            self.settle(id, Fate::Ended);
            true
        })
    }
}

/// Begins to call somebody.
fn call(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let host = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&host, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let host = TcpStream::from(host);
    // The guest decides when its bytes go, as it has already.
    host.set_nodelay(true)?;
    Ok(host)
}
