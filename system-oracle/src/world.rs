//! The world that cases start from: where everything is in physical memory, which is where it is in linear addresses too.
//!
//! There is flat code and data for each level, a TSS with a stack for each inner one, an empty LDT, and an IDT whose gates
//! all lead to code of level 0. Everything is mapped for everybody. A case takes this, and changes what it is about.

use crate::descriptors::{self as d, kind, system};
use crate::state::{MEMORY, PAGE, Segment, State, Table, flag, gpr, sreg};

/// The GDT.
pub const GDT: u32 = 0x1000;
/// Its entries.
pub const GDT_ENTRIES: u32 = 64;
/// The LDT.
pub const LDT: u32 = 0x2000;
/// Its entries.
pub const LDT_ENTRIES: u32 = 16;
/// The IDT, 256 entries.
pub const IDT: u32 = 0x3000;
/// The TSS.
pub const TSS: u32 = 0x4000;
/// Its limit: all of the fixed part, and an I/O bitmap for ports below 0x400 with its closing byte.
pub const TSS_LIMIT: u32 = TSS_BITMAP as u32 + 0x400 / 8;
/// Offset of the I/O bitmap in the TSS.
pub const TSS_BITMAP: u16 = 0x68;
/// The page directory.
pub const DIRECTORY: u32 = 0x6000;
/// The page table that maps all of memory to itself.
pub const IDENTITY: u32 = 0x7000;
/// A page table that maps pages from [`HIGH`] on.
pub const HIGH_TABLE: u32 = 0x8000;
/// Where [`HIGH_TABLE`] shows memory again.
pub const HIGH: u32 = 0xc000_0000;
/// Where a page of 4 MiB shows memory again, with CR4.PSE.
pub const BIG: u32 = 0x0040_0000;
/// Pages of code, full of bytes that are no instruction, wherever one begins.
pub const CODE: u32 = 0x1_0000;
/// Their number.
pub const CODE_PAGES: u32 = 8;
/// Where handlers of interrupts are, 16 bytes each.
pub const HANDLERS: u32 = CODE + 4 * PAGE;
/// A stack page for each level; stacks start in the middle.
pub const STACKS: u32 = 0x2_0000;
/// Where stacks for entries to inner levels start in those pages.
pub const ENTRY_STACK: u32 = 0xc00;
/// Pages of data.
pub const DATA: u32 = 0x2_8000;
/// Their number.
pub const DATA_PAGES: u32 = 16;

/// Flat code of a level.
pub const fn code(level: u8) -> u16 {
    (0x08 + 0x10 * level as u16) | level as u16
}

/// Flat data of a level.
pub const fn data(level: u8) -> u16 {
    (0x10 + 0x10 * level as u16) | level as u16
}

/// The TSS's selector.
pub const TSS_SELECTOR: u16 = 0x48;
/// The LDT's selector.
pub const LDT_SELECTOR: u16 = 0x50;
/// The first selector that a case may use as it likes.
pub const FREE: u16 = 0x58;

/// A page table's entry: present, writable, for everybody, accessed, dirty.
pub const OPEN: u32 = 0x67;

/// Where the handler of a vector is.
#[must_use]
pub const fn handler(vector: u8) -> u32 {
    HANDLERS + 16 * vector as u32
}

/// Where the stack of a level starts.
#[must_use]
pub const fn stack(level: u8) -> u32 {
    STACKS + level as u32 * PAGE + PAGE / 2
}

/// Where the stack starts on which an inner level is entered.
#[must_use]
pub const fn entry_stack(level: u8) -> u32 {
    STACKS + level as u32 * PAGE + ENTRY_STACK
}

/// Where the GDT has a selector's descriptor.
#[must_use]
pub const fn in_gdt(selector: u16) -> u32 {
    GDT + (selector & !7) as u32
}

/// The world, and a processor at `level` in it about to execute the first byte of [`CODE`], with paging.
#[must_use]
pub fn at_level(level: u8) -> State {
    let mut state = State {
        cr0: 0x8000_0011,
        cr3: DIRECTORY,
        eip: CODE,
        eflags: flag::IF | 2,
        ..State::default()
    };
    fill_memory(&mut state);
    fill_descriptors(&mut state);
    fill_page_tables(&mut state);
    for number in [sreg::ES, sreg::SS, sreg::DS, sreg::FS, sreg::GS] {
        state.segments[number] = loaded(&state, data(level));
    }
    state.segments[sreg::CS] = loaded(&state, code(level));
    state.gpr[gpr::ESP] = stack(level);
    state.gdtr = Table { base: GDT, limit: (8 * GDT_ENTRIES - 1) as u16 };
    state.idtr = Table { base: IDT, limit: 8 * 256 - 1 };
    state.ldtr = loaded(&state, LDT_SELECTOR);
    state.tr = loaded(&state, TSS_SELECTOR);
    state
}

/// A segment register as it is once `selector` of the GDT has been loaded.
#[must_use]
pub fn loaded(state: &State, selector: u16) -> Segment {
    let at = in_gdt(selector);
    let (low, high) = (state.dword(at), state.dword(at + 4));
    Segment::from_descriptor(selector, u64::from(high) << 32 | u64::from(low))
}

fn fill_memory(state: &mut State) {
    const NOTHING: u8 = 0xc5;
    let code = CODE as usize..(CODE + CODE_PAGES * PAGE) as usize;
    state.memory[code].fill(NOTHING);
}

fn fill_descriptors(state: &mut State) {
    for level in 0..4 {
        state.store_descriptor(in_gdt(code(level)), d::flat(kind::CODE, level));
        state.store_descriptor(in_gdt(data(level)), d::flat(kind::DATA, level));
    }
    let task = d::segment(TSS, TSS_LIMIT, d::PRESENT | system::TSS_BUSY, 0);
    state.store_descriptor(in_gdt(TSS_SELECTOR), task);
    let table = d::segment(LDT, 8 * LDT_ENTRIES - 1, d::PRESENT | system::LDT, 0);
    state.store_descriptor(in_gdt(LDT_SELECTOR), table);
    for vector in 0..=255 {
        let gate = d::open_gate(system::INTERRUPT_GATE, 0, code(0), handler(vector));
        state.store_descriptor(IDT + 8 * u32::from(vector), gate);
    }
    for level in 0..3 {
        let at = TSS + 4 + 8 * u32::from(level);
        state.store_dword(at, entry_stack(level));
        state.store_dword(at + 4, data(level).into());
    }
    state.store_dword(TSS + 0x64, u32::from(TSS_BITMAP) << 16);
    // All ports are closed.
    let bitmap = (TSS + u32::from(TSS_BITMAP)) as usize..=(TSS + TSS_LIMIT) as usize;
    state.memory[bitmap].fill(0xff);
}

fn fill_page_tables(state: &mut State) {
    state.store_dword(DIRECTORY, IDENTITY | OPEN);
    state.store_dword(DIRECTORY + (BIG >> 20), OPEN | 0x80);
    state.store_dword(DIRECTORY + (HIGH >> 20), HIGH_TABLE | OPEN);
    for page in 0..MEMORY as u32 / PAGE {
        state.store_dword(IDENTITY + 4 * page, (page * PAGE) | OPEN);
        state.store_dword(HIGH_TABLE + 4 * page, (page * PAGE) | OPEN);
    }
}
