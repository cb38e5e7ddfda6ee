//! An alarm for a virtual CPU: a timer whose signal is a kick.
//!
//! The timer is a POSIX one that signals the virtual CPU's own thread, with the address of its
//! [`Kick`] as value: so it reaches the right one even when several share the thread, or when none is
//! running.

use super::SetupError;
use super::kick::Kick;
use super::signals;
use std::io;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

/// Two timers of the calling thread. They must be dropped on that thread.
pub(crate) struct Alarm {
    timer: libc::timer_t,
    retry: Retry,
    /// Kept for the signals that are on their way.
    _kick: Arc<Kick>,
}

/// A timer for the signal handler: a kick that came at a bad moment comes again a little later.
#[derive(Clone, Copy)]
pub(crate) struct Retry(libc::timer_t);

impl Retry {
    /// Sends the kick signal to this thread again, soon, when `before` retries have failed. Safe in a signal
    /// handler.
    pub(crate) fn soon(self, before: u32) {
        ring(self.0, pause(before));
    }
}

/// How much later a kick comes again: at first a little more than the handler that got in the way takes.
/// Where signals are slow (under a tracer, or in a sandbox that carries out system calls itself) that
/// is too little for anything to happen between two of them, so each time it is twice as long.
fn pause(before: u32) -> libc::timespec {
    const FIRST: libc::c_long = 20_000;
    const DOUBLINGS: u32 = 9;
    libc::timespec { tv_sec: 0, tv_nsec: FIRST << before.min(DOUBLINGS) }
}

impl Alarm {
    /// An alarm that isn't set. The signal handlers must be installed.
    pub(crate) fn new(kick: Arc<Kick>) -> Result<Self, SetupError> {
        let timer = create(Arc::as_ptr(&kick))?;
        match create(null()) {
            Ok(retry) => Ok(Self { timer, retry: Retry(retry), _kick: kick }),
            Err(error) => {
                // SAFETY: it exists, and was never set.
                unsafe { libc::timer_delete(timer) };
                Err(error)
            }
        }
    }

    /// The timer for the signal handler. It is gone with the alarm.
    pub(crate) fn retry(&self) -> Retry {
        self.retry
    }

    /// Rings once, `after` from now; `None`: never. Replaces what was set before.
    pub(crate) fn set(&self, after: Option<Duration>) {
        // Zero would mean never.
        let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        ring(self.timer, value);
    }
}

/// A timer that signals the calling thread, with the address of what it kicks, or none.
fn create(kick: *const Kick) -> Result<libc::timer_t, SetupError> {
    let signal = signals::kick_signal().ok_or(SetupError::Config("no signal handlers"))?;
    // SAFETY: all zeros is a valid `sigevent`; the `Kick` it points to lives until `Alarm::drop`
    // has taken the last signal.
    unsafe {
        let mut event: libc::sigevent = zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = signals::this_thread();
        event.sigev_value.sival_ptr = kick.cast_mut().cast();
        let mut timer = null_mut();
        match libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) {
            0 => Ok(timer),
            _ => Err(SetupError::Timer(io::Error::last_os_error())),
        }
    }
}

/// Sets a timer that exists; 0 stops it.
fn ring(timer: libc::timer_t, after: libc::timespec) {
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let setting = libc::itimerspec { it_interval: none, it_value: after };
    // SAFETY: a system call, which refuses what isn't a timer.
    let done = unsafe { libc::timer_settime(timer, 0, &raw const setting, null_mut()) };
    debug_assert_eq!(done, 0, "a valid time");
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Some(signal) = signals::kick_signal() else { return };
        // SAFETY: system calls on valid arguments. The signal is blocked, the timer deleted, and what it had
        // sent before is taken, so that no handler gets the address of a `Kick` that is gone.
        // Another virtual CPU's signal may be taken with it: its flag is set, and it isn't in
        // translated code, since this thread is here.
        unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            let mut before: libc::sigset_t = zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
            libc::timer_delete(self.timer);
            libc::timer_delete(self.retry.0);
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let mut info: libc::siginfo_t = zeroed();
            while libc::sigtimedwait(&raw const set, &raw mut info, &raw const now) == signal {
                let rung = match info.si_code {
                    libc::SI_TIMER => info.si_value().sival_ptr.cast_const().cast::<Kick>(),
                    _ => null(),
                };
                if let Some(kick) = rung.as_ref() {
                    kick.note();
                }
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_retry_waits_longer_each_time_up_to_ten_milliseconds() {
        let pauses = [0, 1, 2, 9, 10, u32::MAX].map(|before| pause(before).tv_nsec);
        assert_eq!(pauses, [20_000, 40_000, 80_000, 10_240_000, 10_240_000, 10_240_000]);
    }

    #[test]
    fn it_rings_once_and_can_be_taken_back() {
        signals::install().unwrap();
        let kick = Arc::new(Kick::default());
        let alarm = Alarm::new(kick.clone()).unwrap();
        alarm.set(Some(Duration::from_millis(2)));
        let start = Instant::now();
        while !kick.take() {
            assert!(start.elapsed() < Duration::from_secs(5));
            kick.wait(Some(Duration::from_secs(1)));
        }
        assert!(start.elapsed() >= Duration::from_millis(2));
        alarm.set(Some(Duration::from_millis(1)));
        alarm.set(None);
        std::thread::sleep(Duration::from_millis(5));
        assert!(!kick.is_kicked());
        alarm.set(Some(Duration::ZERO));
        drop(alarm);
    }
}
