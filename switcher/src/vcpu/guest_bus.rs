//! Memory as the guest sees it, for everything that Rust does in its name.
//!
//! Translated code reaches memory through windows; Rust never does. It asks the window's *record*
//! (or, where that doesn't know, the embedder) for the frame, and then accesses physical memory, where a
//! write into translated code is noted.
//!
//! Where a page table leads to physical addresses without memory, the embedder is asked: there may be a device.

use super::spaces::Spaces;
use crate::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use crate::emulate::Bus;
use crate::environment::{Access, Environment, PageFault};
use crate::exit::Exception;
use crate::memory::GuestMemory;

/// Memory at one privilege level.
pub(super) struct GuestBus<'a> {
    pub(super) env: &'a mut dyn Environment,
    pub(super) spaces: &'a Spaces,
    pub(super) memory: &'a GuestMemory,
    /// Level 3.
    pub(super) user: bool,
    /// The data breakpoints that the guest has hit, as bits of DR6.
    pub(super) hits: u32,
}

impl<'a> GuestBus<'a> {
    pub(super) fn new(
        env: &'a mut dyn Environment,
        spaces: &'a Spaces,
        memory: &'a GuestMemory,
        user: bool,
    ) -> Self {
        Self { env, spaces, memory, user, hits: 0 }
    }

    fn note(&mut self, at: GuestVirt, len: usize, write: bool) {
        self.hits |= self.spaces.breakpoints.touched(at, len as u32, write);
    }

    /// The physical address behind a virtual one.
    fn locate(&mut self, at: GuestVirt, write: bool) -> Result<GuestPhys, PageFault> {
        let slot = self.spaces.shower(self.user, at.0);
        let record = self.spaces.windows.get(slot, at.page_number());
        if record.is_known() && (record.is_writable() || !write) {
            return Ok(GuestPhys(record.frame() * PAGE_SIZE + at.offset()));
        }
        let access = if write { Access::Write } else { Access::Read };
        let mapping = self.env.translate(at, access, self.user)?;
        Ok(mapping.phys.wrapping_add(at.0.wrapping_sub(mapping.virt.0)))
    }

    /// Copies memory out, as far as it can be read.
    pub(super) fn copy_out(&mut self, at: GuestVirt, into: &mut [u8]) -> Result<(), PageFault> {
        self.copy(at, into, true)
    }

    /// The same for an operand that is about to be overwritten: no device is read, since that can change it.
    pub(super) fn copy_out_memory(
        &mut self,
        at: GuestVirt,
        into: &mut [u8],
    ) -> Result<(), PageFault> {
        self.copy(at, into, false)
    }

    fn copy(&mut self, at: GuestVirt, into: &mut [u8], devices: bool) -> Result<(), PageFault> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at_mut(in_page(at, rest.len()));
            let phys = self.locate(at, false)?;
            if self.memory.read(phys, piece).is_err() {
                if devices {
                    self.env.read_device(phys, piece);
                } else {
                    piece.fill(0);
                }
            }
            at = at.wrapping_add(piece.len() as u32);
            rest = behind;
        }
        Ok(())
    }

    /// Copies `from` into memory: all of it, or nothing.
    pub(super) fn copy_in(&mut self, at: GuestVirt, from: &[u8]) -> Result<(), PageFault> {
        if from.len() > in_page(at, from.len()) {
            self.probe(at, from.len())?;
        }
        let (mut at, mut rest) = (at, from);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(in_page(at, rest.len()));
            let phys = self.locate(at, true)?;
            if self.memory.write(phys, piece).is_err() {
                self.env.write_device(phys, piece);
            }
            at = at.wrapping_add(piece.len() as u32);
            rest = behind;
        }
        Ok(())
    }

    /// Whether `len` bytes at `at` can be written.
    pub(super) fn probe(&mut self, at: GuestVirt, len: usize) -> Result<(), PageFault> {
        let (mut at, mut left) = (at, len);
        while left > 0 {
            self.locate(at, true)?;
            let piece = in_page(at, left);
            at = at.wrapping_add(piece as u32);
            left -= piece;
        }
        Ok(())
    }
}

/// How many of `len` bytes lie in the page that `at` is in.
fn in_page(at: GuestVirt, len: usize) -> usize {
    len.min((PAGE_SIZE - at.offset()) as usize)
}

impl Bus for GuestBus<'_> {
    fn read(&mut self, at: GuestVirt, into: &mut [u8]) -> Result<(), Exception> {
        self.note(at, into.len(), false);
        Ok(self.copy_out(at, into)?)
    }

    fn write(&mut self, at: GuestVirt, from: &[u8]) -> Result<(), Exception> {
        self.note(at, from.len(), true);
        Ok(self.copy_in(at, from)?)
    }

    fn check_write(&mut self, at: GuestVirt, len: u32) -> Result<(), Exception> {
        Ok(self.probe(at, len as usize)?)
    }

    fn together(&mut self, at: GuestVirt, len: u32) -> u32 {
        // A page fault comes in its own time.
        if self.locate(at, false).is_ok_and(|phys| !self.memory.contains(phys, 1)) {
            return 0;
        }
        self.spaces.breakpoints.untouched(at, len)
    }

    fn is_hit(&self) -> bool {
        self.hits != 0
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, Exception> {
        Ok(self.env.descriptor(selector)?)
    }

    fn is_settled(&self, selector: u16) -> bool {
        self.env.is_settled(selector)
    }

    fn mark_accessed(&mut self, selector: u16) -> Result<(), Exception> {
        Ok(self.env.mark_accessed(selector)?)
    }
}
