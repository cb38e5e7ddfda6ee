//! How many mappings this process has made for its guests.
//!
//! Linux allows a process some 65,000 mappings (`vm.max_map_count`), and each scattered page in a window
//! costs two: one for the page and one for the rest of the reservation it splits. All guests of
//! a process share that allowance, so this count, with the signal handlers, is the only state that
//! belongs to the process rather than to a virtual CPU.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Mappings of all windows in the process.
static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// Mappings that the rest of the program may need: libraries, heaps, stacks.
const RESERVE: usize = 4096;

/// The default of `vm.max_map_count`, where it can't be read.
const USUAL_LIMIT: usize = 65_530;

/// How many mappings all windows of the process may have together.
pub(crate) fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let limit = text.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_LIMIT);
        limit.saturating_sub(RESERVE).max(limit / 2)
    })
}

/// Mappings there are now.
pub(crate) fn count() -> usize {
    MAPPINGS.load(Ordering::Relaxed)
}

/// Notes that a window went from `before` mappings to `after`.
pub(crate) fn changed(before: usize, after: usize) {
    if after >= before {
        MAPPINGS.fetch_add(after - before, Ordering::Relaxed);
    } else {
        MAPPINGS.fetch_sub(before - after, Ordering::Relaxed);
    }
}
