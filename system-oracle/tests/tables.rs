//! Descriptor tables, and instructions that ask about selectors.
//!
//! Named are pages of SDM volume 2; "5.9" is of volume 3, chapter "Protection".

use lguest_system_oracle::descriptors::{self as d, kind, system};
use lguest_system_oracle::manual::{Case, Then, check, nothing};
use lguest_system_oracle::state::{State, gpr};
use lguest_system_oracle::world::{
    self, DATA, FREE, LDT_SELECTOR, TSS_LIMIT, TSS_SELECTOR, data, in_gdt,
};
use lguest_system_oracle::{OurMachine, Segment, Table};

const LGDT: &[u8] = &[0x0f, 0x01, 0x15, 0, 0x80, 2, 0];
const LIDT: &[u8] = &[0x0f, 0x01, 0x1d, 0, 0x80, 2, 0];
const SGDT: &[u8] = &[0x0f, 0x01, 0x05, 0, 0x80, 2, 0];
const SIDT: &[u8] = &[0x0f, 0x01, 0x0d, 0, 0x80, 2, 0];
const LLDT_AX: &[u8] = &[0x0f, 0x00, 0xd0];
const LTR_AX: &[u8] = &[0x0f, 0x00, 0xd8];
const LAR: &[u8] = &[0x0f, 0x02, 0xc8];
const LSL: &[u8] = &[0x0f, 0x03, 0xc8];
const VERR: &[u8] = &[0x0f, 0x00, 0xe0];
const VERW: &[u8] = &[0x0f, 0x00, 0xe8];
const ZF: u32 = 0x40;

fn table_in_memory(state: &mut State) {
    state.store(DATA, &[0x34, 0x12, 0x78, 0x56, 0x34, 0x12]);
}

const READ: Table = Table { base: 0x1234_5678, limit: 0x1234 };

const TABLE_REGISTERS: &[Case] = &[
    Case {
        says: "LGDT: limit, then base",
        level: 0,
        code: LGDT,
        given: table_in_memory,
        then: Then::Next(|s| s.gdtr = READ),
    },
    Case {
        says: "LIDT: limit, then base",
        level: 0,
        code: LIDT,
        given: table_in_memory,
        then: Then::Next(|s| s.idtr = READ),
    },
    Case {
        says: "LGDT: of the base 24 bits count with operands of 16 bits",
        level: 0,
        code: &[0x66, 0x0f, 0x01, 0x15, 0, 0x80, 2, 0],
        given: table_in_memory,
        then: Then::Next(|s| s.gdtr = Table { base: 0x0034_5678, ..READ }),
    },
    Case {
        says: "LGDT: only at level 0",
        level: 1,
        code: LGDT,
        given: nothing,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "LIDT: only at level 0",
        level: 3,
        code: LIDT,
        given: nothing,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "LGDT: not from a register",
        level: 0,
        code: &[0x0f, 0x01, 0xd7],
        given: nothing,
        then: Then::Raises(6, None),
    },
    Case {
        says: "SGDT: at any level",
        level: 3,
        code: SGDT,
        given: nothing,
        then: Then::Next(|s| s.store(DATA, &[0xff, 1, 0, 0x10, 0, 0])),
    },
    Case {
        says: "SIDT: at any level",
        level: 2,
        code: SIDT,
        given: nothing,
        then: Then::Next(|s| s.store(DATA, &[0xff, 7, 0, 0x30, 0, 0])),
    },
    Case {
        says: "LGDT: a page fault for what it reads",
        level: 0,
        code: &[0x0f, 0x01, 0x15, 0xfe, 0xff, 0x7f, 0],
        given: |s| s.store_dword(world::DIRECTORY + 4, 0),
        then: Then::PageFault(0, 0x007f_fffe),
    },
];

#[test]
fn table_registers() {
    check(&mut OurMachine::new(), TABLE_REGISTERS);
}

fn ldt_at_free(state: &mut State, access: u32) {
    state.store_descriptor(in_gdt(FREE), d::segment(DATA, 0x17, access, 0));
    state.gpr[gpr::EAX] = FREE.into();
}

fn task_at_free(state: &mut State, access: u32) {
    state.store_descriptor(in_gdt(FREE), d::segment(DATA, TSS_LIMIT, access, 0));
    state.gpr[gpr::EAX] = FREE.into();
}

const LDTR_AND_TR: &[Case] = &[
    Case {
        says: "LLDT: an LDT's descriptor",
        level: 0,
        code: LLDT_AX,
        given: |s| ldt_at_free(s, d::PRESENT | system::LDT),
        then: Then::Next(|s| s.ldtr = world::loaded(s, FREE)),
    },
    Case {
        says: "LLDT: a null selector, after which there is no LDT",
        level: 0,
        code: LLDT_AX,
        given: |s| s.gpr[gpr::EAX] = 3,
        then: Then::Next(|s| s.ldtr = Segment { selector: 3, ..Segment::default() }),
    },
    Case {
        says: "LLDT: only at level 0",
        level: 1,
        code: LLDT_AX,
        given: nothing,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "LLDT: not of a selector for the LDT",
        level: 0,
        code: LLDT_AX,
        given: |s| s.gpr[gpr::EAX] = 0xc,
        then: Then::Raises(13, Some(0xc)),
    },
    Case {
        says: "LLDT: not of a selector beyond the GDT",
        level: 0,
        code: LLDT_AX,
        given: |s| s.gpr[gpr::EAX] = 0x200,
        then: Then::Raises(13, Some(0x200)),
    },
    Case {
        says: "LLDT: not of another descriptor",
        level: 0,
        code: LLDT_AX,
        given: |s| ldt_at_free(s, system::TSS),
        then: Then::Raises(13, Some(FREE as u32)),
    },
    Case {
        says: "LLDT: one that isn't present",
        level: 0,
        code: LLDT_AX,
        given: |s| ldt_at_free(s, system::LDT),
        then: Then::Raises(11, Some(FREE as u32)),
    },
    Case {
        says: "LTR: an available TSS, which is busy then",
        level: 0,
        code: LTR_AX,
        given: |s| task_at_free(s, d::PRESENT | system::TSS),
        then: Then::Next(|s| {
            s.store_descriptor(
                in_gdt(FREE),
                d::segment(DATA, TSS_LIMIT, d::PRESENT | system::TSS_BUSY, 0),
            );
            s.tr = world::loaded(s, FREE);
        }),
    },
    Case {
        says: "LTR: not a busy one",
        level: 0,
        code: LTR_AX,
        given: |s| s.gpr[gpr::EAX] = TSS_SELECTOR.into(),
        then: Then::Raises(13, Some(TSS_SELECTOR as u32)),
    },
    Case {
        says: "LTR: not null",
        level: 0,
        code: LTR_AX,
        given: |s| s.gpr[gpr::EAX] = 0,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "LTR: only at level 0",
        level: 3,
        code: LTR_AX,
        given: nothing,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "LTR: not of a selector for the LDT",
        level: 0,
        code: LTR_AX,
        given: |s| s.gpr[gpr::EAX] = 0x14,
        then: Then::Raises(13, Some(0x14)),
    },
    Case {
        says: "LTR: one that isn't present",
        level: 0,
        code: LTR_AX,
        given: |s| task_at_free(s, system::TSS),
        then: Then::Raises(11, Some(FREE as u32)),
    },
    Case {
        says: "SLDT: into a register, the upper half is clear",
        level: 3,
        code: &[0x0f, 0x00, 0xc1],
        given: |s| s.gpr[gpr::ECX] = u32::MAX,
        then: Then::Next(|s| s.gpr[gpr::ECX] = LDT_SELECTOR.into()),
    },
    Case {
        says: "STR: with operands of 16 bits, the upper half stays",
        level: 3,
        code: &[0x66, 0x0f, 0x00, 0xc9],
        given: |s| s.gpr[gpr::ECX] = u32::MAX,
        then: Then::Next(|s| s.gpr[gpr::ECX] = 0xffff_0000 | u32::from(TSS_SELECTOR)),
    },
    Case {
        says: "STR: into memory, 16 bits in any case",
        level: 3,
        code: &[0x0f, 0x00, 0x0d, 0, 0x80, 2, 0],
        given: |s| s.store_dword(DATA, u32::MAX),
        then: Then::Next(|s| s.store_dword(DATA, 0xffff_0000 | u32::from(TSS_SELECTOR))),
    },
];

#[test]
fn ldtr_and_tr() {
    check(&mut OurMachine::new(), LDTR_AND_TR);
}

/// eax names the free descriptor, ZF is clear.
fn about(state: &mut State, level: u16, descriptor: u64) {
    state.store_descriptor(in_gdt(FREE), descriptor);
    state.gpr[gpr::EAX] = (FREE | level).into();
}

/// As [`about`], and ZF is set.
fn about_with_zf(state: &mut State, level: u16, descriptor: u64) {
    about(state, level, descriptor);
    state.eflags |= ZF;
}

const QUESTIONS: &[Case] = &[
    Case {
        says: "LAR: the access rights, presence or not",
        level: 3,
        code: LAR,
        given: |s| {
            about(
                s,
                3,
                d::segment(0, 0xf_ffff, d::access(kind::DATA, 3) & !d::PRESENT, d::PAGES_32),
            )
        },
        then: Then::Next(|s| {
            s.gpr[gpr::ECX] = 0x00cf_7300;
            s.eflags |= ZF;
        }),
    },
    Case {
        says: "LAR: not of an inner level",
        level: 3,
        code: LAR,
        given: |s| about_with_zf(s, 3, d::flat(kind::DATA, 2)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "LAR: nor when the selector's level says so",
        level: 0,
        code: LAR,
        given: |s| about_with_zf(s, 3, d::flat(kind::DATA, 2)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "LAR: but of conforming code",
        level: 3,
        code: LAR,
        given: |s| about(s, 3, d::flat(kind::CONFORMING, 0)),
        then: Then::Next(|s| {
            s.gpr[gpr::ECX] = 0x00cf_9f00;
            s.eflags |= ZF;
        }),
    },
    Case {
        says: "LAR: of call gates",
        level: 3,
        code: LAR,
        given: |s| about(s, 3, d::open_gate(system::CALL_GATE, 3, 8, 0)),
        then: Then::Next(|s| {
            s.gpr[gpr::ECX] = 0xec00;
            s.eflags |= ZF;
        }),
    },
    Case {
        says: "LAR: not of interrupt gates",
        level: 0,
        code: LAR,
        given: |s| about_with_zf(s, 0, d::open_gate(system::INTERRUPT_GATE, 3, 8, 0)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "LSL: the limit in bytes",
        level: 3,
        code: LSL,
        given: |s| about(s, 3, d::segment(0, 0x1234, d::access(kind::DATA, 3), d::PAGES_32)),
        then: Then::Next(|s| {
            s.gpr[gpr::ECX] = 0x0123_4fff;
            s.eflags |= ZF;
        }),
    },
    Case {
        says: "LSL: not of gates",
        level: 0,
        code: LSL,
        given: |s| about_with_zf(s, 0, d::open_gate(system::CALL_GATE, 3, 8, 0)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "VERR: data",
        level: 3,
        code: VERR,
        given: |s| about(s, 3, d::flat(kind::READ_ONLY, 3)),
        then: Then::Next(|s| s.eflags |= ZF),
    },
    Case {
        says: "VERR: not code that can only be executed",
        level: 0,
        code: VERR,
        given: |s| about_with_zf(s, 0, d::flat(kind::EXECUTE_ONLY, 0)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "VERW: not what can only be read",
        level: 0,
        code: VERW,
        given: |s| about_with_zf(s, 0, d::flat(kind::READ_ONLY, 0)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "VERW: not the data of an inner level",
        level: 1,
        code: VERW,
        given: |s| about_with_zf(s, 1, d::flat(kind::DATA, 0)),
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "VERR: null isn't readable, and no mistake either",
        level: 0,
        code: VERR,
        given: |s| {
            s.gpr[gpr::EAX] = 0;
            s.eflags |= ZF;
        },
        then: Then::Next(|s| s.eflags &= !ZF),
    },
    Case {
        says: "ARPL: a selector's level is raised, and ZF says so",
        level: 3,
        code: &[0x63, 0xc8],
        given: |s| (s.gpr[gpr::EAX], s.gpr[gpr::ECX]) = (data(0).into(), data(3).into()),
        then: Then::Next(|s| {
            s.gpr[gpr::EAX] = (data(0) | 3).into();
            s.eflags |= ZF;
        }),
    },
];

#[test]
fn questions() {
    check(&mut OurMachine::new(), QUESTIONS);
}
