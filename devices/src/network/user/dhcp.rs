//! **DHCP**: the guest asks what its address is (RFC 2131), and everybody gets the same answer, for there is one cable.

use super::addresses::{GATEWAY, GUEST, MASK, NAMES};
use super::link::Link;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};
use std::iter;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Where the giver listens.
pub(super) const SERVER: u16 = 67;
/// Where the taker does.
const CLIENT: u16 = 68;
/// Seconds for which the address is given. It doesn't matter: whoever asks again gets it again.
const LEASE: u32 = 86400;

/// Answers a message to the giver of addresses.
pub(super) fn answer(link: &mut Link, message: &[u8]) {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return };
    let Ok(asked) = DhcpRepr::parse(&packet) else { return };
    // To another giver, whom there can't be: it isn't ours to answer.
    if asked.server_identifier.is_some_and(|server| server != GATEWAY) {
        return;
    }
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let (said, given) = match asked.message_type {
        DhcpMessageType::Discover => (DhcpMessageType::Offer, GUEST),
        DhcpMessageType::Request if wanted == GUEST => (DhcpMessageType::Ack, GUEST),
        DhcpMessageType::Request => (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED),
        // It has an address and wants to know the rest.
        DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
        _ => return,
    };
    say(link, &asked, said, given);
}

fn say(link: &mut Link, asked: &DhcpRepr<'_>, said: DhcpMessageType, given: Ipv4Addr) {
    let refused = said == DhcpMessageType::Nak;
    let to_know = |address: Ipv4Addr| (!refused).then_some(address);
    let answer = DhcpRepr {
        message_type: said,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { asked.client_ip },
        your_ip: given,
        server_ip: GATEWAY,
        router: to_know(GATEWAY),
        subnet_mask: to_know(MASK),
        relay_agent_ip: asked.relay_agent_ip,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: to_know(NAMES).map(|names| iter::once(names).collect()),
        max_size: None,
        lease_duration: (given == GUEST).then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut message = vec![0; answer.buffer_len()];
    if answer.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).is_err() {
        return;
    }
    // To everybody: who has no address yet hears that, and there is nobody else.
    link.datagram(
        SocketAddrV4::new(GATEWAY, SERVER),
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT),
        &message,
    );
}
