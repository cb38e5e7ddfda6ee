//! The loop: find code, run it, see why it came back.

use super::Vcpu;
use super::code_store::CodeSegment;
use super::dispatch::{Links, Target};
use super::guest_bus::GuestBus;
use crate::cpu::SegmentRegister;
use crate::emulate::{Outcome, emulate};
use crate::environment::Environment;
use crate::execute::crossing;
use crate::execute::guest_code::{self, Start};
use crate::exit::{Exception, Exit};
use crate::frame::Reason;
use crate::translate::Pace;
use iced_x86::{Mnemonic, Register};

/// Where to go on, instead of at the code for eip.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resume {
    /// At the code for eip, wherever that is.
    Eip,
    /// At this cache offset: eip is right, but the code there relies on what was done before, and for an esp that r12 doesn't
    /// follow: so many bytes are still to be added.
    At(u32, i8),
    /// At this cache offset, where an instruction's operand is in the buffer. It is finished whatever else there is to do: a
    /// device that the operand came from may not give it a second time.
    Halfway(u32),
    /// At the code for eip; and a jump, whose displacement is at this cache offset, may go there by
    /// itself from now on, if no code is dropped meanwhile.
    Link { site: u32, drops: u64 },
    /// At the code for eip; and the jump table of this world may tell it from now on.
    Table,
}

impl Vcpu {
    /// Runs guest code until something happens that the embedder must decide.
    pub fn run(&mut self, env: &mut dyn Environment) -> Exit {
        // Translated code looks for kicks. A guest that faults at every instruction, since its handlers
        // aren't there, never gets so far.
        if self.kick.is_kicked() && self.kick.take() {
            return Exit::Kicked;
        }
        self.fpu.claim();
        self.last_fault = None;
        let mut resume = self.begin();
        loop {
            let between_instructions = !matches!(resume, Resume::Halfway(_));
            if between_instructions && self.memory.code_writes() != self.seen_writes {
                resume = self.drop_written_code(resume);
            }
            match self.advance(env, resume) {
                Ok(next) => resume = next,
                Err(exit) => return self.end(exit),
            }
        }
    }

    /// Runs translated code once, and deals with what it leaves for.
    fn advance(&mut self, env: &mut dyn Environment, resume: Resume) -> Result<Resume, Exit> {
        let undisturbed = matches!(resume, Resume::Halfway(_));
        let (at, moved) = match resume {
            Resume::At(at, moved) => (at, moved),
            Resume::Halfway(at) => (at, 0),
            _ => {
                let target = self.dispatch(env)?;
                self.link(resume, target);
                (target.at, 0)
            }
        };
        let frame = &mut self.cpu.frame;
        let reason = guest_code::run(
            frame,
            &mut self.code.cache,
            &self.code.map,
            &self.kick,
            &self.alarm,
            Start { at, moved, undisturbed },
        );
        let detail = frame.detail;
        self.follow();
        if reason != Reason::Kicked {
            self.new_stack_at = None;
        }
        // ANCHOR: advance
        match reason {
            Reason::Interrupt => Err(software_interrupt(detail as u8, detail >> 8)),
            Reason::Sensitive => self.emulate_here(env),
            Reason::Fault => self.host_fault(env),
            Reason::Bounce => self.bounce_in(env),
            Reason::BounceDone => self.bounce_out(env),
            // Nothing of the instruction has run yet; the kick stays for afterwards.
            Reason::Kicked if undisturbed => Ok(resume),
            Reason::Kicked if self.kick.take() => Err(Exit::Kicked),
            Reason::Kicked => Ok(Resume::Eip),
            Reason::Exception => Err(Exit::Exception(decided_exception(detail))),
            _ if self.assumptions.is_single() => self.after_instruction(0),
            Reason::Watched => Err(Exit::Watched),
            Reason::Stop => Ok(Resume::Eip),
            Reason::Indirect => Ok(Resume::Table),
            Reason::Chain if detail == 0 => Ok(Resume::Eip),
            Reason::Chain => Ok(Resume::Link { site: detail, drops: self.code.drops() }),
        }
        // ANCHOR_END: advance
    }

    /// Lets code that has just asked for `target` find it by itself next time.
    fn link(&mut self, resume: Resume, target: Target) {
        if target.links == Links::Nobody {
            return;
        }
        match resume {
            Resume::Link { site, drops }
                if drops == self.code.drops() && target.links == Links::Anyone =>
            {
                self.code.cache.patch(site, target.at);
            }
            Resume::Table if self.assumptions.flat && !self.assumptions.is_single() => {
                let (eip, user) = (self.cpu.eip(), self.assumptions.user);
                let keeper = self.spaces.keeper(user, eip);
                if let Some(world) = keeper.and_then(|slot| self.spaces.world_mut(slot)) {
                    world.jumps.set(eip, target.at);
                }
            }
            _ => {}
        }
    }

    /// Makes the frame that of the world that the processor's state asks for, if it isn't.
    pub(super) fn enter_world(&mut self) {
        let (mut assumptions, frame) = (self.cpu.assumptions(), &raw const *self.cpu.frame);
        if self.alone {
            assumptions.pace = Pace::Alone;
        }
        let same = assumptions == self.assumptions && assumptions.flat && frame == self.frame;
        if same && !self.world_changed {
            return;
        }
        let moved = frame != self.frame;
        (self.world_changed, self.assumptions, self.frame) = (false, assumptions, frame);
        let segment = self.cpu.segment(SegmentRegister::Cs);
        self.segment = CodeSegment { base: segment.base, limit: segment.limit };
        let slot = self.spaces.running(assumptions.user);
        let by_address_alone = assumptions.flat && !assumptions.is_single();
        let worlds = self.spaces.ends();
        if moved {
            self.cpu.set_gate(None);
        }
        let frame = &mut self.cpu.frame;
        frame.window = self.spaces.windows.base(slot);
        frame.table = self.spaces.jumps(slot, by_address_alone);
        frame.code = self.code.cache.base();
        frame.exit = crossing::leave_address();
        if moved || worlds != frame.worlds {
            frame.worlds = worlds;
            let (low, high) = frame.pick.split_at_mut((self.spaces.kernel_start() >> 24) as usize);
            let [kernel, user] = worlds.map(|world| world.window);
            low.fill(user);
            high.fill(kernel);
            self.cpu.refresh_slots();
        }
    }

    /// Carries out the instruction at eip in Rust.
    fn emulate_here(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        let instruction = self.translated_instruction(env)?;
        let user = self.assumptions.user;
        let mut bus = GuestBus::new(env, &self.spaces, &self.memory, user);
        let outcome = emulate(&mut self.cpu, &mut bus, &instruction).map_err(Exit::Exception)?;
        let hits = bus.hits;
        match outcome {
            Outcome::Privileged => return Err(Exit::Privileged(instruction)),
            Outcome::Unsupported => return Err(Exit::Unsupported(instruction)),
            Outcome::Interrupt(vector) => {
                return Err(software_interrupt(vector, instruction.len() as u32));
            }
            Outcome::Done | Outcome::Again => self.statistics.emulated += 1,
        }
        if outcome == Outcome::Again {
            return self.between_steps(hits);
        }
        let loads_stack = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
            && instruction.op0_register() == Register::SS;
        self.new_stack_at = loads_stack.then_some(self.cpu.eip());
        if loads_stack { Ok(self.after_new_stack(hits)) } else { self.after_instruction(hits) }
    }
}

fn software_interrupt(vector: u8, length: u32) -> Exit {
    Exit::SoftwareInterrupt { vector, length: length as u8 }
}

/// An exception that the translator decided on, as [`Reason::Exception`] describes it.
fn decided_exception(detail: u32) -> Exception {
    let vector = detail as u8;
    if detail & 1 << 8 != 0 {
        Exception::with_error(vector, detail >> 16)
    } else {
        Exception::plain(vector)
    }
}
