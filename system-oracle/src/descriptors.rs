//! Descriptors and gates as numbers (SDM volume 3, sections "Segment Descriptors" and "IDT Descriptors").

/// Present; to be combined with a level and a type.
pub const PRESENT: u32 = 0x80;
/// Code or data, not a system descriptor.
pub const CODE_OR_DATA: u32 = 0x10;
/// Flags of a segment whose limit counts pages, 32-bit.
pub const PAGES_32: u32 = 0xc;
/// Flags of a segment whose limit counts bytes, 32-bit.
pub const BYTES_32: u32 = 0x4;
/// The highest limit.
pub const WHOLE: u32 = 0xf_ffff;

/// Types of system descriptors and gates (SDM volume 3, section "System Descriptor Types").
pub mod system {
    #![allow(missing_docs)]
    pub const TSS_16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS_16_BUSY: u32 = 3;
    pub const CALL_GATE_16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE_16: u32 = 6;
    pub const TRAP_GATE_16: u32 = 7;
    pub const TSS: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const CALL_GATE: u32 = 12;
    pub const INTERRUPT_GATE: u32 = 14;
    pub const TRAP_GATE: u32 = 15;
}

/// Types of code and data, accessed.
pub mod kind {
    #![allow(missing_docs)]
    pub const READ_ONLY: u32 = 1;
    pub const DATA: u32 = 3;
    pub const DOWN: u32 = 7;
    pub const EXECUTE_ONLY: u32 = 9;
    pub const CODE: u32 = 11;
    pub const CONFORMING: u32 = 15;
}

/// A segment descriptor: `access` is the byte with P, DPL, S and type; `flags` are G, D/B, L and AVL.
#[must_use]
pub const fn segment(base: u32, limit: u32, access: u32, flags: u32) -> u64 {
    let low = base << 16 | limit & 0xffff;
    let high =
        base & 0xff00_0000 | base >> 16 & 0xff | limit & 0xf_0000 | access << 8 | flags << 20;
    (high as u64) << 32 | low as u64
}

/// Code or data, present, of a level.
#[must_use]
pub const fn flat(kind: u32, level: u8) -> u64 {
    segment(0, WHOLE, access(kind, level), PAGES_32)
}

/// The access byte of present code or data.
#[must_use]
pub const fn access(kind: u32, level: u8) -> u32 {
    PRESENT | (level as u32) << 5 | CODE_OR_DATA | kind
}

/// A gate; `access` is the byte with P, DPL and type; `count` is a call gate's number of parameters.
#[must_use]
pub const fn gate(selector: u16, offset: u32, access: u32, count: u32) -> u64 {
    let low = (selector as u32) << 16 | offset & 0xffff;
    let high = offset & 0xffff_0000 | access << 8 | count & 0x1f;
    (high as u64) << 32 | low as u64
}

/// A present gate of a type that may be used from `level`.
#[must_use]
pub const fn open_gate(kind: u32, level: u8, selector: u16, offset: u32) -> u64 {
    gate(selector, offset, PRESENT | (level as u32) << 5 | kind, 0)
}
