//! **The user network**: a little network that exists only in this process, and a gateway from it to the host's.
//!
//! The guest's cable ends here, in a thread. On it the guest finds what it would find at home: somebody who gives it an address
//! (DHCP), a gateway, a resolver of names. What it says to the gateway for the world outside is said again by ordinary sockets
//! of this process, and what those hear is said to the guest. So the guest reaches what this process may reach, with this
//! process's rights and no others; and it is reached only where the command line said so.
//!
//! The addresses are those of QEMU's user network, which people know. The story:
//! - [`addresses`]: who is who on the little network, and who that is on the host's;
//! - `link`: frames, in and out, and the neighbours' hardware addresses; `fragments`: datagrams longer than a frame;
//! - `dhcp` and `echo`: what the gateway answers itself;
//! - `datagrams`: UDP, a socket for each conversation; `resolver`: where questions about names go;
//! - `streams` and `splice`: TCP. One connection of the guest's becomes two: the guest's with us, spoken by smoltcp, and ours
//!   with whom it meant, spoken by the host's kernel. Bytes are carried from one to the other;
//! - `poller` and `router`: the thread itself, which waits for all of those and serves whichever has something to do.
//!
//! **A hostile guest** may send anything. It can't make this grow: conversations, connections, fragments, neighbours and
//! queued frames are all counted, and each has its most. When a table is full the least of its entries makes room or the
//! newcomer isn't heard, as on a busy router. What isn't understood is dropped.
//!
//! **Neither side is read faster than the other takes it.** A connection's buffer that is full closes the guest's window or
//! leaves the host's bytes in the kernel; a cable that is full leaves everything where it is.

pub mod addresses;
mod datagrams;
mod dhcp;
mod echo;
mod fragments;
mod link;
mod poller;
mod resolver;
mod router;
mod splice;
mod stack;
mod streams;

use super::cable::Plug;
use super::config::{OpenError, UserConfig};
use super::{Network, Protocol};
use std::io;
use std::net::{TcpListener, UdpSocket};

/// The host's ends of the forwards, each with the guest's.
#[derive(Debug, Default)]
struct Forwards {
    streams: Vec<(TcpListener, std::net::SocketAddrV4)>,
    datagrams: Vec<(UdpSocket, std::net::SocketAddrV4)>,
}

/// Makes such a network, with the device's end of its cable.
///
/// # Errors
/// A port to forward can't be had, or a thread.
pub fn open(config: &UserConfig) -> Result<Box<dyn Network>, OpenError> {
    let mut forwards = Forwards::default();
    for forward in &config.forwards {
        listen(forward, &mut forwards).map_err(|source| OpenError::Forward {
            host: forward.host,
            guest: forward.guest,
            source,
        })?;
    }
    let resolver = resolver::Resolver::new(config.resolver);
    let poller = poller::Poller::new().map_err(OpenError::Thread)?;
    let plug = Plug::into("user network", move |end| {
        if let Err(error) =
            router::Router::new(end, poller, resolver, forwards).and_then(router::Router::run)
        {
            eprintln!("lguest: the user network has ended: {error}");
        }
    });
    Ok(Box::new(plug.map_err(OpenError::Thread)?))
}

fn listen(forward: &super::Forward, forwards: &mut Forwards) -> io::Result<()> {
    match forward.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(forward.host)?;
            listener.set_nonblocking(true)?;
            forwards.streams.push((listener, forward.guest));
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(forward.host)?;
            socket.set_nonblocking(true)?;
            forwards.datagrams.push((socket, forward.guest));
        }
    }
    Ok(())
}
