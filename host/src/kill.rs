//! Every way in which the Host ends a guest.
//!
//! A guest can go wrong in two manners. What a processor would report, it gets as a trap and
//! handles itself. What breaks the interface it agreed to ends it, and the person who started it
//! deserves to know why: so each reason is a variant here, and its message names the value that
//! was wrong. (The third manner, an error of the host itself, is never a [`Kill`].)

use lguest_abi::Generation;
use lguest_abi::traps::{PAGE_FAULT, has_error_code};
use lguest_switcher::address::{GuestPhys, GuestVirt};
use thiserror::Error;

/// Why the Host ended a guest.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Kill {
    /// No such hypercall.
    #[error("unknown hypercall {number}")]
    UnknownHypercall {
        /// What eax held.
        number: u32,
    },
    /// Something other than LGUEST_INIT came first.
    #[error("hypercall {number} before LGUEST_INIT")]
    NotInitialized {
        /// What eax held.
        number: u32,
    },
    /// What the guest shares with the Host isn't what its generation of the interface has there.
    #[error(
        "LguestData at {data} isn't that of generation {generation}: its kernel's addresses should begin at {expected:#010x} (--abi names another generation)"
    )]
    OtherGeneration {
        /// Where LguestData is.
        data: GuestPhys,
        /// The generation that the kernel was taken to be of.
        generation: Generation,
        /// Where the kernel's addresses begin.
        expected: u32,
    },
    /// System calls can't come by the vector that the guest wants.
    #[error("system calls by a vector other than 0x40 and 0x80")]
    BadSystemCallVector,
    /// LGUEST_INIT came again.
    #[error("LGUEST_INIT a second time, with LguestData at {data}")]
    InitializedTwice {
        /// Where the second LguestData would be.
        data: GuestPhys,
    },
    /// A range of physical addresses isn't inside memory and devices.
    #[error("bad address range: {what} at {start}, {bytes} bytes")]
    BadAddress {
        /// What should have been there.
        what: &'static str,
        /// First byte.
        start: GuestPhys,
        /// Length in bytes, unwrapped.
        bytes: u64,
    },
    /// SET_STACK with a segment that isn't of level 1.
    #[error("stack segment {selector:#x} isn't of level 1")]
    BadStackSegment {
        /// The whole word the guest passed.
        selector: u32,
    },
    /// SET_STACK with more than two pages.
    #[error("{pages} stack pages, when at most 2 can be pinned")]
    TooManyStackPages {
        /// How many the guest asked for.
        pages: u32,
    },
    /// A page of the stack for traps isn't mapped writable.
    #[error("bad stack page {address}: not mapped writable")]
    BadStackPage {
        /// An address inside the page.
        address: GuestVirt,
    },
    /// A descriptor table with too many entries.
    #[error("{entries} GDT entries, when there is room for {}", lguest_abi::segments::GDT_ENTRIES)]
    GdtTooLarge {
        /// How many the guest asked for.
        entries: u32,
    },
    /// A present IDT entry of a kind that can't be.
    #[error("IDT entry {vector} is neither an interrupt nor a trap gate: {low:#010x} {high:#010x}")]
    BadGate {
        /// Its vector.
        vector: u32,
        /// First word of the entry.
        low: u32,
        /// Second word.
        high: u32,
    },
    /// A page table entry that the interface doesn't allow.
    #[error("bad page table entry {entry:#010x} for {address}")]
    BadPageTableEntry {
        /// Its value: PWT or PSE is set, or the frame lies beyond memory and devices.
        entry: u64,
        /// The virtual address it maps.
        address: GuestVirt,
    },
    /// A top-level entry that the interface doesn't allow.
    #[error("bad page directory entry {entry:#010x} for {address}")]
    BadPageDirectoryEntry {
        /// Its value: a bit outside 0x67 is set, or the frame lies beyond memory and devices.
        entry: u64,
        /// A virtual address that it maps.
        address: GuestVirt,
    },
    /// The top 4 MiB of virtual addresses are the Host's; 2 MiB where page tables have three levels.
    #[error("{what} at {address}, among the topmost addresses, which the Host reserves")]
    ReservedAddress {
        /// What the guest tried.
        what: &'static str,
        /// Where.
        address: GuestVirt,
    },
    /// A trap that the guest has no handler for.
    #[error(
        "no handler for trap {vector}{} at eip {eip:#010x}",
        details(*vector, *error, *address)
    )]
    NoHandler {
        /// The trap's vector.
        vector: u8,
        /// Its error code, 0 when it has none.
        error: u32,
        /// The guest's cr2, which says something when the trap is a page fault.
        address: GuestVirt,
        /// Where it happened.
        eip: u32,
    },
    /// A trap or interrupt couldn't be delivered, because its stack or code segment is unusable.
    #[error(
        "double fault: vector {vector} at eip {eip:#010x} can't be delivered, {what} ({value:#010x})"
    )]
    DoubleFault {
        /// The vector that was to be delivered.
        vector: u8,
        /// Where the guest was.
        eip: u32,
        /// What is wrong.
        what: &'static str,
        /// The address or selector that is wrong.
        value: u32,
    },
    /// A DMA key that isn't a multiple of 4, or names no memory.
    #[error("bad DMA key {key}: unaligned, or no memory")]
    BadDmaKey {
        /// The key.
        key: GuestPhys,
    },
    /// A section of a Dma that isn't memory.
    #[error("bad DMA section at {start}, length {bytes}, of the Dma at {dma}")]
    BadDmaSection {
        /// The Dma it belongs to.
        dma: GuestPhys,
        /// First byte of the section.
        start: GuestPhys,
        /// Its length.
        bytes: u16,
    },
    /// A change of the processor's mode that can't be followed.
    #[error(
        "{register} = {value:#010x} at eip {eip:#010x}: the guest may not leave 32-bit protected mode with paging"
    )]
    ModeChange {
        /// The control register.
        register: &'static str,
        /// What the guest wrote.
        value: u32,
        /// Where.
        eip: u32,
    },
    /// A correct instruction that can't be run yet.
    #[error("unsupported instruction at eip {eip:#010x}: {text} ({bytes})")]
    Unsupported {
        /// Where it is.
        eip: u32,
        /// Its disassembly.
        text: String,
        /// Its bytes in hexadecimal.
        bytes: String,
    },
}

/// What is known about a trap: its error code, if it has one, and where a page fault was.
fn details(vector: u8, error: u32, address: GuestVirt) -> String {
    match vector {
        PAGE_FAULT => format!(" (a page fault at {address}, error code {error:#x})"),
        _ if has_error_code(vector) => format!(" (error code {error:#x})"),
        _ => String::new(),
    }
}
