//! What a device is, whatever bus it is on.
//!
//! A [`Model`] comes in two parts. What the bus must know at any moment is plain data. What takes time is [`Work`]: it goes to a
//! thread of its own when the driver is ready, and comes back when the driver resets the device.

use crate::virtio::queue::{Broken, Rings};
use rustix::event::PollFlags;
use std::fmt;
use std::os::fd::BorrowedFd;

/// Kinds of devices, by their numbers (section 5, Device Types).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A network card.
    Network = 1,
    /// A disk.
    Block = 2,
    /// A console.
    Console = 3,
    /// A source of entropy.
    Entropy = 4,
}

impl Kind {
    /// What to call it in messages and thread names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Block => "block",
            Self::Console => "console",
            Self::Entropy => "entropy",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which virtio a driver speaks. The rings are the same in all; what some requests look like is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// That of Linux 2.6.24, the first in which there was one.
    First,
    /// What the standard calls legacy.
    Legacy,
    /// The standard's.
    One,
}

/// A device that wants to be put on a bus.
pub struct Model {
    /// What kind it is.
    pub kind: Kind,
    /// Features it offers, of those that belong to its kind.
    pub features: u64,
    /// How long each of its queues may be: powers of 2.
    pub queues: &'static [u16],
    /// What its configuration says. It never changes.
    pub config: Vec<u8>,
    /// Who is told when the driver writes to its configuration, on the thread of the virtual CPU.
    pub config_writes: Option<Box<dyn ConfigWrites>>,
    /// What it does.
    pub work: Box<dyn Work>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Who is told when a driver writes to a device's configuration.
pub trait ConfigWrites: Send {
    /// The features that need it: a bus that doesn't see such writes can't offer them.
    fn features(&self) -> u64;

    /// The driver has written `bytes` at `offset`, which may be anything.
    fn written(&mut self, offset: usize, bytes: &[u8]);
}

// ANCHOR: work
/// What a device does, on its own thread, from when the driver is ready until it resets the device.
pub trait Work: Send {
    /// A new driver: chains that were kept are gone. `features` are those both sides know.
    fn begin(&mut self, version: Version, features: u64);

    /// Does whatever can be done now, without waiting for the driver. Called first of all, and whenever the driver has rung or what
    /// [`Work::waits_for`] names has come true; sometimes also for nothing.
    ///
    /// # Errors
    /// The driver did what it can't have meant; the device does nothing more until it is reset.
    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken>;

    /// What, besides the driver's ring, makes more work.
    fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }
}
// ANCHOR_END: work
