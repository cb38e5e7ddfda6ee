//! CPUID: what processor the guest believes it has.
//!
//! It is the host's in name and model, with the features that the Switcher translates and no
//! others. What isn't offered doesn't exist: the Switcher raises #UD for it.

use std::arch::x86_64::{__cpuid, CpuidResult};
use std::sync::LazyLock;

/// Leaf 1, edx: FPU, TSC, SEP, CX8, CMOV, MMX, FXSR, SSE, SSE2.
const OFFERED_EDX: u32 =
    1 << 0 | 1 << 4 | 1 << 8 | 1 << 11 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
/// Leaf 1, ecx: SSE3, SSSE3, SSE4.1, SSE4.2, POPCNT, AES.
const OFFERED_ECX: u32 = 1 << 0 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25;
/// The highest basic leaf.
const HIGHEST: u32 = 1;
/// The highest extended leaf: the last of the brand string.
const HIGHEST_EXTENDED: u32 = 0x8000_0004;
const FIRST_EXTENDED: u32 = 0x8000_0000;

/// First leaf of the brand string.
const BRAND: u32 = 0x8000_0002;
const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// The host's answers, asked for once: where the host is a virtual machine itself, its `cpuid` takes microseconds, and
/// Linux serializes by it whenever it patches its code.
struct Host {
    vendor: CpuidResult,
    features: CpuidResult,
    /// Nothing where there is no brand string.
    brand: [CpuidResult; 3],
}

static HOST: LazyLock<Host> = LazyLock::new(|| {
    let has_brand = __cpuid(FIRST_EXTENDED).eax >= HIGHEST_EXTENDED;
    let brand = |part: u32| if has_brand { __cpuid(BRAND + part) } else { NOTHING };
    Host { vendor: __cpuid(0), features: __cpuid(1), brand: [0, 1, 2].map(brand) }
});

/// What `cpuid` gives for `leaf`.
#[must_use]
pub fn cpuid(leaf: u32) -> CpuidResult {
    match leaf {
        0 => CpuidResult { eax: HIGHEST, ..HOST.vendor },
        1 => CpuidResult {
            eax: HOST.features.eax,
            // No brand index, no cache line flush, one processor with number 0.
            ebx: 0,
            ecx: HOST.features.ecx & OFFERED_ECX,
            edx: HOST.features.edx & OFFERED_EDX,
        },
        FIRST_EXTENDED => CpuidResult { eax: HIGHEST_EXTENDED, ..NOTHING },
        BRAND..=HIGHEST_EXTENDED => HOST.brand[(leaf - BRAND) as usize],
        // Extended features: of those that exist in 32-bit mode none is offered.
        _ => NOTHING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beyond_the_offer() {
        let leaf = cpuid(1);
        assert_eq!(leaf.edx & !OFFERED_EDX, 0);
        assert_eq!(leaf.ecx & !OFFERED_ECX, 0);
        assert_eq!(cpuid(7).ebx, 0);
        assert_eq!(cpuid(0x8000_0001).edx, 0);
    }

    #[test]
    fn the_vendor_is_the_hosts() {
        assert_eq!(cpuid(0).ebx, __cpuid(0).ebx);
        assert_eq!(cpuid(0).eax, 1);
    }
}
