//! Segment registers that are only read.
//!
//! The host's own segment registers hold the host's business; the guest's selectors are in the
//! frame. Loading one means to look a descriptor up, which Rust does; but kernels save ds and
//! es on each way in, and a read of a register isn't worth leaving for.

use super::assembler::{Place, Reg, Width};
use super::operands::{has_memory, host_register};
use super::unit::Translator;
use crate::frame::offset;
use iced_x86::{Instruction, Register};

impl Translator<'_> {
    /// `mov` from a segment register: a 32-bit register gets zeros above the selector (SDM volume 2,
    /// "MOV"). Memory gets its two bytes from Rust.
    pub(super) fn segment_read(&mut self, instruction: &Instruction) {
        if has_memory(instruction) {
            return self.emulated(instruction);
        }
        let to = instruction.op0_register();
        let width = if to.size() == 2 { Width::Word } else { Width::Dword };
        self.selector(width, host_register(to), instruction.op1_register());
    }

    /// `to = the selector in a segment register`
    pub(super) fn selector(&mut self, width: Width, to: Reg, segment: Register) {
        let field = offset::segment_selector(segment.number());
        self.hot.load(width, to, Place::Frame(field));
    }
}
