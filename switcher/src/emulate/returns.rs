//! Far returns: `retf` and `iret`, to the same level or to an outer one.
//!
//! Both pop eip and cs, `iret` also the flags. When the level that the popped cs asks for is an
//! outer one, the outer stack pointer and segment follow on the stack, and segment registers that
//! the outer level may not use are emptied (SDM volume 2, "RET" and "IRET/IRETD").
//!
//! Tasks don't exist here: `iret` with NT set would return to the previous task, and raises
//! #GP(0). Nor does virtual-8086 mode: a return to it raises #GP(0) as well.

use super::Bus;
use super::branches::{check_target, dropped_bytes};
use super::operands::operand_size;
use super::segments::{
    accessed, examine_stack, fetch, is_conforming, is_present, null_segment, rpl,
};
use super::stack::Stack;
use crate::cpu::{
    AC, Cpu, Gpr, ID, IF, IOPL, LIVE_FLAGS, NT, RF, Segment, SegmentRegister, TF, VM,
};
use crate::exit::Exception;
use iced_x86::Instruction;

/// Where a return goes, everything checked.
struct Destination {
    code: Segment,
    eip: u32,
    /// For an outer level its stack segment.
    outer: Option<Segment>,
    esp: u32,
}

/// `retf`, and `retf n`, which drops n bytes of arguments from the stack (from both stacks when
/// the level changes).
pub(super) fn far_return(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let dropped = dropped_bytes(instruction);
    let mut stack = Stack::of(cpu);
    let eip = stack.pop(cpu, bus, size)?;
    let selector = stack.pop(cpu, bus, size)? as u16;
    stack.skip(dropped);
    let mut destination = examine(cpu, bus, stack, size, selector, eip)?;
    if let Some(segment) = destination.outer {
        destination.esp = moved_esp(&segment, destination.esp, dropped);
    }
    arrive(cpu, destination);
    Ok(())
}

/// `iret` with operands of `size` bytes (4 for `iretd`, 2 for `iretw`).
///
/// The arithmetic flags, DF, TF and NT are set from the stack at any level; IF if IOPL allows the
/// current level to; IOPL at level 0. The 32-bit form also sets RF, AC and ID.
///
/// # Errors
/// What the processor raises; #GP(0) also when NT is set, and for a return to virtual-8086 mode.
/// Nothing has changed then.
pub(crate) fn iret(cpu: &mut Cpu, bus: &mut dyn Bus, size: u32) -> Result<(), Exception> {
    if cpu.eflags() & NT != 0 {
        return Err(Exception::protection(0));
    }
    let mut stack = Stack::of(cpu);
    let eip = stack.pop(cpu, bus, size)?;
    let selector = stack.pop(cpu, bus, size)? as u16;
    let flags = stack.pop(cpu, bus, size)?;
    if size == 4 && flags & VM != 0 && cpu.cpl() == 0 {
        return Err(Exception::protection(0));
    }
    let destination = examine(cpu, bus, stack, size, selector, eip)?;
    let mask = changeable_flags(cpu, size);
    cpu.set_eflags(cpu.eflags() & !mask | flags & mask);
    arrive(cpu, destination);
    Ok(())
}

/// The flags that `iret` may change at the current level.
fn changeable_flags(cpu: &Cpu, size: u32) -> u32 {
    let mut mask = LIVE_FLAGS | TF | NT;
    if u32::from(cpu.cpl()) <= (cpu.eflags() & IOPL) >> IOPL.trailing_zeros() {
        mask |= IF;
    }
    if cpu.cpl() == 0 {
        mask |= IOPL;
    }
    if size == 4 { mask | RF | AC | ID } else { mask }
}

/// Checks a return to `selector`:`eip`, with `stack` behind what was popped so far.
fn examine(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    mut stack: Stack,
    size: u32,
    selector: u16,
    eip: u32,
) -> Result<Destination, Exception> {
    let code = examine_code(cpu, bus, selector)?;
    let level = rpl(selector);
    let (outer, esp) = if level > cpu.cpl() {
        let esp = stack.pop(cpu, bus, size)?;
        let stack_selector = stack.pop(cpu, bus, size)? as u16;
        let segment = examine_stack(bus, stack_selector, level)?;
        (
            Some(segment),
            if segment.is_32bit() {
                esp
            } else {
                merged(cpu.gpr(Gpr::Esp), esp)
            },
        )
    } else {
        (None, stack.esp())
    };
    check_target(&code, eip)?;
    Ok(Destination {
        code,
        eip,
        outer,
        esp,
    })
}

/// The code segment that a return may go to: of the current level or an outer one.
fn examine_code(cpu: &Cpu, bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    let code = fetch(bus, selector)?;
    let level = rpl(selector);
    let level_fits = if is_conforming(&code) {
        code.dpl() <= level
    } else {
        code.dpl() == level
    };
    if !code.is_code() || level < cpu.cpl() || !level_fits {
        return Err(Exception::protection(selector));
    }
    if !is_present(&code) {
        return Err(Exception::not_present(selector));
    }
    Ok(accessed(code))
}

/// Makes the return happen.
fn arrive(cpu: &mut Cpu, destination: Destination) {
    let Destination {
        code,
        eip,
        outer,
        esp,
    } = destination;
    cpu.set_gpr(Gpr::Esp, esp);
    cpu.set_eip(eip);
    cpu.set_segment(SegmentRegister::Cs, code);
    if let Some(stack) = outer {
        cpu.set_segment(SegmentRegister::Ss, stack);
        empty_inner_segments(cpu);
    }
}

/// Empties the data segment registers that the current, outer level may not use.
fn empty_inner_segments(cpu: &mut Cpu) {
    use SegmentRegister as S;
    for register in [S::Es, S::Ds, S::Fs, S::Gs] {
        let segment = cpu.segment(register);
        if !is_conforming(&segment) && segment.dpl() < cpu.cpl() {
            cpu.set_segment(register, null_segment(0));
        }
    }
}

/// `esp` moved up by `bytes` within a stack segment's width.
fn moved_esp(segment: &Segment, esp: u32, bytes: u32) -> u32 {
    let moved = esp.wrapping_add(bytes);
    if segment.is_32bit() {
        moved
    } else {
        merged(esp, moved)
    }
}

/// The upper half of one, the lower half of the other: a 16-bit stack keeps the upper half of esp.
fn merged(upper: u32, lower: u32) -> u32 {
    upper & 0xffff_0000 | lower & 0xffff
}
