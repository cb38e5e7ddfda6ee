//! Files that claim to be kernels.

#![no_main]

use lguest::Kernel;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(kernel) = Kernel::parse(file) {
        assert!(kernel.end() <= 1 << 32);
        assert!(kernel.page_offset().0 != 0);
        assert!(!kernel.segments().is_empty());
    }
});
