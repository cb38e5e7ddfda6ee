//! Far jumps and calls: to another code segment, at the same level.
//!
//! An inner level is reached through gates and tasks only. No system we run uses a call gate or
//! a task gate with `jmp` or `call`, so these are refused with the #GP(selector) that the
//! processor has for a descriptor of the wrong type.

use super::branches::check_target;
use super::operands::{operand_size, read_far_pointer, write_memory};
use super::segments::{accessed, fetch, is_present, rpl};
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
    let code = accessed(bus, code)?;
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
    let code = accessed(bus, code)?;
    write_memory(bus, cs_slot, size, cpu.segment(SegmentRegister::Cs).selector.into())?;
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
    let allowed = if code.is_conforming() {
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
    Ok(Segment { selector: selector & !3 | u16::from(level), ..code })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Gpr;
    use crate::emulate::testing::{
        assert_done, assert_fault, cpu_at, memory, page_fault, selector as s,
    };

    /// A far jump (EA) or call (9A) to an immediate.
    fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
        let mut code = vec![opcode];
        code.extend(offset.to_le_bytes());
        code.extend(selector.to_le_bytes());
        code
    }

    #[test]
    fn far_jumps_stay_at_their_level() {
        for (level, selector, loaded) in [
            (0, s::CODE_0, s::CODE_0),
            (1, s::CODE_1, s::CODE_1 | 1),
            (3, s::CODE_3 | 1, s::CODE_3 | 3),
            (3, s::CONFORMING_1, s::CONFORMING_1 | 3),
            (1, s::CONFORMING_1 | 3, s::CONFORMING_1 | 1),
        ] {
            let mut cpu = cpu_at(level);
            assert_done(&mut cpu, &mut memory(), &far(0xea, selector, 0x1234_5678));
            assert_eq!(cpu.eip(), 0x1234_5678);
            assert_eq!(cpu.segment(SegmentRegister::Cs).selector, loaded);
            assert_eq!(u16::from(cpu.cpl()), level);
        }
    }

    #[test]
    fn far_jumps_and_calls_refused() {
        for (level, selector, exception) in [
            (3, 0, Exception::protection(0)),
            (3, s::BEYOND, Exception::protection(s::BEYOND)),
            (3, s::CODE_1 | 3, Exception::protection(s::CODE_1)),
            (1, s::CODE_3 | 1, Exception::protection(s::CODE_3)),
            (1, s::CODE_1 | 3, Exception::protection(s::CODE_1)),
            (0, s::CONFORMING_1, Exception::protection(s::CONFORMING_1)),
            (3, s::DATA_3 | 3, Exception::protection(s::DATA_3)),
            (3, s::GATE | 3, Exception::protection(s::GATE)),
            (3, s::TASK | 3, Exception::protection(s::TASK)),
            (3, s::ABSENT_CODE | 3, Exception::not_present(s::ABSENT_CODE)),
            (0, s::SHORT_CODE, Exception::protection(0)),
        ] {
            for opcode in [0xea, 0x9a] {
                let code = far(opcode, selector, 0x1000);
                assert_fault(&mut cpu_at(level), &mut memory(), &code, exception);
            }
        }
    }

    #[test]
    fn far_calls_push_their_way_back() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.store(0x7ff0, &[0xff; 16]);
        assert_done(&mut cpu, &mut memory, &far(0x9a, s::CODE_3, 0x5000));
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x5000, 0x7ff8));
        assert_eq!((memory.dword(0x7ff8), memory.dword(0x7ffc)), (0x1007, 0x2b));
        // call far word [0x3000]
        memory.store(0x3000, &[0x34, 0x12, 0x2b, 0]);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xff, 0x1d, 0, 0x30, 0, 0]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1234, 0x7ff4));
        assert_eq!((memory.word(0x7ff4), memory.word(0x7ff6)), (0x5007, 0x2b));
        // jmp far [0x3000]
        memory.store(0x3000, &[0, 0, 1, 0, 0x2b, 0]);
        assert_done(&mut cpu, &mut memory, &[0xff, 0x2d, 0, 0x30, 0, 0]);
        assert_eq!(cpu.eip(), 0x1_0000);
    }

    #[test]
    fn a_far_call_that_can_push_only_half_pushes_nothing() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.remove_page(0x7000);
        cpu.set_gpr(Gpr::Esp, 0x8004);
        let fault = page_fault(0x7ffc, true, false);
        assert_fault(&mut cpu, &mut memory, &far(0x9a, s::CODE_3, 0x5000), fault);
    }
}
