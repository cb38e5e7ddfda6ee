//! From a plan to host code: the unit, instruction by instruction.
//!
//! Code goes into two pieces. *Hot* code is what normally runs, in guest order; *cold* code is
//! exits that are seldom taken, out of the way of the processor's fetcher.

use super::assembler::{Assembler, OpenJump, Reg};
use super::classify::Way;
use super::leaf::WayOut;
use super::peel::Turn;
use super::plan::{End, Plan, Step, is_too_long, plan};
use super::stubs::{Tail, exception_stub, exit, exit_with, go_to_tail};
use super::{NeedsMore, Pace, Point, Request, Route, Unit};
use crate::frame::{Reason, offset};
use iced_x86::{Encoder, Instruction};

/// Units begin at a multiple of this.
const UNIT_ALIGNMENT: u32 = 16;

/// Loop heads begin at a multiple of this, a cache line: a tight loop across two ran half as fast.
const LOOP_ALIGNMENT: u32 = 64;

/// #BP (SDM volume 3, table "Protected-Mode Exceptions and Interrupts").
const BREAKPOINT: u32 = 3;
/// #UD.
const INVALID_OPCODE: u32 = 6;
/// #GP with error code 0, as [`Frame::detail`](crate::frame::Frame::detail) has it.
const PROTECTION: u32 = 13 | 1 << 8;

/// Translates the unit that begins at `request.eip`.
///
/// # Errors
/// When its first instruction runs over the end of the bytes: ask again with `straddles`.
pub(crate) fn translate(request: &Request<'_>) -> Result<Unit, NeedsMore> {
    let plan = plan(request)?;
    let mut translator = Translator::new(request, plan.steps.len());
    for (at, step) in plan.steps.iter().enumerate() {
        translator.begin(step, at == 0);
        translator.one(step);
    }
    let unit = translator.finish(&plan);
    #[cfg(debug_assertions)]
    super::confinement::assert_confined(&unit);
    Ok(unit)
}

/// A unit in the making.
pub(super) struct Translator<'r> {
    pub(super) request: &'r Request<'r>,
    pub(super) hot: Assembler,
    pub(super) cold: Assembler,
    encoder: Encoder,
    points: Vec<Point>,
    /// What is still to be added to r12d for the guest's esp: see [`super::stack`].
    pub(super) moved: i8,
    /// Cache offset of the rounds behind a loop's first: see [`super::peel`].
    pub(super) other_rounds: u32,
    /// The first round's jump over the others.
    pub(super) over_rounds: Option<OpenJump>,
    /// Branches out of leaves: see [`super::leaf`].
    pub(super) ways_out: Vec<WayOut>,
    /// The instructions of leaves.
    pub(super) elsewhere: Vec<(u32, u8)>,
    /// Jumps to guest addresses that the unit's end decides.
    branches: Vec<(OpenJump, u32)>,
}

impl<'r> Translator<'r> {
    fn new(request: &'r Request<'r>, steps: usize) -> Self {
        Self {
            request,
            hot: Assembler::new(request.hot, steps * 16 + 64),
            cold: Assembler::new(request.cold, steps * 8 + 32),
            encoder: Encoder::new(64),
            points: Vec::with_capacity(steps + 1),
            moved: 0,
            other_rounds: 0,
            over_rounds: None,
            ways_out: Vec::new(),
            elsewhere: Vec::new(),
            branches: Vec::new(),
        }
    }

    fn begin(&mut self, step: &Step, first: bool) {
        if !self.may_stay_moved(step) {
            self.settle_stack();
        }
        if first {
            self.hot.align(UNIT_ALIGNMENT);
        } else if step.loop_head || step.turn == Turn::Head {
            self.hot.align(LOOP_ALIGNMENT);
        }
        if step.turn == Turn::Head {
            self.other_rounds = self.hot.here();
        }
        self.point(Point {
            host: self.hot.here(),
            eip: step.eip(),
            len: step.instruction.len() as u8,
            entry: step.entry && self.moved == 0,
            inlined: false,
            moved: self.moved,
            rep: step.class.way == Way::String && super::strings::is_repeated(&step.instruction),
        });
    }

    pub(super) fn point(&mut self, point: Point) {
        self.points.push(point);
    }

    /// One instruction.
    fn one(&mut self, step: &Step) {
        let instruction = &step.instruction;
        if step.checks_fpu {
            self.check_fpu(instruction);
        }
        let route = self.route(step);
        match step.class.way {
            Way::Native => self.native(instruction, route),
            Way::Nothing => self.hot.nop(),
            Way::Lea => self.lea(instruction),
            Way::BitString => self.bit_string(instruction, route),
            Way::Environment => self.bounced(instruction),
            Way::MaskedStore => self.masked_store(instruction, route),
            Way::SegmentRead => self.segment_read(instruction),
            Way::SegmentLoad => self.segment_load(instruction, route),
            Way::Timestamp => self.timestamp(instruction),
            Way::TableLookup => self.table_lookup(instruction, route),
            Way::Push => self.push(instruction, route),
            Way::Pop => self.pop(instruction, route),
            Way::Leave => self.leave(instruction, route),
            Way::Call => self.call(instruction, route),
            Way::Jump => self.jump(instruction, route),
            Way::Return => self.ret(instruction, route),
            Way::Conditional => self.conditional(instruction, step.turn),
            Way::Counted => self.counted(instruction),
            Way::String => self.string(instruction, route),
            Way::Emulated | Way::EmulatedTransfer => self.emulated(instruction),
            Way::InterruptReturn => self.interrupt_return(instruction),
            Way::Breakpoint => self.interrupt(instruction, BREAKPOINT),
            Way::Interrupt => self.interrupt(instruction, instruction.immediate8().into()),
            Way::Undefined if is_too_long(instruction, self.bytes_at(instruction)) => {
                self.exception(instruction.ip32(), PROTECTION);
            }
            Way::Undefined => self.exception(instruction.ip32(), INVALID_OPCODE),
        }
    }

    /// How an instruction's memory operand, or the stack, is reached.
    pub(super) fn route(&self, step: &Step) -> Route {
        match self.request.assumptions.pace {
            Pace::Free | Pace::Step => (self.request.learned)(step.eip()),
            Pace::Alone => Route::Bounced,
        }
    }

    /// The guest code from `instruction` on.
    fn bytes_at(&self, instruction: &Instruction) -> &'r [u8] {
        let at = instruction.ip32().wrapping_sub(self.request.eip) as usize;
        self.request.bytes.get(at..).unwrap_or_default()
    }

    /// A software interrupt: beside the vector, the instruction's length is told. User code's may be a system call, for which
    /// there may be a gate.
    fn interrupt(&mut self, instruction: &Instruction, vector: u32) {
        let detail = vector | (instruction.len() as u32) << 8;
        let tail = if self.passes_gates() && self.request.assumptions.user {
            Tail::CallGate
        } else {
            Tail::Exit(Reason::Interrupt)
        };
        self.hot.constant(Reg::R9, detail);
        self.hot.constant(Reg::R13, instruction.next_ip32());
        go_to_tail(&mut self.hot, tail);
    }

    /// `iretd`, for which there may be a gate out of the kernel.
    fn interrupt_return(&mut self, instruction: &Instruction) {
        let tail = if self.passes_gates() && !self.request.assumptions.user {
            Tail::ReturnGate
        } else {
            Tail::Exit(Reason::Sensitive)
        };
        self.hot.constant(Reg::R13, instruction.ip32());
        go_to_tail(&mut self.hot, tail);
    }

    /// What lies behind a gate takes flat segments for granted, and doesn't stop.
    fn passes_gates(&self) -> bool {
        self.request.assumptions.flat && !self.request.assumptions.is_single()
    }

    /// `rdtsc`, if the current level may (CR4.TSD).
    fn timestamp(&mut self, instruction: &Instruction) {
        let leave = self.leave_if(offset::TIMESTAMP_TRAP);
        exception_stub(&mut self.hot, &mut self.cold, leave, PROTECTION, instruction.ip32());
        self.native(instruction, Route::Window);
    }

    fn exception(&mut self, eip: u32, detail: u32) {
        exit_with(&mut self.hot, Reason::Exception, eip, detail);
    }

    /// Rust does the whole instruction.
    pub(super) fn emulated(&mut self, instruction: &Instruction) {
        debug_assert_eq!(self.moved, 0, "Rust wants esp in r12d");
        exit(&mut self.hot, Reason::Sensitive, instruction.ip32());
    }

    /// Encodes a finished host instruction. One that can't be is left to Rust: the classification
    /// promises that there is none, and the tests try them all.
    pub(super) fn encode(&mut self, host: &Instruction) {
        let encoded = self.encoder.encode(host, 0);
        let mut buffer = self.encoder.take_buffer();
        if encoded.is_ok() {
            self.hot.raw(&buffer);
        } else {
            debug_assert!(false, "{:?} of {host:?}", encoded.err());
            self.emulated(host);
        }
        buffer.clear();
        self.encoder.set_buffer(buffer);
    }

    /// A jump in hot or cold code to guest address `target`, to be decided at the end of the unit.
    pub(super) fn branch(&mut self, jump: OpenJump, target: u32) {
        self.branches.push((jump, target));
    }

    fn finish(mut self, plan: &Plan) -> Unit {
        self.settle_stack();
        match plan.end {
            End::Elsewhere => {}
            End::Next(eip) => self.go_to(eip),
            End::Straddler(eip) => self.go_by_table(eip),
        }
        self.leave_leaves();
        for (jump, target) in std::mem::take(&mut self.branches) {
            if let Some(host) = self.inside(target) {
                self.hot.close(jump, host);
                continue;
            }
            let site = if self.request.assumptions.flat { jump.site() } else { 0 };
            self.hot.close(jump, self.cold.here());
            exit_with(&mut self.cold, Reason::Chain, target, site);
        }
        Unit {
            hot: self.hot.finish(),
            cold: self.cold.finish(),
            points: self.points,
            guest_len: plan.guest_len,
            elsewhere: self.elsewhere,
        }
    }

    /// Host offset of an instruction of this unit that may be jumped to.
    fn inside(&self, eip: u32) -> Option<u32> {
        let mut points = self.points.iter();
        points.find(|point| point.eip == eip && point.entry).map(|point| point.host)
    }
}
