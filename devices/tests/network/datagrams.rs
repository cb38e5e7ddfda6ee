//! The guest's UDP, and the resolver of names.

use super::guest::{GATEWAY, GUEST, Guest, HARDWARE, NAMES, PATIENCE};
use super::streams::bytes;
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::udp;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpEndpoint, IpProtocol, Ipv4Packet,
    Ipv4Repr, UdpPacket, UdpRepr,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

pub(crate) fn udp(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 32 << 10]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

pub(crate) fn hear(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
    guest.until("a datagram", |guest| {
        let (payload, from) = guest.sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok()?;
        Some((payload.to_vec(), from.endpoint))
    })
}

pub(crate) fn say(guest: &mut Guest, handle: SocketHandle, payload: &[u8], to: SocketAddrV4) {
    guest
        .sockets
        .get_mut::<udp::Socket<'_>>(handle)
        .send_slice(payload, IpEndpoint::from(to))
        .unwrap();
}

/// The host's end.
fn host() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[test]
fn datagrams_go_there_and_back() {
    let (host, port) = host();
    let echo = std::thread::spawn(move || {
        for _ in 0..20 {
            let mut payload = [0; 2000];
            let (length, from) = host.recv_from(&mut payload).unwrap();
            payload[..length].reverse();
            host.send_to(&payload[..length], from).unwrap();
        }
    });
    let mut guest = Guest::on("user");
    let there = SocketAddrV4::new(GATEWAY, port);
    // Two conversations, and an empty datagram, which is one too.
    let handles = [udp(&mut guest, 5000), udp(&mut guest, 5001)];
    for round in 0..10 {
        for (which, handle) in handles.into_iter().enumerate() {
            let mut payload = bytes(round * 150, which as u32);
            say(&mut guest, handle, &payload, there);
            let (heard, from) = hear(&mut guest, handle);
            payload.reverse();
            assert_eq!((heard, from), (payload, IpEndpoint::from(there)));
        }
    }
    echo.join().unwrap();
}

/// A frame with a packet of the guest's.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + packet.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(HARDWARE);
    frame.set_dst_addr(EthernetAddress([0x52, 0x55, 10, 0, 2, 2]));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    frame.payload_mut().copy_from_slice(packet);
    bytes
}

/// The guest's card and address, in a question for the gateway's or in an answer to nobody's.
pub(crate) fn card(operation: ArpOperation) -> Vec<u8> {
    let message = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: HARDWARE,
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: GATEWAY,
    };
    let mut bytes = frame(&[0; 46]);
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.set_ethertype(EthernetProtocol::Arp);
    message.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    bytes
}

/// A packet of the guest's, or a piece of one.
pub(crate) fn packet(
    protocol: IpProtocol,
    to: Ipv4Addr,
    payload: &[u8],
    (offset, more): (u16, bool),
) -> Vec<u8> {
    let header = Ipv4Repr {
        src_addr: GUEST,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 20 + payload.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    header.emit(&mut packet, &ChecksumCapabilities::default());
    packet.set_dont_frag(false);
    packet.set_ident(77);
    packet.set_frag_offset(offset);
    packet.set_more_frags(more);
    packet.payload_mut().copy_from_slice(payload);
    packet.fill_checksum();
    bytes
}

pub(crate) fn datagram(from: u16, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: from, dst_port: to.port() };
    let mut bytes = vec![0; 8 + payload.len()];
    let mut packet = UdpPacket::new_unchecked(&mut bytes[..]);
    let checksums = ChecksumCapabilities::default();
    repr.emit(
        &mut packet,
        &GUEST.into(),
        &(*to.ip()).into(),
        payload.len(),
        |to| to.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

#[test]
fn datagrams_longer_than_a_frame_go_in_pieces() {
    let (host, port) = host();
    let there = SocketAddrV4::new(GATEWAY, port);
    let mut guest = Guest::without_address("user");
    let payload = bytes(20_000, 7);
    let whole = datagram(5000, there, &payload);
    // The last piece first.
    let pieces: Vec<_> = whole.chunks(1480).enumerate().collect();
    for (index, piece) in pieces.iter().rev() {
        let place = (u16::try_from(index * 1480).unwrap(), index + 1 < pieces.len());
        guest.wire.send(&frame(&packet(IpProtocol::Udp, GATEWAY, piece, place)));
    }
    let mut heard = vec![0; 65536];
    let (length, from) = host.recv_from(&mut heard).unwrap();
    assert!(heard[..length] == payload);

    host.send_to(&payload, from).unwrap();
    let mut back = vec![0; whole.len()];
    let mut missing = whole.len();
    while missing > 0 {
        let bytes = guest.wire.receive(5000).expect("another piece");
        assert!(bytes.len() <= 1514);
        let packet = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
        assert!(packet.verify_checksum());
        let offset = usize::from(packet.frag_offset());
        back[offset..offset + packet.payload().len()].copy_from_slice(packet.payload());
        missing -= packet.payload().len();
    }
    let datagram = UdpPacket::new_checked(&back[..]).unwrap();
    assert!(datagram.verify_checksum(&GATEWAY.into(), &GUEST.into()));
    assert!(datagram.payload() == payload);
}

#[test]
fn where_nobody_hears_the_guest_is_told() {
    // A port that hears only somebody else.
    let (deaf, port) = host();
    deaf.connect("127.0.0.1:9").unwrap();
    let mut guest = Guest::without_address("user");
    for there in
        [SocketAddrV4::new(GATEWAY, port), SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 77), 9)]
    {
        let question = datagram(5000, there, b"anybody there?");
        guest.wire.send(&frame(&packet(IpProtocol::Udp, *there.ip(), &question, (0, false))));
        let answer = guest.wire.receive(5000).expect("bad news");
        let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
        assert_eq!((packet.src_addr(), packet.dst_addr()), (*there.ip(), GUEST));
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert!(message.verify_checksum());
        assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
        assert_eq!(message.msg_code(), u8::from(Icmpv4DstUnreachable::PortUnreachable));
        let quoted = Ipv4Packet::new_unchecked(message.data());
        assert_eq!((quoted.src_addr(), quoted.dst_addr()), (GUEST, *there.ip()));
        // All but the checksum, which only who sent it knows.
        assert_eq!(message.data()[20..26], question[..6]);
    }
}

#[test]
fn questions_about_names_go_to_the_resolver() {
    // One that speaks both, on one port, as resolvers do.
    let (udp_host, streams) = loop {
        let (socket, port) = host();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            break (socket, listener);
        }
    };
    let resolver = udp_host.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let mut question = [0; 512];
        let (length, from) = udp_host.recv_from(&mut question).unwrap();
        assert_eq!(&question[..length], b"example.org?");
        udp_host.send_to(b"192.0.2.1!", from).unwrap();
        let mut stream = streams.accept().unwrap().0;
        stream.read_exact(&mut question[..9]).unwrap();
        stream.write_all(b"a long answer").unwrap();
    });
    let mut guest = Guest::on(&format!("user,resolver={resolver}"));
    let names = SocketAddrV4::new(NAMES, 53);
    let handle = udp(&mut guest, 5000);
    say(&mut guest, handle, b"example.org?", names);
    assert_eq!(hear(&mut guest, handle), (b"192.0.2.1!".to_vec(), IpEndpoint::from(names)));
    let connection = guest.connect(names);
    guest.send(connection, b"all of it");
    assert_eq!(guest.receive_all(connection), b"a long answer");
    answering.join().unwrap();
}

#[test]
fn more_conversations_than_there_may_be_are_the_latest_ones() {
    let (host, port) = host();
    let there = SocketAddrV4::new(GATEWAY, port);
    let mut guest = Guest::on("user");
    let mut from = Vec::new();
    for index in 0..300u16 {
        let handle = udp(&mut guest, 5000 + index);
        say(&mut guest, handle, &index.to_be_bytes(), there);
        guest.until("it to be heard", |_| {
            host.set_nonblocking(true).unwrap();
            let mut heard = [0; 2];
            host.recv_from(&mut heard).ok().map(|(_, sender)| from.push((handle, heard, sender)))
        });
    }
    let (last, heard, sender) = from.pop().unwrap();
    host.send_to(&heard, sender).unwrap();
    assert_eq!(hear(&mut guest, last).0, heard);
    // The first one's socket is closed: what is sent there is sent to nobody.
    let (first, _, sender) = from[0];
    host.send_to(b"?", sender).unwrap();
    guest.for_a_while(100);
    assert!(!guest.sockets.get_mut::<udp::Socket<'_>>(first).can_recv());
}
