//! Segment registers: read, or loaded with what they hold already.
//!
//! The host's own segment registers hold the host's business; the guest's selectors are in the
//! frame. Loading one means to look a descriptor up, which Rust does; but kernels save ds and
//! es on each way in, load them with the very selector that most programs have there, and restore them on the way out. A
//! read of a register isn't worth leaving for, nor is a load that changes nothing: the frame says which selector that
//! would be ([`SegmentSlot::reload`](crate::frame::SegmentSlot)).
//!
//! Kernels for several processors have segments of their own in fs or gs, and load them on each way in, and the program's on each
//! way out. Those two are remembered, and exchanged ([`Frame::others`](crate::frame::Frame)).

use super::Route;
use super::assembler::{Assembler, Place, Reg, Sum, Width};
use super::fpu::leave_unless_zero;
use super::operands::{has_memory, host_register};
use super::stubs::{Tail, exit, go_to_tail};
use super::unit::Translator;
use crate::frame::{FS, Reason, offset};
use iced_x86::{Instruction, Mnemonic, Register};

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

    /// `mov` or `pop` to a segment register: nothing is to be done if it holds that selector, and Rust does it otherwise.
    pub(super) fn segment_load(&mut self, instruction: &Instruction, route: Route) {
        let register = instruction.op0_register();
        let popped = matches!(instruction.mnemonic(), Mnemonic::Pop);
        let out_of_reach = popped && self.reach_beside_stack(instruction, route).is_none();
        // Behind a load of ss there is more to do.
        if out_of_reach
            || has_memory(instruction)
            || matches!(register, Register::SS | Register::CS)
        {
            return self.emulated(instruction);
        }
        if popped {
            self.selector_on_top(instruction);
        } else {
            self.hot.zero_extend_word(Reg::R13, host_register(instruction.op1_register()));
        }
        let field = offset::reload(register.number());
        let differs = leave_unless_zero(&mut self.hot, |hot| add_to_selector(hot, field));
        self.hot.close(differs, self.cold.here());
        if matches!(register, Register::FS | Register::GS) && !self.request.assumptions.user {
            self.exchange(register);
        }
        exit(&mut self.cold, Reason::Sensitive, instruction.ip32());
        if popped {
            self.drop_selector(instruction);
        }
    }

    /// In cold code: if the selector in r13d is the one that `segment` held before, and what that means hasn't changed, the two are exchanged
    /// and hot code goes on.
    fn exchange(&mut self, segment: Register) {
        let (index, back) = (segment.number(), self.hot.here());
        let field = offset::other_reload(index);
        let differs = leave_unless_zero(&mut self.cold, |cold| add_to_selector(cold, field));
        self.cold.address(Reg::R10, back);
        let tail = if index == FS { Tail::ExchangeFs } else { Tail::ExchangeGs };
        go_to_tail(&mut self.cold, tail);
        let here = self.cold.here();
        self.cold.close(differs, here);
    }

    /// `to = the selector in a segment register`
    pub(super) fn selector(&mut self, width: Width, to: Reg, segment: Register) {
        let field = offset::segment_selector(segment.number());
        self.hot.load(width, to, Place::Frame(field));
    }
}

/// `ecx = the frame's 32-bit field + r13d`
fn add_to_selector(out: &mut Assembler, field: i32) {
    out.load(Width::Dword, Reg::ECX, Place::Frame(field));
    out.lea(Width::Dword, Reg::ECX, Sum::of(Reg::ECX, Reg::R13, 0));
}
