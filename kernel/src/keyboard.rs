//! What is typed: from the console's driver through the line discipline to whoever reads.
//!
//! One *job* at a time has the keyboard: the shell gives it to the command it runs in the foreground,
//! and has it back when that command ends. ^C ends the job.

use crate::console;
use crate::interrupt_lock::InterruptLock;
use crate::processes::{self, Ending, Pid, Wait};
use alloc::vec::Vec;
use lguest_drivers::console::{CONSOLE, Input};
use lguest_guest::machine;
use lguest_kernel_logic::line_discipline::{LineDiscipline, Mode};
use lguest_system_calls::Errno;

/// The keyboard's state.
struct Keyboard {
    input: LineDiscipline,
    /// The jobs that were given the keyboard, each by the one before it. The last one has it; if there is none, the shell.
    jobs: Vec<Pid>,
}

impl Keyboard {
    /// Whether the current process may read.
    fn is_current_owner(&self) -> bool {
        let current = processes::with_current(|process| (process.pid, process.job));
        current.is_some_and(|(pid, job)| match self.jobs.last() {
            Some(last) => job == *last,
            None => pid == Pid::SHELL,
        })
    }
}

static KEYBOARD: InterruptLock<Keyboard> =
    InterruptLock::new(Keyboard { input: LineDiscipline::new(), jobs: Vec::new() });

/// The interrupt of the console, if there is one.
pub(crate) fn irq() -> Option<u8> {
    CONSOLE.irq()
}

/// Lets the console interrupt. False when there is no console.
pub(crate) fn init() -> bool {
    irq().map(|irq| machine().unmask_irq(irq)).is_some()
}

/// The console's interrupt.
pub(crate) fn interrupt() {
    CONSOLE.interrupt();
    take_input();
}

/// Takes what the driver has, as far as there is room; the rest waits with the launcher.
fn take_input() {
    let interrupted = KEYBOARD.with(|keyboard| {
        let mut interrupted = false;
        let mut piece = [0; 64];
        loop {
            let room = keyboard.input.room().min(piece.len());
            match CONSOLE.read(&mut piece[..room]) {
                Input::Bytes(0) | Input::Nothing => return interrupted,
                Input::Bytes(length) => {
                    for byte in &piece[..length] {
                        interrupted |= keyboard.input.receive(*byte);
                    }
                }
                Input::End => {
                    keyboard.input.end();
                    return interrupted;
                }
            }
        }
    });
    if interrupted {
        interrupt_job();
    }
    processes::wake(|wait| wait == Wait::Input);
}

/// ^C.
fn interrupt_job() {
    console::print(format_args!("^C\n"));
    let job = KEYBOARD.with(|keyboard| {
        if keyboard.jobs.is_empty() {
            keyboard.input.push_empty_line();
        }
        keyboard.jobs.last().copied()
    });
    if let Some(job) = job {
        processes::end_job(job, Ending::INTERRUPTED);
    }
}

/// Gives the keyboard to a job, if it is the current process's to give.
pub(crate) fn give_to(job: Pid) {
    KEYBOARD.with(|keyboard| {
        if keyboard.is_current_owner() {
            keyboard.jobs.push(job);
        }
    });
}

/// Gives the keyboard back to whoever had it before, if that process leads a job that has it.
pub(crate) fn give_back(leader: Pid) {
    KEYBOARD.with(|keyboard| {
        if keyboard.jobs.last() == Some(&leader) {
            // Whatever the program did to the terminal ends with it.
            keyboard.input.set_mode(Mode::COOKED);
        }
        keyboard.jobs.retain(|job| *job != leader);
    });
}

/// How input is treated.
pub(crate) fn mode() -> Mode {
    KEYBOARD.with(|keyboard| keyboard.input.mode())
}

/// Treats input differently from now on.
pub(crate) fn set_mode(mode: Mode) {
    KEYBOARD.with(|keyboard| keyboard.input.set_mode(mode));
}

/// Whether a read would come back at once.
pub(crate) fn would_read() -> bool {
    KEYBOARD.with(|keyboard| keyboard.input.would_read())
}

/// Reads for the current process, waiting for input. 0 is the end.
pub(crate) fn read(buffer: &mut [u8]) -> Result<usize, Errno> {
    if buffer.is_empty() {
        return Ok(0);
    }
    loop {
        // Nothing may be typed between looking and going to sleep.
        let outcome = lguest_guest::interrupts::without(|| {
            let mut echo = Vec::new();
            let read = KEYBOARD.with(|keyboard| {
                if !keyboard.is_current_owner() {
                    return Err(Errno::EIO);
                }
                Ok(keyboard.input.read(buffer, &mut |bytes| echo.extend_from_slice(bytes)))
            });
            CONSOLE.write(&echo);
            if let Ok(None) = read {
                processes::wait_for(Wait::Input);
            }
            read
        });
        // There may be room again for what the launcher holds back.
        if let Some(length) = outcome? {
            take_input();
            return Ok(length);
        }
        processes::schedule();
        if processes::is_ending() {
            return Err(Errno::EINTR);
        }
    }
}
