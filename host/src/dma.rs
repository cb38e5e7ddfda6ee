//! DMA: how a guest sends data out, and gets data in.
//!
//! Both go by *keys*. A key names a piece of memory, a multiple of 4; a device page's address, say.
//! A guest that wants to receive *binds* an array of [`Dma`]s to a key, with an interrupt. A guest
//! that sends names a key and one `Dma`. This file keeps the bound arrays, finds the free `Dma`
//! in one, and judges every `Dma` before anybody uses it; who the receiver is, the launcher says
//! (`devices.rs`).
//!
//! Every key is looked up among this guest's own arrays only. Keys in memory that several guests
//! map name each other's arrays too; that belongs here, by (file, offset) instead of address, and
//! with a cursor for each array, once a device shares memory.

use crate::kill::Kill;
use lguest_abi::Dma;
use lguest_abi::dma::{KEY_ALIGN, MAX_BOUND, SECTIONS, offset};
use lguest_abi::traps::IRQS;
use lguest_switcher::GuestMemory;
use lguest_switcher::address::GuestPhys;
use thiserror::Error;

/// Bytes of a [`Dma`] in guest memory.
const DMA_BYTES: u32 = Dma::SIZE as u32;

/// The pieces of guest memory that a `Dma` names, each found to lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sections {
    list: [(GuestPhys, u16); SECTIONS],
    count: usize,
}

impl Sections {
    /// Reads and judges the `Dma` at `at`.
    pub(crate) fn read(memory: &GuestMemory, at: GuestPhys) -> Result<Self, Kill> {
        let mut bytes = [0; Dma::SIZE];
        let bad = Kill::BadAddress { what: "Dma", start: at, bytes: u64::from(DMA_BYTES) };
        memory.read(at, &mut bytes).map_err(|_| bad)?;
        let mut sections = Self { list: [(GuestPhys(0), 0); SECTIONS], count: 0 };
        for (slot, section) in sections.list.iter_mut().zip(Dma::from_bytes(&bytes).sections()) {
            let start = GuestPhys(section.addr.0);
            if !memory.contains(start, u32::from(section.len)) {
                return Err(Kill::BadDmaSection { dma: at, start, bytes: section.len });
            }
            *slot = (start, section.len);
            sections.count += 1;
        }
        Ok(sections)
    }

    /// Start and length of each piece, in order. No length is 0.
    pub fn iter(&self) -> impl Iterator<Item = (GuestPhys, u16)> + '_ {
        self.list.iter().take(self.count).copied()
    }

    /// Bytes in all pieces together.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.iter().map(|(_, len)| u32::from(len)).sum()
    }

    /// Appends what the pieces hold to `out`.
    pub fn gather(&self, memory: &GuestMemory, out: &mut Vec<u8>) {
        for (start, len) in self.iter() {
            let old = out.len();
            out.resize(old + usize::from(len), 0);
            if memory.read(start, &mut out[old..]).is_err() {
                // Can't be, since the piece was found to lie in memory; then it reads as zeros.
                out[old..].fill(0);
            }
        }
    }

    /// Puts `bytes` into the pieces, as far as they reach. Gives how many went in.
    pub fn scatter(&self, memory: &GuestMemory, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        for (start, len) in self.iter() {
            let (now, later) = rest.split_at(rest.len().min(usize::from(len)));
            if now.is_empty() || memory.write(start, now).is_err() {
                break;
            }
            rest = later;
        }
        bytes.len() - rest.len()
    }
}

/// A free `Dma` of a bound array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BoundBuffer {
    dma: GuestPhys,
    irq: u8,
    sections: Sections,
}

impl BoundBuffer {
    /// The memory to fill.
    #[must_use]
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The interrupt of the array it belongs to.
    pub(crate) fn irq(&self) -> u8 {
        self.irq
    }

    /// Sets its `used_len`, after the data is there.
    pub(crate) fn mark_used(&self, memory: &GuestMemory, used: u32) -> Result<(), Kill> {
        set_used_len(memory, self.dma, used)
    }
}

/// Why there is no buffer for a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NoBuffer {
    /// The guest has bound nothing to that key.
    #[error("no buffers are bound to that key")]
    NotBound,
    /// The lowest free buffer has no sections.
    #[error("the free buffer bound to that key has no room")]
    NoRoom,
    /// Every buffer is still in use.
    #[error("every buffer bound to that key is in use")]
    NoneFree,
}

/// Writes `used` into the `Dma` at `at`: its owner sees it after whatever was written before.
pub(crate) fn set_used_len(memory: &GuestMemory, at: GuestPhys, used: u32) -> Result<(), Kill> {
    let field = at.wrapping_add(offset::USED_LEN);
    memory.write(field, &used.to_le_bytes()).map_err(|_| Kill::BadAddress {
        what: "Dma",
        start: at,
        bytes: u64::from(DMA_BYTES),
    })
}

/// Checks a key that a guest named.
pub(crate) fn check_key(memory: &GuestMemory, key: GuestPhys) -> Result<(), Kill> {
    if key.0.is_multiple_of(KEY_ALIGN) && memory.contains(key, KEY_ALIGN) {
        Ok(())
    } else {
        Err(Kill::BadDmaKey { key })
    }
}

/// One bound array.
#[derive(Clone, Copy, Debug)]
struct Array {
    key: GuestPhys,
    start: GuestPhys,
    count: u32,
    irq: u8,
}

/// All arrays a guest has bound.
#[derive(Debug, Default)]
pub(crate) struct BoundArrays {
    arrays: Vec<Array>,
}

impl BoundArrays {
    /// BIND_DMA: binds an array of `count`, or withdraws one when `irq` is 0. Gives what the guest sees
    /// in eax.
    pub(crate) fn bind(
        &mut self,
        memory: &GuestMemory,
        key: GuestPhys,
        start: GuestPhys,
        count: u32,
        irq: u8,
    ) -> Result<u32, Kill> {
        check_key(memory, key)?;
        if irq == 0 {
            let found = self.arrays.iter().position(|a| (a.key, a.start) == (key, start));
            found.map(|index| self.arrays.remove(index));
            return Ok(u32::from(found.is_some()));
        }
        let bytes = u64::from(count) * u64::from(DMA_BYTES);
        let in_memory = u32::try_from(bytes).is_ok_and(|bytes| memory.contains(start, bytes));
        if !in_memory {
            return Err(Kill::BadAddress { what: "array of Dma", start, bytes });
        }
        if irq >= IRQS || self.arrays.len() >= MAX_BOUND {
            return Ok(0);
        }
        self.arrays.push(Array { key, start, count, irq });
        Ok(1)
    }

    /// The lowest free buffer bound to `key`, or why there is none. A buffer that breaks the rules ends the
    /// guest.
    pub(crate) fn free_buffer(
        &self,
        memory: &GuestMemory,
        key: GuestPhys,
    ) -> Result<Result<BoundBuffer, NoBuffer>, Kill> {
        let mut reason = NoBuffer::NotBound;
        for array in self.arrays.iter().filter(|array| array.key == key) {
            reason = NoBuffer::NoneFree;
            for index in 0..array.count {
                let dma = array.start.wrapping_add(index * DMA_BYTES);
                let mut used = [0; 4];
                if memory.read(dma, &mut used).is_ok() && used == [0; 4] {
                    let sections = Sections::read(memory, dma)?;
                    return Ok(Ok(BoundBuffer { dma, irq: array.irq, sections }));
                }
            }
        }
        Ok(Err(reason))
    }

    /// The interrupt of the first array bound to `key`.
    pub(crate) fn irq_of(&self, key: GuestPhys) -> Option<u8> {
        self.arrays.iter().find(|array| array.key == key).map(|array| array.irq)
    }
}
