//! Interrupts and exceptions through gates, as the manual says them.
//!
//! "INT" is SDM volume 2, "INT n/INTO/INT3/INT1—Call to Interrupt Procedure"; "6.12" and others are sections of volume 3,
//! chapter "Interrupt and Exception Handling".

use lguest_system_oracle::descriptors::{self as d, gate, kind, open_gate, system};
use lguest_system_oracle::machine::{End, Origin};
use lguest_system_oracle::manual::{Case, Then, check, enter, push, push_words, switch_stack};
use lguest_system_oracle::state::{PAGE, State, flag, sreg};
use lguest_system_oracle::world::{self, FREE, TSS, TSS_SELECTOR, code, data, handler, in_gdt};
use lguest_system_oracle::{Delivers, Machine, OurMachine, Outcome, Segment};

const VECTOR: u8 = 0x40;
const INT: &[u8] = &[0xcd, VECTOR];
const UD2: &[u8] = &[0x0f, 0x0b];
/// eip behind `int 40`.
const BEHIND: u32 = world::CODE + 2;
/// The error code that names the IDT's entry for [`VECTOR`]: "6.13 Error Code".
const IN_IDT: u32 = 8 * VECTOR as u32 + 2;

fn set_gate(state: &mut State, vector: u8, gate: u64) {
    state.store_descriptor(world::IDT + 8 * u32::from(vector), gate);
}

/// The gate for [`VECTOR`] may be used from everywhere.
fn opened(state: &mut State) {
    set_gate(state, VECTOR, open_gate(system::INTERRUPT_GATE, 3, code(0), handler(VECTOR)));
}

/// The gate for [`VECTOR`] leads to the free descriptor, which is `descriptor`.
fn leads_to(state: &mut State, descriptor: u64) {
    set_gate(state, VECTOR, open_gate(system::INTERRUPT_GATE, 3, FREE, handler(VECTOR)));
    state.store_descriptor(in_gdt(FREE), descriptor);
}

/// As [`opened`], and the TSS says that level 0 has this stack segment.
fn entered_on(state: &mut State, selector: u16) {
    opened(state);
    state.store_dword(TSS + 8, selector.into());
}

/// As [`entered_on`] the free descriptor, which is `descriptor`.
fn entered_on_free(state: &mut State, descriptor: u64) {
    entered_on(state, FREE);
    state.store_descriptor(in_gdt(FREE), descriptor);
}

/// The handler of `vector` has been entered with a frame of dwords, on the stack that there is.
fn entered(state: &mut State, vector: u8, eip: u32) {
    let (flags, cs) = (state.eflags, state.segments[sreg::CS].selector);
    push(state, &[flags, cs.into(), eip]);
    state.eip = handler(vector);
    state.eflags &= !(flag::IF | flag::TF | flag::NT | flag::RF);
}

/// As [`entered`], at level 0 and on its stack.
fn entered_level_0(state: &mut State, vector: u8, eip: u32) {
    switch_stack(state, 0);
    entered(state, vector, eip);
    enter(state, 0);
}

const WHAT_GATES_DO: &[Case] = &[
    Case {
        says: "6.12.1: an interrupt gate at the same level pushes eflags, cs, eip and clears IF",
        level: 0,
        code: INT,
        given: opened,
        then: Then::Delivers(|s| entered(s, VECTOR, BEHIND)),
    },
    Case {
        says: "6.12.1.3: a trap gate leaves IF alone",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, open_gate(system::TRAP_GATE, 0, code(0), handler(VECTOR))),
        then: Then::Delivers(|s| {
            entered(s, VECTOR, BEHIND);
            s.eflags |= flag::IF;
        }),
    },
    Case {
        says: "6.12.1.3: TF, NT and RF are pushed as they are, and clear for the handler",
        level: 0,
        code: INT,
        given: |s| {
            opened(s);
            s.eflags |= flag::NT | flag::AC | flag::ID | flag::IOPL | 0x8d5;
        },
        then: Then::Delivers(|s| entered(s, VECTOR, BEHIND)),
    },
    Case {
        says: "6.12.1: to an inner level, the TSS's stack is taken, and ss and esp are pushed first",
        level: 3,
        code: INT,
        given: opened,
        then: Then::Delivers(|s| entered_level_0(s, VECTOR, BEHIND)),
    },
    Case {
        says: "6.12.1: to level 1, the TSS's stack for level 1 is taken",
        level: 3,
        code: INT,
        given: |s| {
            set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE, 3, code(1), handler(VECTOR)))
        },
        then: Then::Delivers(|s| {
            switch_stack(s, 1);
            entered(s, VECTOR, BEHIND);
            enter(s, 1);
        }),
    },
    Case {
        says: "6.12.1.1: a conforming handler runs at the level that was interrupted, on its stack",
        level: 3,
        code: INT,
        given: |s| leads_to(s, d::flat(kind::CONFORMING, 0)),
        then: Then::Delivers(|s| {
            entered(s, VECTOR, BEHIND);
            s.segments[sreg::CS] = Segment { selector: FREE | 3, ..world::loaded(s, FREE) };
        }),
    },
    Case {
        says: "INT: the level in the gate's selector doesn't count",
        level: 0,
        code: INT,
        given: |s| {
            set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE, 0, code(0) | 3, handler(VECTOR)))
        },
        then: Then::Delivers(|s| entered(s, VECTOR, BEHIND)),
    },
    Case {
        says: "INT: a handler's descriptor is marked as accessed",
        level: 0,
        code: INT,
        given: |s| leads_to(s, d::flat(kind::CODE - 1, 0)),
        then: Then::Delivers(|s| {
            entered(s, VECTOR, BEHIND);
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE, 0));
            s.segments[sreg::CS] = world::loaded(s, FREE);
        }),
    },
    Case {
        says: "INT: a 16-bit gate pushes words, and has an offset of 16 bits",
        level: 0,
        code: INT,
        given: |s| {
            set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE_16, 0, FREE, 0xffff_5555));
            s.store_descriptor(in_gdt(FREE), d::flat(kind::CODE, 0));
        },
        then: Then::Delivers(|s| {
            let frame = [s.eflags as u16, code(0), BEHIND as u16];
            push_words(s, &frame);
            s.eflags &= !flag::IF;
            s.segments[sreg::CS] = world::loaded(s, FREE);
            s.eip = 0x5555;
        }),
    },
    Case {
        says: "INT: int3 through its gate",
        level: 0,
        code: &[0xcc],
        given: |_| {},
        then: Then::Delivers(|s| entered(s, 3, world::CODE + 1)),
    },
    Case {
        says: "INT: into through its gate",
        level: 0,
        code: &[0xce],
        given: |s| s.eflags |= 0x800,
        then: Then::Delivers(|s| entered(s, 4, world::CODE + 1)),
    },
];

#[test]
fn what_gates_do() {
    check(&mut OurMachine::new(), WHAT_GATES_DO);
}

const WHO_MAY_USE_A_GATE: &[Case] = &[
    Case {
        says: "6.12.1.1: int n needs a gate whose level is no inner one",
        level: 3,
        code: INT,
        given: |_| {},
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "6.12.1.1: and it is the current level that counts",
        level: 2,
        code: INT,
        given: |s| {
            set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE, 1, code(0), handler(VECTOR)))
        },
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "6.12.1.1: so does int3",
        level: 3,
        code: &[0xcc],
        given: |_| {},
        then: Then::DeliveryRaises(13, 3 * 8 + 2),
    },
    Case {
        says: "6.12.1.1: and into",
        level: 1,
        code: &[0xce],
        given: |s| s.eflags |= 0x800,
        then: Then::DeliveryRaises(13, 4 * 8 + 2),
    },
    Case {
        says: "INT: but int1 doesn't look at the gate's level, nor tell dr6 anything",
        level: 3,
        code: &[0xf1],
        given: |_| {},
        then: Then::Delivers(|s| entered_level_0(s, 1, world::CODE + 1)),
    },
    Case {
        says: "6.12.1.1: nor do exceptions; what is pushed for a fault has RF set (18.3.1.1)",
        level: 3,
        code: UD2,
        given: |_| {},
        then: Then::Delivers(|s| {
            s.eflags |= flag::RF;
            entered_level_0(s, 6, world::CODE);
        }),
    },
    Case {
        says: "6.13: some exceptions push an error code as well",
        level: 3,
        code: &[0xf4],
        given: |_| {},
        then: Then::Delivers(|s| {
            s.eflags |= flag::RF;
            entered_level_0(s, 13, world::CODE);
            push(s, &[0]);
        }),
    },
];

#[test]
fn who_may_use_a_gate() {
    check(&mut OurMachine::new(), WHO_MAY_USE_A_GATE);
}

const BAD_GATES: &[Case] = &[
    Case {
        says: "6.10: an entry that the IDT's limit cuts off",
        level: 0,
        code: INT,
        given: |s| s.idtr.limit = 8 * 0x40 + 6,
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "INT: a gate that isn't present",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, gate(code(0), handler(VECTOR), system::INTERRUPT_GATE, 0)),
        then: Then::DeliveryRaises(11, IN_IDT),
    },
    Case {
        says: "INT: the level is judged before presence",
        level: 3,
        code: INT,
        given: |s| set_gate(s, VECTOR, gate(code(0), handler(VECTOR), system::INTERRUPT_GATE, 0)),
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "INT: a call gate is no gate for interrupts",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, open_gate(system::CALL_GATE, 0, code(0), handler(VECTOR))),
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "INT: nor is a code segment",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, d::flat(kind::CONFORMING, 0)),
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "INT: the type is judged before presence",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, 0),
        then: Then::DeliveryRaises(13, IN_IDT),
    },
    Case {
        says: "INT: a gate with a null selector",
        level: 0,
        code: INT,
        given: |s| set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE, 0, 3, handler(VECTOR))),
        then: Then::DeliveryRaises(13, 0),
    },
    Case {
        says: "INT: a gate with a selector beyond the GDT",
        level: 0,
        code: INT,
        given: |s| {
            set_gate(s, VECTOR, open_gate(system::INTERRUPT_GATE, 0, 0x203, handler(VECTOR)))
        },
        then: Then::DeliveryRaises(13, 0x200),
    },
    Case {
        says: "INT: a gate to data",
        level: 0,
        code: INT,
        given: |s| leads_to(s, d::flat(kind::DATA, 0)),
        then: Then::DeliveryRaises(13, FREE as u32),
    },
    Case {
        says: "INT: a gate to a system segment",
        level: 0,
        code: INT,
        given: |s| leads_to(s, d::segment(0, d::WHOLE, d::PRESENT | system::TSS, 0)),
        then: Then::DeliveryRaises(13, FREE as u32),
    },
    Case {
        says: "6.12.1.1: no interrupt leads to an outer level",
        level: 0,
        code: INT,
        given: |s| leads_to(s, d::flat(kind::CODE, 1)),
        then: Then::DeliveryRaises(13, FREE as u32),
    },
    Case {
        says: "6.12.1.1: not even to a conforming segment of one",
        level: 0,
        code: INT,
        given: |s| leads_to(s, d::flat(kind::CONFORMING, 1)),
        then: Then::DeliveryRaises(13, FREE as u32),
    },
    Case {
        says: "INT: a handler's segment that isn't present",
        level: 0,
        code: INT,
        given: |s| {
            leads_to(
                s,
                d::segment(0, d::WHOLE, d::access(kind::CODE, 0) & !d::PRESENT, d::PAGES_32),
            )
        },
        then: Then::DeliveryRaises(11, FREE as u32),
    },
    Case {
        says: "INT: a handler beyond its segment's limit",
        level: 0,
        code: INT,
        given: |s| {
            leads_to(s, d::segment(0, handler(VECTOR) - 1, d::access(kind::CODE, 0), d::BYTES_32))
        },
        then: Then::DeliveryRaises(13, 0),
    },
    Case {
        says: "6.13: of what goes wrong on the way to an exception's handler, EXT is set in the error code",
        level: 0,
        code: UD2,
        given: |s| set_gate(s, 6, gate(code(0), handler(6), system::INTERRUPT_GATE, 0)),
        then: Then::DeliveryRaises(11, 6 * 8 + 3),
    },
];

#[test]
fn bad_gates() {
    check(&mut OurMachine::new(), BAD_GATES);
}

const BAD_STACKS: &[Case] = &[
    Case {
        says: "INT: a TSS that is too short for the stack",
        level: 3,
        code: INT,
        given: |s| {
            opened(s);
            s.tr.limit = 8;
        },
        then: Then::DeliveryRaises(10, TSS_SELECTOR as u32),
    },
    Case {
        says: "INT: a null stack segment",
        level: 3,
        code: INT,
        given: |s| entered_on(s, 0),
        then: Then::DeliveryRaises(10, 0),
    },
    Case {
        says: "INT: a stack segment beyond the GDT",
        level: 3,
        code: INT,
        given: |s| entered_on(s, 0x200),
        then: Then::DeliveryRaises(10, 0x200),
    },
    Case {
        says: "INT: a stack segment whose selector has another level",
        level: 3,
        code: INT,
        given: |s| entered_on(s, data(0) | 1),
        then: Then::DeliveryRaises(10, data(0) as u32),
    },
    Case {
        says: "INT: a stack segment whose descriptor has another level",
        level: 3,
        code: INT,
        given: |s| entered_on(s, data(1) & !3),
        then: Then::DeliveryRaises(10, (data(1) & !3) as u32),
    },
    Case {
        says: "INT: a stack segment that can't be written",
        level: 3,
        code: INT,
        given: |s| entered_on_free(s, d::flat(kind::READ_ONLY, 0)),
        then: Then::DeliveryRaises(10, FREE as u32),
    },
    Case {
        says: "INT: a stack segment that is code",
        level: 3,
        code: INT,
        given: |s| entered_on_free(s, d::flat(kind::CODE, 0)),
        then: Then::DeliveryRaises(10, FREE as u32),
    },
    Case {
        says: "INT: a stack segment that isn't present",
        level: 3,
        code: INT,
        given: |s| {
            entered_on_free(
                s,
                d::segment(0, d::WHOLE, d::access(kind::DATA, 0) & !d::PRESENT, d::PAGES_32),
            )
        },
        then: Then::DeliveryRaises(12, FREE as u32),
    },
    Case {
        says: "INT: no room on the new stack, of which the error code tells",
        level: 3,
        code: INT,
        given: |s| entered_on_free(s, d::segment(0, 0xfff, d::access(kind::DATA, 0), d::BYTES_32)),
        then: Then::DeliveryRaises(12, FREE as u32),
    },
    Case {
        says: "INT: of what is refused nothing is to be seen in the table",
        level: 3,
        code: INT,
        given: |s| {
            let unmarked = d::access(kind::DATA - 1, 0);
            entered_on(s, FREE + 8);
            leads_to(s, d::flat(kind::CODE - 1, 0));
            let stack = d::segment(0, 0xfff, unmarked, d::BYTES_32);
            s.store_descriptor(in_gdt(FREE + 8), stack);
        },
        then: Then::DeliveryRaises(12, (FREE + 8) as u32),
    },
    Case {
        says: "INT: the level in the selector is judged before the descriptor is read",
        level: 3,
        code: INT,
        given: |s| {
            entered_on(s, 4 | 1);
            // The LDT's page isn't there.
            s.store_dword(world::IDENTITY + 4 * (world::LDT / PAGE), 0);
        },
        then: Then::DeliveryRaises(10, 4),
    },
    Case {
        says: "INT: room on the stack is judged before the handler's address",
        level: 0,
        code: INT,
        given: |s| {
            let short = handler(VECTOR) - 1;
            leads_to(s, d::segment(0, short, d::access(kind::CODE, 0), d::BYTES_32));
            s.segments[sreg::SS].limit = 0xfff;
        },
        then: Then::DeliveryRaises(12, 0),
    },
    Case {
        says: "INT: no room on the present stack, of which it doesn't",
        level: 0,
        code: INT,
        given: |s| s.segments[sreg::SS].limit = 0xfff,
        then: Then::DeliveryRaises(12, 0),
    },
    Case {
        says: "INT: and EXT for an exception",
        level: 3,
        code: UD2,
        given: |s| entered_on(s, data(0) | 1),
        then: Then::DeliveryRaises(10, data(0) as u32 + 1),
    },
];

#[test]
fn bad_stacks() {
    check(&mut OurMachine::new(), BAD_STACKS);
}

/// "6.13": an external interrupt sets EXT in the error code of what goes wrong.
#[test]
fn external_interrupts() {
    let mut machine = OurMachine::new();
    let mut state = world::at_level(3);
    machine.load(&state);
    assert_eq!(machine.interrupt(VECTOR, Origin::External), Outcome::Done);
    let mut expected = state.clone();
    entered_level_0(&mut expected, VECTOR, world::CODE);
    assert_eq!(expected.differences(&machine.save()), [""; 0]);

    set_gate(&mut state, VECTOR, gate(code(0), handler(VECTOR), system::INTERRUPT_GATE, 0));
    machine.load(&state);
    assert_eq!(machine.interrupt(VECTOR, Origin::External), Outcome::fault(11, IN_IDT + 1));
}

/// "6.15", "Interrupt 8—Double Fault Exception": two contributory exceptions, or a page fault and one, make a double fault; a
/// third ends everything.
#[test]
fn faults_on_the_way() {
    let mut machine = OurMachine::new();
    let absent = |vector: u8| gate(code(0), handler(vector), system::INTERRUPT_GATE, 0);
    // The instruction raises #UD, #GP or #PF.
    let page_fault: &[u8] = &[0xa1, 0, 0, 0x80, 0];
    for (instruction, missing, end, arrives) in [
        (UD2, &[6][..], End::Running, 11),
        (&[0xf4], &[13], End::Running, 8),
        (&[0xf4], &[13, 11], End::Running, 8),
        (&[0xf4], &[13, 8], End::Shutdown, 0),
        (page_fault, &[14], End::Running, 8),
        (page_fault, &[14, 8], End::Shutdown, 0),
        (UD2, &[6, 11], End::Running, 8),
    ] {
        let mut state = world::at_level(3);
        state.store(world::CODE, instruction);
        missing.iter().for_each(|&vector| set_gate(&mut state, vector, absent(vector)));
        machine.load(&state);
        assert_eq!(machine.step_and_deliver(), end, "{instruction:x?} {missing:?}");
        if end == End::Running {
            assert_eq!(machine.save().eip, handler(arrives), "{instruction:x?} {missing:?}");
        }
    }
}
