//! String instructions, with and without repetition.
//!
//! Each is a number of equal steps; a fault or an interruption comes between two of them. Steps
//! are carried out in *runs*: as many as can't disturb one another and stay within a page at both
//! ends, so that a kernel's big copies cost a few calls of the bus and not thousands. A run is
//! exactly its steps one after the other: within a page either all of them fault or none, and a
//! copy onto itself is cut where its own output would be its input. What has a breakpoint is touched by runs of one
//! step.

use super::addresses::{Direction, allows, linear};
use super::registers::{read, write, write_low};
use super::{Bus, Outcome, addresses, flags, next_eip};
use crate::address::{GuestVirt, PAGE_SIZE};
use crate::cpu::{Cpu, Gpr, SegmentRegister, TF};
use crate::exit::Exception;
use iced_x86::{Code, Instruction, OpKind, Register};

/// Steps that one call makes at most, so that the processor can be taken back.
const STEPS_PER_CALL: u32 = 4096;

/// Bytes in a run.
const RUN_BYTES: usize = 1024;

/// What a step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    /// From `[esi]` to `[edi]`.
    Move,
    /// From the accumulator to `[edi]`.
    Store,
    /// From `[esi]` to the accumulator.
    Load,
    /// `[esi]` with `[edi]`.
    Compare,
    /// The accumulator with `[edi]`.
    Scan,
}

impl Operation {
    fn reads_source(self) -> bool {
        matches!(self, Self::Move | Self::Load | Self::Compare)
    }

    /// What it does at edi, if anything.
    fn destination(self) -> Option<Direction> {
        match self {
            Self::Move | Self::Store => Some(Direction::Write),
            Self::Compare | Self::Scan => Some(Direction::Read),
            Self::Load => None,
        }
    }
}

/// A string instruction, taken apart.
struct Strings {
    operation: Operation,
    /// Bytes of an element.
    size: u32,
    /// The segment of esi; that of edi is always es.
    source: SegmentRegister,
    /// Bytes of esi, edi and ecx that count: 2 or 4.
    index_size: u32,
    /// `repe cmpsb` alone looks at esi before edi, on AMD's processors; the manual doesn't say. It
    /// shows when both fault.
    source_first: bool,
    /// A repeated comparison goes on while ZF has this value.
    while_equal: Option<bool>,
    /// al, ax or eax.
    accumulator: Register,
}

/// Emulates a string instruction; see [`super::emulate`].
///
/// # Errors
/// The fault of a step; the steps before it have been made.
pub(super) fn emulate(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<Outcome, Exception> {
    let Some((operation, size)) = operation(instruction.code()) else {
        return Ok(Outcome::Privileged);
    };
    let strings = Strings::new(operation, size, instruction);
    if !instruction.has_rep_prefix() && !instruction.has_repne_prefix() {
        strings.run(cpu, bus, 1)?;
    } else if !strings.repeat(cpu, bus)? {
        return Ok(Outcome::Again);
    }
    cpu.set_eip(next_eip(cpu, instruction));
    Ok(Outcome::Done)
}

/// The operation and the size of its elements; `None` for `ins` and `outs`.
fn operation(code: Code) -> Option<(Operation, u32)> {
    Some(match code {
        Code::Movsb_m8_m8 => (Operation::Move, 1),
        Code::Movsw_m16_m16 => (Operation::Move, 2),
        Code::Movsd_m32_m32 => (Operation::Move, 4),
        Code::Stosb_m8_AL => (Operation::Store, 1),
        Code::Stosw_m16_AX => (Operation::Store, 2),
        Code::Stosd_m32_EAX => (Operation::Store, 4),
        Code::Lodsb_AL_m8 => (Operation::Load, 1),
        Code::Lodsw_AX_m16 => (Operation::Load, 2),
        Code::Lodsd_EAX_m32 => (Operation::Load, 4),
        Code::Cmpsb_m8_m8 => (Operation::Compare, 1),
        Code::Cmpsw_m16_m16 => (Operation::Compare, 2),
        Code::Cmpsd_m32_m32 => (Operation::Compare, 4),
        Code::Scasb_AL_m8 => (Operation::Scan, 1),
        Code::Scasw_AX_m16 => (Operation::Scan, 2),
        Code::Scasd_EAX_m32 => (Operation::Scan, 4),
        _ => return None,
    })
}

impl Strings {
    fn new(operation: Operation, size: u32, instruction: &Instruction) -> Self {
        let is_16bit = |kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemoryESDI);
        let compares = matches!(operation, Operation::Compare | Operation::Scan);
        Self {
            operation,
            size,
            source: addresses::operand_segment(instruction),
            index_size: if instruction.op_kinds().any(is_16bit) { 2 } else { 4 },
            source_first: size == 1 && instruction.has_rep_prefix(),
            while_equal: compares.then(|| !instruction.has_repne_prefix()),
            accumulator: match size {
                1 => Register::AL,
                2 => Register::AX,
                _ => Register::EAX,
            },
        }
    }

    /// Repeats until the count is used up, a comparison ends it, or it is time for a look around.
    /// Whether it is finished.
    fn repeat(&self, cpu: &mut Cpu, bus: &mut dyn Bus) -> Result<bool, Exception> {
        // While single-stepping each step is an instruction of its own (SDM volume 3, "Single-Step
        // Exception Condition").
        let mut left = if cpu.eflags() & TF == 0 { STEPS_PER_CALL } else { 1 };
        while left > 0 && !bus.is_hit() {
            let count = self.index(cpu, Gpr::Ecx);
            if count == 0 {
                return Ok(true);
            }
            let made = self.run(cpu, bus, count.min(left))?;
            write_low(cpu, Gpr::Ecx, self.index_size, count - made);
            if self.while_equal.is_some_and(|equal| equal != flags::is_set(cpu, flags::ZF)) {
                return Ok(true);
            }
            left -= made;
        }
        Ok(self.index(cpu, Gpr::Ecx) == 0)
    }

    /// Makes at least one step, at most `wanted` (which isn't 0). How many were made.
    fn run(&self, cpu: &mut Cpu, bus: &mut dyn Bus, wanted: u32) -> Result<u32, Exception> {
        let wanted = self.run_length(cpu, bus, wanted);
        let len = ((wanted * self.size) as usize).min(RUN_BYTES);
        let mut buffer = [0; RUN_BYTES];
        let (elements, _) = buffer.split_at_mut(len);
        let accumulator = read(cpu, self.accumulator);
        let mut steps = wanted;
        match self.operation {
            Operation::Move => {
                self.read_source(cpu, bus, elements)?;
                self.write_destination(cpu, bus, elements)?;
            }
            Operation::Store => {
                for element in elements.chunks_exact_mut(self.size as usize) {
                    let pairs = element.iter_mut().zip(accumulator.to_le_bytes());
                    pairs.for_each(|(to, from)| *to = from);
                }
                self.write_destination(cpu, bus, elements)?;
            }
            Operation::Load => {
                self.read_source(cpu, bus, elements)?;
                let last = self.elements(elements).last().unwrap_or(0);
                write(cpu, self.accumulator, last);
            }
            Operation::Compare => {
                let mut buffer = [0; RUN_BYTES];
                let (source, _) = buffer.split_at_mut(len);
                if self.source_first {
                    self.read_source(cpu, bus, source)?;
                }
                self.read_destination(cpu, bus, elements)?;
                if !self.source_first {
                    self.read_source(cpu, bus, source)?;
                }
                steps = self.compare(cpu, self.elements(source), self.elements(elements));
            }
            Operation::Scan => {
                self.read_destination(cpu, bus, elements)?;
                let accumulator = std::iter::repeat(accumulator);
                steps = self.compare(cpu, accumulator, self.elements(elements));
            }
        }
        self.advance(cpu, steps);
        Ok(steps)
    }

    /// Reads a run's elements at esi.
    fn read_source(&self, cpu: &Cpu, bus: &mut dyn Bus, into: &mut [u8]) -> Result<(), Exception> {
        let (offset, len) = (self.index(cpu, Gpr::Esi), into.len() as u32);
        bus.read(linear(cpu, self.source, offset, len, Direction::Read)?, into)
    }

    /// Reads a run's elements at edi.
    fn read_destination(
        &self,
        cpu: &Cpu,
        bus: &mut dyn Bus,
        into: &mut [u8],
    ) -> Result<(), Exception> {
        let (offset, len) = (self.index(cpu, Gpr::Edi), into.len() as u32);
        bus.read(linear(cpu, SegmentRegister::Es, offset, len, Direction::Read)?, into)
    }

    /// Stores a run's elements at edi.
    fn write_destination(
        &self,
        cpu: &Cpu,
        bus: &mut dyn Bus,
        from: &[u8],
    ) -> Result<(), Exception> {
        let (offset, len) = (self.index(cpu, Gpr::Edi), from.len() as u32);
        bus.write(linear(cpu, SegmentRegister::Es, offset, len, Direction::Write)?, from)
    }

    /// Compares element by element until the repetition ends. Sets the flags as the last
    /// comparison does; how many there were.
    fn compare(
        &self,
        cpu: &mut Cpu,
        left: impl Iterator<Item = u32>,
        right: impl Iterator<Item = u32>,
    ) -> u32 {
        let mut steps = 0;
        let mut result = 0;
        for (left, right) in left.zip(right) {
            steps += 1;
            result = flags::of_subtraction(left, right, self.size);
            if self.while_equal != Some(left == right) {
                break;
            }
        }
        flags::change(cpu, flags::ARITHMETIC, result);
        steps
    }

    /// The values of a run's elements.
    fn elements<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = u32> + use<'a> {
        bytes.chunks_exact(self.size as usize).map(|element| {
            element.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
        })
    }

    /// How many of `wanted` steps make a run: at least 1.
    fn run_length(&self, cpu: &Cpu, bus: &mut dyn Bus, wanted: u32) -> u32 {
        if wanted == 1 || flags::is_set(cpu, flags::DF) {
            return 1;
        }
        let source = self.index(cpu, Gpr::Esi);
        let destination = self.index(cpu, Gpr::Edi);
        let mut bytes = wanted.saturating_mul(self.size).min(RUN_BYTES as u32);
        if self.operation.reads_source() {
            bytes = bytes.min(self.room(cpu, bus, self.source, source));
        }
        if self.operation.destination().is_some() {
            bytes = bytes.min(self.room(cpu, bus, SegmentRegister::Es, destination));
        }
        if self.operation == Operation::Move {
            // Two pages may be one frame: only the places within them tell whether they overlap.
            let place = |segment, offset| self.address(cpu, segment, offset) % PAGE_SIZE;
            let from = place(self.source, source);
            let to = place(SegmentRegister::Es, destination);
            if to > from {
                bytes = bytes.min(to - from);
            }
        }
        let steps = (bytes / self.size).max(1);
        if self.is_within_limits(cpu, steps * self.size) { steps } else { 1 }
    }

    /// Bytes from an offset to the end of its page, to where its index wraps, to a breakpoint or a device.
    fn room(&self, cpu: &Cpu, bus: &mut dyn Bus, segment: SegmentRegister, offset: u32) -> u32 {
        let at = self.address(cpu, segment, offset);
        let to_page_end = PAGE_SIZE - at % PAGE_SIZE;
        let to_wrap = (self.index_mask() - offset).saturating_add(1);
        bus.together(GuestVirt(at), to_page_end.min(to_wrap))
    }

    /// Whether both segments allow a run of `len` bytes.
    fn is_within_limits(&self, cpu: &Cpu, len: u32) -> bool {
        let source = !self.operation.reads_source()
            || allows(&cpu.segment(self.source), self.index(cpu, Gpr::Esi), len, Direction::Read);
        let destination = self.operation.destination().is_none_or(|direction| {
            let offset = self.index(cpu, Gpr::Edi);
            allows(&cpu.segment(SegmentRegister::Es), offset, len, direction)
        });
        source && destination
    }

    /// The linear address of an offset, unchecked.
    fn address(&self, cpu: &Cpu, segment: SegmentRegister, offset: u32) -> u32 {
        cpu.segment(segment).base.wrapping_add(offset)
    }

    /// Moves the indexes on by `steps`, in the direction that DF says.
    fn advance(&self, cpu: &mut Cpu, steps: u32) {
        let bytes = steps * self.size;
        let change = if flags::is_set(cpu, flags::DF) { bytes.wrapping_neg() } else { bytes };
        let mut advance = |register| {
            write_low(cpu, register, self.index_size, cpu.gpr(register).wrapping_add(change));
        };
        if self.operation.reads_source() {
            advance(Gpr::Esi);
        }
        if self.operation.destination().is_some() {
            advance(Gpr::Edi);
        }
    }

    /// esi, edi or ecx, or the low half of it.
    fn index(&self, cpu: &Cpu, register: Gpr) -> u32 {
        cpu.gpr(register) & self.index_mask()
    }

    fn index_mask(&self) -> u32 {
        if self.index_size == 2 { 0xffff } else { u32::MAX }
    }
}

#[cfg(test)]
mod tests;
