//! **The network card**: Ethernet frames out and in (section 5.1, Network Device).
//!
//! Before each frame there is a header for work that a card can take over from its driver. This card offers none, so the headers are
//! empty, but of two lengths.

use crate::network::{LONGEST_FRAME, Network};
use crate::virtio::chain::Chain;
use crate::virtio::entropy::fill;
use crate::virtio::model::{Kind, Model, Version, Work};
use crate::virtio::queue::{Broken, Rings};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::BorrowedFd;

/// The configuration tells the card's address.
const MAC: u64 = 1 << 5;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: [u16; 2] = [256, 256];

/// The header, with how many buffers a frame came in at its end. Legacy drivers know only what is before that, and the very
/// first ones had no length of a frame's own headers in it either.
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const LEGACY_HEADER_BYTES: usize = 10;
const FIRST_HEADER_BYTES: usize = 8;

/// An Ethernet frame's own header. A shorter frame is none.
const SHORTEST_FRAME: usize = 14;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// One that nobody else has, in all likelihood.
    ///
    /// # Errors
    /// The host gives no randomness.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        fill(&mut bytes)?;
        // Administered locally, and of one card only.
        bytes[0] = bytes[0] & !1 | 2;
        Ok(Self(bytes))
    }
}

/// The device, on this network.
#[must_use]
pub fn network(network: Box<dyn Network>, address: MacAddress) -> Model {
    Model {
        kind: Kind::Network,
        features: MAC,
        queues: &QUEUES,
        config: address.0.to_vec(),
        config_writes: None,
        work: Box::new(NetworkWork {
            network: Some(network),
            header: HEADER.len(),
            buffer: None,
            received: Frame::new(),
            to_send: Frame::new(),
        }),
    }
}

struct NetworkWork {
    /// None when it is gone: then frames go nowhere and none come.
    network: Option<Box<dyn Network>>,
    /// How long headers are.
    header: usize,
    /// The driver's next buffer for a frame.
    buffer: Option<Chain>,
    /// A frame that waits for a buffer.
    received: Frame,
    /// A frame that waits for the network.
    to_send: Frame,
}

/// A frame on its way, or none.
struct Frame {
    bytes: Box<[u8]>,
    length: Option<usize>,
}

impl Frame {
    fn new() -> Self {
        Self { bytes: vec![0; LONGEST_FRAME].into(), length: None }
    }
}

impl Work for NetworkWork {
    fn begin(&mut self, version: Version, _features: u64) {
        self.header = match version {
            Version::First => FIRST_HEADER_BYTES,
            Version::Legacy => LEGACY_HEADER_BYTES,
            Version::One => HEADER.len(),
        };
        self.buffer = None;
    }

    /// One frame each way in turn, so that neither direction can keep the other waiting.
    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        while self.send(rings)? | self.receive(rings)? {}
        Ok(())
    }

    fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let network = self.network.as_ref()?;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.received.length.is_none());
        flags.set(PollFlags::OUT, self.to_send.length.is_some());
        (!flags.is_empty()).then(|| (network.descriptor(), flags))
    }
}

impl NetworkWork {
    /// Sends the next frame. False when there is none, or no room for it.
    fn send(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        if self.to_send.length.is_none() {
            let Some(mut chain) = rings.ring(TRANSMIT).take()? else { return Ok(false) };
            self.to_send.length = read_frame(&mut chain, self.header, &mut self.to_send.bytes);
            rings.ring(TRANSMIT).give_back(&chain)?;
        }
        let (Some(length), Some(network)) = (self.to_send.length, &mut self.network) else {
            self.to_send.length = None;
            return Ok(true);
        };
        let sent = network.send(&self.to_send.bytes[..length]).unwrap_or_else(|_| {
            self.network = None;
            true
        });
        if sent {
            self.to_send.length = None;
        }
        Ok(sent)
    }

    /// Receives the next frame. False when there is none, or no buffer for it.
    fn receive(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        if self.received.length.is_none() {
            let Some(network) = &mut self.network else { return Ok(false) };
            self.received.length = network.receive(&mut self.received.bytes).unwrap_or_else(|_| {
                self.network = None;
                None
            });
        }
        let Some(length) = self.received.length else { return Ok(false) };
        if self.buffer.is_none() {
            self.buffer = rings.ring(RECEIVE).take()?;
        }
        let Some(mut chain) = self.buffer.take() else { return Ok(false) };
        self.received.length = None;
        if chain.writable() < (self.header + length) as u64 {
            // The frame is dropped, not the buffer.
            self.buffer = Some(chain);
            return Ok(true);
        }
        chain.write(&HEADER[..self.header]);
        chain.write(&self.received.bytes[..length]);
        rings.ring(RECEIVE).give_back(&chain)?;
        Ok(true)
    }
}

/// Takes a frame out of a chain, and gives its length, unless it is none.
fn read_frame(chain: &mut Chain, header: usize, frame: &mut [u8]) -> Option<usize> {
    let whole = chain.read(&mut [0; HEADER.len()][..header]) == header;
    let length = usize::try_from(chain.readable()).ok()?;
    let right = whole && (SHORTEST_FRAME..=frame.len()).contains(&length);
    right.then(|| chain.read(&mut frame[..length]))
}
