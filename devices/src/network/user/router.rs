//! **The router**: the thread at the end of the guest's cable. It waits, looks at each frame that came, and has everybody
//! served who has something to do.

use super::super::LONGEST_FRAME;
use super::super::cable::{End, HEADER};
use super::addresses::{GATEWAY, HARDWARE, Pair, is_guests};
use super::datagrams::Datagrams;
use super::fragments::Fragments;
use super::link::Link;
use super::poller::{Poller, Who};
use super::resolver::Resolver;
use super::stack::Stack;
use super::streams::Streams;
use super::{Forwards, dhcp, echo};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
    UdpRepr,
};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Frames taken before the others have their turn.
const TURN: usize = 64;

pub(super) struct Router {
    stack: Stack,
    poller: Poller,
    resolver: Resolver,
    streams: Streams,
    datagrams: Datagrams,
    fragments: Fragments,
    /// Frames may have come.
    ready: bool,
    began: std::time::Instant,
}

impl Router {
    pub(super) fn new(
        end: End,
        poller: Poller,
        resolver: Resolver,
        forwards: Forwards,
    ) -> io::Result<Router> {
        let link = Link::new(end);
        poller.watch(&link, Who::Link)?;
        Ok(Router {
            streams: Streams::new(forwards.streams, &poller)?,
            datagrams: Datagrams::new(forwards.datagrams, &poller)?,
            stack: Stack::new(link),
            poller,
            resolver,
            fragments: Fragments::default(),
            ready: true,
            began: std::time::Instant::now(),
        })
    }

    /// Works until the cable is pulled out.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut frame = vec![0; LONGEST_FRAME];
        while !self.stack.link.is_unplugged() {
            self.wait()?;
            self.take_frames(&mut frame)?;
            self.streams.let_in(&mut self.stack, &self.poller);
            self.streams.serve(&mut self.stack);
            self.datagrams.serve(&mut self.stack);
        }
        Ok(())
    }

    /// Waits until there is something to do, and tells everybody concerned.
    fn wait(&mut self) -> io::Result<()> {
        let longest = self.patience();
        let mut link_writable = false;
        let Router { stack, poller, streams, datagrams, ready, .. } = self;
        poller.wait(longest, |event| match event.who {
            Who::Link => {
                *ready |= event.readable;
                link_writable |= event.writable;
            }
            Who::Stream(id) => streams.event(stack, id, event),
            Who::Datagrams(id) => datagrams.event(id, event),
            Who::StreamForward(index) => streams.called(index, stack.now),
            Who::DatagramForward(index) => datagrams.called(index, stack.now),
        })?;
        if link_writable {
            stack.link.flush();
        }
        let passed = self.began.elapsed().as_micros();
        self.stack.now = Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX));
        Ok(())
    }

    /// How long there is nothing to do unless something happens.
    fn patience(&self) -> Option<Duration> {
        if self.ready {
            return Some(Duration::ZERO);
        }
        // With a full cable nobody can do anything, however long it's due.
        if !self.stack.link.has_room() {
            return None;
        }
        let now = self.stack.now;
        let due = [self.streams.due(), self.datagrams.due(now)].into_iter().flatten().min()?;
        Some(if due > now { due - now } else { Duration::ZERO })
    }

    fn take_frames(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..TURN {
            if !self.ready {
                break;
            }
            match self.stack.link.receive(buffer)? {
                Some(length) => self.frame(&buffer[..length]),
                None => self.ready = false,
            }
        }
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(bytes) else { return };
        let to = frame.dst_addr();
        if to != EthernetAddress(HARDWARE) && !to.is_broadcast() {
            return;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.stack.link.arp(&bytes[HEADER..]),
            EthernetProtocol::Ipv4 => self.packet(&bytes[HEADER..], frame.src_addr()),
            // IPv6, say, which isn't spoken here: so the guest finds no router for it.
            _ => {}
        }
    }

    fn packet(&mut self, bytes: &[u8], hardware: EthernetAddress) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        if packet.version() != 4 || !packet.verify_checksum() {
            return;
        }
        let from = packet.src_addr();
        if !is_guests(from) && !from.is_unspecified() {
            return;
        }
        self.stack.link.met(from, hardware);
        if packet.next_header() == IpProtocol::Tcp {
            let whole = !Fragments::is_piece(&packet);
            if whole && is_guests(from) {
                self.segment(&bytes[..usize::from(packet.total_len())], &packet);
            }
        } else if Fragments::is_piece(&packet) {
            if let Some(whole) = self.fragments.lay(&packet, self.stack.now) {
                self.payload(&packet, &whole);
            }
        } else {
            self.payload(&packet, packet.payload());
        }
    }

    fn segment(&mut self, bytes: &[u8], packet: &Ipv4Packet<&[u8]>) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return };
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        let pair = Pair {
            guest: SocketAddrV4::new(from, segment.src_port()),
            there: SocketAddrV4::new(to, segment.dst_port()),
        };
        if pair.guest.port() == 0 || pair.there.port() == 0 || super::addresses::is_for_many(to) {
            return;
        }
        // smoltcp looks at this too, but after a connection has been looked for, or made.
        if !segment.verify_checksum(&from.into(), &to.into()) {
            return;
        }
        self.streams.packet(
            &mut self.stack,
            &self.poller,
            &mut self.resolver,
            pair,
            (bytes, &segment),
        );
    }

    /// What was in `packet`, or in the pieces of which it was the last to come.
    fn payload(&mut self, packet: &Ipv4Packet<&[u8]>, payload: &[u8]) {
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        match packet.next_header() {
            IpProtocol::Udp => self.datagram(from, to, payload),
            IpProtocol::Icmp if is_guests(from) => {
                echo::answer(&mut self.stack.link, from, to, payload)
            }
            _ => {}
        }
    }

    fn datagram(&mut self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) {
        let Ok(datagram) = UdpPacket::new_checked(payload) else { return };
        let Ok(ports) =
            UdpRepr::parse(&datagram, &from.into(), &to.into(), &ChecksumCapabilities::default())
        else {
            return;
        };
        if ports.dst_port == dhcp::SERVER && (to == GATEWAY || to == Ipv4Addr::BROADCAST) {
            return dhcp::answer(&mut self.stack.link, datagram.payload());
        }
        if !is_guests(from) || ports.src_port == 0 {
            return;
        }
        let pair = Pair {
            guest: SocketAddrV4::new(from, ports.src_port),
            there: SocketAddrV4::new(to, ports.dst_port),
        };
        self.datagrams.said(
            &mut self.stack,
            &self.poller,
            &mut self.resolver,
            pair,
            datagram.payload(),
        );
    }
}
