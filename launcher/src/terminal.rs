//! The terminal that people type at: made raw for the guest, and given back as it was.
//!
//! A guest wants each key as it is pressed, ^C included: its own kernel echoes, edits and
//! interrupts. So the terminal's own editing is switched off while the guest runs. Leaving it
//! off would ruin the user's shell, so it comes back whatever happens: [`RawTerminal`] does it
//! when it is dropped, which covers returning and panicking; [`rescue`] covers the
//! ends that run no destructors.

use crate::rescue;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};
use std::os::fd::{AsFd, OwnedFd};

/// A terminal in raw mode for as long as this lives.
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal at `fd` raw. `None` when there is no terminal at `fd`.
    ///
    /// # Errors
    /// What the system says against changing its mode.
    pub fn enter(fd: impl AsFd) -> Result<Option<Self>, Errno> {
        let fd = fd.as_fd();
        if !isatty(fd) {
            return Ok(None);
        }
        let before = tcgetattr(fd)?;
        let terminal = Self { fd: fcntl_dupfd_cloexec(fd, 3)?, before };
        rescue::remember(&terminal.fd);
        tcsetattr(&terminal.fd, OptionalActions::Now, &raw(&terminal.before))?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone (its window was closed) needs nothing more.
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
        rescue::forget();
    }
}

/// The mode in which the guest has the keyboard: no echo, no lines, no keys with a meaning. Output
/// is left as it is, since a guest ends its lines as any program does.
fn raw(before: &Termios) -> Termios {
    let mut raw = before.clone();
    raw.local_modes -=
        LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN;
    raw.input_modes -= InputModes::IXON;
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    raw
}
