//! The command `bench`: what the basic operations cost, a line each: name, colon, nanoseconds.

use crate::console::say;
use crate::machine::touch_new_pages;
use crate::system;
use lguest_system_calls::private::measure;
use lguest_system_calls::{Errno, SHELL};

/// Repetitions in the kernel.
const TIMES: u32 = 200_000;
/// Repetitions between two looks at the clock.
const BATCH: u32 = 100;
/// Nanoseconds that each measurement here takes, or one batch if that is more (other processes may want their turns).
const LONG_ENOUGH: u64 = 100_000_000;
/// Demand-zero pages touched in one go.
const PAGES: u32 = 512;

/// The program `bench`.
pub(crate) fn all() -> u32 {
    let results = [
        ("null hypercall", kernel(measure::HYPERCALL)),
        ("async hypercall", kernel(measure::ASYNC_HYPERCALL)),
        ("system call", Ok(timed(BATCH, system::nothing))),
        ("context switch", context_switch()),
        ("page fault", page_fault()),
    ];
    let mut failed = 0;
    for (name, result) in results {
        match result {
            Ok(tenths) => say!("{name}: {}.{} ns", tenths / 10, tenths % 10),
            Err(error) => {
                say!("{name}: {error}");
                failed = 1;
            }
        }
    }
    failed
}

/// Tenths of a nanosecond that one repetition takes; the clock is looked at after each `batch` of them.
fn timed(batch: u32, mut what: impl FnMut()) -> u64 {
    let before = system::uptime_ns();
    let mut times = 0;
    loop {
        (0..batch).for_each(|_| what());
        times += u64::from(batch);
        let took = system::uptime_ns() - before;
        if took >= LONG_ENOUGH {
            return took * 10 / times;
        }
    }
}

fn kernel(what: u32) -> Result<u64, Errno> {
    Ok(system::measure(what, TIMES)? * 10 / u64::from(TIMES))
}

/// Two processes that always yield to each other: each of our yields is two switches.
fn context_switch() -> Result<u64, Errno> {
    let other = system::spawn(SHELL, &["bench-yield"], 0)?;
    system::yield_now();
    let per_yield = timed(BATCH, system::yield_now);
    system::kill(other)?;
    system::wait(other)?;
    Ok(per_yield / 2)
}

/// The program `bench-yield`: the other process.
pub(crate) fn yield_forever() -> ! {
    loop {
        system::yield_now();
    }
}

fn page_fault() -> Result<u64, Errno> {
    let mut enough = true;
    let per_round = timed(1, || enough &= touch_new_pages(PAGES as usize * 4096));
    if enough { Ok(per_round / u64::from(PAGES)) } else { Err(Errno::ENOMEM) }
}
