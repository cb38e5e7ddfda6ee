//! Short functions that call nobody, *leaves*, are translated in place of the calls that lead to them.
//!
//! A return looks its target up, and the processor has to guess where it goes (decision 14). Of a leaf all that is known
//! beforehand: what the call has pushed is still there when the leaf returns, if the leaf stores nothing. So the call is
//! a push, the leaf's instructions follow, and its `ret` is nothing at all. Where the leaf branches, one side of the branch is taken in,
//! and the other leads to the function itself, which then returns as functions do.
//!
//! Nobody can tell: each instruction of the leaf has its point, with its own eip, and esp is counted as in a row of pushes and
//! pops ([`super::stack`]). Only who comes back from Rust, where the stack may have been written to, comes to the function itself
//! ([`Point::inlined`](super::Point)).

use super::Route;
use super::assembler::OpenJump;
use super::classify::{Way, classify};
use super::operands::{has_memory, writes_memory};
use super::plan::{condition, decoder, direct_target, names_esp};
use super::unit::Translator;
use super::{Point, Request};
use crate::address::PAGE_SIZE;
use iced_x86::Instruction;

/// Instructions of a leaf at most, `ret` included.
const LONGEST: usize = 12;

/// Branches in it at most.
const BRANCHES: usize = 2;

/// Bytes that its `ret` may drop beside the return address.
const DROPPED: u16 = 32;

/// One instruction of a leaf.
#[derive(Clone, Copy, Debug)]
struct Inlined {
    instruction: Instruction,
    way: Way,
    /// For a branch: the condition on which the leaf is left, and for where.
    leaves: Option<(u8, u32)>,
}

/// A branch out of a leaf.
pub(super) struct WayOut {
    jump: OpenJump,
    /// What is to be added to r12d there.
    moved: i8,
    /// Where it leads.
    target: u32,
}

impl Translator<'_> {
    /// Emits a call together with the leaf that it leads to. If there is none at `target`, it says so, and emits nothing.
    pub(super) fn call_leaf(&mut self, call: &Instruction, target: u32) -> bool {
        let Some(leaf) = find_leaf(self.request, target) else { return false };
        self.push_constant(call.next_ip32());
        for Inlined { instruction, way, leaves } in leaf {
            let (eip, len) = (instruction.ip32(), instruction.len() as u8);
            self.elsewhere.push((eip, len));
            if way != Way::Return {
                self.inlined_point(eip, len);
            }
            match way {
                Way::Conditional => {
                    if let Some((condition, target)) = leaves {
                        let jump = self.hot.jump_if(condition);
                        self.ways_out.push(WayOut { jump, moved: self.moved, target });
                    }
                }
                Way::Return => self.moved += 4 + dropped(&instruction) as i8,
                Way::Lea => self.lea(&instruction),
                Way::Nothing => self.hot.nop(),
                _ => self.native(&instruction, Route::Window),
            }
        }
        self.settle_stack();
        true
    }

    /// What lies behind the branches out of leaves.
    pub(super) fn leave_leaves(&mut self) {
        for WayOut { jump, moved, target } in std::mem::take(&mut self.ways_out) {
            self.hot.close(jump, self.hot.here());
            self.moved = moved;
            self.inlined_point(target, 0);
            self.settle_stack();
            self.go_to(target);
        }
    }

    fn inlined_point(&mut self, eip: u32, len: u8) {
        let (host, moved) = (self.hot.here(), self.moved);
        self.point(Point { host, eip, len, entry: false, inlined: true, rep: false, moved });
    }
}

/// The leaf at `eip`, if there is one and more than one instruction at a time may run.
fn find_leaf(request: &Request<'_>, eip: u32) -> Option<Vec<Inlined>> {
    let mut leaf = Vec::new();
    let single = request.assumptions.is_single();
    (!single && continue_leaf(request, eip, BRANCHES, &mut leaf)).then_some(leaf)
}

/// Whether the code at `eip` comes to a `ret`, as the rest of a leaf, with so many branches at most. Then `leaf` has it.
fn continue_leaf(
    request: &Request<'_>,
    mut eip: u32,
    branches: usize,
    leaf: &mut Vec<Inlined>,
) -> bool {
    while leaf.len() < LONGEST {
        let Some((instruction, way)) = decode(request, eip) else { break };
        let next = instruction.next_ip32();
        let mut inlined = Inlined { instruction, way, leaves: None };
        match way {
            Way::Return if dropped(&instruction) <= DROPPED => {
                leaf.push(inlined);
                return true;
            }
            Way::Conditional if branches > 0 => {
                let Some(target) = direct_target(&instruction) else { break };
                let taken = condition(&instruction);
                let sides = [(next, taken, target), (target, taken ^ 1, next)];
                let at = leaf.len();
                return sides.into_iter().any(|(inside, condition, outside)| {
                    leaf.truncate(at);
                    inlined.leaves = Some((condition, outside));
                    leaf.push(inlined);
                    continue_leaf(request, inside, branches - 1, leaf)
                });
            }
            Way::Native | Way::Lea | Way::Nothing if changes_registers_only(request, &inlined) => {
                leaf.push(inlined);
                eip = next;
            }
            _ => break,
        }
    }
    false
}

/// The instruction at `eip`, if it is in the request's page, nobody waits for it, and it doesn't ask for the FPU. One that isn't all in
/// the page is undefined here.
fn decode(request: &Request<'_>, eip: u32) -> Option<(Instruction, Way)> {
    if eip / PAGE_SIZE != request.eip / PAGE_SIZE || request.breakpoints.contains(&eip) {
        return None;
    }
    let mut bytes = [0; 15];
    let read = (request.nearby)(eip, &mut bytes);
    let instruction = decoder(&bytes[..read], eip).decode();
    let class = classify(instruction.code());
    (!class.fpu).then_some((instruction, class.way))
}

/// An instruction that stores nothing, leaves esp alone, and has its operand where the window shows it.
fn changes_registers_only(request: &Request<'_>, inlined: &Inlined) -> bool {
    let instruction = &inlined.instruction;
    let in_memory = has_memory(instruction) && inlined.way != Way::Lea;
    let in_window = || (request.learned)(instruction.ip32()) == Route::Window;
    !names_esp(instruction) && !writes_memory(instruction) && (!in_memory || in_window())
}

/// Bytes that a `ret` drops beside the return address.
fn dropped(instruction: &Instruction) -> u16 {
    if instruction.op_count() == 0 { 0 } else { instruction.immediate16() }
}
