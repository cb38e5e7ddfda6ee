//! Numbers that are hard to guess, as far as a guest has any: stirred from clocks.
//!
//! There is no source of true randomness here, so nothing secret should be made from these. They serve hash
//! tables and the guards that libc puts on stacks.

use crate::interrupt_lock::InterruptLock;
use lguest_guest::machine;

static STATE: InterruptLock<u64> = InterruptLock::new(0);

/// Fills a buffer.
pub(crate) fn fill(buffer: &mut [u8]) {
    let clocks = machine().now() ^ u64::from(machine().wallclock()) << 32;
    STATE.with(|state| {
        *state ^= clocks;
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&next(state).to_le_bytes()[..piece.len()]);
        }
    });
}

/// The next number of the generator SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
