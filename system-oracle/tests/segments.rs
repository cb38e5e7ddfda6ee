//! Loads of segment registers: SDM volume 2, "MOV—Move", "POP—Pop a Value From the Stack", "JMP" and "CALL"; volume 3, sections "Segment
//! Descriptors" and "Privilege Level Checking When Accessing Data Segments".

use lguest_system_oracle::descriptors::{self as d, kind, system};
use lguest_system_oracle::manual::{Case, Then, check, stack_holds};
use lguest_system_oracle::state::{State, gpr, sreg};
use lguest_system_oracle::world::{self, FREE, LDT, code, data, in_gdt};
use lguest_system_oracle::{OurMachine, Segment};

const MOV_DS_AX: &[u8] = &[0x8e, 0xd8];
const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];
const POP_ES: &[u8] = &[0x07];

/// eax names the free descriptor with a level, which is `descriptor`.
fn free(state: &mut State, level: u16, descriptor: u64) {
    state.store_descriptor(in_gdt(FREE), descriptor);
    state.gpr[gpr::EAX] = (FREE | level).into();
}

const fn absent(kind: u32, level: u8) -> u64 {
    d::segment(0, d::WHOLE, d::access(kind, level) & !d::PRESENT, d::PAGES_32)
}

const ERROR: Option<u32> = Some(FREE as u32);

fn loads(state: &mut State, register: usize) {
    let selector = state.gpr[gpr::EAX] as u16;
    state.segments[register] = Segment { selector, ..world::loaded(state, FREE) };
}

const DATA_SEGMENTS: &[Case] = &[
    Case {
        says: "what a descriptor says is remembered",
        level: 0,
        code: MOV_DS_AX,
        given: |s| {
            free(s, 0, d::segment(0x1234_5678, 0x1234, d::access(kind::DATA, 0), d::PAGES_32))
        },
        then: Then::Next(|s| loads(s, sreg::DS)),
    },
    Case {
        says: "the descriptor is marked as accessed",
        level: 3,
        code: MOV_DS_AX,
        given: |s| free(s, 3, d::flat(kind::DATA - 1, 3)),
        then: Then::Next(|s| {
            s.store_descriptor(in_gdt(FREE), d::flat(kind::DATA, 3));
            loads(s, sreg::DS);
        }),
    },
    Case {
        says: "null is no mistake yet",
        level: 3,
        code: MOV_DS_AX,
        given: |s| s.gpr[gpr::EAX] = 2,
        then: Then::Next(|s| s.segments[sreg::DS] = Segment { selector: 2, ..Segment::default() }),
    },
    Case {
        says: "data of an outer level",
        level: 0,
        code: MOV_DS_AX,
        given: |s| free(s, 3, d::flat(kind::DATA, 3)),
        then: Then::Next(|s| loads(s, sreg::DS)),
    },
    Case {
        says: "not data of an inner level",
        level: 3,
        code: MOV_DS_AX,
        given: |s| free(s, 0, d::flat(kind::DATA, 2)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "the selector's level counts as the current one does",
        level: 0,
        code: MOV_DS_AX,
        given: |s| free(s, 3, d::flat(kind::DATA, 2)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "conforming code of any level",
        level: 3,
        code: MOV_DS_AX,
        given: |s| free(s, 3, d::flat(kind::CONFORMING, 0)),
        then: Then::Next(|s| loads(s, sreg::DS)),
    },
    Case {
        says: "not code that can't be read",
        level: 0,
        code: MOV_DS_AX,
        given: |s| free(s, 0, d::flat(kind::EXECUTE_ONLY, 0)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "not a system segment",
        level: 0,
        code: MOV_DS_AX,
        given: |s| free(s, 0, d::segment(0, 0xfff, d::PRESENT | system::LDT, 0)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "one that isn't present",
        level: 0,
        code: MOV_DS_AX,
        given: |s| free(s, 0, absent(kind::DATA, 0)),
        then: Then::Raises(11, ERROR),
    },
    Case {
        says: "type and level are judged before presence",
        level: 3,
        code: MOV_DS_AX,
        given: |s| free(s, 3, absent(kind::DATA, 2)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "beyond the table, by one byte",
        level: 0,
        code: MOV_DS_AX,
        given: |s| {
            free(s, 0, d::flat(kind::DATA, 0));
            s.gdtr.limit = FREE + 6;
        },
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "from the LDT",
        level: 3,
        code: MOV_DS_AX,
        given: |s| {
            s.store_descriptor(LDT, d::flat(kind::DATA, 3));
            s.gpr[gpr::EAX] = 7;
        },
        then: Then::Next(|s| {
            s.segments[sreg::DS] = Segment { selector: 7, ..world::loaded(s, data(3)) }
        }),
    },
    Case {
        says: "without an LDT",
        level: 3,
        code: MOV_DS_AX,
        given: |s| {
            s.gpr[gpr::EAX] = 7;
            s.ldtr = Segment::default();
        },
        then: Then::Raises(13, Some(4)),
    },
    Case {
        says: "pop takes its operand off the stack",
        level: 3,
        code: POP_ES,
        given: |s| stack_holds(s, &[0xffff_0000]),
        then: Then::Next(|s| {
            s.segments[sreg::ES] = Segment::default();
            s.gpr[gpr::ESP] += 4;
        }),
    },
    Case {
        says: "a pop that fails leaves esp alone",
        level: 3,
        code: POP_ES,
        given: |s| stack_holds(s, &[data(0).into()]),
        then: Then::Raises(13, Some(data(0) as u32)),
    },
    Case {
        says: "cs can't be moved to",
        level: 0,
        code: &[0x8e, 0xc8],
        given: |_| {},
        then: Then::Raises(6, None),
    },
];

#[test]
fn data_segments() {
    check(&mut OurMachine::new(), DATA_SEGMENTS);
}

const STACK_SEGMENTS: &[Case] = &[
    Case {
        says: "data of the very level",
        level: 2,
        code: MOV_SS_AX,
        given: |s| free(s, 2, d::flat(kind::DATA, 2)),
        then: Then::Next(|s| loads(s, sreg::SS)),
    },
    Case {
        says: "not null",
        level: 0,
        code: MOV_SS_AX,
        given: |s| s.gpr[gpr::EAX] = 0,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "not with another level in the selector",
        level: 1,
        code: MOV_SS_AX,
        given: |s| free(s, 2, d::flat(kind::DATA, 1)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "not with another level in the descriptor",
        level: 1,
        code: MOV_SS_AX,
        given: |s| free(s, 1, d::flat(kind::DATA, 2)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "not data that can't be written",
        level: 1,
        code: MOV_SS_AX,
        given: |s| free(s, 1, d::flat(kind::READ_ONLY, 1)),
        then: Then::Raises(13, ERROR),
    },
    Case {
        says: "not code",
        level: 0,
        code: MOV_SS_AX,
        given: |s| s.gpr[gpr::EAX] = code(0).into(),
        then: Then::Raises(13, Some(code(0) as u32)),
    },
    Case {
        says: "one that isn't present is a matter of the stack",
        level: 1,
        code: MOV_SS_AX,
        given: |s| free(s, 1, absent(kind::DATA, 1)),
        then: Then::Raises(12, ERROR),
    },
];

#[test]
fn stack_segments() {
    check(&mut OurMachine::new(), STACK_SEGMENTS);
}

/// `jmp far` and `call far` to the free descriptor.
const FAR_JUMP: &[u8] = &[0xea, 0, 0x20, 1, 0, FREE as u8, 0];
const FAR_CALL: &[u8] = &[0x9a, 0, 0x20, 1, 0, FREE as u8, 0];
const TARGET: u32 = 0x0001_2000;

fn short_code(state: &mut State) {
    let code = d::segment(0, TARGET - 1, d::access(kind::CODE - 1, 0), d::BYTES_32);
    state.store_descriptor(in_gdt(FREE), code);
}

const FAR_TRANSFERS: &[Case] = &[
    Case {
        says: "JMP: the segment is marked as accessed",
        level: 0,
        code: FAR_JUMP,
        given: |s| s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE - 1, 0)),
        then: Then::Goes(|s| {
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE, 0));
            s.segments[sreg::CS] = world::loaded(s, FREE);
            s.eip = TARGET;
        }),
    },
    Case {
        says: "JMP: an eip beyond the limit, of which nothing is to be seen in the table",
        level: 0,
        code: FAR_JUMP,
        given: short_code,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "CALL: the same",
        level: 0,
        code: FAR_CALL,
        given: short_code,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "CALL: no room on the stack, of which nothing is to be seen in the table",
        level: 0,
        code: FAR_CALL,
        given: |s| {
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE - 1, 0));
            s.segments[sreg::SS].limit = 0xfff;
        },
        then: Then::Raises(12, Some(0)),
    },
];

#[test]
fn far_transfers() {
    check(&mut OurMachine::new(), FAR_TRANSFERS);
}
