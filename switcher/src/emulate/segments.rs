//! Segment registers: loading them, with every check, and reading them.
//!
//! A selector names a descriptor in a table; loading a segment register fetches the descriptor,
//! checks it against the current privilege level, and remembers it (SDM volume 3, sections
//! "Segment Registers" and "Privilege Level Checking When Accessing Data Segments").
//!
//! The processor also marks the descriptor as accessed, in the table. The tables belong to the
//! embedder, who hands out descriptors marked so; here the remembered copy is marked. After a load
//! of ss the processor holds interrupts back for one instruction: that's the embedder's as well.

use super::Bus;
use super::operands::{operand_size, read_far_pointer, read_operand, write_operand};
use super::registers::{self, segment_register};
use super::stack::{Stack, push_value};
use crate::cpu::{Cpu, Segment, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Loads a data or stack segment register as `mov` does.
///
/// # Errors
/// #GP, #NP or #SS with the selector, #GP(0) for a null stack segment, #UD for cs. Nothing has
/// changed then.
pub(crate) fn load_segment(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    register: SegmentRegister,
    selector: u16,
) -> Result<(), Exception> {
    let segment = examine(cpu, bus, register, selector)?;
    cpu.set_segment(register, segment);
    Ok(())
}

/// A selector that names no descriptor, whatever its level.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The requested privilege level of a selector.
pub(super) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// What a segment register holds after a load of a null selector.
pub(super) const fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        attributes: 0,
    }
}

/// The descriptor that `selector` names, as a segment.
///
/// # Errors
/// #GP(0) for a null selector, #GP(selector) beyond the table.
pub(super) fn fetch(bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Err(Exception::protection(0));
    }
    let descriptor = bus
        .descriptor(selector)
        .ok_or(Exception::protection(selector))?;
    Ok(Segment::from_descriptor(selector, descriptor))
}

/// The present bit.
pub(super) const fn is_present(segment: &Segment) -> bool {
    segment.attributes & 0x80 != 0
}

/// Code that runs at its caller's level.
pub(super) const fn is_conforming(segment: &Segment) -> bool {
    segment.attributes & 0x1c == 0x1c
}

/// The segment with the accessed bit set.
pub(super) const fn accessed(mut segment: Segment) -> Segment {
    segment.attributes |= 1;
    segment
}

/// What is loaded into a segment register for `selector`, all checks made.
fn examine(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    register: SegmentRegister,
    selector: u16,
) -> Result<Segment, Exception> {
    match register {
        SegmentRegister::Cs => Err(Exception::INVALID_OPCODE),
        SegmentRegister::Ss => examine_stack(bus, selector, cpu.cpl()),
        _ if is_null(selector) => Ok(null_segment(selector)),
        _ => examine_data(cpu, bus, selector),
    }
}

/// A stack segment for privilege level `level`: the selector, the descriptor and the level must
/// agree.
///
/// # Errors
/// #GP(0) for null, #GP(selector), #SS(selector) when it isn't present.
pub(super) fn examine_stack(
    bus: &mut dyn Bus,
    selector: u16,
    level: u8,
) -> Result<Segment, Exception> {
    let segment = fetch(bus, selector)?;
    if rpl(selector) != level || !segment.is_writable() || segment.dpl() != level {
        return Err(Exception::protection(selector));
    }
    if !is_present(&segment) {
        return Err(Exception::stack(selector));
    }
    Ok(accessed(segment))
}

/// A segment for ds, es, fs or gs: readable, and not of an inner level unless conforming code.
fn examine_data(cpu: &Cpu, bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    let segment = fetch(bus, selector)?;
    if !segment.is_readable() || !may_see(cpu, &segment) {
        return Err(Exception::protection(selector));
    }
    if !is_present(&segment) {
        return Err(Exception::not_present(selector));
    }
    Ok(accessed(segment))
}

/// Whether the current level and the selector's both reach the segment's.
pub(super) fn may_see(cpu: &Cpu, segment: &Segment) -> bool {
    is_conforming(segment) || segment.dpl() >= cpu.cpl().max(rpl(segment.selector))
}

/// Whether an operand is a segment register.
pub(super) fn names_segment(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|index| operand_segment(instruction, index).is_some())
}

/// The segment register that operand `index` is.
fn operand_segment(instruction: &Instruction, index: u32) -> Option<SegmentRegister> {
    match instruction.op_kind(index) {
        OpKind::Register => segment_register(instruction.op_register(index)),
        _ => None,
    }
}

/// `mov` to or from a segment register. From one: a 32-bit register gets zeros above the selector,
/// memory gets two bytes.
pub(super) fn move_segment(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    if let Some(register) = operand_segment(instruction, 0) {
        let selector = read_operand(cpu, bus, instruction, 1, 2)?;
        load_segment(cpu, bus, register, selector as u16)
    } else {
        let selector = operand_segment(instruction, 1).map_or(0, |r| cpu.segment(r).selector);
        write_operand(cpu, bus, instruction, 0, 2, selector.into())
    }
}

/// `push` of a segment register: with a 32-bit operand the upper half is zero. (The manual also
/// allows to leave memory's upper half alone, as some processors do.)
pub(super) fn push_segment(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let selector = operand_segment(instruction, 0).map_or(0, |r| cpu.segment(r).selector);
    push_value(cpu, bus, operand_size(instruction), selector.into())
}

/// `pop` of a segment register.
pub(super) fn pop_segment(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let register = operand_segment(instruction, 0).ok_or(Exception::INVALID_OPCODE)?;
    let mut stack = Stack::of(cpu);
    let selector = stack.pop(cpu, bus, operand_size(instruction))?;
    load_segment(cpu, bus, register, selector as u16)?;
    stack.commit(cpu);
    Ok(())
}

/// `les`, `lds`, `lss`, `lfs`, `lgs`: a general register and a segment register from a far
/// pointer in memory.
pub(super) fn load_far_pointer(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let register = match instruction.mnemonic() {
        Mnemonic::Les => SegmentRegister::Es,
        Mnemonic::Lds => SegmentRegister::Ds,
        Mnemonic::Lss => SegmentRegister::Ss,
        Mnemonic::Lfs => SegmentRegister::Fs,
        _ => SegmentRegister::Gs,
    };
    let size = operand_size(instruction);
    let (selector, offset) = read_far_pointer(cpu, bus, instruction, size)?;
    load_segment(cpu, bus, register, selector)?;
    registers::write(cpu, instruction.op0_register(), offset);
    Ok(())
}
