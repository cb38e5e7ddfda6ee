//! The instructions that cases are about, and operands with which they do something.

use std::fmt;

use lguest_oracle::random::Random;

use crate::machine::Origin;
use crate::scenery::{self, CR0_CHOICES, CR4_CHOICES, any_address, any_code, any_selector};
use crate::state::{PAGE, State, flag, gpr};
use crate::world;

/// Bytes from one case's code to the next one's.
const SLOT: u32 = 16;
const SLOTS: u32 = 4 * PAGE / SLOT;

/// What a case does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// One instruction.
    Step,
    /// An interrupt is delivered.
    Interrupt(u8, Origin),
}

/// A case: a state, and what is done in it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The instruction, as it is counted.
    pub name: &'static str,
    /// Its bytes.
    pub code: Vec<u8>,
    /// The start.
    pub state: State,
    /// What is done.
    pub action: Action,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {:02x?}, {:?}, from:", self.name, self.code, self.action)?;
        write!(f, "{:?}", self.state)
    }
}

/// Case `number` of the run from `seed`.
#[must_use]
pub fn any_case(seed: u64, number: u64) -> Case {
    // Some odd number: seeds that are neighbours are to have nothing in common.
    let mut random = Random::new(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let mut state = scenery::any_world(&mut random);
    state.eip = world::CODE + SLOT * (number % u64::from(SLOTS)) as u32;
    let (name, write) = random.pick(INSTRUCTIONS);
    let mut draft = Draft { random: &mut random, state, code: Vec::new(), action: Action::Step };
    write(&mut draft);
    let Draft { mut state, code, action, .. } = draft;
    state.store(state.eip, &code);
    Case { name, code, state, action }
}

/// A case in the making.
struct Draft<'a> {
    random: &'a mut Random,
    state: State,
    code: Vec<u8>,
    action: Action,
}

type Writer = fn(&mut Draft<'_>);

/// Each with the name under which it is counted.
///
/// Missing are instructions that unicorn leaves to its embedder or doesn't know: `sysenter`, `int1`, `cpuid`; all of port
/// input and output, which it allows to everybody; and what depends on the time.
const INSTRUCTIONS: &[(&str, Writer)] = &[
    ("mov sreg", mov_segment),
    ("mov sreg", mov_segment),
    ("pop sreg", pop_segment),
    ("lds and kin", load_far_pointer),
    ("jmp far", jump_far),
    ("call far", call_far),
    ("retf", return_far),
    ("iret", interrupt_return),
    ("iret", interrupt_return),
    ("int n", software_interrupt),
    ("int3, into", short_interrupts),
    ("lar, lsl", ask_about_selector),
    ("verr, verw", verify_selector),
    ("arpl", adjust_level),
    ("sgdt, sidt", store_table),
    ("lgdt, lidt", load_table),
    ("sldt, str, smsw", store_small),
    ("lldt", load_local_table),
    ("ltr", load_task),
    ("lmsw", load_status_word),
    ("clts", |draft| draft.code(&[0x0f, 0x06])),
    ("mov from cr", from_control),
    ("mov to cr", to_control),
    ("mov dr", move_debug),
    ("cli, sti", interrupt_flag),
    ("pushf", push_flags),
    ("popf", pop_flags),
    ("invlpg, wbinvd, invd", cache_control),
    ("hlt", |draft| draft.code(&[0xf4])),
    ("rdmsr, wrmsr", model_specific),
    ("sysexit", system_exit),
    ("mov r, m", |draft| draft.memory_form(&[0x8b], 4)),
    ("mov m, r", |draft| draft.memory_form(&[0x89], 4)),
    ("add m, r", |draft| draft.memory_form(&[0x01], 4)),
    ("push", |draft| draft.code(&[0x50])),
    ("pop", |draft| draft.code(&[0x58])),
    ("fpu, wait, sse", floating_point),
    ("external interrupt", |draft| interrupt(draft, Origin::External)),
    ("software interrupt", |draft| interrupt(draft, Origin::Software)),
];

impl Draft<'_> {
    fn code(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn paging(&self) -> bool {
        self.state.cr0 & 1 << 31 != 0
    }

    /// `opcode` with a memory operand at a random address, and a register in the reg field.
    fn memory_form(&mut self, opcode: &[u8], bytes: u32) {
        let register = self.random.below(8);
        self.memory_form_with(opcode, register, bytes);
    }

    /// `opcode` with a memory operand at a random address; returns where it is in physical memory, if that can be told.
    fn memory_form_with(&mut self, opcode: &[u8], register: u32, bytes: u32) -> Option<u32> {
        let address = any_address(self.random, self.paging());
        self.code(opcode);
        self.code(&[(register << 3 | 5) as u8]);
        self.code(&address.to_le_bytes());
        let simple = address < world::DATA + world::DATA_PAGES * PAGE - bytes;
        let physical = if address >= world::HIGH { None } else { Some(address & (world::BIG - 1)) };
        physical.filter(|_| simple || address >= world::BIG)
    }

    /// `opcode` with a word that is a selector, in a register or in memory.
    fn selector_form(&mut self, opcode: &[u8], register: u32) {
        let selector = any_selector(self.random);
        if self.random.one_in(3) {
            if let Some(at) = self.memory_form_with(opcode, register, 2) {
                self.state.store(at, &selector.to_le_bytes());
            }
            return;
        }
        let holder = self.random.pick(&[gpr::EAX, gpr::ECX, gpr::EDX, gpr::EBX]);
        let upper = self.state.gpr[holder] & 0xffff_0000;
        self.state.gpr[holder] = upper | u32::from(selector);
        self.code(opcode);
        self.code(&[0xc0 | (register << 3 | holder as u32) as u8]);
    }

    /// A selector for code that a transfer from here may well reach.
    fn code_selector(&mut self) -> u16 {
        if self.random.one_in(2) {
            any_selector(self.random)
        } else {
            world::code(self.random.below(4) as u8)
        }
    }

    /// Puts dwords or words on the stack.
    fn put_on_stack(&mut self, values: &[u32], size: u32) {
        let at = self.state.gpr[gpr::ESP];
        for (index, value) in values.iter().enumerate() {
            let bytes = &value.to_le_bytes()[..size as usize];
            self.state.store(at + size * index as u32, bytes);
        }
    }

    /// Operand size 4, or seldom 2 with its prefix.
    fn operand_size(&mut self) -> u32 {
        if self.random.one_in(5) {
            self.code(&[0x66]);
            return 2;
        }
        4
    }

    fn any_flags(&mut self) -> u32 {
        let vm = flag::VM;
        self.random.word()
            & (0x0cd5 | flag::TF | flag::IF | flag::IOPL | flag::NT | flag::AC | flag::ID)
            & !vm
            | 2
    }
}

fn mov_segment(draft: &mut Draft<'_>) {
    let register = draft.random.pick(&[0, 2, 2, 3, 4, 5, 1, 6]);
    draft.selector_form(&[0x8e], register);
}

fn pop_segment(draft: &mut Draft<'_>) {
    let selector = any_selector(draft.random);
    let upper = draft.random.word() & 0xffff_0000;
    let size = draft.operand_size();
    draft.put_on_stack(&[upper | u32::from(selector)], size);
    let code: &[u8] = draft.random.pick(&[&[0x07], &[0x17], &[0x1f], &[0x0f, 0xa1], &[0x0f, 0xa9]]);
    draft.code(code);
}

fn load_far_pointer(draft: &mut Draft<'_>) {
    let (selector, offset) = (any_selector(draft.random), draft.random.word());
    let opcode: &[u8] =
        draft.random.pick(&[&[0xc4], &[0xc5], &[0x0f, 0xb2], &[0x0f, 0xb4], &[0x0f, 0xb5]]);
    let register = draft.random.below(8);
    if let Some(at) = draft.memory_form_with(opcode, register, 6) {
        draft.state.store_dword(at, offset);
        draft.state.store(at + 4, &selector.to_le_bytes());
    }
}

fn jump_far(draft: &mut Draft<'_>) {
    far_transfer(draft, 0xea, 5);
}

fn call_far(draft: &mut Draft<'_>) {
    far_transfer(draft, 0x9a, 3);
}

/// A far jump or call, direct or through memory.
fn far_transfer(draft: &mut Draft<'_>, direct: u8, extension: u32) {
    let (selector, offset) = (draft.code_selector(), any_code(draft.random));
    if draft.random.one_in(3) {
        if let Some(at) = draft.memory_form_with(&[0xff], extension, 6) {
            draft.state.store_dword(at, offset);
            draft.state.store(at + 4, &selector.to_le_bytes());
        }
        return;
    }
    draft.code(&[direct]);
    draft.code(&offset.to_le_bytes());
    draft.code(&selector.to_le_bytes());
}

/// The stack that a return to an outer level finds.
fn outer_stack(draft: &mut Draft<'_>, code: u16) -> (u32, u32) {
    let good = world::data((code & 3) as u8);
    let selector = if draft.random.one_in(3) { any_selector(draft.random) } else { good };
    (world::stack(3) - 4 * draft.random.below(64), selector.into())
}

fn return_far(draft: &mut Draft<'_>) {
    let size = draft.operand_size();
    let (code, offset) = (draft.code_selector(), any_code(draft.random));
    let (esp, ss) = outer_stack(draft, code);
    let count = draft.random.pick(&[0, 0, 4, 8]);
    let mut frame = vec![offset, code.into()];
    frame.extend(std::iter::repeat_n(0x5555_5555, (count / size) as usize));
    frame.extend([esp, ss]);
    draft.put_on_stack(&frame, size);
    if count == 0 {
        draft.code(&[0xcb]);
    } else {
        draft.code(&[0xca, count as u8, 0]);
    }
}

fn interrupt_return(draft: &mut Draft<'_>) {
    let size = draft.operand_size();
    let (code, offset) = (draft.code_selector(), any_code(draft.random));
    let (esp, ss) = outer_stack(draft, code);
    let flags = draft.any_flags();
    draft.put_on_stack(&[offset, code.into(), flags, esp, ss], size);
    draft.code(&[0xcf]);
}

fn software_interrupt(draft: &mut Draft<'_>) {
    const INVALID_OPCODE: u8 = 6;
    // Unicorn treats this vector as if the instruction were none.
    let vector = draft.random.byte();
    let vector = if vector == INVALID_OPCODE { 0x80 } else { vector };
    draft.code(&[0xcd, vector]);
}

fn short_interrupts(draft: &mut Draft<'_>) {
    let code = draft.random.pick(&[0xcc, 0xce]);
    draft.code(&[code]);
}

fn ask_about_selector(draft: &mut Draft<'_>) {
    let opcode = draft.random.pick(&[0x02, 0x03]);
    draft.operand_size();
    let register = draft.random.below(8);
    draft.selector_form(&[0x0f, opcode], register);
}

fn verify_selector(draft: &mut Draft<'_>) {
    let extension = draft.random.pick(&[4, 5]);
    draft.selector_form(&[0x0f, 0x00], extension);
}

fn adjust_level(draft: &mut Draft<'_>) {
    let register = draft.random.below(8);
    draft.selector_form(&[0x63], register);
}

fn store_table(draft: &mut Draft<'_>) {
    let extension = draft.random.pick(&[0, 1]);
    draft.operand_size();
    draft.memory_form_with(&[0x0f, 0x01], extension, 6);
}

fn load_table(draft: &mut Draft<'_>) {
    let extension = draft.random.pick(&[2, 3]);
    draft.operand_size();
    let (limit, base) = (draft.random.word(), draft.random.word());
    if let Some(at) = draft.memory_form_with(&[0x0f, 0x01], extension, 6) {
        draft.state.store(at, &limit.to_le_bytes()[..2]);
        draft.state.store_dword(at + 2, base);
    }
}

/// Opcode and extension of an instruction that stores or loads a word.
fn word_form(draft: &mut Draft<'_>, opcode: u8, extension: u32) {
    draft.operand_size();
    if draft.random.one_in(2) {
        draft.memory_form_with(&[0x0f, opcode], extension, 2);
    } else {
        let register = draft.random.pick(&[0, 1, 2, 3, 5, 6, 7]);
        draft.code(&[0x0f, opcode, 0xc0 | (extension << 3 | register) as u8]);
    }
}

fn store_small(draft: &mut Draft<'_>) {
    let (opcode, extension) = draft.random.pick(&[(0x00, 0), (0x00, 1), (0x01, 4)]);
    if opcode == 0x01 {
        // The upper half of a register is undefined then.
        draft.code(&[0x66]);
    }
    word_form(draft, opcode, extension);
}

fn load_local_table(draft: &mut Draft<'_>) {
    draft.selector_form(&[0x0f, 0x00], 2);
}

fn load_task(draft: &mut Draft<'_>) {
    draft.selector_form(&[0x0f, 0x00], 3);
}

fn load_status_word(draft: &mut Draft<'_>) {
    word_form(draft, 0x01, 6);
}

fn from_control(draft: &mut Draft<'_>) {
    let number = draft.random.pick(&[0, 0, 2, 2, 3, 3, 4, 4, 1, 5, 6, 7]);
    let register = draft.random.below(8);
    draft.code(&[0x0f, 0x20, 0xc0 | (number << 3 | register) as u8]);
}

fn to_control(draft: &mut Draft<'_>) {
    let number = draft.random.pick(&[0, 0, 2, 3, 4, 4, 1]);
    let random = &mut *draft.random;
    let value = match number {
        0 => {
            let some = CR0_CHOICES
                .iter()
                .fold(0, |all, &bit| all | if random.one_in(2) { bit } else { 0 });
            some | 0x11 | if random.one_in(4) { 0 } else { 1 << 31 }
        }
        3 => random.pick(&[world::DIRECTORY, world::DIRECTORY | 0x18, world::HIGH_TABLE]),
        4 => CR4_CHOICES.iter().fold(0, |all, &bit| all | if random.one_in(2) { bit } else { 0 }),
        _ => random.word(),
    };
    let register = random.pick(&[gpr::EAX, gpr::ECX, gpr::EDX, gpr::EDI]);
    draft.state.gpr[register] = value;
    draft.code(&[0x0f, 0x22, 0xc0 | (number << 3 | register as u32) as u8]);
}

fn move_debug(draft: &mut Draft<'_>) {
    let number = draft.random.below(8);
    let register = draft.random.pick(&[gpr::EAX, gpr::ECX, gpr::EDX, gpr::EDI]);
    // No breakpoint is enabled, and access to the registers is not watched.
    if matches!(number, 5 | 7) {
        draft.state.gpr[register] &= !0x20ff;
    }
    let opcode = draft.random.pick(&[0x21, 0x23]);
    draft.code(&[0x0f, opcode, 0xc0 | (number << 3 | register as u32) as u8]);
}

fn interrupt_flag(draft: &mut Draft<'_>) {
    let code = draft.random.pick(&[0xfa, 0xfb]);
    draft.code(&[code]);
}

fn push_flags(draft: &mut Draft<'_>) {
    draft.operand_size();
    draft.code(&[0x9c]);
}

fn pop_flags(draft: &mut Draft<'_>) {
    let size = draft.operand_size();
    let flags = draft.random.word();
    draft.put_on_stack(&[flags], size);
    draft.code(&[0x9d]);
}

fn cache_control(draft: &mut Draft<'_>) {
    match draft.random.below(4) {
        0 => draft.code(&[0x0f, 0x09]),
        1 => draft.code(&[0x0f, 0x08]),
        _ => {
            draft.memory_form_with(&[0x0f, 0x01], 7, 1);
        }
    }
}

fn model_specific(draft: &mut Draft<'_>) {
    draft.state.gpr[gpr::ECX] = draft.random.pick(&[0x174, 0x175, 0x176]);
    let opcode = draft.random.pick(&[0x30, 0x32]);
    // The upper half of what is written has nowhere to go.
    draft.state.gpr[gpr::EDX] = 0;
    draft.code(&[0x0f, opcode]);
}

fn system_exit(draft: &mut Draft<'_>) {
    if draft.random.one_in(2) {
        draft.state.gpr[gpr::EDX] = any_code(draft.random);
    }
    draft.code(&[0x0f, 0x35]);
}

/// `fnop`, `wait`, `emms` and `movaps xmm0, xmm1`: what traps when the FPU or SSE is to be left alone.
fn floating_point(draft: &mut Draft<'_>) {
    let code: &[u8] =
        draft.random.pick(&[&[0xd9, 0xd0], &[0x9b], &[0x0f, 0x77], &[0x0f, 0x28, 0xc1]]);
    draft.code(code);
}

fn interrupt(draft: &mut Draft<'_>, origin: Origin) {
    const LEVEL_3: u8 = 0x60;
    let vector = draft.random.byte();
    if origin == Origin::Software && !draft.random.one_in(8) {
        // Whether the gate may be used is judged by hand-written cases.
        let at = (world::IDT + 8 * u32::from(vector) + 5) as usize;
        draft.state.memory[at] |= LEVEL_3;
    }
    draft.action = Action::Interrupt(vector, origin);
}
