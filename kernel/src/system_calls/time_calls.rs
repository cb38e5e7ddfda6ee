//! Calls on time, in the old form (seconds of 32 bits) and the new one (64).

use super::Answer;
use crate::clock::{self, SECOND, TICK};
use crate::memory::user_memory;
use crate::processes;
use lguest_guest::machine;
use lguest_system_calls::Errno;

/// What a clock says, in nanoseconds.
fn read(which: u32) -> Result<u64, Errno> {
    /// Time of day, and its coarse twin.
    const REALTIME: [u32; 2] = [0, 5];
    /// Since boot: monotonic, raw, coarse, and with time asleep.
    const MONOTONIC: [u32; 4] = [1, 4, 6, 7];
    /// What the process, or its only thread, has run.
    const PROCESSOR: [u32; 2] = [2, 3];
    match which {
        which if REALTIME.contains(&which) => Ok(clock::since_1970()),
        which if MONOTONIC.contains(&which) => Ok(clock::since_boot()),
        which if PROCESSOR.contains(&which) => Ok(processes::processor_time()),
        _ => Err(Errno::EINVAL),
    }
}

/// Writes nanoseconds as seconds and a rest, of four bytes each.
fn put(at: u32, nanoseconds: u64) -> Answer {
    let words =
        [nanoseconds / SECOND, nanoseconds % SECOND].map(|word| (word as u32).to_le_bytes());
    user_memory::write(at, words.as_flattened())?;
    Ok(0)
}

/// The same, of eight bytes each.
fn put64(at: u32, nanoseconds: u64) -> Answer {
    let words = [nanoseconds / SECOND, nanoseconds % SECOND].map(u64::to_le_bytes);
    user_memory::write(at, words.as_flattened())?;
    Ok(0)
}

/// Nanoseconds from seconds and a rest.
fn total(seconds: u64, rest: u64) -> Result<u64, Errno> {
    if rest >= SECOND || seconds > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(SECOND).saturating_add(rest))
}

fn get(at: u32) -> Result<u64, Errno> {
    let [seconds, rest] = user_memory::read_words(at)?;
    total(seconds.into(), rest.into())
}

fn get64(at: u32) -> Result<u64, Errno> {
    let [low, high, rest, _] = user_memory::read_words(at)?;
    total(u64::from(high) << 32 | u64::from(low), rest.into())
}

pub(super) fn time(at: u32) -> Answer {
    let seconds = (clock::since_1970() / SECOND) as u32;
    if at != 0 {
        user_memory::write(at, &seconds.to_le_bytes())?;
    }
    Ok(seconds)
}

/// Ticks that the process has run; the kernel's part isn't told apart.
pub(super) fn times(at: u32) -> Answer {
    let ticks = |nanoseconds: u64| (nanoseconds / u64::from(TICK)) as u32;
    if at != 0 {
        let words = [ticks(processes::processor_time()), 0, 0, 0].map(u32::to_le_bytes);
        user_memory::write(at, words.as_flattened())?;
    }
    Ok(ticks(clock::since_boot()))
}

pub(super) fn gettimeofday(at: u32) -> Answer {
    if at != 0 {
        let now = clock::since_1970();
        let words = [now / SECOND, now % SECOND / 1000].map(|word| (word as u32).to_le_bytes());
        user_memory::write(at, words.as_flattened())?;
    }
    Ok(0)
}

pub(super) fn clock_gettime(which: u32, at: u32) -> Answer {
    put(at, read(which)?)
}

pub(super) fn clock_gettime64(which: u32, at: u32) -> Answer {
    put64(at, read(which)?)
}

pub(super) fn clock_getres(which: u32, at: u32) -> Answer {
    read(which)?;
    if at == 0 { Ok(0) } else { put(at, 1) }
}

pub(super) fn clock_getres64(which: u32, at: u32) -> Answer {
    read(which)?;
    if at == 0 { Ok(0) } else { put64(at, 1) }
}

pub(super) fn nanosleep(at: u32) -> Answer {
    sleep(machine().now().saturating_add(get(at)?))
}

pub(super) fn clock_nanosleep(which: u32, flags: u32, at: u32) -> Answer {
    sleep_by(which, flags, get(at)?)
}

pub(super) fn clock_nanosleep64(which: u32, flags: u32, at: u32) -> Answer {
    sleep_by(which, flags, get64(at)?)
}

/// Sleeps until a clock says a time, or for that long.
fn sleep_by(which: u32, flags: u32, time: u64) -> Answer {
    const ABSOLUTE: u32 = 1;
    let length = if flags & ABSOLUTE != 0 { time.saturating_sub(read(which)?) } else { time };
    sleep(machine().now().saturating_add(length))
}

fn sleep(until: u64) -> Answer {
    processes::sleep(until)?;
    Ok(0)
}
