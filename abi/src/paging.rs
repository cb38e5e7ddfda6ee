//! Page tables as the guest writes them and the Host reads them: two levels, 32-bit entries.
//!
//! The bits are the processor's (SDM volume 3, section "32-Bit Paging"); which of them a guest may
//! use is the interface's.

/// Bytes in a page.
pub const PAGE_SIZE: u32 = 4096;

/// Entries in a page directory, and in a page table.
pub const ENTRIES: u32 = 1024;

/// Bytes of virtual addresses that one page-directory entry covers.
pub const DIRECTORY_ENTRY_BYTES: u32 = PAGE_SIZE * ENTRIES;

/// The entry maps something.
pub const PRESENT: u32 = 1 << 0;
/// It may be written.
pub const WRITE: u32 = 1 << 1;
/// User code may use it.
pub const USER: u32 = 1 << 2;
/// Write-through caching. Not allowed to a guest.
pub const PWT: u32 = 1 << 3;
/// No caching. Of no consequence.
pub const PCD: u32 = 1 << 4;
/// It has been used.
pub const ACCESSED: u32 = 1 << 5;
/// It has been written through; page tables only.
pub const DIRTY: u32 = 1 << 6;
/// In a page directory: a page of four megabytes. In a page table: PAT. Not allowed to a guest.
pub const PSE: u32 = 1 << 7;
/// The same in all address spaces; page tables only.
pub const GLOBAL: u32 = 1 << 8;

/// The part of an entry that is a page frame's address.
pub const FRAME_MASK: u32 = !(PAGE_SIZE - 1);

/// What the flags of the launcher's own page tables are.
pub const LAUNCHER_FLAGS: u32 = PRESENT | WRITE | USER;

/// The flags that a page-directory entry may have.
pub const DIRECTORY_FLAGS: u32 = PRESENT | WRITE | USER | ACCESSED | DIRTY;

/// The flags that a present page-table entry may not have.
pub const FORBIDDEN_PAGE_FLAGS: u32 = PWT | PSE;

/// The page-directory entry that is the Host's own; `SET_PMD` of it is ignored.
pub const RESERVED_DIRECTORY_INDEX: u32 = ENTRIES - 1;

/// Bits of a page fault's error code.
pub mod fault {
    /// The page was present: what was wrong is the right to use it so.
    pub const PRESENT: u32 = 1 << 0;
    /// It was a write.
    pub const WRITE: u32 = 1 << 1;
    /// It came from user mode.
    pub const USER: u32 = 1 << 2;
}

const _: () = {
    assert!(DIRECTORY_FLAGS == 0x67);
    assert!(LAUNCHER_FLAGS == 7);
    assert!(RESERVED_DIRECTORY_INDEX * DIRECTORY_ENTRY_BYTES == 0xffc0_0000);
};
