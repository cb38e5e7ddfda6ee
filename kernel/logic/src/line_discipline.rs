//! Between the keyboard and those who read it: echo, backspace, end of input, ^C.
//!
//! What is typed waits as it came until somebody reads. Only then is it echoed and made into
//! lines, so that a script on the host's standard input, all of which comes at once, is shown line by
//! line beside what it does, as if it were typed. ^C alone is looked for as it comes.
//!
//! Echo is what was typed, with no control codes but for backspace, which only a keyboard sends.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// How many bytes can wait.
pub const CAPACITY: usize = 4096;

/// A line that gets this long is handed on without its end.
const LONGEST_LINE: usize = 4096;

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

/// How a terminal treats its input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Readers get whole lines, which can be edited until then.
    pub lines: bool,
    /// What is typed is shown.
    pub echo: bool,
    /// ^C ends the program that has the keyboard.
    pub signals: bool,
}

impl Mode {
    /// As it is at first.
    pub const COOKED: Self = Self { lines: true, echo: true, signals: true };
}

/// Where we are in what a cursor key sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Escape {
    No,
    Started,
    Inside,
}

/// A terminal's input.
#[derive(Debug)]
pub struct LineDiscipline {
    mode: Mode,
    typed: VecDeque<u8>,
    line: Vec<u8>,
    ready: VecDeque<u8>,
    escape: Escape,
    /// An end typed by ^D: seen once.
    end_typed: bool,
    /// The input itself has ended.
    ended: bool,
}

impl LineDiscipline {
    /// Nothing typed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            mode: Mode::COOKED,
            typed: VecDeque::new(),
            line: Vec::new(),
            ready: VecDeque::new(),
            escape: Escape::No,
            end_typed: false,
            ended: false,
        }
    }

    /// How input is treated.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Treats input differently from now on. What there is of a line then needn't wait for its end.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        if !mode.lines {
            self.ready.extend(self.line.drain(..));
        }
    }

    /// How many more bytes can be received.
    #[must_use]
    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.typed.len())
    }

    /// Takes a byte that was typed. True for ^C: then all that waited is dropped, and somebody is to end.
    pub fn receive(&mut self, byte: u8) -> bool {
        if byte == INTERRUPT && self.mode.signals {
            self.typed.clear();
            self.line.clear();
            self.ready.clear();
            return true;
        }
        if self.typed.len() < CAPACITY {
            self.typed.push_back(byte);
        }
        false
    }

    /// There will be no more.
    pub const fn end(&mut self) {
        self.ended = true;
    }

    /// Gives whoever reads next an empty line.
    pub fn push_empty_line(&mut self) {
        self.ready.push_back(b'\n');
    }

    /// Whether a read would get something, or the end, without more being typed.
    #[must_use]
    pub fn would_read(&self) -> bool {
        let line_typed = self.typed.iter().any(|byte| matches!(byte, b'\n' | b'\r' | &END));
        !self.ready.is_empty()
            || self.ended
            || line_typed
            || !self.mode.lines && !self.typed.is_empty()
    }

    /// Reads into `buffer`, in line mode no further than a line's end. What is to be shown is given
    /// to `echo`. None when more must be typed first; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8], echo: &mut dyn FnMut(&[u8])) -> Option<usize> {
        while self.ready.is_empty() && !self.end_typed {
            let Some(byte) = self.typed.pop_front() else { break };
            self.take(byte, echo);
        }
        if self.ready.is_empty() && self.ended {
            // An unfinished last line is a line too.
            self.ready.extend(self.line.drain(..));
        }
        if self.ready.is_empty() {
            let at_end = core::mem::take(&mut self.end_typed) || self.ended;
            return at_end.then_some(0);
        }
        let mut length = 0;
        for place in buffer {
            let Some(byte) = self.ready.pop_front() else { break };
            *place = byte;
            length += 1;
        }
        Some(length)
    }

    /// Makes one typed byte part of the line, or does what it says.
    fn take(&mut self, byte: u8, echo: &mut dyn FnMut(&[u8])) {
        let mut echo = |bytes: &[u8]| {
            if self.mode.echo {
                echo(bytes);
            }
        };
        if !self.mode.lines {
            self.ready.push_back(byte);
            return;
        }
        if self.escape != Escape::No {
            self.escape = match (self.escape, byte) {
                (Escape::Started, b'[' | b'O') => Escape::Inside,
                (Escape::Inside, b' '..=b'?') => Escape::Inside,
                _ => Escape::No,
            };
            return;
        }
        match byte {
            b'\n' | b'\r' => {
                self.line.push(b'\n');
                echo(b"\n");
                self.ready.extend(self.line.drain(..));
            }
            END if self.line.is_empty() => self.end_typed = true,
            END => self.ready.extend(self.line.drain(..)),
            BACKSPACE | DELETE if erase(&mut self.line) => echo(b"\x08 \x08"),
            KILL_LINE => {
                while erase(&mut self.line) {
                    echo(b"\x08 \x08");
                }
            }
            ESCAPE => self.escape = Escape::Started,
            b'\t' | b' '.. => {
                self.line.push(byte);
                echo(&[byte]);
                if self.line.len() == LONGEST_LINE {
                    self.ready.extend(self.line.drain(..));
                }
            }
            _ => {}
        }
    }
}

impl Default for LineDiscipline {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the last character off a line: one byte, or all those of a UTF-8 sequence. False when there is none.
fn erase(line: &mut Vec<u8>) -> bool {
    let is_continuation = |byte: &u8| byte & 0xc0 == 0x80;
    while line.pop_if(|byte| is_continuation(byte)).is_some() {}
    line.pop().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    struct Terminal {
        input: LineDiscipline,
        shown: Vec<u8>,
    }

    impl Terminal {
        fn new() -> Self {
            Self { input: LineDiscipline::new(), shown: Vec::new() }
        }

        fn type_in(&mut self, bytes: &[u8]) -> bool {
            bytes.iter().fold(false, |interrupted, byte| self.input.receive(*byte) | interrupted)
        }

        fn read(&mut self, length: usize) -> Option<String> {
            let mut buffer = [0; 64];
            let shown = &mut self.shown;
            let mut echo = |bytes: &[u8]| shown.extend_from_slice(bytes);
            let length = self.input.read(&mut buffer[..length], &mut echo)?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        }
    }

    #[test]
    fn a_script_is_shown_as_it_is_read() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"ps\npoweroff\n");
        assert!(terminal.shown.is_empty());
        assert_eq!(terminal.read(64).unwrap(), "ps\n");
        assert_eq!(terminal.shown, b"ps\n");
        assert_eq!(terminal.read(64).unwrap(), "poweroff\n");
        assert_eq!(terminal.read(64), None);
    }

    #[test]
    fn a_line_can_be_read_in_pieces() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"abc\nd\n");
        assert_eq!(terminal.read(2).unwrap(), "ab");
        assert_eq!(terminal.read(64).unwrap(), "c\n");
        assert_eq!(terminal.read(64).unwrap(), "d\n");
    }

    #[test]
    fn editing() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"\x7fab\xc3\xa9\x7f\x08c\x15x\x1b[A\x1bOBy\x01\r");
        assert_eq!(terminal.read(64).unwrap(), "xy\n");
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"ab");
        assert!(!terminal.input.would_read());
        assert_eq!(terminal.read(64), None);
        terminal.type_in(b"\x08c\n");
        assert_eq!(terminal.read(64).unwrap(), "ac\n");
        assert_eq!(terminal.shown, b"ab\x08 \x08c\n");
    }

    #[test]
    fn ends() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"\x04ab\x04");
        assert_eq!(terminal.read(64).unwrap(), "");
        assert_eq!(terminal.read(64).unwrap(), "ab");
        assert_eq!(terminal.read(64), None);
        terminal.type_in(b"last");
        terminal.input.end();
        assert!(terminal.input.would_read());
        assert_eq!(terminal.read(64).unwrap(), "last");
        assert_eq!(terminal.read(64).unwrap(), "");
        assert_eq!(terminal.read(64).unwrap(), "");
    }

    #[test]
    fn interrupting_drops_what_was_typed() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"half a li");
        assert_eq!(terminal.read(64), None);
        assert!(terminal.type_in(b"ne\x03"));
        assert_eq!(terminal.read(64), None);
        terminal.type_in(b"ok\n");
        assert_eq!(terminal.read(64).unwrap(), "ok\n");
    }

    #[test]
    fn half_a_line_is_there_once_line_mode_is_left() {
        let mut terminal = Terminal::new();
        terminal.type_in(b"ab");
        assert_eq!(terminal.read(64), None);
        terminal.input.set_mode(Mode { lines: false, ..Mode::COOKED });
        terminal.type_in(b"c");
        assert_eq!(terminal.read(64).unwrap(), "ab");
        assert_eq!(terminal.read(64).unwrap(), "c");
    }

    #[test]
    fn without_line_mode_bytes_come_one_by_one() {
        let mut terminal = Terminal::new();
        terminal.input.set_mode(Mode { lines: false, echo: false, signals: false });
        assert!(!terminal.type_in(b"q\x03"));
        assert!(terminal.input.would_read());
        assert_eq!(terminal.read(64).unwrap(), "q");
        assert_eq!(terminal.read(64).unwrap(), "\u{3}");
        assert!(terminal.shown.is_empty());
    }

    #[test]
    fn a_long_line_is_not_lost_and_there_is_a_limit() {
        let mut terminal = Terminal::new();
        for _ in 0..CAPACITY + 10 {
            terminal.type_in(b"a");
        }
        assert_eq!(terminal.input.room(), 0);
        let mut total = 0;
        while let Some(piece) = terminal.read(64) {
            total += piece.len();
        }
        assert_eq!(total, CAPACITY);
    }
}
