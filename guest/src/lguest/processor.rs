//! Control registers of a guest: words of memory, but for one bit.

use super::Lguest;
use super::hypercalls::lazy_hcall;
use super::shared_page::LGUEST_DATA;
use crate::assembly;
use crate::processor::{CR0_TS, Cpuid, Processor};
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::Hypercall;

/// Protection, an FPU with errors of its own, write protection, paging: what a kernel expects to
/// find.
const INITIAL_CR0: u32 = 0x8005_0033;

static CR0: AtomicU32 = AtomicU32::new(INITIAL_CR0);

/// Of leaf 1's ecx: SSE3, SSSE3, CX16.
const LEAF_1_ECX: u32 = 0x2201;
/// Of leaf 1's edx: FPU, CX8, CMOV, MMX, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = 0x0780_8101;
/// Global pages, which the guest is told it has: how the kernel then flushes tells the Host apart
/// whether kernel addresses are meant.
const PGE: u32 = 1 << 13;
/// The last extended leaf that is let through.
const LAST_EXTENDED_LEAF: u32 = 0x8000_0008;

impl Processor for Lguest {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        let mut answer = assembly::cpuid(leaf, subleaf);
        match leaf {
            1 => {
                answer.ecx &= LEAF_1_ECX;
                answer.edx = answer.edx & LEAF_1_EDX | PGE;
            }
            0x8000_0000 => answer.eax = answer.eax.min(LAST_EXTENDED_LEAF),
            _ => {}
        }
        answer
    }

    fn read_cr0(&self) -> u32 {
        CR0.load(Ordering::Relaxed)
    }

    fn write_cr0(&self, value: u32) {
        let before = CR0.swap(value, Ordering::Relaxed);
        if (before ^ value) & CR0_TS != 0 {
            lazy_hcall(Hypercall::Ts { set: value & CR0_TS != 0 });
        }
    }

    fn clts(&self) {
        self.write_cr0(self.read_cr0() & !CR0_TS);
    }

    fn read_cr2(&self) -> u32 {
        LGUEST_DATA.data.cr2.load(Ordering::Relaxed)
    }

    fn read_cr4(&self) -> u32 {
        0
    }

    fn write_cr4(&self, _value: u32) {}

    fn read_debug(&self, _index: u8) -> u32 {
        0
    }

    fn write_debug(&self, _index: u8, _value: u32) {}

    fn wbinvd(&self) {}
}
