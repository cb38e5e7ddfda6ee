//! Cases written by hand, as the manual says them.
//!
//! A case is a level, an instruction, what is changed about the [`world`] beforehand, and what is to come of it.
//! All of the state is compared: what a case doesn't mention must not have changed.

use crate::contest::hide_unused;
use crate::machine::{Delivers, Machine, Outcome};
use crate::state::{State, gpr, sreg};
use crate::world;

/// One sentence of the manual.
pub struct Case {
    /// What it says.
    pub says: &'static str,
    /// The level at which the instruction is executed.
    pub level: u8,
    /// The instruction.
    pub code: &'static [u8],
    /// What is changed about the world beforehand.
    pub given: fn(&mut State),
    /// What comes of it.
    pub then: Then,
}

/// What an instruction comes to.
#[derive(Clone, Copy)]
pub enum Then {
    /// It is carried out, and execution goes on behind it; this changed.
    Next(fn(&mut State)),
    /// It is carried out; this changed, and says where execution goes on.
    Goes(fn(&mut State)),
    /// It raises an exception with this vector and error code, and nothing has changed.
    Raises(u8, Option<u32>),
    /// It raises a page fault with this error code for this address, which cr2 shows.
    PageFault(u32, u32),
    /// It raises an exception behind itself; this changed.
    Traps(u8, fn(&mut State)),
    /// What it raises is delivered; this changed since before the instruction.
    Delivers(fn(&mut State)),
    /// What it raises can't be delivered, since that raises this.
    DeliveryRaises(u8, u32),
}

/// Nothing.
pub fn nothing(_: &mut State) {}

/// Runs all cases, and says of all that fail how they do.
///
/// # Panics
/// If a case fails, or there is none.
pub fn check(machine: &mut dyn Delivers, cases: &[Case]) {
    assert!(!cases.is_empty());
    let failures: Vec<String> = cases.iter().filter_map(|case| failure(machine, case)).collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// The state in which a case starts.
#[must_use]
pub fn start(case: &Case) -> State {
    let mut state = world::at_level(case.level);
    state.store(world::CODE, case.code);
    (case.given)(&mut state);
    state
}

fn failure(machine: &mut dyn Delivers, case: &Case) -> Option<String> {
    let start = start(case);
    machine.load(&start);
    let mut outcome = machine.step();
    if matches!(case.then, Then::Delivers(_) | Then::DeliveryRaises(..)) {
        outcome = machine.deliver(outcome);
    }
    let (expected, mut state) = expectation(case, start);
    let mut found = machine.save();
    hide_unused(&mut found);
    hide_unused(&mut state);
    let mut differences = state.differences(&found);
    if outcome != expected && (outcome, expected) != (Outcome::Halted, Outcome::Done) {
        differences.insert(0, format!("outcome: {expected:x?} and {outcome:x?}"));
    }
    let told = || {
        format!(
            "{} (level {}): expected and found:\n    {}",
            case.says,
            case.level,
            differences.join("\n    ")
        )
    };
    (!differences.is_empty()).then(told)
}

/// What a case is to come to, and the state afterwards.
fn expectation(case: &Case, mut state: State) -> (Outcome, State) {
    let behind = state.eip + case.code.len() as u32;
    let outcome = match case.then {
        Then::Next(change) => {
            state.eip = behind;
            change(&mut state);
            Outcome::Done
        }
        Then::Goes(change) | Then::Delivers(change) => {
            change(&mut state);
            Outcome::Done
        }
        Then::Traps(vector, change) => {
            state.eip = behind;
            change(&mut state);
            Outcome::Exception { vector, error: None }
        }
        Then::Raises(vector, error) => Outcome::Exception { vector, error },
        Then::PageFault(error, address) => {
            state.cr2 = address;
            Outcome::fault(14, error)
        }
        Then::DeliveryRaises(vector, error) => {
            if is_trap(case.code) {
                state.eip = behind;
            }
            Outcome::fault(vector, error)
        }
    };
    (outcome, state)
}

/// Whether what an instruction raises is to be delivered behind it, as `int` and its like are.
fn is_trap(code: &[u8]) -> bool {
    matches!(code[0], 0xcc | 0xcd | 0xce | 0xf1)
}

/// Pushes dwords, the first one first, on a flat stack.
pub fn push(state: &mut State, values: &[u32]) {
    for &value in values {
        state.gpr[gpr::ESP] -= 4;
        state.store_dword(state.gpr[gpr::ESP], value);
    }
}

/// Pushes words.
pub fn push_words(state: &mut State, values: &[u16]) {
    for &value in values {
        state.gpr[gpr::ESP] -= 2;
        state.store(state.gpr[gpr::ESP], &value.to_le_bytes());
    }
}

/// Puts dwords where a return finds them: the first one on top.
pub fn stack_holds(state: &mut State, values: &[u32]) {
    let at = state.gpr[gpr::ESP];
    for (index, &value) in values.iter().enumerate() {
        state.store_dword(at + 4 * index as u32, value);
    }
}

/// cs is flat code of a level now.
pub fn enter(state: &mut State, level: u8) {
    state.segments[sreg::CS] = world::loaded(state, world::code(level));
}

/// ss and esp are those that the TSS has for an inner level, and the old ones have been pushed.
pub fn switch_stack(state: &mut State, level: u8) {
    let old = [u32::from(state.segments[sreg::SS].selector), state.gpr[gpr::ESP]];
    state.segments[sreg::SS] = world::loaded(state, world::data(level));
    state.gpr[gpr::ESP] = world::entry_stack(level);
    push(state, &old);
}

/// Has a machine execute one instruction at a level, without delivering anything.
pub fn step(machine: &mut dyn Machine, state: &State) -> (Outcome, State) {
    machine.load(state);
    let outcome = machine.step();
    (outcome, machine.save())
}
