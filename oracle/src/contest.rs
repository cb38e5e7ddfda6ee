//! Both processors run the same case, and are held against each other.

use crate::compare::{Seen, differences, report, undefined_flags};
use crate::forms::{Class, classify};
use crate::instance::Instance;
use crate::layout::Layout;
use crate::leeway::{is_open, must_be_same};
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

/// The processor and the Switcher in one world.
pub struct Contest {
    /// The world.
    pub world: World,
    /// The processor's side.
    pub oracle: Oracle,
    /// The Switcher's side.
    pub machine: Machine,
}

/// What came of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both did the same; how it ended.
    Same(End),
    /// The processor's own end can't be compared: a system call, or no end at all.
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
        let oracle = Oracle::new(world.layout.clone())?;
        let machine = Machine::new(world.layout.clone());
        Ok(Self { world, oracle, machine })
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
        self.compare(case, &outcome, length, single)
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
        let wild =
            matches!(stop, Stop::Privileged(_) | Stop::End(End::Exception { vector: 1, .. }));
        if single.is_none() && (wild || self.stopped_at_foreign(stop, state.eip)) {
            // A program has run into data that says something for an embedder, or int1, or is an
            // instruction of newer processors.
            return Ok(Verdict::Incomparable);
        }
        let processor = Seen::by_processor(outcome, self.oracle.memory());
        let switcher = Seen { stop, state, memory: self.machine.memory() };
        let ignored = single.map_or(0, undefined_flags);
        let mut found = differences(&processor, &switcher, &self.world.layout, ignored);
        // A program has seldom got to such an instruction on purpose: it has run into data.
        let last = single.copied().or_else(|| self.instruction_at(outcome.state.eip));
        if let Some(last) = last.as_ref().filter(|last| is_open(last, outcome.end, stop)) {
            found.retain(|difference| must_be_same(last, difference));
        }
        if single.is_none() && is_refused_either_way(last.as_ref(), outcome.end, stop) {
            found.retain(|difference| !difference.starts_with("end:"));
        }
        if found.is_empty() {
            return Ok(Verdict::Same(outcome.end));
        }
        if single.is_none() {
            let last = last.map_or("no instruction".into(), |last| last.to_string());
            found.push(format!("the processor stopped at {:08x}: {last}", outcome.state.eip));
        }
        Ok(Verdict::Different(report(case, &self.world.layout, length, &found)))
    }

    /// The instruction that the processor stopped at; `None` when it isn't one.
    fn instruction_at(&self, eip: u32) -> Option<Instruction> {
        instruction_in(&self.world.layout, self.oracle.memory(), eip)
    }

    /// Whether the Switcher's processor, by our own table, doesn't have the instruction that the Switcher
    /// said so of.
    fn stopped_at_foreign(&mut self, switcher: Stop, eip: u32) -> bool {
        if switcher != UNDEFINED {
            return false;
        }
        let instruction = instruction_in(&self.world.layout, self.machine.memory(), eip);
        instruction.is_some_and(|it| classify(it.code()) == Class::NotOffered)
    }

    /// Runs `case` on the Switcher alone and says how it stopped, and what it changed, eip included.
    pub fn run_alone(&mut self, case: &Case) -> (Stop, Vec<String>) {
        let (stop, state) = self.machine.run(case);
        let before = Seen { stop, state: case.state, memory: &case.memory };
        let after = Seen { stop, state, memory: self.machine.memory() };
        (stop, differences(&before, &after, &self.world.layout, 0))
    }
}
