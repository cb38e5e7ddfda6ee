//! The Switcher alone, in a world that changes under it.

use lguest_fuzz_cases::harness;
use lguest_fuzz_cases::switcher::{Case, ENOUGH};
use std::time::Duration;

/// Processor time for a case that matters by itself.
const PLENTY: Duration = Duration::from_secs(1);

#[test]
fn fuzz_what_code_does_in_a_changing_world() {
    let (mut exits, mut compared) = (0, 0);
    let enough = if std::env::var_os(harness::FILE).is_some() { PLENTY } else { ENOUGH };
    let cases = harness::for_a_while("switcher", |case: Case| {
        let outcome = case.run(enough);
        exits += outcome.exits;
        compared += u64::from(outcome.compared);
    });
    println!("{exits} exits, {compared} cases compared");
    assert!(cases < 100 || compared > cases / 10, "nothing is compared");
}

#[test]
fn what_code_did_once_is_no_trouble_now() {
    harness::replay("switcher", |case: Case| {
        let outcome = case.run(PLENTY);
        assert!(outcome.compared, "it doesn't come to its end");
    });
}
