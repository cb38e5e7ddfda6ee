//! Transfers of control: direct ones are jumps between pieces of host code, indirect ones look
//! their target up.
//!
//! A direct branch inside a page becomes a host jump: to code that exists, or to an exit that
//! is replaced once it does. Between pages it must not be, since the mapping of the other page
//! may change: such a branch looks its target up in the table of the world, as `ret` and
//! indirect branches do.

use super::Route;
use super::assembler::{OpenJump, Reg, Width};
use super::operands::{Reach, has_memory, host_register};
use super::peel::Turn;
use super::plan::{condition, direct_target};
use super::stubs::{exit, exit_to_r13, jump_through_table};
use super::unit::Translator;
use crate::address::{OVERHANG, PAGE_SIZE};
use crate::frame::Reason;
use iced_x86::{Instruction, Mnemonic};

impl Translator<'_> {
    pub(super) fn call(&mut self, instruction: &Instruction, route: Route) {
        let Some(reach) = self.reach_beside_stack(instruction, route) else {
            return self.emulated(instruction);
        };
        if let Some(target) = direct_target(instruction) {
            if self.call_leaf(instruction, target) {
                return;
            }
            self.push_constant(instruction.next_ip32());
            self.settle_stack();
            return self.go_to(target);
        }
        // The target comes before the push: it may be esp, or lie on the stack.
        self.target_to_r13(instruction, reach);
        self.push_constant(instruction.next_ip32());
        self.settle_stack();
        self.go_to_r13();
    }

    pub(super) fn jump(&mut self, instruction: &Instruction, route: Route) {
        if let Some(target) = direct_target(instruction) {
            return self.go_to(target);
        }
        let reach = match has_memory(instruction) {
            true => self.reach(instruction, route),
            false => Reach::Window,
        };
        if reach == Reach::Bounced {
            return self.emulated(instruction);
        }
        self.target_to_r13(instruction, reach);
        self.go_to_r13();
    }

    /// `ret`, also with bytes to drop.
    pub(super) fn ret(&mut self, instruction: &Instruction, route: Route) {
        if self.reach_beside_stack(instruction, route).is_none() {
            return self.emulated(instruction);
        }
        let dropped = match instruction.op_count() {
            0 => 0,
            _ => i32::from(instruction.immediate16()),
        };
        self.pop_to_r13(4 + dropped);
        self.go_to_r13();
    }

    /// `jcc`
    pub(super) fn conditional(&mut self, instruction: &Instruction, turn: Turn) {
        let Some(target) = direct_target(instruction) else { return self.emulated(instruction) };
        let condition = condition(instruction);
        match turn {
            Turn::First => self.over_rounds = Some(self.hot.jump_if(condition ^ 1)),
            Turn::Back => {
                let jump = self.hot.jump_if(condition);
                self.hot.close(jump, self.other_rounds);
                if let Some(over) = self.over_rounds.take() {
                    self.hot.close(over, self.hot.here());
                }
            }
            Turn::None | Turn::Head => {
                let jump = self.hot.jump_if(condition);
                self.lead(jump, target);
            }
        }
    }

    /// `loop` and `jecxz`: with a 32-bit address size they count in ecx; their jump is short,
    /// so it only steps to a long one.
    pub(super) fn counted(&mut self, instruction: &Instruction) {
        let opcode = match instruction.mnemonic() {
            Mnemonic::Loopne => 0xe0,
            Mnemonic::Loope => 0xe1,
            Mnemonic::Loop => 0xe2,
            _ => 0xe3,
        };
        let Some(target) = direct_target(instruction) else { return self.emulated(instruction) };
        // taken: over the jmp short, to the jmp; not taken: the jmp short, over the jmp
        self.hot.raw(&[0x67, opcode, 2, 0xeb, 5]);
        let jump = self.hot.jump();
        self.lead(jump, target);
    }

    /// Goes to a guest address.
    pub(super) fn go_to(&mut self, target: u32) {
        if self.request.assumptions.is_single() {
            exit(&mut self.hot, Reason::Stop, target);
        } else if self.is_local(target) {
            let jump = self.hot.jump();
            self.lead(jump, target);
        } else {
            self.go_by_table(target);
        }
    }

    /// Goes to a guest address, wherever the world has its code.
    pub(super) fn go_by_table(&mut self, target: u32) {
        self.hot.constant(Reg::R13, target);
        jump_through_table(&mut self.hot);
    }

    /// Goes to the guest address in r13d.
    fn go_to_r13(&mut self) {
        if self.request.assumptions.is_single() {
            exit_to_r13(&mut self.hot, Reason::Stop);
        } else {
            jump_through_table(&mut self.hot);
        }
    }

    /// Lets a jump in hot code lead to a guest address.
    fn lead(&mut self, jump: OpenJump, target: u32) {
        let flat = self.request.assumptions.flat;
        if self.request.assumptions.is_single() {
            self.hot.close(jump, self.cold.here());
            exit(&mut self.cold, Reason::Stop, target);
        } else if !self.is_local(target) {
            self.hot.close(jump, self.cold.here());
            self.cold.constant(Reg::R13, target);
            jump_through_table(&mut self.cold);
        } else if let Some(host) = (self.request.known)(target).filter(|_| flat) {
            self.hot.close(jump, host);
        } else {
            self.branch(jump, target);
        }
    }

    /// Whether the code at `target` lives and dies with this unit's. Where an instruction may run over the end of the page, it doesn't.
    fn is_local(&self, target: u32) -> bool {
        let page = |eip| eip / PAGE_SIZE;
        !self.request.straddles
            && page(target) == page(self.request.eip)
            && page(target.wrapping_add(OVERHANG)) == page(target)
    }

    fn target_to_r13(&mut self, instruction: &Instruction, reach: Reach) {
        if has_memory(instruction) {
            self.load_to_r13(instruction, reach, Width::Dword);
        } else {
            self.hot.copy(Width::Dword, Reg::R13, host_register(instruction.op0_register()));
        }
    }
}
