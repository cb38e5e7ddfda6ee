//! What the gateway answers itself: addresses, hardware addresses, echoes.

use super::datagrams::{datagram, frame, packet};
use super::guest::{GATEWAY, GUEST, Guest, HARDWARE, NAMES};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol,
    Ipv4Cidr, Ipv4Packet, UdpPacket,
};
use std::net::{Ipv4Addr, SocketAddrV4};

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

/// What is said to a message to the giver of addresses: what kind of answer it is, and in it the address, the router, and for how
/// long.
fn ask(
    kind: DhcpMessageType,
    change: impl FnOnce(&mut DhcpRepr<'_>),
) -> Option<(DhcpMessageType, Ipv4Addr, Option<Ipv4Addr>, Option<u32>)> {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut question = DhcpRepr {
        message_type: kind,
        transaction_id: 7,
        secs: 0,
        client_hardware_address: HARDWARE,
        client_ip: nobody,
        your_ip: nobody,
        server_ip: nobody,
        router: None,
        subnet_mask: None,
        relay_agent_ip: nobody,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    change(&mut question);
    let mut message = vec![0; question.buffer_len()];
    question.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).unwrap();
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let question = packet(IpProtocol::Udp, *to.ip(), &datagram(68, to, &message), (0, false));
    let mut guest = Guest::without_address("user");
    guest.wire.send(&frame(&question));
    let answer = guest.wire.receive(300)?;
    let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    assert_eq!((&answer[..6], packet.dst_addr()), (&[0xff; 6][..], Ipv4Addr::BROADCAST));
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    let message = DhcpPacket::new_checked(datagram.payload()).unwrap();
    let answer = DhcpRepr::parse(&message).unwrap();
    assert_eq!((answer.transaction_id, answer.server_identifier), (7, Some(GATEWAY)));
    Some((answer.message_type, answer.your_ip, answer.router, answer.lease_duration))
}

#[test]
fn there_is_one_address_to_be_given() {
    use DhcpMessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
    let other = Ipv4Addr::new(10, 0, 2, 16);
    let (given, refused) =
        ((GUEST, Some(GATEWAY), Some(86400)), (Ipv4Addr::UNSPECIFIED, None, None));
    let said = |kind, (address, router, lease)| Some((kind, address, router, lease));
    assert_eq!(ask(Discover, |it| it.requested_ip = Some(other)), said(Offer, given));
    assert_eq!(ask(Request, |it| it.requested_ip = Some(GUEST)), said(Ack, given));
    assert_eq!(ask(Request, |it| it.requested_ip = Some(other)), said(Nak, refused));
    // Who has one says so elsewhere: that it'll keep it, or that it only wants to know the rest.
    assert_eq!(ask(Request, |it| it.client_ip = GUEST), said(Ack, given));
    assert_eq!(ask(Request, |it| it.client_ip = other), said(Nak, refused));
    let rest = (Ipv4Addr::UNSPECIFIED, Some(GATEWAY), None);
    assert_eq!(ask(Inform, |it| it.client_ip = other), said(Ack, rest));
    // Nothing is said to what is no question, or is for somebody else.
    assert_eq!(ask(Release, |it| it.client_ip = GUEST), None);
    assert_eq!(ask(Decline, |it| it.requested_ip = Some(GUEST)), None);
    let elsewhere = |it: &mut DhcpRepr<'_>| {
        (it.requested_ip, it.server_identifier) = (Some(GUEST), Some(NAMES));
    };
    assert_eq!(ask(Request, elsewhere), None);
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

/// A question for an echo, and the frame that comes back.
fn question_and_answer(to: Ipv4Addr, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut guest = Guest::without_address("user");
    let echo = Icmpv4Repr::EchoRequest { ident: 0x1234, seq_no: 7, data };
    let mut message = vec![0; echo.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &checksums);
    guest.wire.send(&frame(&packet(IpProtocol::Icmp, to, &message, (0, false))));
    let answer = guest.wire.receive(300).expect("an answer");
    (message, answer)
}

/// What comes back when an echo is asked for.
fn ping(to: Ipv4Addr, bytes: usize) -> String {
    let data = vec![0xa5; bytes];
    let (message, answer) = question_and_answer(to, &data);
    let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    let from = packet.src_addr();
    let checksums = ChecksumCapabilities::default();
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

#[test]
fn bad_news_repeats_no_more_than_there_should_be() {
    let (message, answer) = question_and_answer(Ipv4Addr::new(192, 0, 2, 1), &[0xa5; 1000]);
    let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    assert_eq!((packet.total_len(), packet.payload().len()), (576, 556));
    assert_eq!(packet.payload()[28..], message[..528]);
}
