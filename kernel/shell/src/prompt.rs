//! The prompt: reads lines and has them carried out, until there are no more.

use crate::commands;
use crate::console::{print, say};
use crate::system::{self, Ending, STDIN};
use alloc::string::String;
use alloc::vec::Vec;
use lguest_kernel_logic::command_line;

/// Lines longer than this are refused. The terminal's own limit is lower.
const LONGEST: usize = 64 << 10;

/// Serves the terminal to its end, then switches the machine off: nobody could ask for anything any more.
pub(crate) fn serve() -> u32 {
    let mut input = Input::default();
    loop {
        report_ended_children();
        print(format_args!("lguest# "));
        let Some(line) = input.line() else { break };
        match command_line::parse(&line) {
            Ok(command) if command.words.is_empty() => {}
            Ok(command) => commands::carry_out(&command),
            Err(mistake) => say!("{mistake}"),
        }
    }
    say!("");
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

/// Standard input, cut into lines wherever the reads may fall.
#[derive(Default)]
struct Input {
    read: Vec<u8>,
    ended: bool,
}

impl Input {
    /// The next line without its end; the last one needs none. `None` when there are no more.
    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).take(end).collect::<Vec<_>>();
                return Some(text(&line));
            }
            if self.ended || self.read.len() > LONGEST {
                let rest = core::mem::take(&mut self.read);
                return (!rest.is_empty()).then(|| text(&rest));
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
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
