//! Instructions that look and judge: array bounds, overflow, and what a selector would allow.

use super::operands::{operand_size, read_operand, read_part, write_operand};
use super::segments::{is_null, may_see};
use super::{Bus, flags, next_eip, registers};
use crate::cpu::{Cpu, Segment};
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic, OpKind};

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

/// The vector of a software interrupt: of `int3`, and of `into` if OF is set.
pub(super) fn interrupt(cpu: &Cpu, instruction: &Instruction) -> Option<u8> {
    match instruction.mnemonic() {
        Mnemonic::Int3 => Some(3),
        Mnemonic::Into if flags::is_set(cpu, flags::OF) => Some(4),
        _ => None,
    }
}

/// `bound`: #BR unless the signed index lies between the two bounds in memory, both included.
pub(super) fn bound(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let signed = |value: u32| {
        if size == 2 { i32::from(value as i16) } else { value as i32 }
    };
    let index = signed(registers::read(cpu, instruction.op0_register()));
    let lower = signed(read_part(cpu, bus, instruction, 0, size)?);
    let upper = signed(read_part(cpu, bus, instruction, size, size)?);
    if (lower..=upper).contains(&index) { Ok(()) } else { Err(BOUND_RANGE) }
}

/// `arpl`: raises the level of the selector in the first operand to the second's; ZF tells whether
/// it had to. Only then is memory written.
pub(super) fn adjust_rpl(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let selector = read_operand(cpu, bus, instruction, 0, 2)?;
    let level = registers::read(cpu, instruction.op1_register()) & 3;
    let raise = selector & 3 < level;
    if raise {
        write_low_operand(cpu, bus, instruction, selector & !3 | level)?;
    }
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
    let selector = read_operand(cpu, bus, instruction, 1, 2)? as u16;
    let visible = visible_descriptor(cpu, bus, selector, SYSTEM_TYPES)?;
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
    let selector = read_operand(cpu, bus, instruction, 1, 2)? as u16;
    let visible = visible_descriptor(cpu, bus, selector, SYSTEM_TYPES)?;
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
    let allowed = visible_descriptor(cpu, bus, selector, 0)?.is_some_and(|(_, segment)| {
        if write { segment.is_writable() } else { segment.is_readable() }
    });
    flags::change(cpu, flags::ZF, flags::when(allowed, flags::ZF));
    Ok(())
}

/// The descriptor that `selector` names, raw and as a segment; `None` when it doesn't exist, is of an
/// inner level, or is a system descriptor whose type isn't among those in the bit set
/// `system_types`.
fn visible_descriptor(
    cpu: &Cpu,
    bus: &mut dyn Bus,
    selector: u16,
    system_types: u16,
) -> Result<Option<(u64, Segment)>, Exception> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = bus.descriptor(selector)? else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Gpr, SegmentRegister};
    use crate::emulate::Outcome;
    use crate::emulate::testing::{
        assert_done, assert_fault, cpu_at, memory, page_fault, run, selector as s,
    };

    #[test]
    fn bounds_are_signed_and_inclusive() {
        let mut memory = memory();
        memory.store(0x3000, &(-2_i32).to_le_bytes());
        memory.store(0x3004, &5_i32.to_le_bytes());
        memory.store(0x3008, &[0xfe, 0xff, 5, 0]);
        for (index, inside) in [(-3, false), (-2, true), (0, true), (5, true), (6, false)] {
            let mut cpu = cpu_at(3);
            cpu.set_gpr(Gpr::Eax, index as u32);
            let wide: &[u8] = &[0x62, 0x05, 0, 0x30, 0, 0];
            let narrow: &[u8] = &[0x66, 0x62, 0x05, 8, 0x30, 0, 0];
            for code in [wide, narrow] {
                if inside {
                    assert_done(&mut cpu, &mut memory, code);
                } else {
                    assert_fault(&mut cpu, &mut memory, code, Exception::plain(5));
                }
            }
        }
    }

    #[test]
    fn overflow_and_breakpoints_are_traps() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        assert_done(&mut cpu, &mut memory, &[0xce]);
        assert_eq!(cpu.eip(), 0x1001);
        cpu.set_eflags(flags::OF);
        assert_eq!(run(&mut cpu, &mut memory, &[0xce]), Ok(Outcome::Interrupt(4)));
        assert_eq!(run(&mut cpu, &mut memory, &[0xcc]), Ok(Outcome::Interrupt(3)));
        assert_eq!(run(&mut cpu, &mut memory, &[0xf1]), Err(Exception::plain(1)));
        assert_eq!(cpu.eip(), 0x1004);
    }

    #[test]
    fn arpl_raises_levels() {
        for (selector, level, result, zero) in
            [(0x30_u16, 3_u32, 0x33, true), (0x33, 3, 0x33, false), (0x33, 0, 0x33, false)]
        {
            let (mut cpu, mut memory) = (cpu_at(3), memory());
            cpu.set_gpr(Gpr::Ecx, 0xaaaa_0000 | u32::from(selector));
            cpu.set_gpr(Gpr::Edx, 0xffff_fff8 | level);
            cpu.set_eflags(flags::when(!zero, flags::ZF) | flags::CF);
            assert_done(&mut cpu, &mut memory, &[0x63, 0xd1]); // arpl cx, dx
            assert_eq!(cpu.gpr(Gpr::Ecx), 0xaaaa_0000 | result);
            assert_eq!(cpu.eflags(), flags::when(zero, flags::ZF) | flags::CF | 2);
            memory.store(0x3000, &selector.to_le_bytes());
            assert_done(&mut cpu, &mut memory, &[0x63, 0x15, 0, 0x30, 0, 0]);
            assert_eq!(memory.dword(0x3000), result);
            memory.store(0x3000, &selector.to_le_bytes());
            memory.protect_page(0x3000);
            let code = &[0x63, 0x15, 0, 0x30, 0, 0];
            if zero {
                assert_fault(&mut cpu, &mut memory, code, page_fault(0x3000, true, true));
            } else {
                assert_done(&mut cpu, &mut memory, code);
            }
        }
    }

    /// What an instruction on ecx (result) and eax (selector) says at a level; `None` for ZF clear.
    fn ask(level: u16, selector: u16, code: &[u8]) -> Option<u32> {
        let mut cpu = cpu_at(level);
        cpu.set_gpr(Gpr::Eax, selector.into());
        cpu.set_gpr(Gpr::Ecx, 0xdead_beef);
        cpu.set_eflags(flags::CF);
        assert_done(&mut cpu, &mut memory(), code);
        let result = cpu.gpr(Gpr::Ecx);
        assert_eq!(cpu.eflags() & !flags::ZF, flags::CF | 2);
        if flags::is_set(&cpu, flags::ZF) {
            return Some(result);
        }
        assert_eq!(result, 0xdead_beef);
        None
    }

    #[test]
    fn access_rights_and_limits() {
        let lar: &[u8] = &[0x0f, 0x02, 0xc8];
        let lsl: &[u8] = &[0x0f, 0x03, 0xc8];
        for (level, selector, rights, limit) in [
            // The first three are what an AMD processor says of Linux's segments.
            (3, s::CODE_3 | 3, Some(0x00cf_fb00), Some(u32::MAX)),
            (3, s::DATA_3, Some(0x00cf_f300), Some(u32::MAX)),
            (0, s::SHORT_CODE, Some(0x0040_9b00), Some(0xfff)),
            (3, s::CODE_1, None, None),
            (1, s::CODE_1 | 3, None, None),
            (3, s::CONFORMING_1 | 3, Some(0x00cf_bf00), Some(u32::MAX)),
            (3, s::ABSENT_DATA | 3, Some(0x00cf_7300), Some(u32::MAX)),
            (3, s::GATE, Some(0x0000_ec00), None),
            (3, s::TASK, Some(0x0000_eb00), Some(103)),
            (3, s::BEYOND, None, None),
            (3, 0, None, None),
            (3, 3, None, None),
        ] {
            assert_eq!(ask(level, selector, lar), rights, "lar {level} {selector:#x}");
            assert_eq!(ask(level, selector, lsl), limit, "lsl {level} {selector:#x}");
        }
        // 16-bit forms keep the upper half.
        assert_eq!(ask(3, s::CODE_3, &[0x66, 0x0f, 0x02, 0xc8]), Some(0xdead_fb00));
        assert_eq!(ask(3, s::TASK, &[0x66, 0x0f, 0x03, 0xc8]), Some(0xdead_0067));
    }

    #[test]
    fn verification() {
        for (level, selector, readable, writable) in [
            (3, s::DATA_3 | 3, true, true),
            (3, s::CONSTANT | 3, true, false),
            (3, s::CODE_3 | 3, true, false),
            (3, s::EXECUTE_ONLY | 3, false, false),
            (3, s::CONFORMING_1 | 3, true, false),
            (3, s::DATA_1 | 3, false, false),
            (1, s::DATA_1 | 3, false, false),
            (1, s::DATA_1 | 1, true, true),
            (3, s::GATE, false, false),
            (3, s::BEYOND, false, false),
            (3, 0, false, false),
        ] {
            let verr = ask(level, selector, &[0x0f, 0x00, 0xe0]).is_some();
            let verw = ask(level, selector, &[0x0f, 0x00, 0xe8]).is_some();
            assert_eq!((verr, verw), (readable, writable), "{level} {selector:#x}");
        }
    }

    #[test]
    fn selectors_in_memory() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.store(0x3000, &[0x33, 0]);
        assert_done(&mut cpu, &mut memory, &[0x0f, 0x00, 0x25, 0, 0x30, 0, 0]); // verr
        assert!(flags::is_set(&cpu, flags::ZF));
        cpu.set_segment(SegmentRegister::Ds, crate::emulate::segments::null_segment(0));
        let refused = Exception::protection(0);
        assert_fault(&mut cpu, &mut memory, &[0x0f, 0x00, 0x25, 0, 0x30, 0, 0], refused);
    }
}
