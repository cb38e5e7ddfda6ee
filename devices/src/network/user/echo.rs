//! **Echo, and bad news**: ICMP (RFC 792), as far as the gateway speaks it.
//!
//! Ours answer an echo themselves. An echo to others would need a right that this process mostly hasn't, so the guest is told
//! that it is prohibited, which `ping` prints, instead of waiting.

use super::addresses::{Pair, is_for_many, is_ours};
use super::link::Link;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Repr, UDP_HEADER_LEN, UdpPacket,
};
use std::net::Ipv4Addr;

/// Bytes of a message that bad news about it repeat (RFC 1812, 4.3.2.3: the whole is to be no longer than 576).
const QUOTED: usize = 576 - 20 - 8 - 20;

/// Answers what came for `to`.
pub(super) fn answer(link: &mut Link, from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) {
    let Ok(packet) = Icmpv4Packet::new_checked(message) else { return };
    let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) =
        Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())
    else {
        return;
    };
    if is_ours(to) {
        say(link, to, from, &Icmpv4Repr::EchoReply { ident, seq_no, data });
    } else if !is_for_many(to) {
        let header = quoted(from, to, IpProtocol::Icmp, message.len());
        let data = &message[..message.len().min(QUOTED)];
        let reason = Icmpv4DstUnreachable::CommProhibited;
        say(
            link,
            super::addresses::GATEWAY,
            from,
            &Icmpv4Repr::DstUnreachable { reason, header, data },
        );
    }
}

/// Tells the guest that nobody hears its datagrams to `pair.there`, the last of which had `length` bytes.
pub(super) fn nobody_there(link: &mut Link, pair: &Pair, length: usize) {
    let (from, to) = (*pair.guest.ip(), *pair.there.ip());
    if is_for_many(to) {
        return;
    }
    let mut data = [0; UDP_HEADER_LEN];
    let mut datagram = UdpPacket::new_unchecked(&mut data);
    let length = UDP_HEADER_LEN + length;
    datagram.set_src_port(pair.guest.port());
    datagram.set_dst_port(pair.there.port());
    datagram.set_len(u16::try_from(length).unwrap_or(u16::MAX));
    let header = quoted(from, to, IpProtocol::Udp, length);
    let reason = Icmpv4DstUnreachable::PortUnreachable;
    say(link, to, from, &Icmpv4Repr::DstUnreachable { reason, header, data: &data });
}

fn quoted(
    src_addr: Ipv4Addr,
    dst_addr: Ipv4Addr,
    next_header: IpProtocol,
    payload_len: usize,
) -> Ipv4Repr {
    // A header has room for no more, and what is quoted may have come in pieces.
    let payload_len = payload_len.min(usize::from(u16::MAX) - smoltcp::wire::IPV4_HEADER_LEN);
    Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: 64 }
}

fn say(link: &mut Link, from: Ipv4Addr, to: Ipv4Addr, what: &Icmpv4Repr<'_>) {
    let mut message = vec![0; what.buffer_len()];
    what.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &ChecksumCapabilities::default());
    link.payload(from, to, IpProtocol::Icmp, &message);
}
