//! Guests that do anything.

use lguest_fuzz_cases::guest::Case;
use lguest_fuzz_cases::harness;
use lguest_host::End;

#[test]
fn fuzz_whatever_a_guest_does() {
    let (mut ends, mut traps) = ([0u64; 5], 0);
    let cases = harness::for_a_while("guest", |case: Case| {
        let outcome = case.run();
        traps += u64::from(outcome.traps);
        ends[match outcome.end {
            End::PowerOff => 0,
            End::Crashed(_) => 1,
            End::Killed(_) => 2,
            End::Stopped(_) => 3,
            End::Restart => 4,
        }] += 1;
    });
    let [off, crashed, killed, stopped, restarted] = ends;
    println!(
        "{off} powered off, {crashed} crashed, {killed} ended by the Host, {stopped} stopped, {restarted} restarted"
    );
    println!("their handlers saw {traps} traps");
    assert!(cases < 100 || off > 0 && killed > 0, "these guests are all the same");
}

#[test]
fn what_a_guest_did_once_is_no_trouble_now() {
    harness::replay("guest", |case: Case| {
        let _ = case.run();
    });
}
