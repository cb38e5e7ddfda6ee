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
use super::segments::{accessed, examine_stack, fetch, is_present, null_segment, rpl};
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
    let [eip, selector, flags] = stack.pop_several(cpu, bus, size)?;
    let selector = selector as u16;
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
        let [esp, stack_selector] = stack.pop_several(cpu, bus, size)?;
        let segment = examine_stack(bus, stack_selector as u16, level)?;
        (Some(segment), if segment.is_32bit() { esp } else { merged(cpu.gpr(Gpr::Esp), esp) })
    } else {
        (None, stack.esp())
    };
    check_target(&code, eip)?;
    // Nothing can be wrong any more.
    let code = accessed(bus, code)?;
    let outer = outer.map(|stack| accessed(bus, stack)).transpose()?;
    Ok(Destination { code, eip, outer, esp })
}

/// The code segment that a return may go to: of the current level or an outer one.
fn examine_code(cpu: &Cpu, bus: &mut dyn Bus, selector: u16) -> Result<Segment, Exception> {
    let code = fetch(bus, selector)?;
    let level = rpl(selector);
    let level_fits = if code.is_conforming() { code.dpl() <= level } else { code.dpl() == level };
    if !code.is_code() || level < cpu.cpl() || !level_fits {
        return Err(Exception::protection(selector));
    }
    if !is_present(&code) {
        return Err(Exception::not_present(selector));
    }
    Ok(code)
}

/// Makes the return happen.
fn arrive(cpu: &mut Cpu, destination: Destination) {
    let Destination { code, eip, outer, esp } = destination;
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
        if cpu.segment(register).is_emptied_at(cpu.cpl()) {
            cpu.set_segment(register, null_segment(0));
        }
    }
}

/// `esp` moved up by `bytes` within a stack segment's width.
fn moved_esp(segment: &Segment, esp: u32, bytes: u32) -> u32 {
    let moved = esp.wrapping_add(bytes);
    if segment.is_32bit() { moved } else { merged(esp, moved) }
}

/// The upper half of one, the lower half of the other: a 16-bit stack keeps the upper half of esp.
fn merged(upper: u32, lower: u32) -> u32 {
    upper & 0xffff_0000 | lower & 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing::{
        Memory, assert_done, assert_fault, cpu_at, memory, page_fault, selector as s, state,
    };

    /// Memory with dwords on the stack that [`cpu_at`] sets up.
    fn with_stack(dwords: &[u32]) -> Memory {
        with_stack_at(0x8000, dwords)
    }

    fn with_stack_at(esp: u32, dwords: &[u32]) -> Memory {
        let mut memory = memory();
        for (index, dword) in dwords.iter().enumerate() {
            memory.store(esp + index as u32 * 4, &dword.to_le_bytes());
        }
        memory
    }

    fn code(selector: u16) -> u32 {
        selector.into()
    }

    #[test]
    fn far_return_to_the_same_level() {
        let mut memory = with_stack(&[0x1234, code(s::CODE_1 | 1)]);
        let mut cpu = cpu_at(1);
        assert_done(&mut cpu, &mut memory, &[0xcb]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp), cpu.cpl()), (0x1234, 0x8008, 1));
        let mut cpu = cpu_at(1);
        assert_done(&mut cpu, &mut memory, &[0xca, 0x10, 0]);
        assert_eq!(cpu.gpr(Gpr::Esp), 0x8018);
        // The 16-bit form takes words.
        let mut memory = with_stack(&[0x1234 | code(s::CODE_1 | 1) << 16]);
        let mut cpu = cpu_at(1);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xcb]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1234, 0x8004));
    }

    #[test]
    fn far_return_to_an_outer_level_empties_inner_segments() {
        let frame = [0x1234, code(s::CODE_3 | 3), 0xaaaa, 0x9000, code(s::DATA_3 | 3)];
        let mut cpu = cpu_at(1);
        let outer = Segment { selector: s::DATA_3, ..Segment::flat_data(3) };
        cpu.set_segment(SegmentRegister::Es, outer);
        cpu.set_segment(SegmentRegister::Fs, null_segment(2));
        cpu.set_segment(
            SegmentRegister::Gs,
            Segment { attributes: 0xc0bf, ..Segment::flat_code(s::CONFORMING_1 | 1) },
        );
        assert_done(&mut cpu, &mut with_stack(&frame), &[0xca, 4, 0]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp), cpu.cpl()), (0x1234, 0x9004, 3));
        assert_eq!(cpu.segment(SegmentRegister::Ss), Segment::flat_data(s::DATA_3 | 3));
        assert_eq!(cpu.segment(SegmentRegister::Ds), null_segment(0));
        assert_eq!(cpu.segment(SegmentRegister::Es), outer);
        assert_eq!(cpu.segment(SegmentRegister::Fs), null_segment(0));
        assert_eq!(cpu.segment(SegmentRegister::Gs).selector, s::CONFORMING_1 | 1);
    }

    #[test]
    fn returns_refused() {
        let good_stack = code(s::DATA_3 | 3);
        for (level, frame, exception) in [
            (3, [0, 3, 0, 0], Exception::protection(0)),
            (3, [0, code(s::CODE_1 | 1), 0, 0], Exception::protection(s::CODE_1)),
            (3, [0, code(s::CODE_1 | 3), 0, 0], Exception::protection(s::CODE_1)),
            (3, [0, code(s::DATA_3 | 3), 0, 0], Exception::protection(s::DATA_3)),
            (3, [0, code(s::BEYOND | 3), 0, 0], Exception::protection(s::BEYOND)),
            (3, [0, code(s::GATE | 3), 0, 0], Exception::protection(s::GATE)),
            (3, [0, code(s::ABSENT_CODE | 3), 0, 0], Exception::not_present(s::ABSENT_CODE)),
            (0, [0, code(s::CODE_1), 0, 0], Exception::protection(s::CODE_1)),
            (0, [0, code(s::CONFORMING_1), 0, 0], Exception::protection(s::CONFORMING_1)),
            (0, [0x1000, code(s::SHORT_CODE), 0, 0], Exception::protection(0)),
            (1, [0, code(s::CODE_3 | 3), 0, 0], Exception::protection(0)),
            (1, [0, code(s::CODE_3 | 3), 0, code(s::DATA_3)], Exception::protection(s::DATA_3)),
            (1, [0, code(s::CODE_3 | 3), 0, code(s::DATA_1 | 3)], Exception::protection(s::DATA_1)),
            (
                1,
                [0, code(s::CODE_3 | 3), 0, code(s::CONSTANT | 3)],
                Exception::protection(s::CONSTANT),
            ),
            (
                1,
                [0, code(s::CODE_3 | 3), 0, code(s::ABSENT_DATA | 3)],
                Exception::stack(s::ABSENT_DATA),
            ),
            (
                1,
                [0, code(s::ABSENT_CODE | 3), 0, good_stack],
                Exception::not_present(s::ABSENT_CODE),
            ),
        ] {
            assert_fault(&mut cpu_at(level), &mut with_stack(&frame), &[0xcb], exception);
        }
    }

    #[test]
    fn a_return_whose_stack_is_missing_changes_nothing() {
        let mut memory = memory();
        memory.store(0x8ff4, &0x1234_u32.to_le_bytes());
        memory.store(0x8ff8, &code(s::CODE_3 | 3).to_le_bytes());
        memory.remove_page(0x9000);
        let mut cpu = cpu_at(1);
        cpu.set_gpr(Gpr::Esp, 0x8ff4);
        assert_fault(&mut cpu, &mut memory, &[0xcb], page_fault(0x9000, false, false));
        let before = state(&cpu);
        memory.store(0x8ffc, &0x202_u32.to_le_bytes());
        assert_eq!(iret(&mut cpu, &mut memory, 4), Err(page_fault(0x9000, false, false)));
        assert_eq!(state(&cpu), before);
    }

    #[test]
    fn a_narrow_outer_stack_keeps_the_upper_half_of_esp() {
        let frame = [0x1234, code(s::CODE_3 | 3), 2, 0x1111_fff0, code(s::NARROW_STACK | 3)];
        let mut cpu = cpu_at(0);
        cpu.set_gpr(Gpr::Esp, 0x55_8000);
        assert_eq!(iret(&mut cpu, &mut with_stack_at(0x55_8000, &frame), 4), Ok(()));
        assert_eq!(cpu.gpr(Gpr::Esp), 0x55_fff0);
        // retf 16 drops 16 bytes of each stack, and the outer one wraps.
        let frame =
            [0x1234, code(s::CODE_3 | 3), 0, 0, 0, 0, 0x1111_fff0, code(s::NARROW_STACK | 3)];
        let mut cpu = cpu_at(0);
        cpu.set_gpr(Gpr::Esp, 0x55_8000);
        assert_done(&mut cpu, &mut with_stack_at(0x55_8000, &frame), &[0xca, 0x10, 0]);
        assert_eq!(cpu.gpr(Gpr::Esp), 0x55_0000);
    }

    #[test]
    fn iret_sets_the_flags_its_level_may() {
        let all = LIVE_FLAGS | TF | IF | IOPL | RF | AC | ID;
        for (level, iopl, size, expected) in [
            (0, 0, 4, all),
            (1, 0, 4, all & !(IF | IOPL)),
            (1, 1, 4, all & !IOPL | 0x1000),
            (3, 0, 4, all & !(IF | IOPL)),
            (3, 3, 4, all),
            (0, 0, 2, all & 0xffff),
            (1, 0, 2, all & 0xffff & !(IF | IOPL)),
        ] {
            let mut cpu = cpu_at(level);
            cpu.set_eflags(iopl << 12);
            let selector = cpu.segment(SegmentRegister::Cs).selector;
            let mut memory = if size == 4 {
                with_stack(&[0x1234, selector.into(), all])
            } else {
                with_stack(&[0x1234 | u32::from(selector) << 16, all & 0xffff])
            };
            assert_eq!(iret(&mut cpu, &mut memory, size), Ok(()));
            assert_eq!(cpu.eflags(), expected | 2, "level {level}, IOPL {iopl}, size {size}");
            assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1234, 0x8000 + 3 * size));
        }
    }

    #[test]
    fn iret_clears_what_it_may() {
        let mut cpu = cpu_at(1);
        cpu.set_eflags(LIVE_FLAGS | IF | RF | AC | ID);
        let mut memory = with_stack(&[0x1234, code(s::CODE_1 | 1), 0]);
        assert_eq!(iret(&mut cpu, &mut memory, 4), Ok(()));
        assert_eq!(cpu.eflags(), IF | 2);
    }

    #[test]
    fn no_tasks_and_no_virtual_8086_mode() {
        let mut memory = with_stack(&[0x1234, code(s::CODE_0), VM]);
        let mut cpu = cpu_at(0);
        assert_eq!(iret(&mut cpu, &mut memory, 4), Err(Exception::protection(0)));
        cpu.set_eflags(NT);
        assert_eq!(iret(&mut cpu, &mut memory, 4), Err(Exception::protection(0)));
        // At outer levels VM on the stack means nothing.
        let mut memory = with_stack(&[0x1234, code(s::CODE_3 | 3), VM]);
        let mut cpu = cpu_at(3);
        assert_eq!(iret(&mut cpu, &mut memory, 4), Ok(()));
        assert_eq!(cpu.eflags(), 2);
    }
}
