//! ah, ch, dh and bh, which can't stand beside r8–r15.
//!
//! An instruction with a REX prefix has no way to say "ah". Where the operand of such an
//! instruction lies at a host register from r8 on, the whole of eax is taken into r13d rotated,
//! so that its second byte becomes r13b; the instruction works on that; and r13d is rotated
//! back. `rorx` leaves the flags alone, and eax is untouched until all that can fault is over.

use super::assembler::Reg;
use super::unit::Translator;
use iced_x86::{Instruction, Mnemonic, Register};

impl Translator<'_> {
    /// Encodes a host instruction whose operands are in place.
    pub(super) fn encode_with_high_bytes(&mut self, mut host: Instruction) {
        let Some((operand, whole)) = high_operand(&host).filter(|_| needs_rex(&host)) else {
            self.encode(&host);
            return;
        };
        self.hot.rotate_right(Reg::R13, whole, 8);
        host.set_op_register(operand, Register::R13L);
        self.encode(&host);
        let exchanges = matches!(host.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd);
        if operand == 0 || exchanges {
            self.hot.rotate_right(whole, Reg::R13, 24);
        }
    }
}

/// Which operand is a high byte, and the register it is the second byte of.
///
/// Only one can matter: where two are high bytes there is no third operand that asks for a prefix.
pub(super) fn high_operand(host: &Instruction) -> Option<(u32, Reg)> {
    (0..host.op_count()).find_map(|operand| {
        let register = host.op_register(operand);
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        high.then(|| (operand, Reg(register.number() as u8 & 3)))
    })
}

/// Whether an operand is one of the registers that only a prefix can name.
fn needs_rex(host: &Instruction) -> bool {
    let extended = |register: Register| register.is_gpr() && is_extended(register);
    extended(host.memory_base())
        || extended(host.memory_index())
        || (0..host.op_count()).any(|operand| extended(host.op_register(operand)))
}

/// r8 to r15 in any size.
fn is_extended(register: Register) -> bool {
    register.full_register().number() >= 8
}
