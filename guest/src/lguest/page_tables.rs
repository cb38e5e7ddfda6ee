//! Page tables of a guest: the processor uses the Host's copies, so the Host must hear of changes.

use super::Lguest;
use super::hypercalls::lazy_hcall;
use crate::memory::phys_of;
use crate::page_tables::PageTables;
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::hypercall::FlushScope;
use lguest_abi::paging::FRAME_MASK;
use lguest_abi::{Hypercall, Phys, Virt};

/// The page directory in use; 0 as long as it is the launcher's.
static CR3: AtomicU32 = AtomicU32::new(0);

/// Tells the Host, unless it is too early for it to care.
fn tell(call: Hypercall) {
    if CR3.load(Ordering::Relaxed) != 0 {
        lazy_hcall(call);
    }
}

impl PageTables for Lguest {
    fn read_cr3(&self) -> Phys {
        Phys(CR3.load(Ordering::Relaxed))
    }

    unsafe fn write_cr3(&self, directory: Phys) {
        lazy_hcall(Hypercall::NewPgtable { directory });
        CR3.store(directory.0, Ordering::Relaxed);
    }

    unsafe fn set_pte_at(&self, directory: Phys, address: Virt, entry: &AtomicU32, value: u32) {
        entry.store(value, Ordering::Release);
        tell(Hypercall::SetPte { directory, address, value: u64::from(value) });
    }

    unsafe fn set_pte(&self, entry: &AtomicU32, value: u32) {
        entry.store(value, Ordering::Release);
        // The Host would have to be told which address that is. It is not known: flush it all.
        tell(Hypercall::FlushTlb { scope: FlushScope::All });
    }

    unsafe fn set_pmd(&self, entry: &AtomicU32, value: u32) {
        entry.store(value, Ordering::Release);
        let at = phys_of(entry).0;
        let index = (at & !FRAME_MASK) / size_of::<u32>() as u32;
        tell(Hypercall::SetPmd { directory: Phys(at & FRAME_MASK), index });
    }

    fn flush_tlb_user(&self) {
        tell(Hypercall::FlushTlb { scope: FlushScope::User });
    }

    fn flush_tlb_kernel(&self) {
        tell(Hypercall::FlushTlb { scope: FlushScope::All });
    }

    fn flush_tlb_single(&self, address: Virt) {
        // Not present is always safe to say: if it was present, it faults back in.
        tell(Hypercall::SetPte { directory: self.read_cr3(), address, value: 0 });
    }
}
