//! What nobody answers, and what looks much like it and is answered.

use super::datagrams::{card, datagram, frame, packet};
use super::guest::{GATEWAY, GUEST, Guest};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{ArpOperation, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, TcpPacket};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

/// A neighbour that isn't there.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 77);
/// Addresses of many.
const MANY: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 2, 255), Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::BROADCAST];

fn echo(to: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let echo = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data };
    let mut message = vec![0; echo.buffer_len()];
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &ChecksumCapabilities::default());
    packet(IpProtocol::Icmp, to, &message, (0, false))
}

/// A call by TCP.
fn call(from: u16, there: SocketAddrV4) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    let mut segment = TcpPacket::new_unchecked(&mut bytes[..]);
    segment.set_src_port(from);
    segment.set_dst_port(there.port());
    segment.set_header_len(20);
    segment.set_syn(true);
    segment.set_window_len(1000);
    segment.fill_checksum(&GUEST.into(), &(*there.ip()).into());
    bytes
}

/// Whether something comes before the answer to an echo that is asked for afterwards.
fn is_answered(frame_of_it: &[u8]) -> bool {
    const LATER: &[u8] = b"and this?";
    let mut guest = Guest::without_address("user");
    // So that the gateway knows where the guest is.
    for (bytes, first) in [(frame(&echo(GATEWAY, LATER)), false), (frame_of_it.to_vec(), true)] {
        guest.wire.send(&bytes);
        if first {
            guest.wire.send(&frame(&echo(GATEWAY, LATER)));
        }
        let heard = guest.wire.receive(5000).expect("an answer to the last, at least");
        if !heard.ends_with(LATER) {
            return true;
        }
    }
    false
}

/// The same packet after a change to its header.
fn changed(packet: &[u8], change: impl FnOnce(&mut Ipv4Packet<&mut [u8]>)) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    change(&mut packet);
    packet.fill_checksum();
    bytes
}

#[test]
fn what_is_not_for_the_gateway_or_not_whole() {
    let question = echo(GATEWAY, b"anybody there?");
    let good = frame(&question);
    assert!(is_answered(&good));
    let at = |place: usize| {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        bytes
    };
    assert!(!is_answered(&at(5)), "to another card");
    assert!(!is_answered(&at(14 + 10)), "the header's checksum is wrong");
    assert!(!is_answered(&at(14 + 20 + 2)), "the message's checksum is wrong");
    for from in [Ipv4Addr::new(192, 0, 2, 9), GATEWAY, Ipv4Addr::UNSPECIFIED] {
        let spoofed = changed(&question, |packet| packet.set_src_addr(from));
        assert!(!is_answered(&frame(&spoofed)), "from {from}");
    }
}

#[test]
fn what_is_said_of_a_card_unasked() {
    for (operation, answered) in [(ArpOperation::Request, true), (ArpOperation::Reply, false)] {
        assert_eq!(is_answered(&card(operation)), answered, "{operation:?}");
    }
}

#[test]
fn errors_that_many_would_tell_of() {
    let ask = |to| is_answered(&frame(&echo(to, b"anybody there?")));
    assert!(ask(Ipv4Addr::new(192, 0, 2, 1)));
    let tell = |to| {
        let datagram = datagram(1000, SocketAddrV4::new(to, 9), b"anybody there?");
        is_answered(&frame(&packet(IpProtocol::Udp, to, &datagram, (0, false))))
    };
    assert!(tell(NOBODY));
    let call = |to| {
        let call = call(1000, SocketAddrV4::new(to, 9));
        is_answered(&frame(&packet(IpProtocol::Tcp, to, &call, (0, false))))
    };
    assert!(call(NOBODY));
    for to in MANY {
        assert!(!ask(to) && !tell(to) && !call(to), "{to}");
    }
}

#[test]
fn datagrams_from_nowhere() {
    let there = SocketAddrV4::new(NOBODY, 9);
    let good = |from| packet(IpProtocol::Udp, NOBODY, &datagram(from, there, b"?"), (0, false));
    assert!(is_answered(&frame(&good(1000))));
    assert!(!is_answered(&frame(&good(0))));
    let mut wrong = good(1000);
    wrong[20 + 8] ^= 1;
    assert!(!is_answered(&frame(&wrong)), "the checksum is wrong");
    // Who has no address yet talks to the giver of addresses alone.
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let open = SocketAddrV4::new(GATEWAY, host.local_addr().unwrap().port());
    let message = packet(IpProtocol::Udp, GATEWAY, &datagram(1000, open, b"?"), (0, false));
    let mut unnamed = changed(&message, |packet| packet.set_src_addr(Ipv4Addr::UNSPECIFIED));
    // Without a checksum.
    unnamed[20 + 6..20 + 8].fill(0);
    assert!(!is_answered(&frame(&unnamed)));
    assert!(host.recv(&mut [0; 9]).is_err());
    // Another's port 67 gives no addresses.
    let there = SocketAddrV4::new(NOBODY, 67);
    let message = datagram(68, there, b"?");
    assert!(is_answered(&frame(&packet(IpProtocol::Udp, NOBODY, &message, (0, false)))));
}

#[test]
fn calls_that_are_none() {
    let there = SocketAddrV4::new(NOBODY, 9);
    let good = |place| packet(IpProtocol::Tcp, NOBODY, &call(1000, there), place);
    assert!(is_answered(&frame(&good((0, false)))));
    assert!(!is_answered(&frame(&good((0, true)))), "a piece");
    let mut wrong = good((0, false));
    wrong[20 + 4] ^= 1;
    assert!(!is_answered(&frame(&wrong)), "the checksum is wrong");
    // To somebody who is there, but shouldn't hear of it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let there = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    let mut wrong = packet(IpProtocol::Tcp, GATEWAY, &call(1000, there), (0, false));
    wrong[20 + 4] ^= 1;
    let piece = packet(IpProtocol::Tcp, GATEWAY, &call(1000, there), (0, true));
    let from_port_0 = packet(IpProtocol::Tcp, GATEWAY, &call(0, there), (0, false));
    for none in [wrong, piece, from_port_0] {
        assert!(!is_answered(&frame(&none)));
    }
    // SYN with ACK, which is refused, and with RST, which isn't even that.
    for (flags, refused) in [(0x12, true), (6, false)] {
        let mut segment = call(1000, there);
        segment[13] = flags;
        TcpPacket::new_unchecked(&mut segment[..]).fill_checksum(&GUEST.into(), &GATEWAY.into());
        let answered = is_answered(&frame(&packet(IpProtocol::Tcp, GATEWAY, &segment, (0, false))));
        assert_eq!(answered, refused, "flags {flags:#x}");
    }
    assert!(listener.accept().is_err(), "there was no call");
    for (from, to) in [(1000, 0), (0, 9)] {
        let call = call(from, SocketAddrV4::new(NOBODY, to));
        assert!(!is_answered(&frame(&packet(IpProtocol::Tcp, NOBODY, &call, (0, false)))));
    }
}

#[test]
fn who_was_refused_may_call_again_from_the_same_port() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let there = SocketAddrV4::new(GATEWAY, closed);
    let mut guest = Guest::without_address("user");
    for time in 1..=2 {
        guest.wire.send(&frame(&packet(IpProtocol::Tcp, GATEWAY, &call(1000, there), (0, false))));
        let answer = guest.wire.receive(5000).expect("an answer each time");
        let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
        assert!(TcpPacket::new_checked(packet.payload()).unwrap().rst(), "time {time}");
    }
}
