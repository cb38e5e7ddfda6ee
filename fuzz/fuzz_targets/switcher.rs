//! Guests that do anything.

#![no_main]

use lguest_fuzz_cases::{harness, switcher};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = harness::decode::<switcher::Case>(bytes).run(switcher::ENOUGH);
});
