//! Both processors run the same case, and are held against each other.

use crate::compare::{Seen, differences, report, undefined_flags};
use crate::forms::{Class, classify};
use crate::habits::Habits;
use crate::instance::Instance;
use crate::layout::Layout;
use crate::leeway::{Leeway, is_open, must_be_same};
use crate::machine::{Machine, Stop, in_processors_words};
use crate::random::Random;
use crate::state::{Case, End, Outcome, TRAP_FLAG};
use crate::world::{BREAKPOINT, World};
use crate::{Oracle, OracleError};
use iced_x86::{FlowControl, Instruction};

/// #UD.
const UNDEFINED: Stop = Stop::End(End::Exception { vector: 6, error: 0, address: 0 });

/// Whether both refuse what the Switcher's processor doesn't have: as undefined, or because it would
/// be too long if it were an instruction, or, where this processor has it, because it is the
/// system's (`xsetbv`, say, or `vmrun`).
fn is_refused_either_way(
    instruction: Option<&Instruction>,
    processor: End,
    switcher: Stop,
) -> bool {
    const REFUSED: End = End::Exception { vector: 13, error: 0, address: 0 };
    let offered = |instruction: &Instruction| classify(instruction.code()) != Class::NotOffered;
    switcher == UNDEFINED && processor == REFUSED && !instruction.is_some_and(offered)
}

/// The instruction at `eip`; `None` when there is none.
fn instruction_in(layout: &Layout, memory: &[u8], eip: u32) -> Option<Instruction> {
    let (_, offset) = layout.locate(eip)?;
    Some(Instance::decode(&memory[offset..], eip)?.instruction)
}

/// The same case, to be stopped behind its first instruction.
fn with_trap_flag(case: &Case) -> Case {
    let mut case = case.clone();
    case.state.eflags |= TRAP_FLAG;
    case
}

/// Steps that a program is looked at.
const MOST_STEPS: u32 = 20_000;

/// The processor and the Switcher in one world.
pub struct Contest {
    /// The world.
    pub world: World,
    /// The processor's side.
    pub oracle: Oracle,
    /// The Switcher's side.
    pub machine: Machine,
    /// What this processor does and the Switcher doesn't, though either may.
    pub habits: Habits,
}

/// What came of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both did the same; how it ended.
    Same(End),
    /// The processor's own end can't be compared: a system call, or no end at all; or its
    /// [habits](Habits) led it elsewhere.
    Incomparable,
    /// They did different things: all one needs to see why.
    Different(String),
}

impl Contest {
    /// Both sides in the world that `random` makes.
    ///
    /// # Errors
    /// When the processor can't be asked.
    pub fn new(random: &mut Random) -> Result<Self, OracleError> {
        let world = World::new(random);
        let mut oracle = Oracle::new(world.layout.clone())?;
        let mut machine = Machine::new(world.layout.clone());
        let habits = Habits::of(&mut oracle, &mut machine, &world)?;
        Ok(Self { world, oracle, machine, habits })
    }

    /// Runs `case`, whose code has `length` bytes, on both. When it is a single instruction, the
    /// flags it leaves undefined don't count, and it is single-stepped where nothing else would
    /// stop both behind it.
    ///
    /// # Errors
    /// When the processor can't be asked.
    pub fn judge(
        &mut self,
        case: &Case,
        length: usize,
        single: Option<&Instruction>,
    ) -> Result<Verdict, OracleError> {
        let stepped;
        let (case, outcome) = match single {
            Some(single) if case.state.eflags & TRAP_FLAG == 0 => {
                let next = self.next_of(case, single)?;
                let outcome = self.oracle.run(case)?;
                if self.stops_at(next) {
                    (case, outcome)
                } else {
                    stepped = with_trap_flag(case);
                    (&stepped, self.oracle.run(&stepped)?)
                }
            }
            _ => (case, self.oracle.run(case)?),
        };
        let verdict = self.compare(case, &outcome, length, single)?;
        let differs = matches!(verdict, Verdict::Different(_)) && single.is_none();
        let is_excused = differs && self.tells_processors_apart(case)?;
        Ok(if is_excused { Verdict::Incomparable } else { verdict })
    }

    /// Where a single instruction goes on when it doesn't fault. Of a branch only the processor
    /// knows; a repeated string instruction, or a loop onto itself, ends behind itself at last.
    fn next_of(&mut self, case: &Case, single: &Instruction) -> Result<u32, OracleError> {
        let behind = case.state.eip.wrapping_add(single.len() as u32);
        if single.flow_control() == FlowControl::Next {
            return Ok(behind);
        }
        let outcome = self.oracle.run(&with_trap_flag(case))?;
        let is_step = matches!(outcome.end, End::Exception { vector: 1, .. });
        let moved = is_step && outcome.state.eip != case.state.eip;
        Ok(if moved { outcome.state.eip } else { behind })
    }

    /// Whether the processor, now that it has run, could go no further than to `next`: there is a
    /// breakpoint (which the instruction hasn't overwritten), or no memory. Otherwise random data
    /// ran as code, and that does things that nobody compares: it reads clocks and flags left
    /// undefined, or stores x87 pointers.
    fn stops_at(&self, next: u32) -> bool {
        let found = self.world.layout.locate(next);
        found.is_none_or(|(_, offset)| self.oracle.memory()[offset] == BREAKPOINT)
    }

    /// Runs `case` on the Switcher too and holds both against each other.
    fn compare(
        &mut self,
        case: &Case,
        outcome: &Outcome,
        length: usize,
        single: Option<&Instruction>,
    ) -> Result<Verdict, OracleError> {
        if matches!(outcome.end, End::SystemCall | End::Endless) {
            return Ok(Verdict::Incomparable);
        }
        let (stop, state) = self.machine.run(case);
        let (stop, state) = in_processors_words(stop, state, outcome);
        if single.is_none() && self.has_run_wild(stop, state.eip) {
            return Ok(Verdict::Incomparable);
        }
        // A program has seldom got to such an instruction on purpose: it has run into data.
        let last = single.copied().or_else(|| self.instruction_at(outcome.state.eip));
        let processor = Seen::by_processor(outcome, self.oracle.memory());
        let switcher = Seen { stop, state, memory: self.machine.memory() };
        let ignored = single.map_or(0, undefined_flags);
        let differ = |switcher: &Seen| {
            let mut found = differences(&processor, switcher, &self.world.layout, ignored);
            if let Some(last) = last.as_ref().filter(|last| is_open(last, outcome.end, stop)) {
                found.retain(|difference| must_be_same(last, difference));
            }
            if single.is_none() && is_refused_either_way(last.as_ref(), outcome.end, stop) {
                found.retain(|difference| !difference.starts_with("end:"));
            }
            found
        };
        let mut found = differ(&switcher);
        if found.is_empty() {
            return Ok(Verdict::Same(outcome.end));
        }
        let leeway = Leeway {
            habits: &self.habits,
            layout: &self.world.layout,
            case,
            instruction: &last.unwrap_or_default(),
            is_single: single.is_some(),
            processor: &processor,
        };
        let other = leeway.other(&switcher);
        if differ(&other.seen()).is_empty() {
            return Ok(Verdict::Same(outcome.end));
        }
        let stopped_at = instruction_in(&self.world.layout, switcher.memory, state.eip);
        if stopped_at.is_some_and(|at| leeway.may_go_on(&at, stop, &state)) {
            return Ok(Verdict::Incomparable);
        }
        if single.is_none() {
            let last = last.map_or("no instruction".into(), |last| last.to_string());
            found.push(format!("the processor stopped at {:08x}: {last}", outcome.state.eip));
        }
        Ok(Verdict::Different(report(case, &self.world.layout, length, &found)))
    }

    /// Whether a program runs an instruction that [has no place in it](Habits::forbid_in_programs), as
    /// it may when it has run into data. Goes through it step by step.
    fn tells_processors_apart(&mut self, case: &Case) -> Result<bool, OracleError> {
        let mut case = with_trap_flag(case);
        for _ in 0..MOST_STEPS {
            let next = instruction_in(&self.world.layout, &case.memory, case.state.eip);
            if next.is_some_and(|next| self.habits.forbid_in_programs(next.code())) {
                return Ok(true);
            }
            let outcome = self.oracle.run(&case)?;
            if !matches!(outcome.end, End::Exception { vector: 1, .. }) {
                break;
            }
            case = with_trap_flag(&Case {
                state: outcome.state,
                memory: self.oracle.memory().to_vec(),
            });
        }
        Ok(false)
    }

    /// The instruction that the processor stopped at; `None` when it isn't one.
    fn instruction_at(&self, eip: u32) -> Option<Instruction> {
        instruction_in(&self.world.layout, self.oracle.memory(), eip)
    }

    /// Whether a program has run into data that says something for an embedder, or int1, or is an
    /// instruction of newer processors, which the Switcher's doesn't have by our own table.
    fn has_run_wild(&mut self, switcher: Stop, eip: u32) -> bool {
        match switcher {
            Stop::Privileged(_) | Stop::End(End::Exception { vector: 1, .. }) => true,
            UNDEFINED => {
                let found = instruction_in(&self.world.layout, self.machine.memory(), eip);
                found.is_some_and(|it| classify(it.code()) == Class::NotOffered)
            }
            _ => false,
        }
    }

    /// Runs `case` on the Switcher alone and says how it stopped, and what it changed, eip included.
    pub fn run_alone(&mut self, case: &Case) -> (Stop, Vec<String>) {
        let (stop, state) = self.machine.run(case);
        let before = Seen { stop, state: case.state, memory: &case.memory };
        let after = Seen { stop, state, memory: self.machine.memory() };
        (stop, differences(&before, &after, &self.world.layout, 0))
    }
}
