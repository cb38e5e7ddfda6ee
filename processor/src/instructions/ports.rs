//! Ports: `in`, `out`, and their string forms. What is behind a port is the system's business.
//!
//! Levels up to IOPL may use all ports. Others may use those that the current task's I/O
//! permission bit map has clear bits for (SDM volume 1, section "I/O Permission Bit Map").

use super::operands::general;
use super::{Effect, PROTECTION, Processor};
use crate::registers::SystemSegment;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lguest_switcher::{Exception, Gpr, GuestVirt};

/// Elements that one turn of a `rep` moves before somebody else may have a turn.
const AT_ONCE: u32 = 1024;
/// eflags: strings run downwards.
const DIRECTION: u32 = 1 << 10;

impl Processor<'_> {
    /// `in`.
    pub(super) fn port_in(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let bytes = accumulator_bytes(instruction.op0_register());
        let port = self.port(instruction.op1_kind(), instruction, bytes)?;
        self.hits |= self.system.registers().port_breakpoints(port, bytes);
        let value = self.system.port_in(port, bytes);
        let mask = u32::MAX >> (32 - bytes * 8);
        let eax = self.vcpu.cpu.gpr(Gpr::Eax);
        self.vcpu.cpu.set_gpr(Gpr::Eax, eax & !mask | value & mask);
        Ok(())
    }

    /// `out`.
    pub(super) fn port_out(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let bytes = accumulator_bytes(instruction.op1_register());
        let port = self.port(instruction.op0_kind(), instruction, bytes)?;
        let value = self.vcpu.cpu.gpr(Gpr::Eax) & u32::MAX >> (32 - bytes * 8);
        self.hits |= self.system.registers().port_breakpoints(port, bytes);
        self.system.port_out(port, bytes, value);
        Ok(())
    }

    /// `ins` and `outs`, with or without `rep`. A long one is left unfinished, eip still at it, so that
    /// interrupts get their turn; a fault leaves the registers as after the last whole element.
    pub(super) fn port_string(&mut self, instruction: &Instruction) -> Result<Effect, Exception> {
        let input =
            matches!(instruction.mnemonic(), Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd);
        let size = match instruction.mnemonic() {
            Mnemonic::Insb | Mnemonic::Outsb => 1,
            Mnemonic::Insw | Mnemonic::Outsw => 2,
            _ => 4,
        };
        let port = self.port(OpKind::Register, instruction, size)?;
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let kind = if input { instruction.op0_kind() } else { instruction.op1_kind() };
        let narrow = matches!(kind, OpKind::MemoryESDI | OpKind::MemorySegSI);
        let mask = if narrow { 0xffff } else { u32::MAX };
        let index = general(if input { Register::EDI } else { Register::ESI });
        let step =
            if self.vcpu.cpu.eflags() & DIRECTION != 0 { 0u32.wrapping_sub(size) } else { size };
        for _ in 0..AT_ONCE {
            let count = self.vcpu.cpu.gpr(Gpr::Ecx);
            if repeated && count & mask == 0 {
                self.skip(instruction);
                break;
            }
            let at = self.vcpu.linear_address(instruction, size, input)?;
            self.transfer(at, port, size, input)?;
            self.advance(index, step, mask);
            if !repeated {
                self.skip(instruction);
                break;
            }
            self.advance(Gpr::Ecx, u32::MAX, mask);
            if self.hits != 0 {
                // The trap comes between two elements.
                break;
            }
        }
        Ok(Effect::None)
    }

    /// One element, between memory and a port. What comes from a port is read once: memory is asked first.
    fn transfer(
        &mut self,
        at: GuestVirt,
        port: u16,
        size: u32,
        input: bool,
    ) -> Result<(), Exception> {
        let user = self.user();
        let mut element = [0; 4];
        let element = &mut element[..size as usize];
        self.hits |= self.system.registers().port_breakpoints(port, size);
        if input {
            self.vcpu.check_write(self.system, at, size, user)?;
            let value = self.system.port_in(port, size).to_le_bytes();
            element.copy_from_slice(&value[..size as usize]);
            self.vcpu.write_virt(self.system, at, element, user)?;
            self.touch(at, size, true);
            return Ok(());
        }
        self.vcpu.read_virt(self.system, at, element, user)?;
        self.touch(at, size, false);
        let value = element.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.system.port_out(port, size, value);
        Ok(())
    }

    /// Adds to the part of a register that `mask` covers.
    fn advance(&mut self, register: Gpr, step: u32, mask: u32) {
        let old = self.vcpu.cpu.gpr(register);
        self.vcpu.cpu.set_gpr(register, old & !mask | old.wrapping_add(step) & mask);
    }

    /// The port that an operand names, in dx or as an immediate, if the current level may use `bytes` bytes there.
    fn port(
        &mut self,
        kind: OpKind,
        instruction: &Instruction,
        bytes: u32,
    ) -> Result<u16, Exception> {
        let port = match kind {
            OpKind::Immediate8 => instruction.immediate8().into(),
            _ => self.vcpu.cpu.gpr(Gpr::Edx) as u16,
        };
        if self.has_io_privilege() || self.bit_map_allows(port, bytes)? {
            return Ok(port);
        }
        Err(PROTECTION)
    }

    /// The current task's bit map has clear bits for all of these ports. Two bytes of it are read, and both must
    /// lie within the segment's limit. A 16-bit task has none.
    fn bit_map_allows(&mut self, port: u16, bytes: u32) -> Result<bool, Exception> {
        /// Where a task segment says at which offset its bit map starts.
        const MAP_BASE: u32 = 0x66;
        const TASK_16: u8 = 0x08;
        let SystemSegment { table, kind, .. } = self.system.registers().task;
        if kind & TASK_16 == 0 || table.limit <= MAP_BASE {
            return Ok(false);
        }
        let start = u16::from_le_bytes(self.read_table(table.base.wrapping_add(MAP_BASE))?);
        let offset = u32::from(start) + u32::from(port / 8);
        if offset >= table.limit {
            return Ok(false);
        }
        let bits = u16::from_le_bytes(self.read_table(table.base.wrapping_add(offset))?);
        let wanted = ((1 << bytes) - 1) << (port % 8);
        Ok(bits & wanted == 0)
    }
}

/// Bytes of al, ax or eax.
fn accumulator_bytes(register: Register) -> u32 {
    match register {
        Register::AL => 1,
        Register::AX => 2,
        _ => 4,
    }
}
