//! The clock: a tick a hundred times a second, and what time it is.

use crate::interrupt_lock::InterruptLock;
use crate::processes;
use lguest_abi::traps::TIMER_IRQ;
use lguest_guest::machine;

/// Nanoseconds from one tick to the next.
pub(crate) const TICK: u32 = 10_000_000;

/// Nanoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A moment told both ways: seconds since 1970, and what [`now`](lguest_guest::time::Time::now) said then.
static ANCHOR: InterruptLock<(u32, u64)> = InterruptLock::new((0, 0));

/// Reads the time of day, and starts ticking.
pub(crate) fn init() {
    let machine = machine();
    ANCHOR.with(|anchor| *anchor = (machine.wallclock(), machine.now()));
    machine.unmask_irq(TIMER_IRQ);
    machine.set_clock_event(TICK);
}

/// The timer's interrupt.
pub(crate) fn interrupt() {
    let machine = machine();
    machine.tick(TICK);
    machine.set_clock_event(TICK);
    processes::tick(machine.now());
}

/// Nanoseconds since the guest booted.
pub(crate) fn since_boot() -> u64 {
    let (_, anchor) = ANCHOR.with(|anchor| *anchor);
    machine().now().saturating_sub(anchor)
}

/// Nanoseconds since 1970. The Host tells whole seconds only, so it may be up to one late.
pub(crate) fn since_1970() -> u64 {
    let (seconds, _) = ANCHOR.with(|anchor| *anchor);
    u64::from(seconds) * SECOND + since_boot()
}
