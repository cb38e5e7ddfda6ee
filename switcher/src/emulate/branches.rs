//! Near branches: those that stay in their code segment.
//!
//! Translated code makes nearly all of them by itself. Here are the ones with a 16-bit operand,
//! which cut eip to 16 bits, and calls and returns whose stack was awkward.

use super::operands::{operand_size, read_operand};
use super::registers::write_low;
use super::stack::{Stack, push_value};
use super::{Bus, addresses, flags, next_eip};
use crate::cpu::{Cpu, Gpr, Segment, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

/// Whether execution may go on at `eip` of that code segment.
///
/// # Errors
/// #GP(0) beyond its limit.
pub(super) fn check_target(code: &Segment, eip: u32) -> Result<(), Exception> {
    if addresses::reaches(code, eip, 1) { Ok(()) } else { Err(Exception::protection(0)) }
}

/// `jmp` to a relative, register or memory target.
pub(super) fn jump(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let target = target(cpu, bus, instruction)?;
    go_to(cpu, target)
}

/// `call` of a relative, register or memory target.
pub(super) fn call(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let target = target(cpu, bus, instruction)?;
    check_target(&cpu.segment(SegmentRegister::Cs), target)?;
    let back = next_eip(cpu, instruction);
    push_value(cpu, bus, operand_size(instruction), back)?;
    cpu.set_eip(target);
    Ok(())
}

/// `ret`, and `ret n`, which drops n bytes of arguments.
pub(super) fn ret(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let mut stack = Stack::of(cpu);
    let target = stack.pop(cpu, bus, operand_size(instruction))?;
    go_to(cpu, target)?;
    stack.skip(dropped_bytes(instruction));
    stack.commit(cpu);
    Ok(())
}

/// n of `ret n` and `retf n`; 0 without one.
pub(super) fn dropped_bytes(instruction: &Instruction) -> u32 {
    if instruction.op_count() == 0 { 0 } else { instruction.immediate16().into() }
}

/// `jcc`, `loop` and its kin, `jecxz`. Only a branch that is taken looks at its target, and only
/// one whose target is good counts down.
pub(super) fn conditional(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let loops = instruction.is_loop() || instruction.is_loopcc();
    let size = counter_size(instruction);
    let counter = cpu.gpr(Gpr::Ecx).wrapping_sub(loops.into());
    let is_zero = counter & (if size == 2 { 0xffff } else { u32::MAX }) == 0;
    let taken = if loops {
        !is_zero && condition(cpu, instruction.condition_code())
    } else if matches!(instruction.mnemonic(), Mnemonic::Jcxz | Mnemonic::Jecxz) {
        is_zero
    } else {
        condition(cpu, instruction.condition_code())
    };
    if taken {
        go_to(cpu, instruction.near_branch_target() as u32)?;
    } else {
        cpu.set_eip(next_eip(cpu, instruction));
    }
    if loops {
        write_low(cpu, Gpr::Ecx, size, counter);
    }
    Ok(())
}

/// Bytes of the counter, cx or ecx: the instruction's address size says which.
fn counter_size(instruction: &Instruction) -> u32 {
    use Code as C;
    match instruction.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        _ => 4,
    }
}

/// Where a near jump or call goes.
fn target(cpu: &Cpu, bus: &mut dyn Bus, instruction: &Instruction) -> Result<u32, Exception> {
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 => Ok(instruction.near_branch_target() as u32),
        _ => read_operand(cpu, bus, instruction, 0, operand_size(instruction)),
    }
}

/// Sets eip within the current code segment.
fn go_to(cpu: &mut Cpu, eip: u32) -> Result<(), Exception> {
    check_target(&cpu.segment(SegmentRegister::Cs), eip)?;
    cpu.set_eip(eip);
    Ok(())
}

/// Whether the flags meet a condition (SDM volume 1, appendix "EFLAGS Condition Codes"). No
/// condition is always met.
fn condition(cpu: &Cpu, code: ConditionCode) -> bool {
    use ConditionCode as C;
    let is = |flag| flags::is_set(cpu, flag);
    let less = is(flags::SF) != is(flags::OF);
    match code {
        C::None => true,
        C::o => is(flags::OF),
        C::no => !is(flags::OF),
        C::b => is(flags::CF),
        C::ae => !is(flags::CF),
        C::e => is(flags::ZF),
        C::ne => !is(flags::ZF),
        C::be => is(flags::CF | flags::ZF),
        C::a => !is(flags::CF | flags::ZF),
        C::s => is(flags::SF),
        C::ns => !is(flags::SF),
        C::p => is(flags::PF),
        C::np => !is(flags::PF),
        C::l => less,
        C::ge => !less,
        C::le => less || is(flags::ZF),
        C::g => !less && !is(flags::ZF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing::{assert_done, assert_fault, cpu_at, memory, page_fault};

    #[test]
    fn calls_and_returns() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        assert_done(&mut cpu, &mut memory, &[0xe8, 0xfb, 0x0f, 0, 0]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp), memory.dword(0x7ffc)), (0x2000, 0x7ffc, 0x1005));
        assert_done(&mut cpu, &mut memory, &[0xc2, 8, 0]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1005, 0x8008));
        cpu.set_gpr(Gpr::Ecx, 0x1234_5678);
        assert_done(&mut cpu, &mut memory, &[0xff, 0xd1]); // call ecx
        assert_eq!((cpu.eip(), memory.dword(0x8004)), (0x1234_5678, 0x1007));
        assert_done(&mut cpu, &mut memory, &[0xc3]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1007, 0x8008));
        memory.store(0x3000, &[4, 3, 2, 1]);
        assert_done(&mut cpu, &mut memory, &[0xff, 0x25, 0, 0x30, 0, 0]); // jmp [0x3000]
        assert_eq!(cpu.eip(), 0x0102_0304);
    }

    #[test]
    fn narrow_operands_cut_eip() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_eip(0x1234_1000);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xe8, 0xfc, 0x0f]); // call
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp), memory.word(0x7ffe)), (0x2000, 0x7ffe, 0x1004));
        cpu.set_eip(0x1234_1000);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xc3]);
        assert_eq!((cpu.eip(), cpu.gpr(Gpr::Esp)), (0x1004, 0x8000));
        cpu.set_eip(0x1234_fff0);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xe9, 0x10, 0]); // jmp: wraps at 64 KiB
        assert_eq!(cpu.eip(), 4);
        cpu.set_eip(0x1234_1000);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xeb, 0xfd]);
        assert_eq!(cpu.eip(), 0x1000);
        cpu.set_eip(0x1234_1000);
        cpu.set_gpr(Gpr::Ecx, 0xffff_8888);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xff, 0xe1]); // jmp cx
        assert_eq!(cpu.eip(), 0x8888);
        // A branch that isn't taken doesn't cut anything.
        cpu.set_eip(0x1234_1000);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x74, 0x10]); // je
        assert_eq!(cpu.eip(), 0x1234_1003);
        cpu.set_eflags(flags::ZF);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x0f, 0x84, 0, 1]);
        assert_eq!(cpu.eip(), 0x1108);
    }

    #[test]
    fn all_conditions() {
        use flags::{CF, OF, PF, SF, ZF};
        for all in 0..32 {
            let set = |bit, flag| flags::when(all & 1 << bit != 0, flag);
            let eflags = set(0, CF) | set(1, PF) | set(2, ZF) | set(3, SF) | set(4, OF);
            let is = |flag| eflags & flag != 0;
            let expected = [
                is(OF),
                is(CF),
                is(ZF),
                is(CF) || is(ZF),
                is(SF),
                is(PF),
                is(SF) != is(OF),
                is(ZF) || is(SF) != is(OF),
            ];
            for (number, expected) in expected.into_iter().enumerate() {
                for negated in [false, true] {
                    let mut cpu = cpu_at(3);
                    cpu.set_eflags(eflags);
                    let opcode = 0x70 + number as u8 * 2 + u8::from(negated);
                    assert_done(&mut cpu, &mut memory(), &[opcode, 0x10]);
                    let taken = cpu.eip() == 0x1012;
                    assert_eq!(taken, expected != negated, "{opcode:02x}, eflags {eflags:03x}");
                }
            }
        }
    }

    #[test]
    fn loops_count_what_the_address_size_says() {
        let run = |code: &[u8], ecx, eflags| {
            let mut cpu = cpu_at(3);
            cpu.set_gpr(Gpr::Ecx, ecx);
            cpu.set_eflags(eflags);
            assert_done(&mut cpu, &mut memory(), code);
            let taken = cpu.eip() != 0x1000 + code.len() as u32;
            (cpu.gpr(Gpr::Ecx), taken)
        };
        assert_eq!(run(&[0xe2, 0x10], 2, 0), (1, true));
        assert_eq!(run(&[0xe2, 0x10], 1, 0), (0, false));
        assert_eq!(run(&[0xe2, 0x10], 0, 0), (u32::MAX, true));
        assert_eq!(run(&[0x67, 0xe2, 0x10], 0x1_0001, 0), (0x1_0000, false));
        assert_eq!(run(&[0x67, 0xe2, 0x10], 0x1_0000, 0), (0x1_ffff, true));
        assert_eq!(run(&[0xe1, 0x10], 2, flags::ZF), (1, true)); // loope
        assert_eq!(run(&[0xe1, 0x10], 2, 0), (1, false));
        assert_eq!(run(&[0xe0, 0x10], 2, flags::ZF), (1, false)); // loopne
        assert_eq!(run(&[0xe0, 0x10], 2, 0), (1, true));
        assert_eq!(run(&[0xe0, 0x10], 1, 0), (0, false));
        assert_eq!(run(&[0xe3, 0x10], 0, 0), (0, true)); // jecxz
        assert_eq!(run(&[0xe3, 0x10], 0x1_0000, 0), (0x1_0000, false));
        assert_eq!(run(&[0x67, 0xe3, 0x10], 0x1_0000, 0), (0x1_0000, true)); // jcxz
    }

    #[test]
    fn branches_beyond_the_limit_change_nothing() {
        let mut cpu = cpu_at(3);
        let short = Segment { limit: 0x1fff, ..Segment::flat_code(0x2b) };
        cpu.set_segment(SegmentRegister::Cs, short);
        cpu.set_gpr(Gpr::Ecx, 5);
        let mut memory = memory();
        memory.store(0x8000, &[0, 0x20, 0, 0]);
        for code in [
            [0xe9, 0xfb, 0x0f, 0, 0].as_slice(),
            &[0xe8, 0xfb, 0x0f, 0, 0],
            &[0xc3],
            &[0x0f, 0x85, 0xfa, 0x0f, 0, 0],
        ] {
            assert_fault(&mut cpu, &mut memory, code, Exception::protection(0));
        }
        cpu.set_eip(0x1ff8);
        assert_fault(&mut cpu, &mut memory, &[0xe2, 0x10], Exception::protection(0));
        memory.remove_page(0x7000);
        assert_fault(&mut cpu, &mut memory, &[0xe8, 0, 0, 0, 0], page_fault(0x7ffc, true, false));
    }
}
