//! **Datagrams**: the guest's UDP. Each pair of ports that speak is a conversation, with a socket of its own: so an answer, or
//! "nobody there", finds its way back. Nobody says that a conversation is over; it is when nothing was said for a while.

use super::addresses::{Pair, from_host, on_host};
use super::echo;
use super::poller::{Event, Poller, Who};
use super::resolver::Resolver;
use super::stack::Stack;
use super::streams::LATER;
use smoltcp::time::{Duration, Instant};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};

/// Conversations at a time; a new one makes the one that has been silent longest be forgotten.
const CONVERSATIONS: usize = 256;
/// For how long one may be silent (RFC 4787 wants two minutes at least).
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of the longest datagram that fits behind our headers.
const LONGEST: usize = 65507;
/// Datagrams taken from one socket before the others have their turn.
const TURN: usize = 64;

pub(super) struct Datagrams {
    conversations: HashMap<u64, Conversation>,
    pairs: HashMap<Pair, u64>,
    callers: HashMap<(usize, SocketAddr), u64>,
    /// The number of the next one; none is used twice.
    next: u64,
    forwards: Vec<Forward>,
    buffer: Vec<u8>,
}

struct Conversation {
    pair: Pair,
    way: Way,
    spoken: Instant,
    /// Something may have come.
    ready: bool,
    /// Bytes of the guest's last datagram.
    last: usize,
}

/// How what the guest says goes out.
enum Way {
    /// By a socket for this conversation.
    Own(UdpSocket),
    /// By the forward's, to whoever called there.
    Forward(usize, SocketAddr),
}

/// The host's end of a forward.
struct Forward {
    socket: UdpSocket,
    guest: SocketAddrV4,
    /// Something may have come, and should be looked at then.
    due: Option<Instant>,
}

impl Datagrams {
    pub(super) fn new(
        forwards: Vec<(UdpSocket, SocketAddrV4)>,
        poller: &Poller,
    ) -> io::Result<Datagrams> {
        let mut datagrams = Datagrams {
            conversations: HashMap::new(),
            pairs: HashMap::new(),
            callers: HashMap::new(),
            next: 0,
            forwards: Vec::new(),
            buffer: vec![0; LONGEST],
        };
        for (index, (socket, guest)) in forwards.into_iter().enumerate() {
            poller.watch(&socket, Who::DatagramForward(index as u64))?;
            datagrams.forwards.push(Forward { socket, guest, due: None });
        }
        Ok(datagrams)
    }

    /// The guest says something.
    pub(super) fn said(
        &mut self,
        stack: &mut Stack,
        poller: &Poller,
        resolver: &mut Resolver,
        pair: Pair,
        payload: &[u8],
    ) {
        let known = self.pairs.get(&pair).copied();
        let Some(id) = known.or_else(|| self.begin(stack.now, poller, resolver, pair)) else {
            return echo::nobody_there(&mut stack.link, &pair, payload.len());
        };
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.spoken = stack.now;
        conversation.last = payload.len();
        match &conversation.way {
            Way::Own(socket) => {
                // What went wrong with the datagram before is said first.
                if refused(&socket.send(payload)) {
                    echo::nobody_there(&mut stack.link, &pair, payload.len());
                    let _ = socket.send(payload);
                }
            }
            Way::Forward(index, caller) => {
                // As with any datagram, it arrives or it doesn't.
                let _ = self.forwards[*index].socket.send_to(payload, caller);
            }
        }
    }

    fn begin(
        &mut self,
        now: Instant,
        poller: &Poller,
        resolver: &mut Resolver,
        pair: Pair,
    ) -> Option<u64> {
        let address = on_host(pair.there, || resolver.address())?;
        self.make_room();
        let socket = socket_to(address).ok()?;
        poller.watch(&socket, Who::Datagrams(self.next)).ok()?;
        Some(self.insert(pair, Way::Own(socket), now))
    }

    fn insert(&mut self, pair: Pair, way: Way, now: Instant) -> u64 {
        let id = self.next;
        self.next += 1;
        if let Way::Forward(index, caller) = way {
            self.callers.insert((index, caller), id);
        }
        self.pairs.insert(pair, id);
        self.conversations
            .insert(id, Conversation { pair, way, spoken: now, ready: false, last: 0 });
        id
    }

    fn forget(&mut self, id: u64) {
        let Some(conversation) = self.conversations.remove(&id) else { return };
        self.pairs.remove(&conversation.pair);
        if let Way::Forward(index, caller) = conversation.way {
            self.callers.remove(&(index, caller));
        }
    }

    fn make_room(&mut self) {
        if self.conversations.len() >= CONVERSATIONS {
            let silent =
                self.conversations.iter().min_by_key(|(_, conversation)| conversation.spoken);
            silent.map(|(id, _)| *id).into_iter().for_each(|id| self.forget(id));
        }
    }

    /// Something may have come for a conversation.
    pub(super) fn event(&mut self, id: u64, event: Event) {
        if let Some(conversation) = self.conversations.get_mut(&id) {
            conversation.ready |= event.readable;
        }
    }

    /// Somebody may have said something at a forward.
    pub(super) fn called(&mut self, index: u64, now: Instant) {
        if let Some(forward) =
            usize::try_from(index).ok().and_then(|index| self.forwards.get_mut(index))
        {
            forward.due = Some(now);
        }
    }

    /// Takes what has come to the guest, as far as there's room, and forgets what was silent too long.
    pub(super) fn serve(&mut self, stack: &mut Stack) {
        for conversation in self.conversations.values_mut() {
            conversation.serve(stack, &mut self.buffer);
        }
        for index in 0..self.forwards.len() {
            self.serve_forward(stack, index);
        }
        let over = |conversation: &Conversation| conversation.spoken + SILENCE <= stack.now;
        let silent: Vec<u64> =
            self.conversations.iter().filter(|(_, it)| over(it)).map(|(id, _)| *id).collect();
        silent.into_iter().for_each(|id| self.forget(id));
    }

    fn serve_forward(&mut self, stack: &mut Stack, index: usize) {
        for _ in 0..TURN {
            let forward = &mut self.forwards[index];
            if forward.due.is_none_or(|due| due > stack.now) || !stack.link.has_room() {
                return;
            }
            // What is said to a guest that isn't up yet is kept where it is, as far as there's room.
            if !stack.link.finds(*forward.guest.ip()) {
                forward.due = Some(stack.now + LATER);
                return;
            }
            match forward.socket.recv_from(&mut self.buffer) {
                Ok((length, caller)) => {
                    let guest = forward.guest;
                    self.heard_at_forward(stack, (index, caller), guest, length);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => forward.due = None,
                // About something sent before, to somebody who isn't there any more.
                Err(_) => {}
            }
        }
    }

    fn heard_at_forward(
        &mut self,
        stack: &mut Stack,
        caller: (usize, SocketAddr),
        guest: SocketAddrV4,
        length: usize,
    ) {
        let id = match self.callers.get(&caller) {
            Some(id) => *id,
            None => {
                self.make_room();
                let Some(pair) = from_host(caller.1, guest, |pair| self.pairs.contains_key(pair))
                else {
                    return;
                };
                self.insert(pair, Way::Forward(caller.0, caller.1), stack.now)
            }
        };
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.spoken = stack.now;
        stack.link.datagram(
            conversation.pair.there,
            conversation.pair.guest,
            &self.buffer[..length],
        );
    }

    /// When there is something to do.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let due = |it: &Conversation| if it.ready { now } else { it.spoken + SILENCE };
        let forwards = self.forwards.iter().filter_map(|forward| forward.due);
        self.conversations.values().map(due).chain(forwards).min()
    }
}

impl Conversation {
    fn serve(&mut self, stack: &mut Stack, buffer: &mut [u8]) {
        let Way::Own(socket) = &self.way else { return };
        for _ in 0..TURN {
            if !self.ready || !stack.link.has_room() {
                return;
            }
            match socket.recv(buffer) {
                Ok(length) => {
                    self.spoken = stack.now;
                    stack.link.datagram(self.pair.there, self.pair.guest, &buffer[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.ready = false,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    echo::nobody_there(&mut stack.link, &self.pair, self.last);
                }
                // Unreachable for a while, say.
                Err(_) => {}
            }
        }
    }
}

fn refused(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn socket_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::super::addresses::{GATEWAY, GUEST};
    use super::super::link::Link;
    use super::*;
    use crate::network::cable::{Arrival, End, cable};
    use smoltcp::wire::EthernetAddress;

    struct Network {
        stack: Stack,
        guest: End,
        poller: Poller,
        datagrams: Datagrams,
    }

    impl Network {
        fn new(forwards: Vec<(UdpSocket, SocketAddrV4)>) -> Network {
            let (end, guest) = cable().unwrap();
            let mut stack = Stack::new(Link::new(end));
            stack.link.met(GUEST, EthernetAddress([2, 0, 0, 0, 0, 1]));
            let poller = Poller::new().unwrap();
            let datagrams = Datagrams::new(forwards, &poller).unwrap();
            Network { stack, guest, poller, datagrams }
        }

        fn serve_at(&mut self, seconds: i64) {
            self.stack.now = Instant::from_secs(seconds);
            self.datagrams.serve(&mut self.stack);
        }

        fn say(&mut self, pair: Pair, payload: &[u8]) {
            let Network { stack, poller, datagrams, .. } = self;
            datagrams.said(stack, poller, &mut Resolver::new(None), pair, payload);
        }

        fn guest_hears(&self) -> bool {
            matches!(self.guest.receive(&mut [0; 2000]), Ok(Arrival::Frame(_)))
        }
    }

    #[test]
    fn who_was_silent_for_two_minutes_is_forgotten() {
        let host = UdpSocket::bind("127.0.0.1:0").unwrap();
        host.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let there = SocketAddrV4::new(GATEWAY, host.local_addr().unwrap().port());
        let mut network = Network::new(Vec::new());
        let pair = |port| Pair { guest: SocketAddrV4::new(GUEST, port), there };
        let say = |network: &mut Network, port| {
            network.say(pair(port), b"?");
            host.recv_from(&mut [0; 9]).unwrap().1
        };
        let known = |network: &Network| {
            let known = |port: &u16| network.datagrams.pairs.contains_key(&pair(*port));
            (1..=3).filter(known).collect::<Vec<u16>>()
        };
        let addresses = [1, 2, 3].map(|port| say(&mut network, port));
        // One says more, one hears something, and one does neither.
        network.serve_at(100);
        say(&mut network, 1);
        host.send_to(b"!", addresses[1]).unwrap();
        let id = network.datagrams.pairs[&pair(2)];
        network
            .datagrams
            .event(id, Event { who: Who::Datagrams(id), readable: true, writable: true });
        network.serve_at(100);
        assert!(network.guest_hears());
        network.serve_at(119);
        assert_eq!(known(&network), [1, 2, 3]);
        network.serve_at(120);
        assert_eq!(known(&network), [1, 2]);
        network.serve_at(220);
        assert_eq!((known(&network), network.datagrams.conversations.len()), (vec![], 0));
        // And is known again when it says something.
        say(&mut network, 3);
    }

    #[test]
    fn what_is_said_after_a_refusal_is_said_all_the_same() {
        let host = UdpSocket::bind("127.0.0.1:0").unwrap();
        host.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let there = SocketAddrV4::new(GATEWAY, host.local_addr().unwrap().port());
        let pair = Pair { guest: SocketAddrV4::new(GUEST, 1), there };
        let mut network = Network::new(Vec::new());
        // It hears only somebody else; then the guest.
        host.connect("127.0.0.1:9").unwrap();
        network.say(pair, b"lost");
        let Way::Own(socket) = &network.datagrams.conversations[&0].way else { panic!() };
        host.connect(socket.local_addr().unwrap()).unwrap();
        network.say(pair, b"heard");
        assert!(network.guest_hears(), "bad news of the first");
        let mut heard = [0; 9];
        assert_eq!(host.recv(&mut heard).unwrap(), 5);
        assert_eq!(&heard[..5], b"heard");
    }

    #[test]
    fn a_caller_who_was_forgotten_may_call_again() {
        let host = UdpSocket::bind("127.0.0.1:0").unwrap();
        host.set_nonblocking(true).unwrap();
        let there = host.local_addr().unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut network = Network::new(vec![(host, SocketAddrV4::new(GUEST, 80))]);
        for seconds in [0, 120] {
            network.serve_at(seconds);
            caller.send_to(b"?", there).unwrap();
            network.datagrams.called(0, network.stack.now);
            network.serve_at(seconds);
            assert!(network.guest_hears(), "after {seconds} seconds");
        }
    }
}
