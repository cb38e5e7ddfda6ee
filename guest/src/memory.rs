//! The linear map: where physical memory is in the kernel's addresses.

use lguest_abi::paging::PAGE_SIZE;
use lguest_abi::{Phys, Virt};

/// Where the linear map starts: physical address 0 is here. The kernel's linker script says.
#[must_use]
pub fn page_offset() -> Virt {
    Virt(crate::assembly::page_offset())
}

/// The physical address of something in the linear map: a static, a kernel stack, memory the kernel
/// took from there.
#[must_use]
pub fn phys_of<T: ?Sized>(thing: &T) -> Phys {
    phys(Virt(core::ptr::from_ref(thing).cast::<u8>().addr() as u32))
}

/// The physical address behind an address of the linear map.
#[must_use]
pub fn phys(address: Virt) -> Phys {
    Phys(address.0.wrapping_sub(page_offset().0))
}

/// Where physical memory is in the linear map.
#[must_use]
pub fn virt(address: Phys) -> Virt {
    Virt(address.0.wrapping_add(page_offset().0))
}

/// How many bytes at the top of virtual addresses are the Host's: the kernel maps nothing there.
#[must_use]
pub fn reserve_top() -> u32 {
    crate::lguest::reserve_top()
}

/// How much physical memory the linear map can show: to the reserved top, less a page so that no
/// pointer wraps.
#[must_use]
pub fn linear_map_bytes() -> u32 {
    0u32.wrapping_sub(page_offset().0) - reserve_top().max(PAGE_SIZE)
}
