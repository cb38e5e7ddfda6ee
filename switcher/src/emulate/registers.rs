//! Registers by the names instructions use, parts of them included: `ah` is bits 8 to 15 of eax.

use crate::cpu::{Cpu, Gpr, SegmentRegister};
use iced_x86::Register;

/// The general registers in the order of the encoding.
pub(super) const GENERAL: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];

/// Where a general register's bits are.
struct Part {
    whole: Gpr,
    shift: u32,
    mask: u32,
}

impl Part {
    /// `None` for what isn't a general register of 8, 16 or 32 bits.
    fn of(register: Register) -> Option<Self> {
        let number = register.number();
        let (number, shift, mask) = match register.size() {
            1 if register.is_gpr8() && number >= 4 => (number - 4, 8, 0xff),
            1 if register.is_gpr8() => (number, 0, 0xff),
            2 if register.is_gpr16() => (number, 0, 0xffff),
            4 if register.is_gpr32() => (number, 0, u32::MAX),
            _ => return None,
        };
        GENERAL.get(number).map(|&whole| Self { whole, shift, mask })
    }
}

/// The value of a general register or a part of one, zero-extended; 0 for no register.
pub(super) fn read(cpu: &Cpu, register: Register) -> u32 {
    Part::of(register).map_or(0, |part| cpu.gpr(part.whole) >> part.shift & part.mask)
}

/// Sets a general register or a part of one; the bits around it stay.
pub(super) fn write(cpu: &mut Cpu, register: Register, value: u32) {
    if let Some(Part { whole, shift, mask }) = Part::of(register) {
        let kept = cpu.gpr(whole) & !(mask << shift);
        cpu.set_gpr(whole, kept | (value & mask) << shift);
    }
}

/// Sets the low `size` bytes (2 or 4) of a general register.
pub(super) fn write_low(cpu: &mut Cpu, register: Gpr, size: u32, value: u32) {
    let value = if size == 2 { cpu.gpr(register) & 0xffff_0000 | value & 0xffff } else { value };
    cpu.set_gpr(register, value);
}

/// al.
pub(super) fn al(cpu: &Cpu) -> u8 {
    cpu.gpr(Gpr::Eax) as u8
}

/// ah.
pub(super) fn ah(cpu: &Cpu) -> u8 {
    (cpu.gpr(Gpr::Eax) >> 8) as u8
}

/// Sets ax from its halves.
pub(super) fn set_ax(cpu: &mut Cpu, ah: u8, al: u8) {
    write_low(cpu, Gpr::Eax, 2, u32::from(u16::from_be_bytes([ah, al])));
}

/// The segment register of that name; `None` for any other register.
pub(super) fn segment_register(register: Register) -> Option<SegmentRegister> {
    Some(match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing::cpu;

    #[test]
    fn parts_of_registers() {
        let mut cpu = cpu();
        cpu.set_gpr(Gpr::Ebx, 0x1234_5678);
        assert_eq!(read(&cpu, Register::BH), 0x56);
        assert_eq!(read(&cpu, Register::BL), 0x78);
        assert_eq!(read(&cpu, Register::BX), 0x5678);
        write(&mut cpu, Register::BH, 0xabcd);
        assert_eq!(cpu.gpr(Gpr::Ebx), 0x1234_cd78);
        write(&mut cpu, Register::BX, 0x1_0001);
        assert_eq!(cpu.gpr(Gpr::Ebx), 0x1234_0001);
        write(&mut cpu, Register::XMM0, 5);
        assert_eq!(read(&cpu, Register::XMM0), 0);
    }
}
