//! **The console**: one terminal, bytes in and bytes out (section 5.3, Console Device).
//!
//! Output is with the system before its buffer goes back, so nothing is missing however the process ends. Input is read only when
//! the driver has given a buffer for it: what waits, waits at the host.
//!
//! Long before a driver is ready, a kernel has something to say. It writes it a character at a time to a field of the configuration,
//! `emerg_wr`.

use crate::virtio::chain::Chain;
use crate::virtio::model::{ConfigWrites, Kind, Model, Version, Work};
use crate::virtio::queue::{Broken, Rings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The configuration tells the size of the terminal.
const SIZE: u64 = 1 << 0;
/// Characters can be written to the configuration.
const EMERGENCY_WRITE: u64 = 1 << 2;
/// Where in the configuration.
const EMERGENCY_OFFSET: usize = 8;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: [u16; 2] = [64, 64];

/// A pipe that is ready takes so much without blocking (POSIX calls it `PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// How long an emergency character may wait for a reader.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Who is told why output had to be given up. Called once, from any thread.
pub type OutputFailed = Box<dyn Fn(Errno) + Send + Sync>;

/// A console that wants to become a device.
#[derive(Default)]
pub struct Console {
    /// Where input comes from. At its end, or when it fails, there is simply no more.
    pub input: Option<OwnedFd>,
    /// Where output goes.
    pub output: Option<OwnedFd>,
    /// The terminal's columns and rows.
    pub size: Option<(u16, u16)>,
    /// Who is told why output had to be given up.
    pub output_failed: Option<OutputFailed>,
}

impl Console {
    /// The device.
    #[must_use]
    pub fn into_model(self) -> Model {
        let (columns, rows) = self.size.unwrap_or((0, 0));
        let ports = 1u32;
        let config = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
        let config = [&config[..], &ports.to_le_bytes(), &[0; 4]].concat();
        let output = Arc::new(Output { fd: Mutex::new(self.output), failed: self.output_failed });
        Model {
            kind: Kind::Console,
            features: EMERGENCY_WRITE | if self.size.is_some() { SIZE } else { 0 },
            queues: &QUEUES,
            config,
            config_writes: Some(Box::new(Emergency(Arc::clone(&output)))),
            work: Box::new(ConsoleWork { input: self.input, buffer: None, output }),
        }
    }
}

/// The configuration's part.
struct Emergency(Arc<Output>);

impl ConfigWrites for Emergency {
    fn features(&self) -> u64 {
        EMERGENCY_WRITE
    }

    fn written(&mut self, offset: usize, bytes: &[u8]) {
        if let (EMERGENCY_OFFSET, Some(character)) = (offset, bytes.first()) {
            self.0.write(&[*character], Until::Patience);
        }
    }
}

/// The queues' part.
struct ConsoleWork {
    input: Option<OwnedFd>,
    /// The driver's next buffer for input.
    buffer: Option<Chain>,
    output: Arc<Output>,
}

impl Work for ConsoleWork {
    fn begin(&mut self, _version: Version, _features: u64) {
        self.buffer = None;
    }

    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        self.send(rings)?;
        self.receive(rings)
    }

    fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let input = self.input.as_ref().filter(|_| self.buffer.is_some())?;
        Some((input.as_fd(), PollFlags::IN))
    }
}

impl ConsoleWork {
    fn send(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        let mut bytes = [0; AT_ONCE];
        while let Some(mut chain) = rings.ring(TRANSMIT).take()? {
            loop {
                let now = chain.read(&mut bytes);
                if now == 0 || !self.output.write(&bytes[..now], Until::Stop(rings.stop_signal())) {
                    break;
                }
            }
            rings.ring(TRANSMIT).give_back(&chain)?;
        }
        Ok(())
    }

    fn receive(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        while self.input.is_some() {
            if self.buffer.is_none() {
                self.buffer = rings.ring(RECEIVE).take()?;
            }
            let Some(mut chain) = self.buffer.take() else { break };
            let mut bytes = [0; AT_ONCE];
            let room = usize::try_from(chain.writable()).unwrap_or(AT_ONCE).min(AT_ONCE);
            let Some(now) = self.read(&mut bytes[..room]) else {
                self.buffer = Some(chain);
                break;
            };
            chain.write(&bytes[..now]);
            rings.ring(RECEIVE).give_back(&chain)?;
        }
        Ok(())
    }

    /// Reads what is there without waiting. `None` when that is nothing.
    fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        if into.is_empty() {
            return Some(0);
        }
        let input = self.input.as_ref()?;
        match poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&Timespec::default())) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        match read(input, into) {
            Ok(now) if now > 0 => return Some(now),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.input = None,
        }
        None
    }
}

/// Where the terminal's output goes, from both threads.
struct Output {
    fd: Mutex<Option<OwnedFd>>,
    failed: Option<OutputFailed>,
}

/// When to give up waiting for a slow reader.
#[derive(Clone, Copy)]
enum Until<'a> {
    /// When this becomes readable.
    Stop(BorrowedFd<'a>),
    /// After a while.
    Patience,
}

impl Output {
    /// Writes all of it, unless it takes too long. False when more output has no purpose now.
    fn write(&self, mut bytes: &[u8], until: Until<'_>) -> bool {
        let mut fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        while let (Some(output), false) = (&*fd, bytes.is_empty()) {
            let written = match wait(output, until) {
                Ok(true) => write(output, bytes.split_at(bytes.len().min(AT_ONCE)).0),
                Ok(false) => return false,
                Err(error) => Err(error),
            };
            match written {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => {
                    *fd = None;
                    if let Some(failed) = &self.failed {
                        failed(error);
                    }
                }
            }
        }
        true
    }
}

/// Waits until output can be written; false when it is to be given up.
fn wait(output: &OwnedFd, until: Until<'_>) -> Result<bool, Errno> {
    let output = PollFd::new(output, PollFlags::OUT);
    match until {
        Until::Patience => Ok(poll(&mut [output], Some(&PATIENCE))? > 0),
        Until::Stop(stop) => {
            let mut fds = [output, PollFd::new(&stop, PollFlags::IN)];
            poll(&mut fds, None)?;
            Ok(!fds[0].revents().is_empty())
        }
    }
}
