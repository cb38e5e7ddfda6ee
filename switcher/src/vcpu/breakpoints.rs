//! Breakpoints, and the traps behind an instruction (SDM volume 3, section "Debug Exceptions").
//!
//! Code runs at full speed while breakpoints are set; what they concern isn't there to run into.
//! An instruction with a breakpoint is never translated as part of a unit: whoever comes to it asks Rust where it
//! is, and is told no. A page with a data breakpoint isn't shown in any window (or for reading only), so every
//! access to it faults. Then the instruction goes *alone*: it is translated by itself, and what it does with
//! memory is done by Rust, which looks at each access. So does an instruction that has been looked
//! at already, since RF is set.

use super::Vcpu;
use super::run::Resume;
use crate::address::GuestVirt;
use crate::breakpoints::{Breakpoint, Breakpoints, SINGLE_STEP};
use crate::cpu::{RF, SegmentRegister, TF};
use crate::exit::Exit;

/// The one exception of [`Exit::Exception`]'s that is a trap: #DB, by `int1`.
const DEBUG: u8 = 1;

impl Vcpu {
    /// Sets the breakpoints, in the order of their bits in [`Exit::Debug`]. Code that has nothing to do with
    /// them runs as fast as without; accesses to a *page* with a data breakpoint are slow.
    ///
    /// Accesses that the embedder makes in the guest's name don't count, [`iret`](Self::iret) among them: it
    /// asks [`breakpoints_touched`](Self::breakpoints_touched).
    pub fn set_breakpoints(&mut self, breakpoints: [Option<Breakpoint>; 4]) {
        let new = Breakpoints::new(breakpoints);
        let old = std::mem::replace(&mut self.spaces.breakpoints, new);
        if new == old {
            return;
        }
        self.spaces.windows.watch(new.watched_pages().collect());
        let only = |these: Breakpoints, those: Breakpoints| {
            these.instructions().filter(|&linear| those.before(linear) == 0).collect::<Vec<_>>()
        };
        for linear in [only(old, new), only(new, old)].concat() {
            let page = GuestVirt(linear).page_number();
            for frame in self.code.frames_of(page) {
                self.drop_page(page, frame);
            }
        }
    }

    /// The breakpoints that an access to `len` bytes at `at` hits, as bits 0 to 3: for instructions that the
    /// embedder carries out.
    #[must_use]
    pub fn breakpoints_touched(&self, at: GuestVirt, len: u32, write: bool) -> u32 {
        self.spaces.breakpoints.touched(at, len, write)
    }

    /// Before the first instruction of a run: RF says that its breakpoint has been looked at. It holds
    /// for the one instruction.
    pub(super) fn begin(&mut self) -> Resume {
        let eflags = self.cpu.eflags();
        if eflags & RF != 0 {
            self.cpu.set_eflags(eflags & !RF);
        }
        self.go_on(eflags & RF != 0)
    }

    /// Goes on with the instruction at eip, whose breakpoint counts unless it was `looked_at`, or traps are held
    /// back.
    fn go_on(&mut self, looked_at: bool) -> Resume {
        let base = self.cpu.segment(SegmentRegister::Cs).base;
        let linear = self.cpu.eip().wrapping_add(base);
        let passes = looked_at || self.held != 0;
        self.looked_at = passes && self.spaces.breakpoints.before(linear) != 0;
        self.alone = self.looked_at || self.held != 0;
        self.enter_world();
        Resume::Eip
    }

    /// Goes on with the instruction at eip, which touches a page with a data breakpoint.
    pub(super) fn go_alone(&mut self) -> Resume {
        self.alone = true;
        self.enter_world();
        Resume::Eip
    }

    /// What follows an instruction that is complete, and has hit these data breakpoints.
    pub(super) fn after_instruction(&mut self, hits: u32) -> Result<Resume, Exit> {
        self.looked_at = false;
        self.report(hits)?;
        Ok(self.go_on(false))
    }

    /// What follows some steps of a repeated string instruction that isn't finished. It has been
    /// looked at, however it goes on.
    pub(super) fn between_steps(&mut self, hits: u32) -> Result<Resume, Exit> {
        let looked_at = std::mem::replace(&mut self.looked_at, true);
        self.report(hits)?;
        Ok(self.go_on(looked_at))
    }

    /// What follows a load of ss by `mov` or `pop`: traps are held back until esp is new too, and so is the
    /// next instruction's breakpoint (SDM volume 3, section "Masking Exceptions and Interrupts When
    /// Switching Stacks").
    pub(super) fn after_new_stack(&mut self, hits: u32) -> Resume {
        self.held |= hits;
        self.go_on(true)
    }

    /// The trap behind an instruction, if there is a reason for one.
    fn report(&mut self, hits: u32) -> Result<(), Exit> {
        let step = if self.cpu.eflags() & TF == 0 { 0 } else { SINGLE_STEP };
        match std::mem::take(&mut self.held) | hits | step {
            0 => Ok(()),
            causes => Err(Exit::Debug(causes)),
        }
    }

    /// Makes RF what an exception's frame shows (SDM volume 3, section "Instruction-Breakpoint Exception
    /// Condition"): set for faults, and where an instruction goes on that has been looked at. A fault also
    /// ends what a new stack holds back.
    pub(super) fn end(&mut self, exit: Exit) -> Exit {
        let resumes = match exit {
            Exit::Exception(exception) => exception.vector != DEBUG,
            Exit::Debug(_) | Exit::Kicked | Exit::Unsupported(_) => self.looked_at,
            Exit::SoftwareInterrupt { .. } | Exit::Privileged(_) | Exit::Watched => false,
        };
        if matches!(exit, Exit::Exception(_)) {
            self.held = 0;
        }
        if resumes {
            self.cpu.set_eflags(self.cpu.eflags() | RF);
        }
        exit
    }
}
