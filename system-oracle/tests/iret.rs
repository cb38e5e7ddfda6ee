//! `iret`, as SDM volume 2, "IRET/IRETD—Interrupt Return" says it.

use lguest_system_oracle::OurMachine;
use lguest_system_oracle::descriptors::{self as d, kind};
use lguest_system_oracle::manual::{Case, Then, check, enter, stack_holds};
use lguest_system_oracle::state::{State, flag, gpr, sreg};
use lguest_system_oracle::world::{self, FREE, code, data, in_gdt, stack};
use lguest_system_oracle::{Machine, Outcome, Segment};

const IRET: &[u8] = &[0xcf];
const THERE: u32 = world::CODE + 0x123;
const FLAGS: u32 = 0x202;

/// The frame of a return to `cs`.
fn to(state: &mut State, cs: u16) {
    stack_holds(state, &[THERE, cs.into(), FLAGS]);
}

/// The frame of a return to an outer level.
fn out(state: &mut State, cs: u16, ss: u16) {
    stack_holds(state, &[THERE, cs.into(), FLAGS, stack(3), ss.into()]);
}

/// The frame of a return to the free descriptor.
fn to_free(state: &mut State, level: u16, descriptor: u64) {
    state.store_descriptor(in_gdt(FREE), descriptor);
    out(state, FREE | level, data(level as u8));
}

/// The frame of a return to level 3, on a stack in the free descriptor.
fn onto_free(state: &mut State, descriptor: u64) {
    state.store_descriptor(in_gdt(FREE), descriptor);
    out(state, code(3), FREE | 3);
}

/// Three dwords were popped.
fn returned(state: &mut State) {
    state.eip = THERE;
    state.gpr[gpr::ESP] += 12;
}

/// Five were, and this is level 3.
fn went_out(state: &mut State) {
    state.eip = THERE;
    enter(state, 3);
    state.segments[sreg::SS] = world::loaded(state, data(3));
    state.gpr[gpr::ESP] = stack(3);
    // The kernel's data isn't for it.
    for number in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
        state.segments[number] = Segment::default();
    }
}

const WHAT_IT_DOES: &[Case] = &[
    Case {
        says: "at the same level it pops eip, cs, eflags",
        level: 0,
        code: IRET,
        given: |s| to(s, code(0)),
        then: Then::Goes(returned),
    },
    Case {
        says: "so it does at level 3",
        level: 3,
        code: IRET,
        given: |s| to(s, code(3)),
        then: Then::Goes(returned),
    },
    Case {
        says: "to an outer level it pops esp and ss as well; segments that the level can't have are null then",
        level: 0,
        code: IRET,
        given: |s| out(s, code(3), data(3)),
        then: Then::Goes(went_out),
    },
    Case {
        says: "segments that the outer level can have stay",
        level: 0,
        code: IRET,
        given: |s| {
            out(s, code(3), data(3));
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CONFORMING, 0));
            s.segments[sreg::ES] = world::loaded(s, data(3));
            s.segments[sreg::FS] = world::loaded(s, FREE);
        },
        then: Then::Goes(|s| {
            let (es, fs) = (s.segments[sreg::ES], s.segments[sreg::FS]);
            went_out(s);
            (s.segments[sreg::ES], s.segments[sreg::FS]) = (es, fs);
        }),
    },
    Case {
        says: "level 0 may change all flags",
        level: 0,
        code: IRET,
        given: |s| stack_holds(s, &[THERE, code(0).into(), 0x0025_7ed7]),
        then: Then::Goes(|s| {
            returned(s);
            s.eflags = 0x0025_7ed7;
        }),
    },
    Case {
        says: "an outer level can't change IOPL, nor IF without it",
        level: 3,
        code: IRET,
        given: |s| stack_holds(s, &[THERE, code(3).into(), 0x0024_7cd7]),
        then: Then::Goes(|s| {
            returned(s);
            s.eflags = 0x0024_4ed7;
        }),
    },
    Case {
        says: "with IOPL it can change IF, and still not IOPL",
        level: 2,
        code: IRET,
        given: |s| {
            stack_holds(s, &[THERE, code(2).into(), 2]);
            s.eflags |= 0x2000;
        },
        then: Then::Goes(|s| {
            returned(s);
            s.eflags = 0x2002;
        }),
    },
    Case {
        says: "what level 3 is to have, level 0 decides",
        level: 0,
        code: IRET,
        given: |s| stack_holds(s, &[THERE, code(3).into(), 0x3002, stack(3), data(3).into()]),
        then: Then::Goes(|s| {
            went_out(s);
            s.eflags = 0x3002;
        }),
    },
    Case {
        says: "with words, it pops words, and keeps the upper half of eflags",
        level: 0,
        code: &[0x66, 0xcf],
        given: |s| {
            s.store(s.gpr[gpr::ESP], &[0x34, 0x12, code(0) as u8, 0, 0xd7, 0x0e]);
            s.eflags |= flag::AC | flag::ID;
        },
        then: Then::Goes(|s| {
            s.gpr[gpr::ESP] += 6;
            s.eip = 0x1234;
            s.eflags = flag::AC | flag::ID | 0xed7;
        }),
    },
    Case {
        says: "a segment is marked as accessed",
        level: 0,
        code: IRET,
        given: |s| to_free(s, 0, d::flat(kind::CODE - 1, 0)),
        then: Then::Goes(|s| {
            returned(s);
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE, 0));
            s.segments[sreg::CS] = world::loaded(s, FREE);
        }),
    },
    Case {
        says: "a conforming segment's level may be an inner one of the return's",
        level: 3,
        code: IRET,
        given: |s| to_free(s, 3, d::flat(kind::CONFORMING, 1)),
        then: Then::Goes(|s| {
            returned(s);
            s.segments[sreg::CS] = Segment { selector: FREE | 3, ..world::loaded(s, FREE) };
        }),
    },
];

#[test]
fn what_it_does() {
    check(&mut OurMachine::new(), WHAT_IT_DOES);
}

const WHAT_IT_REFUSES: &[Case] = &[
    Case {
        says: "a null cs",
        level: 0,
        code: IRET,
        given: |s| to(s, 3),
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "a cs beyond the GDT",
        level: 0,
        code: IRET,
        given: |s| to(s, 0x203),
        then: Then::Raises(13, Some(0x200)),
    },
    Case {
        says: "data as cs",
        level: 0,
        code: IRET,
        given: |s| to(s, data(0)),
        then: Then::Raises(13, Some(data(0) as u32)),
    },
    Case {
        says: "a return to an inner level",
        level: 3,
        code: IRET,
        given: |s| to(s, code(0)),
        then: Then::Raises(13, Some(code(0) as u32)),
    },
    Case {
        says: "code of another level than the selector has",
        level: 0,
        code: IRET,
        given: |s| to_free(s, 3, d::flat(kind::CODE, 2)),
        then: Then::Raises(13, Some(FREE as u32)),
    },
    Case {
        says: "conforming code of an outer level",
        level: 0,
        code: IRET,
        given: |s| to_free(s, 2, d::flat(kind::CONFORMING, 3)),
        then: Then::Raises(13, Some(FREE as u32)),
    },
    Case {
        says: "code that isn't present",
        level: 0,
        code: IRET,
        given: |s| {
            to_free(
                s,
                0,
                d::segment(0, d::WHOLE, d::access(kind::CODE, 0) & !d::PRESENT, d::PAGES_32),
            )
        },
        then: Then::Raises(11, Some(FREE as u32)),
    },
    Case {
        says: "an eip beyond the segment's limit",
        level: 0,
        code: IRET,
        given: |s| to_free(s, 0, d::segment(0, THERE - 1, d::access(kind::CODE, 0), d::BYTES_32)),
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "a null ss",
        level: 0,
        code: IRET,
        given: |s| out(s, code(3), 3),
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "an ss whose selector has another level",
        level: 0,
        code: IRET,
        given: |s| out(s, code(3), data(3) & !3 | 2),
        then: Then::Raises(13, Some((data(3) & !3) as u32)),
    },
    Case {
        says: "an ss whose descriptor has another level",
        level: 0,
        code: IRET,
        given: |s| onto_free(s, d::flat(kind::DATA, 2)),
        then: Then::Raises(13, Some(FREE as u32)),
    },
    Case {
        says: "an ss that is refused leaves cs unmarked in its table",
        level: 0,
        code: IRET,
        given: |s| {
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE - 1, 3));
            out(s, FREE | 3, 3);
        },
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "an eip beyond the limit leaves everything unmarked",
        level: 0,
        code: IRET,
        given: |s| {
            let code = d::segment(0, THERE - 1, d::access(kind::CODE - 1, 3), d::BYTES_32);
            s.store_descriptor(in_gdt(FREE), code);
            s.store_descriptor(in_gdt(FREE + 8), d::flat(kind::DATA - 1, 3));
            out(s, FREE | 3, (FREE + 8) | 3);
        },
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "an ss that can't be written",
        level: 0,
        code: IRET,
        given: |s| onto_free(s, d::flat(kind::READ_ONLY, 3)),
        then: Then::Raises(13, Some(FREE as u32)),
    },
    Case {
        says: "an ss that isn't present",
        level: 0,
        code: IRET,
        given: |s| {
            onto_free(
                s,
                d::segment(0, d::WHOLE, d::access(kind::DATA, 3) & !d::PRESENT, d::PAGES_32),
            )
        },
        then: Then::Raises(12, Some(FREE as u32)),
    },
    Case {
        says: "a frame that the stack's limit cuts off",
        level: 0,
        code: IRET,
        given: |s| {
            to(s, code(0));
            s.segments[sreg::SS].limit = stack(0) + 10;
        },
        then: Then::Raises(12, Some(0)),
    },
    Case {
        says: "a frame that isn't mapped",
        level: 3,
        code: IRET,
        given: |s| {
            s.gpr[gpr::ESP] = 0x0080_0000;
        },
        then: Then::PageFault(4, 0x0080_0000),
    },
];

#[test]
fn what_it_refuses() {
    check(&mut OurMachine::new(), WHAT_IT_REFUSES);
}

/// SDM volume 3, "Single-Step Exception Condition": TF that comes from the frame counts from the next instruction on.
#[test]
fn a_step_begins_behind_it() {
    let mut machine = OurMachine::new();
    let mut state = world::at_level(0);
    state.store(world::CODE, IRET);
    state.store(THERE, &[0x90, 0xf4]);
    stack_holds(&mut state, &[THERE, code(0).into(), FLAGS | flag::TF]);
    machine.load(&state);
    assert_eq!(machine.step(), Outcome::Done);
    assert_eq!(machine.save().eip, THERE);
    assert_eq!(machine.step(), Outcome::Exception { vector: 1, error: None });
    assert_eq!(machine.save().eip, THERE + 1);
}
