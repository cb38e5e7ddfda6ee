//! Random bytes as code: what no table of instruction forms has, above all what isn't an
//! instruction, or is one only for processors with more features than the Switcher's.

use iced_x86::{Code, EncodingKind, Mnemonic, OpKind};
use lguest_oracle::contest::{Contest, Verdict};
use lguest_oracle::forms::{self, Class};
use lguest_oracle::instance::Instance;
use lguest_oracle::machine::Stop;
use lguest_oracle::placing::{self, AT};
use lguest_oracle::random::Random;
use lguest_oracle::{Budget, Case, End, seed};

/// Attempts in a run of about 4 seconds.
const ROUNDS: u64 = 90_000;
/// Failures to show before giving up.
const SHOWN: usize = 30;
const UNDEFINED: Stop = Stop::End(End::Exception { vector: 6, error: 0, address: 0 });

/// What the processor is like where its instruction set is larger than the Switcher's: not at all.
fn is_foreign(code: Code) -> bool {
    code.op_code().encoding() != EncodingKind::Legacy || forms::classify(code) == Class::NotOffered
}

/// Some prefixes, an opcode (half of the time from the second map, where the gaps are), and operands.
fn any_bytes(random: &mut Random) -> Vec<u8> {
    const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    let count = if random.one_in(16) { random.below(16) } else { random.below(3) };
    let mut bytes: Vec<u8> = (0..count).map(|_| random.pick(&PREFIXES)).collect();
    match random.below(8) {
        0..=3 => bytes.push(0x0f),
        4 => bytes.push(random.pick(&[0xc4, 0xc5, 0x62, 0x8f, 0xc6, 0xc7, 0xfe, 0xff])),
        _ => {}
    }
    bytes.extend((0..20).map(|_| random.byte()));
    bytes
}

/// Whether the Switcher rightly refuses what this processor carries out.
fn is_the_processors_own(contest: &mut Contest, case: &Case, bytes: &[u8]) -> bool {
    let (stop, changed) = contest.run_alone(case);
    let refused = stop == UNDEFINED && changed.is_empty();
    refused && (is_locked_verw(bytes) || is_newer_encoding(bytes))
}

/// `lock verw` of memory, for which the manual has #UD (SDM volume 2, "VERR/VERW"). AMD's
/// processors whose `verw` also clears buffers take the prefix for nothing.
fn is_locked_verw(bytes: &[u8]) -> bool {
    let opcode = bytes.iter().position(|&byte| byte == 0x0f).unwrap_or(0);
    let (prefixes, rest) = bytes.split_at(opcode);
    let mut unlocked: Vec<u8> = prefixes.iter().copied().filter(|&byte| byte != 0xf0).collect();
    unlocked.extend(rest);
    let is_verw = |instance: Instance| {
        let instruction = instance.instruction;
        instruction.mnemonic() == Mnemonic::Verw && instruction.op0_kind() == OpKind::Memory
    };
    prefixes.contains(&0xf0) && Instance::decode(&unlocked, AT).is_some_and(is_verw)
}

/// VEX, EVEX or XOP, by their first two bytes. Of these the processor ignores bits that iced insists
/// on; on the Switcher's processor they are `les`, `lds`, `bound` and `pop` with an operand that
/// isn't memory, or none of theirs: #UD.
fn is_newer_encoding(bytes: &[u8]) -> bool {
    let is_segment = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let count = bytes.iter().take_while(|byte| is_segment(byte)).count();
    match bytes.get(count..count + 2) {
        Some([0x62 | 0xc4 | 0xc5, second]) => *second >= 0xc0,
        Some([0x8f, second]) => second & 0x38 != 0,
        _ => false,
    }
}

fn place(bytes: &[u8], contest: &Contest, random: &mut Random) -> Case {
    let mut case = Case { state: placing::any_state(random), memory: contest.world.memory.clone() };
    if let Some((_, offset)) = contest.world.layout.locate(AT) {
        case.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    case
}

#[test]
fn what_is_no_instruction_is_none() {
    let budget = Budget::new(ROUNDS);
    let mut contest =
        Contest::new(&mut Random::new(budget.seed())).expect("the processor must run 32-bit code");
    let (mut invalid, mut foreign, mut failures, mut round) = (0, 0, Vec::new(), 0);
    while failures.len() < SHOWN && budget.lasts(round) {
        let mut random = Random::new(budget.seed() ^ round << 16);
        round += 1;
        let bytes = any_bytes(&mut random);
        let case = place(&bytes, &contest, &mut random);
        match Instance::decode(&bytes, AT) {
            None => {
                invalid += 1;
                let verdict = contest.judge(&case, 15, None).expect("a worker");
                if let Verdict::Different(text) = verdict
                    && !is_the_processors_own(&mut contest, &case, &bytes)
                {
                    failures.push(format!("round {round}: {bytes:02x?}\n{text}"));
                }
            }
            Some(instance) if is_foreign(instance.instruction.code()) => {
                foreign += 1;
                let (stop, changed) = contest.run_alone(&case);
                if stop != UNDEFINED || !changed.is_empty() {
                    let code = instance.instruction.code();
                    let bytes = instance.bytes;
                    failures.push(format!("{code:?} {bytes:02x?}: {stop:x?} {changed:?}"));
                }
            }
            Some(_) => {}
        }
    }
    println!("{invalid} times no instruction, {foreign} times one that isn't offered");
    assert!(failures.is_empty(), "seed {}:\n{}", budget.seed(), failures.join("\n"));
}

/// tzcnt, lzcnt and popcnt's neighbours: a prefix that an older processor ignores.
#[test]
fn what_is_not_offered_has_its_older_meaning() {
    let seed = seed();
    let mut contest =
        Contest::new(&mut Random::new(seed)).expect("the processor must run 32-bit code");
    let pairs = [
        (Code::Tzcnt_r32_rm32, Code::Bsf_r32_rm32),
        (Code::Tzcnt_r16_rm16, Code::Bsf_r16_rm16),
        (Code::Lzcnt_r32_rm32, Code::Bsr_r32_rm32),
        (Code::Lzcnt_r16_rm16, Code::Bsr_r16_rm16),
    ];
    for round in 0..400 {
        let (new, old) = pairs[round % pairs.len()];
        let mut random = Random::new(seed ^ (round as u64) << 16);
        let mut instance = Instance::of(new, AT, &mut random).expect("bytes for it");
        let mut case = placing::case_for(&mut instance, &contest.world, &mut random);
        case.state.eflags &= !0x100;
        let outcome_of_new = contest.machine.run(&case);
        let memory_after = contest.machine.memory().to_vec();
        // The older processor ignores the prefix; so does every one ignore a second ds.
        let at = contest.world.layout.locate(AT).map_or(0, |(_, offset)| offset);
        let has_other = instance
            .bytes
            .iter()
            .any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65));
        let default_is_ds = instance.instruction.memory_segment() == iced_x86::Register::DS;
        let is_memory = instance.instruction.op1_kind() == iced_x86::OpKind::Memory;
        if is_memory && (has_other || !default_is_ds) {
            continue;
        }
        for byte in &mut case.memory[at..at + instance.bytes.len()] {
            match *byte {
                0xf3 | 0xf2 => *byte = 0x3e,
                0x0f => break,
                _ => {}
            }
        }
        let outcome = contest.oracle.run(&case).expect("a worker");
        let decoded = Instance::decode(&case.memory[at..], AT).expect("an instruction");
        assert_eq!(decoded.instruction.code(), old);
        let text = format!("{new:?} {:02x?} {:?}", instance.bytes, case.state);
        assert_eq!(outcome_of_new.1.gpr, outcome.state.gpr, "{text}");
        assert_eq!(outcome_of_new.1.eip, outcome.state.eip, "{text}");
        let zero = |flags: u32| flags & 1 << 6;
        assert_eq!(zero(outcome_of_new.1.eflags), zero(outcome.state.eflags), "{text}");
        assert_eq!(&memory_after[at + 16..], &contest.oracle.memory()[at + 16..], "{text}");
    }
}
