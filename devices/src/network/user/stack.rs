//! **The stack**: smoltcp's TCP, standing where every address of the world is its own.
//!
//! A socket of smoltcp's lives in a set, and a packet is offered to each socket of a set. Here every connection has a set of its
//! own, and [`super::streams`] finds the connection before smoltcp sees the packet: so a packet costs the same whether there is
//! one connection or hundreds. A packet offered to an empty set is answered as one for a port where nobody listens.

use super::addresses::{GATEWAY, PREFIX};
use super::link::{Link, MTU};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::hash::{BuildHasher, Hasher, RandomState};

pub(super) struct Stack {
    pub(super) link: Link,
    pub(super) now: Instant,
    interface: Interface,
    /// Who answers where nobody is.
    nobody: SocketSet<'static>,
}

impl Stack {
    pub(super) fn new(mut link: Link) -> Stack {
        let mut config = Config::new(HardwareAddress::Ip);
        // The first sequence numbers must not be guessed. The hasher's keys are the system's random numbers.
        config.random_seed = RandomState::new().build_hasher().finish();
        let mut interface =
            Interface::new(config, &mut Port { link: &mut link, arrived: None }, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for one: smoltcp's smallest table has it.
            let _ = addresses.push(IpCidr::new(GATEWAY.into(), PREFIX));
        });
        interface.set_any_ip(true);
        // What isn't on the little network isn't sent to either, but smoltcp wants to know a way.
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY);
        Stack { link, now: Instant::ZERO, interface, nobody: SocketSet::new(Vec::new()) }
    }

    /// What a socket needs to connect.
    pub(super) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    /// Gives a packet to those sockets.
    pub(super) fn give(&mut self, packet: &[u8], sockets: &mut SocketSet<'_>) {
        let mut port = Port { link: &mut self.link, arrived: Some(packet) };
        self.interface.poll_ingress_single(self.now, &mut port, sockets);
    }

    /// Answers a packet as a port does where nobody listens.
    pub(super) fn refuse(&mut self, packet: &[u8]) {
        let mut port = Port { link: &mut self.link, arrived: Some(packet) };
        self.interface.poll_ingress_single(self.now, &mut port, &mut self.nobody);
    }

    /// Sends what those sockets have to send, while there's room.
    pub(super) fn flush(&mut self, sockets: &mut SocketSet<'_>) {
        let mut port = Port { link: &mut self.link, arrived: None };
        while self.interface.poll_egress(self.now, &mut port, sockets)
            == PollResult::SocketStateChanged
        {}
    }

    /// When those sockets want to be asked again.
    pub(super) fn due(&mut self, sockets: &SocketSet<'_>) -> Option<Instant> {
        self.interface.poll_at(self.now, sockets)
    }
}

/// The link, as smoltcp knows one.
struct Port<'a> {
    link: &'a mut Link,
    arrived: Option<&'a [u8]>,
}

struct Arrived<'a>(&'a [u8]);

struct Departing<'a>(&'a mut Link);

impl Device for Port<'_> {
    type RxToken<'a>
        = Arrived<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Departing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Departing<'_>)> {
        self.arrived.take().map(|packet| (Arrived(packet), Departing(&mut *self.link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departing<'_>> {
        self.link.has_room().then_some(Departing(&mut *self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Departing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        self.0.packet(length, fill)
    }
}
