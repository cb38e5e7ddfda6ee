//! **Who is who** on the little network: 10.0.2.0/24, as QEMU has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// The network.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
/// How much of an address is the network's.
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// [`MASK`], counted.
pub const PREFIX: u8 = 24;
/// The gateway, which is also the host's own loopback: a server on the host's 127.0.0.1 is the guest's 10.0.2.2.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Who knows names.
pub const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// What the guest is given when it asks.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Everybody on the network.
pub const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 255);

/// The hardware address that answers for all of ours: QEMU's too.
pub const HARDWARE: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// The port of whoever knows names.
const DOMAIN: u16 = 53;

/// A conversation as the guest sees it: its own end, and the one it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) guest: SocketAddrV4,
    pub(super) there: SocketAddrV4,
}

/// Whether an address is on the little network.
fn is_here(address: Ipv4Addr) -> bool {
    address & MASK == NETWORK
}

/// Whether an address is one of ours.
pub(super) fn is_ours(address: Ipv4Addr) -> bool {
    address == GATEWAY || address == NAMES
}

/// Whether an address may be a guest's.
#[must_use]
pub fn is_guests(address: Ipv4Addr) -> bool {
    is_here(address) && address.octets()[3] > NAMES.octets()[3] && address != EVERYBODY
}

/// Whether an address means more than one: then nobody answers with an error.
pub(super) fn is_for_many(address: Ipv4Addr) -> bool {
    address.is_broadcast() || address.is_multicast() || address == EVERYBODY
}

/// Where on the host's networks is what the guest calls `there`? `resolver` is who knows names. `None` where there can't be
/// anything: a loopback of the guest's own, a neighbour it doesn't have.
pub(super) fn on_host(
    there: SocketAddrV4,
    resolver: impl FnOnce() -> SocketAddr,
) -> Option<SocketAddr> {
    let address = *there.ip();
    let nowhere = address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 224;
    match address {
        _ if there.port() == 0 => None,
        GATEWAY => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, there.port()))),
        NAMES if there.port() == DOMAIN => Some(resolver()),
        _ if is_here(address) || nowhere => None,
        _ => Some(there.into()),
    }
}

/// Who is a caller from outside to the guest? Itself where the guest can tell it from its own neighbours, else the gateway.
/// `taken` says which conversations exist: of those that look alike, the later one gets another port.
pub(super) fn from_host(
    caller: SocketAddr,
    guest: SocketAddrV4,
    taken: impl Fn(&Pair) -> bool,
) -> Option<Pair> {
    let address = match caller.ip().to_canonical() {
        IpAddr::V4(v4)
            if !v4.is_loopback() && !v4.is_unspecified() && !is_here(v4) && !is_for_many(v4) =>
        {
            v4
        }
        _ => GATEWAY,
    };
    let after = (caller.port()..=u16::MAX).chain(1..caller.port()).filter(|port| *port != 0);
    let mut pairs = after.map(|port| Pair { guest, there: SocketAddrV4::new(address, port) });
    pairs.find(|pair| !taken(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLVER: &str = "192.0.2.53:5353";

    #[test]
    fn what_the_guest_calls_there_is_somewhere_or_nowhere() {
        let table = [
            ("10.0.2.2:80", Some("127.0.0.1:80")),
            ("10.0.2.3:53", Some(RESOLVER)),
            ("10.0.2.3:80", None),
            ("10.0.2.15:80", None),
            ("10.0.2.255:80", None),
            ("127.0.0.1:80", None),
            ("0.0.0.0:80", None),
            ("224.0.0.1:80", None),
            ("255.255.255.255:80", None),
            ("192.0.2.1:0", None),
            ("192.0.2.1:443", Some("192.0.2.1:443")),
            ("10.0.3.2:443", Some("10.0.3.2:443")),
        ];
        for (there, host) in table {
            let found = on_host(there.parse().unwrap(), || RESOLVER.parse().unwrap());
            assert_eq!(found, host.map(|host| host.parse().unwrap()), "{there}");
        }
    }

    #[test]
    fn a_caller_is_itself_or_the_gateway_and_never_two() {
        let guest = SocketAddrV4::new(GUEST, 80);
        let table = [
            ("127.0.0.1:4000", "10.0.2.2:4000"),
            ("192.0.2.9:4000", "192.0.2.9:4000"),
            ("10.0.2.77:4000", "10.0.2.2:4000"),
            ("[::1]:4000", "10.0.2.2:4000"),
            ("[::ffff:192.0.2.9]:4000", "192.0.2.9:4000"),
        ];
        for (caller, seen) in table {
            let pair = from_host(caller.parse().unwrap(), guest, |_| false).unwrap();
            assert_eq!(pair, Pair { guest, there: seen.parse().unwrap() }, "{caller}");
        }
        let second =
            from_host("127.0.0.2:65535".parse().unwrap(), guest, |pair| pair.there.port() > 2);
        assert_eq!(second.unwrap().there, "10.0.2.2:1".parse().unwrap());
        assert_eq!(from_host("127.0.0.2:7".parse().unwrap(), guest, |_| true), None);
    }
}
