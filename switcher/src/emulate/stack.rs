//! The stack: `push` and `pop` in all their forms, `pusha`, `popa`, `enter`, `leave`.
//!
//! How much of esp counts is the stack segment's business: with its B bit clear only sp moves, and
//! wraps at 64 KiB (SDM volume 3, section "Stack ... Segment"). How much is pushed is the
//! instruction's operand size. The two are independent.

use super::addresses::{Direction, linear, operand_offset};
use super::operands::{operand_size, read_memory, read_operand, write_memory};
use super::{Bus, registers};
use crate::address::GuestVirt;
use crate::cpu::{Cpu, Gpr, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Instruction, OpKind};

/// The stack pointer on its way through an instruction. The processor's own moves when the
/// instruction is sure to succeed: by [`Stack::commit`].
#[derive(Clone, Copy)]
pub(super) struct Stack {
    pointer: u32,
    /// 0xffff for a 16-bit stack.
    mask: u32,
}

impl Stack {
    /// The stack as the instruction finds it.
    pub(super) fn of(cpu: &Cpu) -> Self {
        let mask = if cpu.segment(SegmentRegister::Ss).is_32bit() {
            u32::MAX
        } else {
            0xffff
        };
        Self {
            pointer: cpu.gpr(Gpr::Esp),
            mask,
        }
    }

    /// esp: the whole register, of which a 16-bit stack moves the lower half.
    pub(super) fn esp(self) -> u32 {
        self.pointer
    }

    /// Moves the pointer up (or down, by a negated number) without touching memory.
    pub(super) fn skip(&mut self, bytes: u32) {
        self.move_to(self.pointer.wrapping_add(bytes));
    }

    /// Sets the pointer, as far as this stack's width goes.
    fn move_to(&mut self, pointer: u32) {
        self.pointer = self.pointer & !self.mask | pointer & self.mask;
    }

    /// Moves down by `size` bytes: where the value to be pushed goes.
    ///
    /// # Errors
    /// #SS(0) outside the segment. Whether the page may be written isn't asked here.
    pub(super) fn reserve(&mut self, cpu: &Cpu, size: u32) -> Result<GuestVirt, Exception> {
        self.skip(size.wrapping_neg());
        linear(
            cpu,
            SegmentRegister::Ss,
            self.pointer & self.mask,
            size,
            Direction::Write,
        )
    }

    /// Like [`Stack::reserve`], and asks whether the page may be written.
    ///
    /// # Errors
    /// #SS(0) outside the segment, or the page fault.
    pub(super) fn reserve_page(
        &mut self,
        cpu: &Cpu,
        bus: &mut dyn Bus,
        size: u32,
    ) -> Result<GuestVirt, Exception> {
        let at = self.reserve(cpu, size)?;
        bus.check_write(at, size)?;
        Ok(at)
    }

    /// Reads the topmost `size` bytes and moves up.
    ///
    /// # Errors
    /// #SS(0) outside the segment, or the page fault.
    pub(super) fn pop(
        &mut self,
        cpu: &Cpu,
        bus: &mut dyn Bus,
        size: u32,
    ) -> Result<u32, Exception> {
        let value = read_stack(cpu, bus, self.pointer & self.mask, size)?;
        self.skip(size);
        Ok(value)
    }

    /// Makes it the processor's stack pointer.
    pub(super) fn commit(self, cpu: &mut Cpu) {
        cpu.set_gpr(Gpr::Esp, self.pointer);
    }
}

/// Reads `size` bytes at an offset of the stack segment.
fn read_stack(cpu: &Cpu, bus: &mut dyn Bus, offset: u32, size: u32) -> Result<u32, Exception> {
    let at = linear(cpu, SegmentRegister::Ss, offset, size, Direction::Read)?;
    read_memory(bus, at, size)
}

/// Pushes the low `size` bytes (2 or 4) of `value`.
///
/// # Errors
/// #SS(0) outside the stack segment, or the page fault; nothing has changed then.
pub(crate) fn push_value(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    size: u32,
    value: u32,
) -> Result<(), Exception> {
    let mut stack = Stack::of(cpu);
    let at = stack.reserve(cpu, size)?;
    write_memory(bus, at, size, value)?;
    stack.commit(cpu);
    Ok(())
}

/// `push` of a register, an immediate or memory. `push esp` pushes the value before the push.
pub(super) fn push(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let value = read_operand(cpu, bus, instruction, 0, size)?;
    push_value(cpu, bus, size, value)
}

/// `pop` to a register or to memory. An address that uses esp uses its value after the pop, and
/// `pop esp` ends with the value popped.
pub(super) fn pop(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let mut stack = Stack::of(cpu);
    let value = stack.pop(cpu, bus, size)?;
    if instruction.op0_kind() == OpKind::Register {
        stack.commit(cpu);
        registers::write(cpu, instruction.op0_register(), value);
        return Ok(());
    }
    let (segment, offset) = operand_offset(cpu, instruction, stack.esp());
    let at = linear(cpu, segment, offset, size, Direction::Write)?;
    write_memory(bus, at, size, value)?;
    stack.commit(cpu);
    Ok(())
}

/// `pusha`: the eight registers in order, esp as it was before.
pub(super) fn push_all(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let mut stack = Stack::of(cpu);
    let mut slots = [GuestVirt(0); 8];
    for slot in &mut slots {
        *slot = stack.reserve_page(cpu, bus, size)?;
    }
    for (slot, register) in slots.into_iter().zip(registers::GENERAL) {
        write_memory(bus, slot, size, cpu.gpr(register))?;
    }
    stack.commit(cpu);
    Ok(())
}

/// `popa`: the eight registers in the opposite order; the value for esp is thrown away.
pub(super) fn pop_all(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let mut stack = Stack::of(cpu);
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = stack.pop(cpu, bus, size)?;
    }
    for (register, value) in registers::GENERAL.into_iter().zip(values) {
        if register != Gpr::Esp {
            registers::write_low(cpu, register, size, value);
        }
    }
    stack.commit(cpu);
    Ok(())
}

/// `enter`: saves ebp, copies the frame pointers of the enclosing procedures (nesting level, modulo
/// 32), and makes room for locals.
///
/// It runs twice: once to find every fault, once for real, since the frame pointers it copies may
/// be ones it has just pushed.
pub(super) fn enter(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let level = u32::from(instruction.immediate8_2nd() % 32);
    let before = Stack::of(cpu);
    // Copied frame pointers lie just below the one that ebp points to.
    let enclosing = |number: u32| cpu.gpr(Gpr::Ebp).wrapping_sub(number * size) & before.mask;

    let mut trial = before;
    trial.reserve_page(cpu, bus, size)?;
    for number in 1..level {
        read_stack(cpu, bus, enclosing(number), size)?;
        trial.reserve_page(cpu, bus, size)?;
    }
    if level > 0 {
        trial.reserve_page(cpu, bus, size)?;
    }
    // The processor touches, without changing it, where the next push will go.
    trial.skip(u32::from(instruction.immediate16()).wrapping_neg());
    let last = linear(
        cpu,
        SegmentRegister::Ss,
        trial.pointer & trial.mask,
        size,
        Direction::Write,
    )?;
    bus.check_write(last, size)?;

    let mut stack = before;
    let slot = stack.reserve(cpu, size)?;
    write_memory(bus, slot, size, cpu.gpr(Gpr::Ebp))?;
    let frame = stack.pointer;
    for number in 1..level {
        let value = read_stack(cpu, bus, enclosing(number), size)?;
        let slot = stack.reserve(cpu, size)?;
        write_memory(bus, slot, size, value)?;
    }
    if level > 0 {
        let slot = stack.reserve(cpu, size)?;
        write_memory(bus, slot, size, frame)?;
    }
    registers::write_low(cpu, Gpr::Ebp, size, frame);
    trial.commit(cpu);
    Ok(())
}

/// `leave`: undoes `enter`.
pub(super) fn leave(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<(), Exception> {
    let size = operand_size(instruction);
    let mut stack = Stack::of(cpu);
    stack.move_to(cpu.gpr(Gpr::Ebp));
    let value = stack.pop(cpu, bus, size)?;
    stack.commit(cpu);
    registers::write_low(cpu, Gpr::Ebp, size, value);
    Ok(())
}
