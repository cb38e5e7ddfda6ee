//! `bt`, `bts`, `btr` and `btc` with memory and a register: the bit's number is signed, and
//! reaches 256 MiB away from the operand.
//!
//! In 64-bit mode that would reach out of the window. So the address of the one word or
//! dword that holds the bit is computed first, in 32 bits, and what is left of the number is
//! less than the operand's width.

use super::Route;
use super::assembler::{Reg, Sum, Width};
use super::operands::{
    Reach, add_segment, has_memory, host_form, host_register, pick_window, set_operand,
    uses_16bit_address,
};
use super::unit::Translator;
use iced_x86::{Instruction, OpKind, Register};

impl Translator<'_> {
    /// `bt` and its kin with the number in a register.
    pub(super) fn bit_string(&mut self, instruction: &Instruction, route: Route) {
        if !has_memory(instruction) {
            self.native(instruction, route);
            return;
        }
        let base = match self.reach(instruction, route) {
            Reach::Bounced => return self.bounced(instruction),
            reach => {
                self.find_bit(instruction);
                match reach {
                    Reach::Picked => pick_window(&mut self.hot),
                    Reach::Segment(segment) => {
                        add_segment(&mut self.hot, segment, self.request.assumptions.user)
                    }
                    Reach::Window | Reach::Bounced => {}
                }
                if reach == Reach::Window { Register::R14 } else { Register::R10 }
            }
        };
        let word = instruction.op1_register().size() == 2;
        let number = host_register(instruction.op1_register());
        self.hot.constant(Reg::R13, if word { 15 } else { 31 });
        self.hot.extract_bits(Reg::R13, number, Reg::R13);
        let mut host = host_form(instruction);
        set_operand(&mut host, base, Register::R9);
        set_bit_register(&mut host, Reg::R13);
        self.encode(&host);
    }

    /// `r9d = the address of the word or dword that holds the bit`
    fn find_bit(&mut self, instruction: &Instruction) {
        let word = instruction.op1_register().size() == 2;
        let mut number = host_register(instruction.op1_register());
        self.address_to_r9(instruction);
        self.hot.copy(Width::Dword, Reg::R10, Reg::R9);
        if word {
            self.hot.sign_extend_word(Reg::R9, number);
            number = Reg::R9;
        }
        let (bits, bytes) = if word { (4, 1) } else { (5, 2) };
        self.hot.constant(Reg::R13, bits);
        self.hot.shift_right_signed(Reg::R9, number, Reg::R13);
        self.hot.lea(Width::Dword, Reg::R9, Sum::of(Reg::R10, Reg::R9, bytes));
        if uses_16bit_address(instruction) {
            self.hot.zero_extend_word(Reg::R9, Reg::R9);
        }
    }
}

/// Whether an instruction's bit number may lie outside its memory operand.
pub(super) fn is_bit_string(instruction: &Instruction) -> bool {
    super::classify::classify(instruction.code()).way == super::classify::Way::BitString
        && instruction.op0_kind() == OpKind::Memory
}

/// Takes the bit's number from a scratch register.
pub(super) fn set_bit_register(host: &mut Instruction, number: Reg) {
    let word = host.op1_register().size() == 2;
    host.set_op1_register(if word { number.as_iced_word() } else { number.as_iced_dword() });
}
