//! Time: what it is, how much has passed, and being woken later.

/// The operations on time.
pub trait Time {
    /// Seconds since 1970.
    fn wallclock(&self) -> u32;

    /// Nanoseconds since some moment before or at boot. It never goes back.
    ///
    /// It comes from the time stamp counter where that is constant; otherwise it moves by
    /// [`tick`](Self::tick) only.
    fn now(&self) -> u64;

    /// What [`now`](Self::now) goes by, for a line at boot: "tsc" or "ticks".
    fn clock_source(&self) -> &'static str;

    /// Says that `nanoseconds` have passed. The timer's handler calls it each time.
    fn tick(&self, nanoseconds: u32);

    /// Asks for one timer interrupt (irq 0) in `nanoseconds` from now, at least 100. It replaces
    /// the one asked for before.
    fn set_clock_event(&self, nanoseconds: u32);

    /// Calls the timer interrupt off.
    fn stop_clock_event(&self);
}
