//! The guest's stack: esp is r12d, and pushing is a store and an `lea`.
//!
//! The store comes before esp moves, so that a fault finds the instruction's beginning. When the stack
//! segment isn't flat, or the stack has turned out to be out of reach, Rust does it all.
//!
//! Pushes, pops, and operands that count from esp all go through gs, where they may have a displacement. Those without one could be `[r14+r12]`, which is a cycle
//! or two faster by itself; but processors pass a value on at once only where load and store name their address in the
//! same way (push and pop of one register, on an Intel of 2023: 0.52 ns instead of 1.35).
//!
//! Compilers write pushes and pops in rows, with a `call` or a `ret` behind. There r12 need not follow each of them: it stays,
//! and the displacement moves ([`Translator::moved`](super::unit::Translator)), until something needs esp itself, or may be reached from elsewhere. Who
//! stops in the middle adds what is missing ([`Point::moved`](super::Point)). A chain of additions that loads and stores waited for is gone.

use super::Route;
use super::assembler::{Place, Reg, Sum, Width};
use super::operands::{Reach, has_memory, host_register};
use super::plan::Step;
use super::unit::Translator;
use iced_x86::{Instruction, OpKind, Register};

/// Where displacements fit a byte, whatever one instruction does to them.
const MOVES: std::ops::RangeInclusive<i8> = -100..=100;

impl Translator<'_> {
    /// The reach of the explicit operand of an instruction that works on the stack; `None` when
    /// Rust has to do it.
    pub(super) fn reach_beside_stack(
        &self,
        instruction: &Instruction,
        route: Route,
    ) -> Option<Reach> {
        if !self.request.assumptions.flat {
            return None;
        }
        if !has_memory(instruction) {
            return (route == Route::Window).then_some(Reach::Window);
        }
        Some(self.reach(instruction, route)).filter(|&reach| reach != Reach::Bounced)
    }

    pub(super) fn push(&mut self, instruction: &Instruction, route: Route) {
        let Some(reach) = self.reach_beside_stack(instruction, route) else {
            return self.emulated(instruction);
        };
        let (width, bytes) = stack_width(instruction);
        let below = Place::Stack(self.moved - bytes);
        match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_segment_register() => {
                self.selector(Width::Dword, Reg::R13, instruction.op0_register());
                self.hot.store(width, below, Reg::R13);
            }
            OpKind::Register => {
                // esp itself is pushed as it was.
                let from = host_register(instruction.op0_register());
                self.hot.store(width, below, from);
            }
            OpKind::Memory => {
                self.load_to_r13(instruction, reach, width);
                self.hot.store(width, below, Reg::R13);
            }
            _ => self.hot.store_constant(width, below, instruction.immediate(0) as u32),
        }
        self.moved -= bytes;
    }

    pub(super) fn pop(&mut self, instruction: &Instruction, route: Route) {
        let Some(reach) = self.reach_beside_stack(instruction, route) else {
            return self.emulated(instruction);
        };
        let (width, bytes) = stack_width(instruction);
        if instruction.op0_kind() == OpKind::Memory {
            self.hot.load(width, Reg::R13, self.top());
            let target = with_moved_stack(instruction, bytes);
            self.store_from_r13(&target, reach, width);
            self.move_stack(i32::from(bytes));
            self.watch(&target, reach);
            return;
        }
        let to = host_register(instruction.op0_register());
        match (to, width) {
            // What is popped wins over the addition.
            (Reg::STACK, Width::Dword) => self.hot.load(width, Reg::STACK, self.top()),
            (Reg::STACK, _) => {
                self.hot.load(width, Reg::R13, self.top());
                self.move_stack(i32::from(bytes));
                self.hot.copy(width, Reg::STACK, Reg::R13);
            }
            _ => {
                self.hot.load(width, to, self.top());
                self.moved += bytes;
            }
        }
    }

    /// What the guest's esp points to.
    fn top(&self) -> Place {
        Place::Stack(self.moved)
    }

    /// Makes r12d the guest's esp again.
    pub(super) fn settle_stack(&mut self) {
        let moved = std::mem::take(&mut self.moved);
        if moved != 0 {
            self.move_stack(moved.into());
        }
    }

    /// Whether an instruction is translated for an esp that is elsewhere than in r12d.
    pub(super) fn may_stay_moved(&self, step: &Step) -> bool {
        step.in_row
            && MOVES.contains(&self.moved)
            && self.request.assumptions.flat
            && !self.request.assumptions.is_single()
            && self.route(step) == Route::Window
            && !(has_memory(&step.instruction) && self.is_bounced(&step.instruction, Route::Window))
    }

    /// The instruction with what an operand relative to esp needs.
    pub(super) fn with_esp_moved(&self, instruction: &Instruction) -> Instruction {
        with_moved_stack(instruction, self.moved)
    }

    /// `r13d = the selector on top of the stack`, which stays there.
    pub(super) fn selector_on_top(&mut self, instruction: &Instruction) {
        let (width, _) = stack_width(instruction);
        self.hot.load(width, Reg::R13, self.top());
        self.hot.zero_extend_word(Reg::R13, Reg::R13);
    }

    /// Drops the selector that a `pop` of a segment register has read.
    pub(super) fn drop_selector(&mut self, instruction: &Instruction) {
        let (_, bytes) = stack_width(instruction);
        self.move_stack(i32::from(bytes));
    }

    /// `leave`: esp becomes ebp, and ebp is popped.
    pub(super) fn leave(&mut self, instruction: &Instruction, route: Route) {
        if !self.request.assumptions.flat || route != Route::Window {
            return self.emulated(instruction);
        }
        let (width, bytes) = stack_width(instruction);
        self.hot.load(width, Reg::R13, Place::Window(Reg::EBP));
        self.moved = 0;
        self.hot.lea(Width::Dword, Reg::STACK, Sum::plus(Reg::EBP, i32::from(bytes)));
        self.hot.copy(width, Reg::EBP, Reg::R13);
    }

    /// Pushes a return address.
    pub(super) fn push_constant(&mut self, value: u32) {
        self.hot.store_constant(Width::Dword, Place::Stack(self.moved - 4), value);
        self.moved -= 4;
    }

    /// `r13d = what is on top`, and esp moves by `bytes`.
    pub(super) fn pop_to_r13(&mut self, bytes: i32) {
        self.hot.load(Width::Dword, Reg::R13, self.top());
        let moved = std::mem::take(&mut self.moved);
        self.move_stack(i32::from(moved) + bytes);
    }

    /// `lea r12d, [r12+bytes]`
    fn move_stack(&mut self, bytes: i32) {
        self.hot.lea(Width::Dword, Reg::STACK, Sum::plus(Reg::STACK, bytes));
    }
}

/// The width of what is pushed or popped, and its bytes.
fn stack_width(instruction: &Instruction) -> (Width, i8) {
    use iced_x86::Code as C;
    let word = instruction.stack_pointer_increment().abs() == 2 || instruction.code() == C::Leavew;
    if word { (Width::Word, 2) } else { (Width::Dword, 4) }
}

/// The instruction as it is when esp, where its operand counts from, is `bytes` further on. (`pop` to memory computes its address with
/// the esp that has moved already: SDM volume 2, "POP".)
fn with_moved_stack(instruction: &Instruction, bytes: i8) -> Instruction {
    let mut moved = *instruction;
    if bytes != 0 && instruction.memory_base() == Register::ESP {
        let displacement = instruction.memory_displacement32().wrapping_add(bytes as u32);
        moved.set_memory_displacement64(u64::from(displacement));
        let small = i8::try_from(displacement as i32).is_ok();
        moved.set_memory_displ_size(if small { 1 } else { 4 });
    }
    moved
}
