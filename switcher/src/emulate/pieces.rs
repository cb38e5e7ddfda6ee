//! Operands that the processor takes in several pieces, one access after the other.
//!
//! Each piece is judged by the segment for itself, and its offset is cut to the address size like
//! any other: the second piece of a far pointer at offset 0xFFFC of a 16-bit address is at offset
//! 0, while a single access that begins there runs on behind 64 KiB. The manual leaves both to
//! the processor (SDM volume 3, "Limit Checking" and "Segment Wraparound"); this is what AMD's do.

use super::addresses::{Direction, linear, operand_offset, wraps_at};
use crate::address::GuestVirt;
use crate::cpu::{Cpu, Gpr, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic};

/// A memory operand, as an instruction goes through it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    segment: SegmentRegister,
    /// The segment's, when the instruction began.
    base: u32,
    offset: u32,
    /// The highest offset of the address size.
    mask: u32,
    kind: Kind,
}

/// How the operand is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Not at all.
    Whole,
    /// Into pieces of this many bytes.
    Even(u32),
    /// An x87 environment of seven words, and the registers behind it, if any. A register is a
    /// mantissa of 8 bytes, and sign and exponent.
    X87 { word: u32 },
}

impl Kind {
    fn of(instruction: &Instruction, narrow: bool) -> Self {
        use Mnemonic as M;
        match (instruction.mnemonic(), instruction.memory_size().size()) {
            (M::Fnstenv | M::Fldenv, 14) | (M::Fnsave | M::Frstor, 94) => Self::X87 { word: 2 },
            (M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor, _) => Self::X87 { word: 4 },
            (M::Fxsave | M::Fxrstor, _) => Self::Even(16),
            // Each byte is a store of its own, but they are looked at in eights first.
            (M::Maskmovq | M::Maskmovdqu, _) => Self::Even(if narrow { 1 } else { 8 }),
            // A register alone.
            (_, 10) => Self::X87 { word: 0 },
            _ => Self::Whole,
        }
    }

    /// Bytes of the piece that begins `at` bytes into the operand, of which `left` are left.
    fn len(self, at: u32, left: u32) -> u32 {
        let len = match self {
            Self::Whole => left,
            Self::Even(len) => len,
            Self::X87 { word } if at < 7 * word => word,
            Self::X87 { word } if (at - 7 * word).is_multiple_of(10) => 8,
            Self::X87 { .. } => 2,
        };
        len.min(left)
    }
}

impl Pieces {
    /// The instruction's memory operand.
    pub(crate) fn of(cpu: &Cpu, instruction: &Instruction) -> Self {
        let (segment, offset) = operand_offset(cpu, instruction, cpu.gpr(Gpr::Esp));
        let mask = wraps_at(instruction);
        let kind = Kind::of(instruction, mask != u32::MAX);
        Self { segment, base: cpu.segment(segment).base, offset, mask, kind }
    }

    /// Where the operand begins.
    pub(crate) fn start(&self) -> GuestVirt {
        self.at(0)
    }

    /// Where each piece of the operand's first `size` bytes lies among them.
    pub(crate) fn ranges(&self, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (kind, size, mut at) = (self.kind, size as u32, 0);
        std::iter::from_fn(move || {
            let start = at;
            at += kind.len(start, size - start);
            (start < size).then_some(start as usize..at as usize)
        })
    }

    /// The linear address of what lies `at` bytes into the operand.
    pub(crate) fn at(&self, at: u32) -> GuestVirt {
        GuestVirt(self.base.wrapping_add(self.offset.wrapping_add(at) & self.mask))
    }

    /// The same, if the segment allows `len` bytes there to be read, or written.
    ///
    /// # Errors
    /// #GP(0), or #SS(0) for the stack segment.
    pub(crate) fn judge(
        &self,
        cpu: &Cpu,
        at: u32,
        len: u32,
        write: bool,
    ) -> Result<GuestVirt, Exception> {
        let direction = if write { Direction::Write } else { Direction::Read };
        let offset = self.offset.wrapping_add(at) & self.mask;
        linear(cpu, self.segment, offset, len, direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing::{cpu, decode};

    /// The lengths of an operand's pieces.
    fn cut(code: &[u8]) -> Vec<usize> {
        let instruction = decode(0x1000, code);
        let size = instruction.memory_size().size();
        Pieces::of(&cpu(), &instruction).ranges(size).map(|piece| piece.len()).collect()
    }

    #[test]
    fn each_kind_of_operand_has_its_pieces() {
        assert_eq!(cut(&[0x89, 0x03]), [4]); // mov [ebx], eax
        assert_eq!(cut(&[0x0f, 0x11, 0x03]), [16]); // movups [ebx], xmm0
        assert_eq!(cut(&[0x0f, 0xae, 0x03]), [16; 32]); // fxsave [ebx]
        assert_eq!(cut(&[0x66, 0x0f, 0xf7, 0xc1]), [8; 2]); // maskmovdqu [edi]
        assert_eq!(cut(&[0x67, 0x66, 0x0f, 0xf7, 0xc1]), [1; 16]); // maskmovdqu [di]
        assert_eq!(cut(&[0xdb, 0x2b]), [8, 2]); // fld tword [ebx]
        assert_eq!(cut(&[0xd9, 0x33]), [4; 7]); // fnstenv [ebx]
        assert_eq!(cut(&[0x66, 0xd9, 0x33]), [2; 7]); // with words
        let registers = [8, 2].repeat(8);
        assert_eq!(cut(&[0xdd, 0x33]), [&[4; 7][..], &registers].concat()); // fnsave [ebx]
        assert_eq!(cut(&[0x66, 0xdd, 0x33]), [&[2; 7][..], &registers].concat());
    }
}
