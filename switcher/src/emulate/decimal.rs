//! Decimal adjustment, and `salc`: the 8080's heritage, which 64-bit mode dropped.
//!
//! The flags that the manual leaves undefined here are as AMD's processors set them; the tests
//! hold all results against sums taken on one. `aaa` and `aas` set them as the 16-bit addition or
//! subtraction they make, `daa`, `das` and `aad` as an 8-bit one; `aam` clears OF, AF and CF.

use super::flags::{self, AF, ARITHMETIC, CF, of_addition, of_byte, of_subtraction, when};
use super::registers::{ah, al, set_ax, write};
use crate::cpu::{Cpu, Gpr};
use crate::exit::Exception;
use iced_x86::{Instruction, Register};

/// What the unpacked adjustments add to ax: a ten carried from al to ah.
const CARRIED_TEN: u32 = 0x0106;

/// `aaa`: ax after an addition of unpacked digits.
pub(super) fn aaa(cpu: &mut Cpu) {
    let step = if needs_adjustment(cpu) { CARRIED_TEN } else { 0 };
    let ax = cpu.gpr(Gpr::Eax) & 0xffff;
    unpacked(cpu, ax.wrapping_add(step), of_addition(ax, step, 2), step != 0);
}

/// `aas`: ax after a subtraction of unpacked digits.
pub(super) fn aas(cpu: &mut Cpu) {
    let step = if needs_adjustment(cpu) { CARRIED_TEN } else { 0 };
    let ax = cpu.gpr(Gpr::Eax) & 0xffff;
    unpacked(cpu, ax.wrapping_sub(step), of_subtraction(ax, step, 2), step != 0);
}

/// Sets ax without al's upper digit, CF and AF if there was an adjustment, the other flags as told.
fn unpacked(cpu: &mut Cpu, ax: u32, arithmetic: u32, adjusted: bool) {
    write(cpu, Register::AX, ax & 0xff0f);
    let carries = when(adjusted, CF | AF);
    flags::change(cpu, ARITHMETIC, arithmetic & !(CF | AF) | carries);
}

/// The low digit isn't a decimal one, or carried.
fn needs_adjustment(cpu: &Cpu) -> bool {
    al(cpu) & 0xf > 9 || flags::is_set(cpu, AF)
}

/// `daa`: al after an addition of packed digits.
pub(super) fn daa(cpu: &mut Cpu) {
    let old = al(cpu);
    let low = needs_adjustment(cpu);
    let high = old > 0x99 || flags::is_set(cpu, CF);
    let step = packed_step(low, high);
    packed(cpu, old.wrapping_add(step), of_addition(old.into(), step.into(), 1), low, high);
}

/// `das`: al after a subtraction of packed digits.
pub(super) fn das(cpu: &mut Cpu) {
    let old = al(cpu);
    let low = needs_adjustment(cpu);
    let high = old > 0x99 || flags::is_set(cpu, CF);
    let step = packed_step(low, high);
    let carry = high || (low && old < 6);
    packed(cpu, old.wrapping_sub(step), of_subtraction(old.into(), step.into(), 1), low, carry);
}

/// What a packed adjustment adds or subtracts.
const fn packed_step(low: bool, high: bool) -> u8 {
    (if low { 0x06 } else { 0 }) + (if high { 0x60 } else { 0 })
}

/// Sets al, CF and AF as told, and the other flags as `arithmetic` says.
fn packed(cpu: &mut Cpu, result: u8, arithmetic: u32, auxiliary: bool, carry: bool) {
    write(cpu, Register::AL, result.into());
    let carries = when(auxiliary, AF) | when(carry, CF);
    flags::change(cpu, ARITHMETIC, arithmetic & !(CF | AF) | carries);
}

/// `aam`: splits al into ah and al by the immediate, ten as a rule.
///
/// # Errors
/// #DE when the immediate is 0.
pub(super) fn aam(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let (value, base) = (al(cpu), instruction.immediate8());
    let high = value.checked_div(base).ok_or(Exception::DIVIDE)?;
    let low = value % base;
    set_ax(cpu, high, low);
    flags::change(cpu, ARITHMETIC, of_byte(low));
    Ok(())
}

/// `aad`: joins ah and al into al, by the immediate; ah becomes 0.
pub(super) fn aad(cpu: &mut Cpu, instruction: &Instruction) {
    let tens = ah(cpu).wrapping_mul(instruction.immediate8());
    let units = al(cpu);
    set_ax(cpu, 0, units.wrapping_add(tens));
    flags::change(cpu, ARITHMETIC, of_addition(units.into(), tens.into(), 1));
}

/// `salc` (opcode D6): al becomes 0xff with CF set, else 0. No flag changes.
pub(super) fn salc(cpu: &mut Cpu) {
    let value = if flags::is_set(cpu, CF) { 0xff } else { 0 };
    write(cpu, Register::AL, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::flags::{OF, PF, SF, ZF};
    use crate::emulate::testing::{Memory, cpu, run};

    /// FNV-1a over eax and the arithmetic flags after `code`, for every ax, with CF, with AF and
    /// with the other flags set or not before. The same sums were taken on an AMD EPYC (family
    /// 25) by a 32-bit program.
    fn digest(code: &[u8]) -> u64 {
        let mut cpu = cpu();
        let mut memory = Memory::new();
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for ax in 0..0x1_0000 {
            for set in 0..8 {
                let before = when(set & 1 != 0, CF)
                    | when(set & 2 != 0, AF)
                    | when(set & 4 != 0, PF | ZF | SF | OF);
                cpu.set_gpr(Gpr::Eax, 0xabcd_0000 | ax);
                cpu.set_eflags(before);
                run(&mut cpu, &mut memory, code).expect("no exception");
                for word in [cpu.gpr(Gpr::Eax), cpu.eflags() & ARITHMETIC] {
                    sum = (sum ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
        sum
    }

    #[test]
    fn all_results_are_as_on_a_processor() {
        let sums: [(&[u8], u64); 13] = [
            (&[0x37], 0x2eea_90d2_fda0_4525),
            (&[0x3f], 0xfe1e_1b3c_70ad_1225),
            (&[0x27], 0x8a1d_d962_146f_b325),
            (&[0x2f], 0xe41c_642a_6413_b325),
            (&[0xd4, 10], 0x4926_0ba1_7550_6325),
            (&[0xd5, 10], 0xc302_faee_3133_0725),
            (&[0xd4, 7], 0xcd8b_d980_10ca_4325),
            (&[0xd5, 7], 0xd56a_e5b3_3901_b625),
            (&[0xd5, 255], 0x2416_0f1c_5293_a125),
            (&[0xd4, 255], 0xb75f_28d8_14b2_2325),
            (&[0xd4, 1], 0xe33c_a8b9_83e2_2325),
            (&[0xd5, 0], 0x6c8a_0f4d_0549_2325),
            (&[0xd6], 0xcc8f_5ef6_5ac0_2325),
        ];
        for (code, sum) in sums {
            assert_eq!(digest(code), sum, "{code:02x?}");
        }
    }

    #[test]
    fn aam_by_zero_divides_by_zero() {
        let mut cpu = cpu();
        cpu.set_gpr(Gpr::Eax, 0x1234);
        assert_eq!(run(&mut cpu, &mut Memory::new(), &[0xd4, 0]), Err(Exception::DIVIDE));
        assert_eq!(cpu.gpr(Gpr::Eax), 0x1234);
    }
}
