//! Time: the clock event, the wallclock, and how fast the time stamp counter runs.
//!
//! The vCPU has one alarm, which kicks it out of guest code. Three things want it: the guest's own
//! timer interrupt (SET_CLOCKEVENT), another look at an interrupt that couldn't be delivered yet
//! (`interrupts_and_traps.rs`), and a device that wants to be polled again. [`Clock`] keeps all three times;
//! the earliest wins. The clock is only read when one of them is set or the alarm has rung, never
//! on a plain exit.

use lguest_abi::traps::TIMER_IRQ;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How soon an interrupt that waits to be enabled is looked at again.
pub(crate) const RECHECK: Duration = Duration::from_micros(100);

/// What is to happen when.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    event: Option<Instant>,
    recheck: Option<Instant>,
    poll: Option<Instant>,
    /// When the vCPU's alarm rings, as far as the Host has set it.
    armed: Option<Instant>,
}

impl Clock {
    /// SET_CLOCKEVENT: the timer interrupt comes in so many nanoseconds; never, for 0.
    pub(crate) fn set_event(&mut self, nanoseconds: u32) {
        let delay = Duration::from_nanos(u64::from(nanoseconds));
        self.event = (nanoseconds != 0).then(|| Instant::now() + delay);
    }

    /// An interrupt waits for the guest to enable it.
    pub(crate) fn recheck_after(&mut self, time: Duration) {
        if self.recheck.is_none() {
            self.recheck = Some(Instant::now() + time);
        }
    }

    /// No interrupt waits any more.
    pub(crate) fn no_recheck(&mut self) {
        self.recheck = None;
    }

    /// A device wants to be polled then, or earlier.
    pub(crate) fn poll_at(&mut self, then: Instant) {
        self.poll = Some(self.poll.map_or(then, |before| before.min(then)));
    }

    /// The earliest of the three.
    fn next(&self) -> Option<Instant> {
        [self.event, self.recheck, self.poll].into_iter().flatten().min()
    }

    /// How the vCPU's alarm must be set now, if it rings too late (or not at all) as it is. One that rings
    /// too early does no harm, and is cheaper than setting it anew.
    pub(crate) fn alarm(&mut self) -> Option<Duration> {
        let next = self.next()?;
        if self.armed.is_some_and(|armed| armed <= next) {
            return None;
        }
        self.armed = Some(next);
        // Never 0, which would mean no alarm to a timer.
        Some(next.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)))
    }

    /// The alarm may have rung, or will soon: looks at the time, and gives the interrupt that is due.
    pub(crate) fn tick(&mut self) -> Option<u8> {
        self.next().or(self.armed)?;
        let now = Instant::now();
        let due = |then: &mut Option<Instant>| then.take_if(|then| *then <= now).is_some();
        due(&mut self.recheck);
        due(&mut self.poll);
        due(&mut self.armed);
        due(&mut self.event).then_some(TIMER_IRQ)
    }

    /// How long a sleeping guest may sleep: until the timer interrupt, or a device's wish.
    pub(crate) fn sleep_time(&self) -> Option<Duration> {
        let next = [self.event, self.poll].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

/// GET_WALLCLOCK: seconds since 1970, wrapping in 2106.
pub(crate) fn wallclock() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

/// The time stamp counter's speed in kHz; 0 if it isn't constant. Found out once for the whole
/// process.
pub(crate) fn tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| if tsc_is_constant() { told_khz().unwrap_or_else(measured_khz) } else { 0 })
}

/// Leaf 0x80000007, edx bit 8: the counter runs at one speed, whatever the processor does.
fn tsc_is_constant() -> bool {
    const POWER_MANAGEMENT: u32 = 0x8000_0007;
    __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT && __cpuid(POWER_MANAGEMENT).edx & 1 << 8 != 0
}

/// The speed as the processor tells it, in leaf 0x15: edx/ebx is the fraction eax/ebx of a crystal
/// of ecx Hz (SDM volume 2, CPUID).
fn told_khz() -> Option<u32> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid_count(0x15, 0);
    let crystal = (u64::from(leaf.ecx) * u64::from(leaf.ebx)).checked_div(u64::from(leaf.eax))?;
    u32::try_from(crystal / 1000).ok().filter(|&khz| khz != 0)
}

/// Both clocks as they were when somebody first thought of a guest.
static FIRST: OnceLock<(Instant, u64)> = OnceLock::new();

/// Begins to measure the time stamp counter's speed. Whoever does so before reading a kernel spares the guest the
/// wait for the result.
pub fn begin_to_measure() {
    FIRST.get_or_init(stamp);
}

/// The speed as measured against the system's monotonic clock: over 10 ms at least, where reading both takes 0.1 µs, so to
/// 10 parts in a million.
fn measured_khz() -> u32 {
    const TIME: Duration = Duration::from_millis(10);
    let (start, first) = *FIRST.get_or_init(stamp);
    std::thread::sleep(TIME.saturating_sub(start.elapsed()));
    let now = stamp();
    let nanoseconds = now.0.duration_since(start).as_nanos();
    let cycles = u128::from(now.1.wrapping_sub(first));
    u32::try_from(cycles * 1_000_000 / nanoseconds).unwrap_or(0)
}

/// Both clocks at one moment: of a few tries the one that was interrupted least.
fn stamp() -> (Instant, u64) {
    let once = || {
        let before = lguest_switcher::timestamp();
        let now = Instant::now();
        let after = lguest_switcher::timestamp();
        (after.wrapping_sub(before), now, before + after.wrapping_sub(before) / 2)
    };
    let best = (0..5).map(|_| once()).min_by_key(|(width, ..)| *width);
    best.map_or_else(|| (Instant::now(), 0), |(_, now, cycles)| (now, cycles))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An alarm that rings when nothing is due any more is over, too: the next event needs another one.
    #[test]
    fn an_alarm_that_rang_for_nothing_is_not_counted_on() {
        let mut clock = Clock::default();
        clock.recheck_after(Duration::from_nanos(1));
        assert!(clock.alarm().is_some());
        clock.no_recheck();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(clock.tick(), None);
        clock.set_event(1_000_000);
        assert!(clock.alarm().is_some());
    }

    #[test]
    fn an_alarm_that_rings_early_enough_is_left_alone() {
        let mut clock = Clock::default();
        clock.set_event(100_000_000);
        assert!(clock.alarm().is_some());
        clock.set_event(200_000_000);
        assert_eq!(clock.alarm(), None, "it rings before, and is set anew then");
        clock.set_event(50_000_000);
        assert!(clock.alarm().is_some());
    }
}
