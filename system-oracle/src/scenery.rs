//! Random worlds: descriptors of every type, gates, page tables with every mix of rights, and registers.

use lguest_oracle::random::Random;

use crate::descriptors::{self as d, kind, system};
use crate::state::{MEMORY, PAGE, State, flag, gpr, sreg};
use crate::world::{self, FREE, GDT_ENTRIES, LDT_ENTRIES, OPEN};

/// Bits of page-table entries.
pub mod entry {
    #![allow(missing_docs)]
    pub const PRESENT: u32 = 1;
    pub const WRITABLE: u32 = 2;
    pub const USER: u32 = 4;
    pub const ACCESSED: u32 = 0x20;
    pub const DIRTY: u32 = 0x40;
    pub const GLOBAL: u32 = 0x100;
}

/// Bits of cr4 that a case may start with or set: DE, PSE, PGE, PCE, OSFXSR, OSXMMEXCPT.
pub const CR4_CHOICES: [u32; 6] = [1 << 3, 1 << 4, 1 << 7, 1 << 8, 1 << 9, 1 << 10];
/// Bits of cr0 that may be set beside PE, ET and PG: MP, EM, TS, NE, WP, AM.
pub const CR0_CHOICES: [u32; 6] = [1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 16, 1 << 18];

/// A random world, and a processor in it at a random level.
#[must_use]
pub fn any_world(random: &mut Random) -> State {
    // Much can be done at level 0 alone.
    let level = if random.one_in(2) { 0 } else { random.below(4) as u8 };
    let mut state = world::at_level(level);
    any_descriptors(&mut state, random);
    any_gates(&mut state, random);
    any_task_segment(&mut state, random);
    any_page_tables(&mut state, random);
    any_registers(&mut state, random);
    state
}

fn any_descriptors(state: &mut State, random: &mut Random) {
    for index in u32::from(FREE >> 3)..GDT_ENTRIES {
        let descriptor = any_descriptor(random);
        state.store_descriptor(world::GDT + 8 * index, descriptor);
    }
    for index in 0..LDT_ENTRIES {
        let descriptor = any_descriptor(random);
        state.store_descriptor(world::LDT + 8 * index, descriptor);
    }
    if random.one_in(16) {
        state.gdtr.limit = (8 * random.below(GDT_ENTRIES) + random.below(8)) as u16 | 0x50;
    }
    if random.one_in(8) {
        state.ldtr.limit = 8 * random.below(LDT_ENTRIES) + random.below(8);
    }
    if random.one_in(16) {
        state.ldtr = crate::Segment::default();
    }
}

/// A descriptor, most likely a present one of code or data.
fn any_descriptor(random: &mut Random) -> u64 {
    let level = random.below(4) as u8;
    if random.one_in(4) {
        return any_system_descriptor(random, level);
    }
    let likely =
        [kind::DATA, kind::CODE, kind::CONFORMING, kind::READ_ONLY, kind::EXECUTE_ONLY, kind::DOWN];
    let kind = if random.one_in(2) { random.pick(&likely) } else { random.below(16) };
    // Whether it is marked as accessed says nothing else.
    let kind = kind & !1 | random.below(2);
    let (some_base, some_limit) = (random.word(), random.below(d::WHOLE + 1));
    let base = random.pick(&[0, 0, 0, 0x1000, world::DATA, some_base]);
    let limit = random.pick(&[d::WHOLE, d::WHOLE, 0xfff, 0, some_limit]);
    let flags = random.pick(&[d::PAGES_32, d::PAGES_32, d::BYTES_32, 0x8, 0, 0xd]);
    let present = if random.one_in(8) { 0 } else { d::PRESENT };
    d::segment(base, limit, present | d::access(kind, level) & !d::PRESENT, flags)
}

fn any_system_descriptor(random: &mut Random, level: u8) -> u64 {
    let likely = [system::TSS, system::LDT, system::CALL_GATE, system::TSS_BUSY, system::TASK_GATE];
    let kind = if random.one_in(2) { random.pick(&likely) } else { random.below(16) };
    let present = if random.one_in(8) { 0 } else { d::PRESENT };
    let access = present | u32::from(level) << 5 | kind;
    let is_gate = matches!(kind, 4..=7 | 12 | 14 | 15);
    if is_gate {
        let (selector, offset) = (any_selector(random), any_code(random));
        let count = if random.one_in(2) { 0 } else { random.below(8) };
        return d::gate(selector, offset, access, count);
    }
    let base = random.pick(&[world::TSS, world::LDT, world::DATA]);
    let limit = random.pick(&[world::TSS_LIMIT, 0x67, 0x66, 0x2b, 0xffff, 7]);
    d::segment(base, limit, access, random.pick(&[0, 0, 0x8]))
}

fn any_gates(state: &mut State, random: &mut Random) {
    for vector in 0..256 {
        if random.one_in(3) {
            let gate = any_gate(random);
            state.store_descriptor(world::IDT + 8 * vector, gate);
        }
    }
    if random.one_in(16) {
        state.idtr.limit = random.below(8 * 256) as u16;
    }
}

/// What an entry of the IDT may hold; mostly gates that are used.
fn any_gate(random: &mut Random) -> u64 {
    let used = [
        system::INTERRUPT_GATE,
        system::TRAP_GATE,
        system::INTERRUPT_GATE_16,
        system::TRAP_GATE_16,
    ];
    let kind = if random.one_in(8) { random.below(32) } else { random.pick(&used) };
    let present = if random.one_in(8) { 0 } else { d::PRESENT };
    let selector = if random.one_in(2) {
        world::code(random.below(4) as u8) & !3
    } else {
        any_selector(random)
    };
    d::gate(selector, any_code(random), present | random.below(4) << 5 | kind, 0)
}

fn any_task_segment(state: &mut State, random: &mut Random) {
    for level in 0..3 {
        let at = world::TSS + 4 + 8 * level;
        if random.one_in(6) {
            let selector = any_selector(random);
            state.store_dword(at + 4, selector.into());
        }
        if random.one_in(6) {
            let top =
                world::STACKS + random.below(4) * PAGE + random.pick(&[0, 4, 8, 12, 20, 0xffc]);
            state.store_dword(at, top);
        }
    }
    if random.one_in(16) {
        state.tr.limit = random.pick(&[0x67, 0x17, 0x0f, 0x0b, 0x03]);
    }
}

/// Rights of pages: those of data and stacks vary, those of code and tables seldom.
fn any_page_tables(state: &mut State, random: &mut Random) {
    for page in 0..MEMORY as u32 / PAGE {
        let address = page * PAGE;
        let varied = address >= world::STACKS || random.one_in(16);
        let is_code = (world::CODE..world::CODE + world::CODE_PAGES * PAGE).contains(&address);
        if varied && !is_code && random.one_in(3) {
            let flags = any_rights(random);
            state.store_dword(world::IDENTITY + 4 * page, address | flags);
        }
        let frame = world::DATA + random.below(world::DATA_PAGES) * PAGE;
        let flags = any_rights(random);
        state.store_dword(world::HIGH_TABLE + 4 * page, frame | flags);
    }
    let flags = any_rights(random);
    state.store_dword(
        world::DIRECTORY + (world::HIGH >> 20),
        world::HIGH_TABLE | flags & !entry::GLOBAL,
    );
    // Bit 21 is reserved in the entry of a big page at this address.
    let reserved = if random.one_in(16) { 1 << 21 } else { 0 };
    let flags = any_rights(random);
    state.store_dword(world::DIRECTORY + (world::BIG >> 20), 0x80 | reserved | flags);
    if random.one_in(16) {
        let flags = any_rights(random) | entry::PRESENT;
        state.store_dword(world::DIRECTORY, world::IDENTITY | flags & !entry::GLOBAL);
    }
}

/// Flags of a page-table entry.
fn any_rights(random: &mut Random) -> u32 {
    const BITS: u32 = entry::WRITABLE
        | entry::USER
        | entry::ACCESSED
        | entry::DIRTY
        | entry::GLOBAL
        | 0x18
        | 0xe00;
    let present = if random.one_in(6) { 0 } else { entry::PRESENT };
    let common = if random.one_in(2) { OPEN } else { 0 };
    random.word() & BITS | common & !1 | present
}

fn any_registers(state: &mut State, random: &mut Random) {
    for (number, value) in state.gpr.iter_mut().enumerate() {
        if number != gpr::ESP {
            *value = random.word();
        }
    }
    if random.one_in(8) {
        let edge = random.pick(&[0, 2, 4, 8, 0xffc, 0xffe]);
        state.gpr[gpr::ESP] = world::STACKS + u32::from(state.cpl()) * PAGE + edge;
    }
    let arithmetic_and_more = 0x0cd5 | flag::IF | flag::IOPL | flag::NT | flag::AC | flag::ID;
    state.eflags = random.word() & arithmetic_and_more | 2;
    if random.one_in(16) {
        state.eflags |= flag::TF;
    }
    if !random.one_in(8) {
        state.eflags &= !flag::NT;
    }
    for bit in CR0_CHOICES {
        state.cr0 |= if random.one_in(3) { bit } else { 0 };
    }
    for bit in CR4_CHOICES {
        state.cr4 |= if random.one_in(2) { bit } else { 0 };
    }
    if random.one_in(5) {
        state.cr0 &= !(1 << 31);
    }
    state.cr2 = random.word();
    for value in &mut state.dr[..4] {
        *value = random.word();
    }
    state.sysenter = [random.pick(&[0, 3, 8, 0x1b, 0x2a, 0xfff8]), random.word(), random.word()];
    any_segments(state, random);
}

/// es, fs and gs: null or something that the level may have, as its descriptor says.
fn any_segments(state: &mut State, random: &mut Random) {
    let level = state.cpl();
    for number in [sreg::ES, sreg::FS, sreg::GS] {
        let free = u32::from(FREE >> 3) + random.below(GDT_ENTRIES - u32::from(FREE >> 3));
        let free = (free << 3) as u16 | u16::from(level);
        let usual = random.pick(&[0, 3, world::data(3), world::data(level), world::code(level)]);
        let selector = if may_load(state, free, level) { free } else { usual };
        let null = crate::Segment { selector, ..Default::default() };
        state.segments[number] = if selector < 4 { null } else { as_loaded(state, selector) };
    }
}

/// Whether `level` may load a selector into a data segment register.
fn may_load(state: &State, selector: u16, level: u8) -> bool {
    let attributes = world::loaded(state, selector).attributes;
    let kind = u32::from(attributes & 0xf) | 1;
    let is_usable = attributes & 0x90 == 0x90 && kind != kind::EXECUTE_ONLY && kind != 13;
    is_usable && (kind == kind::CONFORMING || attributes >> 5 & 3 >= u16::from(level))
}

/// A segment register as a load leaves it: marked as accessed.
fn as_loaded(state: &State, selector: u16) -> crate::Segment {
    let segment = world::loaded(state, selector);
    crate::Segment { attributes: segment.attributes | 1, ..segment }
}

/// A selector: of the GDT or LDT, existing or not, with any level.
pub fn any_selector(random: &mut Random) -> u16 {
    let level = random.below(4) as u16;
    let index = match random.below(16) {
        0 => 0,
        1 => return random.word() as u16,
        2 => random.below(GDT_ENTRIES + 2) as u16,
        3..=5 => return (random.below(LDT_ENTRIES + 1) as u16) << 3 | 4 | level,
        6..=9 => 1 + random.below(10) as u16,
        _ => (u32::from(FREE >> 3) + random.below(GDT_ENTRIES - u32::from(FREE >> 3))) as u16,
    };
    index << 3 | level
}

/// Where code can be.
pub fn any_code(random: &mut Random) -> u32 {
    world::CODE + random.below(world::CODE_PAGES * PAGE)
}

/// An address of data, mapped in one way or another, often at a page's edge.
pub fn any_address(random: &mut Random, paging: bool) -> u32 {
    let page = world::DATA + random.below(world::DATA_PAGES) * PAGE;
    let edge = random.pick(&[0, 1, 0xffb, 0xffc, 0xffd, 0xffe, 0xfff]);
    let offset = if random.one_in(2) { edge } else { random.below(PAGE) };
    let offset =
        if page == world::DATA + (world::DATA_PAGES - 1) * PAGE { offset & 0x7ff } else { offset };
    if !paging {
        return page + offset;
    }
    match random.below(8) {
        0 | 1 => world::HIGH + page + offset,
        2 => world::BIG + page + offset,
        3 if random.one_in(4) => 0x0080_0000 + offset,
        _ => page + offset,
    }
}
