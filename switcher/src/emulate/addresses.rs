//! From an instruction's memory operand to the linear address it touches.
//!
//! An address is made in three steps (SDM volume 1, section "Operand Addressing"): the registers
//! and the displacement give an *offset*, in 16 or 32 bits; the segment judges the offset, by its
//! type and its limit; the segment's base turns it into a *linear address*.

use super::operands::operand_size;
use super::registers;
use crate::address::GuestVirt;
use crate::cpu::{Cpu, Gpr, Segment, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// What an access does with its operand, as far as segments care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    /// Write, or read and write.
    Write,
}

/// The linear address of the instruction's memory operand, `len` bytes of which are to be read, or
/// written (also: read and written). A string instruction with two gives the first it names.
///
/// For `bt`, `bts`, `btr` and `btc` with a register index it is the address of the operand-sized
/// unit that holds the bit; [`bit_offset`] tells which bit of it.
///
/// # Errors
/// #GP(0), or #SS(0) for the stack segment: the segment is null, of the wrong type, or too short.
/// Processors may let an access wrap past offset 4 GiB of an unlimited segment or not; here it
/// does.
pub(crate) fn linear_address(
    cpu: &Cpu,
    instruction: &Instruction,
    len: u32,
    write: bool,
) -> Result<GuestVirt, Exception> {
    let direction = if write {
        Direction::Write
    } else {
        Direction::Read
    };
    let (register, offset) = operand_offset(cpu, instruction, cpu.gpr(Gpr::Esp));
    linear(cpu, register, offset, len, direction)
}

/// The number of the bit that a bit-string instruction means, within the unit at its
/// [`linear_address`]: 0..16 or 0..32.
pub(crate) fn bit_offset(cpu: &Cpu, instruction: &Instruction) -> u32 {
    let index = match instruction.op1_kind() {
        OpKind::Register => registers::read(cpu, instruction.op1_register()),
        _ => u32::from(instruction.immediate8()),
    };
    index & (operand_size(instruction) * 8 - 1)
}

/// The linear address of `len` bytes at `offset` of a segment.
///
/// # Errors
/// As for [`linear_address`].
pub(super) fn linear(
    cpu: &Cpu,
    register: SegmentRegister,
    offset: u32,
    len: u32,
    direction: Direction,
) -> Result<GuestVirt, Exception> {
    let segment = cpu.segment(register);
    if allows(&segment, offset, len, direction) {
        Ok(GuestVirt(segment.base.wrapping_add(offset)))
    } else if register == SegmentRegister::Ss {
        Err(Exception::stack(0))
    } else {
        Err(Exception::protection(0))
    }
}

/// Whether `len` bytes at `offset` lie within the segment and may be touched so (SDM volume 3,
/// sections "Limit Checking" and "Type Checking").
pub(super) fn allows(segment: &Segment, offset: u32, len: u32, direction: Direction) -> bool {
    let right_type = match direction {
        Direction::Read => segment.is_readable(),
        Direction::Write => segment.is_writable(),
    };
    segment.is_usable() && right_type && reaches(segment, offset, len)
}

/// Whether `len` bytes at `offset` are within the segment's limit.
pub(super) fn reaches(segment: &Segment, offset: u32, len: u32) -> bool {
    let last = u64::from(offset) + u64::from(len.max(1)) - 1;
    if segment.is_expand_down() {
        let top = if segment.is_32bit() { u32::MAX } else { 0xffff };
        offset > segment.limit && last <= u64::from(top)
    } else {
        segment.limit == u32::MAX || last <= u64::from(segment.limit)
    }
}

/// The segment and offset of the instruction's memory operand, when the stack pointer is `esp`
/// (`pop` computes its address after the pop).
pub(super) fn operand_offset(
    cpu: &Cpu,
    instruction: &Instruction,
    esp: u32,
) -> (SegmentRegister, u32) {
    let source = operand_segment(instruction);
    let string = instruction.op_kinds().find_map(|kind| match kind {
        OpKind::MemoryESDI => Some((SegmentRegister::Es, Register::DI)),
        OpKind::MemoryESEDI => Some((SegmentRegister::Es, Register::EDI)),
        OpKind::MemorySegDI => Some((source, Register::DI)),
        OpKind::MemorySegEDI => Some((source, Register::EDI)),
        OpKind::MemorySegSI => Some((source, Register::SI)),
        OpKind::MemorySegESI => Some((source, Register::ESI)),
        _ => None,
    });
    match string {
        Some((segment, index)) => (segment, registers::read(cpu, index)),
        None => (source, effective_address(cpu, instruction, esp)),
    }
}

/// The segment of the memory operand that has a choice: the default one, or the prefix's.
pub(super) fn operand_segment(instruction: &Instruction) -> SegmentRegister {
    registers::segment_register(instruction.memory_segment()).unwrap_or(SegmentRegister::Ds)
}

/// Base, scaled index, displacement and bit index added up, and cut to the address size.
fn effective_address(cpu: &Cpu, instruction: &Instruction, esp: u32) -> u32 {
    let value = |register| match register {
        Register::ESP => esp,
        register => registers::read(cpu, register),
    };
    let index = value(instruction.memory_index());
    let address = value(instruction.memory_base())
        .wrapping_add(index.wrapping_mul(instruction.memory_index_scale()))
        .wrapping_add(instruction.memory_displacement32())
        .wrapping_add(bit_string_displacement(cpu, instruction));
    if has_16bit_address(instruction) {
        address & 0xffff
    } else {
        address
    }
}

/// Whether the memory operand is addressed by 16 bits.
fn has_16bit_address(instruction: &Instruction) -> bool {
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => instruction.memory_displ_size() == 2,
        (Register::None, index) => index.is_gpr16(),
        (base, _) => base.is_gpr16(),
    }
}

/// How far a bit string's register index reaches from its operand: a signed number of whole units
/// (SDM volume 2, section "BT").
fn bit_string_displacement(cpu: &Cpu, instruction: &Instruction) -> u32 {
    let bit_string = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if !bit_string || instruction.op1_kind() != OpKind::Register {
        return 0;
    }
    let index = registers::read(cpu, instruction.op1_register());
    let units = match operand_size(instruction) {
        2 => i32::from(index as i16) >> 4,
        _ => index as i32 >> 5,
    };
    (units as u32).wrapping_mul(operand_size(instruction))
}
