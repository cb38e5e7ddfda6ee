//! The command `fpu`: two processes compute with the FPU at the same time, and each checks its results.
//!
//! Each keeps a long computation in the FPU's registers. The kernel gives the FPU from one to
//! the other lazily, when the other first uses it (trap 7); if it ever lost or mixed up a register, a result would
//! be wrong. The same numbers, computed with whole numbers in general registers, tell.

use crate::console::say;
use crate::machine::fpu_rounds;
use crate::system::{self, Ending};
use alloc::format;
use lguest_system_calls::{Errno, SHELL};

/// x ← (x·a + c) mod m. All are below 2³¹, so that products are exact in the x87's 64 bits.
const STEP: [u32; 3] = [1_103_515_245, 12_345, 2_147_483_647];
/// Steps that stay in registers without a break: some milliseconds.
const ROUNDS: u32 = 200_000;
/// Times that is done and checked: together some time slices.
const CHECKS: u32 = 20;

/// The program `fpu`: starts both halves, and waits for them.
pub(crate) fn both() -> u32 {
    match [1_u32, 2].map(start).map(|half| half.and_then(system::wait)) {
        [Ok(Ending::Status(0)), Ok(Ending::Status(0))] => {
            say!("both got {CHECKS} times {ROUNDS} steps right, x87 and SSE2");
            0
        }
        [first, second] => {
            for (half, ending) in [(1, first), (2, second)] {
                match ending {
                    Ok(Ending::Status(status)) => say!("process {half}: status {status}"),
                    Ok(Ending::Signal(signal)) => say!("process {half}: ended by signal {signal}"),
                    Err(error) => say!("process {half}: {error}"),
                }
            }
            1
        }
    }
}

fn start(half: u32) -> Result<u32, Errno> {
    system::spawn(SHELL, &["fpu-half", &format!("{half}")], 0)
}

/// The program `fpu-half`: computes, and compares. Its status says how it went.
pub(crate) fn half(seed: Option<&str>) -> u32 {
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(1_u32);
    let mut start = 1_000_003 * seed;
    for check in 1..=CHECKS {
        let expected = (exactly(start), double_sum(start));
        let got = fpu_rounds(start, STEP, ROUNDS);
        if got != expected {
            say!("fpu, process {seed}, check {check}: got {got:x?}, expected {expected:x?}");
            return 1;
        }
        start = got.0 as u32;
    }
    say!("process {seed}: {CHECKS} checks, all right; x = {start}");
    0
}

/// What x is after all rounds, by whole numbers.
fn exactly(start: u32) -> u64 {
    let [a, c, m] = STEP.map(u64::from);
    (0..ROUNDS).fold(u64::from(start), |x, _| (x * a + c) % m)
}

/// The sum's bits, as a double: it is whole and below 2⁵³, so no rounding comes in.
fn double_sum(start: u32) -> u64 {
    (f64::from(start) * f64::from(ROUNDS)).to_bits()
}
