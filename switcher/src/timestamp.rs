//! The time stamp counter, which guest code reads natively: the host's own.
//!
//! An embedder that tells its guest how fast the counter runs, or reads it on the guest's behalf,
//! must mean the same one.

use std::arch::x86_64::_rdtsc;

/// The counter's value: what `rdtsc` gives guest code at this moment.
#[must_use]
pub fn timestamp() -> u64 {
    // SAFETY: every 64-bit x86 processor has rdtsc. A process that may not use it (prctl
    // PR_SET_TSC) gets SIGSEGV, as guest code would.
    unsafe { _rdtsc() }
}
