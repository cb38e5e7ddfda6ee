//! Both machines do the same, and are compared.

use crate::exclusions;
use crate::instructions::{Action, Case};
use crate::machine::{Machine, Outcome};
use crate::state::{PAGE, Segment, State, flag};
use crate::walk;

/// What a machine did.
pub struct Result {
    /// How it ended.
    pub outcome: Outcome,
    /// The state afterwards.
    pub state: State,
}

/// What came of a case.
pub enum Verdict {
    /// Both did the same, but for these details.
    Same(Outcome, Vec<&'static str>),
    /// It says nothing, for this reason.
    Excluded(&'static str),
    /// What they did differently.
    Different(Vec<String>),
}

/// Has a machine do a case.
pub fn perform(machine: &mut dyn Machine, case: &Case) -> Result {
    machine.load(&case.state);
    let outcome = match case.action {
        Action::Step => machine.step(),
        Action::Interrupt(vector, origin) => machine.interrupt(vector, origin),
    };
    Result { outcome, state: machine.save() }
}

/// Has both machines do a case.
pub fn compare(ours: &mut dyn Machine, theirs: &mut dyn Machine, case: &Case) -> Verdict {
    let mut ours = perform(ours, case);
    let mut theirs = perform(theirs, case);
    if ours.outcome == Outcome::Beyond || theirs.outcome == Outcome::Beyond {
        return Verdict::Excluded("outside of memory, or not offered");
    }
    normalize(&mut ours, &mut theirs, case);
    if differences(&ours, &theirs).is_empty() {
        return Verdict::Same(ours.outcome, Vec::new());
    }
    let forgiven = exclusions::forgive(case, &ours, &mut theirs);
    let differences = differences(&ours, &theirs);
    if differences.is_empty() {
        return Verdict::Same(ours.outcome, forgiven);
    }
    match exclusions::reason(case, &ours, &theirs) {
        Some(reason) => Verdict::Excluded(reason),
        None => Verdict::Different(differences),
    }
}

fn differences(ours: &Result, theirs: &Result) -> Vec<String> {
    let mut lines = ours.state.differences(&theirs.state);
    if ours.outcome != theirs.outcome {
        lines.insert(0, format!("outcome: {:x?} and {:x?}", ours.outcome, theirs.outcome));
    }
    lines
}

/// Makes equal what means the same.
fn normalize(ours: &mut Result, theirs: &mut Result, case: &Case) {
    for result in [&mut *ours, &mut *theirs] {
        if result.outcome == Outcome::Halted {
            // Unicorn doesn't say that it has halted: it stops, which it does after any instruction.
            result.outcome = Outcome::Done;
        }
        hide_unused(&mut result.state);
    }
    // Unicorn may have tried to fetch the next instructions already, to the end of a page; or, where they begin one, to look
    // at the page before.
    let next = theirs.state.linear_eip();
    let moved = next != case.state.linear_eip();
    let distance = theirs.state.cr2.wrapping_sub(next);
    let fetched = distance < PAGE || distance == 0u32.wrapping_sub(PAGE);
    if moved && fetched && ours.state.cr2 == case.state.cr2 {
        theirs.state.cr2 = case.state.cr2;
    }
    let faulted = match theirs.outcome {
        Outcome::Exception { vector: 14, .. } => theirs.state.cr2,
        _ => next,
    };
    // And whether a walk that ends in a fault marks what it met as accessed is left open (SDM volume 3, section
    // "Accessed and Dirty Flags").
    for address in [faulted, next, next.wrapping_add(PAGE)] {
        for result in [&mut *ours, &mut *theirs] {
            walk::clear_accessed(&mut result.state, address);
        }
    }
}

/// Leaves out what means nothing.
pub(crate) fn hide_unused(state: &mut State) {
    // RF is looked at where it is pushed: when it is clear again is nobody's business.
    state.eflags &= !flag::RF;
    // Of a null selector nothing but itself counts.
    for segment in state.segments.iter_mut().chain([&mut state.ldtr, &mut state.tr]) {
        if segment.selector & !3 == 0 {
            *segment = Segment { selector: segment.selector, ..Segment::default() };
        }
    }
    for segment in [&mut state.ldtr, &mut state.tr] {
        // The type is all that is ever looked at again.
        segment.attributes &= 0xf;
    }
}
