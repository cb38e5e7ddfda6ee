//! Random states in which an instruction does something: registers whose addresses mostly hit
//! memory, often near an edge, and values that are more interesting than random bits.

use crate::instance::Instance;
use crate::layout::{Layout, PAGE};
use crate::random::Random;
use crate::state::{ARITHMETIC_FLAGS, Case, DATA_SELECTOR, State, TRAP_FLAG};
use crate::values::{any_extended, any_float, any_fx, any_word};
use crate::world::{BREAKPOINT, CODE, DATA, FIXED, LOW, STACK, TOP, World};
use iced_x86::{FlowControl, Mnemonic, OpKind, Register};

/// Where a single instruction is put: far enough from both ends for short branches either way.
pub const AT: u32 = CODE + 0x800;

/// A case for one instance, which is changed where its displacement or its immediate had better be
/// something else.
pub fn case_for(instance: &mut Instance, world: &World, random: &mut Random) -> Case {
    let mut state = any_state(random);
    tame_immediate(instance, random);
    aim_implicit(instance, &mut state, random);
    let target = aim_operand(instance, &mut state, world, random);
    let memory = world.memory.clone();
    let mut case = Case { state, memory };
    for address in target.into_iter().chain(implicit_addresses(&case.state)) {
        fill(&mut case, &world.layout, address, instance, random);
    }
    hide_processor_number(&mut case, &world.layout, instance);
    place(&mut case, &world.layout, instance);
    case
}

/// Linux keeps the number of the processor that one runs on in a descriptor's limit (index 15,
/// `GDT_ENTRY_CPUNODE`): the one part of its table that user code sees and nobody can foretell. So
/// where an instruction would read its selector from `r/m16`, it finds the data segment's.
fn hide_processor_number(case: &mut Case, layout: &Layout, instance: &Instance) {
    use Mnemonic as M;
    let instruction = &instance.instruction;
    let reads = matches!(instruction.mnemonic(), M::Lar | M::Lsl | M::Verr | M::Verw)
        || instruction.mnemonic() == M::Mov && instruction.op0_register().is_segment_register();
    if !reads {
        return;
    }
    let is_number = |selector: u32| selector & 0xfff8 == 15 << 3;
    let operand = instruction.op_count() - 1;
    if let Some(register) = number(instruction.op_register(operand)) {
        let value = &mut case.state.gpr[register];
        if is_number(*value) {
            *value ^= 0x50;
        }
        return;
    }
    let state = case.state;
    let address = instruction.virtual_address(operand, 0, |register, _, _| {
        let value = number(register).map(|index| state.gpr[index]);
        Some(value.unwrap_or_else(|| segment_base(register, &state)).into())
    });
    let byte = |at: u64| layout.locate(at as u32).map(|(_, offset)| offset);
    if let Some((low, high)) = address.and_then(|at| byte(at).zip(byte(at + 1))) {
        let selector = u32::from(case.memory[low]) | u32::from(case.memory[high]) << 8;
        if is_number(selector) {
            case.memory[low] ^= 0x50;
        }
    }
}

/// Puts the instruction where it belongs, and breakpoints where it goes on: addresses may well have
/// pointed there, and what data does as code is nobody's business.
fn place(case: &mut Case, layout: &Layout, instance: &Instance) {
    let behind = AT + instance.bytes.len() as u32;
    let target = instance.instruction.near_branch_target() as u32;
    let target = is_near_branch(instance).then_some(target);
    for end in target.into_iter().chain([behind]) {
        if let Some((_, offset)) = layout.locate(end) {
            case.memory[offset] = BREAKPOINT;
        }
    }
    if let Some((_, offset)) = layout.locate(AT) {
        case.memory[offset..offset + instance.bytes.len()].copy_from_slice(&instance.bytes);
    }
}

/// Registers, flags, segments and FPU state, all random.
pub fn any_state(random: &mut Random) -> State {
    let mut state = State { eip: AT, ..State::default() };
    for value in &mut state.gpr {
        *value = any_word(random);
    }
    state.gpr[4] = stack_pointer(random);
    if random.one_in(3) {
        state.gpr[5] = stack_pointer(random);
    }
    state.eflags = random.word() & ARITHMETIC_FLAGS | 2;
    if random.one_in(8) {
        state.eflags |= TRAP_FLAG;
    }
    for fs_or_gs in 4..6 {
        state.segments[fs_or_gs] = if random.one_in(4) { 0 } else { World::data_selector(random) };
    }
    if random.one_in(12) {
        for segment in [0, 2, 3] {
            state.segments[segment] = World::data_selector(random);
        }
        // A stack segment must be writable.
        if state.segments[2] == Layout::selector(3) {
            state.segments[2] = DATA_SELECTOR;
        }
    }
    state.fx = any_fx(random);
    state
}

/// An address to use: usually well inside a page with data, sometimes at an edge or nowhere.
pub fn any_address(random: &mut Random) -> u32 {
    let edge = random.below(40).wrapping_sub(20);
    let address = match random.below(16) {
        0 => (DATA + PAGE).wrapping_add(edge),
        1 => FIXED.wrapping_add(edge),
        2 => (FIXED + PAGE).wrapping_add(edge),
        3 => DATA.wrapping_add(edge),
        4 => 0_u32.wrapping_add(edge),
        5 => FIXED + random.below(PAGE),
        6 => TOP + random.below(2 * PAGE),
        7 if random.one_in(4) => random.word(),
        _ => DATA + random.below(2 * PAGE - 64),
    };
    if random.one_in(2) { address & !15 } else { address }
}

fn stack_pointer(random: &mut Random) -> u32 {
    match random.below(12) {
        0 => STACK.wrapping_add(random.below(48)),
        1 => (STACK + PAGE).wrapping_sub(random.below(48)),
        2 => random.below(24).wrapping_sub(12),
        3 => any_address(random),
        4 => (DATA + PAGE).wrapping_add(random.below(32)).wrapping_sub(16),
        _ => STACK + 0x400 + random.below(0x200) * 4,
    }
}

/// Branch targets mostly within the code pages; no system call; selectors that are known.
fn tame_immediate(instance: &mut Instance, random: &mut Random) {
    let Some(place) = instance.immediate() else { return };
    let instruction = instance.instruction;
    let end = instance.bytes.len() as u32 + AT;
    match instruction.mnemonic() {
        Mnemonic::Int if instruction.immediate8() == 0x80 => {
            instance.patch(place, 0x81);
        }
        _ if matches!(instruction.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => {
            let selector = World::any_selector(random);
            let size = instance.bytes.len() - place.0 - 2;
            let offset = if size == 2 { low_code(random).into() } else { any_code(random) };
            instance.patch((place.0, size), offset);
            instance.patch((place.0 + size, 2), u32::from(selector));
        }
        _ if is_near_branch(instance) && place.1 == 4 && !random.one_in(4) => {
            let target = any_code(random);
            instance.patch(place, target.wrapping_sub(end));
        }
        _ if is_near_branch(instance) && place.1 == 2 && !random.one_in(4) => {
            let target = LOW + random.below(PAGE);
            instance.patch(place, target.wrapping_sub(end));
        }
        // A branch to itself would never end.
        _ if is_near_branch(instance) && instruction.near_branch_target() == u64::from(AT) => {
            instance.patch(place, 0);
        }
        _ => {}
    }
}

fn is_near_branch(instance: &Instance) -> bool {
    matches!(instance.instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32)
}

/// Registers that instructions use without saying so.
fn aim_implicit(instance: &Instance, state: &mut State, random: &mut Random) {
    let instruction = &instance.instruction;
    let short = instance.bytes.contains(&0x67);
    let mut aim = |state: &mut State, register: usize| {
        state.gpr[register] = if short { short_address(random) } else { any_address(random) };
    };
    if instruction.is_string_instruction() {
        aim(state, 6);
        aim(state, 7);
        if !random.one_in(16) {
            state.gpr[1] = random.below(40);
        }
        if short {
            state.gpr[1] |= random.word() & 0xffff_0000;
        }
        return;
    }
    match instruction.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu => aim(state, 7),
        Mnemonic::Xlatb => {
            aim(state, 3);
            state.gpr[3] = state.gpr[3].wrapping_sub(state.gpr[0] & 0xff);
        }
        Mnemonic::Div if random.one_in(2) => state.gpr[2] = random.below(16),
        Mnemonic::Idiv if random.one_in(2) => {
            let small = random.below(16);
            state.gpr[2] = random.pick(&[0, u32::MAX, small]);
        }
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jcxz | Mnemonic::Jecxz => {
            state.gpr[1] = random.pick(&[0, 1, 2, 0x1_0000, 0x1_0001, state.gpr[1]]);
        }
        _ => {}
    }
    if (instruction.flow_control() == FlowControl::IndirectBranch
        || instruction.flow_control() == FlowControl::IndirectCall)
        && let Some(register) = number(instruction.op0_register())
    {
        state.gpr[register] = any_code(random);
    }
    // A bit offset that stays near.
    if is_bit_string(instruction)
        && !random.one_in(4)
        && let Some(register) = number(instruction.op1_register())
    {
        let near = random.below(0x400).wrapping_sub(0x200);
        state.gpr[register] = near;
    }
}

fn is_bit_string(instruction: &iced_x86::Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op1_kind() == OpKind::Register
}

/// An address below 64 KiB with anything above.
fn short_address(random: &mut Random) -> u32 {
    let low = match random.below(6) {
        0 => random.below(32).wrapping_sub(16),
        1 => LOW.wrapping_add(random.below(32)).wrapping_sub(16),
        2 => (LOW + PAGE).wrapping_add(random.below(32)).wrapping_sub(16),
        _ => LOW + random.below(2 * PAGE),
    };
    random.word() & 0xffff_0000 | low & 0xffff
}

/// Gives the base register or the displacement the value that makes the address a useful one, and
/// says which address that is.
fn aim_operand(
    instance: &mut Instance,
    state: &mut State,
    world: &World,
    random: &mut Random,
) -> Option<u32> {
    let instruction = instance.instruction;
    let has_operand = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    if !has_operand || random.one_in(24) {
        return None;
    }
    let short = instruction.memory_base().size() == 2
        || instruction.memory_index().size() == 2
        || instruction.memory_displ_size() == 2;
    let target = if short && world.has_low { short_address(random) } else { any_address(random) };
    let index = number(instruction.memory_index());
    let scaled =
        index.map_or(0, |index| state.gpr[index].wrapping_mul(instruction.memory_index_scale()));
    let base = number(instruction.memory_base()).filter(|&base| Some(base) != index);
    let displacement = instruction.memory_displacement32();
    let offset = target.wrapping_sub(segment_base(instruction.memory_segment(), state));
    if let Some(base) = base {
        state.gpr[base] = offset.wrapping_sub(scaled).wrapping_sub(displacement);
    } else if let Some(place) = instance.displacement() {
        let twice = if number(instruction.memory_base()).is_some() { 1 } else { 0 };
        let all =
            index.map_or(0, |index| state.gpr[index].wrapping_mul(twice)).wrapping_add(scaled);
        instance.patch(place, offset.wrapping_sub(all));
    } else if let Some(index) = index {
        state.gpr[index] = target / (instruction.memory_index_scale() + 1);
    }
    Some(target)
}

/// An address in the code pages.
fn any_code(random: &mut Random) -> u32 {
    CODE + random.below(2 * PAGE)
}

/// The offset of a breakpoint that 16-bit branches reach.
fn low_code(random: &mut Random) -> u16 {
    (LOW + random.below(PAGE)) as u16
}

pub(crate) fn segment_base(register: Register, state: &State) -> u32 {
    let index = match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    };
    let raw = World::descriptor(state.segments[index]).unwrap_or(0);
    (raw >> 16) as u32 & 0x00ff_ffff | (raw >> 32) as u32 & 0xff00_0000
}

/// A general register's number as instructions encode it; of a part of one, that of the whole.
pub(crate) fn number(register: Register) -> Option<usize> {
    let full = register.full_register32();
    full.is_gpr32().then(|| full as usize - Register::EAX as usize)
}

/// What instructions may touch by way of esp, esi and edi.
fn implicit_addresses(state: &State) -> [u32; 3] {
    [state.gpr[4], state.gpr[6], state.gpr[7]]
}

/// Puts something worth having at `address`: a float, a code address, a far pointer.
fn fill(case: &mut Case, layout: &Layout, address: u32, instance: &Instance, random: &mut Random) {
    let is_transfer = instance.instruction.flow_control() != FlowControl::Next;
    let names_segment = matches!(
        instance.instruction.mnemonic(),
        Mnemonic::Les | Mnemonic::Lds | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs
    ) || instance
        .instruction
        .op_kinds()
        .enumerate()
        .any(|(index, _)| instance.instruction.op_register(index as u32).is_segment_register());
    let far = instance.instruction.mnemonic() == Mnemonic::Retf
        || instance.instruction.is_jmp_far_indirect()
        || instance.instruction.is_call_far_indirect();
    let mut bytes: Vec<u8> = Vec::new();
    if is_transfer {
        bytes.extend((any_code(random)).to_le_bytes());
    }
    let selector = World::any_selector(random);
    let short = is_transfer && instance.bytes.contains(&0x66);
    if short || names_segment {
        let value = if names_segment { selector } else { low_code(random) };
        bytes.splice(0..bytes.len(), value.to_le_bytes());
    }
    if far || names_segment {
        bytes.extend(selector.to_le_bytes());
        bytes.extend(selector.to_le_bytes());
    }
    match instance.instruction.mnemonic() {
        Mnemonic::Fxrstor if !random.one_in(8) => bytes.extend(any_fx(random).0),
        Mnemonic::Ldmxcsr if !random.one_in(8) => bytes.extend((random.word() >> 16).to_le_bytes()),
        _ => {}
    }
    if bytes.is_empty() {
        for _ in 0..4 {
            bytes.extend(any_float(random).to_le_bytes());
        }
        if random.one_in(3) {
            bytes.splice(0..10, any_extended(random));
        }
    }
    for (index, byte) in bytes.into_iter().enumerate() {
        if let Some((_, offset)) = layout.locate(address.wrapping_add(index as u32)) {
            case.memory[offset] = byte;
        }
    }
}
