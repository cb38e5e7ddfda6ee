//! What faults have taught about single instructions.
//!
//! Nearly every memory operand is in the current window, so that is what the translator emits at first. An
//! instruction that turns out to be different (kernel code that touches the user's memory, a
//! segment with a limit, stores into a page full of code) faults, once; then it is translated again with another
//! [`Route`], and faults no more. Lessons are kept by frame and address. They are only hints: a wrong
//! one costs time, never truth.

use crate::translate::Route;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lessons kept at most; then all are forgotten, and learned again where they are still true.
const MOST: usize = 1 << 16;
/// Stores in a row that hit no page with code, after which a lesson learned from such pages is forgotten.
const PATIENCE: u32 = 256;
/// Writes to the code of a frame within [`COOLING`] of each other that are taken as they come.
const TOLERANCE: u32 = 8;
/// The time after which a write to code is no longer held against the next.
const COOLING: Duration = Duration::from_millis(20);

struct Lesson {
    eip: u32,
    route: Route,
    /// Learned from stores into pages with code, so it may become untrue: stores that hit none
    /// since the last that did.
    idle: Option<u32>,
}

/// Everything learned.
#[derive(Default)]
pub(super) struct Routes {
    by_frame: HashMap<u32, Vec<Lesson>>,
    count: usize,
    heat: HashMap<u32, (Instant, u32)>,
}

impl Routes {
    /// The lessons about code in `frame`, for a translation of it.
    pub(super) fn of_frame(&self, frame: u32) -> impl Fn(u32) -> Route {
        let lessons = self.by_frame.get(&frame).map_or(&[][..], Vec::as_slice);
        move |eip| {
            let lesson = lessons.iter().find(|lesson| lesson.eip == eip);
            lesson.map_or(Route::Window, |lesson| lesson.route)
        }
    }

    /// The instruction at `eip`, in `frame`, shall be reached by `route`. Says whether that is new.
    pub(super) fn learn(&mut self, frame: u32, eip: u32, route: Route, from_code: bool) -> bool {
        if self.count >= MOST {
            self.by_frame.clear();
            self.count = 0;
        }
        let idle = from_code.then_some(0);
        let lessons = self.by_frame.entry(frame).or_default();
        if let Some(lesson) = lessons.iter_mut().find(|lesson| lesson.eip == eip) {
            lesson.idle = lesson.idle.and(idle);
            return std::mem::replace(&mut lesson.route, route) != route;
        }
        lessons.push(Lesson { eip, route, idle });
        self.count += 1;
        true
    }

    /// A store by the instruction at `eip`, in `frame`, has gone through Rust. Says whether its
    /// lesson has become pointless and was forgotten.
    pub(super) fn stored(&mut self, frame: u32, eip: u32, into_code: bool) -> bool {
        let Some(lessons) = self.by_frame.get_mut(&frame) else { return false };
        let Some(at) = lessons.iter().position(|lesson| lesson.eip == eip) else { return false };
        let Some(idle) = &mut lessons[at].idle else { return false };
        *idle = if into_code { 0 } else { *idle + 1 };
        if *idle < PATIENCE {
            return false;
        }
        lessons.swap_remove(at);
        self.count -= 1;
        true
    }

    /// Code in `frame` was written to at `now`.
    pub(super) fn note_write(&mut self, frame: u32, now: Instant) {
        if self.heat.len() >= MOST {
            self.heat.clear();
        }
        let heat = self.heat_of(frame, now) + 1;
        self.heat.insert(frame, (now, heat));
    }

    /// Whether code in `frame` has been written to so often that the next store had better go through Rust, and that
    /// little of it is worth translating.
    pub(super) fn is_written_often(&self, frame: u32, now: Instant) -> bool {
        self.heat_of(frame, now) > TOLERANCE
    }

    /// Writes to code in `frame`, less those that time has forgiven.
    fn heat_of(&self, frame: u32, now: Instant) -> u32 {
        let Some((last, heat)) = self.heat.get(&frame) else { return 0 };
        let quiet = now.duration_since(*last).as_millis() / COOLING.as_millis();
        heat.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lesson_is_about_one_instruction_in_one_frame() {
        let mut routes = Routes::default();
        assert!(routes.learn(5, 0x1000, Route::Picked, false));
        assert!(!routes.learn(5, 0x1000, Route::Picked, false));
        assert!(routes.learn(5, 0x1000, Route::Bounced, false));
        assert_eq!(routes.of_frame(5)(0x1000), Route::Bounced);
        assert_eq!(routes.of_frame(5)(0x1001), Route::Window);
        assert_eq!(routes.of_frame(6)(0x1000), Route::Window);
    }

    #[test]
    fn stores_that_no_longer_hit_code_are_let_go() {
        let mut routes = Routes::default();
        routes.learn(5, 1, Route::Bounced, true);
        routes.learn(5, 2, Route::Bounced, false);
        assert!((1..PATIENCE).all(|_| !routes.stored(5, 1, false)));
        assert!(!routes.stored(5, 1, true));
        assert!((1..PATIENCE).all(|_| !routes.stored(5, 1, false)));
        assert!(routes.stored(5, 1, false));
        assert_eq!(routes.of_frame(5)(1), Route::Window);
        assert!((0..2 * PATIENCE).all(|_| !routes.stored(5, 2, false)));
    }

    #[test]
    fn only_writes_in_quick_succession_count() {
        let mut routes = Routes::default();
        let start = Instant::now();
        let mut often = |frame, now| {
            routes.note_write(frame, now);
            routes.is_written_often(frame, now)
        };
        assert!((0..100).all(|i| !often(1, start + COOLING * i)));
        assert!((0..TOLERANCE).all(|_| !often(2, start)));
        assert!(often(2, start));
        assert!(!routes.is_written_often(2, start + COOLING));
        assert!(!routes.is_written_often(3, start));
    }

    #[test]
    fn lessons_do_not_pile_up() {
        let mut routes = Routes::default();
        for eip in 0..MOST as u32 + 10 {
            routes.learn(eip, eip, Route::Bounced, false);
        }
        assert_eq!(routes.count, 10);
    }
}
