//! Running translated code: the one door, with everything set up behind it.
//!
//! What makes [`run`] safe to call is decided elsewhere: the translator emits only code that stays inside the window
//! (its `confinement` checks what it emitted), the code cache holds nothing else, and the borrows in
//! the signature keep cache, map and frame in place for as long as that code runs.

use super::alarm::Alarm;
use super::code_cache::CodeCache;
use super::crossing::{self, Entry};
use super::gs_base;
use super::host_map::HostMap;
use super::kick::Kick;
use super::signals::{Current, Running};
use crate::cpu::Gpr;
use crate::frame::{Frame, Reason};
use std::sync::atomic::{Ordering, compiler_fence};

/// Where translated code is to be entered, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// The point, a cache offset.
    pub(crate) at: u32,
    /// Its [`Point::moved`](crate::translate::Point::moved).
    pub(crate) moved: i8,
    /// It is entered even if a kick is waiting.
    pub(crate) undisturbed: bool,
}

/// Runs translated code from `start` on until it leaves, and says why it did. The frame holds the
/// addresses of the world that the code there was translated for.
///
/// [`Reason::Kicked`] comes without anything having run when a kick is waiting, unless undisturbed.
pub(crate) fn run(
    frame: &mut Frame,
    cache: &mut CodeCache,
    map: &HostMap,
    kick: &Kick,
    alarm: &Alarm,
    start: Start,
) -> Reason {
    let Start { at, moved, undisturbed } = start;
    debug_assert!(at < cache.bytes() && frame.code == cache.base());
    let entry = if cache.take_written() { Entry::Serialize } else { Entry::Jump };
    let target = cache.base() + u64::from(at);
    let code = cache.base()..cache.base() + u64::from(cache.bytes());
    gs_base::set(frame.window);
    let level_before = frame.user;
    frame.entry_esp = frame.gpr[Gpr::Esp as usize].wrapping_sub_signed(moved.into());
    frame.kicked.store(0, Ordering::Relaxed);
    let frame: *mut Frame = frame;
    // SAFETY: all three are borrowed until the end of this function, and `current` is gone by then.
    let running = unsafe { Running::new(frame, code, map, alarm.retry()) };
    let current = Current::new(&running);
    compiler_fence(Ordering::SeqCst);
    // A kick before this point has set its flag and found nothing running here; one after it
    // finds the frame.
    if !undisturbed && kick.is_kicked() {
        return Reason::Kicked;
    }
    // SAFETY: the frame is set up as the comment of this file says; `current` tells the signal
    // handlers of it.
    unsafe { crossing::enter(frame, target, entry) };
    drop(current);
    // SAFETY: translated code has left, so the frame is this function's again.
    let frame = unsafe { &*frame };
    if frame.user != level_before {
        gs_base::was_changed(frame.worlds[frame.user as usize].window);
    }
    reason(frame.reason)
}

/// The reason that code or handler left in the frame.
fn reason(value: u32) -> Reason {
    const REASONS: [Reason; 11] = [
        Reason::Chain,
        Reason::Indirect,
        Reason::Interrupt,
        Reason::Exception,
        Reason::Sensitive,
        Reason::Bounce,
        Reason::BounceDone,
        Reason::Watched,
        Reason::Stop,
        Reason::Fault,
        Reason::Kicked,
    ];
    debug_assert!(REASONS.iter().enumerate().all(|(i, &reason)| i as u32 == reason as u32));
    REASONS[value as usize]
}

#[cfg(test)]
mod tests;
