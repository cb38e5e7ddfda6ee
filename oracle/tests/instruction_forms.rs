//! Every instruction form that 32-bit user code can hold, held against the real processor.
//!
//! The forms come from iced's table, with random operands, prefixes and states for each, faulting
//! ones among them. Runs for [`ROUNDS`] rounds; for `LGUEST_ORACLE_SECONDS` when that is set, from another
//! seed each time unless `LGUEST_ORACLE_SEED` says which. `LGUEST_ORACLE_FORM` picks the forms whose name contains it.

use iced_x86::Code;
use lguest_oracle::contest::{Contest, Verdict};
use lguest_oracle::forms::{self, Class};
use lguest_oracle::instance::Instance;
use lguest_oracle::machine::Stop;
use lguest_oracle::placing::{self, AT};
use lguest_oracle::random::Random;
use lguest_oracle::{Budget, End, seed};
use std::collections::BTreeMap;

/// Instances of each form in a run of about 20 seconds.
const ROUNDS: u64 = 90;
/// Failures to show of one form, and of all.
const SHOWN: usize = 2;
const SHOWN_IN_ALL: usize = 60;

/// What happened to a form.
#[derive(Default)]
struct Tally {
    cases: u32,
    completed: u32,
    faulted: u32,
    incomparable: u32,
    failures: u32,
}

fn contest(seed: u64) -> Contest {
    Contest::new(&mut Random::new(seed)).expect("the processor must run 32-bit code")
}

fn chosen() -> impl Iterator<Item = Code> {
    let wanted = std::env::var("LGUEST_ORACLE_FORM").unwrap_or_default().to_lowercase();
    forms::all().filter(move |code| format!("{code:?}").to_lowercase().contains(&wanted))
}

#[test]
fn every_form_does_what_the_processor_does() {
    let budget = Budget::new(ROUNDS);
    let mut contest = contest(budget.seed());
    let codes: Vec<Code> =
        chosen().filter(|&code| forms::classify(code) == Class::Tested).collect();
    let mut tallies: BTreeMap<usize, Tally> = BTreeMap::new();
    let mut shown = 0;
    let mut round = 0;
    while budget.lasts(round) {
        for &code in &codes {
            let tally = tallies.entry(code as usize).or_default();
            let seed = budget.seed() ^ (code as u64) << 32 ^ round;
            let failure = try_form(&mut contest, code, seed, tally);
            if let Some(text) = failure {
                tally.failures += 1;
                if tally.failures as usize <= SHOWN && shown < SHOWN_IN_ALL {
                    shown += 1;
                    println!("{code:?} (seed {}, round {round}):\n{text}", budget.seed());
                }
            }
        }
        round += 1;
    }
    summarize(&codes, &tallies);
    println!("{}", contest.habits);
    let failed: Vec<String> = codes
        .iter()
        .filter(|&&code| tallies[&(code as usize)].failures > 0)
        .map(|code| format!("{code:?} ({})", tallies[&(*code as usize)].failures))
        .collect();
    assert!(failed.is_empty(), "{} forms differ: {}", failed.len(), failed.join(", "));
}

/// One random instance in one random state; the differences, if any.
fn try_form(contest: &mut Contest, code: Code, seed: u64, tally: &mut Tally) -> Option<String> {
    let mut random = Random::new(seed);
    let Some(mut instance) = Instance::of(code, AT, &mut random) else {
        return Some("no bytes were found that decode to it".into());
    };
    let case = placing::case_for(&mut instance, &contest.world, &mut random);
    tally.cases += 1;
    let length = instance.bytes.len();
    match contest.judge(&case, length, Some(&instance.instruction)).expect("a worker") {
        Verdict::Same(End::Exception { vector: 1 | 3, .. }) => tally.completed += 1,
        Verdict::Same(_) => tally.faulted += 1,
        Verdict::Incomparable => tally.incomparable += 1,
        Verdict::Different(text) => return Some(text),
    }
    None
}

fn summarize(codes: &[Code], tallies: &BTreeMap<usize, Tally>) {
    let sum = |part: fn(&Tally) -> u32| tallies.values().map(part).sum::<u32>();
    println!(
        "{} forms, {} cases: {} completed, {} faulted, {} incomparable, {} different",
        codes.len(),
        sum(|tally| tally.cases),
        sum(|tally| tally.completed),
        sum(|tally| tally.faulted),
        sum(|tally| tally.incomparable),
        sum(|tally| tally.failures),
    );
    let never: Vec<String> = codes
        .iter()
        .filter(|&&code| tallies[&(code as usize)].completed == 0)
        .map(|code| format!("{code:?}"))
        .collect();
    println!("never completed ({}): {}", never.len(), never.join(" "));
    let mut excluded: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for code in forms::all() {
        if let Class::Excluded(reason) = forms::classify(code) {
            excluded.entry(reason).or_default().push(format!("{code:?}"));
        }
    }
    for (reason, codes) in excluded {
        let some = codes.iter().take(12).cloned().collect::<Vec<_>>().join(" ");
        println!("excluded, {reason} ({}): {some}", codes.len());
    }
}

#[test]
fn the_embedders_instructions_are_handed_over_untouched() {
    let seed = seed();
    let mut contest = contest(seed);
    let mut failures = Vec::new();
    let codes: Vec<Code> =
        chosen().filter(|&code| forms::classify(code) == Class::Embedders).collect();
    for &code in &codes {
        for round in 0..8 {
            let mut random = Random::new(seed ^ (code as u64) << 32 ^ round);
            let Some(mut instance) = Instance::of(code, AT, &mut random) else {
                failures.push(format!("{code:?}: no bytes were found that decode to it"));
                break;
            };
            let mut case = placing::case_for(&mut instance, &contest.world, &mut random);
            case.state.eflags &= !0x100;
            let (stop, changed) = contest.run_alone(&case);
            let handed = matches!(stop, Stop::Privileged(handed) if handed.code() == code);
            if !handed || !changed.is_empty() {
                failures.push(format!("{code:?} {:02x?}: {stop:x?} {changed:?}", instance.bytes));
                break;
            }
        }
    }
    println!("{} forms are the embedder's", codes.len());
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}

#[test]
fn what_is_not_offered_does_not_exist() {
    let seed = seed();
    let mut contest = contest(seed);
    let mut failures = Vec::new();
    let (mut tested, mut impossible) = (0, Vec::new());
    let codes = chosen().filter(|&code| forms::classify(code) == Class::NotOffered);
    for code in codes {
        let mut random = Random::new(seed ^ (code as u64) << 32);
        let Some(mut instance) = Instance::of(code, AT, &mut random) else {
            impossible.push(format!("{code:?}"));
            continue;
        };
        tested += 1;
        let case = placing::case_for(&mut instance, &contest.world, &mut random);
        let (stop, changed) = contest.run_alone(&case);
        let undefined = Stop::End(End::Exception { vector: 6, error: 0, address: 0 });
        if stop != undefined || !changed.is_empty() {
            failures.push(format!("{code:?} {:02x?}: {stop:x?} {changed:?}", instance.bytes));
        }
    }
    println!("{tested} forms aren't offered; decoded to something else: {}", impossible.join(" "));
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}
