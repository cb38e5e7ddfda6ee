//! Time of a guest: a counter where the Host vouches for it, and one timer.

use super::Lguest;
use super::hypercalls::hcall;
use crate::assembly;
use crate::interrupts;
use crate::time::Time;
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::Hypercall;
use lguest_abi::hypercall::CLOCKEVENT_MIN_NANOSECONDS;

/// A u64 in two words, which a handler must not see half written: it is written with interrupts
/// off.
struct Wide {
    low: AtomicU32,
    high: AtomicU32,
}

impl Wide {
    const fn new() -> Self {
        Self { low: AtomicU32::new(0), high: AtomicU32::new(0) }
    }

    fn get(&self) -> u64 {
        let high = u64::from(self.high.load(Ordering::Relaxed));
        high << 32 | u64::from(self.low.load(Ordering::Relaxed))
    }

    fn set(&self, value: u64) {
        self.low.store(value as u32, Ordering::Relaxed);
        self.high.store((value >> 32) as u32, Ordering::Relaxed);
    }
}

/// Nanoseconds that [`Time::tick`] was told of.
static TICKED: Wide = Wide::new();

/// The time stamp counter when the clock source was chosen.
static TSC_AT_BOOT: Wide = Wide::new();

/// Nanoseconds in 2²² ticks of the time stamp counter; 0 when that isn't to be used.
static TSC_SCALE: AtomicU32 = AtomicU32::new(0);

const TSC_SCALE_SHIFT: u32 = 22;

/// Takes the time stamp counter if the Host gave its speed in kHz, and ticks if it gave 0.
pub(super) fn choose_clock_source(tsc_khz: u32) {
    const NANOSECONDS_IN_MILLISECOND: u64 = 1_000_000;
    let scale = (NANOSECONDS_IN_MILLISECOND << TSC_SCALE_SHIFT)
        .checked_div(u64::from(tsc_khz))
        .unwrap_or(0);
    // A counter too slow for the scale's 32 bits (below one MHz) is worth no more than ticks.
    TSC_SCALE.store(u32::try_from(scale).unwrap_or(0), Ordering::Relaxed);
    TSC_AT_BOOT.set(assembly::time_stamp());
}

/// `ticks` of the time stamp counter in nanoseconds, by a scale as in [`TSC_SCALE`].
fn nanoseconds(ticks: u64, scale: u32) -> u64 {
    let scale = u64::from(scale);
    let (high, low) = (ticks >> 32, ticks & u64::from(u32::MAX));
    ((high * scale) << (32 - TSC_SCALE_SHIFT)) + ((low * scale) >> TSC_SCALE_SHIFT)
}

impl Time for Lguest {
    fn wallclock(&self) -> u32 {
        hcall(Hypercall::GetWallclock)
    }

    fn now(&self) -> u64 {
        match TSC_SCALE.load(Ordering::Relaxed) {
            0 => interrupts::without(|| TICKED.get()),
            scale => nanoseconds(assembly::time_stamp().wrapping_sub(TSC_AT_BOOT.get()), scale),
        }
    }

    fn clock_source(&self) -> &'static str {
        if TSC_SCALE.load(Ordering::Relaxed) == 0 { "ticks" } else { "tsc" }
    }

    fn tick(&self, nanoseconds: u32) {
        interrupts::without(|| TICKED.set(TICKED.get() + u64::from(nanoseconds)));
    }

    fn set_clock_event(&self, nanoseconds: u32) {
        let nanoseconds = nanoseconds.max(CLOCKEVENT_MIN_NANOSECONDS);
        hcall(Hypercall::SetClockevent { nanoseconds });
    }

    fn stop_clock_event(&self) {
        hcall(Hypercall::SetClockevent { nanoseconds: 0 });
    }
}
