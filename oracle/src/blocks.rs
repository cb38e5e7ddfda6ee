//! Random programs: pieces of straight code joined by branches, calls, returns, loops and
//! indirect jumps, with code that changes itself now and then.
//!
//! Straight code is made of random instances of the tested forms. So that a program lives for more
//! than a few instructions, ebx and ebp point into memory and are never changed, most operands go
//! through them, and each loop burns fuel from a counter that nothing else touches.

use crate::forms::{self, Class};
use crate::habits::Habits;
use crate::instance::Instance;
use crate::placing::any_address;
use crate::random::Random;
use crate::state::{ARITHMETIC_FLAGS, Case, DATA_SELECTOR, FxImage, State};
use crate::values::{any_fx, any_word};
use crate::world::{CODE, DATA, STACK, TOP, World};
use iced_x86::{Code, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// What ebx holds throughout: in the middle of a page.
const EBX: u32 = DATA + 0x840;
/// What ebp holds throughout: where two pages meet.
const EBP: u32 = DATA + 0x1000;
/// Where the fuel is, how much, and a slot for indirect jumps: where random stores seldom go.
const FUEL: u32 = TOP + 0x10;
const FULL: u32 = 60;
const SLOT: u32 = TOP + 0x20;
/// A program is never longer.
const MOST_BYTES: usize = 0xe00;

/// Makes programs.
pub struct Blocks {
    codes: Vec<Code>,
    info: InstructionInfoFactory,
}

/// A program, ready to run.
pub struct Block {
    /// Its start and memory.
    pub case: Case,
    /// Bytes of code.
    pub length: usize,
}

/// A program in the making.
struct Program {
    bytes: Vec<u8>,
    start: u32,
    /// Where each piece starts, as far as it is known.
    pieces: Vec<u32>,
    /// Four bytes to be filled in: where, the piece they name, and whether relative to their end.
    fixups: Vec<(usize, usize, bool)>,
}

impl Program {
    fn here(&self) -> u32 {
        self.start + self.bytes.len() as u32
    }

    fn emit(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// The distance to a piece.
    fn relative(&mut self, piece: usize) {
        self.fixups.push((self.bytes.len(), piece, true));
        self.word(0);
    }

    /// The address of a piece.
    fn absolute(&mut self, piece: usize) {
        self.fixups.push((self.bytes.len(), piece, false));
        self.word(0);
    }

    fn fix(&mut self) {
        for &(at, piece, relative) in &self.fixups {
            let target = self.pieces[piece];
            let end = self.start + at as u32 + 4;
            let value = if relative { target.wrapping_sub(end) } else { target };
            self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

impl Blocks {
    /// A maker of programs for a processor with these habits.
    #[must_use]
    pub fn new(habits: &Habits) -> Self {
        let tested = |&code: &Code| forms::classify(code) == Class::Tested;
        let codes = forms::all().filter(tested).filter(|&code| !habits.forbid_in_programs(code));
        Self { codes: codes.collect(), info: InstructionInfoFactory::new() }
    }

    /// A random program in a random state.
    pub fn make(&mut self, world: &World, random: &mut Random) -> Block {
        let start = CODE + random.below(0x1100);
        let count = 1 + random.below(8) as usize;
        let mut program =
            Program { bytes: Vec::new(), start, pieces: Vec::new(), fixups: Vec::new() };
        for piece in 0..count {
            program.pieces.push(program.here());
            if program.bytes.len() > MOST_BYTES {
                continue;
            }
            // Every piece may be jumped back to, so every piece burns fuel: sub dword [FUEL], 1;
            // js end.
            if piece > 0 && random.one_in(2) || piece == 0 {
                program.emit(&[0x83, 0x2d]);
                program.word(FUEL);
                program.emit(&[1, 0x0f, 0x88]);
                program.relative(count);
            }
            for _ in 0..random.below(7) {
                if random.one_in(10) {
                    self.function(&mut program, random);
                } else {
                    self.instruction(&mut program, random);
                }
            }
            terminate(&mut program, piece, count, random);
        }
        program.pieces.push(program.here());
        program.emit(&[0xcc]);
        program.fix();
        let case = start_state(&program, world, random);
        Block { case, length: program.bytes.len() }
    }

    /// A call of a short function that stands right there.
    fn function(&mut self, program: &mut Program, random: &mut Random) {
        program.emit(&[0xe8, 5, 0, 0, 0]); // call it, over the jmp
        program.emit(&[0xe9]); // jmp behind it
        let distance = program.bytes.len();
        program.word(0);
        for _ in 0..random.below(3) {
            self.instruction(program, random);
        }
        if random.one_in(2) {
            program.emit(&[0x70 + random.byte() % 16, 1, 0xc3]); // jcc over a ret
            for _ in 0..random.below(3) {
                self.instruction(program, random);
            }
        }
        program.emit(random.pick(&[&[0xc3_u8][..], &[0xc2, 4, 0]]));
        let length = (program.bytes.len() - distance - 4) as u32;
        program.bytes[distance..distance + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn instruction(&mut self, program: &mut Program, random: &mut Random) {
        if random.one_in(24) {
            return modify_ahead(program, random);
        }
        for _ in 0..50 {
            let code = random.pick(&self.codes);
            let Some(mut instance) = Instance::of(code, program.here(), random) else { continue };
            if !self.is_welcome(&instance, random) {
                continue;
            }
            if instance.instruction.is_string_instruction() {
                for (opcode, value) in [
                    (0xbe, any_address(random)),
                    (0xbf, any_address(random)),
                    (0xb9, random.below(20)),
                ] {
                    program.emit(&[opcode]);
                    program.word(value);
                }
            }
            aim(&mut instance, random);
            program.emit(&instance.bytes);
            return;
        }
    }

    /// Whether an instruction lets a program live on, mostly.
    fn is_welcome(&mut self, instance: &Instance, random: &mut Random) -> bool {
        use Mnemonic as M;
        let instruction = &instance.instruction;
        let rare = matches!(
            instruction.mnemonic(),
            M::Div | M::Idiv | M::Aam | M::Fxrstor | M::Frstor | M::Fldenv | M::Ldmxcsr | M::Fldcw
        );
        let unwelcome = matches!(
            instruction.mnemonic(),
            M::Bound | M::Leave | M::Enter | M::Ud0 | M::Ud1 | M::Ud2 | M::Arpl
        );
        // What these leave in memory or behind a fault isn't the same, and needn't be; and some
        // look into the descriptor tables of the system below.
        #[rustfmt::skip]
        let open = matches!(
            instruction.mnemonic(),
            M::Fnstenv | M::Fnsave | M::Fxsave | M::Maskmovq
                | M::Pusha | M::Pushad | M::Popa | M::Popad | M::Cmpsb | M::Cmpsw | M::Cmpsd
                | M::Verr | M::Verw | M::Lar | M::Lsl
        );
        let unwelcome = unwelcome || open || instruction.flow_control() != FlowControl::Next;
        if unwelcome || rare && !random.one_in(8) || names_segment(instruction) {
            return false;
        }
        let undefined = crate::compare::undefined_flags(instruction);
        if undefined != 0 && !random.one_in(2) {
            return false;
        }
        let info = self.info.info(instruction);
        let keeps = |used: &iced_x86::UsedRegister| {
            let full = used.register().full_register32();
            let kept = matches!(full, Register::EBX | Register::EBP)
                || full == Register::ESP && !instruction.is_stack_instruction();
            let writes = matches!(
                used.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            !(kept && writes)
        };
        info.used_registers().iter().all(keeps) && operand_is_near(instruction, random)
    }
}

fn names_segment(instruction: &iced_x86::Instruction) -> bool {
    use Mnemonic as M;
    let register = |index| instruction.op_register(index);
    matches!(instruction.mnemonic(), M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs)
        || (0..instruction.op_count()).any(|index| register(index).is_segment_register())
}

/// Whether a memory operand goes through registers whose values are known; sometimes it needn't.
fn operand_is_near(instruction: &iced_x86::Instruction, random: &mut Random) -> bool {
    if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) || random.one_in(40) {
        return true;
    }
    let far_bit = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op1_kind() == OpKind::Register;
    let base = matches!(
        instruction.memory_base(),
        Register::EBX | Register::EBP | Register::ESP | Register::None
    );
    base && instruction.memory_index() == Register::None
        && instruction.memory_displ_size() != 2
        && instruction.segment_prefix() != Register::CS
        && !far_bit
}

/// Makes a 32-bit displacement one that hits memory.
fn aim(instance: &mut Instance, random: &mut Random) {
    let instruction = instance.instruction;
    let Some(place) = instance.displacement().filter(|place| place.1 == 4) else { return };
    let base = match instruction.memory_base() {
        Register::EBX => EBX,
        Register::EBP => EBP,
        Register::ESP => STACK + 0x800,
        _ => 0,
    };
    let mut target = DATA + random.below(0x2000 - 0x240);
    if random.one_in(30) {
        target = any_address(random);
    }
    if instruction.memory_size().size() >= 16 && !random.one_in(12) {
        target &= !15;
    }
    instance.patch(place, target.wrapping_sub(base));
}

/// mov [next + 1], al; mov ecx, something: whose lowest byte was just written.
fn modify_ahead(program: &mut Program, random: &mut Random) {
    program.emit(&[0xa2]);
    let next = program.here() + 4;
    program.word(next + 1);
    program.emit(&[0xb9]);
    program.word(random.word());
}

/// The end of a piece: on to the next, or anywhere.
fn terminate(program: &mut Program, piece: usize, count: usize, random: &mut Random) {
    let ahead = piece + 1 + random.below((count - piece) as u32) as usize;
    // Only the first piece burns fuel for certain.
    let back = if random.one_in(3) { 0 } else { ahead };
    match random.below(10) {
        0..=3 => {
            program.emit(&[0x0f, 0x80 + random.byte() % 16]);
            program.relative(back);
        }
        4 => {
            program.emit(&[0xe9]);
            program.relative(back);
        }
        5 => {
            program.emit(&[0xe8]);
            program.relative(back);
        }
        6 => {
            // mov dword [SLOT], piece; jmp or call [SLOT]
            program.emit(&[0xc7, 0x05]);
            program.word(SLOT);
            program.absolute(back);
            program.emit(&[0xff, random.pick(&[0x25, 0x15])]);
            program.word(SLOT);
        }
        7 => {
            // mov eax, piece; jmp or call eax
            program.emit(&[0xb8]);
            program.absolute(back);
            program.emit(&[0xff, random.pick(&[0xe0, 0xd0])]);
        }
        8 => program.emit(random.pick(&[&[0xc3_u8][..], &[0xc2, 8, 0], &[0xf3, 0xc3]])),
        _ => {}
    }
}

/// Where a program starts: the fuel is full, the stack is full of ways to the end.
fn start_state(program: &Program, world: &World, random: &mut Random) -> Case {
    let mut state = State { eip: program.start, ..State::default() };
    for value in &mut state.gpr {
        *value = any_word(random);
    }
    state.gpr[3] = EBX;
    state.gpr[5] = EBP;
    state.gpr[4] = STACK + 0x800;
    state.eflags = random.word() & ARITHMETIC_FLAGS & !(1 << 10) | 2;
    if random.one_in(16) {
        state.eflags |= 1 << 10;
    }
    state.segments[4] = DATA_SELECTOR;
    state.segments[5] = DATA_SELECTOR;
    state.fx = any_fx(random);
    if !random.one_in(16) {
        // Nothing pending, everything masked.
        state.fx.0[0] |= 0x3f;
        state.fx.0[FxImage::STATUS] &= 0x40;
        state.fx.0[FxImage::MXCSR] |= 0x80;
        state.fx.0[FxImage::MXCSR + 1] |= 0x1f;
    }
    let mut memory = world.memory.clone();
    let mut put = |address: u32, bytes: &[u8]| {
        if let Some((_, offset)) = world.layout.locate(address) {
            memory[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    };
    put(program.start, &program.bytes);
    put(FUEL, &FULL.to_le_bytes());
    let end = program.pieces.last().copied().unwrap_or(CODE);
    for slot in 0..64 {
        put(STACK + 0x800 + 4 * slot, &end.to_le_bytes());
    }
    Case { state, memory }
}
