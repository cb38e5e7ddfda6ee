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
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// A timer of the calling thread. It must be dropped on that thread.
pub(crate) struct Alarm {
    timer: libc::timer_t,
    kick: Arc<Kick>,
}

impl Alarm {
    /// An alarm that isn't set. The signal handlers must be installed.
    pub(crate) fn new(kick: Arc<Kick>) -> Result<Self, SetupError> {
        let signal = signals::kick_signal().ok_or(SetupError::Config("no signal handlers"))?;
        // SAFETY: all zeros is a valid `sigevent`; the `Kick` it points to lives until `drop` has taken the
        // last signal.
        unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = signals::this_thread();
            event.sigev_value.sival_ptr = Arc::as_ptr(&kick).cast_mut().cast();
            let mut timer = null_mut();
            match libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) {
                0 => Ok(Self { timer, kick }),
                _ => Err(SetupError::Timer(io::Error::last_os_error())),
            }
        }
    }

    /// Rings once, `after` from now; `None`: never. Replaces what was set before.
    pub(crate) fn set(&self, after: Option<Duration>) {
        // Zero would mean never.
        let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: the timer exists.
        let done = unsafe { libc::timer_settime(self.timer, 0, &raw const setting, null_mut()) };
        debug_assert_eq!(done, 0, "a valid time");
    }
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
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let mut info: libc::siginfo_t = zeroed();
            while libc::sigtimedwait(&raw const set, &raw mut info, &raw const now) == signal {
                let ours = info.si_code == libc::SI_TIMER
                    && info.si_value().sival_ptr.cast_const().cast() == Arc::as_ptr(&self.kick);
                if !ours && info.si_code == libc::SI_TIMER {
                    (*info.si_value().sival_ptr.cast::<Kick>().cast_const()).note();
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
