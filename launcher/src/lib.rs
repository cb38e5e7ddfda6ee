//! **The Launcher**: lays out a guest's memory, loads its kernel, serves its devices, and runs it.
//!
//! ```no_run
//! use lguest::{Console, Vm};
//!
//! let vm = Vm::builder().console(Console::stdio()?).build()?;
//! println!("{:?}", vm.run()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The story, in order:
//! - [`loader`]: a kernel, from a file's bytes to segments, an offset and an entry;
//! - [`layout`], [`boot_parameters`], [`linear_page_tables`]: where everything lies before the first
//!   instruction;
//! - [`vm`]: the machine itself, built and run;
//! - `devices`, [`console`], `input`, `output`: what the guest talks to; `virtio_devices`: what later guests talk to;
//! - [`terminal`], [`rescue`]: the keyboard lent to the guest, and given back whatever happens;
//! - [`control`]: how a guest is ended from outside; [`trace`], [`statistics`]: how it is watched.
//!
//! From [`Vm::run`] the story goes on in `lguest-host`, which answers the guest's calls, and from there in
//! `lguest-switcher`, which runs its instructions.

#![deny(unsafe_code)]

pub mod boot_parameters;
pub mod console;
pub mod control;
mod devices;
mod input;
pub mod layout;
pub mod linear_page_tables;
pub mod loader;
pub mod memory_size;
mod output;
pub mod rescue;
pub mod statistics;
pub mod terminal;
pub mod trace;
mod virtio_devices;
pub mod vm;

pub use console::Console;
pub use control::{StopReason, Stopper};
pub use lguest_devices::disk::DiskConfig;
pub use lguest_devices::network::NetworkConfig;
pub use loader::{Generation, Kernel, KernelError, NoGeneration, ReadKernelError};
pub use memory_size::{MemorySize, MemorySizeError};
pub use statistics::Statistics;
pub use trace::Trace;
pub use vm::{BuildError, Ending, RunError, Vm, VmBuilder};
