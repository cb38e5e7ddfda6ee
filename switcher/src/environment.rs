//! What the Switcher asks of whoever embeds it.
//!
//! The Switcher knows the processor's instructions; it doesn't know where page tables or
//! descriptor tables come from. Each question it can't answer itself is a method here.

use crate::address::{GuestPhys, GuestVirt};

/// What an access wants to do with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read data.
    Read,
    /// Write data, or read and write it.
    Write,
    /// Fetch an instruction.
    Fetch,
}

/// A run of pages that may be mapped as they stand: contiguous in both kinds of address, with the
/// same rights throughout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First virtual page (page-aligned).
    pub virt: GuestVirt,
    /// Its frame (page-aligned).
    pub phys: GuestPhys,
    /// Pages in the run, at least 1. The run wraps in neither address space.
    pub pages: u32,
    /// May be written without asking again.
    pub writable: bool,
    /// May be touched at level 3.
    pub user: bool,
}

/// Why an access isn't allowed, in the terms of a page-fault error code (SDM volume 3, section
/// "Page-Fault Exceptions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The byte that couldn't be touched: what CR2 shows.
    pub address: GuestVirt,
    /// Bit 0: the page was present; 1: it was a write; 2: at level 3.
    pub error: u32,
}

/// The embedder's side of a running processor.
pub trait Environment {
    /// Walks the guest's current page tables for one access, as the processor would, accessed and
    /// dirty bits included. `user` says that the access is made at level 3 (an implicit access
    /// to a descriptor or a stack switched to at an inner level isn't).
    ///
    /// The mapping returned contains `address` and allows `access`; it may show more pages around
    /// it that are worth mapping at the same time.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault>;

    /// The raw descriptor that `selector` names in the GDT or LDT; `None` when it lies beyond the
    /// table. Never called for a null selector.
    ///
    /// # Errors
    /// The page fault of reading the table, at level 0.
    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault>;

    /// The descriptor that `selector` names, found by [`descriptor`](Self::descriptor) a moment ago with its accessed bit clear,
    /// is being loaded into a segment register: sets that bit in the table (SDM volume 3, section "Code- and
    /// Data-Segment Descriptor Types"). An embedder whose descriptors are always marked has nothing to do.
    ///
    /// # Errors
    /// The page fault of writing to the table, at level 0.
    fn mark_accessed(&mut self, selector: u16) -> Result<(), PageFault> {
        let _ = selector;
        Ok(())
    }

    /// What `selector` names can't change without the embedder's calling
    /// [`Vcpu::descriptors_changed`](crate::Vcpu::descriptors_changed), and is marked as accessed. Then loading it over and over is cheap. A
    /// table in memory that the guest can write to promises no such thing.
    fn is_settled(&self, selector: u16) -> bool {
        let _ = selector;
        false
    }

    /// Reads physical addresses where there is no memory, in one access that doesn't leave its page: a device's registers,
    /// perhaps. An empty bus gives ones.
    fn read_device(&mut self, at: GuestPhys, into: &mut [u8]) {
        let _ = at;
        into.fill(0xff);
    }

    /// Writes to physical addresses where there is no memory, in one access that doesn't leave its page.
    fn write_device(&mut self, at: GuestPhys, from: &[u8]) {
        let _ = (at, from);
    }
}
