//! A whole processor, as bare as on a PC: its tables lie in memory, its kernel runs at level 0.
//!
//! What is around it, a [`Board`] says. 16-bit code, virtual-8086 mode and hardware tasks aren't there: see
//! `docs/switcher/limits.md`.
//!
//! - `system`: the tables in memory, as the processor reads them;
//! - `fpu`: FPU instructions while the FPU isn't to be used;
//! - `gates`, `delivery`: how exceptions and interrupts reach their handlers.

mod delivery;
mod fpu;
mod gates;
mod system;

use crate::instructions::{Done, Effect, execute};
use crate::registers::{SystemRegisters, cr0};
pub use delivery::{Event, Source};
use iced_x86::Instruction;
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::{IF, TF};
use lguest_switcher::{
    Config, Exception, Exit, GuestMemory, GuestVirt, SegmentRegister, SetupError, Vcpu,
};
use std::sync::Arc;
pub use system::{BareSystem, Board};

/// A processor and its board.
pub struct Bare<B> {
    /// The half that runs code.
    pub vcpu: Vcpu,
    /// The other half.
    pub system: BareSystem<B>,
    /// `hlt` was executed, and nothing has happened since.
    halted: bool,
    /// `sti` holds interrupts back until the instruction at this address has been executed.
    shadow: Option<u32>,
}

/// Why a processor stopped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stop {
    /// It waits for an interrupt; there is none, or they are disabled.
    Halted,
    /// Somebody called [`Kicker::kick`](lguest_switcher::Kicker::kick), or the alarm rang.
    Kicked,
    /// An exception could not be delivered, nor could the double fault: shutdown, as after reset.
    Shutdown {
        /// What could not be delivered at last.
        exception: Exception,
    },
    /// An instruction that the Switcher can't run. eip is at it.
    Unsupported(Instruction),
}

/// How guest code was left.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Left {
    /// It can go on.
    Going,
    /// This is to be delivered.
    Raised(Event),
    /// Somebody else must know.
    Stopped(Stop),
}

impl From<Exception> for Left {
    fn from(exception: Exception) -> Self {
        Self::Raised(exception.into())
    }
}

impl<B: Board> Bare<B> {
    /// A processor on `memory` in protected mode at level 0, with flat segments, without paging and interrupts, everything
    /// else as after reset; eip is 0.
    ///
    /// # Errors
    /// What this machine lacks to run one.
    pub fn new(memory: Arc<GuestMemory>, board: B) -> Result<Self, SetupError> {
        let config = Config { kernel_start: GuestVirt(0), ..Config::default() };
        let vcpu = Vcpu::new(Arc::clone(&memory), config)?;
        let registers = SystemRegisters::new(cr0::PE | cr0::ET, system::CR4_OFFERED);
        let system = BareSystem { memory, registers, board };
        Ok(Self { vcpu, system, halted: false, shadow: None })
    }

    /// Runs until something happens that somebody else must know.
    pub fn run(&mut self) -> Stop {
        loop {
            if let Some(stop) = self.turn(false) {
                return stop;
            }
        }
    }

    /// Executes one instruction, or delivers an interrupt that is due. What the instruction raises is delivered too.
    pub fn step(&mut self) -> Option<Stop> {
        self.turn(true)
    }

    /// Delivers an interrupt that is due, or lets guest code run until it leaves once, at the latest after one instruction
    /// if `once`.
    fn turn(&mut self, once: bool) -> Option<Stop> {
        if self.interrupts_allowed()
            && let Some(vector) = self.system.board.interrupt()
        {
            self.halted = false;
            let event = Event { vector, error: None, source: Source::External };
            return self.delivered(event);
        }
        if self.halted {
            return Some(Stop::Halted);
        }
        match self.leave(once) {
            Left::Going => None,
            Left::Raised(event) => self.delivered(event),
            Left::Stopped(stop) => Some(stop),
        }
    }

    /// Executes one instruction, and delivers nothing: for whoever wants to look in between. [`enter`](Self::enter) is the
    /// other half.
    pub fn execute(&mut self) -> Left {
        self.leave(true)
    }

    /// Lets guest code run until it leaves once, at the latest after one instruction if `once`.
    fn leave(&mut self, once: bool) -> Left {
        let shadowed = self.shadow.is_some() || self.vcpu.holds_interrupts();
        let step = once || shadowed && self.system.board.is_interrupting();
        let flags = self.vcpu.cpu.eflags();
        if step {
            self.vcpu.cpu.set_eflags(flags | TF);
        }
        let exit = self.vcpu.run(&mut self.system);
        let own_step = step && flags & TF == 0;
        if own_step {
            self.vcpu.cpu.set_eflags(self.vcpu.cpu.eflags() & !TF);
        }
        if exit != Exit::Kicked {
            self.shadow = None;
        }
        match exit {
            Exit::Debug(SINGLE_STEP) if own_step => Left::Going,
            Exit::Debug(reasons) if own_step => Left::Raised(Event::debug(reasons & !SINGLE_STEP)),
            Exit::Debug(reasons) => Left::Raised(Event::debug(reasons)),
            Exit::Exception(Exception::NO_FPU) => self.without_fpu(),
            Exit::Exception(exception) => exception.into(),
            Exit::SoftwareInterrupt { vector, length } => {
                let source = Source::Software { length };
                Left::Raised(Event { vector, error: None, source })
            }
            Exit::Privileged(instruction) => self.privileged(&instruction),
            Exit::Kicked => Left::Stopped(Stop::Kicked),
            Exit::Watched => Left::Going,
            Exit::Unsupported(instruction) => Left::Stopped(Stop::Unsupported(instruction)),
        }
    }

    /// Interrupts are enabled, and no instruction holds them back.
    fn interrupts_allowed(&self) -> bool {
        let shadowed = self.shadow == Some(self.vcpu.cpu.eip()) || self.vcpu.holds_interrupts();
        self.vcpu.cpu.eflags() & IF != 0 && !shadowed
    }

    /// eip is at a privileged instruction.
    fn privileged(&mut self, instruction: &Instruction) -> Left {
        let stepping = self.vcpu.cpu.eflags() & TF != 0;
        let Done { effect, hits } = match execute(&mut self.vcpu, &mut self.system, instruction) {
            Ok(done) => done,
            Err(exception) => return exception.into(),
        };
        match effect {
            Effect::None => {}
            Effect::Halt => self.halted = true,
            Effect::Shadow => self.shadow = Some(self.vcpu.cpu.eip()),
        }
        let reasons = hits | if stepping { SINGLE_STEP } else { 0 };
        if reasons == 0 { Left::Going } else { Left::Raised(Event::debug(reasons)) }
    }

    fn delivered(&mut self, event: Event) -> Option<Stop> {
        self.deliver(event).err().map(|exception| Stop::Shutdown { exception })
    }

    /// The address of the instruction at eip.
    #[must_use]
    pub fn linear_eip(&self) -> GuestVirt {
        let cpu = &self.vcpu.cpu;
        GuestVirt(cpu.segment(SegmentRegister::Cs).base.wrapping_add(cpu.eip()))
    }
}
