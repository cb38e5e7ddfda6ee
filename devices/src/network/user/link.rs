//! **The link**: our end of the guest's cable, on which packets become frames.
//!
//! It knows the neighbours' hardware addresses (RFC 826, ARP), from what they sent; and it has a short queue for answers, so that
//! what is on its way in can be answered even when the cable is full. What isn't an answer waits for [`Link::has_room`].

use super::super::cable::{Arrival, End, HEADER};
use super::addresses::{GATEWAY, HARDWARE, is_guests, is_ours};
use super::fragments;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    UdpPacket, UdpRepr,
};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes of the longest packet in a frame.
pub(super) const MTU: usize = 1500;
/// Answers that may wait.
const WAITING: usize = 64;
/// Neighbours to remember. The guest has one address, or a few when it bridges.
const NEIGHBOURS: usize = 32;

pub(super) struct Link {
    end: End,
    neighbours: HashMap<Ipv4Addr, EthernetAddress>,
    waiting: VecDeque<Vec<u8>>,
    /// The frame being made.
    frame: Vec<u8>,
    /// Of the last packet that was cut in pieces.
    identity: u16,
    unplugged: bool,
}

impl Link {
    pub(super) fn new(end: End) -> Link {
        Link {
            end,
            neighbours: HashMap::new(),
            waiting: VecDeque::new(),
            frame: vec![0; HEADER + MTU],
            identity: 0,
            unplugged: false,
        }
    }

    /// Whether the guest's end has been pulled out.
    pub(super) fn is_unplugged(&self) -> bool {
        self.unplugged
    }

    /// Whether more than answers may be sent now.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a frame from the cable.
    pub(super) fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(match self.end.receive(frame)? {
            Arrival::Frame(length) => Some(length),
            Arrival::Nothing => None,
            Arrival::Unplugged => {
                self.unplugged = true;
                None
            }
        })
    }

    /// Sends what waits, as far as there's room again.
    pub(super) fn flush(&mut self) {
        while let Some(frame) = self.waiting.front() {
            match self.end.send(frame) {
                Ok(true) => drop(self.waiting.pop_front()),
                Ok(false) => return,
                Err(_) => return self.unplugged = true,
            }
        }
    }

    /// Sends a packet of `length` bytes, at most [`MTU`], which `fill` makes, to the neighbour that it is for. One whose hardware address isn't
    /// known is lost, and the neighbour asked for it: whoever sends again will be luckier.
    pub(super) fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let packet = &mut self.frame[HEADER..HEADER + length];
        let result = fill(packet);
        let Some(Ok(to)) = packet.get(16..20).map(<[u8; 4]>::try_from) else { return result };
        let to = Ipv4Addr::from(to);
        if to.is_broadcast() {
            self.frame(EthernetAddress::BROADCAST, EthernetProtocol::Ipv4, length);
        } else if let Some(hardware) = self.neighbours.get(&to) {
            self.frame(*hardware, EthernetProtocol::Ipv4, length);
        } else {
            self.ask_for(to);
        }
        result
    }

    /// Sends `payload` in as many packets as it takes.
    pub(super) fn payload(
        &mut self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        self.identity = self.identity.wrapping_add(1);
        let identity = self.identity;
        for piece in fragments::pieces(payload) {
            self.packet(piece.packet_length(), |packet| {
                piece.write(packet, from, to, protocol, identity)
            });
        }
    }

    /// Sends a datagram to the guest's port.
    pub(super) fn datagram(&mut self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let mut datagram = vec![0; repr.header_len() + payload.len()];
        repr.emit(
            &mut UdpPacket::new_unchecked(&mut datagram),
            &(*from.ip()).into(),
            &(*to.ip()).into(),
            payload.len(),
            |into| into.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
        self.payload(*from.ip(), *to.ip(), IpProtocol::Udp, &datagram);
    }

    /// Remembers where a neighbour is. Too many make us forget all, and learn again.
    pub(super) fn met(&mut self, address: Ipv4Addr, hardware: EthernetAddress) {
        if !is_guests(address) || !hardware.is_unicast() {
            return;
        }
        if self.neighbours.len() >= NEIGHBOURS && !self.neighbours.contains_key(&address) {
            self.neighbours.clear();
        }
        self.neighbours.insert(address, hardware);
    }

    /// Somebody asks for a hardware address, or tells its own.
    pub(super) fn arp(&mut self, message: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(message) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: hardware,
            source_protocol_addr: address,
            target_protocol_addr: wanted,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        self.met(address, hardware);
        // Who looks whether an address is free gives none of its own (RFC 5227), and for ours must hear that it isn't.
        if operation == ArpOperation::Request && is_ours(wanted) {
            self.say(ArpOperation::Reply, wanted, (hardware, address));
        }
    }

    fn ask_for(&mut self, address: Ipv4Addr) {
        if is_guests(address) {
            self.say(ArpOperation::Request, GATEWAY, (EthernetAddress::BROADCAST, address));
        }
    }

    /// Whether a neighbour is known. If not, it is asked for, and will be later if it's there.
    pub(super) fn finds(&mut self, address: Ipv4Addr) -> bool {
        let known = self.neighbours.contains_key(&address);
        if !known {
            self.ask_for(address);
        }
        known
    }

    fn say(
        &mut self,
        operation: ArpOperation,
        ours: Ipv4Addr,
        (hardware, address): (EthernetAddress, Ipv4Addr),
    ) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(HARDWARE),
            source_protocol_addr: ours,
            target_hardware_addr: hardware,
            target_protocol_addr: address,
        };
        let length = repr.buffer_len();
        repr.emit(&mut ArpPacket::new_unchecked(&mut self.frame[HEADER..HEADER + length]));
        self.frame(hardware, EthernetProtocol::Arp, length);
    }

    /// Sends the frame whose payload is made.
    fn frame(&mut self, to: EthernetAddress, protocol: EthernetProtocol, length: usize) {
        let frame = &mut self.frame[..HEADER + length];
        let mut header = EthernetFrame::new_unchecked(&mut *frame);
        header.set_dst_addr(to);
        header.set_src_addr(EthernetAddress(HARDWARE));
        header.set_ethertype(protocol);
        if self.waiting.is_empty() {
            match self.end.send(frame) {
                Ok(true) => return,
                Ok(false) => {}
                Err(_) => return self.unplugged = true,
            }
        }
        if self.waiting.len() < WAITING {
            self.waiting.push_back(frame.to_vec());
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::cable::cable;
    use super::super::addresses::GUEST;
    use super::*;
    use smoltcp::wire::Ipv4Packet;

    const CARD: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);

    #[test]
    fn for_a_guest_that_does_not_listen_so_much_is_kept_and_no_more() {
        let (end, guest) = cable().unwrap();
        let mut link = Link::new(end);
        link.met(GUEST, CARD);
        let send = |link: &mut Link, number: u32| {
            let (from, to) = (SocketAddrV4::new(GATEWAY, 1), SocketAddrV4::new(GUEST, 2));
            link.datagram(from, to, &[&number.to_be_bytes()[..], &[0; 1000]].concat());
        };
        (0..10_000).for_each(|number| send(&mut link, number));
        assert_eq!(link.waiting.len(), WAITING);
        // What was kept comes in its order, and before what is sent later.
        let mut heard = Vec::new();
        let mut frame = [0; 2000];
        while let Ok(Arrival::Frame(_)) = guest.receive(&mut frame) {
            if heard.len() == 10 {
                send(&mut link, 10_000);
            }
            heard.push(u32::from_be_bytes(frame[42..46].try_into().unwrap()));
            link.flush();
        }
        assert_eq!(heard.pop(), Some(10_000));
        assert!(heard.iter().copied().eq(0..heard.len() as u32));
    }

    #[test]
    fn the_pieces_of_each_datagram_have_a_number_of_their_own() {
        let (end, guest) = cable().unwrap();
        let mut link = Link::new(end);
        link.met(GUEST, CARD);
        let (from, to) = (SocketAddrV4::new(GATEWAY, 1), SocketAddrV4::new(GUEST, 2));
        (0..2).for_each(|_| link.datagram(from, to, &[0; 2000]));
        let mut numbers = Vec::new();
        let mut frame = [0; 2000];
        while let Ok(Arrival::Frame(length)) = guest.receive(&mut frame) {
            let packet = Ipv4Packet::new_checked(&frame[HEADER..length]).unwrap();
            assert!(!packet.dont_frag());
            numbers.push(packet.ident());
        }
        assert!(matches!(numbers[..], [a, b, c, d] if a == b && c == d && a != c), "{numbers:?}");
    }

    #[test]
    fn nobody_has_the_address_of_many_cards_or_is_no_neighbour() {
        let (end, _guest) = cable().unwrap();
        let mut link = Link::new(end);
        link.met(GUEST, EthernetAddress([3, 0, 0, 0, 0, 1]));
        link.met(GUEST, EthernetAddress::BROADCAST);
        link.met(Ipv4Addr::new(192, 0, 2, 1), CARD);
        link.met(GATEWAY, CARD);
        assert!(link.neighbours.is_empty());
    }
}
