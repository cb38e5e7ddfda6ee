//! Instructions that look and judge: array bounds, overflow, and what a selector would allow.

use super::addresses::linear_address;
use super::operands::{operand_size, read_memory, read_operand, write_operand};
use super::segments::{fetch, is_null, may_see};
use super::{Bus, flags, next_eip, registers};
use crate::cpu::{Cpu, Segment};
use crate::exit::Exception;
use iced_x86::{Instruction, OpKind};

/// #BR, bound range exceeded.
const BOUND_RANGE: Exception = Exception::plain(5);

/// An exception that is a trap by nature: eip is behind the instruction.
///
/// # Errors
/// Always that exception.
pub(super) fn trap<T>(
    cpu: &mut Cpu,
    instruction: &Instruction,
    vector: u8,
) -> Result<T, Exception> {
    cpu.set_eip(next_eip(cpu, instruction));
    Err(Exception::plain(vector))
}

/// `into`: #OF if OF is set.
pub(super) fn into(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    if flags::is_set(cpu, flags::OF) {
        return trap(cpu, instruction, 4);
    }
    cpu.set_eip(next_eip(cpu, instruction));
    Ok(())
}

/// `bound`: #BR unless the signed index lies between the two bounds in memory, both included.
pub(super) fn bound(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let signed = |value: u32| {
        if size == 2 {
            i32::from(value as i16)
        } else {
            value as i32
        }
    };
    let index = signed(registers::read(cpu, instruction.op0_register()));
    let at = linear_address(cpu, instruction, size * 2, false)?;
    let lower = signed(read_memory(bus, at, size)?);
    let upper = signed(read_memory(bus, at.wrapping_add(size), size)?);
    if (lower..=upper).contains(&index) {
        Ok(())
    } else {
        Err(BOUND_RANGE)
    }
}

/// `arpl`: raises the level of the selector in the first operand to the second's; ZF tells whether
/// it had to. Memory is written either way, as processors do.
pub(super) fn adjust_rpl(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    if instruction.op0_kind() != OpKind::Register {
        let at = linear_address(cpu, instruction, 2, true)?;
        bus.check_write(at, 2)?;
    }
    let selector = read_operand(cpu, bus, instruction, 0, 2)?;
    let level = registers::read(cpu, instruction.op1_register()) & 3;
    let raise = selector & 3 < level;
    let adjusted = if raise {
        selector & !3 | level
    } else {
        selector
    };
    write_low_operand(cpu, bus, instruction, adjusted)?;
    flags::change(cpu, flags::ZF, flags::when(raise, flags::ZF));
    Ok(())
}

/// Writes a 16-bit first operand; the upper half of a register stays.
fn write_low_operand(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    value: u32,
) -> Result<(), Exception> {
    let register = instruction.op0_register();
    let upper = match instruction.op0_kind() {
        OpKind::Register => registers::read(cpu, register) & 0xffff_0000,
        _ => 0,
    };
    write_operand(cpu, bus, instruction, 0, 2, upper | value)
}

/// `lar`: the access rights of a descriptor, if the current level may see it; ZF tells.
///
/// The manual leaves bits 16 to 19 of a 32-bit result undefined; they are the descriptor's, as on
/// processors.
pub(super) fn load_access_rights(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    // 16- and 32-bit TSS (available, busy), LDT, call gates and the task gate.
    const SYSTEM_TYPES: u16 = 0b0001_1010_0011_1110;
    let visible = visible_descriptor(cpu, bus, instruction, SYSTEM_TYPES)?;
    let result = visible.map(|(descriptor, _)| (descriptor >> 32) as u32 & 0x00ff_ff00);
    report(cpu, instruction, result);
    Ok(())
}

/// `lsl`: the limit of a segment in bytes, if the current level may see it; ZF tells.
pub(super) fn load_limit(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    // 16- and 32-bit TSS (available, busy) and LDT.
    const SYSTEM_TYPES: u16 = 0b0000_1010_0000_1110;
    let visible = visible_descriptor(cpu, bus, instruction, SYSTEM_TYPES)?;
    report(cpu, instruction, visible.map(|(_, segment)| segment.limit));
    Ok(())
}

/// `verr` and `verw`: whether the current level may read, or write, the segment; ZF tells.
pub(super) fn verify(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    write: bool,
) -> Result<(), Exception> {
    let selector = read_operand(cpu, bus, instruction, 0, 2)? as u16;
    let allowed = fetch(bus, selector).is_ok_and(|segment| {
        let right_type = if write {
            segment.is_writable()
        } else {
            segment.is_readable()
        };
        right_type && may_see(cpu, &segment)
    });
    flags::change(cpu, flags::ZF, flags::when(allowed, flags::ZF));
    Ok(())
}

/// The descriptor that the second operand's selector names, raw and as a segment; `None` when it
/// doesn't exist, is of an inner level, or is a system descriptor whose type isn't among those in
/// the bit set `system_types`.
fn visible_descriptor(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
    system_types: u16,
) -> Result<Option<(u64, Segment)>, Exception> {
    let selector = read_operand(cpu, bus, instruction, 1, 2)? as u16;
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = bus.descriptor(selector) else {
        return Ok(None);
    };
    let segment = Segment::from_descriptor(selector, descriptor);
    let is_system = segment.attributes & 0x10 == 0;
    let wrong_type = is_system && system_types >> (segment.attributes & 0xf) & 1 == 0;
    Ok((!wrong_type && may_see(cpu, &segment)).then_some((descriptor, segment)))
}

/// Puts a result into the first operand, or leaves it alone; ZF tells which.
fn report(cpu: &mut Cpu, instruction: &Instruction, result: Option<u32>) {
    if let Some(value) = result {
        registers::write(cpu, instruction.op0_register(), value);
    }
    flags::change(cpu, flags::ZF, flags::when(result.is_some(), flags::ZF));
}
