//! Random programs, held against the real processor: what single instructions can't show, namely
//! branches, loops, calls, code that changes itself, and all kinds of state carried from one
//! instruction to the next.
//!
//! Runs [`PROGRAMS`] of them; for `LGUEST_ORACLE_SECONDS` when that is set, from another seed each time
//! unless `LGUEST_ORACLE_SEED` says which.

use lguest_oracle::Budget;
use lguest_oracle::End;
use lguest_oracle::blocks::Blocks;
use lguest_oracle::contest::{Contest, Verdict};
use lguest_oracle::random::Random;

/// Programs in a run of about 15 seconds.
const PROGRAMS: u64 = 27_000;
/// Failures to show before giving up.
const SHOWN: usize = 8;

#[test]
fn random_programs_do_what_they_do_on_the_processor() {
    let budget = Budget::new(PROGRAMS);
    let mut random = Random::new(budget.seed());
    let mut contest = Contest::new(&mut random).expect("the processor must run 32-bit code");
    let mut blocks = Blocks::new(&contest.habits);
    let (mut count, mut whole, mut incomparable, mut failures) = (0_u64, 0_u64, 0_u64, 0);
    while failures < SHOWN && budget.lasts(count) {
        let seed = budget.seed() ^ count << 20;
        let block = blocks.make(&contest.world, &mut Random::new(seed));
        count += 1;
        match contest.judge(&block.case, block.length, None).expect("a worker") {
            Verdict::Same(End::Exception { vector: 3, .. }) => whole += 1,
            Verdict::Same(_) => {}
            Verdict::Incomparable => incomparable += 1,
            Verdict::Different(text) => {
                failures += 1;
                println!("program {count} of seed {}:\n{text}", budget.seed());
            }
        }
    }
    println!(
        "{count} programs: {whole} ran to their end, {incomparable} incomparable, {failures} different"
    );
    println!("{}", contest.habits);
    println!("{:?}", contest.machine.vcpu().statistics());
    assert_eq!(failures, 0, "programs that ended differently (seed {})", budget.seed());
}
