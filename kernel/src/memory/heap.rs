//! The kernel's heap: for what is smaller than a page, or lives as long as a process.
//!
//! Its size is fixed. What processes can make the kernel keep is limited (how many processes, areas,
//! open files, bytes of arguments), so that they run out before it does; running out is a panic.
//!
//! This is a room where unsafe code lives: the allocator's interface.

use crate::interrupt_lock::InterruptLock;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{self, NonNull};
use lguest_abi::Phys;
use lguest_guest::memory;
use linked_list_allocator::Heap;

/// The heap, as Rust's `alloc` crate sees it.
struct KernelHeap(InterruptLock<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(InterruptLock::new(Heap::empty()));

// SAFETY: it passes on what a `Heap` does, which keeps to the rules.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.0.with(|heap| heap.allocate_first_fit(layout));
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got the block from `alloc`, with this layout.
            self.0.with(|heap| unsafe { heap.deallocate(block, layout) });
        }
    }
}

/// Gives the heap its memory.
///
/// # Safety
/// The range must be memory in the linear map that nothing else uses, ever. To be called once.
pub(crate) unsafe fn init(range: Range<Phys>) {
    let start = ptr::with_exposed_provenance_mut(memory::virt(range.start).0 as usize);
    let bytes = (range.end.0 - range.start.0) as usize;
    // SAFETY: that is this function's own condition.
    HEAP.0.with(|heap| unsafe { heap.init(start, bytes) });
}

/// Bytes in the heap, and how many of them are used.
pub(crate) fn usage() -> (usize, usize) {
    HEAP.0.with(|heap| (heap.size(), heap.used()))
}
