//! The system calls the shell makes, each with its proper types.

use crate::machine::call;
use alloc::ffi::CString;
use alloc::vec::Vec;
use lguest_system_calls::private::{self, MemoryRecord, ProcessRecord, reboot};
use lguest_system_calls::{Errno, number};

pub(crate) const STDIN: u32 = 0;
pub(crate) const STDOUT: u32 = 1;

type Answer = Result<u32, Errno>;

fn ask(number: u32, arguments: [usize; 3]) -> Answer {
    Errno::check(call(number, arguments))
}

/// Reads what there is, a line at most. 0 is the end of input.
pub(crate) fn read(file: u32, into: &mut [u8]) -> Answer {
    ask(number::READ, [file as usize, into.as_mut_ptr() as usize, into.len()])
}

/// Writes, and tells how many bytes it was.
pub(crate) fn write(file: u32, from: &[u8]) -> Answer {
    if from.is_empty() {
        return Ok(0);
    }
    ask(number::WRITE, [file as usize, from.as_ptr() as usize, from.len()])
}

/// Starts a program; answers its number.
pub(crate) fn spawn(path: &str, words: &[&str], how: u32) -> Answer {
    let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
    let path = string(path)?;
    let strings = words.iter().map(|word| string(word)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<usize> = strings.iter().map(|string| string.as_ptr() as usize).collect();
    pointers.push(0);
    ask(private::SPAWN, [path.as_ptr() as usize, pointers.as_ptr() as usize, how as usize])
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Status(u32),
    Signal(u32),
}

/// Waits for the child `pid` to end.
pub(crate) fn wait(pid: u32) -> Result<Ending, Errno> {
    wait_with(pid as usize, 0).map(|(_, ending)| ending)
}

/// A child that has ended, if there is one, without waiting.
pub(crate) fn ended_child() -> Option<(u32, Ending)> {
    const ANY: usize = usize::MAX;
    const NO_HANG: usize = 1;
    wait_with(ANY, NO_HANG).ok().filter(|(pid, _)| *pid != 0)
}

/// Linux's status word: the signal in bits 0–6, otherwise the exit status in bits 8–15.
fn wait_with(pid: usize, options: usize) -> Result<(u32, Ending), Errno> {
    let mut word = [0_u32];
    let pid = ask(number::WAITPID, [pid, word.as_mut_ptr() as usize, options])?;
    let ending = match word[0] & 0x7f {
        0 => Ending::Status(word[0] >> 8 & 0xff),
        signal => Ending::Signal(signal),
    };
    Ok((pid, ending))
}

/// Ends a process at once.
pub(crate) fn kill(pid: u32) -> Answer {
    const SIGKILL: usize = 9;
    ask(number::KILL, [pid as usize, SIGKILL, 0])
}

/// Whether this is the process that the kernel started.
pub(crate) fn is_first_process() -> bool {
    call(number::GETPID, [0; 3]) == 1
}

/// Lets others run.
pub(crate) fn yield_now() {
    call(number::SCHED_YIELD, [0; 3]);
}

/// The cheapest call there is, for measuring.
pub(crate) fn nothing() {
    call(number::GETPPID, [0; 3]);
}

/// A clock of Linux's: seconds and nanoseconds.
fn clock(which: usize) -> (u64, u32) {
    // Two 64-bit words, the second of which holds less than 10⁹.
    let mut words = [0_u32; 4];
    call(number::CLOCK_GETTIME64, [which, words.as_mut_ptr() as usize, 0]);
    (u64::from(words[0]) | u64::from(words[1]) << 32, words[2])
}

/// Seconds since 1970.
pub(crate) fn wall_clock() -> u64 {
    clock(0).0
}

/// Nanoseconds since the guest was started.
pub(crate) fn uptime_ns() -> u64 {
    let (seconds, nanoseconds) = clock(1);
    seconds * 1_000_000_000 + u64::from(nanoseconds)
}

/// All processes.
pub(crate) fn processes() -> Result<Vec<ProcessRecord>, Errno> {
    let mut room = 64;
    loop {
        let mut bytes = alloc::vec![0_u8; room * ProcessRecord::SIZE];
        let there = ask(private::PROCESSES, [bytes.as_mut_ptr() as usize, room, 0])? as usize;
        if there <= room {
            let (records, _) = bytes.as_chunks::<{ ProcessRecord::SIZE }>();
            return Ok(records.iter().take(there).map(ProcessRecord::from_bytes).collect());
        }
        room = there + 16;
    }
}

/// The guest's memory.
pub(crate) fn memory() -> Result<MemoryRecord, Errno> {
    let mut bytes = [0; MemoryRecord::SIZE];
    ask(private::MEMORY, [bytes.as_mut_ptr() as usize, 0, 0])?;
    Ok(MemoryRecord::from_bytes(&bytes))
}

/// Nanoseconds that `times` repetitions of something in the kernel take.
pub(crate) fn measure(what: u32, times: u32) -> Result<u64, Errno> {
    let mut took = [0_u32; 2];
    ask(private::MEASURE, [what as usize, times as usize, took.as_mut_ptr() as usize])?;
    Ok(u64::from(took[0]) | u64::from(took[1]) << 32)
}

/// Makes the kernel panic; only an error comes back.
pub(crate) fn panic_kernel(why: &str) -> Answer {
    let why = CString::new(why).map_err(|_| Errno::EINVAL)?;
    ask(private::PANIC, [why.as_ptr() as usize, 0, 0])
}

/// Switches the machine off; only an error comes back.
pub(crate) fn power_off() -> Answer {
    ask(
        number::REBOOT,
        [reboot::MAGIC1 as usize, reboot::MAGIC2 as usize, reboot::POWER_OFF as usize],
    )
}
