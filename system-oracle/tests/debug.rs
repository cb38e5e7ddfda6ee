//! Debug registers and single steps: SDM volume 3, chapter "Debug, Branch Profile, TSC, and Intel Resource Director Technology
//! Features".

use lguest_system_oracle::manual::{Case, Then, check, nothing, push, stack_holds};
use lguest_system_oracle::state::{State, flag, gpr};
use lguest_system_oracle::world::{self, CODE, data};
use lguest_system_oracle::{Machine, OurMachine, Outcome};

/// dr6 and dr7 in [`State::dr`].
const DR6: usize = 4;
const DR7: usize = 5;
/// A single step, and an access to a debug register, in dr6.
const BS: u32 = 1 << 14;
const BD: u32 = 1 << 13;
/// Access to debug registers is watched, in dr7.
const GD: u32 = 1 << 13;
const DE: u32 = 1 << 3;
const MOV_DR7_EDX: &[u8] = &[0x0f, 0x23, 0xfa];
const MOV_EDX_DR6: &[u8] = &[0x0f, 0x21, 0xf2];

const REGISTERS: &[Case] = &[
    Case {
        says: "an address",
        level: 0,
        code: &[0x0f, 0x23, 0xda],
        given: |s| s.gpr[gpr::EDX] = 0x1234_5678,
        then: Then::Next(|s| s.dr[3] = 0x1234_5678),
    },
    Case {
        says: "dr6: bits that can't be written",
        level: 0,
        code: &[0x0f, 0x23, 0xf2],
        given: |s| s.gpr[gpr::EDX] = 0xe00f,
        then: Then::Next(|s| s.dr[DR6] = 0xffff_efff),
    },
    Case {
        says: "dr7: bit 10 is always set",
        level: 0,
        code: MOV_DR7_EDX,
        given: |s| s.gpr[gpr::EDX] = 0xffff_0000,
        then: Then::Next(|s| s.dr[DR7] = 0xffff_0400),
    },
    Case {
        says: "dr4 is another name of dr6",
        level: 0,
        code: &[0x0f, 0x21, 0xe2],
        given: nothing,
        then: Then::Next(|s| s.gpr[gpr::EDX] = 0xffff_0ff0),
    },
    Case {
        says: "unless CR4.DE is set",
        level: 0,
        code: &[0x0f, 0x21, 0xe2],
        given: |s| s.cr4 |= DE,
        then: Then::Raises(6, None),
    },
    Case {
        says: "only at level 0",
        level: 1,
        code: MOV_EDX_DR6,
        given: nothing,
        then: Then::Raises(13, Some(0)),
    },
];

#[test]
fn registers() {
    check(&mut OurMachine::new(), REGISTERS);
}

/// An access with GD set is a fault, which dr6 tells of; GD is clear for the handler, which so may use the registers.
#[test]
fn watched_registers() {
    let mut machine = OurMachine::new();
    let mut state = world::at_level(0);
    state.store(CODE, MOV_EDX_DR6);
    state.dr[DR7] |= GD;
    machine.load(&state);
    assert_eq!(machine.step(), Outcome::Exception { vector: 1, error: None });
    let end = machine.save();
    assert_eq!((end.eip, end.gpr[gpr::EDX]), (CODE, 0));
    assert_eq!((end.dr[DR6], end.dr[DR7] & GD), (0xffff_0ff0 | BD, 0));
    // The level is judged first.
    let mut state = world::at_level(3);
    state.store(CODE, MOV_EDX_DR6);
    state.dr[DR7] |= GD;
    machine.load(&state);
    assert_eq!(machine.step(), Outcome::fault(13, 0));
}

fn stepping(state: &mut State) {
    state.eflags |= flag::TF;
}

fn step_noted(state: &mut State) {
    state.dr[DR6] |= BS;
}

const STEPS: &[Case] = &[
    Case {
        says: "behind an instruction",
        level: 3,
        code: &[0x90],
        given: stepping,
        then: Then::Traps(1, step_noted),
    },
    Case {
        says: "behind one for kernels",
        level: 0,
        code: &[0x0f, 0x20, 0xda],
        given: stepping,
        then: Then::Traps(1, |s| {
            s.gpr[gpr::EDX] = s.cr3;
            step_noted(s);
        }),
    },
    Case {
        says: "behind pushf, which shows TF",
        level: 3,
        code: &[0x9c],
        given: stepping,
        then: Then::Traps(1, |s| {
            push(s, &[0x302]);
            step_noted(s);
        }),
    },
    Case {
        says: "behind the popf that clears TF",
        level: 3,
        code: &[0x9d],
        given: |s| {
            stepping(s);
            stack_holds(s, &[0x202]);
        },
        then: Then::Traps(1, |s| {
            s.gpr[gpr::ESP] += 4;
            s.eflags = 0x202;
            step_noted(s);
        }),
    },
    Case {
        says: "not behind the popf that sets it",
        level: 3,
        code: &[0x9d],
        given: |s| stack_holds(s, &[0x302]),
        then: Then::Next(|s| {
            s.gpr[gpr::ESP] += 4;
            s.eflags = 0x302;
        }),
    },
    Case {
        says: "not for an instruction that faults",
        level: 3,
        code: &[0xf4],
        given: stepping,
        then: Then::Raises(13, Some(0)),
    },
    Case {
        says: "not behind a load of ss",
        level: 3,
        code: &[0x8e, 0xd0],
        given: |s| {
            stepping(s);
            s.gpr[gpr::EAX] = data(3).into();
        },
        then: Then::Next(nothing),
    },
];

#[test]
fn steps() {
    check(&mut OurMachine::new(), STEPS);
}
