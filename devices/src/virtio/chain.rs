//! A chain of buffers: what a driver hands over, and gets back, in one piece.
//!
//! A chain has buffers the device reads, then buffers it writes. How a driver cuts its bytes into buffers means nothing
//! (section 2.4.4, Message Framing), so both parts are streams here.
//!
//! Descriptors are read once, here, and judged: each buffer must be memory; there may be only so many of them; the chain must come to an
//! end. Their total length may be anything up to 4 GiB, so whoever works on a chain does it a piece at a time.

use crate::virtio::memory::{DeviceMemory, MappedMemory};
use crate::virtio::queue::Broken;
use std::collections::VecDeque;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Buffers in a chain. Drivers are told a smaller number where it matters, and the queues are shorter, but a table that
/// a descriptor refers to could have 65535.
const LONGEST: usize = 1024;

/// A chain taken from a ring. It must be given back there: [`Ring::give_back`](crate::virtio::Ring::give_back).
#[derive(Debug)]
pub struct Chain {
    memory: DeviceMemory,
    head: u16,
    readable: Buffers,
    writable: Buffers,
    written: u32,
    /// Some bytes were passed over: what is written behind them doesn't count.
    gap: bool,
}

/// Buffers that were not used up yet.
#[derive(Debug, Default)]
struct Buffers {
    pieces: VecDeque<(u64, u32)>,
}

impl Chain {
    /// Reads and judges a chain's descriptors.
    pub(crate) fn new(
        memory: &DeviceMemory,
        descriptors: DescriptorChain<&MappedMemory>,
    ) -> Result<Self, Broken> {
        let mut chain = Self {
            memory: memory.clone(),
            head: descriptors.head_index(),
            readable: Buffers::default(),
            writable: Buffers::default(),
            written: 0,
            gap: false,
        };
        // The iterator ends in silence at a descriptor that can't be right. But then the one before it promised another.
        let mut more = true;
        for descriptor in descriptors {
            let (at, bytes) = (descriptor.addr(), descriptor.len());
            if !memory.mapped().check_range(at, bytes as usize) {
                return Err(Broken::NotMemory { at: at.0, bytes });
            }
            if !descriptor.is_write_only() && !chain.writable.pieces.is_empty() {
                return Err(Broken::Order);
            }
            if chain.readable.pieces.len() + chain.writable.pieces.len() == LONGEST {
                return Err(Broken::TooLong);
            }
            let side =
                if descriptor.is_write_only() { &mut chain.writable } else { &mut chain.readable };
            side.pieces.push_back((at.0, bytes));
            more = descriptor.has_next();
        }
        if more { Err(Broken::Unfinished) } else { Ok(chain) }
    }

    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// How many bytes were written, from the beginning on without a gap: so many the driver may look at (section 2.4.8, The Virtqueue
    /// Used Ring).
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// How many bytes are still to be read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.bytes()
    }

    /// How many bytes can still be written.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.bytes()
    }

    /// Reads the next bytes, and says how many there were: fewer than asked for only at the end.
    #[must_use]
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(room) = into.get_mut(done..).filter(|room| !room.is_empty()) {
            let Some((at, bytes)) = self.readable.take(room.len()) else { break };
            let (room, _) = room.split_at_mut(bytes);
            if self.memory.mapped().read_slice(room, at).is_err() {
                break;
            }
            done += bytes;
        }
        done
    }

    /// Writes the next bytes, and says how many there was room for.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some(left) = from.get(done..).filter(|left| !left.is_empty()) {
            let Some((at, bytes)) = self.writable.take(left.len()) else { break };
            let (now, _) = left.split_at(bytes);
            if self.memory.mapped().write_slice(now, at).is_err() {
                break;
            }
            done += bytes;
        }
        if !self.gap {
            self.written += done as u32;
        }
        done
    }

    /// Passes over bytes that could be written, all but the last `left` of them.
    pub fn skip_to_last(&mut self, left: u64) {
        while let Some(over) = self.writable().checked_sub(left).filter(|over| *over > 0) {
            let _ = self.writable.take(usize::try_from(over).unwrap_or(usize::MAX));
            self.gap = true;
        }
    }
}

impl Buffers {
    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| u64::from(*bytes)).sum()
    }

    /// Takes up to `most` bytes that lie together.
    fn take(&mut self, most: usize) -> Option<(GuestAddress, usize)> {
        loop {
            let (at, bytes) = self.pieces.front_mut()?;
            let now = (*bytes).min(u32::try_from(most).unwrap_or(u32::MAX));
            let here = GuestAddress(*at);
            *at += u64::from(now);
            *bytes -= now;
            if *bytes == 0 {
                self.pieces.pop_front();
            }
            if now > 0 {
                return Some((here, now as usize));
            }
        }
    }
}
