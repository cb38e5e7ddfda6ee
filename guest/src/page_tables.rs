//! Page tables: the kernel writes them, and a machine that keeps a shadow is told.
//!
//! They are the processor's two-level tables of 32-bit entries; the flags are in
//! [`lguest_abi::paging`]. The table's memory is written first, then the Host learns of it: it
//! holds copies (shadows) of what the tables said when it last looked.
//!
//! Nothing is told before the first [`write_cr3`](PageTables::write_cr3). A kernel builds its first
//! tables entry by entry, thousands of them, and the Host has no shadow of those yet.

use core::sync::atomic::AtomicU32;
use lguest_abi::{Phys, Virt};

/// The operations on page tables.
///
/// The entries are atomics, since the Host sets their accessed and dirty bits.
///
/// # Safety
/// Each `unsafe fn` changes what addresses mean: afterwards every address that running code uses
/// must mean what that code believes.
pub trait PageTables {
    /// The page directory in use, as last written; 0 before that.
    fn read_cr3(&self) -> Phys;

    /// Switches to another page directory. Can wait in a lazy mode.
    ///
    /// # Safety
    /// See [`PageTables`].
    unsafe fn write_cr3(&self, directory: Phys);

    /// Sets the page-table entry that maps `address` under `directory`. This is the one to use
    /// where both are known: the Host updates a single mapping. For an address of the kernel, all
    /// directories are meant. Can wait in a lazy mode.
    ///
    /// # Safety
    /// See [`PageTables`]. `entry` must be that entry.
    unsafe fn set_pte_at(&self, directory: Phys, address: Virt, entry: &AtomicU32, value: u32);

    /// Sets a page-table entry, wherever it is used: everything is flushed. Can wait in a lazy
    /// mode.
    ///
    /// # Safety
    /// See [`PageTables`].
    unsafe fn set_pte(&self, entry: &AtomicU32, value: u32);

    /// Sets an entry of a page directory. Can wait in a lazy mode.
    ///
    /// # Safety
    /// See [`PageTables`]. `entry` must lie in a page directory in the linear map.
    unsafe fn set_pmd(&self, entry: &AtomicU32, value: u32);

    /// Forgets translations of user addresses in the current address space. Can wait in a lazy
    /// mode.
    fn flush_tlb_user(&self);

    /// Forgets all translations. Can wait in a lazy mode.
    fn flush_tlb_kernel(&self);

    /// Forgets the translation of one address in the current address space. Can wait in a lazy
    /// mode.
    fn flush_tlb_single(&self, address: Virt);
}
