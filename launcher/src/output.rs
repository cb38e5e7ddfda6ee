//! The screen's side of the console: bytes leave the guest in order, and none is lost.
//!
//! There is no buffer here: what the guest sent is with the system before the guest runs on, so
//! that nothing is missing however the process ends. A reader that is slow makes the guest wait; only
//! the wish to end the guest cuts that short.

use crate::control::Control;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A pipe that is ready takes so much without blocking (POSIX calls it `PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// Where the console's output goes.
#[derive(Debug)]
pub(crate) struct Output {
    fd: OwnedFd,
    control: Arc<Control>,
}

impl Output {
    pub(crate) fn new(fd: OwnedFd, control: Arc<Control>) -> Self {
        Self { fd, control }
    }

    /// Writes everything, however long it takes, unless the guest is to end meanwhile.
    ///
    /// # Errors
    /// What the system says against it; EPIPE when nobody reads any more.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            if !self.wait()? {
                return Ok(());
            }
            let (now, _) = bytes.split_at(bytes.len().min(AT_ONCE));
            match write(&self.fd, now) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until output can be written; false when the guest is to end instead.
    fn wait(&self) -> Result<bool, Errno> {
        loop {
            let signal = self.control.signal();
            let mut fds =
                [PollFd::new(&self.fd, PollFlags::OUT), PollFd::new(&signal, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::StopReason;
    use std::io::{self, Read};
    use std::thread;
    use std::time::Duration;

    fn output() -> (io::PipeReader, Output, Arc<Control>) {
        let (from, into) = io::pipe().unwrap();
        let control = Arc::new(Control::new().unwrap());
        (from, Output::new(into.into(), Arc::clone(&control)), control)
    }

    #[test]
    fn a_slow_reader_gets_every_byte() {
        let (mut from, mut output, _control) = output();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writer = thread::spawn(move || output.write_all(&sent));
        thread::sleep(Duration::from_millis(20));
        let mut got = Vec::new();
        from.read_to_end(&mut got).unwrap();
        assert_eq!(writer.join().unwrap(), Ok(()));
        assert!(got == expected);
    }

    #[test]
    fn a_reader_that_left_is_an_error_not_a_signal() {
        let (from, mut output, _control) = output();
        drop(from);
        assert_eq!(output.write_all(b"anybody?"), Err(Errno::PIPE));
    }

    #[test]
    fn the_wish_to_end_cuts_waiting_short() {
        let (_from, mut output, control) = output();
        let writer = thread::spawn(move || output.write_all(&vec![b'x'; 1 << 20]));
        thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished(), "the pipe is full");
        control.stop(StopReason::Requested);
        assert_eq!(writer.join().unwrap(), Ok(()));
    }
}
