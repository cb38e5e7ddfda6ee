//! **The devices**: disks, networks, consoles and chance, as a Linux guest knows them.
//!
//! Each has three layers, and each layer knows only the one below:
//! - a *transport*: how a guest finds a device, configures it and rings its bell;
//! - a *model*: what requests in the device's queues mean;
//! - a *back end*: what is really there, on the host: [`disk`], [`network`].
//!
//! Back ends know nothing of transports or queues, so whatever kind of device wants a disk uses the same ones.

#![forbid(unsafe_code)]

pub mod disk;
pub mod interrupts;
pub mod lguest_bus;
pub mod network;
pub mod pci;
pub mod virtio;
