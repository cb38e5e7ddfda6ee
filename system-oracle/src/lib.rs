//! **The system oracle**: what only kernels use, held against somebody else's idea of it.
//!
//! The real processor, which judges everything else (`lguest-oracle`), can't be asked here: it won't run a kernel's
//! instructions in a process. So there are two other judges.
//!
//! - *Unicorn*, QEMU's translator as a library. Random cases (a world of descriptors, gates and page tables, and one
//!   instruction or interrupt in it) are done by both machines, and all that can be seen must be the same afterwards:
//!   `tests/random_cases.rs`. Where unicorn is known to be wrong, [`exclusions`] says so.
//! - *The manual*, by cases written by hand, each of which is one sentence of it: the other tests, by theme. Unicorn has no part in
//!   them.
//!
//! The story, in order:
//! - [`state`]: what goes into a case and what comes out; [`machine`]: what does something in between;
//! - [`ours`]: our machine; [`unicorn`], `hidden`, `control_block`: the other one;
//! - [`descriptors`], [`world`], [`manual`]: the world, and cases written by hand;
//! - [`scenery`], [`instructions`]: random worlds and cases;
//! - [`contest`], [`walk`], [`exclusions`], [`tally`]: comparing, and telling what was compared.
//!
//! Only `hidden` contains `unsafe` code, and says what it rests on.

#![deny(unsafe_code)]

pub mod contest;
mod control_block;
pub mod descriptors;
pub mod exclusions;
#[allow(unsafe_code)]
mod hidden;
pub mod instructions;
pub mod machine;
pub mod manual;
pub mod ours;
pub mod scenery;
pub mod state;
pub mod tally;
pub mod unicorn;
pub mod walk;
pub mod world;

pub use machine::{Delivers, Machine, Outcome};
pub use ours::OurMachine;
pub use state::{Segment, State, Table};
pub use unicorn::UnicornMachine;
