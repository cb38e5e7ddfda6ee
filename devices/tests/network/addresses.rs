//! What the gateway answers itself: addresses, hardware addresses, echoes.

use super::datagrams::{frame, packet};
use super::guest::{GATEWAY, GUEST, Guest, HARDWARE, NAMES};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Cidr, Ipv4Packet,
};
use std::net::Ipv4Addr;

#[test]
fn a_guest_that_asks_gets_an_address() {
    let mut guest = Guest::without_address("user");
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let lease = guest.until("a lease", |guest| {
        match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => Some((
                lease.address,
                lease.router,
                lease.dns_servers.to_vec(),
                lease.server.identifier,
            )),
            _ => None,
        }
    });
    assert_eq!(lease, (Ipv4Cidr::new(GUEST, 24), Some(GATEWAY), vec![NAMES], GATEWAY));
}

fn arp(
    guest: &mut Guest,
    from: Ipv4Addr,
    wanted: Ipv4Addr,
) -> Option<(EthernetAddress, EthernetAddress)> {
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: HARDWARE,
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: wanted,
    };
    let mut bytes = [0; 60];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(HARDWARE);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_ethertype(EthernetProtocol::Arp);
    question.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    guest.wire.send(&bytes);
    let answer = guest.wire.receive(300)?;
    let frame = EthernetFrame::new_checked(&answer[..]).unwrap();
    assert_eq!(frame.ethertype(), EthernetProtocol::Arp);
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap()
    else {
        panic!("another kind of network");
    };
    assert_eq!(
        (operation, source_protocol_addr, target_protocol_addr),
        (ArpOperation::Reply, wanted, from)
    );
    Some((frame.dst_addr(), source_hardware_addr))
}

#[test]
fn only_the_gateways_addresses_are_somebodys() {
    let gateway = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
    let mut guest = Guest::without_address("user");
    assert_eq!(arp(&mut guest, GUEST, GATEWAY), Some((HARDWARE, gateway)));
    assert_eq!(arp(&mut guest, GUEST, NAMES), Some((HARDWARE, gateway)));
    // Is the address that I've been given free? Yes: nobody answers. Are yours? No.
    assert_eq!(arp(&mut guest, Ipv4Addr::UNSPECIFIED, GUEST), None);
    assert_eq!(arp(&mut guest, Ipv4Addr::UNSPECIFIED, GATEWAY), Some((HARDWARE, gateway)));
    assert_eq!(arp(&mut guest, GUEST, Ipv4Addr::new(10, 0, 2, 77)), None);
}

/// What comes back when an echo is asked for.
fn ping(to: Ipv4Addr, bytes: usize) -> String {
    let mut guest = Guest::without_address("user");
    let data = vec![0xa5; bytes];
    let echo = Icmpv4Repr::EchoRequest { ident: 0x1234, seq_no: 7, data: &data };
    let mut message = vec![0; echo.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &checksums);
    guest.wire.send(&frame(&packet(IpProtocol::Icmp, to, &message, (0, false))));
    let answer = guest.wire.receive(300).expect("an answer");
    let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    let from = packet.src_addr();
    match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(packet.payload()).unwrap(), &checksums)
        .unwrap()
    {
        Icmpv4Repr::EchoReply { ident: 0x1234, seq_no: 7, data: back } if back == data => {
            format!("{from} answers")
        }
        Icmpv4Repr::DstUnreachable {
            reason: Icmpv4DstUnreachable::CommProhibited,
            header,
            data,
        } if data == message => {
            format!("{from} says {} is prohibited", header.dst_addr)
        }
        other => format!("{from}: {other:?}"),
    }
}

#[test]
fn the_gateway_answers_echoes_and_no_others_can() {
    assert_eq!(ping(GATEWAY, 56), "10.0.2.2 answers");
    assert_eq!(ping(NAMES, 1472), "10.0.2.3 answers");
    assert_eq!(ping(Ipv4Addr::new(192, 0, 2, 1), 56), "10.0.2.2 says 192.0.2.1 is prohibited");
}
