//! **The fuzzers' cases**: what a string of random bytes means, and what must be so whatever it is.
//!
//! One meaning serves three: the fuzzer, which finds the strings that reach farther (`fuzz_targets/` in the folder
//! above); a run on random strings that ends by itself, for everybody and every change; and the strings that once
//! found something (`corpus/`), which are run again each time.
//!
//! - [`guest`]: whole guests, under the Host;
//! - [`switcher`]: the Switcher alone, in a small world that changes under it;
//! - `code`: instructions for both;
//! - [`harness`]: the runs that end by themselves.

#![forbid(unsafe_code)]

mod code;
pub mod guest;
pub mod harness;
pub mod switcher;
#[path = "../../../host/tests/tiny_guest/mod.rs"]
mod tiny_guest;
