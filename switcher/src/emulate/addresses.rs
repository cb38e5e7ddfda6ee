//! From an instruction's memory operand to the linear address it touches.
//!
//! An address is made in three steps (SDM volume 1, section "Operand Addressing"): the registers
//! and the displacement give an *offset*, in 16 or 32 bits; the segment judges the offset, by its
//! type and its limit; the segment's base turns it into a *linear address*.

use super::operands::operand_size;
use super::registers;
use crate::address::GuestVirt;
use crate::cpu::{Cpu, Gpr, Segment, SegmentRegister};
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// What an access does with its operand, as far as segments care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    /// Write, or read and write.
    Write,
}

/// The linear address of the instruction's memory operand, `len` bytes of which are to be read, or
/// written (also: read and written). A string instruction with two gives the first it names.
///
/// For `bt`, `bts`, `btr` and `btc` with a register index it is the address of the operand-sized
/// unit that holds the bit; [`bit_offset`] tells which bit of it.
///
/// # Errors
/// #GP(0), or #SS(0) for the stack segment: the segment is null, of the wrong type, or too short.
/// An operand that crosses offset 4 GiB is too long for any segment; the manual leaves that to the
/// processor, and AMD's do so. (One that crosses *linear* address 4 GiB, because the segment has a
/// base, wraps.)
pub(crate) fn linear_address(
    cpu: &Cpu,
    instruction: &Instruction,
    len: u32,
    write: bool,
) -> Result<GuestVirt, Exception> {
    let direction = if write { Direction::Write } else { Direction::Read };
    let (register, offset) = operand_offset(cpu, instruction, cpu.gpr(Gpr::Esp));
    linear(cpu, register, offset, len, direction)
}

/// The number of the bit that a bit-string instruction means, within the unit at its
/// [`linear_address`]: 0..16 or 0..32.
pub(crate) fn bit_offset(cpu: &Cpu, instruction: &Instruction) -> u32 {
    let index = match instruction.op1_kind() {
        OpKind::Register => registers::read(cpu, instruction.op1_register()),
        _ => u32::from(instruction.immediate8()),
    };
    index & (operand_size(instruction) * 8 - 1)
}

/// The linear address of `len` bytes at `offset` of a segment.
///
/// # Errors
/// As for [`linear_address`].
pub(super) fn linear(
    cpu: &Cpu,
    register: SegmentRegister,
    offset: u32,
    len: u32,
    direction: Direction,
) -> Result<GuestVirt, Exception> {
    let segment = cpu.segment(register);
    if allows(&segment, offset, len, direction) {
        Ok(GuestVirt(segment.base.wrapping_add(offset)))
    } else if register == SegmentRegister::Ss {
        Err(Exception::stack(0))
    } else {
        Err(Exception::protection(0))
    }
}

/// Whether `len` bytes at `offset` lie within the segment and may be touched so (SDM volume 3,
/// sections "Limit Checking" and "Type Checking").
pub(super) fn allows(segment: &Segment, offset: u32, len: u32, direction: Direction) -> bool {
    let right_type = match direction {
        Direction::Read => segment.is_readable(),
        Direction::Write => segment.is_writable(),
    };
    segment.is_usable() && right_type && reaches(segment, offset, len)
}

/// Whether `len` bytes at `offset` are within the segment's limit.
pub(super) fn reaches(segment: &Segment, offset: u32, len: u32) -> bool {
    let last = u64::from(offset) + u64::from(len.max(1)) - 1;
    if segment.is_expand_down() {
        let top = if segment.is_32bit() { u32::MAX } else { 0xffff };
        offset > segment.limit && last <= u64::from(top)
    } else {
        last <= u64::from(segment.limit)
    }
}

/// The segment and offset of the instruction's memory operand, when the stack pointer is `esp`
/// (`pop` computes its address after the pop).
pub(super) fn operand_offset(
    cpu: &Cpu,
    instruction: &Instruction,
    esp: u32,
) -> (SegmentRegister, u32) {
    let source = operand_segment(instruction);
    let string = instruction.op_kinds().find_map(|kind| match kind {
        OpKind::MemoryESDI => Some((SegmentRegister::Es, Register::DI)),
        OpKind::MemoryESEDI => Some((SegmentRegister::Es, Register::EDI)),
        OpKind::MemorySegDI => Some((source, Register::DI)),
        OpKind::MemorySegEDI => Some((source, Register::EDI)),
        OpKind::MemorySegSI => Some((source, Register::SI)),
        OpKind::MemorySegESI => Some((source, Register::ESI)),
        _ => None,
    });
    match string {
        Some((segment, index)) => (segment, registers::read(cpu, index)),
        None => (source, effective_address(cpu, instruction, esp)),
    }
}

/// The segment of the memory operand that has a choice: the default one, or the prefix's.
pub(super) fn operand_segment(instruction: &Instruction) -> SegmentRegister {
    registers::segment_register(instruction.memory_segment()).unwrap_or(SegmentRegister::Ds)
}

/// Base, scaled index, displacement and bit index added up, and cut to the address size.
fn effective_address(cpu: &Cpu, instruction: &Instruction, esp: u32) -> u32 {
    let value = |register| match register {
        Register::ESP => esp,
        register => registers::read(cpu, register),
    };
    let index = value(instruction.memory_index());
    let address = value(instruction.memory_base())
        .wrapping_add(index.wrapping_mul(instruction.memory_index_scale()))
        .wrapping_add(instruction.memory_displacement32())
        .wrapping_add(bit_string_displacement(cpu, instruction));
    address & wraps_at(instruction)
}

/// The highest offset that the instruction's address size has.
pub(super) fn wraps_at(instruction: &Instruction) -> u32 {
    if has_16bit_address(instruction) { 0xffff } else { u32::MAX }
}

/// Whether the memory operand is addressed by 16 bits.
fn has_16bit_address(instruction: &Instruction) -> bool {
    let implicit =
        |kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI);
    if instruction.op_kinds().any(implicit) {
        return true;
    }
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => instruction.memory_displ_size() == 2,
        (Register::None, index) => index.is_gpr16(),
        (base, _) => base.is_gpr16(),
    }
}

/// How far a bit string's register index reaches from its operand: a signed number of whole units
/// (SDM volume 2, section "BT").
fn bit_string_displacement(cpu: &Cpu, instruction: &Instruction) -> u32 {
    let bit_string = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if !bit_string || instruction.op1_kind() != OpKind::Register {
        return 0;
    }
    let index = registers::read(cpu, instruction.op1_register());
    let units = match operand_size(instruction) {
        2 => i32::from(index as i16) >> 4,
        _ => index as i32 >> 5,
    };
    (units as u32).wrapping_mul(operand_size(instruction))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing::{cpu_at, decode};

    fn address(cpu: &Cpu, code: &[u8]) -> Result<u32, Exception> {
        linear_address(cpu, &decode(0x1000, code), 4, false).map(|at| at.0)
    }

    #[test]
    fn effective_addresses() {
        let mut cpu = cpu_at(3);
        for (register, value) in [
            (Gpr::Ebx, 0x1_fff0),
            (Gpr::Esi, 0x8000_0020),
            (Gpr::Edi, 0x7_0040),
            (Gpr::Ebp, 0x5000),
        ] {
            cpu.set_gpr(register, value);
        }
        for (code, expected) in [
            ([0x8b, 0x03].as_slice(), 0x1_fff0),               // [ebx]
            (&[0x8b, 0x44, 0x73, 0x10], 0x2_0040),             // [ebx+esi*2+16]: wraps
            (&[0x8b, 0x04, 0xbd, 0, 0, 0, 0xff], 0xff1c_0100), // [edi*4+0xff000000]
            (&[0x8b, 0x45, 0xf8], 0x4ff8),                     // [ebp-8]
            (&[0x8b, 0x04, 0x24], 0x8000),                     // [esp]
            (&[0xa1, 4, 3, 2, 1], 0x0102_0304),
            (&[0x67, 0x8b, 0x00], 0x10),               // [bx+si]
            (&[0x67, 0x8b, 0x47, 0xe0], 0xffd0),       // [bx-32]
            (&[0x67, 0x8b, 0x1e, 0x34, 0x12], 0x1234), // [0x1234]
            (&[0x67, 0xa1, 0xff, 0xff], 0xffff),
            (&[0x67, 0x8b, 0x43, 0x01], 0x5041), // [bp+di+1]
            (&[0xa5], 0x7_0040),                 // movsd: edi first
            (&[0x67, 0x6d], 0x40),               // insd by di
            (&[0x6f], 0x8000_0020),              // outsd
            (&[0x67, 0x6f], 0x20),               // outsd by si
            (&[0x0f, 0xf7, 0xc1], 0x7_0040),     // maskmovq
            (&[0x67, 0x0f, 0xf7, 0xc1], 0x40),   // maskmovq by di
        ] {
            assert_eq!(address(&cpu, code), Ok(expected), "{code:02x?}");
        }
        cpu.set_gpr(Gpr::Eax, 0xffff_ff05);
        assert_eq!(address(&cpu, &[0xd7]), Ok(0x1_fff5)); // xlatb: ebx and al
        assert_eq!(address(&cpu, &[0x67, 0xd7]), Ok(0xfff5));
    }

    #[test]
    fn segments_add_their_base_and_judge() {
        let mut cpu = cpu_at(3);
        let small = Segment { base: 0x10_0000, limit: 0xfff, ..Segment::flat_data(3) };
        cpu.set_segment(SegmentRegister::Fs, small);
        assert_eq!(address(&cpu, &[0x64, 0xa1, 0xfc, 0x0f, 0, 0]), Ok(0x10_0ffc));
        let refused = Err(Exception::protection(0));
        assert_eq!(address(&cpu, &[0x64, 0xa1, 0xfd, 0x0f, 0, 0]), refused);
        assert_eq!(address(&cpu, &[0x65, 0xa1, 0, 0, 0, 0]), refused); // gs is null
        cpu.set_segment(SegmentRegister::Ss, small);
        assert_eq!(address(&cpu, &[0x8b, 0x04, 0x24]), Err(Exception::stack(0)));
        assert_eq!(address(&cpu, &[0x36, 0xa1, 0, 0x10, 0, 0]), Err(Exception::stack(0)));
        // The base wraps.
        let high = Segment { base: 0xffff_f000, ..Segment::flat_data(3) };
        cpu.set_segment(SegmentRegister::Fs, high);
        assert_eq!(address(&cpu, &[0x64, 0xa1, 0, 0x20, 0, 0]), Ok(0x1000));
    }

    #[test]
    fn types_and_expansion() {
        let code = Segment::flat_code(3);
        let execute_only = Segment { attributes: 0xc0f9, ..code };
        let constant = Segment { attributes: 0xc0f1, ..code };
        let absent = Segment { attributes: 0xc073, ..code };
        let data = Segment::flat_data(3);
        for (segment, readable, writable) in [
            (code, true, false),
            (execute_only, false, false),
            (constant, true, false),
            (absent, false, false),
            (data, true, true),
        ] {
            assert_eq!(allows(&segment, 0, 4, Direction::Read), readable, "{segment:?}");
            assert_eq!(allows(&segment, 0, 4, Direction::Write), writable, "{segment:?}");
        }
        let down = Segment { attributes: 0xc0f7, limit: 0xfff, ..data };
        let narrow = Segment { attributes: 0x80f7, limit: 0xfff, ..data };
        for (segment, offset, len, expected) in [
            (down, 0xfff, 1, false),
            (down, 0x1000, 1, true),
            (down, 0xffff_fffc, 4, true),
            (down, 0xffff_fffd, 4, false),
            (narrow, 0xffff, 1, true),
            (narrow, 0xffff, 2, false),
            (data, u32::MAX, 1, true),
            (data, u32::MAX, 2, false),
        ] {
            assert_eq!(reaches(&segment, offset, len), expected, "{segment:?} {offset:#x}");
        }
    }

    #[test]
    fn bit_strings_reach_far() {
        let mut cpu = cpu_at(3);
        cpu.set_gpr(Gpr::Ebx, 0x3000);
        for (index, at, bit) in [
            (0_u32, 0x3000, 0),
            (31, 0x3000, 31),
            (32, 0x3004, 0),
            (u32::MAX, 0x2ffc, 31),
            (0x7fff_ffff, 0x1000_2ffc, 31),
            (0x8000_0000, 0xf000_3000, 0),
        ] {
            cpu.set_gpr(Gpr::Ecx, index);
            let bts = decode(0x1000, &[0x0f, 0xab, 0x0b]); // bts [ebx], ecx
            assert_eq!(linear_address(&cpu, &bts, 4, true), Ok(GuestVirt(at)));
            assert_eq!(bit_offset(&cpu, &bts), bit);
        }
        cpu.set_gpr(Gpr::Ecx, 0xffff_8001);
        let btr = decode(0x1000, &[0x66, 0x0f, 0xb3, 0x0b]); // btr [ebx], cx
        assert_eq!(linear_address(&cpu, &btr, 2, true), Ok(GuestVirt(0x2000)));
        assert_eq!(bit_offset(&cpu, &btr), 1);
        let bt = decode(0x1000, &[0x0f, 0xba, 0x23, 0x25]); // bt dword [ebx], 37
        assert_eq!(linear_address(&cpu, &bt, 4, false), Ok(GuestVirt(0x3000)));
        assert_eq!(bit_offset(&cpu, &bt), 5);
    }
}
