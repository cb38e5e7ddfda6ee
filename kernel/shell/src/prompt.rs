//! The prompt: reads lines and has them carried out, until there are no more.

use crate::commands;
use crate::console::{print, say};
use crate::system::{self, Ending, STDIN};
use alloc::string::String;
use alloc::vec::Vec;
use lguest_kernel_logic::command_line;

/// Lines longer than this, in bytes, are refused. It is more than the kernel takes as arguments, and a small part of the
/// shell's heap: a line is there several times while it is made into words.
const LONGEST: usize = 16 << 10;

/// Serves the terminal to its end. If this is the first process, that switches the machine off: nobody could ask for
/// anything any more. A shell that somebody started from the prompt just ends.
pub(crate) fn serve() -> u32 {
    let mut input = Input::default();
    loop {
        report_ended_children();
        print(format_args!("lguest# "));
        match input.line() {
            None => break,
            Some(Err(TooLong)) => say!("a line has at most {LONGEST} bytes; this one is ignored"),
            Some(Ok(line)) => match command_line::parse(&line) {
                Ok(command) if command.words.is_empty() => {}
                Ok(command) => commands::carry_out(&command),
                Err(mistake) => say!("{mistake}"),
            },
        }
    }
    say!("");
    if !system::is_first_process() {
        return 0;
    }
    if let Err(error) = system::power_off() {
        say!("poweroff: {error}");
    }
    1
}

/// Says which background commands have come to an end.
fn report_ended_children() {
    while let Some((pid, ending)) = system::ended_child() {
        match ending {
            Ending::Status(0) => say!("[{pid}] done"),
            Ending::Status(status) => say!("[{pid}] ended with status {status}"),
            Ending::Signal(signal) => say!("[{pid}] ended by signal {signal}"),
        }
    }
}

/// A line was longer than [`LONGEST`].
struct TooLong;

/// Standard input, cut into lines wherever the reads may fall.
#[derive(Default)]
struct Input {
    read: Vec<u8>,
    /// What comes up to the next line's start belongs to a line that was too long.
    too_long: bool,
    ended: bool,
}

impl Input {
    /// The next line without its end; the last one needs none. `None` when there are no more.
    fn line(&mut self) -> Option<Result<String, TooLong>> {
        loop {
            let end = self.read.iter().position(|byte| *byte == b'\n');
            let length = end.unwrap_or(self.read.len());
            if length > LONGEST || end.is_none() && self.too_long {
                self.too_long = true;
                self.read.drain(..length);
            }
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = text(self.read.get(..end).unwrap_or_default());
                self.read.drain(..=end);
                return Some(self.judge(line));
            }
            if self.ended {
                let rest = core::mem::take(&mut self.read);
                let there_is_one = self.too_long || !rest.is_empty();
                return there_is_one.then(|| self.judge(text(&rest)));
            }
            let mut piece = [0; 256];
            match system::read(STDIN, &mut piece) {
                Ok(count @ 1..) => {
                    self.read.extend_from_slice(piece.get(..count as usize).unwrap_or_default())
                }
                Ok(0) | Err(_) => self.ended = true,
            }
        }
    }

    /// A whole line, unless it is the end of one that was too long.
    fn judge(&mut self, line: String) -> Result<String, TooLong> {
        if core::mem::take(&mut self.too_long) { Err(TooLong) } else { Ok(line) }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
