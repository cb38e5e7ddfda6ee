//! Random cases, done by our machine and by unicorn.
//!
//! A failure names the seed that repeats it: `LGUEST_ORACLE_SEED=... cargo test --package lguest-system-oracle --test
//! random_cases`.

use lguest_oracle::Budget;
use lguest_system_oracle::contest::{Verdict, compare};
use lguest_system_oracle::instructions::any_case;
use lguest_system_oracle::tally::Tally;
use lguest_system_oracle::{OurMachine, UnicornMachine};

/// Cases in a run that nobody asked to be long.
const ROUNDS: u64 = 16_000;
/// Failures that are told of.
const TOLD: usize = 8;
/// Of a hundred cases so many must be compared.
const COMPARED: u64 = 90;

#[test]
fn both_do_the_same() {
    let budget = Budget::new(ROUNDS);
    let seed = budget.seed();
    let (mut ours, mut theirs) = (OurMachine::new(), UnicornMachine::new());
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    let mut number = 0;
    while budget.lasts(number) && failures.len() < TOLD {
        let case = any_case(seed, number);
        match compare(&mut ours, &mut theirs, &case) {
            Verdict::Same(outcome, details) => tally.compared(case.name, outcome, &details),
            Verdict::Excluded(reason) => tally.excluded(case.name, reason),
            Verdict::Different(lines) => {
                let lines = lines.join("\n  ");
                failures.push(format!("case {number}, {case}ours and theirs:\n  {lines}"));
            }
        }
        number += 1;
    }
    println!("seed {seed}, {number} cases\n{tally}");
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    assert_eq!(tally.never_done(), [""; 0], "instructions that were never carried out");
    assert!(tally.total() * 100 >= number * COMPARED, "too little was compared");
}
