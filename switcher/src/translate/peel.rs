//! Loops that use the FPU ask about it in their first round only.
//!
//! Each round would look at CR0.TS again (see [`super::fpu`]), for instructions that take no longer than the look. But TS can't change
//! while translated code runs. So a loop is translated twice, one behind the other: the first round, which asks, and all others,
//! which can only be reached from its end and don't ask. Who comes from elsewhere, or comes back from Rust, comes to the first
//! round before its last question, or to code of its own.

use super::classify::Way;
use super::plan::{Step, direct_target};

/// Instructions in a loop at most.
const LONGEST: usize = 48;

/// What an instruction has to do with such a loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Nothing.
    None,
    /// Ends the first round: if its condition holds the others follow, and otherwise what is behind them.
    First,
    /// Begins the other rounds.
    Head,
    /// Ends one of them: if its condition holds the next follows.
    Back,
}

/// Puts the other rounds behind the first, for each loop that asks.
pub(super) fn peel_loops(steps: &mut Vec<Step>, targets: &[bool]) {
    // From the last one on: what is put in moves nothing that is still to be looked at.
    for back in (0..steps.len()).rev() {
        if let Some(head) = loop_that_asks(steps, targets, back) {
            let mut others = steps[head..=back].to_vec();
            for step in &mut others {
                (step.checks_fpu, step.entry) = (false, false);
            }
            let length = others.len();
            if length > 1 {
                (others[0].turn, others[length - 1].turn) = (Turn::Head, Turn::Back);
                steps[back].turn = Turn::First;
                steps[head].loop_head = false;
                // Who came from elsewhere to what is behind the last question wouldn't be asked before the other rounds.
                let behind = steps[head..=back].iter_mut().rev();
                behind.take_while(|step| !step.checks_fpu).for_each(|step| step.entry = false);
                steps.splice(back + 1..back + 1, others);
            }
        }
    }
}

/// Where the loop begins that the instruction at `back` ends, if it has FPU instructions that ask, is straight but for ways out, and
/// is entered at its beginning only.
fn loop_that_asks(steps: &[Step], targets: &[bool], back: usize) -> Option<usize> {
    let conditional = |step: &Step| step.class.way == Way::Conditional;
    let end = steps.get(back).filter(|step| conditional(step))?;
    let start = direct_target(&end.instruction)?;
    let head = steps[..=back].iter().rposition(|step| step.eip() == start)?;
    let body = &steps[head..back];
    let leads_out = |step: &Step| {
        conditional(step)
            && direct_target(&step.instruction)
                .is_some_and(|target| !(start..=end.eip()).contains(&target))
    };
    let straight = body.iter().all(|step| step.class.way.is_straight() || leads_out(step));
    let asks = body.iter().any(|step| step.checks_fpu);
    let entered_once = !targets[head + 1..=back].contains(&true);
    (body.len() < LONGEST && straight && asks && entered_once).then_some(head)
}
