//! Segment registers: read, or loaded with what they hold already.
//!
//! The host's own segment registers hold the host's business; the guest's selectors are in the
//! frame. Loading one means to look a descriptor up, which Rust does; but kernels save ds and
//! es on each way in, load them with the very selector that most programs have there, and restore them on the way out. A
//! read of a register isn't worth leaving for, nor is a load that changes nothing: the frame says which selector that
//! would be ([`Frame::reloads`](crate::frame::Frame::reloads)).

use super::Route;
use super::assembler::{OpenJump, Place, Reg, Sum, Width};
use super::operands::{has_memory, host_register};
use super::stubs::exit;
use super::unit::Translator;
use crate::frame::{Reason, offset};
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
        let leave = self.leave_unless_reload(register);
        self.hot.close(leave, self.cold.here());
        exit(&mut self.cold, Reason::Sensitive, instruction.ip32());
        if popped {
            self.drop_selector(instruction);
        }
    }

    /// A jump that is taken if the selector in r13d isn't the one that `segment` may be loaded with for nothing. r9 changes, and no
    /// flags.
    fn leave_unless_reload(&mut self, segment: Register) -> OpenJump {
        let field = Place::Frame(offset::reload(segment.number()));
        self.leave_unless_zero(|hot| {
            hot.load(Width::Dword, Reg::ECX, field);
            hot.lea(Width::Dword, Reg::ECX, Sum::of(Reg::ECX, Reg::R13, 0));
        })
    }

    /// `to = the selector in a segment register`
    pub(super) fn selector(&mut self, width: Width, to: Reg, segment: Register) {
        let field = offset::segment_selector(segment.number());
        self.hot.load(width, to, Place::Frame(field));
    }
}
