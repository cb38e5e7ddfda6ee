//! Who gets which part of memory, decided once at boot.
//!
//! From the bottom: a page of boot parameters (copied by now), free memory, the kernel's image from
//! one megabyte on, the heap right behind it, and all that is left up to the launcher's page tables and the
//! initrd at the top.

use core::ops::Range;
use lguest_abi::paging::{DIRECTORY_ENTRY_BYTES, PAGE_SIZE};
use lguest_abi::{Phys, Virt};
use lguest_guest::boot::BootParams;
use lguest_guest::memory;

unsafe extern "C" {
    static kernel_start: u8;
    static kernel_read_only_end: u8;
    static kernel_end: u8;
}

/// The heap gets one part in this many of memory, within bounds.
const HEAP_PART: u32 = 16;
const HEAP_MIN: u32 = 512 << 10;
const HEAP_MAX: u32 = 16 << 20;

/// The part of the kernel's image that isn't written any more once it is patched.
pub(crate) fn read_only_image() -> Range<Virt> {
    Virt((&raw const kernel_start).addr() as u32)
        ..Virt((&raw const kernel_read_only_end).addr() as u32)
}

/// Where the image ends: a page's start.
fn image_end() -> Phys {
    memory::phys(Virt((&raw const kernel_end).addr() as u32))
}

/// How much memory the linear map shows: all, but for what is beyond its reach. The last four
/// megabytes of addresses below the Host's are for devices' pages.
pub(crate) fn linear_end(boot: &BootParams) -> Phys {
    let reach = memory::linear_map_bytes().saturating_sub(DIRECTORY_ENTRY_BYTES);
    Phys(boot.memory_end().0.min(reach) & !(PAGE_SIZE - 1))
}

/// Where devices' pages are mapped: four megabytes behind the linear map's farthest reach.
pub(crate) fn device_window() -> Range<Virt> {
    let end = 0u32.wrapping_sub(memory::reserve_top().max(DIRECTORY_ENTRY_BYTES));
    let end = end & !(DIRECTORY_ENTRY_BYTES - 1);
    Virt(end - DIRECTORY_ENTRY_BYTES)..Virt(end)
}

/// The heap's place, right behind the image.
pub(crate) fn heap(boot: &BootParams) -> Range<Phys> {
    let bytes = (linear_end(boot).0 / HEAP_PART).clamp(HEAP_MIN, HEAP_MAX) & !(PAGE_SIZE - 1);
    image_end()..Phys(image_end().0 + bytes)
}

/// Whether there is room for the heap, and something left.
pub(crate) fn is_enough(boot: &BootParams) -> bool {
    heap(boot).end < boot.launcher_page_tables().start.min(linear_end(boot))
}

/// Memory that is free from the start, above and below the kernel.
pub(crate) fn free(boot: &BootParams) -> impl Iterator<Item = Range<Phys>> + '_ {
    let below = Phys(PAGE_SIZE)..memory::phys(read_only_image().start);
    let above = heap(boot).end..boot.launcher_page_tables().start.min(linear_end(boot));
    boot.usable_memory().flat_map(move |usable| {
        [&below, &above].map(|part| usable.start.max(part.start)..usable.end.min(part.end))
    })
}

/// What the launcher's page tables leave behind.
pub(crate) fn launcher_page_tables(boot: &BootParams) -> Range<Phys> {
    let tables = boot.launcher_page_tables();
    tables.start.min(linear_end(boot))..tables.end.min(linear_end(boot))
}
