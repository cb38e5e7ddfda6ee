//! **The console device**: the guest's screen and keyboard.
//!
//! Output is the simplest device there is: the guest sends bytes to key 0, and they are written
//! ([`output`](crate::output)). Input is harder, because it comes when it likes. A thread
//! queues it ([`input`](crate::input)); the guest has one buffer bound at key 0, and when
//! that is free, the next bytes go there and an interrupt tells. When it isn't, they wait: the guest frees
//! it by a store to its own memory, which nobody notices, so the device asks to look again soon.
//!
//! The rest of the way a key takes is the guest's: its driver's interrupt handler reads the buffer, its
//! shell asks the driver.

use crate::control::Control;
use crate::input::{InputQueue, InputThread, Waiting};
use crate::output::Output;
use lguest_abi::device::console::KEY;
use lguest_host::{DeviceIo, Sections};
use lguest_switcher::GuestPhys;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::stdio::{stdin, stdout};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// What the console's input and output are bound to.
///
/// Anything with a descriptor will do: a pipe, a file, a socket, a terminal.
#[derive(Debug, Default)]
pub struct Console {
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: Option<OwnedFd>,
}

impl Console {
    /// Standard input and output. A terminal at standard input is made raw while the guest runs.
    ///
    /// # Errors
    /// One of them is closed, or there are no descriptors left.
    pub fn stdio() -> io::Result<Self> {
        // Duplicates, so that dropping a console closes nothing that isn't its own.
        Ok(Self {
            input: Some(fcntl_dupfd_cloexec(stdin(), 3)?),
            output: Some(fcntl_dupfd_cloexec(stdout(), 3)?),
        })
    }

    /// A console whose output goes nowhere, and whose input never comes.
    #[must_use]
    pub fn silent() -> Self {
        Self::default()
    }

    /// The same console with its input from here.
    #[must_use]
    pub fn input(mut self, from: impl Into<OwnedFd>) -> Self {
        self.input = Some(from.into());
        self
    }

    /// The same console with its output going here.
    #[must_use]
    pub fn output(mut self, into: impl Into<OwnedFd>) -> Self {
        self.output = Some(into.into());
        self
    }
}

/// The console's key, which needs no memory of its own: address 0, where no device page can be.
pub(crate) const CONSOLE_KEY: GuestPhys = GuestPhys(KEY);

/// How soon to look again whether the guest has freed its buffer; doubled each time it hasn't, up to
/// the second value.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// The device, on the vCPU's thread.
#[derive(Debug)]
pub(crate) struct ConsoleDevice {
    output: Option<Output>,
    /// What was written so far may be reused for the next message, to spare an allocation each.
    message: Vec<u8>,
    queue: Arc<InputQueue>,
    end_told: bool,
    patience: Duration,
    /// Reads until this is dropped.
    _input: Option<InputThread>,
}

impl ConsoleDevice {
    /// Puts the device into service: from here on its input is read.
    pub(crate) fn start(console: Console, control: &Arc<Control>) -> io::Result<Self> {
        let queue = Arc::new(InputQueue::default());
        let input = match console.input {
            Some(fd) => Some(InputThread::spawn(fd, Arc::clone(&queue), Arc::clone(control))?),
            None => None,
        };
        Ok(Self {
            output: console.output.map(|fd| Output::new(fd, Arc::clone(control))),
            message: Vec::new(),
            queue,
            end_told: false,
            patience: LOOK_AGAIN.0,
            _input: input,
        })
    }

    /// The guest sends: writes it all, and gives its length.
    ///
    /// # Errors
    /// Nobody takes the output any more.
    pub(crate) fn send(&mut self, sections: &Sections, io: &DeviceIo<'_>) -> Result<u32, Errno> {
        self.message.clear();
        sections.gather(io.memory(), &mut self.message);
        if let Some(output) = &mut self.output {
            output.write_all(&self.message)?;
        }
        Ok(sections.bytes())
    }

    /// Hands over what waits, as far as the guest has room.
    pub(crate) fn deliver(&mut self, io: &mut DeviceIo<'_>) {
        loop {
            let delivered = match self.queue.waiting() {
                Waiting::Nothing => return,
                Waiting::End if self.end_told => return,
                Waiting::Bytes(bytes) => {
                    io.fill(CONSOLE_KEY, &bytes).map(|taken| self.queue.take(taken))
                }
                // An interrupt with nothing in the buffer, so the buffer must be empty.
                Waiting::End => io.buffer(CONSOLE_KEY).map(|_| {
                    self.end_told = io.interrupt(CONSOLE_KEY);
                }),
            };
            if delivered.is_err() {
                io.poll_again_after(self.patience);
                self.patience = (self.patience * 2).min(LOOK_AGAIN.1);
                return;
            }
            self.patience = LOOK_AGAIN.0;
        }
    }
}
