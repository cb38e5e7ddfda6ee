//! **The Switcher**: runs 32-bit x86 code, kernel and user alike, inside an ordinary 64-bit
//! process, at close to native speed, and never lets it out.
//!
//! Guest instructions are translated to 64-bit ones that do the same, nearly one for one. A guest
//! address becomes an offset into a *window*, 4 GiB of the process's address space that mirror
//! the guest's page tables, so the hardware does the guest's paging; what the guest isn't
//! allowed to do itself comes out of [`Vcpu::run`] as an [`Exit`], and whoever embeds the Switcher
//! decides. It knows x86, and nothing of any guest.
//!
//! The story, in order:
//! - [`address`], [`environment`], [`breakpoints`], [`call_gate`], [`exit`]: the words the Switcher and its embedder share;
//! - [`memory`]: the guest's physical memory;
//! - `translate`: guest instructions in, host instructions out, and nothing else;
//! - `emulate`: the awkward instructions, carried out in Rust;
//! - `execute`: everything that touches the machine: windows, the code cache, crossings, signals;
//! - [`vcpu`]: the loop that ties them together.
//!
//! Only [`memory`] and `execute` contain `unsafe` code (and `timestamp`, one instruction).

#![deny(unsafe_code)]

pub mod address;
pub mod breakpoints;
pub mod call_gate;
pub mod cpu;
mod emulate;
pub mod environment;
mod execute;
pub mod exit;
mod frame;
pub mod memory;
#[allow(unsafe_code, reason = "one instruction")]
mod timestamp;
mod translate;
pub mod vcpu;

pub use address::{GuestPhys, GuestVirt, PAGE_SIZE};
pub use breakpoints::Breakpoint;
pub use call_gate::{CallGate, GateEnd};
pub use cpu::{Cpu, Gpr, Segment, SegmentRegister};
pub use environment::{Access, Environment, Mapping, PageFault};
pub use execute::SetupError;
pub use execute::kick::Kicker;
pub use exit::{Exception, Exit};
pub use memory::{GuestMemory, MemoryRange, OutsideMemory};
pub use timestamp::timestamp;
pub use vcpu::{Config, ParkedVcpu, SpaceId, Statistics, Vcpu, View};
