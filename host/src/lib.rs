//! **The Host**: what a guest finds around it.
//!
//! A 32-bit kernel that knows it is a guest asks for things by *hypercall*; what it doesn't ask
//! for, it does, and the Host sees to it that it comes out as on a real processor. Below is
//! the Switcher, which runs the guest's code and knows nothing of lguest; above is the launcher,
//! which has the devices. In between, in the order in which the story is best read:
//!
//! - [`machine`]: one guest, and the loop it runs in;
//! - `hypercalls`, `shared_data`: what it asks for, and the memory where it asks;
//! - `interrupts_and_traps`, `delivery`: how it is told what happened; `system_calls`: what it is told without the Host;
//! - `page_tables`, `shadow`, `address_spaces`: what its addresses mean, and what is remembered of that;
//! - `segments`: its descriptor tables;
//! - `clock`, `halt`: its time, and its sleep;
//! - `privileged`: instructions that only kernels use, as this processor has them;
//! - [`dma`], [`devices`]: how data gets in and out;
//! - [`kill`]: all the ways to end it; [`trace`]: how to watch it.
//!
//! Three kinds of going wrong are kept apart: a trap, which the guest handles; a [`Kill`], which ends
//! this guest with a reason; and a [`SetupError`], which says what the host machine lacks.

#![forbid(unsafe_code)]

mod address_spaces;
mod clock;
mod delivery;
pub mod devices;
pub mod dma;
mod guest;
mod halt;
mod hypercalls;
mod interrupts_and_traps;
pub mod kill;
pub mod machine;
mod page_tables;
mod privileged;
mod segments;
mod shadow;
mod shared_data;
mod system_calls;
pub mod trace;

pub use clock::begin_to_measure;
pub use devices::{Bus, DeviceIo, Devices, EmptyBus, NoDevices, Stop};
pub use dma::{BoundBuffer, NoBuffer, Sections};
pub use interrupts_and_traps::InterruptLines;
pub use kill::Kill;
pub use lguest_abi::Generation;
pub use lguest_switcher::{GuestMemory, GuestPhys, Kicker, SetupError};
pub use machine::{End, Machine, MachineConfig};
pub use trace::{Event, Tracer};
