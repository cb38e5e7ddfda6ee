//! **Virtio**: what a device and its driver say to each other, whatever bus they met on.
//!
//! They share queues in the guest's memory. The driver puts chains of buffers into one and rings the device's bell; the device
//! takes them out, fills or empties them, gives them back, and raises an interrupt. This is where the rings are
//! ([`queue`]), what a chain is ([`chain`]), and the thread that does a device's work ([`worker`]), so that a
//! [model](model::Model) says only what the buffers mean.
//!
//! Everything in guest memory is the driver's word, and drivers lie. A ring or chain that can't be right breaks the device
//! ([`Broken`]): it stays so, doing nothing, until the driver resets it. That is what the standard wants, and
//! it harms nobody but the guest that did it.
//!
//! The standard is *Virtual I/O Device (VIRTIO) Version 1.0*; "legacy" is what came before it, which its sections of that name
//! describe.

pub mod block;
mod chain;
pub mod console;
mod device;
pub mod entropy;
mod memory;
mod model;
pub mod network;
mod queue;
mod worker;

pub use chain::Chain;
pub(crate) use device::Device;
pub use memory::DeviceMemory;
pub use model::{ConfigWrites, Kind, Model, Version, Work};
pub use queue::{Broken, Ring, Rings};
pub(crate) use queue::{Complaint, Driver, RingSetup};

/// The device's interface is that of the standard's first version, not the legacy one.
pub const VERSION_1: u64 = 1 << 32;
/// Descriptors may refer to tables of more.
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// Each side tells the other from which entry on it wants to be woken.
pub const EVENT_IDX: u64 = 1 << 29;

/// What every device here can do with its rings, besides what its model offers.
pub(crate) const RING_FEATURES: u64 = INDIRECT_DESCRIPTORS | EVENT_IDX;

/// Bits of a device's status (section 2.1, Device Status Field).
pub(crate) mod status {
    /// The driver knows how to drive the device.
    pub(crate) const DRIVER_OK: u8 = 4;
    /// The driver has said which features it will use.
    pub(crate) const FEATURES_OK: u8 = 8;
    /// The device gave up until it is reset.
    pub(crate) const NEEDS_RESET: u8 = 64;
}
