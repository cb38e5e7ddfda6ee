//! Reading and writing an instruction's operand, wherever it is: register, immediate or memory.

use super::{Bus, Pieces, linear_address, registers};
use crate::address::GuestVirt;
use crate::cpu::Cpu;
use crate::exit::Exception;
use iced_x86::{Instruction, OpKind, Register};

/// Bytes of the instruction's operand size: 2 with an operand-size prefix, otherwise 4. (Byte
/// operands have no such size.)
pub(super) fn operand_size(instruction: &Instruction) -> u32 {
    if instruction.code().op_code().operand_size() == 16 { 2 } else { 4 }
}

/// Reads `size` bytes (1, 2 or 4) of linear memory.
///
/// # Errors
/// The page fault.
pub(super) fn read_memory(bus: &mut dyn Bus, at: GuestVirt, size: u32) -> Result<u32, Exception> {
    let mut bytes = [0; 4];
    let (used, _) = bytes.split_at_mut(size.min(4) as usize);
    bus.read(at, used)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes the low `size` bytes (1, 2 or 4) of `value` to linear memory.
///
/// # Errors
/// The page fault; nothing has been written then.
pub(super) fn write_memory(
    bus: &mut dyn Bus,
    at: GuestVirt,
    size: u32,
    value: u32,
) -> Result<(), Exception> {
    let bytes = value.to_le_bytes();
    let (used, _) = bytes.split_at(size.min(4) as usize);
    bus.write(at, used)
}

/// The value of operand `index`, zero-extended from `size` bytes (1, 2 or 4): a general register
/// or a part of one, an immediate (sign-extended as the instruction means it), or memory.
///
/// # Errors
/// What the memory access raises.
pub(super) fn read_operand(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    index: u32,
    size: u32,
) -> Result<u32, Exception> {
    let value = match instruction.op_kind(index) {
        OpKind::Register => registers::read(cpu, instruction.op_register(index)),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32 => instruction.immediate(index) as u32,
        _ => {
            let at = linear_address(cpu, instruction, size, false)?;
            return read_memory(bus, at, size);
        }
    };
    Ok(if size >= 4 { value } else { value & ((1 << (size * 8)) - 1) })
}

/// Stores `value` to operand `index`: a register in the register's own width, memory in `size`
/// bytes (1, 2 or 4).
///
/// # Errors
/// What the memory access raises; nothing has changed then.
pub(super) fn write_operand(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    index: u32,
    size: u32,
    value: u32,
) -> Result<(), Exception> {
    if instruction.op_kind(index) == OpKind::Register {
        registers::write(cpu, instruction.op_register(index), value);
        return Ok(());
    }
    let at = linear_address(cpu, instruction, size, true)?;
    write_memory(bus, at, size, value)
}

/// A far pointer in memory or in the instruction: the offset (`size` bytes, 2 or 4), then the
/// selector.
///
/// # Errors
/// What the memory access raises.
pub(super) fn read_far_pointer(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    size: u32,
) -> Result<(u16, u32), Exception> {
    match instruction.op0_kind() {
        OpKind::FarBranch16 => {
            return Ok((instruction.far_branch_selector(), instruction.far_branch16().into()));
        }
        OpKind::FarBranch32 => {
            return Ok((instruction.far_branch_selector(), instruction.far_branch32()));
        }
        _ => {}
    }
    let offset = read_part(cpu, bus, instruction, 0, size)?;
    let selector = read_part(cpu, bus, instruction, size, 2)?;
    Ok((selector as u16, offset))
}

/// Reads `size` bytes that lie `displacement` bytes into a memory operand of several parts. The
/// processor takes each part by itself.
///
/// # Errors
/// What the memory access raises.
pub(super) fn read_part(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    displacement: u32,
    size: u32,
) -> Result<u32, Exception> {
    let at = Pieces::of(cpu, instruction).judge(cpu, displacement, size, false)?;
    read_memory(bus, at, size)
}

/// `xlatb`: al becomes the byte that it numbers in the table at (e)bx.
pub(super) fn translate_byte(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let at = linear_address(cpu, instruction, 1, false)?;
    let byte = read_memory(bus, at, 1)?;
    registers::write(cpu, Register::AL, byte);
    Ok(())
}
