//! The small world in which both processors are compared: its pages, its segments, and what is in
//! them to begin with.
//!
//! Every edge that matters is there: a page that is absent, read-only or the last below 4 GiB next to
//! one that isn't, the end of 16-bit addresses, segments with bases and limits.

use crate::layout::{Layout, PAGE, Region};
use crate::random::Random;
use crate::state::DATA_SELECTOR;
use std::fs;

/// Where code starts: two pages of breakpoints, writable.
pub const CODE: u32 = 0x1000_0000;
/// Two writable pages, between an absent one and [`FIXED`].
pub const DATA: u32 = 0x1000_4000;
/// A read-only page; behind it nothing.
pub const FIXED: u32 = 0x1000_6000;
/// A writable page by itself.
pub const STACK: u32 = 0x1000_a000;
/// The last two pages below 4 GiB.
pub const TOP: u32 = 0xffff_e000;
/// The last two pages that 16-bit addresses reach: one of breakpoints, one of data.
pub const LOW: u32 = 0x0000_e000;

/// Bytes of code pages.
pub const CODE_BYTES: u32 = 2 * PAGE;
/// int3: what code pages are filled with, so that every way out of the code under test ends.
pub const BREAKPOINT: u8 = 0xcc;

/// The local descriptor table: raw descriptors (SDM volume 3, section "Segment Descriptors"),
/// level 3, accessed.
pub const LOCAL: [u64; 8] = [
    0x00cf_f300_0000_ffff, // flat
    0x10cf_f300_4000_ffff, // from DATA on, 4 GiB
    0x1040_f300_4000_0fff, // the first page of DATA
    0x10cf_f100_4000_ffff, // from DATA on, read-only
    0x1040_f700_4000_0fff, // expand-down: all but the first page behind DATA
    0x00cf_7300_0000_ffff, // not present
    0x00cf_fb00_0000_ffff, // flat code
    0x00cf_f900_0000_ffff, // flat code that can't be read
];

/// Linux's global descriptor table, entries 0 to 6: kernel code (32 and 64 bits), kernel data,
/// 32-bit user code, user data, 64-bit user code (`arch/x86/include/asm/segment.h`).
const GLOBAL: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
/// Entries in that table (its limit is 127).
const GLOBAL_ENTRIES: u16 = 16;

/// The pages and segments, and the bytes memory starts with.
pub struct World {
    /// Where memory is.
    pub layout: Layout,
    /// Whether there is memory that 16-bit addresses reach.
    pub has_low: bool,
    /// What memory holds before a case puts its own bytes there.
    pub memory: Vec<u8>,
}

impl World {
    /// The world that `random` makes; its low pages only if the system lets processes have them.
    ///
    /// # Panics
    /// Never: the layout is fixed.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let region = |start, pages, writable| Region { start, pages, writable };
        let mut regions = vec![
            region(CODE, 2, true),
            region(DATA, 2, true),
            region(FIXED, 1, false),
            region(STACK, 1, true),
            region(TOP, 2, true),
        ];
        let has_low = lowest_address() <= LOW;
        if has_low {
            regions.push(region(LOW, 2, true));
        }
        let layout = Layout::new(&regions).expect("a valid layout").with_segments(&LOCAL);
        let mut memory: Vec<u8> = (0..layout.len()).map(|_| random.byte()).collect();
        memory[..CODE_BYTES as usize].fill(BREAKPOINT);
        if let Some((_, offset)) = layout.locate(LOW) {
            memory[offset..offset + PAGE as usize].fill(BREAKPOINT);
        }
        Self { layout, has_low, memory }
    }

    /// The raw descriptor of a selector; `None` beyond its table.
    #[must_use]
    pub fn descriptor(selector: u16) -> Option<u64> {
        let index = selector >> 3;
        if selector & 4 != 0 {
            return LOCAL.get(usize::from(index)).copied();
        }
        let known = GLOBAL.get(usize::from(index)).copied();
        known.or((index < GLOBAL_ENTRIES).then_some(0))
    }

    /// A selector worth loading: valid, null, forbidden, absent, or beyond its table. Never one of
    /// the entries that Linux keeps for itself, nor its 64-bit code segment, which would end
    /// 32-bit mode.
    pub fn any_selector(random: &mut Random) -> u16 {
        let global = [0, 1, 2, 3, 0x08, 0x0b, 0x10, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x2b, 0x63, 0x80];
        match random.below(4) {
            0 => random.pick(&global),
            1 => random.pick(&[0, 0x23, DATA_SELECTOR]),
            _ => (random.below(9) as u16) << 3 | 4 | random.pick(&[3, 3, 3, 0]),
        }
    }

    /// A selector that a data segment register can hold; mostly the flat one.
    pub fn data_selector(random: &mut Random) -> u16 {
        if random.one_in(2) { DATA_SELECTOR } else { Layout::selector(random.below(5) as usize) }
    }
}

/// Where a process may have memory at the earliest (`vm.mmap_min_addr`). Debian says 65536.
fn lowest_address() -> u32 {
    let text = fs::read_to_string("/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    text.trim().parse().unwrap_or(0x10000)
}
