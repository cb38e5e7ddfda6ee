//! What must be so at each exit.

use super::{GPR, Machine, Report};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use lguest_switcher::SegmentRegister::{self, Cs, Ds, Es, Fs, Gs, Ss};
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::{LIVE_FLAGS, RF, TF, VIRTUAL_FLAGS};
use lguest_switcher::{Cpu, Exception, Exit, GuestVirt, PAGE_SIZE, PageFault, Segment};

const SEGMENTS: [SegmentRegister; 6] = [Es, Cs, Ss, Ds, Fs, Gs];

/// The processor's state as the embedder sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    gpr: [u32; 8],
    eip: u32,
    eflags: u32,
    level: u8,
    segments: [Segment; 6],
}

impl State {
    pub(super) fn of(cpu: &Cpu) -> Self {
        Self {
            gpr: GPR.map(|register| cpu.gpr(register)),
            eip: cpu.eip(),
            eflags: cpu.eflags(),
            level: cpu.cpl(),
            segments: SEGMENTS.map(|register| cpu.segment(register)),
        }
    }

    pub(super) fn eip(&self) -> u32 {
        self.eip
    }

    fn without_step(self) -> Self {
        Self { eflags: self.eflags & !TF, ..self }
    }
}

/// Two runs must have seen the same; in what they differ, if not.
pub(super) fn same(alone: &Report, disturbed: &Report) -> Result<(), String> {
    for (index, (alone, disturbed)) in alone.exits.iter().zip(&disturbed.exits).enumerate() {
        let (alone, disturbed) =
            [alone, disturbed].map(|(exit, state)| (exit, state.without_step())).into();
        if alone != disturbed {
            return Err(format!("exit {index}: alone\n{alone:x?}\ndisturbed\n{disturbed:x?}"));
        }
    }
    if alone.exits.len() != disturbed.exits.len() {
        return Err(format!("{} exits, and {}", alone.exits.len(), disturbed.exits.len()));
    }
    let differs = alone.memory.iter().zip(&disturbed.memory).position(|(a, d)| a != d);
    if let Some(at) = differs {
        let (a, d) = (alone.memory[at], disturbed.memory[at]);
        return Err(format!("memory at {at:#x}: alone {a:#x}, disturbed {d:#x}"));
    }
    Ok(())
}

impl Machine {
    /// Checks an exit, and what has become of the state of `before`.
    pub(super) fn check(&mut self, before: &State, exit: &Exit) {
        let after = State::of(&self.vcpu.cpu);
        let at = || format!("{exit:x?}\nbefore {before:x?}\nafter {after:x?}");
        assert_eq!(
            after.eflags & !(LIVE_FLAGS | VIRTUAL_FLAGS),
            2,
            "flags that don't exist: {}",
            at()
        );
        // RF shows whether the exception is a fault.
        let changed = (before.eflags ^ after.eflags) & VIRTUAL_FLAGS & !RF;
        assert_eq!(changed, 0, "flags that are the embedder's: {}", at());
        assert!(after.level >= before.level, "the guest has raised itself: {}", at());
        let code = self.vcpu.cpu.segment(Cs);
        assert_eq!((code.selector & 3) as u8, after.level, "whose level is it? {}", at());
        match exit {
            Exit::Kicked | Exit::SoftwareInterrupt { .. } => {}
            Exit::Debug(reasons) => {
                assert_eq!((*reasons, before.eflags & TF), (SINGLE_STEP, TF), "{}", at());
            }
            Exit::Watched => assert!(self.watched, "nobody asked to be told: {}", at()),
            Exit::Exception(exception) => self.check_exception(exception, &at),
            Exit::Privileged(instruction) => {
                assert_eq!(self.instruction(), Some(*instruction), "it is another one: {}", at());
            }
            Exit::Unsupported(_) => assert!(!code.is_32bit(), "nothing explains it: {}", at()),
        }
    }

    fn check_exception(&self, exception: &Exception, at: &dyn Fn() -> String) {
        let Exception { vector, error, address } = *exception;
        assert!(vector < 32, "{}", at());
        assert_eq!(error.is_some(), matches!(vector, 8 | 10..=14 | 17), "an error code? {}", at());
        if let (14, Some(error)) = (vector, error) {
            let fault = PageFault { address, error };
            // Where there is no memory, there is no code either.
            let known = self.world.refused.contains(&fault) || self.world.shows_nothing(address);
            assert!(known, "nobody has refused that: {}", at());
        } else {
            assert_eq!(address, GuestVirt(0), "{}", at());
        }
    }

    /// The instruction at eip, as memory has it now.
    pub(super) fn instruction(&mut self) -> Option<Instruction> {
        let (eip, base) = (self.vcpu.cpu.eip(), self.vcpu.cpu.segment(Cs).base);
        let user = self.vcpu.cpu.cpl() == 3;
        let mut bytes = [0; 15];
        let at = GuestVirt(base.wrapping_add(eip));
        // Perhaps the next page isn't there; the instruction is, to its end.
        let here = bytes.len().min((PAGE_SIZE - at.offset()) as usize);
        let (first, second) = bytes.split_at_mut(here);
        self.vcpu.read_virt(&mut self.world, at, first, user).ok()?;
        let next = at.wrapping_add(here as u32);
        let _ = self.vcpu.read_virt(&mut self.world, next, second, user);
        // On our processor these prefixes mean nothing.
        let old = DecoderOptions::NO_MPFX_0FBC
            | DecoderOptions::NO_MPFX_0FBD
            | DecoderOptions::NO_WBNOINVD;
        let mut decoder = Decoder::with_ip(32, &bytes, eip.into(), old);
        Some(decoder.decode())
    }
}
