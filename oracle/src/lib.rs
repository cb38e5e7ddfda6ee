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
//!   nothing but run cases.
//!
//! Only `shared`, `worker` and `inside` contain `unsafe` code, and each says what it rests on.

#![deny(unsafe_code)]

mod filter;
mod inside;
pub mod layout;
mod shared;
pub mod state;
mod worker;

pub use layout::{Layout, Region};
pub use state::{Case, End, Outcome, State};
pub use worker::{Oracle, OracleError};
