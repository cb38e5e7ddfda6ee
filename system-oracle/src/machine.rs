//! A machine that can be put into a state, does one thing, and is looked at.

use crate::state::State;

/// What one instruction came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was carried out. An interrupt shadow or the like may be left.
    Done,
    /// It was `hlt`, and was carried out.
    Halted,
    /// It raised an exception, which hasn't been delivered: the state is the one that the handler would return to.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, for the vectors that have one.
        error: Option<u32>,
    },
    /// It was `int n`, `int3`, `into` or `int1`, and the interrupt hasn't been delivered; eip is behind it.
    Software(u8),
    /// It reached for physical memory that isn't there, or did what this machine can't.
    Beyond,
}

impl Outcome {
    /// A general protection exception, say.
    #[must_use]
    pub const fn fault(vector: u8, error: u32) -> Self {
        Self::Exception { vector, error: Some(error) }
    }
}

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A device.
    External,
    /// `int n` of two bytes, which eip is behind.
    Software,
}

/// A processor with its memory.
pub trait Machine {
    /// Puts it into a state, caches of translations empty.
    fn load(&mut self, state: &State);

    /// Carries out the instruction at eip, and delivers nothing.
    fn step(&mut self) -> Outcome;

    /// Delivers an interrupt. What is raised meanwhile isn't delivered.
    fn interrupt(&mut self, vector: u8, origin: Origin) -> Outcome;

    /// The state it is in.
    fn save(&self) -> State;
}

/// A machine that delivers by itself what it raises.
pub trait Delivers: Machine {
    /// Delivers what [`Machine::step`] came to: an exception or a software interrupt. What is raised meanwhile isn't
    /// delivered, but returned.
    fn deliver(&mut self, event: Outcome) -> Outcome;

    /// Carries out the instruction at eip, and delivers what it raises, and what that raises, until it is at an instruction
    /// again or has shut down.
    fn step_and_deliver(&mut self) -> End;
}

/// How a step ended with all that followed from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It is at an instruction.
    Running,
    /// It waits for an interrupt.
    Halted,
    /// It has shut down: a fault while a double fault was delivered.
    Shutdown,
}
