//! CPUID: what processor the guest believes it has.
//!
//! It is the host's in name and model, with the features that the Switcher translates and no
//! others. What isn't offered doesn't exist: the Switcher raises #UD for it.
//!
//! Its caches are the host's, too: C libraries choose how they copy by the size of them, and badly if they aren't told.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use std::sync::LazyLock;

/// Leaf 1, edx: FPU, TSC, SEP, CX8, CMOV, MMX, FXSR, SSE, SSE2.
const OFFERED_EDX: u32 =
    1 << 0 | 1 << 4 | 1 << 8 | 1 << 11 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
/// Leaf 1, ecx: SSE3, SSSE3, SSE4.1, SSE4.2, POPCNT, AES.
const OFFERED_ECX: u32 = 1 << 0 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25;
/// The highest basic leaf: caches as Intel's processors tell them.
const HIGHEST: u32 = CACHES;
/// The highest extended leaf: caches as AMD's processors tell them.
const HIGHEST_EXTENDED: u32 = 0x8000_0006;
const FIRST_EXTENDED: u32 = 0x8000_0000;

/// A byte for each cache and TLB (SDM volume 2, "CPUID", leaf 2).
const DESCRIPTORS: u32 = 2;
/// A subleaf for each cache.
const CACHES: u32 = 4;
/// Of its eax: type, level and properties, without how many processors share it.
const CACHE_ITSELF: u32 = (1 << 14) - 1;
/// Subleaves that are kept: more than any processor has, the last of which says that there are no more.
const MOST_CACHES: usize = 8;

/// First leaf of the brand string.
const BRAND: u32 = 0x8000_0002;
/// Its last.
const BRAND_END: u32 = 0x8000_0004;
/// Caches and TLBs of the first level (AMD APM volume 3, appendix E).
const FIRST_LEVEL: u32 = 0x8000_0005;
const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// The host's answers, asked for once: where the host is a virtual machine itself, its `cpuid` takes microseconds, and
/// Linux serializes by it whenever it patches its code.
struct Host {
    vendor: CpuidResult,
    features: CpuidResult,
    descriptors: CpuidResult,
    caches: [CpuidResult; MOST_CACHES],
    /// Nothing where there is no brand string.
    brand: [CpuidResult; 3],
    /// The two leaves from [`FIRST_LEVEL`] on.
    levels: [CpuidResult; 2],
}

static HOST: LazyLock<Host> = LazyLock::new(|| {
    let vendor = __cpuid(0);
    let (basic, extended) = (vendor.eax, __cpuid(FIRST_EXTENDED).eax);
    let leaf = |leaf: u32| {
        let highest = if leaf < FIRST_EXTENDED { basic } else { extended };
        if leaf <= highest { __cpuid(leaf) } else { NOTHING }
    };
    let cache = |subleaf: usize| match subleaf {
        0..7 if CACHES <= basic => {
            let cache = __cpuid_count(CACHES, subleaf as u32);
            CpuidResult { eax: cache.eax & CACHE_ITSELF, ..cache }
        }
        _ => NOTHING,
    };
    Host {
        vendor,
        features: __cpuid(1),
        descriptors: leaf(DESCRIPTORS),
        caches: std::array::from_fn(cache),
        brand: [0, 1, 2].map(|part| leaf(BRAND + part)),
        levels: [0, 1].map(|level| leaf(FIRST_LEVEL + level)),
    }
});

/// What `cpuid` gives for `leaf`, and for `subleaf` where there are some.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    match leaf {
        0 => CpuidResult { eax: HIGHEST, ..HOST.vendor },
        1 => CpuidResult {
            eax: HOST.features.eax,
            // No brand index, no cache line flush, one processor with number 0.
            ebx: 0,
            ecx: HOST.features.ecx & OFFERED_ECX,
            edx: HOST.features.edx & OFFERED_EDX,
        },
        DESCRIPTORS => HOST.descriptors,
        CACHES => HOST.caches[(subleaf as usize).min(MOST_CACHES - 1)],
        FIRST_EXTENDED => CpuidResult { eax: HIGHEST_EXTENDED, ..NOTHING },
        BRAND..=BRAND_END => HOST.brand[(leaf - BRAND) as usize],
        FIRST_LEVEL..=HIGHEST_EXTENDED => HOST.levels[(leaf - FIRST_LEVEL) as usize],
        // Extended features: of those that exist in 32-bit mode none is offered.
        _ => NOTHING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beyond_the_offer() {
        let leaf = cpuid(1, 0);
        assert_eq!(leaf.edx & !OFFERED_EDX, 0);
        assert_eq!(leaf.ecx & !OFFERED_ECX, 0);
        assert_eq!(cpuid(7, 0).ebx, 0);
        assert_eq!(cpuid(0x8000_0001, 0).edx, 0);
    }

    #[test]
    fn the_vendor_is_the_hosts() {
        assert_eq!(cpuid(0, 0).ebx, __cpuid(0).ebx);
        assert_eq!(cpuid(0, 0).eax, HIGHEST);
    }

    #[test]
    fn caches_are_the_hosts_and_nobody_shares_them() {
        if __cpuid(0).eax >= CACHES {
            for subleaf in 0..4 {
                let (offered, host) = (cpuid(CACHES, subleaf), __cpuid_count(CACHES, subleaf));
                assert_eq!((offered.ebx, offered.ecx, offered.edx), (host.ebx, host.ecx, host.edx));
                assert_eq!((offered.eax & 0x3ff, offered.eax >> 14), (host.eax & 0x3ff, 0));
            }
        }
        assert_eq!(cpuid(CACHES, u32::MAX), NOTHING);
        if __cpuid(FIRST_EXTENDED).eax >= HIGHEST_EXTENDED {
            assert_eq!(cpuid(HIGHEST_EXTENDED, 0).ecx, __cpuid(HIGHEST_EXTENDED).ecx);
        }
    }
}
