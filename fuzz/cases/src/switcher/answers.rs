//! What the embedder does about each exit, and to the world.

use super::case::{Disturbance, Step};
use super::checks::State;
use super::world::PAGES;
use super::{GPR, Machine, processor_time};
use iced_x86::Mnemonic;
use lguest_switcher::{Exit, GuestVirt, PAGE_SIZE, SegmentRegister, View};
use std::time::Duration;

impl Machine {
    /// Runs the guest to an exit that isn't a kick's or a single step's; `None` when that takes too long.
    pub(super) fn run_until_exit(
        &mut self,
        until: Duration,
        disturbance: Option<&Disturbance>,
    ) -> Option<Exit> {
        loop {
            let left = until.checked_sub(processor_time())?;
            let alarm = disturbance.map_or(0, |disturbance| disturbance.alarm);
            let soon = if alarm == 0 { left } else { Duration::from_micros(alarm.into()) };
            self.vcpu.set_alarm(Some(left.min(soon).max(Duration::from_micros(1))));
            self.world.note_rights(self.vcpu.cpu.cpl() == 3);
            let instruction = if self.step { self.instruction() } else { None };
            self.world.refused.clear();
            let (before, kicked) = (State::of(&self.vcpu.cpu), std::mem::take(&mut self.kicked));
            let exit = self.vcpu.run(&mut self.world);
            self.check(&before, &exit);
            if self.step && before.eip() == self.vcpu.cpu.eip() {
                self.overwritten |= instruction != self.instruction();
            }
            self.world.quiet = before == State::of(&self.vcpu.cpu);
            assert!(!kicked || exit == Exit::Kicked, "it was kicked, and {exit:?}");
            match exit {
                Exit::Kicked if disturbance.is_some_and(|disturbance| disturbance.forget) => {
                    self.forget_all();
                }
                Exit::Kicked | Exit::Debug(_) => {}
                exit => return Some(exit),
            }
        }
    }

    /// Goes on behind an exit.
    pub(super) fn answer(&mut self, exit: &Exit, start: u32, level: u16) {
        let eip = self.vcpu.cpu.eip();
        match exit {
            // eip is behind the instruction already.
            Exit::SoftwareInterrupt { .. } | Exit::Debug(_) | Exit::Watched | Exit::Kicked => {}
            Exit::Exception(_) => self.vcpu.cpu.set_eip(eip.wrapping_add(1)),
            Exit::Privileged(instruction) => {
                let size = match instruction.mnemonic() {
                    Mnemonic::Iret => Some(2),
                    Mnemonic::Iretd => Some(4),
                    _ => None,
                };
                let returned =
                    size.is_some_and(|size| self.vcpu.iret(&mut self.world, size).is_ok());
                if returned {
                    self.set_flags(self.vcpu.cpu.eflags());
                } else {
                    self.vcpu.cpu.set_eip(eip.wrapping_add(instruction.len() as u32));
                }
            }
            Exit::Unsupported(_) => {
                self.enter_level(level);
                self.vcpu.cpu.set_eip(start);
            }
        }
    }

    /// Does what the case has for this moment.
    pub(super) fn take(&mut self, step: &Step) {
        let vcpu = &mut self.vcpu;
        match step {
            Step::Nothing => {}
            Step::Jump(at) => vcpu.cpu.set_eip(*at),
            Step::Level(level) => self.enter_level(*level),
            Step::Register(index, value) => vcpu.cpu.set_gpr(GPR[*index], *value),
            Step::Flags(flags) => self.set_flags(*flags),
            Step::FpuTrap(on) => vcpu.cpu.set_fpu_trap(*on),
            Step::Load(register, selector) => {
                // What the processor refuses isn't loaded.
                let _ = vcpu.load_segment(&mut self.world, *register, *selector);
            }
            Step::CodeSegment(selector) => {
                if let Some(code) = self.world.code_segment(*selector, vcpu.cpu.cpl().into()) {
                    vcpu.cpu.set_segment(SegmentRegister::Cs, code);
                }
            }
            Step::Page(index, page) => {
                self.world.set_page(*index, *page);
                for view in [View::Kernel, View::AllUsers] {
                    vcpu.unmap(view, GuestVirt(PAGES[*index] * PAGE_SIZE), 1);
                }
            }
            Step::Store(at, bytes) => self.world.store(&self.memory, *at, &bytes.0),
            Step::Write(at, bytes, user) => {
                self.world.note_rights(*user);
                let _ = vcpu.write_virt(&mut self.world, GuestVirt(*at), &bytes.0, *user);
            }
            Step::Show(index) => {
                if self.world.page(*index).present {
                    let mapping = self.world.mapping(*index);
                    vcpu.map(View::Kernel, mapping);
                    vcpu.map(View::AllUsers, mapping);
                }
            }
            Step::ForgetAll => self.forget_all(),
            Step::NewSpace => {
                let before = vcpu.current_space();
                let space = vcpu.create_space().expect("room for a window");
                vcpu.switch_space(space);
                vcpu.destroy_space(before);
            }
            Step::Kick => {
                vcpu.kicker().kick();
                self.kicked = true;
            }
        }
    }

    fn forget_all(&mut self) {
        self.vcpu.unmap_all(View::Kernel);
        self.vcpu.unmap_all(View::AllUsers);
    }
}
