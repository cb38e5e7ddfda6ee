//! Operands: registers, and 16 bits of memory.

use super::Processor;
use iced_x86::{Instruction, OpKind, Register};
use lguest_switcher::{Exception, Gpr};

/// General registers in the order that instructions encode them.
const GPRS: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];

/// The general register that `register` is, or is a part of.
pub(super) fn general(register: Register) -> Gpr {
    GPRS[register.full_register32().number() % GPRS.len()]
}

impl Processor<'_> {
    /// The 16-bit operand of `lmsw`, `lldt`, `ltr`.
    pub(super) fn read_operand16(&mut self, instruction: &Instruction) -> Result<u16, Exception> {
        if instruction.op0_kind() == OpKind::Register {
            return Ok(self.vcpu.cpu.gpr(general(instruction.op0_register())) as u16);
        }
        let at = self.vcpu.linear_address(instruction, 2, false)?;
        Ok(u16::from_le_bytes(self.read(at)?))
    }

    /// The operand of `smsw`, `sldt`, `str`: 16 bits in memory, the register's width in a register.
    pub(super) fn write_operand(
        &mut self,
        instruction: &Instruction,
        value: u32,
    ) -> Result<(), Exception> {
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            let old = self.vcpu.cpu.gpr(general(register));
            let new = if register.is_gpr16() { old & 0xffff_0000 | value & 0xffff } else { value };
            self.vcpu.cpu.set_gpr(general(register), new);
            return Ok(());
        }
        let at = self.vcpu.linear_address(instruction, 2, true)?;
        Ok(self.write(at, &(value as u16).to_le_bytes())?)
    }
}
