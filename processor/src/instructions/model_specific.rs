//! Model-specific registers (SDM volume 4).

use super::{PROTECTION, Processor};
use lguest_switcher::{Exception, Gpr, timestamp};

/// The time stamp counter.
const TIME_STAMP: u32 = 0x10;
/// Where `sysenter` goes.
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

impl Processor<'_> {
    pub(super) fn read_model_specific(&mut self) -> Result<(), Exception> {
        let fast_call = self.system.registers().fast_call;
        let value = match self.vcpu.cpu.gpr(Gpr::Ecx) {
            TIME_STAMP => timestamp(),
            SYSENTER_CS => fast_call.cs.into(),
            SYSENTER_ESP => fast_call.esp.into(),
            SYSENTER_EIP => fast_call.eip.into(),
            index => self.system.read_model_specific(index).ok_or(PROTECTION)?,
        };
        self.vcpu.cpu.set_gpr(Gpr::Eax, value as u32);
        self.vcpu.cpu.set_gpr(Gpr::Edx, (value >> 32) as u32);
        Ok(())
    }

    /// The time stamp counter is the host's own and can't be set.
    pub(super) fn write_model_specific(&mut self) -> Result<(), Exception> {
        let cpu = &self.vcpu.cpu;
        let (low, high) = (cpu.gpr(Gpr::Eax), cpu.gpr(Gpr::Edx));
        let fast_call = &mut self.system.registers_mut().fast_call;
        match cpu.gpr(Gpr::Ecx) {
            TIME_STAMP => return Err(PROTECTION),
            SYSENTER_CS => fast_call.cs = low & 0xffff,
            SYSENTER_ESP => fast_call.esp = low,
            SYSENTER_EIP => fast_call.eip = low,
            index => {
                let value = u64::from(high) << 32 | u64::from(low);
                self.system.write_model_specific(index, value).ok_or(PROTECTION)?;
            }
        }
        Ok(())
    }
}
