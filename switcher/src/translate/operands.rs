//! Instructions that are encoded again, and where their memory operand comes to lie.
//!
//! | reach | emitted operand |
//! |---|---|
//! | window | `gs:[eax+ecx*4+8]` with 32-bit address size: it wraps where the guest's would |
//! | window, a lone register but esp | `[r14+rax]`, which saves a cycle |
//! | picked | `[r10+r9]`: the address in r9d, in r10 the window for its top byte |
//! | segment | `[r10+r9]`: the base added in 32 bits, in r10 the segment's window |
//! | bounced | `[r15+n]`: the frame's bounce buffer, between two exits |
//!
//! A segment with a limit to check has a poisoned window, so that every access reaches Rust.
//!
//! No operand relative to r14 or r10 has a displacement or a scale: a sum of 64 bits could
//! leave the window.

use super::Route;
use super::assembler::{Assembler, Place, Reg, Sum, Width};
use super::stubs::{EXIT_WITH_BYTES, exit, exit_with};
use super::unit::Translator;
use crate::frame::{Reason, offset};
use iced_x86::{
    Code, CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

/// How a memory operand is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Window,
    Picked,
    /// Through a segment that isn't known to be flat: es, cs, ss, ds, fs, gs.
    Segment(usize),
    Bounced,
}

impl Translator<'_> {
    /// An instruction that exists in both modes.
    pub(super) fn native(&mut self, instruction: &Instruction, route: Route) {
        let instruction = &self.with_esp_moved(instruction);
        let mut host = host_form(instruction);
        if !has_memory(instruction) {
            self.encode_with_high_bytes(host);
            return;
        }
        let bounced = self.is_bounced(instruction, route);
        match self.reach(instruction, route) {
            // It never faults, wherever its operand is, so it need not be done there.
            reach if reach != Reach::Window && is_prefetch(instruction) => self.hot.nop(),
            _ if bounced => self.bounced(instruction),
            reach => {
                self.place(&mut host, instruction, reach);
                self.encode_with_high_bytes(host);
                self.watch(instruction, reach);
            }
        }
    }

    /// Whether Rust carries a native instruction's operand, which is in memory, to the bounce buffer and back.
    pub(super) fn is_bounced(&self, instruction: &Instruction, route: Route) -> bool {
        // Only Rust knows how the two pieces of such an operand wrap at 64 KiB.
        let wraps = uses_16bit_address(instruction) && instruction.memory_size().size() == 10;
        wraps || self.reach(instruction, route) == Reach::Bounced
    }

    /// `lea`: the sum itself is the result.
    pub(super) fn lea(&mut self, instruction: &Instruction) {
        let instruction = &self.with_esp_moved(instruction);
        let to = host_register(instruction.op0_register());
        let word = instruction.op0_register().size() == 2;
        let width = if word { Width::Word } else { Width::Dword };
        let sum = sum(instruction);
        if uses_16bit_address(instruction) {
            self.address_to_r9(instruction);
            self.hot.copy(width, to, Reg::R9);
        } else if sum.base.is_some() || sum.index.is_some() {
            self.hot.lea(width, to, sum);
        } else if word {
            self.hot.constant_word(to, sum.displacement as u16);
        } else {
            self.hot.constant(to, sum.displacement as u32);
        }
    }

    /// `xlat`: an index that no other instruction can have.
    pub(super) fn table_lookup(&mut self, instruction: &Instruction, route: Route) {
        let usual = instruction.memory_base() == Register::EBX;
        if usual && self.reach(instruction, route) == Reach::Window {
            let mut host = host_form(instruction);
            host.set_segment_prefix(Register::GS);
            self.encode(&host);
        } else {
            self.emulated(instruction);
        }
    }

    /// `maskmovq` and `maskmovdqu`, which store at edi.
    pub(super) fn masked_store(&mut self, instruction: &Instruction, route: Route) {
        let usual = instruction.op0_kind() == OpKind::MemorySegEDI;
        if usual && self.reach(instruction, route) == Reach::Window {
            let mut host = host_form(instruction);
            host.set_segment_prefix(Register::GS);
            self.encode(&host);
        } else {
            self.bounced_masked_store(instruction);
        }
    }

    /// A masked store between two exits: edi is the buffer's address for the one instruction.
    fn bounced_masked_store(&mut self, instruction: &Instruction) {
        let eip = instruction.ip32();
        self.raise_pending(instruction);
        let body = self.hot.here().wrapping_add(EXIT_WITH_BYTES);
        exit_with(&mut self.hot, Reason::Bounce, eip, body);
        self.hot.copy(Width::Dword, Reg::R13, Reg::EDI);
        self.hot.lea(Width::Qword, Reg::EDI, Sum::plus(Reg::FRAME, offset::BOUNCE));
        let mut host = host_form(instruction);
        host.set_op0_kind(OpKind::MemorySegRDI);
        self.encode(&host);
        self.hot.copy(Width::Dword, Reg::EDI, Reg::R13);
        exit(&mut self.hot, Reason::BounceDone, eip);
    }

    /// A pending x87 exception comes before anything about the operand: `fwait` raises it, for
    /// the instructions that would.
    fn raise_pending(&mut self, instruction: &Instruction) {
        if waits_for_x87(instruction) {
            self.hot.raw(&[0x9b]);
        }
    }

    /// An instruction between two exits: Rust fills the bounce buffer before and empties it
    /// afterwards.
    pub(super) fn bounced(&mut self, instruction: &Instruction) {
        debug_assert_eq!(self.moved, 0, "Rust wants esp in r12d");
        let eip = instruction.ip32();
        let mut host = host_form(instruction);
        self.raise_pending(instruction);
        let body = self.hot.here().wrapping_add(EXIT_WITH_BYTES);
        exit_with(&mut self.hot, Reason::Bounce, eip, body);
        debug_assert_eq!(self.hot.here(), body);
        if super::bit_strings::is_bit_string(instruction) {
            self.hot.load(Width::Dword, Reg::R9, Place::Frame(offset::BOUNCE_BIT));
            super::bit_strings::set_bit_register(&mut host, Reg::R9);
        }
        host.set_memory_base(Register::R15);
        host.set_memory_index(Register::None);
        host.set_memory_index_scale(1);
        host.set_memory_displacement64(offset::BOUNCE as u64);
        host.set_memory_displ_size(8);
        self.encode_with_high_bytes(host);
        exit(&mut self.hot, Reason::BounceDone, eip);
    }

    /// `r13 = operand`, for an instruction whose one operand is in memory. Not for
    /// [`Reach::Bounced`].
    pub(super) fn load_to_r13(&mut self, instruction: &Instruction, reach: Reach, width: Width) {
        let mut host = host_form(instruction);
        let (code, register) = match width {
            Width::Word => (Code::Mov_r16_rm16, Register::R13W),
            Width::Dword | Width::Qword => (Code::Mov_r32_rm32, Register::R13D),
        };
        host.set_code(code);
        host.set_op0_kind(OpKind::Register);
        host.set_op0_register(register);
        host.set_op1_kind(OpKind::Memory);
        self.place(&mut host, instruction, reach);
        self.encode(&host);
    }

    /// `operand = r13`, for an instruction whose one operand is in memory. Not for
    /// [`Reach::Bounced`].
    pub(super) fn store_from_r13(&mut self, instruction: &Instruction, reach: Reach, width: Width) {
        let mut host = host_form(instruction);
        let (code, register) = match width {
            Width::Word => (Code::Mov_rm16_r16, Register::R13W),
            Width::Dword | Width::Qword => (Code::Mov_rm32_r32, Register::R13D),
        };
        host.set_code(code);
        host.set_op1_kind(OpKind::Register);
        host.set_op1_register(register);
        self.place(&mut host, instruction, reach);
        self.encode(&host);
    }

    /// Decides how the memory operand is reached.
    pub(super) fn reach(&self, instruction: &Instruction, route: Route) -> Reach {
        let segment = instruction.memory_segment();
        let based = matches!(segment, Register::FS | Register::GS);
        let flat = self.request.assumptions.flat && !based;
        match route {
            Route::Bounced => Reach::Bounced,
            // Code segments can't be written to: Rust raises the fault.
            _ if segment == Register::CS && writes_memory(instruction) => Reach::Bounced,
            Route::Picked if flat => Reach::Picked,
            Route::Picked => Reach::Bounced,
            Route::Window if flat => Reach::Window,
            Route::Window => Reach::Segment(segment.number()),
        }
    }

    /// Rewrites the memory operand of `host`, after emitting what computes its address.
    pub(super) fn place(&mut self, host: &mut Instruction, guest: &Instruction, reach: Reach) {
        match reach {
            Reach::Window if uses_16bit_address(guest) => {
                self.address_to_r9(guest);
                set_operand(host, Register::R14, Register::R9);
            }
            Reach::Window => place_in_window(host),
            Reach::Picked => {
                self.address_to_r9(guest);
                pick_window(&mut self.hot);
                set_operand(host, Register::R10, Register::R9);
            }
            Reach::Segment(segment) => {
                self.address_to_r9(guest);
                add_segment(&mut self.hot, segment, self.request.assumptions.user);
                set_operand(host, Register::R10, Register::R9);
            }
            Reach::Bounced => debug_assert!(false, "bounced operands have a frame of their own"),
        }
    }

    /// `r9d = the operand's offset`, as the address size has it.
    pub(super) fn address_to_r9(&mut self, instruction: &Instruction) {
        let sum = sum(instruction);
        if sum.base.is_none() && sum.index.is_none() {
            self.hot.constant(Reg::R9, sum.displacement as u32);
            return;
        }
        self.hot.lea(Width::Dword, Reg::R9, sum);
        if uses_16bit_address(instruction) {
            self.hot.zero_extend_word(Reg::R9, Reg::R9);
        }
    }

    /// Behind a store to a watched address: a look at whether something is pending.
    pub(super) fn watch(&mut self, instruction: &Instruction, reach: Reach) {
        let Some((start, end)) = self.request.watch else { return };
        let absolute = instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None;
        if reach != Reach::Window || !absolute || !writes_memory(instruction) {
            return;
        }
        let first = u64::from(sum(instruction).displacement as u32);
        let size = instruction.memory_size().size().max(1) as u64;
        if first < u64::from(end) && first + size > u64::from(start) {
            let leave = self.leave_if(offset::PENDING);
            self.hot.close(leave, self.cold.here());
            exit(&mut self.cold, Reason::Watched, instruction.next_ip32());
        }
    }
}

/// `r10 = the window for the guest address in r9d`
pub(super) fn pick_window(out: &mut Assembler) {
    out.rotate_right(Reg::R10, Reg::R9, 24);
    out.zero_extend_byte(Reg::R10, Reg::R10);
    out.load_indexed(Reg::R10, offset::PICK, Reg::R10);
}

/// `r9d += the segment's base; r10 = the segment's window`
pub(super) fn add_segment(out: &mut Assembler, segment: usize, user: bool) {
    out.load(Width::Dword, Reg::R10, Place::Frame(offset::segment_base(segment)));
    out.lea(Width::Dword, Reg::R9, Sum::of(Reg::R9, Reg::R10, 0));
    out.load(Width::Qword, Reg::R10, Place::Frame(offset::segment_window(segment, user)));
}

/// The same instruction with host registers, without prefixes that have no meaning here, and in
/// a form that 64-bit mode has. Its memory operand is still the guest's.
pub(super) fn host_form(guest: &Instruction) -> Instruction {
    let mut host = *guest;
    host.set_code(form_in_64bit_mode(guest.code()));
    host.set_segment_prefix(Register::None);
    // As a lock hint or a repeat count that nothing repeats by.
    host.set_has_rep_prefix(false);
    host.set_has_repne_prefix(false);
    for operand in 0..guest.op_count() {
        if guest.op_kind(operand) == OpKind::Register {
            match guest.op_register(operand) {
                Register::ESP => host.set_op_register(operand, Register::R12D),
                Register::SP => host.set_op_register(operand, Register::R12W),
                _ => {}
            }
        }
    }
    host
}

/// Opcodes that 64-bit mode has reused, or understands with 64-bit offsets, have a longer form.
fn form_in_64bit_mode(code: Code) -> Code {
    use Code as C;
    match code {
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r32 => C::Dec_rm32,
        C::Inc_r16 => C::Inc_rm16,
        C::Dec_r16 => C::Dec_rm16,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Add_rm8_imm8_82 => C::Add_rm8_imm8,
        C::Or_rm8_imm8_82 => C::Or_rm8_imm8,
        C::Adc_rm8_imm8_82 => C::Adc_rm8_imm8,
        C::Sbb_rm8_imm8_82 => C::Sbb_rm8_imm8,
        C::And_rm8_imm8_82 => C::And_rm8_imm8,
        C::Sub_rm8_imm8_82 => C::Sub_rm8_imm8,
        C::Xor_rm8_imm8_82 => C::Xor_rm8_imm8,
        C::Cmp_rm8_imm8_82 => C::Cmp_rm8_imm8,
        _ => code,
    }
}

/// An operand that stays a guest address, within the window by gs and 32-bit address size.
fn place_in_window(host: &mut Instruction) {
    let (base, index) = (host.memory_base(), host.memory_index());
    let lone = index == Register::None && host.memory_displacement32() == 0;
    if lone
        && !matches!(base, Register::None | Register::ESP)
        && super::high_bytes::high_operand(host).is_none()
    {
        set_operand(host, Register::R14, host_register(base).as_iced());
        return;
    }
    host.set_segment_prefix(Register::GS);
    if base == Register::ESP {
        host.set_memory_base(Register::R12D);
    }
    if base == Register::None && index == Register::None {
        // Four bytes of displacement also say: 32-bit address size.
        host.set_memory_displ_size(4);
    }
}

/// `[base+index]`, in 64 bits.
pub(super) fn set_operand(host: &mut Instruction, base: Register, index: Register) {
    host.set_segment_prefix(Register::None);
    host.set_memory_base(base);
    host.set_memory_index(index);
    host.set_memory_index_scale(1);
    host.set_memory_displacement64(0);
    host.set_memory_displ_size(0);
}

/// The prefetches of SSE.
pub(super) fn is_prefetch(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2)
}

/// Whether an instruction raises a pending x87 exception (SDM volume 1, section "x87 FPU Exception
/// Handling"): all that use x87 or MMX registers, but for the no-wait forms.
fn waits_for_x87(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let no_wait = matches!(instruction.mnemonic(), M::Fnsave | M::Fnstenv | M::Fnstcw | M::Fnstsw);
    let x87 = |feature: &CpuidFeature| {
        use CpuidFeature as F;
        matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::MMX)
    };
    let mmx = (0..instruction.op_count()).any(|at| instruction.op_register(at).is_mm());
    !no_wait && (mmx || instruction.cpuid_features().iter().any(x87))
}

/// Whether an operand names memory.
pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Whether the instruction may write to its memory operand.
pub(super) fn writes_memory(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    factory.info(instruction).used_memory().iter().any(|memory| {
        matches!(
            memory.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    })
}

/// The 67 prefix: offsets of 16 bits.
pub(super) fn uses_16bit_address(instruction: &Instruction) -> bool {
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => instruction.memory_displ_size() == 2,
        (Register::None, register) | (register, _) => register.size() == 2,
    }
}

/// What the operand's offset is the sum of. In 16-bit addressing the sum is still to be cut.
fn sum(instruction: &Instruction) -> Sum {
    let register =
        |register: Register| (register != Register::None).then(|| host_register(register));
    Sum {
        base: register(instruction.memory_base()),
        index: register(instruction.memory_index()),
        shift: instruction.memory_index_scale().trailing_zeros() as u8,
        displacement: instruction.memory_displacement32() as i32,
    }
}

/// The host's register for a guest's, of any size but 8 bits.
pub(super) fn host_register(register: Register) -> Reg {
    match register {
        Register::ESP | Register::SP => Reg::STACK,
        _ => Reg(register.number() as u8),
    }
}
