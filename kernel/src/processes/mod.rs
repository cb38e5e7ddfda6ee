//! Processes: programs that run as if each had the machine to itself.
//!
//! [`process`] is what the kernel knows of one; [`start`] makes one from a file. [`scheduler`]
//! decides whose turn it is, and [`switch`] and [`kernel_stack`] are what passing it on comes down to;
//! [`fpu`] follows when it's needed. What the rest of the kernel asks for is here.

pub(crate) mod fpu;
mod kernel_stack;
mod process;
mod scheduler;
pub(crate) mod start;
mod switch;

pub(crate) use process::{Ending, Pid, Process, Wait};

use crate::console::println;
use crate::interrupt_lock::InterruptLock;
use crate::keyboard;
use alloc::string::String;
use alloc::vec::Vec;
use lguest_guest::{interrupts, machine};
use lguest_system_calls::Errno;
use lguest_system_calls::private::ProcessRecord;
use scheduler::{Largest, Scheduler};

static SCHEDULER: InterruptLock<Scheduler> = InterruptLock::new(Scheduler::new());

/// Uses what is known of the current process; None while there is none. `body` touches no user memory.
pub(crate) fn with_current<R>(body: impl FnOnce(&mut Process) -> R) -> Option<R> {
    SCHEDULER.with(|scheduler| scheduler.current().map(body))
}

/// The same for a system call, which always has a process.
pub(crate) fn of_current<R>(
    body: impl FnOnce(&mut Process) -> Result<R, Errno>,
) -> Result<R, Errno> {
    with_current(body).unwrap_or(Err(Errno::ESRCH))
}

/// The current process's number and name, for messages.
pub(crate) fn current_name() -> String {
    with_current(|process| alloc::format!("{} [{}]", process.name(), process.pid.0))
        .unwrap_or_default()
}

/// Lets another process run, if one wants to. Comes back when it's this one's turn again.
pub(crate) fn schedule() {
    interrupts::without(|| {
        if let Some(switch) = SCHEDULER.with(Scheduler::next) {
            switch.carry_out();
        }
    });
}

/// What is left for the machine to do when no process runs. The boot's stack ends here.
pub(crate) fn idle() -> ! {
    loop {
        schedule();
        // An interrupt that made somebody runnable a moment ago is no reason to sleep.
        interrupts::disable();
        if SCHEDULER.with(|scheduler| scheduler.is_idle()) {
            machine().safe_halt();
        }
        interrupts::enable();
    }
}

/// The last thing before a process goes on in user mode: somebody else's turn, or its end. Interrupts are disabled.
pub(crate) fn before_user() {
    loop {
        if let Some(ending) = with_current(|process| process.ending).flatten() {
            exit(ending);
        }
        if !SCHEDULER.with(|scheduler| core::mem::take(&mut scheduler.turn_is_over)) {
            return;
        }
        schedule();
    }
}

/// The clock's tick.
pub(crate) fn tick(now: u64) {
    SCHEDULER.with(|scheduler| scheduler.tick(now));
}

/// Marks the current process as waiting. It waits once it calls [`schedule`]; to be called with interrupts
/// disabled, together with looking whether there is anything to wait for.
pub(crate) fn wait_for(wait: Wait) {
    with_current(|process| process.wait = Some(wait));
}

/// Wakes all that wait for something `met` is true of.
pub(crate) fn wake(met: impl Fn(Wait) -> bool) {
    SCHEDULER.with(|scheduler| scheduler.wake(met));
}

/// Whether the current process is to end. A wait is given up then.
pub(crate) fn is_ending() -> bool {
    with_current(|process| process.ending.is_some()).unwrap_or(false)
}

/// Ends processes as soon as they come by.
///
/// # Errors
/// When there is none.
pub(crate) fn end(which: impl Fn(&Process) -> bool, ending: Ending) -> Result<(), Errno> {
    let found = SCHEDULER.with(|scheduler| scheduler.end(which, ending));
    if found { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Whether there is such a process.
pub(crate) fn is_there(which: impl Fn(&Process) -> bool) -> bool {
    SCHEDULER.with(|scheduler| scheduler.is_there(which))
}

/// Ends all processes of a job.
pub(crate) fn end_job(job: Pid, ending: Ending) {
    SCHEDULER.with(|scheduler| scheduler.end(|process| process.job == job, ending));
}

/// Memory has run out: ends the process that has most of it, and lets it go. False when there is none to end.
///
/// It need not be the one that asked: that may be the shell, or another one that wants a page for the first time.
pub(crate) fn make_room() -> bool {
    let largest = interrupts::without(|| SCHEDULER.with(Scheduler::end_largest));
    match largest {
        None => return false,
        Some(Largest::Ends(pid, name)) => {
            println!("{name} [{}]: killed, memory has run out", pid.0)
        }
        Some(Largest::IsEnding) => {}
    }
    true
}

/// Ends the current process.
pub(crate) fn exit(ending: Ending) -> ! {
    interrupts::disable();
    let remains = SCHEDULER.with(|scheduler| scheduler.exit(ending));
    if let Some(remains) = remains {
        assert!(remains.pid != Pid::SHELL, "the shell has ended ({ending:?})");
        keyboard::give_back(remains.pid);
    }
    schedule();
    unreachable!("a process that has ended ran again")
}

/// Waits until a child has ended: `pid`, or any. Answers which, and how. With `at_once`, None when there
/// is none yet.
pub(crate) fn wait_for_child(
    pid: Option<Pid>,
    at_once: bool,
) -> Result<Option<(Pid, Ending)>, Errno> {
    loop {
        let found = interrupts::without(|| -> Result<_, Errno> {
            let found = SCHEDULER.with(|scheduler| scheduler.reap(pid))?;
            if found.is_none() && !at_once {
                wait_for(Wait::Child);
            }
            Ok(found)
        })?;
        if found.is_some() || at_once {
            return Ok(found);
        }
        schedule();
        if is_ending() {
            return Err(Errno::EINTR);
        }
    }
}

/// Sleeps until [`now`](lguest_guest::time::Time::now) is at least `until`.
pub(crate) fn sleep(until: u64) -> Result<(), Errno> {
    while machine().now() < until {
        interrupts::without(|| wait_for(Wait::Until(until)));
        schedule();
        if is_ending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(())
}

/// All processes, for `ps`.
pub(crate) fn list() -> Vec<ProcessRecord> {
    SCHEDULER.with(|scheduler| scheduler.list())
}

/// Nanoseconds the current process has run.
pub(crate) fn processor_time() -> u64 {
    SCHEDULER.with(Scheduler::processor_time)
}

/// Makes it count that the current process changed its TLS.
pub(crate) fn reload_tls() {
    SCHEDULER.with(Scheduler::reload_tls);
}
