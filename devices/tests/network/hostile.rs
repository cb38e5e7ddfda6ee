//! Guests that mean no good: whatever they send, the user network neither ends nor hangs nor grows.

use super::datagrams::{card, datagram, frame, packet};
use super::guest::{GATEWAY, GUEST, Guest};
use proptest::prelude::*;
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket,
    TcpSeqNumber,
};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::OnceLock;

/// One thing that such a guest does.
#[derive(Debug, Clone)]
enum Deed {
    /// Any bytes at all.
    Bytes(Vec<u8>),
    /// Any payload of a frame to the gateway.
    Payload(EthernetProtocol, Vec<u8>),
    /// Any payload of a good packet, or a piece of one.
    Packet(IpProtocol, Ipv4Addr, Vec<u8>, (u16, bool)),
    /// A datagram to one of the host's two ports, to the giver of addresses, or to the resolver.
    Datagram(u16, usize, Vec<u8>),
    /// A segment of one of a few connections.
    Segment(Segment),
    /// It looks at what came.
    Look,
}

/// A segment that may well be one that is expected, since only those get far.
#[derive(Debug, Clone)]
struct Segment {
    guest: u16,
    open: bool,
    flags: u8,
    sequence: Number,
    acknowledgement: Number,
    window: u16,
    options: Vec<u8>,
    payload: usize,
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Any(u32),
    Near(i32),
    Expected,
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        1 => any::<u32>().prop_map(Number::Any),
        2 => (-3000i32..3000).prop_map(Number::Near),
        5 => Just(Number::Expected),
    ]
}

fn segment() -> impl Strategy<Value = Segment> {
    // SYN, ACK, FIN and ACK, RST, PSH and ACK, and any.
    let flags = prop_oneof![Just(2u8), Just(16u8), Just(17u8), Just(4u8), Just(24u8), any::<u8>()];
    let window = prop_oneof![Just(0u16), Just(65535u16), any::<u16>()];
    let options = prop::collection::vec(any::<u8>(), 0..40);
    (0u16..4, prop::bool::weighted(0.8), flags, number(), number(), window, options, 0usize..1460)
        .prop_map(|(guest, open, flags, sequence, acknowledgement, window, options, payload)| {
            let guest = 40000 + guest;
            Segment { guest, open, flags, sequence, acknowledgement, window, options, payload }
        })
}

fn deed() -> impl Strategy<Value = Deed> {
    let bytes = |longest| prop::collection::vec(any::<u8>(), 0..longest);
    let protocol = prop_oneof![
        Just(EthernetProtocol::Ipv4),
        Just(EthernetProtocol::Arp),
        Just(EthernetProtocol::Ipv6)
    ];
    let inner = prop_oneof![
        Just(IpProtocol::Icmp),
        Just(IpProtocol::Udp),
        Just(IpProtocol::Tcp),
        any::<u8>().prop_map(Into::into)
    ];
    let to = prop_oneof![
        Just(GATEWAY),
        Just(GUEST),
        Just(Ipv4Addr::BROADCAST),
        Just(Ipv4Addr::LOCALHOST)
    ];
    let place = prop_oneof![
        Just((0, false)),
        (any::<u16>().prop_map(|offset| offset & 0xfff8), any::<bool>())
    ];
    prop_oneof![
        1 => bytes(70000).prop_map(Deed::Bytes),
        2 => bytes(1600).prop_map(Deed::Bytes),
        3 => (protocol, bytes(1500)).prop_map(|(protocol, payload)| Deed::Payload(protocol, payload)),
        4 => (inner, to, bytes(1480), place).prop_map(|(inner, to, payload, place)| Deed::Packet(inner, to, payload, place)),
        3 => (0u16..600, 0usize..4, bytes(1400)).prop_map(|(from, to, payload)| Deed::Datagram(from, to, payload)),
        20 => segment().prop_map(Deed::Segment),
        4 => Just(Deed::Look),
    ]
}

/// The host's side, for all cases: a port that answers, one where nobody is, and one for datagrams.
struct Host {
    open: u16,
    closed: u16,
    datagrams: u16,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().enumerate() {
                // Some say a lot and go, some answer, some say nothing.
                let Ok(mut stream) = stream else { continue };
                stream.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
                let _ = match count % 3 {
                    0 => stream.write_all(&[7; 100_000]),
                    1 => stream
                        .read(&mut [0; 5000])
                        .and_then(|length| stream.write_all(&vec![8; length])),
                    _ => Ok(()),
                };
            }
        });
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = datagrams.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut payload = [0; 2000];
            while let Ok((length, from)) = datagrams.recv_from(&mut payload) {
                let _ = datagrams.send_to(&payload[..length], from);
            }
        });
        Host { open, closed, datagrams: port }
    })
}

/// A guest, with what it saw of its connections: what is expected of it next.
struct Villain {
    guest: Guest,
    expected: HashMap<u16, (u32, u32)>,
}

impl Villain {
    fn new() -> Villain {
        let datagrams = host().datagrams;
        let guest = Guest::without_address(&format!("user,resolver=127.0.0.1:{datagrams}"));
        Villain { guest, expected: HashMap::new() }
    }

    fn frame(&mut self, bytes: &[u8]) {
        // Dropped where there's no room: it doesn't mind.
        let _ = self.guest.wire.network.send(bytes).expect("the network is still there");
    }

    fn does(&mut self, deed: &Deed) {
        match deed {
            Deed::Bytes(bytes) => self.frame(bytes),
            Deed::Payload(protocol, payload) => {
                let mut bytes = frame(payload);
                EthernetFrame::new_unchecked(&mut bytes[..]).set_ethertype(*protocol);
                self.frame(&bytes);
            }
            Deed::Packet(protocol, to, payload, place) => {
                self.frame(&frame(&packet(*protocol, *to, payload, *place)))
            }
            Deed::Datagram(from, to, payload) => {
                let (address, port) = [
                    (GATEWAY, host().datagrams),
                    (GATEWAY, host().closed),
                    (Ipv4Addr::BROADCAST, 67),
                    (super::guest::NAMES, 53),
                ][*to];
                let datagram = datagram(*from, SocketAddrV4::new(address, port), payload);
                self.frame(&frame(&packet(IpProtocol::Udp, address, &datagram, (0, false))));
            }
            Deed::Segment(segment) => self.segment(segment),
            Deed::Look => while self.look().is_some() {},
        }
    }

    fn segment(&mut self, segment: &Segment) {
        let port = if segment.open { host().open } else { host().closed };
        let (sequence, acknowledgement) =
            self.expected.get(&segment.guest).copied().unwrap_or((1000, 0));
        let number = |expected: u32, number| match number {
            Number::Any(any) => any,
            Number::Near(distance) => expected.wrapping_add_signed(distance),
            Number::Expected => expected,
        };
        let options = segment.options.len().next_multiple_of(4).min(40);
        let mut bytes = vec![0; 20 + options + segment.payload];
        bytes[20..20 + segment.options.len()].copy_from_slice(&segment.options);
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[..]);
        tcp.set_src_port(segment.guest);
        tcp.set_dst_port(port);
        tcp.set_seq_number(TcpSeqNumber(number(sequence, segment.sequence) as i32));
        tcp.set_ack_number(TcpSeqNumber(number(acknowledgement, segment.acknowledgement) as i32));
        tcp.set_window_len(segment.window);
        tcp.clear_flags();
        tcp.set_header_len((20 + options) as u8);
        let _ = tcp;
        bytes[13] = segment.flags;
        TcpPacket::new_unchecked(&mut bytes[..]).fill_checksum(&GUEST.into(), &GATEWAY.into());
        self.frame(&frame(&packet(IpProtocol::Tcp, GATEWAY, &bytes, (0, false))));
    }

    /// Takes a frame, if one is there, and learns from it.
    fn look(&mut self) -> Option<Vec<u8>> {
        let bytes = self.guest.wire.receive(0)?;
        let packet = Ipv4Packet::new_checked(&bytes[14..]).ok();
        if let Some(packet) = packet.filter(|packet| packet.next_header() == IpProtocol::Tcp) {
            assert!(packet.verify_checksum());
            let tcp = TcpPacket::new_checked(packet.payload()).expect("a segment of ours is one");
            let next = tcp.seq_number() + tcp.segment_len();
            self.expected.insert(tcp.dst_port(), (tcp.ack_number().0 as u32, next.0 as u32));
        }
        Some(bytes)
    }

    /// Whether the gateway still says where it is.
    fn is_answered(&mut self) -> bool {
        let bytes = card(ArpOperation::Request);
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(20) {
            // Again and again: there may be no room for the answer either.
            self.frame(&bytes);
            for _ in 0..200 {
                let Some(heard) = self.look() else { break };
                let is_arp =
                    EthernetFrame::new_unchecked(&heard[..]).ethertype() == EthernetProtocol::Arp;
                let reply = ArpPacket::new_checked(&heard[14..])
                    .is_ok_and(|arp| arp.operation() == ArpOperation::Reply);
                if is_arp && reply {
                    return true;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_sent_the_network_goes_on(deeds in prop::collection::vec(deed(), 1..150)) {
        let mut villain = Villain::new();
        deeds.iter().for_each(|deed| villain.does(deed));
        prop_assert!(villain.is_answered());
    }
}

/// A cable's end that hears nothing at all has been pulled out; one that hears an empty frame hasn't.
#[test]
fn frames_shorter_than_a_header_are_none() {
    let mut villain = Villain::new();
    for length in [0, 1, 13] {
        villain.frame(&vec![0; length]);
        assert!(villain.is_answered(), "after {length} bytes");
    }
}

#[test]
fn the_first_sequence_number_is_another_each_time() {
    let number = || {
        let mut villain = Villain::new();
        villain.segment(&Segment {
            guest: 10_000,
            open: true,
            flags: 2,
            sequence: Number::Any(1000),
            acknowledgement: Number::Any(0),
            window: 65535,
            options: Vec::new(),
            payload: 0,
        });
        let began = std::time::Instant::now();
        loop {
            villain.look();
            if let Some((_, number)) = villain.expected.get(&10_000) {
                return *number;
            }
            assert!(began.elapsed() < super::guest::PATIENCE, "the call isn't answered");
        }
    };
    assert_ne!(number(), number());
}

/// A guest that looks for open ports calls, and breaks off when it's answered. Or it doesn't even do that.
#[test]
fn calls_that_come_to_nothing_are_forgotten() {
    let mut villain = Villain::new();
    let segment = |guest, flags, sequence| Segment {
        guest,
        open: true,
        flags,
        sequence,
        acknowledgement: Number::Expected,
        window: 65535,
        options: Vec::new(),
        payload: 0,
    };
    let call = |villain: &mut Villain, guest| {
        villain.segment(&segment(guest, 2, Number::Any(1000)));
        let began = std::time::Instant::now();
        while !villain.expected.contains_key(&guest) {
            let heard = villain.look();
            let is_reset = heard
                .is_some_and(|bytes| bytes.get(14 + 20 + 13).is_some_and(|flags| flags & 4 != 0));
            assert!(!is_reset, "another is broken off at call {guest}");
            assert!(began.elapsed() < super::guest::PATIENCE, "call {guest} isn't answered");
        }
    };
    for guest in 10_000..10_600 {
        call(&mut villain, guest);
        if guest % 2 == 0 {
            villain.segment(&segment(guest, 4, Number::Expected));
        }
    }
    // It's the oldest that make room: the last but one is there still when it has heard its answer.
    call(&mut villain, 20_000);
    call(&mut villain, 20_001);
    villain.segment(&segment(20_000, 16, Number::Expected));
    call(&mut villain, 20_002);
}

/// Bytes of memory that this process really has.
fn memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Everything that makes the gateway remember something, over and over. It is run in a process of its own, since others'
/// memory would be counted too.
#[test]
fn a_flood_fills_tables_and_no_more() {
    const ALONE: &str = "LGUEST_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let me = std::env::current_exe().unwrap();
        let name = "hostile::a_flood_fills_tables_and_no_more";
        let alone = std::process::Command::new(me)
            .args(["--exact", name])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        return;
    }
    let mut villain = Villain::new();
    let (memory_before, descriptors_before) = (memory(), descriptors());
    for round in 0..60_000u32 {
        let port = 1024 + (round % 60_000) as u16;
        let syn = |open| Segment {
            guest: port,
            open,
            flags: 2,
            sequence: Number::Any(round),
            acknowledgement: Number::Any(0),
            window: 65535,
            options: Vec::new(),
            payload: 0,
        };
        villain.segment(&syn(true));
        villain.segment(&syn(false));
        villain.does(&Deed::Datagram(port, 0, vec![1; 100]));
        villain.does(&Deed::Packet(
            IpProtocol::Udp,
            GATEWAY,
            vec![2; 1400],
            ((1400 * (round % 40) as u16) & 0xfff8, true),
        ));
        // A neighbour after another.
        let mut stranger = packet(IpProtocol::Icmp, GATEWAY, &[8, 0, 0, 0], (0, false));
        stranger[15] = (round % 256) as u8;
        Ipv4Packet::new_unchecked(&mut stranger[..]).fill_checksum();
        villain.frame(&frame(&stranger));
        // It hardly ever listens.
        if round % 8 == 0 {
            villain.look();
        }
    }
    let grown = memory().saturating_sub(memory_before);
    let opened = descriptors().saturating_sub(descriptors_before);
    assert!(grown < 64 << 20, "{} MiB more than before", grown >> 20);
    // The tables' two times 256, and the other ends of the connections.
    assert!((256..3 * 256 + 20).contains(&opened), "{opened} descriptors more than before");
    assert!(villain.is_answered());
}
