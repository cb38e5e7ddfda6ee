//! **A splice**: one connection of the guest's, made of two. smoltcp speaks with the guest, the kernel with the other side, and
//! this carries bytes from one to the other.
//!
//! A call of the guest's is answered when the other side has answered ours: so one that is refused is refused, not first taken
//! and then dropped. An end that is finished on one side is finished on the other when the bytes before it have been carried;
//! the other direction goes on, as long as it likes. What broke on one side is broken on the other.

use super::addresses::Pair;
use super::poller::Event;
use super::stack::Stack;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{ConnectError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpEndpoint, TcpPacket};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Bytes on their way in each direction. It is the window the guest sees: what can be under way while its processor, maybe a
/// slow one, looks elsewhere.
const BUFFER: usize = 128 << 10;
/// After so long in silence the guest is asked whether it's still there,
const ASK_AFTER: Duration = Duration::from_secs(120);
/// and after so long without a word it isn't: it was restarted, and remembers nothing.
const GONE_AFTER: Duration = Duration::from_secs(600);

pub(super) struct Splice {
    pub(super) pair: Pair,
    host: TcpStream,
    guest: Guest,
    /// What the system said last about the host's side.
    readable: bool,
    writable: bool,
    /// The other side has sent its last byte, and the guest's socket knows.
    host_finished: bool,
    /// The guest has: it is sent to us,
    guest_finishing: bool,
    /// and carried.
    guest_finished: bool,
    /// When to look after it even if nothing happens.
    pub(super) due: Option<Instant>,
}

/// The guest's side.
enum Guest {
    /// It calls. This was its call, to be answered when ours has been.
    Calling { call: Vec<u8> },
    /// It speaks, or is being called.
    Speaking { sockets: SocketSet<'static>, handle: SocketHandle },
}

/// How a splice fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    GoesOn,
    Ended,
    /// It ended so that the other side must be told that something broke.
    Broken,
}

impl Splice {
    /// The guest's `call` to somebody whom `host` is calling.
    pub(super) fn calling(pair: Pair, host: TcpStream, call: &[u8]) -> Splice {
        Splice::new(pair, host, Guest::Calling { call: call.to_vec() })
    }

    /// A call to the guest, from whoever is at the other end of `host`.
    pub(super) fn called(
        pair: Pair,
        host: TcpStream,
        stack: &mut Stack,
    ) -> Result<Splice, ConnectError> {
        let mut socket = socket();
        socket.connect(
            stack.context(),
            IpEndpoint::from(pair.guest),
            IpEndpoint::from(pair.there),
        )?;
        let (sockets, handle) = alone(socket);
        let mut splice = Splice::new(pair, host, Guest::Speaking { sockets, handle });
        splice.due = Some(stack.now);
        Ok(splice)
    }

    fn new(pair: Pair, host: TcpStream, guest: Guest) -> Splice {
        Splice {
            pair,
            host,
            guest,
            readable: false,
            writable: false,
            host_finished: false,
            guest_finishing: false,
            guest_finished: false,
            due: None,
        }
    }

    /// Whether it may still come to nothing: one of the two sides hasn't answered, or the guest hasn't heard.
    pub(super) fn is_calling(&self) -> bool {
        let Guest::Speaking { sockets, handle } = &self.guest else { return true };
        let state = sockets.get::<Socket<'_>>(*handle).state();
        matches!(state, State::SynSent | State::SynReceived)
    }

    /// A packet of the guest's has come.
    pub(super) fn packet(
        &mut self,
        stack: &mut Stack,
        packet: &[u8],
        segment: &TcpPacket<&[u8]>,
    ) -> Fate {
        match &mut self.guest {
            // It gives up.
            Guest::Calling { .. } if segment.rst() => return Fate::Broken,
            // It calls again, since nobody has answered yet. Or it was restarted, and the new call is the one to answer.
            Guest::Calling { call } if segment.syn() => *call = packet.to_vec(),
            Guest::Calling { .. } => {}
            Guest::Speaking { sockets, handle } => {
                stack.give(packet, sockets);
                let state = sockets.get::<Socket<'_>>(*handle).state();
                self.guest_finishing |= matches!(
                    state,
                    State::CloseWait | State::LastAck | State::Closing | State::TimeWait
                );
                self.due = Some(stack.now);
            }
        }
        Fate::GoesOn
    }

    /// Something happened on the host's side.
    pub(super) fn event(&mut self, stack: &mut Stack, event: Event) -> Fate {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.due = Some(stack.now);
        let Guest::Calling { call } = &self.guest else { return Fate::GoesOn };
        match self.answer() {
            Ok(true) => {
                let mut socket = socket();
                // A new socket, for a port that isn't zero: it listens.
                if socket.listen(IpEndpoint::from(self.pair.there)).is_err() {
                    return Fate::Broken;
                }
                let (mut sockets, handle) = alone(socket);
                stack.give(call, &mut sockets);
                self.guest = Guest::Speaking { sockets, handle };
                Fate::GoesOn
            }
            Ok(false) => Fate::GoesOn,
            Err(_) => {
                stack.refuse(call);
                Fate::Ended
            }
        }
    }

    /// Whether the other side has answered: `false` for "not yet".
    fn answer(&self) -> io::Result<bool> {
        if let Some(error) = self.host.take_error()? {
            return Err(error);
        }
        match self.host.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Carries what there is to carry, sends what there is to send, and says when to do it again.
    pub(super) fn serve(&mut self, stack: &mut Stack) -> Fate {
        let Guest::Speaking { sockets, handle } = &mut self.guest else {
            self.due = None;
            return Fate::GoesOn;
        };
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let carried = to_host(socket, &mut self.host, &mut self.writable).and_then(|()| {
            to_guest(socket, &mut self.host, &mut self.readable, &mut self.host_finished)
        });
        if self.guest_finishing && !self.guest_finished && !socket.can_recv() {
            self.guest_finished = true;
            // It fails if the other side has gone away, which reading tells too.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        if carried.is_err() {
            socket.abort();
        }
        stack.flush(sockets);
        self.due = stack.due(sockets);
        if carried.is_err() { Fate::Ended } else { self.fate(stack) }
    }

    fn fate(&self, stack: &Stack) -> Fate {
        let Guest::Speaking { sockets, handle } = &self.guest else { return Fate::GoesOn };
        match sockets.get::<Socket<'_>>(*handle).state() {
            State::Closed if !self.guest_finishing => Fate::Broken,
            // The guest broke off before it heard our answer. The socket waits for another call, which nobody would find it for.
            State::Listen => Fate::Broken,
            State::Closed if self.guest_finished => Fate::Ended,
            // smoltcp would wait a while, for packets that took a longer way. There is one way here. But our last answer must
            // have gone: without it the guest says its goodbye again, to nobody.
            State::TimeWait if self.guest_finished && stack.link.has_room() => Fate::Ended,
            _ => Fate::GoesOn,
        }
    }

    /// Ends it.
    pub(super) fn end(self, fate: Fate) {
        if fate == Fate::Broken {
            // Closing then tells the other side "reset", instead of "that was all".
            let _ = rustix::net::sockopt::set_socket_linger(
                &self.host,
                Some(std::time::Duration::ZERO),
            );
        }
    }
}

fn socket() -> Socket<'static> {
    let mut socket =
        Socket::new(SocketBuffer::new(vec![0; BUFFER]), SocketBuffer::new(vec![0; BUFFER]));
    // Bytes come here when somebody has sent them: to wait for more isn't ours to decide.
    socket.set_nagle_enabled(false);
    // Several packets are taken before any is answered, so an answer is as late as it should be.
    socket.set_ack_delay(None);
    socket.set_keep_alive(Some(ASK_AFTER));
    socket.set_timeout(Some(GONE_AFTER));
    socket
}

fn alone(socket: Socket<'static>) -> (SocketSet<'static>, SocketHandle) {
    let mut sockets = SocketSet::new(Vec::with_capacity(1));
    let handle = sockets.add(socket);
    (sockets, handle)
}

/// What one attempt came to.
enum Attempt {
    Carried,
    NotNow,
    Finished,
    Failed(io::Error),
}

fn attempt(result: io::Result<usize>) -> (usize, Attempt) {
    match result {
        Ok(0) => (0, Attempt::Finished),
        Ok(bytes) => (bytes, Attempt::Carried),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (0, Attempt::NotNow),
        Err(error) if error.kind() == ErrorKind::Interrupted => (0, Attempt::Carried),
        Err(error) => (0, Attempt::Failed(error)),
    }
}

/// Carries what the guest sent, as far as the other side takes it.
fn to_host(socket: &mut Socket<'_>, host: &mut TcpStream, writable: &mut bool) -> io::Result<()> {
    while *writable && socket.can_recv() {
        let tried = socket.recv(|bytes| attempt(host.write(bytes)));
        match tried {
            Ok(Attempt::Carried) => {}
            Ok(Attempt::NotNow) => *writable = false,
            Ok(Attempt::Failed(error)) => return Err(error),
            Ok(Attempt::Finished) | Err(_) => break,
        }
    }
    Ok(())
}

/// Carries what the other side sent, as far as the guest's buffer takes it.
fn to_guest(
    socket: &mut Socket<'_>,
    host: &mut TcpStream,
    readable: &mut bool,
    finished: &mut bool,
) -> io::Result<()> {
    while *readable && !*finished && socket.can_send() {
        let tried = socket.send(|room| attempt(host.read(room)));
        match tried {
            Ok(Attempt::Carried) => {}
            Ok(Attempt::NotNow) => *readable = false,
            Ok(Attempt::Failed(error)) => return Err(error),
            Ok(Attempt::Finished) => {
                *finished = true;
                socket.close();
            }
            Err(_) => break,
        }
    }
    Ok(())
}
