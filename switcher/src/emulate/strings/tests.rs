//! Runs of string steps against the same steps made one by one.

use super::*;
use crate::cpu::Segment;
use crate::emulate::testing::{
    Memory, State, assert_done, assert_fault, cpu_at, decode, memory, page_fault, run, state,
};
use proptest::prelude::*;

/// Emulates until the instruction is finished or faults.
fn run_whole(cpu: &mut Cpu, memory: &mut Memory, code: &[u8]) -> Result<(), Exception> {
    while run(cpu, memory, code)? == Outcome::Again {}
    Ok(())
}

/// The same, one step after the other and with nothing clever: the manual's pseudocode.
fn model(cpu: &mut Cpu, memory: &mut Memory, case: &Case) -> Result<(), Exception> {
    let size = case.size();
    let mask: u32 = if case.narrow { 0xffff } else { u32::MAX };
    let accumulator = cpu.gpr(Gpr::Eax) & (u32::MAX >> (32 - size * 8));
    let element = |memory: &mut Memory, at: u32| {
        let mut bytes = [0; 4];
        memory.read(crate::address::GuestVirt(at), &mut bytes[..size as usize])?;
        Ok::<u32, Exception>(u32::from_le_bytes(bytes))
    };
    loop {
        let get = |cpu: &Cpu, register| cpu.gpr(register) & mask;
        if case.prefix.is_some() && get(cpu, Gpr::Ecx) == 0 {
            break;
        }
        let source = linear(cpu, SegmentRegister::Ds, get(cpu, Gpr::Esi), size, Direction::Read);
        let target = |cpu: &Cpu, direction| {
            linear(cpu, SegmentRegister::Es, get(cpu, Gpr::Edi), size, direction)
        };
        let low = |value: u32| value.to_le_bytes()[..size as usize].to_vec();
        let mut equal = None;
        match case.operation {
            Operation::Move => {
                let value = element(memory, source?.0)?;
                memory.write(target(cpu, Direction::Write)?, &low(value))?;
            }
            Operation::Store => memory.write(target(cpu, Direction::Write)?, &low(accumulator))?,
            Operation::Load => {
                let value = element(memory, source?.0)?;
                write_low_bytes(cpu, size, value);
            }
            Operation::Compare | Operation::Scan => {
                if case.operation == Operation::Compare && case.prefix == Some(0xf3) && size == 1 {
                    element(memory, source?.0)?;
                }
                let right = element(memory, target(cpu, Direction::Read)?.0)?;
                let left = match case.operation {
                    Operation::Scan => accumulator,
                    _ => element(memory, source?.0)?,
                };
                let new = flags::of_subtraction(left, right, size);
                flags::change(cpu, flags::ARITHMETIC, new);
                equal = Some(left == right);
            }
        }
        let step = if case.down { size.wrapping_neg() } else { size };
        let mut move_on = |register| {
            let old = cpu.gpr(register);
            cpu.set_gpr(register, old & !mask | old.wrapping_add(step) & mask);
        };
        if case.operation.reads_source() {
            move_on(Gpr::Esi);
        }
        if case.operation.destination().is_some() {
            move_on(Gpr::Edi);
        }
        let Some(prefix) = case.prefix else { break };
        let count = cpu.gpr(Gpr::Ecx);
        cpu.set_gpr(Gpr::Ecx, count & !mask | count.wrapping_sub(1) & mask);
        if equal.is_some_and(|equal| equal != (prefix == 0xf3)) {
            break;
        }
    }
    cpu.set_eip(cpu.eip() + case.code().len() as u32);
    Ok(())
}

fn write_low_bytes(cpu: &mut Cpu, size: u32, value: u32) {
    let mask = u32::MAX >> (32 - size * 8);
    cpu.set_gpr(Gpr::Eax, cpu.gpr(Gpr::Eax) & !mask | value);
}

#[derive(Clone, Debug)]
struct Case {
    operation: Operation,
    log_size: u32,
    prefix: Option<u8>,
    narrow: bool,
    down: bool,
    esi: u32,
    edi: u32,
    ecx: u32,
    eax: u32,
    bytes: Vec<(u32, u8)>,
    removed: Option<u32>,
    alias: bool,
    /// Base and limit of es.
    target: (u32, u32),
}

impl Case {
    fn size(&self) -> u32 {
        1 << self.log_size
    }

    fn code(&self) -> Vec<u8> {
        let opcode = match self.operation {
            Operation::Move => 0xa4,
            Operation::Compare => 0xa6,
            Operation::Store => 0xaa,
            Operation::Load => 0xac,
            Operation::Scan => 0xae,
        };
        let mut code = Vec::from_iter(self.prefix);
        code.extend(self.narrow.then_some(0x67));
        code.extend((self.log_size == 1).then_some(0x66));
        code.push(opcode | u8::from(self.log_size > 0));
        code
    }

    fn start(&self) -> (Cpu, Memory) {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Esi, self.esi);
        cpu.set_gpr(Gpr::Edi, self.edi);
        cpu.set_gpr(Gpr::Ecx, self.ecx);
        cpu.set_gpr(Gpr::Eax, self.eax);
        cpu.set_eflags(flags::when(self.down, flags::DF) | flags::CF);
        let (base, limit) = self.target;
        cpu.set_segment(SegmentRegister::Es, Segment { base, limit, ..Segment::flat_data(3) });
        if self.alias {
            memory.alias_page(0x5000, 0x3000);
        }
        for &(at, byte) in &self.bytes {
            memory.store(self.esi.wrapping_add(at), &[byte]);
            memory.store(self.edi.wrapping_add(base).wrapping_add(at / 2), &[byte]);
        }
        if let Some(at) = self.removed {
            memory.remove_page(at);
        }
        (cpu, memory)
    }
}

/// Addresses that are close to something: a page's end, 64 KiB, 4 GiB, each other.
fn place() -> impl Strategy<Value = u32> {
    let near = prop::sample::select(vec![0x3000_u32, 0x4000, 0x5000, 0x6000, 0, 0x1_0000]);
    (near, -40_i32..40).prop_map(|(at, distance)| at.wrapping_add_signed(distance))
}

prop_compose! {
    fn case()(
        operation in prop::sample::select(vec![
            Operation::Move, Operation::Move, Operation::Store, Operation::Load,
            Operation::Compare, Operation::Scan,
        ]),
        log_size in 0_u32..3,
        prefix in prop::sample::select(vec![None, Some(0xf3), Some(0xf3), Some(0xf2)]),
        flavour in (prop::bool::weighted(0.2), prop::bool::weighted(0.3), any::<bool>()),
        esi in place(),
        edi in place(),
        ecx in prop_oneof![0_u32..40, 0_u32..9000, Just(0x1_0003)],
        eax in prop_oneof![Just(0_u32), any::<u32>()],
        bytes in prop::collection::vec((0_u32..100, any::<u8>()), 0..12),
        removed in prop::option::weighted(0.4, place()),
        target in prop::sample::select(vec![
            (0_u32, u32::MAX), (0, u32::MAX), (7, u32::MAX), (0, 0x4fff), (0xffff_f800, u32::MAX),
        ]),
    ) -> Case {
        let (narrow, down, alias) = flavour;
        // Without a bound a wide count would take long.
        let ecx = if narrow || ecx < 9000 { ecx } else { 9000 };
        Case {
            operation, log_size, prefix, narrow, down, esi, edi, ecx, eax, bytes, removed,
            alias, target,
        }
    }
}

proptest! {
    #[test]
    fn runs_are_their_steps(case in case()) {
        let (mut cpu, mut memory) = case.start();
        let (mut model_cpu, mut model_memory) = case.start();
        let expected = model(&mut model_cpu, &mut model_memory, &case);
        let result = run_whole(&mut cpu, &mut memory, &case.code());
        prop_assert_eq!(result, expected);
        prop_assert_eq!(state(&cpu), state(&model_cpu));
        prop_assert!(memory == model_memory);
    }
}

/// A kernel's big copies must not be slow, and that is nothing the results show.
#[test]
fn a_run_is_as_long_as_nothing_stands_in_its_way() {
    const PLAIN: Case = Case {
        operation: Operation::Move,
        log_size: 2,
        prefix: Some(0xf3),
        narrow: false,
        down: false,
        esi: 0x3000,
        edi: 0x5000,
        ecx: 9000,
        eax: 0,
        bytes: Vec::new(),
        removed: None,
        alias: false,
        target: (0, u32::MAX),
    };
    let run = |case: Case| {
        let (cpu, mut memory) = case.start();
        let instruction = decode(0x1000, &case.code());
        let strings = Strings::new(case.operation, case.size(), &instruction);
        strings.run_length(&cpu, &mut memory, case.ecx)
    };
    const MOST: u32 = RUN_BYTES as u32 / 4;
    assert_eq!(run(PLAIN), MOST);
    assert_eq!(run(Case { ecx: 100, ..PLAIN }), 100);
    assert_eq!(run(Case { log_size: 0, ..PLAIN }), RUN_BYTES as u32);
    // To the end of either page, and on from there.
    assert_eq!(run(Case { esi: 0x3fc0, ..PLAIN }), 16);
    assert_eq!(run(Case { edi: 0x5fc2, ..PLAIN }), 15);
    assert_eq!(run(Case { edi: 0x5fc2, target: (0x3e, u32::MAX), ..PLAIN }), MOST);
    assert_eq!(run(Case { esi: 0x3fff, ..PLAIN }), 1);
    assert_eq!(run(Case { esi: 0xffff_ffe0, ..PLAIN }), 8);
    assert_eq!(run(Case { edi: 0xffe0, target: (0x20, u32::MAX), narrow: true, ..PLAIN }), 8);
    // What it doesn't use doesn't stop it.
    assert_eq!(run(Case { operation: Operation::Load, edi: 0x5fff, ..PLAIN }), MOST);
    assert_eq!(run(Case { operation: Operation::Store, esi: 0x3fff, ..PLAIN }), MOST);
    // A copy stops where it would read what it wrote, in whichever pages the two are.
    assert_eq!(run(Case { esi: 0x3010, edi: 0x3020, ..PLAIN }), 4);
    assert_eq!(run(Case { esi: 0x3010, edi: 0x5020, ..PLAIN }), 4);
    assert_eq!(run(Case { esi: 0x3010, edi: 0x3000, ..PLAIN }), MOST);
    assert_eq!(run(Case { operation: Operation::Compare, edi: 0x3010, ..PLAIN }), MOST);
    // Downwards, and at a segment's end, it goes step by step.
    assert_eq!(run(Case { down: true, ..PLAIN }), 1);
    assert_eq!(run(Case { target: (0, 0x53ff), ..PLAIN }), MOST);
    assert_eq!(run(Case { target: (0, 0x53fe), ..PLAIN }), 1);
}

#[test]
fn long_repetitions_pause() {
    let (mut cpu, mut memory) = (cpu_at(3), memory());
    cpu.set_gpr(Gpr::Ecx, 3 * STEPS_PER_CALL);
    cpu.set_gpr(Gpr::Edi, 0x10_0000);
    let expected = [Outcome::Again, Outcome::Again, Outcome::Done];
    assert_eq!([(); 3].map(|()| run(&mut cpu, &mut memory, &[0xf3, 0xaa])), expected.map(Ok));
    assert_eq!(cpu.gpr(Gpr::Edi), 0x10_0000 + 3 * STEPS_PER_CALL);
    assert_eq!((cpu.gpr(Gpr::Ecx), cpu.eip()), (0, 0x1002));
}

#[test]
fn a_count_of_zero_touches_nothing() {
    let (mut cpu, mut memory) = (cpu_at(3), memory());
    memory.remove_page(0);
    cpu.set_eflags(flags::ZF);
    assert_done(&mut cpu, &mut memory, &[0xf3, 0xa6]);
    assert_eq!(cpu.eflags(), flags::ZF | 2);
    assert_fault(&mut cpu, &mut memory, &[0xa6], page_fault(0, false, false));
}

#[test]
fn a_fault_stands_between_two_steps() {
    let (mut cpu, mut memory) = (cpu_at(3), memory());
    cpu.set_gpr(Gpr::Esi, 0x3000);
    cpu.set_gpr(Gpr::Edi, 0x4ff6);
    cpu.set_gpr(Gpr::Ecx, 100);
    memory.protect_page(0x5000);
    let fault = Err(page_fault(0x5000, true, true));
    assert_eq!(run(&mut cpu, &mut memory, &[0xf3, 0xa5]), fault);
    let registers: State = state(&cpu);
    assert_eq!((cpu.gpr(Gpr::Ecx), cpu.gpr(Gpr::Edi), cpu.eip()), (98, 0x4ffe, 0x1000));
    assert_eq!(run(&mut cpu, &mut memory, &[0xf3, 0xa5]), fault);
    assert_eq!(state(&cpu), registers);
}

#[test]
fn a_limit_stands_between_two_steps() {
    for (segment, start) in [(SegmentRegister::Ds, 0x3000), (SegmentRegister::Es, 0x5000)] {
        let (mut cpu, mut memory) = (cpu_at(3), memory());
        cpu.set_gpr(Gpr::Esi, 0x3000);
        cpu.set_gpr(Gpr::Edi, 0x5000);
        cpu.set_gpr(Gpr::Ecx, 100);
        cpu.set_segment(segment, Segment { limit: start + 9, ..Segment::flat_data(3) });
        let fault = Err(Exception::protection(0));
        assert_eq!(run(&mut cpu, &mut memory, &[0xf3, 0xa5]), fault, "{segment:?}");
        assert_eq!((cpu.gpr(Gpr::Ecx), cpu.gpr(Gpr::Esi), cpu.eip()), (98, 0x3008, 0x1000));
    }
}

#[test]
fn of_two_faults_the_processors_first_is_reported() {
    let (mut cpu, mut memory) = (cpu_at(3), memory());
    cpu.set_gpr(Gpr::Esi, 0x3000);
    cpu.set_gpr(Gpr::Edi, 0x5000);
    cpu.set_gpr(Gpr::Ecx, 2);
    memory.remove_page(0x3000);
    memory.remove_page(0x5000);
    for (code, first) in [
        (&[0xa6][..], 0x5000),   // cmpsb
        (&[0xf3, 0xa6], 0x3000), // repe cmpsb
        (&[0xf2, 0xa6], 0x5000), // repne cmpsb
        (&[0xf3, 0xa7], 0x5000), // repe cmpsd
        (&[0xf3, 0xa4], 0x3000), // rep movsb
    ] {
        assert_fault(&mut cpu, &mut memory, code, page_fault(first, false, false));
    }
}

#[test]
fn overrides_move_the_source_only() {
    let (mut cpu, mut memory) = (cpu_at(3), memory());
    cpu.set_segment(SegmentRegister::Fs, Segment { base: 0x5000, ..Segment::flat_data(3) });
    memory.store(0x5000, &[0x5a]);
    cpu.set_gpr(Gpr::Edi, 0x100);
    assert_done(&mut cpu, &mut memory, &[0x64, 0xa4]);
    assert_eq!(memory.byte(0x100), 0x5a);
}

#[test]
fn ports_are_the_embedders() {
    let (mut cpu, mut memory) = (cpu_at(0), memory());
    for code in [[0x6c], [0x6d], [0x6e], [0x6f]] {
        assert_eq!(run(&mut cpu, &mut memory, &code), Ok(Outcome::Privileged));
    }
    // The SSE instruction of the same name is none of ours.
    let movsd = decode(0x1000, &[0xf2, 0x0f, 0x10, 0x00]);
    let outcome = crate::emulate::emulate(&mut cpu, &mut memory, &movsd);
    assert_eq!(outcome, Ok(Outcome::Unsupported));
}
