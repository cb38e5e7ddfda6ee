//! A guest under our hands: we type, it prints, and whatever happens, its process ends with the check.

use crate::Skip;
use crate::kernel::Kernel;
use memchr::memmem;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest's first program says, and what it says behind each line that was typed.
const UP: &str = "The guest is up: ";
const STATUS: &str = "[status ";

/// So much of what a guest printed is shown when a check fails.
const SHOWN: usize = 6000;

/// A running guest.
pub(crate) struct Guest {
    process: Child,
    keyboard: Option<ChildStdin>,
    screen: Arc<Transcript>,
    errors: Arc<Transcript>,
    /// Where on the screen we have read to.
    read: usize,
    patience: Duration,
}

/// What came out of a pipe so far.
#[derive(Default)]
struct Transcript {
    state: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

/// The command that boots this kernel with these options.
pub(crate) fn command(kernel: &Kernel, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lguest"));
    command.arg("run").arg("--initrd").arg(&kernel.initramfs);
    // What is said twice is said by the check.
    if !options.contains(&"--memory") {
        command.args(["--memory", "128M"]);
    }
    command.args(options).arg(&kernel.path).args(["--", "console=hvc0", "quiet"]);
    command
}

impl Guest {
    /// Boots a kernel, and waits until it does what is typed.
    pub(crate) fn boot(kernel: &Kernel, options: &[&str]) -> Self {
        Self::boot_by(&mut command(kernel, options))
    }

    /// As [`Guest::boot`], by this command.
    pub(crate) fn boot_by(command: &mut Command) -> Self {
        let mut guest = Self::start(command);
        guest.wait_until_up();
        guest
    }

    /// Only starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = piped.spawn().unwrap();
        let screen = Transcript::of(process.stdout.take().unwrap());
        let errors = Transcript::of(process.stderr.take().unwrap());
        let keyboard = process.stdin.take();
        Self { process, keyboard, screen, errors, read: 0, patience: PATIENCE }
    }

    /// Waits that much longer for everything.
    pub(crate) fn be_patient(&mut self, times: u32) {
        self.patience = PATIENCE * times;
    }

    /// Waits until the guest's first program is there, which happens again when a guest starts again.
    pub(crate) fn wait_until_up(&mut self) -> String {
        self.wait_for(UP);
        self.wait_for("\n")
    }

    /// Types something.
    pub(crate) fn type_text(&mut self, text: &str) {
        let keyboard = self.keyboard.as_mut().expect("the keyboard is there");
        keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Ends the input.
    pub(crate) fn hang_up(&mut self) {
        self.keyboard = None;
    }

    /// Waits for a text on the screen, and gives what was printed before it and not read yet.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let before = self.screen.wait_for(text, self.read, self.patience).unwrap_or_else(|| {
            panic!("waited for {text:?}, and the guest {}", self.state());
        });
        self.read += before.len() + text.len();
        String::from_utf8(before).expect("guests print text")
    }

    /// Whether there is an end before this text.
    pub(crate) fn ends_rather_than(&self, text: &str) -> bool {
        self.screen.wait_for(text, self.read, self.patience).is_none()
    }

    /// Has it run a line, and gives its status and what it printed.
    pub(crate) fn try_run(&mut self, line: &str) -> (i32, String) {
        self.begin(line);
        self.finish()
    }

    /// Has it begin to run a line, which is to be [finished](Guest::finish).
    pub(crate) fn begin(&mut self, line: &str) {
        self.type_text(&format!("{line}\n"));
        let before = self.wait_for(&format!("{line}\r\n"));
        assert_eq!(before, "", "before the echo of what was typed");
    }

    /// Waits for the end of a line that was begun, and gives its status and what it printed.
    pub(crate) fn finish(&mut self) -> (i32, String) {
        let printed = self.wait_for(STATUS).replace("\r\n", "\n");
        let status = self.wait_for("]\r\n").parse().expect("a status is a number");
        (status, printed)
    }

    /// Has it run a line that must succeed, and gives what it printed.
    pub(crate) fn run(&mut self, line: &str) -> String {
        let (status, printed) = self.try_run(line);
        assert_eq!(status, 0, "{line:?} failed: {printed}");
        printed
    }

    /// Whether a line succeeds.
    pub(crate) fn can(&mut self, line: &str) -> bool {
        self.try_run(line).0 == 0
    }

    /// Skips the check if a line doesn't succeed.
    pub(crate) fn needs(&mut self, line: &str, otherwise: &str) -> Result<(), Skip> {
        if self.can(line) { Ok(()) } else { Err(Skip(otherwise.to_owned())) }
    }

    /// Switches it off, as it should be, and sees that the command has nothing to say against it.
    pub(crate) fn power_off(mut self) {
        self.type_text("poweroff -f\n");
        assert_eq!(self.end(), (Some(0), String::new()));
    }

    /// The process's number.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the command's end, and gives its exit status and what it said on standard error.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + self.patience;
        let status = loop {
            match self.process.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("the guest doesn't end"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        (status.code(), self.errors.to_the_end(self.patience))
    }

    /// Kills the process, which it can't do anything against.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn state(&mut self) -> String {
        match self.process.try_wait().unwrap() {
            Some(status) => format!("ended ({status})"),
            None => "is still running".to_owned(),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has mostly ended, and then neither does anything.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- the guest's screen, and what the command said:");
            eprintln!("{}---\n{}---", self.screen.tail(), self.errors.tail());
        }
    }
}

impl Transcript {
    /// Of what comes out of this pipe.
    fn of(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let transcript = Arc::new(Self::default());
        let writer = Arc::clone(&transcript);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = writer.state.lock().unwrap();
                state.0.extend(&buffer[..count]);
                state.1 = count == 0;
                writer.grown.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        transcript
    }

    /// Waits for `text` somewhere from `start` on, and gives what is before it. None if it isn't there in time, or will never be.
    fn wait_for(&self, text: &str, start: usize, patience: Duration) -> Option<Vec<u8>> {
        let found = |bytes: &[u8]| memmem::find(&bytes[start..], text.as_bytes());
        let state = self.state.lock().unwrap();
        let not_yet = |state: &mut (Vec<u8>, bool)| !state.1 && found(&state.0).is_none();
        let (state, _) = self.grown.wait_timeout_while(state, patience, not_yet).unwrap();
        found(&state.0).map(|length| state.0[start..start + length].to_vec())
    }

    /// Waits for the end, and gives everything.
    fn to_the_end(&self, patience: Duration) -> String {
        let state = self.state.lock().unwrap();
        let (state, _) = self.grown.wait_timeout_while(state, patience, |state| !state.1).unwrap();
        assert!(state.1, "somebody else holds the pipe");
        String::from_utf8_lossy(&state.0).into_owned()
    }

    fn tail(&self) -> String {
        // The thread that writes can't have panicked with the lock.
        let bytes = &self.state.lock().unwrap().0;
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).replace('\r', "")
    }
}
