//! The arithmetic flags, one bit each, and how a subtraction sets them.

use crate::cpu::Cpu;

/// Carry.
pub(super) const CF: u32 = 1 << 0;
/// Even parity of the result's low byte.
pub(super) const PF: u32 = 1 << 2;
/// Carry out of bit 3.
pub(super) const AF: u32 = 1 << 4;
/// Zero.
pub(super) const ZF: u32 = 1 << 6;
/// Sign.
pub(super) const SF: u32 = 1 << 7;
/// Direction of string instructions: set means downwards.
pub(super) const DF: u32 = 1 << 10;
/// Signed overflow.
pub(super) const OF: u32 = 1 << 11;
/// All that arithmetic sets.
pub(super) const ARITHMETIC: u32 = CF | PF | AF | ZF | SF | OF;

/// Whether `flag` is set.
pub(super) fn is_set(cpu: &Cpu, flag: u32) -> bool {
    cpu.eflags() & flag != 0
}

/// Gives the flags in `mask` the values they have in `values`; leaves the others alone.
pub(super) fn change(cpu: &mut Cpu, mask: u32, values: u32) {
    cpu.set_eflags(cpu.eflags() & !mask | values & mask);
}

/// `flag` when `condition` holds, else no flag.
pub(super) const fn when(condition: bool, flag: u32) -> u32 {
    if condition { flag } else { 0 }
}

/// SF, ZF and PF of a result byte.
pub(super) const fn of_byte(result: u8) -> u32 {
    when(result & 0x80 != 0, SF)
        | when(result == 0, ZF)
        | when(result.count_ones().is_multiple_of(2), PF)
}

/// The arithmetic flags of `left + right`, operands `size` bytes wide (1 or 2) and zero above.
pub(super) const fn of_addition(left: u32, right: u32, size: u32) -> u32 {
    let sign = 1 << (size * 8 - 1);
    let mask = sign | (sign - 1);
    let sum = left + right;
    when(sum > mask, CF)
        | when((sum as u8).count_ones().is_multiple_of(2), PF)
        | (left ^ right ^ sum) & AF
        | when(sum & mask == 0, ZF)
        | when(sum & sign != 0, SF)
        | when((left ^ sum) & (right ^ sum) & sign != 0, OF)
}

/// The arithmetic flags of `left - right`, operands `size` bytes wide (1, 2 or 4) and zero above.
pub(super) const fn of_subtraction(left: u32, right: u32, size: u32) -> u32 {
    let sign = 1 << (size * 8 - 1);
    let mask = sign | (sign - 1);
    let result = left.wrapping_sub(right) & mask;
    when(left < right, CF)
        | when((result as u8).count_ones().is_multiple_of(2), PF)
        | (left ^ right ^ result) & AF
        | when(result == 0, ZF)
        | when(result & sign != 0, SF)
        | when((left ^ right) & (left ^ result) & sign != 0, OF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_flags_of_edge_cases() {
        assert_eq!(of_subtraction(5, 5, 4), ZF | PF);
        assert_eq!(of_subtraction(0, 1, 1), CF | PF | AF | SF);
        assert_eq!(of_subtraction(0x80, 1, 1), AF | OF);
        assert_eq!(of_subtraction(0x7fff, 0xffff, 2), CF | PF | SF | OF);
        assert_eq!(of_subtraction(0x8000_0000, 1, 4), PF | AF | OF);
        assert_eq!(of_subtraction(0x10, 1, 4), PF | AF);
    }
}
