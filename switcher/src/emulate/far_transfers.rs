//! Far jumps and calls: to another code segment, at the same level.
//!
//! An inner level is reached through gates and tasks only. No system we run uses a call gate or
//! a task gate with `jmp` or `call`, so these are refused with the #GP(selector) that the
//! processor has for a descriptor of the wrong type.

use super::branches::check_target;
use super::operands::{operand_size, read_far_pointer, write_memory};
use super::segments::{accessed, fetch, is_conforming, is_present, rpl};
use super::stack::Stack;
use super::{Bus, next_eip};
use crate::cpu::{Cpu, Segment, SegmentRegister};
use crate::exit::Exception;
use iced_x86::Instruction;

/// Whether a `jmp` or `call` names a selector.
pub(super) fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

/// `jmp far`.
pub(super) fn jump(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let (selector, offset) = read_far_pointer(cpu, bus, instruction, size)?;
    let code = examine_code(cpu, bus, selector)?;
    check_target(&code, offset)?;
    cpu.set_segment(SegmentRegister::Cs, code);
    cpu.set_eip(offset);
    Ok(())
}

/// `call far`: pushes cs (zeros above it) and eip.
pub(super) fn call(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let (selector, offset) = read_far_pointer(cpu, bus, instruction, size)?;
    let code = examine_code(cpu, bus, selector)?;
    let mut stack = Stack::of(cpu);
    let cs_slot = stack.reserve_page(cpu, bus, size)?;
    let eip_slot = stack.reserve_page(cpu, bus, size)?;
    check_target(&code, offset)?;
    write_memory(
        bus,
        cs_slot,
        size,
        cpu.segment(SegmentRegister::Cs).selector.into(),
    )?;
    write_memory(bus, eip_slot, size, next_eip(cpu, instruction))?;
    stack.commit(cpu);
    cpu.set_segment(SegmentRegister::Cs, code);
    cpu.set_eip(offset);
    Ok(())
}

/// The code segment that a far jump or call may go to from the current level. Its selector gets
/// that level: the transfer doesn't change it.
fn examine_code(cpu: &Cpu, bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    let code = fetch(bus, selector)?;
    let level = cpu.cpl();
    let allowed = if is_conforming(&code) {
        code.dpl() <= level
    } else {
        rpl(selector) <= level && code.dpl() == level
    };
    if !code.is_code() || !allowed {
        return Err(Exception::protection(selector));
    }
    if !is_present(&code) {
        return Err(Exception::not_present(selector));
    }
    Ok(accessed(Segment {
        selector: selector & !3 | u16::from(level),
        ..code
    }))
}
