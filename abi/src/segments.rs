//! The guest's GDT: which entries mean what.
//!
//! A guest's kernel runs at privilege level 1, since on a real processor the Host kept level 0, and
//! its user code at level 3.

/// Entries in a guest's GDT.
pub const GDT_ENTRIES: u32 = 32;

/// Privilege level of the guest's kernel.
pub const KERNEL_LEVEL: u16 = 1;
/// Privilege level of the guest's user code.
pub const USER_LEVEL: u16 = 3;

/// The first of the entries that `LOAD_TLS` loads.
pub const TLS_FIRST: u32 = 6;
/// How many entries `LOAD_TLS` loads.
pub const TLS_ENTRIES: u32 = 3;

/// Entry of the kernel's code segment.
pub const KERNEL_CODE_ENTRY: u32 = 12;
/// Entry of the kernel's data segment.
pub const KERNEL_DATA_ENTRY: u32 = 13;
/// Entry of the user code segment.
pub const USER_CODE_ENTRY: u32 = 14;
/// Entry of the user data segment.
pub const USER_DATA_ENTRY: u32 = 15;

/// Entries the Host keeps for itself: what a guest puts there is ignored. Two that it switches
/// with, its TSS, and the one for double faults.
pub const RESERVED_ENTRIES: [u32; 4] = [10, 11, 16, 31];

/// Selector of the kernel's code.
pub const KERNEL_CS: u16 = 0x61;
/// Selector of the kernel's data and stack.
pub const KERNEL_DS: u16 = 0x69;
/// Selector of user code.
pub const USER_CS: u16 = 0x73;
/// Selector of user data.
pub const USER_DS: u16 = 0x7b;

/// The first flat 4 GiB code segment: level 1, accessed.
pub const FLAT_KERNEL_CODE: u64 = 0x00cf_bb00_0000_ffff;
/// The first flat 4 GiB data segment: level 1, accessed.
pub const FLAT_KERNEL_DATA: u64 = 0x00cf_b300_0000_ffff;
/// A flat 4 GiB code segment for level 3, accessed.
pub const FLAT_USER_CODE: u64 = 0x00cf_fb00_0000_ffff;
/// A flat 4 GiB data segment for level 3, accessed.
pub const FLAT_USER_DATA: u64 = 0x00cf_f300_0000_ffff;

/// eflags at the guest's first instruction.
pub const INITIAL_EFLAGS: u32 = 0x202;

const _: () = {
    assert!(KERNEL_CS as u32 == KERNEL_CODE_ENTRY * 8 + KERNEL_LEVEL as u32);
    assert!(KERNEL_DS as u32 == KERNEL_DATA_ENTRY * 8 + KERNEL_LEVEL as u32);
    assert!(USER_CS as u32 == USER_CODE_ENTRY * 8 + USER_LEVEL as u32);
    assert!(USER_DS as u32 == USER_DATA_ENTRY * 8 + USER_LEVEL as u32);
};
