//! Guests that do anything.

#![no_main]

use lguest_fuzz_cases::{guest, harness};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = harness::decode::<guest::Case>(bytes).run();
});
