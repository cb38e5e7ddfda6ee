//! **The oracle**: the best judge of an x86 engine is an x86.
//!
//! The processor this runs on can still execute 32-bit code, in the *compatibility mode* of any
//! 64-bit process. So each test case (some bytes of code, registers, memory) is run twice, once by
//! the Switcher and once by the processor itself, and afterwards everything that can be seen must be
//! the same: registers, flags, x87 and SSE state, memory, and the exception that ended it.
//!
//! The story, in order:
//! - [`state`]: what goes into a run and what comes out;
//! - [`layout`]: which pages there are;
//! - `shared`, `worker`, `filter`, `inside`: the processor's side, a child process that can do
//!   nothing but run cases;
//! - [`machine`]: the Switcher's side;
//! - [`world`], [`random`]: the pages and segments both have, and where numbers come from;
//! - [`forms`], [`instance`], [`values`], [`placing`]: every instruction form, instances of it, and
//!   states in which they do something;
//! - [`blocks`]: random programs;
//! - [`compare`], [`contest`]: running both, and telling what differs;
//! - [`habits`], `leeway`: where the manual lets this processor differ.
//!
//! Only `shared`, `worker` and `inside` contain `unsafe` code, and each says what it rests on.

#![deny(unsafe_code)]

pub mod blocks;
mod budget;
pub mod compare;
pub mod contest;
mod filter;
pub mod forms;
pub mod habits;
mod inside;
pub mod instance;
pub mod layout;
mod leeway;
pub mod machine;
pub mod placing;
pub mod random;
mod shared;
pub mod state;
pub mod values;
mod worker;
pub mod world;

pub use budget::{Budget, seed};
pub use layout::{Layout, Region};
pub use state::{Case, End, Outcome, State};
pub use worker::{Oracle, OracleError};
