//! The page tables a guest wakes up with: all of its memory in one piece, at `PAGE_OFFSET`.
//!
//! A kernel lives at high virtual addresses from its first instruction, so tables that
//! say so must exist before it runs. These are the simplest there are: page *n* of memory appears
//! *n* pages above `PAGE_OFFSET`. The kernel builds better ones when it knows its way around, and
//! the Host counts the first switch to them as the end of its childhood. Kernels since 2.6.38 make even these themselves.

use crate::memory_size::MemorySize;
use lguest_switcher::{GuestPhys, GuestVirt, PAGE_SIZE};

/// Entries in a page table, and in a page directory (SDM volume 3, section "32-Bit Paging").
const ENTRIES: u32 = 1024;

/// Present, writable, and for user mode as well: whether a kernel lets its programs see its memory is for
/// its own tables to say.
const FLAGS: u32 = 0b111;

/// Bytes of virtual addresses above `PAGE_OFFSET` that one page table maps.
const TABLE_REACH: u32 = ENTRIES * PAGE_SIZE;

/// One page directory and, directly below it, the page tables it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinearPageTables {
    directory: GuestPhys,
    tables: GuestPhys,
    mapped: u32,
    page_offset: GuestVirt,
    /// Memory appears where it is, too: kernels that are entered at a physical address need that.
    one_to_one: bool,
}

impl LinearPageTables {
    /// How many pages of memory can be mapped: all of them, or as many as there are virtual
    /// addresses between `page_offset` (not 0) and 4 GiB.
    #[must_use]
    pub fn reach(memory: MemorySize, page_offset: GuestVirt) -> u32 {
        memory.pages().min(page_offset.0.wrapping_neg() / PAGE_SIZE)
    }

    /// The bytes that directory and tables take for so many mapped pages.
    #[must_use]
    pub fn size(mapped: u32) -> u32 {
        (1 + mapped.div_ceil(ENTRIES)) * PAGE_SIZE
    }

    /// Places the directory in the page that ends at `top`, and the tables below. `top` is
    /// page-aligned and at least [`LinearPageTables::size`]; `mapped` is at most
    /// [`LinearPageTables::reach`].
    #[must_use]
    pub fn below(top: GuestPhys, mapped: u32, page_offset: GuestVirt, one_to_one: bool) -> Self {
        Self {
            directory: GuestPhys(top.0 - PAGE_SIZE),
            tables: GuestPhys(top.0 - Self::size(mapped)),
            mapped,
            page_offset,
            one_to_one,
        }
    }

    /// Where the directory lies.
    #[must_use]
    pub fn directory(&self) -> GuestPhys {
        self.directory
    }

    /// Each page to be written, and where.
    pub fn pages(&self) -> impl Iterator<Item = (GuestPhys, Vec<u8>)> {
        let count = self.mapped.div_ceil(ENTRIES);
        let table = |n: u32| GuestPhys(self.tables.0 + n * PAGE_SIZE);
        let tables = (0..count).map(move |n| {
            let entry = move |i| {
                let page = n * ENTRIES + i;
                if page < self.mapped { (page * PAGE_SIZE) | FLAGS } else { 0 }
            };
            (table(n), page_of(entry))
        });
        let first = self.page_offset.0 / TABLE_REACH;
        let directory = page_of(move |i| match i.checked_sub(first) {
            Some(n) if n < count => table(n).0 | FLAGS,
            None if self.one_to_one && i < count => table(i).0 | FLAGS,
            _ => 0,
        });
        tables.chain([(self.directory, directory)])
    }
}

/// A page of 1024 entries.
fn page_of(entry: impl Fn(u32) -> u32) -> Vec<u8> {
    (0..ENTRIES).flat_map(|i| entry(i).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Walks the tables as the processor does.
    fn walk(tables: &LinearPageTables, virt: u32) -> Option<u32> {
        let pages: HashMap<GuestPhys, Vec<u8>> = tables.pages().collect();
        let entry = |page: u32, index: u32| {
            let bytes = &pages[&GuestPhys(page)][index as usize * 4..][..4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let top = entry(tables.directory().0, virt >> 22);
        if top == 0 {
            return None;
        }
        assert_eq!(top & 0xfff, 7);
        let leaf = entry(top & !0xfff, (virt >> 12) & 0x3ff);
        if leaf == 0 {
            return None;
        }
        assert_eq!(leaf & 0xfff, 7);
        Some((leaf & !0xfff) | (virt & 0xfff))
    }

    fn tables(memory: u32, page_offset: u32) -> LinearPageTables {
        tables_with(memory, page_offset, false)
    }

    fn tables_with(memory: u32, page_offset: u32, one_to_one: bool) -> LinearPageTables {
        let memory = MemorySize::from_bytes(u64::from(memory)).unwrap();
        let page_offset = GuestVirt(page_offset);
        let mapped = LinearPageTables::reach(memory, page_offset);
        LinearPageTables::below(GuestPhys(memory.bytes()), mapped, page_offset, one_to_one)
    }

    #[test]
    fn they_lie_at_the_top_with_the_directory_uppermost() {
        let tables = tables(64 << 20, 0xc000_0000);
        assert_eq!(tables.directory(), GuestPhys((64 << 20) - 4096));
        let places: Vec<u32> = tables.pages().map(|(at, _)| at.0).collect();
        assert_eq!(places.len(), 17, "sixteen tables for 64 MiB, and the directory");
        assert!(places.windows(2).all(|pair| pair[0] + 4096 == pair[1]));
        assert_eq!(places.last(), Some(&tables.directory().0));
    }

    #[test]
    fn memory_beyond_the_virtual_addresses_is_left_out() {
        let tables = tables(2 << 30, 0xc000_0000);
        assert_eq!(walk(&tables, 0xffff_ffff), Some(0x3fff_ffff));
        assert_eq!(tables.pages().count(), 257);
    }

    #[test]
    fn memory_may_appear_where_it_is_too() {
        let tables = tables_with(64 << 20, 0xc000_0000, true);
        for phys in [0, 0x12_3456, 0x3ff_ffff] {
            assert_eq!(walk(&tables, phys), Some(phys));
            assert_eq!(walk(&tables, 0xc000_0000 + phys), Some(phys));
        }
        assert_eq!(walk(&tables, 0x400_0000), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_page_is_found_at_page_offset(
            pages in MemorySize::MIN.pages()..100_000,
            offset in 1u32..256,
            virt in any::<u32>(),
        ) {
            let (memory, offset) = (pages * 4096, offset << 24);
            let tables = tables(memory, offset);
            let expected = virt.checked_sub(offset).filter(|&phys| phys < memory);
            prop_assert_eq!(walk(&tables, virt), expected);
            prop_assert_eq!(walk(&tables, offset), Some(0));
        }
    }
}
