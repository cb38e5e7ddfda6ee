//! The guest's drivers for lguest's devices.
//!
//! A guest of lguest has no PCI bus and no ports. Its devices are listed in one page of memory
//! ([`devices`]); to talk to one, a driver sends it buffers and binds buffers for it to fill, by
//! the operations of the crate `lguest-guest`. What the other end does with them is the launcher's
//! chapter of the story.
//!
//! | device | driver |
//! |---|---|
//! | console | [`console`] |
//!
//! The drivers belong to no particular kernel: one calls [`Devices::bring_up`] with those it wants,
//! and each driver's `interrupt` when the device's interrupt comes.

#![no_std]
#![forbid(unsafe_code)]

pub mod console;
pub mod devices;

pub use console::Console;
pub use devices::{Device, Devices, Driver, StartError};
