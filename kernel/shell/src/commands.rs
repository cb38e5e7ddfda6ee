//! The commands that the shell itself knows; every other is a program among the guest's files.

use crate::console::say;
use crate::system::{self, Ending};
use crate::{PROGRAMS, words};
use alloc::format;
use alloc::string::String;
use lguest_kernel_logic::calendar::Moment;
use lguest_kernel_logic::command_line::Command;
use lguest_system_calls::private::{State, spawn};
use lguest_system_calls::{Errno, SHELL};

/// What `help` prints, and nothing that isn't there.
const HELP: &str = "\
help          this text
ps            the processes
uptime        how long the guest has been running
date          the day and the time
mem           the guest's memory
echo WORDS    prints the words
spin          computes for ever; try `spin &`, and go on
fpu           two processes compute with the FPU at once, and check what they get
bench         how long the basic operations take
kill PID      ends a process
crash [WHY]   makes the kernel panic
poweroff      switches the guest off; so does the end of input
NAME WORDS    runs a program from the initrd, as in `busybox sha256sum FILE`; ^C ends it
COMMAND &     runs a command in the background";

/// Carries a command out, and says what went wrong.
pub(crate) fn carry_out(command: &Command) {
    let words = words(&command.words);
    let Some((&name, rest)) = words.split_first() else {
        return;
    };
    let done = match name {
        "help" => {
            say!("{HELP}");
            Ok(())
        }
        "ps" => ps(),
        "uptime" => {
            uptime();
            Ok(())
        }
        "date" => {
            say!("{}", Moment { seconds: u32::try_from(system::wall_clock()).unwrap_or(u32::MAX) });
            Ok(())
        }
        "mem" => mem(),
        "echo" => {
            say!("{}", rest.join(" "));
            Ok(())
        }
        "kill" => kill(rest),
        "crash" => system::panic_kernel(&reason(rest)).map(drop),
        "poweroff" => system::power_off().map(drop),
        name if PROGRAMS.contains(&name) => run(SHELL, &words, command.background),
        name => run(&path(name), &words, command.background),
    };
    if let Err(error) = done {
        match error {
            Errno::ENOENT if name != "kill" => {
                say!("{name}: not a command, and no such file; try `help`")
            }
            error => say!("{name}: {error}"),
        }
    }
}

/// Where a program is looked up: names without a slash lie at the root.
fn path(name: &str) -> String {
    if name.contains('/') { name.into() } else { format!("/{name}") }
}

/// What a panic is to say: no more of it than the Host shows of a message, which is less than the kernel takes.
fn reason(rest: &[&str]) -> String {
    const SHOWN: usize = 127;
    match rest {
        [] => "somebody typed `crash`".into(),
        rest => {
            let mut reason = rest.join(" ");
            reason.truncate(reason.floor_char_boundary(SHOWN));
            reason
        }
    }
}

/// Runs a program as a process, and waits for it unless it's for the background.
fn run(path: &str, words: &[&str], background: bool) -> Result<(), Errno> {
    let how = spawn::NEW_JOB | if background { spawn::BACKGROUND } else { 0 };
    let pid = system::spawn(path, words, how)?;
    if background {
        say!("[{pid}] started");
        return Ok(());
    }
    match system::wait(pid)? {
        Ending::Status(0) => {}
        Ending::Status(status) => say!("[{pid}] ended with status {status}"),
        Ending::Signal(signal) => say!("[{pid}] ended by signal {signal}"),
    }
    Ok(())
}

fn ps() -> Result<(), Errno> {
    say!("  PID  PPID STATE      CPU ms     KiB NAME");
    for process in system::processes()? {
        let state = match process.state {
            State::Running => "running",
            State::Waiting => "waiting",
            State::Ended => "ended",
        };
        let name = String::from_utf8_lossy(&process.name);
        say!(
            "{:5} {:5} {state:8} {:8} {:7} {}",
            process.pid,
            process.parent,
            process.cpu_ms,
            process.pages * 4,
            name.trim_end_matches('\0'),
        );
    }
    Ok(())
}

fn uptime() {
    let milliseconds = system::uptime_ns() / 1_000_000;
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    say!("up {hours}:{minutes:02}:{:02}.{rest:03}", seconds % 60);
}

fn mem() -> Result<(), Errno> {
    let memory = system::memory()?;
    say!("pages  {:7} KiB, {:7} KiB free", memory.total, memory.free);
    say!("heap   {:7} KiB, {:7} KiB used", memory.heap, memory.heap_used);
    Ok(())
}

fn kill(rest: &[&str]) -> Result<(), Errno> {
    let [pid] = rest else {
        return Err(Errno::EINVAL);
    };
    system::kill(pid.parse().map_err(|_| Errno::EINVAL)?).map(drop)
}

/// The program `spin`: a processor hog that makes no system call, to show preemption.
pub(crate) fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
