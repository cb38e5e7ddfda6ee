//! Where indirect branches find their translated targets.
//!
//! A return or a jump through a register would have to ask Rust where its target was translated. Instead
//! there is a *flat table*: an array with four bytes for each of the 2³² guest addresses, holding
//! offsets from the start of the code cache. Sixteen gigabytes, but only of addresses: the
//! kernel puts memory only behind the pages that are written to. Looking a target up takes one load
//! and no compare, so the guest's flags survive.
//!
//! An entry is 0 until somebody fills it, and offset 0 of the code cache is the stub that asks
//! Rust. **A table checks the address and nothing else**, so each world (the kernel's, each user
//! address space's) has its own, and worlds with odd segments get the [`JumpTable::barren`] one.

use super::SetupError;
use super::reservation::{Reservation, Shape, pointer};
use crate::address::{OVERHANG, PAGE_SIZE};
use rustix::mm::{Advice, ProtFlags, madvise};
use std::ptr::{with_exposed_provenance_mut, write_bytes};

/// Bytes of a table: an entry for each guest address.
const BYTES: u64 = 4 << 32;
/// Bytes of a host page.
const HOST_PAGE: u64 = 4096;
/// Host pages that hold the entries of one guest page.
const PARTS: u64 = 4;
/// Host pages a table may keep memory behind: a hostile guest that jumps everywhere gets 64 MiB.
const BUDGET: u32 = 16_384;

/// One world's table.
pub(crate) struct JumpTable {
    space: Reservation,
    /// A bit for each host page: it may hold something else than zeros.
    filled: Vec<u64>,
    /// Fills of empty host pages since memory was last given back; at least the pages in use.
    touched: u32,
}

impl JumpTable {
    /// An empty table.
    pub(crate) fn new() -> Result<Self, SetupError> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self {
            space: reserve(rights)?,
            filled: vec![0; (BYTES / HOST_PAGE / 64) as usize],
            touched: 0,
        })
    }

    /// A table that stays empty, so that every lookup asks Rust.
    pub(crate) fn barren() -> Result<Self, SetupError> {
        Ok(Self { space: reserve(ProtFlags::READ)?, filled: Vec::new(), touched: BUDGET })
    }

    /// Address of entry 0.
    pub(crate) fn base(&self) -> u64 {
        self.space.base()
    }

    /// From now on branches to `eip` go to `offset` in the code cache.
    pub(crate) fn set(&mut self, eip: u32, offset: u32) {
        let part = u64::from(eip) * 4 / HOST_PAGE;
        let Some(word) = self.filled.get_mut((part / 64) as usize) else {
            return;
        };
        let bit = 1 << (part % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.touched += 1;
        }
        // SAFETY: entry `eip` lies inside the reservation, which is mapped for writing (a barren table
        // has returned above); translated code reads it, but not while Rust runs.
        unsafe { self.entry(eip).write_volatile(offset) };
        if self.touched > BUDGET {
            self.clear();
        }
    }

    /// Forgets the targets in one guest page.
    pub(crate) fn clear_page(&mut self, page: u32) {
        for part in u64::from(page) * PARTS..(u64::from(page) + 1) * PARTS {
            let Some(word) = self.filled.get_mut((part / 64) as usize) else {
                return;
            };
            let bit = 1 << (part % 64);
            if *word & bit != 0 {
                *word &= !bit;
                let start = self.entry((part * HOST_PAGE / 4) as u32);
                // SAFETY: a page inside the reservation, mapped for writing, as in `set`.
                unsafe { write_bytes(start.cast::<u8>(), 0, HOST_PAGE as usize) };
            }
        }
    }

    /// Forgets the targets in the last bytes of one guest page, where an instruction may run over its end.
    pub(crate) fn clear_end(&mut self, page: u32) {
        let part = (u64::from(page) + 1) * PARTS - 1;
        let bit = 1 << (part % 64);
        if self.filled.get((part / 64) as usize).is_some_and(|word| word & bit != 0) {
            let start = self.entry((page + 1).wrapping_mul(PAGE_SIZE).wrapping_sub(OVERHANG));
            // SAFETY: entries of a page inside the reservation, mapped for writing, as in `set`.
            unsafe { write_bytes(start, 0, OVERHANG as usize) };
        }
    }

    /// Forgets all targets, and gives the memory back.
    pub(crate) fn clear(&mut self) {
        if self.touched > 0 && !self.filled.is_empty() {
            self.filled.fill(0);
            self.touched = 0;
            // SAFETY: private anonymous memory of the reservation: it reads as zeros afterwards.
            let done =
                unsafe { madvise(pointer(self.base()), BYTES as usize, Advice::LinuxDontNeed) };
            debug_assert!(done.is_ok());
        }
    }

    fn entry(&self, eip: u32) -> *mut u32 {
        with_exposed_provenance_mut((self.base() + u64::from(eip) * 4) as usize)
    }
}

fn reserve(rights: ProtFlags) -> Result<Reservation, SetupError> {
    let purpose = "a table of indirect-jump targets";
    Reservation::new(&Shape { purpose, bytes: BYTES, align: HOST_PAGE, guard: 0, rights })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(table: &JumpTable, eip: u32) -> u32 {
        // SAFETY: inside the reservation, which is readable.
        unsafe { table.entry(eip).read_volatile() }
    }

    #[test]
    fn entries_live_until_their_page_is_cleared() {
        let mut table = JumpTable::new().unwrap();
        table.set(0, 1);
        table.set(0x1000, 2);
        table.set(0x1fff, 3);
        table.set(u32::MAX, 4);
        table.clear_page(1);
        assert_eq!([0, 0x1000, 0x1fff, u32::MAX].map(|eip| get(&table, eip)), [1, 0, 0, 4]);
        table.set(0x1ff1, 5);
        table.set(0x1ff2, 6);
        table.clear_end(1);
        assert_eq!([0x1ff1, 0x1ff2].map(|eip| get(&table, eip)), [5, 0]);
        table.clear_end(0xf_ffff);
        assert_eq!(get(&table, u32::MAX), 0);
        table.clear();
        assert_eq!([0, u32::MAX].map(|eip| get(&table, eip)), [0, 0]);
    }

    #[test]
    fn a_guest_that_jumps_everywhere_stays_within_the_budget() {
        let mut table = JumpTable::new().unwrap();
        for part in 0..BUDGET + 10 {
            table.set(part * 1024, 7);
        }
        assert_eq!(get(&table, 0), 0, "given back on the way");
        assert_eq!(get(&table, (BUDGET + 9) * 1024), 7);
        assert!(table.touched <= 10);
    }

    #[test]
    fn a_barren_table_ignores_what_it_is_told() {
        let mut table = JumpTable::barren().unwrap();
        table.set(5, 9);
        table.clear_page(0);
        table.clear();
        assert_eq!(get(&table, 5), 0);
    }
}
