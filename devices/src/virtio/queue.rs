//! A queue, seen from the device: chains come out of its ring and go back into it.
//!
//! Each side can sleep while the other works, and must not miss the other's call. So a device that finds its ring empty first says
//! that it wants to be woken, and then looks once more: a driver that added something before it saw that would not have
//! rung ([`Ring::take`]). While it works it says that it needn't be. Likewise the driver may say that it
//! wants no interrupt ([`Ring::give_back`]).

use crate::virtio::EVENT_IDX;
use crate::virtio::chain::Chain;
use crate::virtio::memory::DeviceMemory;
use crate::virtio::model::Kind;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// In the flags of the available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;

/// What a driver did that it can't have meant. Its device does nothing more until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A ring has a size it can't have, or isn't in memory.
    #[error("queue {0} has a ring of a wrong size, or not in memory")]
    RingPlace(usize),
    /// A ring can't be used as it is.
    #[error("a ring can't be right: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A buffer isn't in memory.
    #[error("a buffer of {bytes} bytes at {at:#x} is not in memory")]
    NotMemory {
        /// Where it begins.
        at: u64,
        /// Its length.
        bytes: u32,
    },
    /// A buffer to be read follows one to be written.
    #[error("a buffer to be read follows one to be written")]
    Order,
    /// A chain has too many buffers.
    #[error("a chain has too many buffers")]
    TooLong,
    /// A chain doesn't come to its end.
    #[error("a chain is not whole")]
    Unfinished,
    /// A request lacks what every request has.
    #[error("a request lacks its {0}")]
    Request(&'static str),
    /// The driver uses features that weren't offered, or none it must, or works without having said which.
    #[error("the driver did not agree on features")]
    Features,
    /// The host has nothing to give for it.
    #[error("the host can't serve the device: {0}")]
    Host(#[from] io::Error),
}

/// The driver, as far as a working device can reach it. Called from the device's thread.
pub(crate) trait Driver: Send + Sync {
    /// Tells it that it has got chains back.
    fn used(&self, queue: usize);

    /// Tells it that the device does nothing more until it is reset.
    fn broken(&self, why: &Broken);
}

/// Tells the host's user that a device is broken: the first time, since a guest can do it as often as it likes.
pub(crate) struct Complaint {
    about: Kind,
    once: Once,
}

impl Complaint {
    pub(crate) fn about(about: Kind) -> Self {
        Self { about, once: Once::new() }
    }

    pub(crate) fn say(&self, why: &Broken) {
        self.once.call_once(|| {
            eprintln!(
                "lguest: the guest's {} device stops until it is reset: {why} (said once)",
                self.about
            );
        });
    }
}

/// Where the driver has put a ring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingSetup {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// How a device is called while it works, from other threads.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Readable when the driver has rung.
    bell: OwnedFd,
    /// Readable once work is to stop, and from then on.
    stop: OwnedFd,
    stopping: AtomicBool,
}

impl Calls {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            bell: eventfd(0, flags)?,
            stop: eventfd(0, flags)?,
            stopping: AtomicBool::new(false),
        })
    }

    pub(crate) fn ring(&self) {
        // It can only fail when it has rung 2⁶⁴−2 times unheard: then it rings already.
        let _ = write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = write(&self.stop, &1u64.to_ne_bytes());
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(crate) fn stop_signal(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// All rings of a device, from the moment its driver is ready until a reset.
pub struct Rings {
    rings: Vec<Ring>,
    calls: Arc<Calls>,
}

impl Rings {
    /// Checks the places of the rings. A queue the driver didn't set up stays empty.
    pub(crate) fn new(
        memory: &DeviceMemory,
        setups: &[Option<RingSetup>],
        features: u64,
        driver: &Arc<dyn Driver>,
        calls: &Arc<Calls>,
    ) -> Result<Self, Broken> {
        let ring = |(index, setup): (usize, &Option<RingSetup>)| {
            let queue = setup.map(|setup| queue(index, setup, features, memory)).transpose()?;
            Ok(Ring {
                queue,
                memory: memory.clone(),
                index,
                listening: false,
                driver: Arc::clone(driver),
                calls: Arc::clone(calls),
            })
        };
        let rings = setups.iter().enumerate().map(ring).collect::<Result<_, Broken>>()?;
        Ok(Self { rings, calls: Arc::clone(calls) })
    }

    /// The ring of queue `index`.
    ///
    /// # Panics
    /// When the model has no such queue.
    pub fn ring(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    /// Becomes readable, and stays so, when work is to stop: for whoever waits for something else meanwhile.
    #[must_use]
    pub fn stop_signal(&self) -> BorrowedFd<'_> {
        self.calls.stop_signal()
    }

    /// Whether work is to stop, so that what has been begun needn't be finished.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.calls.stopping()
    }
}

fn queue(
    index: usize,
    setup: RingSetup,
    features: u64,
    memory: &DeviceMemory,
) -> Result<Queue, Broken> {
    let place = |_| Broken::RingPlace(index);
    let mut queue = Queue::new(setup.size).map_err(place)?;
    queue.try_set_desc_table_address(GuestAddress(setup.descriptors)).map_err(place)?;
    queue.try_set_avail_ring_address(GuestAddress(setup.available)).map_err(place)?;
    queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(place)?;
    queue.set_event_idx(features & EVENT_IDX != 0);
    queue.set_ready(true);
    if queue.is_valid(memory.mapped()) { Ok(queue) } else { Err(Broken::RingPlace(index)) }
}

/// One queue's ring.
pub struct Ring {
    queue: Option<Queue>,
    memory: DeviceMemory,
    index: usize,
    /// Whether the driver knows that it must ring when it adds something.
    listening: bool,
    driver: Arc<dyn Driver>,
    calls: Arc<Calls>,
}

impl Ring {
    // ANCHOR: take_chain
    /// Takes the next chain. `None` means that there is none and that the driver will ring when there is; or that work is
    /// to stop.
    ///
    /// # Errors
    /// The ring or the chain can't be right.
    pub fn take(&mut self) -> Result<Option<Chain>, Broken> {
        let Some(queue) = self.queue.as_mut().filter(|_| !self.calls.stopping()) else {
            return Ok(None);
        };
        let memory = self.memory.mapped();
        loop {
            if let Some(descriptors) = queue.iter(memory)?.next() {
                if self.listening {
                    queue.disable_notification(memory)?;
                    self.listening = false;
                }
                return Chain::new(&self.memory, descriptors).map(Some);
            }
            if self.listening {
                return Ok(None);
            }
            queue.enable_notification(memory)?;
            self.listening = true;
        }
    }
    // ANCHOR_END: take_chain

    /// Gives a chain back, and tells the driver if it wants to know.
    ///
    /// # Errors
    /// The ring can't be used.
    pub fn give_back(&mut self, chain: &Chain) -> Result<(), Broken> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let memory = self.memory.mapped();
        queue.add_used(memory, chain.head(), chain.written())?;
        // This also sees to it that what was given back is there before the driver's wish is read.
        let mut wanted = queue.needs_notification(memory)?;
        if !queue.event_idx_enabled() {
            let flags = GuestAddress(queue.avail_ring());
            let flags = memory.load(flags, Ordering::Relaxed);
            let flags: u16 = flags.map_err(virtio_queue::Error::GuestMemory)?;
            wanted = u16::from_le(flags) & NO_INTERRUPT == 0;
        }
        if wanted {
            self.driver.used(self.index);
        }
        Ok(())
    }
}
