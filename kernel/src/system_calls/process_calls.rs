//! Calls on processes, and on what they want to know of the system.

use super::Answer;
use crate::clock::{self, SECOND};
use crate::memory::{frames, user_memory};
use crate::processes::{self, Ending, Pid, Process, of_current};
use crate::random;
use lguest_abi::segments::{TLS_ENTRIES, TLS_FIRST};
use lguest_guest::machine;
use lguest_guest::segments::Descriptor;
use lguest_kernel_logic::areas::{HIGHEST, PAGE, STACK_LIMIT};
use lguest_system_calls::Errno;
use lguest_system_calls::private::reboot as words;

pub(super) fn exit(status: u32) -> ! {
    processes::exit(Ending::Status(status as u8))
}

pub(super) fn getpid() -> Answer {
    of_current(|process| Ok(process.pid.0))
}

pub(super) fn getppid() -> Answer {
    of_current(|process| Ok(process.parent.0))
}

pub(super) fn getpgrp() -> Answer {
    of_current(|process| Ok(process.job.0))
}

/// There are no handlers, so each signal but 0 ends the process; 0 only asks whether it's there. As on Linux a `pid` of 0
/// means the caller's job, -1 everybody else, and another negative number a job. The shell is never meant.
pub(super) fn kill(pid: u32, signal: u32) -> Answer {
    const SIGNALS: u32 = 64;
    const EVERYBODY: i32 = -1;
    let (own, job) = of_current(|process| Ok((process.pid, process.job)))?;
    let is_meant = |process: &Process| match pid as i32 {
        0 => process.job == job,
        EVERYBODY => process.pid != own,
        ..EVERYBODY => process.job == Pid(pid.wrapping_neg()),
        _ => process.pid == Pid(pid),
    };
    match signal {
        0 if processes::is_there(is_meant) => Ok(0),
        0 => Err(Errno::ESRCH),
        1..=SIGNALS if Pid(pid) == Pid::SHELL => Err(Errno::EPERM),
        1..=SIGNALS => processes::end(
            |process| process.pid != Pid::SHELL && is_meant(process),
            Ending::Signal(signal as u8),
        )
        .map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

/// What was done about a signal before: the default. (`struct sigaction`, as the kernel has it.)
pub(super) fn rt_sigaction(old: u32) -> Answer {
    if old != 0 {
        user_memory::write(old, &[0; 20])?;
    }
    Ok(0)
}

/// Which signals were held back before: none.
pub(super) fn rt_sigprocmask(old: u32, length: u32) -> Answer {
    const LONGEST: u32 = 8;
    if length > LONGEST {
        return Err(Errno::EINVAL);
    }
    if old != 0 {
        user_memory::write(old, &[0; LONGEST as usize][..length as usize])?;
    }
    Ok(0)
}

/// The three users, or groups, of a process: all root.
pub(super) fn root_thrice(places: [u32; 3]) -> Answer {
    for place in places {
        user_memory::write(place, &[0; 4])?;
    }
    Ok(0)
}

/// The processors that a process may use, a bit for each: the first one.
pub(super) fn sched_getaffinity(length: u32, at: u32) -> Answer {
    let mask = 1_u32.to_le_bytes();
    if (length as usize) < mask.len() {
        return Err(Errno::EINVAL);
    }
    user_memory::write(at, &mask)?;
    Ok(mask.len() as u32)
}

/// Which processor and which node this is: the first.
pub(super) fn getcpu(places: [u32; 2]) -> Answer {
    for place in places.into_iter().filter(|place| *place != 0) {
        user_memory::write(place, &[0; 4])?;
    }
    Ok(0)
}

/// `struct rusage`: the time that the process has run; nothing else is counted.
pub(super) fn getrusage(at: u32) -> Answer {
    const MICROSECOND: u64 = 1000;
    let ran = processes::processor_time();
    let mut words = [0_u32; 18];
    words[0] = (ran / SECOND) as u32;
    words[1] = (ran % SECOND / MICROSECOND) as u32;
    user_memory::write(at, words.map(u32::to_le_bytes).as_flattened())?;
    Ok(0)
}

pub(super) fn waitpid(pid: u32, status: u32, options: u32) -> Answer {
    const NO_HANG: u32 = 1;
    let pid = (pid as i32 > 0).then_some(Pid(pid));
    match processes::wait_for_child(pid, options & NO_HANG != 0)? {
        None => Ok(0),
        Some((pid, ending)) => {
            if status != 0 {
                user_memory::write(status, &ending.word().to_le_bytes())?;
            }
            Ok(pid.0)
        }
    }
}

pub(super) fn sched_yield() -> Answer {
    processes::schedule();
    Ok(0)
}

/// Bits of the last word of `struct user_desc`.
mod thread_area {
    pub(super) const CONTENTS: u32 = 0b110;
    pub(super) const READ_ONLY: u32 = 1 << 3;
    pub(super) const IN_PAGES: u32 = 1 << 4;
    pub(super) const NOT_PRESENT: u32 = 1 << 5;
}

/// Which of the three entries a GDT entry number is.
fn tls_index(entry: u32) -> Result<usize, Errno> {
    match entry.checked_sub(TLS_FIRST) {
        Some(index @ 0..TLS_ENTRIES) => Ok(index as usize),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn set_thread_area(at: u32) -> Answer {
    const ANY: u32 = u32::MAX;
    let [entry, base, limit, flags] = user_memory::read_words(at)?;
    // Ordinary data segments only: that is all a libc wants.
    if flags & (thread_area::CONTENTS | thread_area::READ_ONLY) != 0
        && flags & thread_area::NOT_PRESENT == 0
    {
        return Err(Errno::EINVAL);
    }
    let index = of_current(|process| {
        let index = match entry {
            ANY => process.tls.iter().position(|entry| entry.0 == 0).ok_or(Errno::ESRCH)?,
            entry => tls_index(entry)?,
        };
        process.tls[index] = if flags & thread_area::NOT_PRESENT != 0 {
            Descriptor(0)
        } else {
            Descriptor::user_data(base, limit, flags & thread_area::IN_PAGES != 0)
        };
        Ok(index as u32)
    })?;
    processes::reload_tls();
    user_memory::write(at, &(TLS_FIRST + index).to_le_bytes())?;
    Ok(0)
}

pub(super) fn get_thread_area(at: u32) -> Answer {
    const THIRTY_TWO_BITS: u32 = 1;
    const USABLE: u32 = 1 << 6;
    let index = tls_index(user_memory::read_u32(at)?)?;
    let Descriptor(entry) = of_current(|process| Ok(process.tls[index]))?;
    let base = (entry >> 16 & 0xff_ffff | entry >> 32 & 0xff00_0000) as u32;
    let limit = (entry & 0xffff | entry >> 32 & 0xf_0000) as u32;
    let in_pages = (entry >> 55 & 1) as u32 * thread_area::IN_PAGES;
    let flags = match entry {
        0 => thread_area::NOT_PRESENT | thread_area::READ_ONLY,
        _ => THIRTY_TWO_BITS | USABLE | in_pages,
    };
    for (offset, word) in [(4, base), (8, limit), (12, flags)] {
        user_memory::write(at.wrapping_add(offset), &word.to_le_bytes())?;
    }
    Ok(0)
}

/// `struct utsname`: six names of 65 bytes. The release is one that a libc takes for new enough.
pub(super) fn uname(at: u32) -> Answer {
    const FIELD: usize = 65;
    let names = ["Linux", "lguest", "6.1.0-lguest", "#1 lguest in Rust", "i686", "(none)"];
    for (index, name) in names.iter().enumerate() {
        let mut field = [0; FIELD];
        for (place, byte) in field.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        user_memory::write(at.wrapping_add((index * FIELD) as u32), &field)?;
    }
    Ok(0)
}

/// `struct sysinfo`: uptime, memory, how many processes.
pub(super) fn sysinfo(at: u32) -> Answer {
    let (total, free) = frames::usage();
    let mut words = [0_u32; 16];
    words[0] = (clock::since_boot() / SECOND) as u32;
    words[4] = total;
    words[5] = free;
    words[10] = processes::list().len() as u32;
    words[13] = PAGE; // the unit of the above
    for (index, word) in words.iter().enumerate() {
        user_memory::write(at.wrapping_add(4 * index as u32), &word.to_le_bytes())?;
    }
    Ok(0)
}

/// The limit of a resource: a stack's, an address space's, or none.
fn limit(resource: u32) -> u32 {
    const STACK: u32 = 3;
    const ADDRESS_SPACE: u32 = 9;
    match resource {
        STACK => STACK_LIMIT,
        ADDRESS_SPACE => HIGHEST,
        _ => u32::MAX,
    }
}

pub(super) fn getrlimit(resource: u32, at: u32) -> Answer {
    for offset in [0, 4] {
        user_memory::write(at.wrapping_add(offset), &limit(resource).to_le_bytes())?;
    }
    Ok(0)
}

/// New limits are accepted, and not heeded.
pub(super) fn prlimit64(resource: u32, old: u32) -> Answer {
    if old != 0 {
        let value = match limit(resource) {
            u32::MAX => u64::MAX,
            limit => u64::from(limit),
        };
        for offset in [0, 8] {
            user_memory::write(old.wrapping_add(offset), &value.to_le_bytes())?;
        }
    }
    Ok(0)
}

pub(super) fn getrandom(buffer: u32, length: u32) -> Answer {
    const LONGEST: u32 = 256;
    let mut bytes = [0; LONGEST as usize];
    let length = length.min(LONGEST);
    let bytes = &mut bytes[..length as usize];
    random::fill(bytes);
    user_memory::write(buffer, bytes)?;
    Ok(length)
}

pub(super) fn reboot(magic1: u32, magic2: u32, command: u32) -> Answer {
    if (magic1, magic2, command) == (words::MAGIC1, words::MAGIC2, words::POWER_OFF) {
        machine().power_off();
    }
    Err(Errno::EINVAL)
}
