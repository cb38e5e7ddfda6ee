//! Where the manual gives a processor leeway, so that a difference isn't a mistake.
//!
//! There are two kinds. How an instruction of many accesses faults is anyone's business: [`is_open`] says of
//! which, on every processor. And where a processor has a [habit](Habit), there is another outcome
//! as good as the Switcher's: [`Leeway::other`] makes it from the Switcher's, and it's that one which the
//! processor must have come to, in all that the habit doesn't touch.

use crate::compare::Seen;
use crate::habits::{Habit, Habits, is_long_selector};
use crate::layout::{Layout, PAGE};
use crate::machine::Stop;
use crate::placing::{number, segment_base};
use crate::state::{ARITHMETIC_FLAGS, Case, End, FxImage, State};
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

/// Whether how it ended and what memory holds is one of several things that the manual allows: both
/// faulted, in an instruction of many accesses, whose order is the processor's own business, as is
/// what it leaves half done below the stack pointer or in an area it was to fill; or there were
/// two reasons, an operand that isn't aligned and one that lies outside its segment.
pub(crate) fn is_open(single: &Instruction, processor: End, switcher: Stop) -> bool {
    use Mnemonic as M;
    let fault = |end: End| match end {
        End::Exception { vector, .. } if (10..=14).contains(&vector) => Some(vector),
        _ => None,
    };
    let Stop::End(switcher) = switcher else { return false };
    let (Some(theirs), Some(ours)) = (fault(processor), fault(switcher)) else { return false };
    let many = matches!(
        single.mnemonic(),
        M::Enter
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Pusha
            | M::Pushad
            | M::Popa
            | M::Popad
            | M::Retf
            | M::Les
            | M::Lds
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Fxsave
            | M::Fxrstor
            | M::Fnsave
            | M::Frstor
            | M::Fnstenv
            | M::Fldenv
    );
    // A far call has pushed cs when the second push faults. (A masked store is in the list because AMD's
    // processors look at eight bytes at a time, as if 16-bit addresses didn't wrap, and then store
    // each where it belongs.)
    let many = many || single.is_call_far() || single.is_call_far_indirect();
    let aligned = single.memory_size().size() == 16;
    many || aligned && (theirs, ours) == (13, 12)
}

/// Whether a difference counts though the way an instruction faults [is open](is_open): the
/// registers should still be what they were. AMD's processors have loaded some when `popa` faults,
/// and have made the x87 registers MMX's when `maskmovq` does; beginning again mends either.
pub(crate) fn must_be_same(instruction: &Instruction, difference: &str) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Popa | M::Popad | M::Maskmovq => {
            difference.starts_with("eip:") || difference.starts_with("esp:")
        }
        _ => !difference.starts_with("end:") && !difference.starts_with("byte at "),
    }
}

/// What another outcome is made from.
pub(crate) struct Leeway<'a> {
    /// What the processor does otherwise.
    pub(crate) habits: &'a Habits,
    /// Where memory is.
    pub(crate) layout: &'a Layout,
    /// How it began.
    pub(crate) case: &'a Case,
    /// The instruction that ended it, or that was all of it.
    pub(crate) instruction: &'a Instruction,
    /// Whether it was all of it.
    pub(crate) is_single: bool,
    /// What the processor came to.
    pub(crate) processor: &'a Seen<'a>,
}

/// An outcome.
pub(crate) struct Other {
    /// How it ended.
    pub(crate) stop: Stop,
    /// The registers then.
    pub(crate) state: State,
    /// All of memory then.
    pub(crate) memory: Vec<u8>,
}

impl Other {
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen { stop: self.stop, state: self.state, memory: &self.memory }
    }
}

impl Leeway<'_> {
    /// What the Switcher might as well have come to, with the processor's habits.
    pub(crate) fn other(&self, switcher: &Seen) -> Other {
        let memory = switcher.memory.to_vec();
        let mut other = Other { stop: switcher.stop, state: switcher.state, memory };
        type Change<'a> = fn(&Leeway<'a>, &mut Other);
        let ways: [(Habit, Change); 8] = [
            (Habit::HalfSelector, Self::half_push),
            (Habit::WrapAround, Self::wrap_around),
            (Habit::FlagsAtTheEnd, Self::flags_at_the_end),
            (Habit::TopBeforeFault, Self::top_before_fault),
            (Habit::NoStoreNoFault, Self::no_store_no_fault),
            (Habit::StoreInParts, Self::store_in_parts),
            (Habit::EdiFirst, Self::edi_first),
            (Habit::BoundInParts, Self::bound_in_parts),
        ];
        for (_, change) in ways.iter().filter(|(habit, _)| self.habits.has(*habit)) {
            change(self, &mut other);
        }
        other
    }

    /// Whether the Switcher has stopped, in this state, at an instruction that this processor may go
    /// on behind: nothing can be compared then.
    pub(crate) fn may_go_on(&self, at: &Instruction, stop: Stop, state: &State) -> bool {
        let is_unmasked = state.fx.u16(0) & 0x3f != 0x3f;
        let stores_nothing =
            !self.is_single && is_unmasked && is_x87_store(at) && fault(stop).is_some();
        let half_is_there = fault(stop).is_some_and(|vector| vector != 13)
            && selector_slot(at, state).is_some_and(|slot| slot % PAGE > PAGE - 4);
        self.habits.has(Habit::NoStoreNoFault) && stores_nothing
            || self.habits.has(Habit::HalfSelector) && half_is_there
    }

    /// The upper half of the slot is what it was before.
    fn half_push(&self, other: &mut Other) {
        let pushes = self.instruction.mnemonic() == Mnemonic::Push;
        let has_pushed = other.state.gpr[4] == self.case.state.gpr[4].wrapping_sub(4);
        if !(self.is_single && is_long_selector(self.instruction.code()) && pushes && has_pushed) {
            return;
        }
        let slot = segment_base(Register::SS, &other.state).wrapping_add(other.state.gpr[4]);
        for byte in 2..4 {
            if let Some((_, offset)) = self.layout.locate(slot.wrapping_add(byte)) {
                other.memory[offset] = self.case.memory[offset];
            }
        }
    }

    /// An operand that leaves its segment at 4 GiB may be found missing instead, where it lies. So
    /// may an instruction itself: at address 0, where there is nothing.
    fn wrap_around(&self, other: &mut Other) {
        let Stop::End(End::Exception { vector: 14, address, .. }) = self.processor.stop else {
            return;
        };
        let leaves =
            matches!(other.stop, Stop::End(End::Exception { vector: 12 | 13, error: 0, .. }));
        const LONGEST: u32 = 15;
        let fetch_wraps = other.state.eip > u32::MAX - LONGEST;
        let operands = operands(self.instruction, &other.state);
        let touched = operands.iter().flat_map(Operand::addresses).any(|byte| byte == address);
        let wraps = operands.iter().any(Operand::wraps) && touched;
        if leaves && (wraps || fetch_wraps && address == 0) {
            other.stop = self.processor.stop;
        }
    }

    /// The flags are those from before a repeated comparison that isn't through. Of a program nobody
    /// knows which these were.
    fn flags_at_the_end(&self, other: &mut Other) {
        let on_its_way = match other.stop {
            Stop::End(End::Exception { vector: 1, .. }) => self.is_single,
            stop => fault(stop).is_some(),
        };
        if !(is_repeated_comparison(self.instruction) && on_its_way) {
            return;
        }
        if !self.is_single {
            other.state.eflags = self.processor.state.eflags;
        } else if other.state.eip == self.case.state.eip {
            let before = self.case.state.eflags & ARITHMETIC_FLAGS;
            other.state.eflags = other.state.eflags & !ARITHMETIC_FLAGS | before;
        }
    }

    /// TOP is 0, and each register is where it was.
    fn top_before_fault(&self, other: &mut Other) {
        let instruction = self.instruction;
        let stores = instruction.op0_kind() == OpKind::Memory && instruction.op1_register().is_mm();
        if stores && fault(other.stop).is_some() {
            other.state.fx = other.state.fx.with_top_0();
        }
    }

    /// Instead of a fault there may be an x87 exception, which the next instruction will raise.
    fn no_store_no_fault(&self, other: &mut Other) {
        let behind = self.case.state.eip.wrapping_add(self.instruction.len() as u32);
        let theirs = &self.processor.state;
        // Single-stepped, or at the breakpoint that follows.
        let went_on = match self.processor.stop {
            Stop::End(End::Exception { vector: 1, .. }) => theirs.eip == behind,
            Stop::End(End::Exception { vector: 3, .. }) => theirs.eip == behind.wrapping_add(1),
            _ => false,
        };
        let status = theirs.fx.u16(FxImage::STATUS);
        let raised = status & !other.state.fx.u16(0) & 0x3f;
        let stores = is_x87_store(self.instruction) && fault(other.stop).is_some();
        if self.is_single && stores && went_on && raised != 0 {
            other.stop = self.processor.stop;
            other.state.eip = theirs.eip;
            // B, C1, ES, SF and the exceptions.
            const REPORTS: u16 = 0x82ff;
            let ours = other.state.fx.u16(FxImage::STATUS);
            let status = ours & !REPORTS | status & REPORTS;
            let at = FxImage::STATUS;
            other.state.fx.0[at..at + 2].copy_from_slice(&status.to_le_bytes());
        }
    }

    /// What a long store was to fill may hold anything when it faults.
    fn store_in_parts(&self, other: &mut Other) {
        let instruction = self.instruction;
        let stores = instruction.op0_kind() == OpKind::Memory
            && instruction.memory_size().size() > 8
            && (is_x87_store(instruction) || instruction.op1_register().is_xmm());
        if !stores || fault(other.stop).is_none() {
            return;
        }
        let operands = operands(instruction, &other.state);
        for address in operands.iter().flat_map(Operand::addresses) {
            if let Some((_, offset)) = self.layout.locate(address) {
                other.memory[offset] = self.processor.memory[offset];
            }
        }
    }

    /// Of two operands that fault it's the one at edi, in es, that is reported.
    fn edi_first(&self, other: &mut Other) {
        let operands = operands(self.instruction, &other.state);
        let is_at = |address, register| {
            let found = |operand: &&Operand| operand.base.full_register32() == register;
            operands.iter().find(found).is_some_and(|operand| operand.start == address)
        };
        // Whether it can be about the operand of this register.
        let is_of = |stop, register| match stop {
            Stop::End(End::Exception { vector: 14, address, .. }) => is_at(address, register),
            Stop::End(End::Exception { vector: 12, error: 0, .. }) => register == Register::ESI,
            Stop::End(End::Exception { vector: 13, error: 0, .. }) => true,
            _ => false,
        };
        let theirs = self.processor.stop;
        let is_it = is_repeated_comparison(self.instruction)
            && self.instruction.mnemonic() == Mnemonic::Cmpsb;
        if is_it && is_of(other.stop, Register::ESI) && is_of(theirs, Register::EDI) {
            other.stop = theirs;
        }
    }

    /// An index below the lower bound is #BR, even if there is no upper bound to be had.
    fn bound_in_parts(&self, other: &mut Other) {
        let instruction = self.instruction;
        if instruction.mnemonic() != Mnemonic::Bound || fault(other.stop).is_none() {
            return;
        }
        let operands = operands(instruction, &other.state);
        let size = instruction.op0_register().size() as u32;
        let Some(operand) = operands.first() else { return };
        let mut lower = 0_u32;
        for at in (0..size).rev() {
            let found = self.layout.locate(operand.start.wrapping_add(at));
            let Some((_, offset)) = found else { return };
            lower = lower << 8 | u32::from(other.memory[offset]);
        }
        let index = number(instruction.op0_register()).map_or(0, |index| other.state.gpr[index]);
        let signed = |value: u32| if size == 2 { (value as i16).into() } else { value as i32 };
        if signed(index) < signed(lower) {
            other.stop = Stop::End(End::Exception { vector: 5, error: 0, address: 0 });
        }
    }
}

/// #SS, #GP or #PF.
fn fault(stop: Stop) -> Option<u8> {
    match stop {
        Stop::End(End::Exception { vector: vector @ 12..=14, .. }) => Some(vector),
        _ => None,
    }
}

fn is_repeated_comparison(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let compares = matches!(
        instruction.mnemonic(),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Scasb | M::Scasw | M::Scasd
    );
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    compares && instruction.is_string_instruction() && repeats
}

/// Where the 32-bit slot is, in the stack's segment, that an instruction pushes a selector to or pops one
/// from. Our segments and pages all end where a page does.
fn selector_slot(instruction: &Instruction, state: &State) -> Option<u32> {
    let esp = state.gpr[4];
    match instruction.code() {
        Code::Retfd | Code::Retfd_imm16 => Some(esp.wrapping_add(4)),
        code if !is_long_selector(code) => None,
        _ if instruction.mnemonic() == Mnemonic::Push => Some(esp.wrapping_sub(4)),
        _ => Some(esp),
    }
}

/// Stores a number from an x87 register to memory.
fn is_x87_store(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let stores = matches!(
        instruction.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    );
    stores && instruction.op0_kind() == OpKind::Memory
}

/// A place that an instruction touches.
struct Operand {
    /// The register it is found by.
    base: Register,
    /// Where it lies in its segment.
    offset: u32,
    /// Where it lies in memory.
    start: u32,
    size: u32,
}

impl Operand {
    /// Whether it crosses offset 4 GiB.
    fn wraps(&self) -> bool {
        u64::from(self.offset) + u64::from(self.size) > 1 << 32
    }

    fn addresses(&self) -> impl Iterator<Item = u32> {
        let start = self.start;
        (0..self.size).map(move |byte| start.wrapping_add(byte))
    }
}

/// What an instruction touches, the stack included.
fn operands(instruction: &Instruction, state: &State) -> Vec<Operand> {
    let value = |register: Register| match number(register) {
        Some(index) => state.gpr[index].into(),
        // Bases of segments are added afterwards.
        None => 0,
    };
    // Of a repeated string instruction it is the next step's that matter.
    let mut step = *instruction;
    step.set_has_rep_prefix(false);
    step.set_has_repne_prefix(false);
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(&step).used_memory().iter();
    used.filter_map(|used| {
        let offset = used.virtual_address(0, |register, _, _| Some(value(register)))? as u32;
        let offset = offset.wrapping_add(bit_string_offset(instruction, state));
        let start = segment_base(used.segment(), state).wrapping_add(offset);
        Some(Operand { base: used.base(), offset, start, size: used.memory_size().size() as u32 })
    })
    .collect()
}

/// How far from its operand `bt` with a register looks.
fn bit_string_offset(instruction: &Instruction, state: &State) -> u32 {
    use Mnemonic as M;
    let is_bit_string = matches!(instruction.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && instruction.op1_kind() == OpKind::Register;
    let Some(index) = number(instruction.op1_register()).filter(|_| is_bit_string) else {
        return 0;
    };
    match instruction.op1_register().size() {
        2 => ((i32::from(state.gpr[index] as i16) >> 4) * 2) as u32,
        _ => ((state.gpr[index] as i32 >> 5) * 4) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Instance;
    use crate::world::{STACK, World};

    /// `push ds`, after which the Switcher has a whole slot, and the processor this one.
    fn is_forgiven(habits: &Habits, slot: [u8; 4]) -> bool {
        let world = World::new(&mut crate::random::Random::new(1));
        let instruction = &Instance::decode(&[0x1e], 0).expect("push ds").instruction;
        let (layout, at) = (&world.layout, world.layout.locate(STACK).expect("a page").1);
        let mut state = State::default();
        state.gpr[4] = STACK + 4;
        let mut case = Case { state, memory: world.memory };
        case.memory[at..at + 4].fill(0x5a);
        state.gpr[4] = STACK;
        let (mut ours, mut theirs) = (case.memory.clone(), case.memory.clone());
        ours[at..at + 4].copy_from_slice(&[0x2b, 0, 0, 0]);
        theirs[at..at + 4].copy_from_slice(&slot);
        let stop = Stop::End(End::Exception { vector: 3, error: 0, address: 0 });
        let processor = &Seen { stop, state, memory: &theirs };
        let case = &case;
        let leeway = Leeway { habits, layout, case, instruction, is_single: true, processor };
        leeway.other(&Seen { stop, state, memory: &ours }).memory == theirs
    }

    #[test]
    fn a_habit_excuses_what_it_is_and_nothing_else() {
        let has = Habits::from(vec![Habit::HalfSelector]);
        assert!(is_forgiven(&has, [0x2b, 0, 0x5a, 0x5a]));
        assert!(!is_forgiven(&has, [0x2b, 0, 0x5a, 0]));
        assert!(!is_forgiven(&has, [0x2b, 0x5a, 0x5a, 0x5a]));
        assert!(!is_forgiven(&Habits::default(), [0x2b, 0, 0x5a, 0x5a]));
        assert!(!is_forgiven(&Habits::from(vec![Habit::WrapAround]), [0x2b, 0, 0x5a, 0x5a]));
    }
}
