//! `cli`, `sti`, `pushf` and `popf` at each level: the tables of SDM volume 2 on the pages of these instructions.

use lguest_system_oracle::OurMachine;
use lguest_system_oracle::manual::{Case, Then, check, push, push_words, stack_holds};
use lguest_system_oracle::state::{State, flag, gpr};

const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
const POPF: &[u8] = &[0x9d];
const POPF_16: &[u8] = &[0x66, 0x9d];
const REFUSED: Then = Then::Raises(13, Some(0));

const fn iopl(level: u32) -> u32 {
    level << 12
}

fn cleared(state: &mut State) {
    state.eflags &= !flag::IF;
}

fn popped(state: &mut State, flags: u32) {
    state.gpr[gpr::ESP] += 4;
    state.eflags = flags;
}

const INTERRUPT_FLAG: &[Case] = &[
    Case {
        says: "level 0 may always clear IF",
        level: 0,
        code: CLI,
        given: |_| {},
        then: Then::Next(cleared),
    },
    Case {
        says: "and set it",
        level: 0,
        code: STI,
        given: cleared,
        then: Then::Next(|s| s.eflags |= flag::IF),
    },
    Case { says: "level 3 may not with IOPL 0", level: 3, code: CLI, given: |_| {}, then: REFUSED },
    Case {
        says: "nor with IOPL 2",
        level: 3,
        code: STI,
        given: |s| s.eflags |= iopl(2),
        then: REFUSED,
    },
    Case {
        says: "but with IOPL 3",
        level: 3,
        code: CLI,
        given: |s| s.eflags |= iopl(3),
        then: Then::Next(cleared),
    },
    Case {
        says: "level 1 with IOPL 1",
        level: 1,
        code: CLI,
        given: |s| s.eflags |= iopl(1),
        then: Then::Next(cleared),
    },
    Case { says: "level 1 with IOPL 0", level: 1, code: STI, given: |_| {}, then: REFUSED },
];

#[test]
fn interrupt_flag() {
    check(&mut OurMachine::new(), INTERRUPT_FLAG);
}

/// Every flag that can be written but TF, which would matter to the next instruction, RF and VM.
const ALL: u32 = 0x0024_7ed7;

const PUSH_AND_POP: &[Case] = &[
    Case {
        says: "pushf shows all flags at any level",
        level: 3,
        code: &[0x9c],
        given: |s| s.eflags = ALL,
        then: Then::Next(|s| push(s, &[ALL])),
    },
    Case {
        says: "but RF, which reads as 0",
        level: 3,
        code: &[0x9c],
        given: |s| s.eflags = ALL | flag::RF,
        then: Then::Next(|s| {
            push(s, &[ALL]);
            s.eflags = ALL;
        }),
    },
    Case {
        says: "of words, the lower half",
        level: 3,
        code: &[0x66, 0x9c],
        given: |s| s.eflags = ALL,
        then: Then::Next(|s| push_words(s, &[ALL as u16])),
    },
    Case {
        says: "popf at level 0 changes them all, but RF and VM",
        level: 0,
        code: POPF,
        given: |s| stack_holds(s, &[!flag::TF]),
        then: Then::Next(|s| popped(s, ALL)),
    },
    Case {
        says: "at level 0 it clears IOPL and IF",
        level: 0,
        code: POPF,
        given: |s| {
            s.eflags = ALL;
            stack_holds(s, &[0]);
        },
        then: Then::Next(|s| popped(s, 2)),
    },
    Case {
        says: "at level 3 it can change neither IOPL nor, without it, IF",
        level: 3,
        code: POPF,
        given: |s| {
            s.eflags = 0x1202;
            stack_holds(s, &[0x0024_6cd7]);
        },
        then: Then::Next(|s| popped(s, 0x0024_5ed7)),
    },
    Case {
        says: "with IOPL, it can change IF",
        level: 3,
        code: POPF,
        given: |s| {
            s.eflags = 0x3202;
            stack_holds(s, &[0]);
        },
        then: Then::Next(|s| popped(s, 0x3002)),
    },
    Case {
        says: "at level 1 as at level 3",
        level: 1,
        code: POPF,
        given: |s| stack_holds(s, &[0x3000]),
        then: Then::Next(|s| popped(s, 0x202)),
    },
    Case {
        says: "of words, the lower half",
        level: 0,
        code: POPF_16,
        given: |s| {
            s.eflags |= flag::AC | flag::ID;
            stack_holds(s, &[0x5000]);
        },
        then: Then::Next(|s| {
            s.gpr[gpr::ESP] += 2;
            s.eflags = flag::AC | flag::ID | 0x5002;
        }),
    },
];

#[test]
fn push_and_pop() {
    check(&mut OurMachine::new(), PUSH_AND_POP);
}
