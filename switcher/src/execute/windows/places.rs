//! From frames back to the pages that show them.

use super::{Record, Slot};
use std::collections::HashMap;

/// Where a page is: its window and its number in one word.
pub(super) fn place(slot: Slot, page: u32) -> u32 {
    u32::from(slot.0) << 20 | page
}

/// For each frame the pages that show it. Most are shown once or twice.
pub(super) struct Places {
    first: Vec<[u32; 2]>,
    more: HashMap<u32, Vec<u32>>,
}

impl Places {
    /// No place: the last page of the window with the highest number, which is never created.
    const FREE: u32 = u32::MAX;
    const NONE: [u32; 2] = [Self::FREE; 2];
    /// Windows that fit the twelve bits left beside a page number, the last one excepted.
    pub(super) const SLOTS: usize = 4095;

    /// No place yet for any of `frames` frames.
    pub(super) fn new(frames: usize) -> Self {
        Self { first: vec![Self::NONE; frames], more: HashMap::new() }
    }

    /// The page at `place` shows `frame`.
    pub(super) fn add(&mut self, frame: u32, place: u32) {
        let Some(first) = self.first.get_mut(frame as usize) else {
            return;
        };
        match first.iter_mut().find(|there| **there == Self::FREE) {
            Some(free) => *free = place,
            None => self.more.entry(frame).or_default().push(place),
        }
    }

    /// The page at `place` shows `frame` no more.
    pub(super) fn remove(&mut self, frame: u32, place: u32) {
        let Some(first) = self.first.get_mut(frame as usize) else {
            return;
        };
        if let Some(there) = first.iter_mut().find(|there| **there == place) {
            *there = Self::FREE;
        } else if let Some(more) = self.more.get_mut(&frame) {
            more.retain(|&there| there != place);
            if more.is_empty() {
                self.more.remove(&frame);
            }
        }
    }

    /// The page at `place`, which showed `old`, shows `frame` now.
    pub(super) fn replace(&mut self, old: Record, frame: u32, place: u32) {
        if old.is_known() && old.frame() == frame {
            return;
        }
        if old.is_known() {
            self.remove(old.frame(), place);
        }
        self.add(frame, place);
    }

    /// All places of `frame`.
    pub(super) fn of(&self, frame: u32) -> Vec<u32> {
        let first = self.first.get(frame as usize).into_iter().flatten();
        let more = self.more.get(&frame).into_iter().flatten();
        first.chain(more).copied().filter(|&place| place != Self::FREE).collect()
    }
}
