//! The stack: `push` and `pop` in all their forms, `pusha`, `popa`, `enter`, `leave`.
//!
//! How much of esp counts is the stack segment's business: with its B bit clear only sp moves, and
//! wraps at 64 KiB (SDM volume 1, section "Address-Size Attributes for Stack Accesses"). How much is
//! pushed is the instruction's operand size. The two are independent.
//!
//! Processors may leave parts of a frame below esp when a `pusha`, `enter` or far call faults in
//! the middle, and `popa` some registers; here a fault leaves nothing behind.

use super::addresses::{Direction, linear, operand_offset};
use super::operands::{operand_size, read_memory, read_operand, write_memory};
use super::{Bus, registers};
use crate::address::{GuestVirt, PAGE_SIZE};
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
        let mask = if cpu.segment(SegmentRegister::Ss).is_32bit() { u32::MAX } else { 0xffff };
        Self { pointer: cpu.gpr(Gpr::Esp), mask }
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
        linear(cpu, SegmentRegister::Ss, self.pointer & self.mask, size, Direction::Write)
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

    /// The same for several values, from the topmost on. Those that lie in one page are read together.
    ///
    /// # Errors
    /// As [`Stack::pop`] for the first that can't be read.
    pub(super) fn pop_several<const N: usize>(
        &mut self,
        cpu: &Cpu,
        bus: &mut dyn Bus,
        size: u32,
    ) -> Result<[u32; N], Exception> {
        const MOST: usize = 4;
        let bytes = N as u32 * 4;
        let together = linear(cpu, SegmentRegister::Ss, self.pointer, bytes, Direction::Read)
            .ok()
            .filter(|_| size == 4 && self.mask == u32::MAX && N <= MOST)
            .filter(|at| at.offset() + bytes <= PAGE_SIZE);
        let mut values = [0; N];
        let Some(at) = together else {
            for value in &mut values {
                *value = self.pop(cpu, bus, size)?;
            }
            return Ok(values);
        };
        let mut read = [0; MOST * 4];
        let read = &mut read[..bytes as usize];
        bus.read(at, read)?;
        for (value, bytes) in values.iter_mut().zip(read.as_chunks::<4>().0) {
            *value = u32::from_le_bytes(*bytes);
        }
        self.skip(bytes);
        Ok(values)
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
pub(super) fn push_value(
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
    let last =
        linear(cpu, SegmentRegister::Ss, trial.pointer & trial.mask, size, Direction::Write)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Segment;
    use crate::emulate::registers::GENERAL;
    use crate::emulate::testing::{
        assert_done, assert_fault, cpu_at, memory, page_fault, selector as s,
    };

    /// A processor at level 3 on the 16-bit stack at 0x20000.
    fn on_narrow_stack(esp: u32) -> Cpu {
        let mut cpu = cpu_at(3);
        let segment = Segment {
            selector: s::NARROW_STACK | 3,
            base: 0x2_0000,
            limit: 0xffff,
            attributes: 0xf3,
        };
        cpu.set_segment(SegmentRegister::Ss, segment);
        cpu.set_gpr(Gpr::Esp, esp);
        cpu
    }

    #[test]
    fn pushes_of_every_kind() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Ecx, 0x1122_3344);
        memory.store(0x3000, &[0xdd, 0xcc, 0xbb, 0xaa]);
        for (code, esp, top) in [
            ([0x51].as_slice(), 0x7ffc, 0x1122_3344),
            (&[0x66, 0x51], 0x7ffa, 0x3344_3344),
            (&[0x6a, 0xfe], 0x7ff6, 0xffff_fffe),
            (&[0x66, 0x6a, 0xfe], 0x7ff4, 0xfffe_fffe),
            (&[0x68, 4, 3, 2, 1], 0x7ff0, 0x0102_0304),
            (&[0x66, 0x68, 2, 1], 0x7fee, 0x0304_0102),
            (&[0xff, 0x35, 0, 0x30, 0, 0], 0x7fea, 0xaabb_ccdd),
            (&[0x66, 0xff, 0x35, 0, 0x30, 0, 0], 0x7fe8, 0xccdd_ccdd),
            (&[0x54], 0x7fe4, 0x7fe8),                     // push esp
            (&[0xff, 0x74, 0x24, 4], 0x7fe0, 0xccdd_ccdd), // push dword [esp+4]
        ] {
            assert_done(&mut cpu, &mut memory, code);
            assert_eq!((cpu.gpr(Gpr::Esp), memory.dword(esp)), (esp, top), "{code:02x?}");
        }
    }

    #[test]
    fn pops_of_every_kind() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        let bytes: Vec<u8> = (1..=32).collect();
        memory.store(0x8000, &bytes);
        cpu.set_gpr(Gpr::Ecx, 0xffff_ffff);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x59]); // pop cx
        assert_eq!(cpu.gpr(Gpr::Ecx), 0xffff_0201);
        assert_done(&mut cpu, &mut memory, &[0x59]); // pop ecx
        assert_eq!((cpu.gpr(Gpr::Ecx), cpu.gpr(Gpr::Esp)), (0x0605_0403, 0x8006));
        // pop dword [esp+4]: the address uses esp after the pop.
        assert_done(&mut cpu, &mut memory, &[0x8f, 0x44, 0x24, 4]);
        assert_eq!((memory.dword(0x800e), cpu.gpr(Gpr::Esp)), (0x0a09_0807, 0x800a));
        assert_done(&mut cpu, &mut memory, &[0x66, 0x8f, 0x05, 0, 0x30, 0, 0]); // pop word [0x3000]
        assert_eq!((memory.dword(0x3000), cpu.gpr(Gpr::Esp)), (0x0c0b, 0x800c));
        memory.store(0x800c, &[0x78, 0x56]);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x5c]); // pop sp
        assert_eq!(cpu.gpr(Gpr::Esp), 0x5678);
        memory.store(0x5678, &[0x78, 0x56, 0x34, 0x12]);
        assert_done(&mut cpu, &mut memory, &[0x5c]); // pop esp
        assert_eq!(cpu.gpr(Gpr::Esp), 0x1234_5678);
    }

    #[test]
    fn a_pop_to_memory_that_faults_leaves_esp_alone() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.protect_page(0x3000);
        let fault = page_fault(0x3000, true, true);
        assert_fault(&mut cpu, &mut memory, &[0x8f, 0x05, 0, 0x30, 0, 0], fault);
    }

    #[test]
    fn narrow_stacks_wrap_and_keep_the_upper_half() {
        let (mut cpu, mut memory) = (on_narrow_stack(0xabcd_0000), memory());
        cpu.set_gpr(Gpr::Ecx, 0x1122_3344);
        assert_done(&mut cpu, &mut memory, &[0x51]);
        assert_eq!((cpu.gpr(Gpr::Esp), memory.dword(0x2_fffc)), (0xabcd_fffc, 0x1122_3344));
        assert_done(&mut cpu, &mut memory, &[0x5a]);
        assert_eq!((cpu.gpr(Gpr::Esp), cpu.gpr(Gpr::Edx)), (0xabcd_0000, 0x1122_3344));
        // A value never wraps within itself: that's outside the limit.
        for esp in 1..4 {
            let mut cpu = on_narrow_stack(esp);
            assert_fault(&mut cpu, &mut memory, &[0x51], Exception::stack(0));
        }
        let mut cpu = on_narrow_stack(0xfffe);
        assert_fault(&mut cpu, &mut memory, &[0x59], Exception::stack(0));
        assert_done(&mut cpu, &mut memory, &[0x66, 0x59]);
        assert_eq!(cpu.gpr(Gpr::Esp), 0);
    }

    #[test]
    fn limits_raise_stack_faults() {
        let mut cpu = cpu_at(3);
        let down = Segment { attributes: 0xc0f7, limit: 0xfff, ..Segment::flat_data(3) };
        cpu.set_segment(SegmentRegister::Ss, down);
        cpu.set_gpr(Gpr::Esp, 0x1000);
        assert_fault(&mut cpu, &mut memory(), &[0x51], Exception::stack(0));
        cpu.set_gpr(Gpr::Esp, 0x1004);
        assert_done(&mut cpu, &mut memory(), &[0x51]);
    }

    #[test]
    fn pusha_and_popa() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        for (number, register) in GENERAL.into_iter().enumerate() {
            if register != Gpr::Esp {
                cpu.set_gpr(register, 0x1111_1111 * (number as u32 + 1));
            }
        }
        assert_done(&mut cpu, &mut memory, &[0x60]);
        assert_eq!(cpu.gpr(Gpr::Esp), 0x7fe0);
        let pushed: Vec<u32> = (0..8).map(|index| memory.dword(0x7fe0 + index * 4)).collect();
        let expected = [
            0x8888_8888,
            0x7777_7777,
            0x6666_6666,
            0x8000,
            0x4444_4444,
            0x3333_3333,
            0x2222_2222,
            0x1111_1111,
        ];
        assert_eq!(pushed, expected);
        for register in GENERAL {
            if register != Gpr::Esp {
                cpu.set_gpr(register, 0);
            }
        }
        assert_done(&mut cpu, &mut memory, &[0x61]);
        assert_eq!(cpu.gpr(Gpr::Esp), 0x8000);
        assert_eq!(cpu.gpr(Gpr::Edi), 0x8888_8888);
        assert_eq!(cpu.gpr(Gpr::Eax), 0x1111_1111);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x60]);
        assert_eq!((cpu.gpr(Gpr::Esp), memory.word(0x7ff0)), (0x7ff0, 0x8888));
        cpu.set_gpr(Gpr::Edi, 0);
        assert_done(&mut cpu, &mut memory, &[0x66, 0x61]);
        assert_eq!((cpu.gpr(Gpr::Esp), cpu.gpr(Gpr::Edi)), (0x8000, 0x8888));
    }

    #[test]
    fn pusha_across_a_missing_page_changes_nothing() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.remove_page(0x7000);
        cpu.set_gpr(Gpr::Esp, 0x8008);
        assert_fault(&mut cpu, &mut memory, &[0x60], page_fault(0x7ffc, true, false));
        cpu.set_gpr(Gpr::Esp, 0x7ff0);
        assert_fault(&mut cpu, &mut memory, &[0x61], page_fault(0x7ff0, false, false));
    }

    #[test]
    fn enter_without_nesting_and_leave() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Ebp, 0x9000);
        assert_done(&mut cpu, &mut memory, &[0xc8, 0x20, 0, 0]);
        assert_eq!((cpu.gpr(Gpr::Ebp), cpu.gpr(Gpr::Esp)), (0x7ffc, 0x7fdc));
        assert_eq!(memory.dword(0x7ffc), 0x9000);
        assert_done(&mut cpu, &mut memory, &[0xc9]);
        assert_eq!((cpu.gpr(Gpr::Ebp), cpu.gpr(Gpr::Esp)), (0x9000, 0x8000));
    }

    #[test]
    fn enter_copies_enclosing_frames() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Ebp, 0x9000);
        memory.store(0x8ff8, &[1, 0, 0, 0, 2, 0, 0, 0]);
        assert_done(&mut cpu, &mut memory, &[0xc8, 8, 0, 0x23]); // level 3, modulo 32
        let pushed: Vec<u32> = (0..4).map(|index| memory.dword(0x7ffc - index * 4)).collect();
        assert_eq!(pushed, [0x9000, 2, 1, 0x7ffc]);
        assert_eq!((cpu.gpr(Gpr::Ebp), cpu.gpr(Gpr::Esp)), (0x7ffc, 0x7ff0 - 8));
        // With ebp at the stack's top it copies what it has just pushed.
        let (mut cpu, mut memory) = (cpu_at(3), super::super::testing::memory());
        cpu.set_gpr(Gpr::Ebp, 0x8000);
        assert_done(&mut cpu, &mut memory, &[0xc8, 0, 0, 3]);
        let pushed: Vec<u32> = (0..4).map(|index| memory.dword(0x7ffc - index * 4)).collect();
        assert_eq!(pushed, [0x8000, 0x8000, 0x8000, 0x7ffc]);
    }

    #[test]
    fn enter_finds_every_fault_first() {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        memory.remove_page(0x7000);
        memory.remove_page(0xa000);
        cpu.set_gpr(Gpr::Esp, 0x8008);
        cpu.set_gpr(Gpr::Ebp, 0x9000);
        assert_fault(&mut cpu, &mut memory, &[0xc8, 0, 0, 5], page_fault(0x7ffc, true, false));
        // Room for locals that reaches into a missing page.
        assert_fault(&mut cpu, &mut memory, &[0xc8, 0x10, 0, 0], page_fault(0x7ff4, true, false));
        cpu.set_gpr(Gpr::Esp, 0x8800);
        cpu.set_gpr(Gpr::Ebp, 0xb000);
        assert_fault(&mut cpu, &mut memory, &[0xc8, 0, 0, 2], page_fault(0xaffc, false, false));
    }

    #[test]
    fn enter_and_leave_on_a_narrow_stack() {
        let (mut cpu, mut memory) = (on_narrow_stack(0xabcd_0100), memory());
        cpu.set_gpr(Gpr::Ebp, 0x1111_2222);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xc8, 0x10, 0, 0]);
        assert_eq!((cpu.gpr(Gpr::Ebp), cpu.gpr(Gpr::Esp)), (0x1111_00fe, 0xabcd_00ee));
        assert_eq!(memory.word(0x2_00fe), 0x2222);
        assert_done(&mut cpu, &mut memory, &[0x66, 0xc9]);
        assert_eq!((cpu.gpr(Gpr::Ebp), cpu.gpr(Gpr::Esp)), (0x1111_2222, 0xabcd_0100));
    }
}
