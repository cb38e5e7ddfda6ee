//! Segment registers: loading them, with every check, and reading them.
//!
//! A selector names a descriptor in a table; loading a segment register fetches the descriptor,
//! checks it against the current privilege level, and remembers it (SDM volume 3, sections
//! "Segment Registers" and "Privilege Level Checking When Accessing Data Segments").
//!
//! The processor also marks the descriptor as accessed: in the table, which belongs to the embedder, and
//! in what it remembers. After a load of ss it holds interrupts back for one instruction: see `vcpu/run.rs`.

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
    if bus.is_settled(selector) {
        cpu.settle(register);
    }
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
    Segment { selector, base: 0, limit: 0, attributes: 0 }
}

/// The descriptor that `selector` names, as a segment.
///
/// # Errors
/// #GP(0) for a null selector, #GP(selector) beyond the table.
pub(super) fn fetch(bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Err(Exception::protection(0));
    }
    let descriptor = bus.descriptor(selector)?.ok_or(Exception::protection(selector))?;
    Ok(Segment::from_descriptor(selector, descriptor))
}

/// The present bit.
pub(super) const fn is_present(segment: &Segment) -> bool {
    segment.attributes & 0x80 != 0
}

/// The segment with the accessed bit set, here and in its table: the last thing that is done before
/// it's loaded.
///
/// # Errors
/// The page fault of writing to the table.
pub(super) fn accessed(bus: &mut dyn Bus, mut segment: Segment) -> Result<Segment, Exception> {
    if segment.attributes & 1 == 0 {
        bus.mark_accessed(segment.selector)?;
        segment.attributes |= 1;
    }
    Ok(segment)
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
        SegmentRegister::Ss => {
            let stack = examine_stack(bus, selector, cpu.cpl())?;
            accessed(bus, stack)
        }
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
    Ok(segment)
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
    accessed(bus, segment)
}

/// Whether the current level and the selector's both reach the segment's.
pub(super) fn may_see(cpu: &Cpu, segment: &Segment) -> bool {
    segment.is_conforming() || segment.dpl() >= cpu.cpl().max(rpl(segment.selector))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Gpr;
    use crate::emulate::Outcome;
    use crate::emulate::testing::{
        assert_done, assert_fault, cpu_at, memory, page_fault, run, selector as s, state,
    };

    /// mov ds, ax
    const MOV_DS_AX: &[u8] = &[0x8e, 0xd8];
    /// mov ss, ax
    const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];

    #[test]
    fn data_segments_load_at_levels_that_may_see_them() {
        for (level, selector) in [
            (0, s::DATA_0),
            (0, s::DATA_3 | 3),
            (1, s::DATA_1 | 1),
            (1, s::DATA_3),
            (3, s::DATA_3 | 3),
            (3, s::DATA_3),
            (3, s::CODE_3),
            (3, s::CONSTANT | 3),
            (3, s::CONFORMING_1 | 3),
            (0, s::DATA_1 | 1),
        ] {
            let mut cpu = cpu_at(level);
            cpu.set_gpr(Gpr::Eax, 0xffff_0000 | u32::from(selector));
            assert_done(&mut cpu, &mut memory(), MOV_DS_AX);
            assert_eq!(cpu.segment(SegmentRegister::Ds).selector, selector);
            assert!(cpu.segment(SegmentRegister::Ds).is_usable());
            assert_eq!(cpu.eip(), 0x1002);
        }
    }

    #[test]
    fn data_segments_refused() {
        for (level, selector, exception) in [
            (3, s::DATA_0, Exception::protection(s::DATA_0)),
            (3, s::DATA_1 | 3, Exception::protection(s::DATA_1)),
            (1, s::DATA_0 | 1, Exception::protection(s::DATA_0)),
            (0, s::DATA_0 | 3, Exception::protection(s::DATA_0)),
            (1, s::DATA_1 | 3, Exception::protection(s::DATA_1)),
            (3, s::EXECUTE_ONLY | 3, Exception::protection(s::EXECUTE_ONLY)),
            (3, s::GATE | 3, Exception::protection(s::GATE)),
            (0, s::TASK, Exception::protection(s::TASK)),
            (3, s::BEYOND | 3, Exception::protection(s::BEYOND)),
            (3, s::ABSENT_DATA | 3, Exception::not_present(s::ABSENT_DATA)),
            (3, s::DATA_3 | 0xfff7, Exception::protection(0xfff4)),
        ] {
            let mut cpu = cpu_at(level);
            cpu.set_gpr(Gpr::Eax, selector.into());
            assert_fault(&mut cpu, &mut memory(), MOV_DS_AX, exception);
        }
    }

    #[test]
    fn null_selectors_empty_a_data_segment_but_not_the_stack() {
        for selector in 0..4 {
            let mut cpu = cpu_at(3);
            cpu.set_gpr(Gpr::Eax, selector);
            assert_fault(&mut cpu, &mut memory(), MOV_SS_AX, Exception::protection(0));
            assert_done(&mut cpu, &mut memory(), MOV_DS_AX);
            assert_eq!(cpu.segment(SegmentRegister::Ds), null_segment(selector as u16));
            // mov al, [0] is not ours; xlatb is, and reads through ds.
            assert_fault(&mut cpu, &mut memory(), &[0xd7], Exception::protection(0));
        }
    }

    #[test]
    fn a_stack_segment_must_fit_the_level_exactly() {
        for (level, selector, exception) in [
            (1, s::DATA_3 | 1, Exception::protection(s::DATA_3)),
            (1, s::DATA_1, Exception::protection(s::DATA_1)),
            (3, s::DATA_1 | 3, Exception::protection(s::DATA_1)),
            (3, s::CONSTANT | 3, Exception::protection(s::CONSTANT)),
            (3, s::CODE_3 | 3, Exception::protection(s::CODE_3)),
            (3, s::GATE | 3, Exception::protection(s::GATE)),
            (3, s::BEYOND | 3, Exception::protection(s::BEYOND)),
            (3, s::ABSENT_DATA | 3, Exception::stack(s::ABSENT_DATA)),
        ] {
            let mut cpu = cpu_at(level);
            cpu.set_gpr(Gpr::Eax, selector.into());
            assert_fault(&mut cpu, &mut memory(), MOV_SS_AX, exception);
        }
        let mut cpu = cpu_at(3);
        cpu.set_gpr(Gpr::Eax, (s::NARROW_STACK | 3).into());
        assert_done(&mut cpu, &mut memory(), MOV_SS_AX);
        assert_eq!(cpu.segment(SegmentRegister::Ss).base, 0x2_0000);
    }

    #[test]
    fn a_load_marks_the_descriptor_accessed() {
        let (mut cpu, mut memory) = (cpu_at(0), memory());
        memory.describe(s::DATA_3, 0x00cf_f200_0000_ffff);
        cpu.set_gpr(Gpr::Eax, s::DATA_3.into());
        assert_done(&mut cpu, &mut memory, MOV_DS_AX);
        assert_eq!(cpu.segment(SegmentRegister::Ds).attributes, 0xc0f3);
        assert_eq!(memory.descriptor(s::DATA_3), Ok(Some(0x00cf_f300_0000_ffff)));
    }

    #[test]
    fn a_mov_without_a_segment_register_is_not_this_folders() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Eax, 0x1234_5678);
        for code in [&[0x89, 0xc3][..], &[0x89, 0x05, 0, 0x30, 0, 0]] {
            // mov ebx, eax; mov [0x3000], eax
            let before = state(&cpu);
            assert_eq!(run(&mut cpu, &mut memory, code), Ok(Outcome::Unsupported));
            assert_eq!((state(&cpu), memory.dword(0x3000)), (before, 0));
        }
    }

    #[test]
    fn selectors_are_read_zero_extended() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Eax, u32::MAX);
        cpu.set_gpr(Gpr::Ebx, u32::MAX);
        assert_done(&mut cpu, &mut memory, &[0x8c, 0xd8]); // mov eax, ds
        assert_eq!(cpu.gpr(Gpr::Eax), 0x33);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x8c, 0xdb]); // mov bx, ds
        assert_eq!(cpu.gpr(Gpr::Ebx), 0xffff_0033);
        memory.store(0x3000, &[0xff; 4]);
        assert_done(&mut cpu, &mut memory, &[0x8c, 0x1d, 0, 0x30, 0, 0]); // mov [0x3000], ds
        assert_eq!(memory.dword(0x3000), 0xffff_0033);
        memory.store(0x7ff8, &[0xff; 8]);
        assert_done(&mut cpu, &mut memory, &[0x1e]); // push ds
        assert_eq!((cpu.gpr(Gpr::Esp), memory.dword(0x7ffc)), (0x7ffc, 0x33));
        assert_done(&mut cpu, &mut memory, &[0x66, 0x0f, 0xa0]); // push fs, 16 bits
        assert_eq!((cpu.gpr(Gpr::Esp), memory.word(0x7ffa)), (0x7ffa, 0));
    }

    #[test]
    fn segments_load_from_memory_and_the_stack() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.store(0x3000, &[0x53, 0, 0x99, 0x99]);
        assert_done(&mut cpu, &mut memory, &[0x8e, 0x05, 0, 0x30, 0, 0]); // mov es, [0x3000]
        assert_eq!(cpu.segment(SegmentRegister::Es).selector, 0x53);
        memory.store(0x8000, &[0x33, 0, 0xab, 0xcd]);
        assert_done(&mut cpu, &mut memory, &[0x07]); // pop es
        assert_eq!(cpu.segment(SegmentRegister::Es).selector, 0x33);
        assert_eq!(cpu.gpr(Gpr::Esp), 0x8004);
        memory.store(0x8004, &[0x11, 0]);
        assert_fault(&mut cpu, &mut memory, &[0x07], Exception::protection(0x10));
        memory.remove_page(0x8004);
        assert_fault(&mut cpu, &mut memory, &[0x07], page_fault(0x8004, false, false));
    }

    #[test]
    fn far_pointers_load_both_registers_or_none() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.store(0x3000, &[0x78, 0x56, 0x34, 0x12, 0x53, 0]);
        assert_done(&mut cpu, &mut memory, &[0xc4, 0x05, 0, 0x30, 0, 0]); // les eax, [0x3000]
        assert_eq!(cpu.gpr(Gpr::Eax), 0x1234_5678);
        assert_eq!(cpu.segment(SegmentRegister::Es).selector, 0x53);
        // lfs bx, [0x3002]: selector 0x1234 lies beyond the table.
        assert_fault(
            &mut cpu,
            &mut memory,
            &[0x66, 0x0f, 0xb4, 0x1d, 0, 0x30, 0, 0],
            Exception::protection(0x1234),
        );
        memory.store(0x3002, &[0x33, 0]);
        cpu.set_gpr(Gpr::Ebx, u32::MAX);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x0f, 0xb4, 0x1d, 0, 0x30, 0, 0]);
        assert_eq!(cpu.gpr(Gpr::Ebx), 0xffff_5678);
        assert_eq!(cpu.segment(SegmentRegister::Fs).selector, 0x33);
        for (code, register) in [
            ([0x0f, 0xb2, 0x0e].as_slice(), SegmentRegister::Ss), // lss ecx, [esi]
            (&[0xc5, 0x0e], SegmentRegister::Ds),
            (&[0x0f, 0xb5, 0x0e], SegmentRegister::Gs),
        ] {
            memory.store(0x3100, &[1, 2, 3, 4, 0x63, 0]);
            cpu.set_gpr(Gpr::Esi, 0x3100);
            assert_done(&mut cpu, &mut memory, code);
            assert_eq!(cpu.gpr(Gpr::Ecx), 0x0403_0201);
            assert_eq!(cpu.segment(register).base, 0x2_0000);
            cpu.set_segment(SegmentRegister::Ds, Segment::flat_data(0x33));
        }
        // A register form doesn't exist.
        let decoded = iced_x86::Decoder::new(32, &[0x0f, 0xb2, 0xc8], 0).decode();
        assert!(decoded.is_invalid());
    }
}
