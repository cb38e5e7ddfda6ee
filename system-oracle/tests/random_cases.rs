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

/// Unicorn's failure to fetch what follows was taken for the call's: eip alone doesn't tell that it has moved.
#[test]
fn a_far_call_to_its_own_offset_in_another_segment() {
    let case = any_case(1_795_642_174, 57_834);
    let offset = case.state.eip.to_le_bytes();
    assert_eq!((case.name, &case.code[1..5]), ("call far", &offset[..]), "it is another case now");
    match compare(&mut OurMachine::new(), &mut UnicornMachine::new(), &case) {
        Verdict::Same(..) => {}
        Verdict::Excluded(reason) => panic!("excluded: {reason}"),
        Verdict::Different(lines) => panic!("{}", lines.join("\n")),
    }
}
