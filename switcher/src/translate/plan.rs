//! How far a unit reaches: the guest code is read once before anything is emitted.
//!
//! A unit is a straight run of instructions inside one page. Knowing all of it first tells where
//! loops begin (they are aligned), which checks the one before has already made, and where esp need not be followed at each step.

use super::classify::{Class, Way, classify};
use super::peel::{Turn, peel_loops};
use super::{NeedsMore, Request};
use iced_x86::{
    Code, ConditionCode, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register,
};

/// How many other instructions may stand between two FPU instructions that share one check.
const FPU_GAP: usize = 3;

/// How many instructions a unit has before it goes on in code that exists already. A loop that was entered in its middle is translated
/// again from its head, so that it's in one piece, with one jump a round: what predicts branches remembers a number of jumps.
const BEFORE_JOINING: usize = 12;

/// How many other instructions may stand before the next of a row of pushes and pops.
const ROW_GAP: usize = 3;

/// A decoder of guest code that takes no byte for more than our processor knows: the prefix of
/// `tzcnt`, `lzcnt` and `wbnoinvd` is one that `bsf`, `bsr` and `wbinvd` ignore.
pub(crate) fn decoder(bytes: &[u8], eip: u32) -> Decoder<'_> {
    const OLD: u32 =
        DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;
    Decoder::with_ip(32, bytes, u64::from(eip), OLD)
}

/// One guest instruction of a unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) instruction: Instruction,
    pub(super) class: Class,
    /// A backward branch of this unit leads here.
    pub(super) loop_head: bool,
    /// Begins with the look at CR0.TS.
    pub(super) checks_fpu: bool,
    /// Can be jumped to from anywhere.
    pub(super) entry: bool,
    /// Belongs to a row of pushes and pops: what it needs of esp can be counted from where esp was before.
    pub(super) in_row: bool,
    /// Its place in a loop whose first round is translated by itself.
    pub(super) turn: Turn,
}

impl Step {
    /// The instruction's address.
    pub(super) fn eip(&self) -> u32 {
        self.instruction.ip32()
    }
}

/// What comes behind a unit's last instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Nothing: it goes elsewhere.
    Elsewhere,
    /// The instruction at this address.
    Next(u32),
    /// The instruction at this address, which runs over the end of the page.
    Straddler(u32),
}

/// A unit before it is translated.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// Bytes of guest code.
    pub(super) guest_len: u32,
}

/// Reads the unit that begins at the request's eip.
pub(super) fn plan(request: &Request<'_>) -> Result<Plan, NeedsMore> {
    let single = request.straddles || request.assumptions.is_single();
    let longest = if single { 1 } else { request.longest };
    let mut decoder = decoder(request.bytes, request.eip);
    let mut steps: Vec<Step> = Vec::with_capacity(32);
    let end = loop {
        let eip = decoder.ip() as u32;
        let begun = !steps.is_empty();
        let joins = || steps.len() >= BEFORE_JOINING && (request.known)(eip).is_some();
        let stops = || joins() || request.breakpoints.contains(&eip) || !decoder.can_decode();
        if steps.len() == longest || begun && stops() {
            break End::Next(eip);
        }
        let instruction = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            if begun {
                break End::Straddler(eip);
            }
            return Err(NeedsMore);
        }
        let class = classify(instruction.code());
        steps.push(Step {
            instruction,
            class,
            loop_head: false,
            checks_fpu: false,
            entry: true,
            in_row: false,
            turn: Turn::None,
        });
        if !class.way.falls_through() {
            break End::Elsewhere;
        }
    };
    let targets = note_branch_targets(&mut steps);
    share_fpu_checks(&mut steps, &targets);
    note_rows(&mut steps, &targets, request.watch.is_some());
    let guest_len = steps.iter().map(|step| step.instruction.len() as u32).sum();
    if !single {
        peel_loops(&mut steps, &targets);
    }
    Ok(Plan { steps, end, guest_len })
}

/// Where a direct branch goes.
pub(super) fn direct_target(instruction: &Instruction) -> Option<u32> {
    match instruction.op0_kind() {
        OpKind::NearBranch32 => Some(instruction.near_branch32()),
        _ => None,
    }
}

/// The condition of a `jcc`, as the low four bits of its opcode have it.
pub(super) fn condition(instruction: &Instruction) -> u8 {
    (instruction.condition_code() as u8).wrapping_sub(ConditionCode::o as u8)
}

/// The instructions of the unit that direct branches of the unit lead to, loop heads marked.
fn note_branch_targets(steps: &mut [Step]) -> Vec<bool> {
    let mut targets = vec![false; steps.len()];
    for source in 0..steps.len() {
        let Some(target) = direct_target(&steps[source].instruction) else { continue };
        if let Ok(at) = steps.binary_search_by_key(&target, Step::eip) {
            targets[at] = true;
            steps[at].loop_head |= at <= source;
        }
    }
    targets
}

/// Decides which FPU instructions look at CR0.TS: the first of each group. The others of the
/// group, and what stands between, can then only be reached from it.
fn share_fpu_checks(steps: &mut [Step], targets: &[bool]) {
    let mut checked: Option<usize> = None;
    for at in 0..steps.len() {
        let straight = steps[at].class.way.is_straight() && !targets[at];
        if steps[at].class.fpu {
            match checked {
                Some(last) if straight => {
                    steps[last + 1..=at].iter_mut().for_each(|step| step.entry = false);
                }
                _ => steps[at].checks_fpu = true,
            }
            checked = (steps[at].class.way == Way::Native).then_some(at);
        } else if !straight || checked.is_some_and(|last| at - last > FPU_GAP) {
            checked = None;
        }
    }
}

/// Finds rows of pushes and pops. Other instructions may stand between them, a few, if esp is no more to them than where an
/// operand counts from; the last may be a `call` or a `ret`. `watched`: stores to absolute addresses may leave.
fn note_rows(steps: &mut [Step], targets: &[bool], watched: bool) {
    let mut gap = usize::MAX;
    for (at, step) in steps.iter_mut().enumerate().rev() {
        let instruction = &step.instruction;
        let bystander = matches!(step.class.way, Way::Native | Way::Lea | Way::Nothing)
            && !(watched && is_absolute(instruction));
        gap = match step.class.way {
            _ if step.checks_fpu || names_esp(instruction) => usize::MAX,
            Way::Push | Way::Pop | Way::Call | Way::Return | Way::Leave => {
                let in_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
                if in_memory || !moves_dwords(instruction) { usize::MAX } else { 0 }
            }
            _ if bystander => gap.saturating_add(1),
            _ => usize::MAX,
        };
        step.in_row = gap <= ROW_GAP && !targets[at];
        if !step.in_row {
            gap = usize::MAX;
        }
    }
}

/// esp or its lower half is an operand.
pub(super) fn names_esp(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).full_register32() == Register::ESP
    })
}

/// Its operand in memory is at an address that no register has a part in.
fn is_absolute(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
}

/// What it pushes or pops has 32 bits each.
fn moves_dwords(instruction: &Instruction) -> bool {
    !matches!(instruction.code(), Code::Leavew) && instruction.stack_pointer_increment().abs() != 2
}

/// Whether an instruction that couldn't be decoded was only longer than the 15 bytes that the
/// processor takes (SDM volume 3, "General-Protection Exception"). `bytes` begin with it. The
/// decoder says the same of both kinds, so it is asked again without what prefixes there are too
/// many.
pub(super) fn is_too_long(instruction: &Instruction, bytes: &[u8]) -> bool {
    /// All that change what an instruction is; segments don't.
    const PREFIXES: [u8; 5] = [0xf0, 0x66, 0x67, 0xf2, 0xf3];
    const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    const LONGEST: usize = 15;
    if instruction.code() != Code::INVALID || instruction.len() != LONGEST {
        return false;
    }
    let is_prefix = |byte: &u8| PREFIXES.contains(byte) || SEGMENTS.contains(byte);
    let (prefixes, rest) = bytes.split_at(bytes.iter().take_while(|byte| is_prefix(byte)).count());
    let mut few: Vec<u8> =
        PREFIXES.into_iter().filter(|prefix| prefixes.contains(prefix)).collect();
    let dropped = prefixes.len() - few.len();
    few.extend(rest);
    let mut decoder = decoder(&few, 0);
    let shorter = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
        || classify(shorter.code()).way != Way::Undefined && shorter.len() + dropped > LONGEST
}
