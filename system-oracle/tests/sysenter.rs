//! `sysenter` and `sysexit`, as their pages in SDM volume 2 say them, and their model-specific registers.

use lguest_system_oracle::manual::{Case, Then, check, nothing};
use lguest_system_oracle::state::{State, flag, gpr, sreg};
use lguest_system_oracle::world::CODE;
use lguest_system_oracle::{OurMachine, Segment};

const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const WRMSR: &[u8] = &[0x0f, 0x30];
const RDMSR: &[u8] = &[0x0f, 0x32];
const ESP: u32 = 0x1234_5678;
const EIP: u32 = CODE + 0x456;

/// Code and data that are flat whatever the GDT says.
fn flat(state: &mut State, code: u16, stack: u16) {
    let level = (code & 3) << 5;
    let segment = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.segments[sreg::CS] = segment(code, 0xc09b | level);
    state.segments[sreg::SS] = segment(stack, 0xc093 | level);
}

fn set_up(state: &mut State) {
    state.sysenter = [0x68, ESP, EIP];
}

fn entered(state: &mut State) {
    flat(state, 0x68, 0x70);
    state.gpr[gpr::ESP] = ESP;
    state.eip = EIP;
    state.eflags &= !(flag::IF | flag::RF);
}

const CASES: &[Case] = &[
    Case {
        says: "SYSENTER: from level 3",
        level: 3,
        code: SYSENTER,
        given: set_up,
        then: Then::Goes(entered),
    },
    Case {
        says: "SYSENTER: from level 0 just as well",
        level: 0,
        code: SYSENTER,
        given: set_up,
        then: Then::Goes(entered),
    },
    Case {
        says: "SYSENTER: no descriptor is looked at, and the selector's level doesn't count",
        level: 3,
        code: SYSENTER,
        given: |s| {
            set_up(s);
            s.sysenter[0] = 0x6b;
            s.gdtr.limit = 0;
        },
        then: Then::Goes(entered),
    },
    Case {
        says: "SYSENTER: a null selector means that it isn't set up",
        level: 3,
        code: SYSENTER,
        given: |s| s.sysenter = [3, ESP, EIP],
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "SYSEXIT: to level 3, at edx and ecx",
        level: 0,
        code: SYSEXIT,
        given: |s| {
            set_up(s);
            (s.gpr[gpr::EDX], s.gpr[gpr::ECX]) = (EIP, ESP);
        },
        then: Then::Goes(|s| {
            flat(s, 0x7b, 0x83);
            (s.eip, s.gpr[gpr::ESP]) = (EIP, ESP);
        }),
    },
    Case {
        says: "SYSEXIT: only at level 0",
        level: 1,
        code: SYSEXIT,
        given: set_up,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "SYSEXIT: a null selector",
        level: 0,
        code: SYSEXIT,
        given: |s| s.sysenter[0] = 0,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "WRMSR: where it goes",
        level: 0,
        code: WRMSR,
        given: |s| (s.gpr[gpr::ECX], s.gpr[gpr::EAX]) = (0x176, EIP),
        then: Then::Next(|s| s.sysenter[2] = EIP),
    },
    Case {
        says: "WRMSR: with which stack",
        level: 0,
        code: WRMSR,
        given: |s| (s.gpr[gpr::ECX], s.gpr[gpr::EAX]) = (0x175, ESP),
        then: Then::Next(|s| s.sysenter[1] = ESP),
    },
    Case {
        says: "RDMSR: and in which segment",
        level: 0,
        code: RDMSR,
        given: |s| {
            set_up(s);
            (s.gpr[gpr::ECX], s.gpr[gpr::EDX]) = (0x174, u32::MAX);
        },
        then: Then::Next(|s| (s.gpr[gpr::EAX], s.gpr[gpr::EDX]) = (0x68, 0)),
    },
];

#[test]
fn cases() {
    check(&mut OurMachine::new(), CASES);
    // The first thing a handler does.
    check(
        &mut OurMachine::new(),
        &[Case {
            says: "nothing",
            level: 0,
            code: &[0x90],
            given: nothing,
            then: Then::Next(nothing),
        }],
    );
}
