//! The flags register as a whole: `pushf`, `popf`, `cli`, `sti`.
//!
//! Who may change what: IOPL only level 0; IF levels up to IOPL; the rest everyone (SDM volume 3,
//! section "System Flags and Fields in the EFLAGS Register"). Where the interrupt flag is kept is the system's business.

use super::{Effect, PROTECTION, Processor};
use crate::stack::{moved, on_stack};
use lguest_switcher::cpu::{IF, IOPL, RF, VM};
use lguest_switcher::{Exception, Gpr, SegmentRegister};

impl Processor<'_> {
    pub(super) fn disable_interrupts(&mut self) -> Result<(), Exception> {
        if !self.has_io_privilege() {
            return Err(PROTECTION);
        }
        self.system.enable_interrupts(&mut self.vcpu.cpu, false);
        Ok(())
    }

    pub(super) fn enable_interrupts(&mut self) -> Result<Effect, Exception> {
        if !self.has_io_privilege() {
            return Err(PROTECTION);
        }
        let enabled = self.system.interrupts_enabled(&self.vcpu.cpu);
        self.system.enable_interrupts(&mut self.vcpu.cpu, true);
        Ok(if enabled { Effect::None } else { Effect::Shadow })
    }

    /// `pushf`, and with `wide` `pushfd`: RF and VM read as 0.
    pub(super) fn push_flags(&mut self, wide: bool) -> Result<(), Exception> {
        let cpu = &self.vcpu.cpu;
        let interrupts = if self.system.interrupts_enabled(cpu) { IF } else { 0 };
        let flags = cpu.eflags() & !(RF | VM | IF) | interrupts;
        let bytes = flags.to_le_bytes();
        let bytes = if wide { &bytes[..] } else { &bytes[..2] };
        let stack = cpu.segment(SegmentRegister::Ss);
        let esp = moved(&stack, cpu.gpr(Gpr::Esp), 0u32.wrapping_sub(bytes.len() as u32));
        let at = on_stack(&stack, esp, bytes.len() as u32)?;
        self.write(at, bytes)?;
        self.vcpu.cpu.set_gpr(Gpr::Esp, esp);
        Ok(())
    }

    /// `popf`, and with `wide` `popfd`. RF is cleared, VM stays.
    pub(super) fn pop_flags(&mut self, wide: bool) -> Result<(), Exception> {
        let cpu = &self.vcpu.cpu;
        let (stack, esp, before) =
            (cpu.segment(SegmentRegister::Ss), cpu.gpr(Gpr::Esp), cpu.eflags());
        let len = if wide { 4 } else { 2 };
        let at = on_stack(&stack, esp, len)?;
        let popped = if wide {
            u32::from_le_bytes(self.read(at)?)
        } else {
            u32::from(u16::from_le_bytes(self.read(at)?)) | before & 0xffff_0000
        };
        let changes_interrupts = self.has_io_privilege();
        let cpu = &mut self.vcpu.cpu;
        let kept = if cpu.cpl() == 0 { IF | VM } else { IF | VM | IOPL };
        cpu.set_eflags(popped & !(kept | RF) | before & kept);
        cpu.set_gpr(Gpr::Esp, moved(&stack, esp, len));
        if changes_interrupts {
            self.system.enable_interrupts(cpu, popped & IF != 0);
        }
        Ok(())
    }
}
