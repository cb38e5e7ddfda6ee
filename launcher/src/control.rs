//! How a guest is ended from outside.
//!
//! The guest runs on one thread and nothing but that thread touches it. Whoever wants it to end,
//! a signal or three ^C at the keyboard, leaves the wish here and kicks the vCPU; at the next boundary
//! between two guest instructions its thread finds the wish ([`Control::wish`]).

use lguest_host::Kicker;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Why a guest was ended from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// Three ^C at the terminal within about a second.
    Interrupted,
    /// [`Stopper::stop`] was called.
    Requested,
}

/// Ends a running guest, from any thread. Clones end the same guest.
#[derive(Clone, Debug)]
pub struct Stopper {
    control: Arc<Control>,
}

impl Stopper {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Asks the guest to end, as soon as its current instruction is done. Once it was asked,
    /// asking again changes nothing.
    pub fn stop(&self) {
        self.control.stop(StopReason::Requested);
    }

    /// Waits until the guest is asked to end, by anybody.
    pub fn wait(&self) -> StopReason {
        self.control.asked.wait().to_owned()
    }
}

/// The wish itself, shared by the vCPU's thread and everybody else.
pub(crate) struct Control {
    asked: OnceLock<StopReason>,
    /// Readable once the guest was asked to end: for whoever sleeps in `poll`.
    signal: OwnedFd,
    kicker: Mutex<Option<Kicker>>,
}

impl Control {
    pub(crate) fn new() -> Result<Self, Errno> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { asked: OnceLock::new(), signal, kicker: Mutex::new(None) })
    }

    /// Names the vCPU to be kicked, once it exists; another one after a restart.
    pub(crate) fn attach(&self, kicker: Kicker) {
        *self.kicker() = Some(kicker);
    }

    fn kicker(&self) -> MutexGuard<'_, Option<Kicker>> {
        self.kicker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the wish, and sees to it that it is noticed. The first one counts.
    pub(crate) fn stop(&self, reason: StopReason) {
        if self.asked.set(reason).is_ok() {
            // The counter can't overflow by one increment.
            let _ = write(&self.signal, &1u64.to_ne_bytes());
        }
        self.kick();
    }

    /// Makes the vCPU look up.
    pub(crate) fn kick(&self) {
        if let Some(kicker) = &*self.kicker() {
            kicker.kick();
        }
    }

    /// Whether and why the guest is to end.
    pub(crate) fn wish(&self) -> Option<StopReason> {
        self.asked.get().copied()
    }

    /// Becomes readable, and stays so, once there is a wish.
    pub(crate) fn signal(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("asked", &self.asked).finish_non_exhaustive()
    }
}
