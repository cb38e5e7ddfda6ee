//! Calling a virtual CPU back: from another thread, or from a signal.
//!
//! A kick is one flag, shared by reference, and a signal to the thread that runs the virtual CPU. The flag
//! alone is the truth; the signal only makes sure that somebody looks at it soon, wherever the thread
//! may be: in translated code (the handler in [`super::signals`] makes it leave), in Rust (the way
//! back into translated code looks), or asleep in [`Kick::wait`] (a futex, woken instead).

use super::signals;
use rustix::thread::futex;
use rustix::time::Timespec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

/// The shared half of a virtual CPU that other threads see.
#[derive(Default)]
pub(crate) struct Kick {
    /// 1 from a kick until the virtual CPU has answered it.
    kicked: AtomicU32,
    /// The thread the virtual CPU belongs to; 0 while it belongs to none.
    thread: AtomicI32,
    /// The thread is asleep in [`Kick::wait`].
    asleep: AtomicBool,
}

impl Kick {
    /// Asks for attention. Safe in a signal handler.
    pub(crate) fn kick(&self) {
        if self.kicked.swap(1, Ordering::SeqCst) != 0 {
            return; // An earlier kick is on its way.
        }
        if self.asleep.load(Ordering::SeqCst) {
            let _ = futex::wake(&self.kicked, futex::Flags::PRIVATE, 1);
        } else {
            signals::interrupt_thread(self.thread.load(Ordering::SeqCst));
        }
    }

    /// Notes a kick without a signal: for a handler on the virtual CPU's own thread.
    pub(crate) fn note(&self) {
        self.kicked.store(1, Ordering::SeqCst);
    }

    /// Whether somebody asked; the virtual CPU must answer by [`Kick::take`].
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire) != 0
    }

    /// Answers the kicks there were, and says whether there were any.
    pub(crate) fn take(&self) -> bool {
        self.kicked.swap(0, Ordering::SeqCst) != 0
    }

    /// From now on signals go to `thread` (0: to nobody).
    pub(crate) fn belongs_to(&self, thread: i32) {
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// Sleeps until kicked, or until `timeout` has passed. The kick stays to be taken.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.asleep.store(true, Ordering::SeqCst);
        // An early return (a signal, a wake-up meant for an earlier sleep) does no harm: "until
        // kicked" may be a little less, and the caller looks at its own work anyway.
        let _ = futex::wait(&self.kicked, futex::Flags::PRIVATE, 0, timeout.as_ref());
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// Makes a virtual CPU come back from [`run`](crate::Vcpu::run) or
/// [`wait`](crate::Vcpu::wait) soon, with [`Exit::Kicked`](crate::Exit::Kicked).
///
/// It may outlive its virtual CPU: then a kick does nothing.
#[derive(Clone)]
pub struct Kicker(pub(crate) Arc<Kick>);

impl Kicker {
    /// Kicks, from any thread, and from a signal handler too. Kicks that come before the virtual
    /// CPU has answered one are one with it.
    pub fn kick(&self) {
        self.0.kick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_sleeper_wakes_for_a_kick_and_for_the_time() {
        let kick = Arc::new(Kick::default());
        let start = Instant::now();
        kick.wait(Some(Duration::from_millis(5)));
        assert!(start.elapsed() >= Duration::from_millis(4) && !kick.is_kicked());
        let kicker = Kicker(kick.clone());
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            kicker.kick();
        });
        kick.wait(None);
        other.join().unwrap();
        assert!(kick.take() && !kick.take());
        kick.note();
        kick.wait(None);
    }
}
