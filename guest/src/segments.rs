//! Segments, gates and the stack for traps.
//!
//! The tables stay the kernel's own memory, in the processor's format (SDM volume 3, chapters
//! "Protected-Mode Memory Management" and "Interrupt and Exception Handling"); a
//! [`Machine`](crate::Machine) makes them count.

use lguest_abi::Virt;
use lguest_abi::segments::TLS_ENTRIES;

/// A segment descriptor, as it lies in a descriptor table.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// A data segment for user code that may be read and written: what a thread-local storage entry
    /// is.
    ///
    /// `limit` is the last address in bytes, or in pages with `in_pages`; its low 20 bits count.
    #[must_use]
    pub const fn user_data(base: u32, limit: u32, in_pages: bool) -> Self {
        const PRESENT_USER_READ_WRITE: u64 = 0xf3 << 40;
        const THIRTY_TWO_BITS: u64 = 1 << 54;
        let limit = limit as u64;
        let base = base as u64;
        let granularity = (in_pages as u64) << 55;
        Self(
            limit & 0xffff
                | (base & 0x00ff_ffff) << 16
                | PRESENT_USER_READ_WRITE
                | (limit & 0xf_0000) << 32
                | THIRTY_TWO_BITS
                | granularity
                | (base & 0xff00_0000) << 32,
        )
    }
}

/// A gate, as it lies in the interrupt descriptor table.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Gate {
    /// The first four bytes.
    pub low: u32,
    /// The last four bytes.
    pub high: u32,
}

impl Gate {
    /// A gate that leads nowhere.
    pub const ABSENT: Self = Self { low: 0, high: 0 };

    /// A gate to `handler` in segment `selector`. Interrupts are disabled on entry. Code of
    /// privilege `level` (0..=3) and lower numbers may use it by `int`.
    #[must_use]
    pub const fn interrupt(selector: u16, handler: Virt, level: u8) -> Self {
        Self::new(selector, handler, level, lguest_abi::traps::GATE_INTERRUPT)
    }

    /// The same, but interrupts stay as they are.
    #[must_use]
    pub const fn trap(selector: u16, handler: Virt, level: u8) -> Self {
        Self::new(selector, handler, level, lguest_abi::traps::GATE_TRAP)
    }

    const fn new(selector: u16, handler: Virt, level: u8, kind: u8) -> Self {
        const PRESENT: u32 = 1 << 15;
        let attributes = PRESENT | (level as u32 & 3) << 13 | (kind as u32) << 8;
        Self {
            low: (selector as u32) << 16 | handler.0 & 0xffff,
            high: handler.0 & 0xffff_0000 | attributes,
        }
    }
}

/// A local descriptor table was asked for, and this machine has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoLdt;

/// The operations on segments.
pub trait Segments {
    /// Writes one gate into the kernel's table and makes it count.
    ///
    /// # Safety
    /// The gate's handler must be code that may run at any time the vector's event can happen.
    ///
    /// # Panics
    /// When the table has no such entry.
    unsafe fn write_idt_entry(&self, table: &mut [Gate], vector: u8, gate: Gate);

    /// Makes a whole table of gates count. Those beyond it are left as they were.
    ///
    /// # Safety
    /// As for [`write_idt_entry`](Self::write_idt_entry), for each gate.
    unsafe fn load_idt(&self, table: &'static [Gate]);

    /// Makes a table of segments count.
    ///
    /// # Safety
    /// The segments that are in use must still be what the running code needs.
    ///
    /// # Panics
    /// When it has more than 32 entries.
    unsafe fn load_gdt(&self, table: &'static [Descriptor]);

    /// Writes one entry into the kernel's table and makes the table count.
    ///
    /// # Safety
    /// As for [`load_gdt`](Self::load_gdt).
    ///
    /// # Panics
    /// When the table has no such entry, or more than 32.
    unsafe fn write_gdt_entry(&self, table: &mut [Descriptor], index: usize, entry: Descriptor);

    /// Loads the three thread-local storage entries, 6 to 8 of the GDT. Can wait in a lazy mode.
    ///
    /// It sets fs and gs to 0, since a Host need not bear that an entry in use changes: so the
    /// kernel saves both before, for the thread that goes, and loads them after, for the one that
    /// comes.
    fn load_tls(&self, entries: &[Descriptor; TLS_ENTRIES as usize]);

    /// Uses a local descriptor table; an empty one is none.
    ///
    /// # Safety
    /// As for [`load_gdt`](Self::load_gdt).
    ///
    /// # Errors
    /// When the table isn't empty and the machine has no local descriptor tables.
    unsafe fn set_ldt(&self, table: &'static [Descriptor]) -> Result<(), NoLdt>;

    /// Loads the task register. A guest's Host has its own task state segment: there it does
    /// nothing.
    fn load_tr(&self);

    /// Says where the stack for traps from user mode ends, and how many pages of it (1 or 2) must
    /// always be present. Can wait in a lazy mode.
    ///
    /// # Safety
    /// That memory must be the kernel's, used for nothing else while user code runs.
    ///
    /// # Panics
    /// When `pages` is more than 2.
    unsafe fn load_esp0(&self, esp0: Virt, pages: u32);
}
