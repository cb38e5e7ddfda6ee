//! **Fragments**: a datagram longer than a frame travels in pieces (RFC 791, "Fragmentation and Reassembly").
//!
//! Datagrams only: TCP measures its path and cuts its segments to fit, so pieces of those are dropped.

use super::link::MTU;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// Bytes of the header that we write.
const HEADER: usize = 20;
/// Bytes in which offsets are counted.
const UNIT: usize = 8;
/// Payload bytes of a piece that isn't the last.
const PIECE: usize = (MTU - HEADER) / UNIT * UNIT;
/// The longest payload of all pieces together: what a header's length has room for.
const LONGEST: usize = u16::MAX as usize - HEADER;
/// Datagrams of which some pieces may be here.
const PUZZLES: usize = 16;
/// How long we wait for a datagram's other pieces.
const PATIENCE: Duration = Duration::from_secs(15);

/// A part of a payload, small enough for a frame.
pub(super) struct Piece<'a> {
    bytes: &'a [u8],
    offset: usize,
    last: bool,
}

/// Cuts a payload so that every piece fits. What no header could describe is cut off, and was never a datagram.
pub(super) fn pieces(payload: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let payload = &payload[..payload.len().min(LONGEST)];
    let size = if payload.len() <= MTU - HEADER { MTU } else { PIECE };
    payload.chunks(size).enumerate().map(move |(index, bytes)| {
        let offset = index * size;
        Piece { bytes, offset, last: offset + bytes.len() == payload.len() }
    })
}

impl Piece<'_> {
    pub(super) fn packet_length(&self) -> usize {
        HEADER + self.bytes.len()
    }

    /// Writes the packet that carries it.
    pub(super) fn write(
        &self,
        packet: &mut [u8],
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: IpProtocol,
        identity: u16,
    ) {
        let header = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: protocol,
            payload_len: self.bytes.len(),
            hop_limit: 64,
        };
        let mut packet = Ipv4Packet::new_unchecked(packet);
        header.emit(&mut packet, &ChecksumCapabilities::default());
        if self.offset != 0 || !self.last {
            packet.set_dont_frag(false);
            packet.set_ident(identity);
            packet.set_frag_offset(
                u16::try_from(self.offset).expect("a payload is shorter than 64 KiB"),
            );
            packet.set_more_frags(!self.last);
            packet.fill_checksum();
        }
        packet.payload_mut().copy_from_slice(self.bytes);
    }
}

/// Whose pieces fit together.
type Key = (Ipv4Addr, Ipv4Addr, u8, u16);

/// The datagrams of which some pieces came.
#[derive(Default)]
pub(super) struct Fragments {
    puzzles: HashMap<Key, Puzzle>,
}

struct Puzzle {
    bytes: Vec<u8>,
    /// Which units of it are here.
    here: Vec<bool>,
    /// Its length, once the last piece came.
    length: Option<usize>,
    since: Instant,
}

impl Fragments {
    /// Whether a packet is only a piece.
    pub(super) fn is_piece(packet: &Ipv4Packet<&[u8]>) -> bool {
        packet.more_frags() || packet.frag_offset() != 0
    }

    /// Lays a piece where it belongs, and gives the whole if that was the last one missing.
    pub(super) fn lay(&mut self, packet: &Ipv4Packet<&[u8]>, now: Instant) -> Option<Vec<u8>> {
        let key =
            (packet.src_addr(), packet.dst_addr(), packet.next_header().into(), packet.ident());
        self.puzzles.retain(|_, puzzle| now < puzzle.since + PATIENCE);
        if self.puzzles.len() >= PUZZLES && !self.puzzles.contains_key(&key) {
            let oldest =
                self.puzzles.iter().min_by_key(|(_, puzzle)| puzzle.since).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.puzzles.remove(&oldest));
        }
        let puzzle = self.puzzles.entry(key).or_insert_with(|| Puzzle::new(now));
        let fits =
            puzzle.lay(usize::from(packet.frag_offset()), packet.payload(), !packet.more_frags());
        if !fits {
            self.puzzles.remove(&key);
            return None;
        }
        if puzzle.is_complete() {
            self.puzzles.remove(&key).map(|puzzle| puzzle.bytes)
        } else {
            None
        }
    }
}

impl Puzzle {
    fn new(since: Instant) -> Puzzle {
        Puzzle { bytes: Vec::new(), here: Vec::new(), length: None, since }
    }

    /// `false` if that piece can't be of this datagram: then none of it is to be believed.
    fn lay(&mut self, offset: usize, piece: &[u8], last: bool) -> bool {
        let end = offset + piece.len();
        let beyond = self.length.is_some_and(|length| end > length || (last && end != length));
        if end > LONGEST || beyond || piece.is_empty() || (last && end < self.bytes.len()) {
            return false;
        }
        if last {
            self.length = Some(end);
        } else if !piece.len().is_multiple_of(UNIT) {
            return false;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
            self.here.resize(end.div_ceil(UNIT), false);
        }
        self.bytes[offset..end].copy_from_slice(piece);
        self.here[offset / UNIT..end.div_ceil(UNIT)].fill(true);
        true
    }

    fn is_complete(&self) -> bool {
        self.length == Some(self.bytes.len()) && self.here.iter().all(|here| *here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn packets(payload: &[u8]) -> Vec<Vec<u8>> {
        packets_of(7, payload)
    }

    fn packets_of(identity: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        pieces(payload).map(|piece| written(&piece, identity)).collect()
    }

    fn written(piece: &Piece<'_>, identity: u16) -> Vec<u8> {
        let mut packet = vec![0; piece.packet_length()];
        piece.write(&mut packet, FROM, TO, IpProtocol::Udp, identity);
        packet
    }

    fn lay(fragments: &mut Fragments, packet: &[u8]) -> Option<Vec<u8>> {
        lay_at(Instant::ZERO, fragments, packet)
    }

    fn lay_at(now: Instant, fragments: &mut Fragments, packet: &[u8]) -> Option<Vec<u8>> {
        let packet = Ipv4Packet::new_checked(packet).unwrap();
        assert!(packet.verify_checksum());
        fragments.lay(&packet, now)
    }

    proptest! {
        #[test]
        fn what_was_cut_is_whole_again_in_whatever_order(length in MTU..LONGEST, start in 0usize..50) {
            let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut packets = packets(&payload);
            let start = start % packets.len();
            packets.rotate_left(start);
            let mut fragments = Fragments::default();
            let (final_one, others) = packets.split_last().unwrap();
            for packet in others {
                prop_assert!(packet.len() <= MTU);
                prop_assert_eq!(lay(&mut fragments, packet), None);
            }
            prop_assert_eq!(lay(&mut fragments, final_one), Some(payload));
            prop_assert!(fragments.puzzles.is_empty());
        }

        #[test]
        fn random_pieces_stay_within_bounds(pieces in prop::collection::vec((any::<u16>(), any::<u16>(), 0usize..1500, any::<bool>()), 0..200)) {
            let mut fragments = Fragments::default();
            for (identity, offset, length, more) in pieces {
                let mut packet = vec![0; HEADER + length];
                let piece = Piece { bytes: &vec![1; length], offset: usize::from(offset & 0xfff8), last: !more };
                piece.write(&mut packet, FROM, TO, IpProtocol::Udp, identity % 40);
                lay(&mut fragments, &packet);
                prop_assert!(fragments.puzzles.len() <= PUZZLES);
                prop_assert!(fragments.puzzles.values().all(|puzzle| puzzle.bytes.len() <= LONGEST));
            }
        }
    }

    #[test]
    fn a_short_payload_is_one_packet_and_no_piece() {
        let packets = packets(&[1; MTU - HEADER]);
        let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
        assert_eq!(packet.len(), MTU);
        assert!(!Fragments::is_piece(&Ipv4Packet::new_checked(&packet[..]).unwrap()));
    }

    #[test]
    fn pieces_that_contradict_each_other_are_no_datagram() {
        let mut puzzle = Puzzle::new(Instant::ZERO);
        assert!(puzzle.lay(0, &[1; 16], true));
        assert!(!puzzle.lay(16, &[1; 8], false), "beyond the last");
        let mut puzzle = Puzzle::new(Instant::ZERO);
        assert!(puzzle.lay(16, &[1; 8], false));
        assert!(!puzzle.lay(0, &[1; 8], true), "the last before another");
        assert!(!Puzzle::new(Instant::ZERO).lay(0, &[1; 9], false), "half a unit");
        let mut fragments = Fragments::default();
        let mut packets = packets(&[1; 3000]);
        let last = packets.pop().unwrap();
        assert_eq!(lay(&mut fragments, &last), None);
        let beyond = Piece { bytes: &[1; 8], offset: 3000, last: false };
        assert_eq!(lay(&mut fragments, &written(&beyond, 7)), None);
        assert!(packets.iter().all(|packet| lay(&mut fragments, packet).is_none()));
    }

    #[test]
    fn datagrams_are_kept_apart_and_the_oldest_makes_room() {
        let mut fragments = Fragments::default();
        let payload = |identity| vec![identity as u8; 3000];
        for identity in 0..=PUZZLES as u16 {
            let now = Instant::from_millis(i64::from(identity));
            let first = &packets_of(identity, &payload(identity))[0];
            assert_eq!(lay_at(now, &mut fragments, first), None);
        }
        let now = Instant::from_millis(100);
        for identity in (0..=PUZZLES as u16).rev() {
            let rest = &packets_of(identity, &payload(identity))[1..];
            let whole = rest.iter().find_map(|packet| lay_at(now, &mut fragments, packet));
            assert_eq!(whole, (identity != 0).then(|| payload(identity)));
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut fragments = Fragments::default();
        let packets = packets(&[1; 3000]);
        assert_eq!(lay(&mut fragments, &packets[0]), None);
        let late = Ipv4Packet::new_checked(&packets[1][..]).unwrap();
        assert_eq!(fragments.lay(&late, Instant::ZERO + PATIENCE), None);
        assert_eq!(fragments.puzzles.len(), 1, "the first piece has been thrown away");
    }
}
