//! The guest's descriptor tables.
//!
//! A first-generation guest hands its GDT over by hypercall; the Host keeps a copy and *fixes it
//! up*, since level 0 isn't the guest's: what it meant for level 0 becomes level 1. Some entries
//! are the Host's own and stay empty. Which descriptor a selector names is answered here; what
//! loading it means is the Switcher's business.
//!
//! A kernel that executes `lgdt` or `lldt` itself gets what a bare PC would give it: from then on
//! descriptors are read from its table in memory, at each load.

use lguest_abi::segments::{
    FLAT_KERNEL_CODE, FLAT_KERNEL_DATA, GDT_ENTRIES, KERNEL_CODE_ENTRY, KERNEL_DATA_ENTRY,
    RESERVED_ENTRIES, TLS_FIRST,
};
use lguest_processor::{SystemRegisters, TableRegister};
use lguest_switcher::address::GuestVirt;

/// Code or data, not a system descriptor (bit 44, S).
const CODE_OR_DATA: u64 = 1 << 44;
/// The level, two bits.
const LEVEL: u64 = 3 << 45;
/// Level 1.
const LEVEL_1: u64 = 1 << 45;
/// The segment has been used.
const ACCESSED: u64 = 1 << 40;
/// Selector bit 2: the LDT.
const TABLE_INDICATOR: u16 = 4;

/// Where a descriptor is to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// It is this, fixed up already.
    Known(u64),
    /// In the guest's memory, to be raised when read.
    Memory(GuestVirt),
    /// Beyond the table.
    Nowhere,
}

/// All that the guest has said about segments.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    gdt: [u64; GDT_ENTRIES as usize],
    /// The table in memory counts, since the guest loaded it by `lgdt`.
    in_memory: bool,
    changes: u32,
}

impl Segments {
    /// The tables that a guest starts with: flat kernel code and data.
    pub(crate) fn new() -> Self {
        let mut gdt = [0; GDT_ENTRIES as usize];
        gdt[KERNEL_CODE_ENTRY as usize] = FLAT_KERNEL_CODE;
        gdt[KERNEL_DATA_ENTRY as usize] = FLAT_KERNEL_DATA;
        Self { gdt, in_memory: false, changes: 0 }
    }

    /// LOAD_GDT: takes over the entries of a table.
    pub(crate) fn load_gdt(&mut self, entries: &[u64]) {
        self.set_entries(0, entries);
        self.in_memory = false;
    }

    /// LOAD_TLS: the three entries for thread-local storage.
    pub(crate) fn load_tls(&mut self, entries: &[u64]) {
        self.set_entries(TLS_FIRST, entries);
    }

    /// LOAD_GDT_ENTRY: one entry. Says whether there is room for it.
    pub(crate) fn load_entry(&mut self, index: u32, entry: u64) -> bool {
        if index >= GDT_ENTRIES {
            return false;
        }
        self.set_entries(index, &[entry]);
        self.in_memory = false;
        true
    }

    /// Counts what the guest has said: while it stays, so does where each descriptor is, and which it is unless that's in memory.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    fn set_entries(&mut self, first: u32, entries: &[u64]) {
        self.changes = self.changes.wrapping_add(1);
        for (index, entry) in (first..GDT_ENTRIES).zip(entries) {
            if !RESERVED_ENTRIES.contains(&index) {
                self.gdt[index as usize] = fix_up(*entry);
            }
        }
    }

    /// `lgdt`: from now on the table in memory counts.
    pub(crate) fn use_table_in_memory(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.in_memory = true;
    }

    /// The table in memory is what counts.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Where the descriptor that `selector` names is.
    pub(crate) fn find(&self, selector: u16, registers: &SystemRegisters) -> Place {
        let index = u32::from(selector >> 3);
        let in_table =
            |table: &TableRegister| table.entry(index).map_or(Place::Nowhere, Place::Memory);
        if selector & TABLE_INDICATOR != 0 {
            let ldt = &registers.ldt;
            return if ldt.is_null() { Place::Nowhere } else { in_table(&ldt.table) };
        }
        if self.in_memory {
            return in_table(&registers.gdt);
        }
        self.gdt.get(index as usize).map_or(Place::Nowhere, |entry| Place::Known(*entry))
    }
}

/// A descriptor as the guest's level 1 needs it: code and data of level 0 become level 1. Anything
/// else stays what it is, and faults when it is loaded as a segment.
pub(crate) const fn raise(descriptor: u64) -> u64 {
    if descriptor & (CODE_OR_DATA | LEVEL) == CODE_OR_DATA {
        descriptor | LEVEL_1
    } else {
        descriptor
    }
}

/// The same, for a table that was handed over: there is none whose accessed bits the guest could look at, so all are set.
const fn fix_up(descriptor: u64) -> u64 {
    let accessed = if descriptor & CODE_OR_DATA == 0 { 0 } else { ACCESSED };
    raise(descriptor) | accessed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_0_becomes_level_1_and_accessed() {
        assert_eq!(fix_up(0x00cf_9a00_0000_ffff), 0x00cf_bb00_0000_ffff);
        assert_eq!(fix_up(0x00cf_9200_0000_ffff), 0x00cf_b300_0000_ffff);
    }

    #[test]
    fn other_levels_stay() {
        assert_eq!(fix_up(0x00cf_fa00_0000_ffff), 0x00cf_fb00_0000_ffff);
    }

    #[test]
    fn system_descriptors_stay_as_they_are() {
        for descriptor in [0, 0x0000_8200_0000_0017, 0x0000_8900_0000_0067] {
            assert_eq!(fix_up(descriptor), descriptor);
        }
    }

    #[test]
    fn the_hosts_own_entries_are_ignored() {
        let (mut segments, registers) = (Segments::new(), SystemRegisters::new(0, 0));
        segments.load_gdt(&[FLAT_KERNEL_DATA; GDT_ENTRIES as usize]);
        for index in RESERVED_ENTRIES {
            assert_eq!(segments.find(index as u16 * 8, &registers), Place::Known(0));
        }
        assert_eq!(segments.find(9 * 8, &registers), Place::Known(FLAT_KERNEL_DATA));
        assert_eq!(segments.find(32 * 8, &registers), Place::Nowhere);
    }

    #[test]
    fn without_an_ldt_its_selectors_name_nothing() {
        let registers = SystemRegisters::new(0, 0);
        assert_eq!(Segments::new().find(0x0f, &registers), Place::Nowhere);
    }
}
