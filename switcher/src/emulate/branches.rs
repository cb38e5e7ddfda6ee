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
    if addresses::reaches(code, eip, 1) {
        Ok(())
    } else {
        Err(Exception::protection(0))
    }
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
    if instruction.op_count() == 0 {
        0
    } else {
        instruction.immediate16().into()
    }
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
