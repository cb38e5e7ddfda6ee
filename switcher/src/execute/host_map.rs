//! From a place in the code cache back to the guest instruction it belongs to.
//!
//! Faults and preemption both ask: the processor was stopped at this host address; which guest
//! instruction is that, and is it exactly between two? Units are placed one behind the other, so
//! their points come in ascending order and a binary search answers. The signal handler reads
//! the map too, which is safe, because nobody changes it while translated code runs.

use crate::translate::Point;

/// A point, and the page of code it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Cache offset where the guest instruction begins.
    pub(crate) host: u32,
    /// The guest instruction.
    pub(crate) eip: u32,
    /// Its owner, in the words of whoever keeps the code.
    pub(crate) owner: u32,
    /// Its length.
    pub(crate) len: u8,
    /// A repeated string instruction, which may be left anywhere.
    pub(crate) rep: bool,
    /// In place of a call: who has been elsewhere comes back to the code for `eip`.
    pub(crate) inlined: bool,
    /// What to add to r12d for the guest's esp.
    pub(crate) moved: i8,
}

/// All points in the code cache, in ascending order of host offset.
#[derive(Default)]
pub(crate) struct HostMap {
    places: Vec<Place>,
}

impl HostMap {
    /// Adds the points of a unit that was placed behind all earlier ones.
    pub(crate) fn append(&mut self, points: &[Point], owner: u32) {
        debug_assert!(points.is_sorted_by_key(|point| point.host));
        debug_assert!(
            self.places.last().is_none_or(|last| points.iter().all(|point| last.host < point.host))
        );
        self.places.extend(points.iter().map(|point| Place {
            host: point.host,
            eip: point.eip,
            owner,
            len: point.len,
            rep: point.rep,
            inlined: point.inlined,
            moved: point.moved,
        }));
    }

    /// Forgets everything: the cache was emptied.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
    }

    /// The guest instruction whose code contains cache offset `host`.
    pub(crate) fn find(&self, host: u32) -> Option<&Place> {
        let behind = self.places.partition_point(|place| place.host <= host);
        self.places.get(behind.checked_sub(1)?)
    }

    /// The guest instruction at which translated code that stands at cache offset `host` may be left right
    /// away, if it may.
    pub(crate) fn leave_at(&self, host: u32) -> Option<&Place> {
        self.find(host).filter(|place| place.host == host || place.rep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_boundaries_and_repeated_strings_may_be_left() {
        let point = |host, eip, rep| Point {
            host,
            eip,
            len: 1,
            entry: true,
            rep,
            moved: 0,
            inlined: false,
        };
        let mut map = HostMap::default();
        map.append(&[point(0x100, 1, false), point(0x108, 2, true), point(0x110, 3, false)], 7);
        map.append(&[point(0x120, 9, false)], 8);
        let left = [0xff, 0x100, 0x101, 0x10c, 0x110, 0x111]
            .map(|host| map.leave_at(host).map(|place| place.eip));
        assert_eq!(left, [None, Some(1), None, Some(2), Some(3), None]);
        assert_eq!(map.find(0x11f).map(|place| (place.eip, place.owner)), Some((3, 7)));
        map.clear();
        assert_eq!(map.find(0x120), None);
    }
}
