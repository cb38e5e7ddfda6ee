//! The entries of page tables that an address leads through, as plainly as possible.

use crate::state::{MEMORY, State};

const PAGING: u32 = 1 << 31;
const PSE: u32 = 1 << 4;
const PRESENT: u32 = 1;
const BIG: u32 = 0x80;
const ACCESSED: u32 = 0x20;

/// Where the entries are that are met on the way to a linear address, one or two.
#[must_use]
pub fn entries(state: &State, address: u32) -> Vec<u32> {
    let fits = |at: u32| (at as usize) < MEMORY - 3;
    let directory = (state.cr3 & !0xfff) + (address >> 22) * 4;
    if state.cr0 & PAGING == 0 || !fits(directory) {
        return Vec::new();
    }
    let entry = state.dword(directory);
    let is_big = entry & BIG != 0 && state.cr4 & PSE != 0;
    let table = (entry & !0xfff) + (address >> 12 & 0x3ff) * 4;
    if entry & PRESENT == 0 || is_big || !fits(table) {
        return vec![directory];
    }
    vec![directory, table]
}

/// Clears the accessed bits on the way to an address.
pub(crate) fn clear_accessed(state: &mut State, address: u32) {
    for at in entries(state, address) {
        let entry = state.dword(at);
        state.store_dword(at, entry & !ACCESSED);
    }
}
