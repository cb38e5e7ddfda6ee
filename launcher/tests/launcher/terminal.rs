//! The command at a terminal: raw while the guest runs, and as before afterwards, whatever happened.

use crate::command::file;
use crate::tiny_guest::{READY, crashing, echoing, power_off, spinning};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// The patience of a person.
const SOON: Duration = Duration::from_secs(10);

/// A terminal: what a person sees and types on, and what programs have open.
struct Terminal {
    person: OwnedFd,
    device: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let device = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self { person, device }
    }

    /// Boots a guest at this terminal.
    fn run(&self, kernel: &[u8]) -> Child {
        let kernel = file(kernel);
        // The kernel's file lives until it was read: by then the terminal is raw.
        self.start(Command::new(env!("CARGO_BIN_EXE_lguest")).arg("run").arg(&kernel))
    }

    /// Starts the command at this terminal, and waits until the guest has the keyboard.
    fn start(&self, command: &mut Command) -> Child {
        let open = || self.device.try_clone().unwrap();
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        self.wait_until(|modes| !modes.contains(LocalModes::ICANON), Some(child.id()));
        child
    }

    /// Waits for a change of the terminal's modes, or, if it's there to be seen, for the process to end.
    fn wait_until(&self, reached: impl Fn(LocalModes) -> bool, or_gone: Option<u32>) {
        let end = Instant::now() + SOON;
        while !reached(self.modes()) {
            if or_gone.is_some_and(is_zombie) {
                return;
            }
            assert!(Instant::now() < end, "the terminal is still {:?}", self.modes());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.device).unwrap().local_modes
    }

    fn is_as_before(&self) -> bool {
        let all = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN;
        self.modes().contains(all)
    }

    fn type_keys(&self, keys: &[u8]) {
        assert_eq!(write(&self.person, keys).unwrap(), keys.len());
    }

    /// Reads what is on the screen, until this is.
    fn expect(&self, text: &str) -> String {
        let mut seen = Vec::new();
        let end = Instant::now() + SOON;
        loop {
            let so_far = String::from_utf8_lossy(&seen).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let readable = poll(&mut [PollFd::new(&self.person, PollFlags::IN)], Some(&left));
            assert_eq!(readable, Ok(1), "no {text:?} in {so_far:?}");
            let mut piece = [0; 256];
            let count = read(&self.person, &mut piece).unwrap();
            seen.extend(&piece[..count]);
        }
    }
}

/// A process that has ended and wasn't waited for.
fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// Waits for a process, but not for ever.
fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + SOON;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the command is still running");
        thread::sleep(Duration::from_millis(1));
    }
}

fn send(signal: Signal, child: &Child) {
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
}

#[test]
fn keys_reach_the_guest_one_by_one_and_nobody_else_echoes_them() {
    let terminal = Terminal::new();
    let mut child = terminal.run(&echoing());
    terminal.type_keys(b"a");
    assert_eq!(terminal.expect("a"), "a");
    terminal.type_keys(b"\x03\x1a\x11\x16");
    assert_eq!(terminal.expect("\x16"), "\x03\x1a\x11\x16", "^C, ^Z, ^Q and ^V are the guest's");
    send(Signal::TERM, &child);
    assert_eq!(ended(&mut child).code(), Some(143));
    assert!(terminal.is_as_before());
}

#[test]
fn three_control_c_end_the_guest() {
    let terminal = Terminal::new();
    let mut child = terminal.run(&spinning());
    terminal.expect("ready");
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(50));
        terminal.type_keys(b"\x03");
    }
    assert_eq!(ended(&mut child).code(), Some(130));
    assert!(terminal.is_as_before());
}

#[test]
fn three_control_c_at_once_were_pasted() {
    let terminal = Terminal::new();
    let mut child = terminal.run(&spinning());
    terminal.expect("ready");
    terminal.type_keys(b"\x03\x03\x03");
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    send(Signal::TERM, &child);
    ended(&mut child);
}

#[test]
fn the_terminal_is_as_before_after_power_off_and_crash() {
    for (kernel, status) in [(power_off(), 0), (crashing("oh no"), 1)] {
        let terminal = Terminal::new();
        let mut child = terminal.run(&kernel);
        assert_eq!(ended(&mut child).code(), Some(status));
        assert!(terminal.is_as_before());
        if status == 1 {
            terminal.expect("lguest: the guest crashed: oh no\r\n");
        }
    }
}

#[test]
fn the_terminal_is_as_before_after_each_signal_that_ends_us() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let terminal = Terminal::new();
        let mut child = terminal.run(&spinning());
        terminal.expect(std::str::from_utf8(READY).unwrap().trim_end());
        send(signal, &child);
        assert_eq!(ended(&mut child).code(), Some(128 + signal.as_raw()));
        assert!(terminal.is_as_before(), "{signal:?}");
    }
}

#[test]
fn the_terminal_is_as_before_when_the_process_itself_crashes() {
    for signal in [Signal::SEGV, Signal::BUS, Signal::ABORT, Signal::ILL] {
        let terminal = Terminal::new();
        let mut child = terminal.run(&spinning());
        terminal.expect("ready");
        send(signal, &child);
        let status = ended(&mut child);
        assert_eq!(status.code(), None, "it dies of {signal:?}, as it would have");
        assert!(terminal.is_as_before(), "{signal:?}");
    }
}

#[test]
fn a_person_can_use_the_bundled_guest() {
    let terminal = Terminal::new();
    let mut child = terminal.start(Command::new(env!("CARGO_BIN_EXE_lguest")).arg("run"));
    terminal.expect("lguest# ");
    terminal.type_keys(b"ecko\x7f\x7fho hello\r");
    let seen = terminal.expect("lguest# ");
    assert!(seen.ends_with("\r\nhello\r\nlguest# "), "{seen:?}");
    terminal.type_keys(b"spin\r");
    terminal.expect("spin\r\n");
    thread::sleep(Duration::from_millis(100));
    terminal.type_keys(b"\x03");
    let seen = terminal.expect("lguest# ");
    assert!(seen.contains("[2] ended by signal 2"), "{seen:?}");
    terminal.type_keys(b"poweroff\r");
    assert_eq!(ended(&mut child).code(), Some(0));
    assert!(terminal.is_as_before());
}

#[test]
fn a_panic_of_the_bundled_kernel_leaves_the_terminal_as_before() {
    let terminal = Terminal::new();
    let mut child = terminal.start(Command::new(env!("CARGO_BIN_EXE_lguest")).arg("run"));
    terminal.expect("lguest# ");
    terminal.type_keys(b"crash at a terminal\r");
    assert_eq!(ended(&mut child).code(), Some(1));
    assert!(terminal.is_as_before());
    terminal.expect("lguest: the guest crashed: panic: at a terminal");
}
