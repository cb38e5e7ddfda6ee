//! `sysenter` and `sysexit`: into the kernel and back, without a look at any table.
//!
//! The four segments that are used lie one behind the other in the GDT, from the one in IA32_SYSENTER_CS on; but
//! what is loaded is flat, whatever the table says (SDM volume 2, "SYSENTER" and "SYSEXIT").

use super::{Effect, PROTECTION, Processor};
use lguest_switcher::cpu::VM;
use lguest_switcher::{Exception, Gpr, Segment, SegmentRegister};

impl Processor<'_> {
    /// `sysenter`: into the kernel, with interrupts off, from wherever.
    pub(super) fn sysenter(&mut self) -> Result<Effect, Exception> {
        let target = self.system.registers().fast_call;
        let cs = self.first_segment()?;
        let level = u16::from(self.system.kernel_level());
        self.load_flat(cs | level, cs.wrapping_add(8) | level);
        self.vcpu.cpu.set_gpr(Gpr::Esp, target.esp);
        self.vcpu.cpu.set_eip(target.eip);
        self.system.enable_interrupts(&mut self.vcpu.cpu, false);
        Ok(Effect::None)
    }

    /// `sysexit`: back to user mode, with ecx and edx as esp and eip.
    pub(super) fn sysexit(&mut self) -> Result<Effect, Exception> {
        let cs = self.first_segment()?;
        self.load_flat(cs.wrapping_add(16) | 3, cs.wrapping_add(24) | 3);
        let cpu = &mut self.vcpu.cpu;
        let (esp, eip) = (cpu.gpr(Gpr::Ecx), cpu.gpr(Gpr::Edx));
        cpu.set_gpr(Gpr::Esp, esp);
        cpu.set_eip(eip);
        Ok(Effect::None)
    }

    /// The selector in IA32_SYSENTER_CS, without its level.
    fn first_segment(&self) -> Result<u16, Exception> {
        let cs = self.system.registers().fast_call.cs as u16 & !3;
        if cs == 0 { Err(PROTECTION) } else { Ok(cs) }
    }

    fn load_flat(&mut self, cs: u16, ss: u16) {
        let cpu = &mut self.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Ss, Segment::flat_data(ss));
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(cs));
        cpu.set_eflags(cpu.eflags() & !VM);
    }
}
