//! How a buffer is described: up to sixteen pieces of physical memory.
//!
//! A guest that sends fills one [`Dma`] with where its bytes are; a guest that receives *binds* an
//! array of them, and somebody else fills the memory they name. `used_len` is the signal between
//! the two: 0 means free, anything else how many bytes arrived.
//!
//! The fields are atomics, because the Host writes `used_len` while the guest holds the structure.
//! The Host copies the hundred bytes out of guest memory once and judges the copy:
//! [`Dma::from_bytes`].

use crate::address::Phys;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// How many pieces a [`Dma`] can name.
pub const SECTIONS: usize = 16;

/// How many arrays a guest may have bound at a time.
pub const MAX_BOUND: usize = 32;

/// Keys are multiples of this many bytes.
pub const KEY_ALIGN: u32 = 4;

/// Where each field is, in bytes from the start of a [`Dma`].
pub mod offset {
    /// u32
    pub const USED_LEN: u32 = 0;
    /// 16 × u32
    pub const ADDR: u32 = 4;
    /// 16 × u16
    pub const LEN: u32 = 68;
}

/// One piece of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// Where it is.
    pub addr: Phys,
    /// How many bytes, at least 1.
    pub len: u16,
}

// ANCHOR: dma
/// A description of a buffer, as it lies in guest memory.
#[repr(C)]
#[derive(Debug)]
pub struct Dma {
    /// Bytes that were transferred; 0 while the buffer is free.
    pub used_len: AtomicU32,
    addr: [AtomicU32; SECTIONS],
    len: [AtomicU16; SECTIONS],
}
// ANCHOR_END: dma

impl Dma {
    /// Bytes in the structure.
    pub const SIZE: usize = 100;

    /// A free one, with no sections.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            used_len: AtomicU32::new(0),
            addr: [const { AtomicU32::new(0) }; SECTIONS],
            len: [const { AtomicU16::new(0) }; SECTIONS],
        }
    }

    /// What the 100 bytes at a guest address say.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (words, lens) = bytes.split_at(offset::LEN as usize);
        let dma = Self::new();
        let (words, _) = words.as_chunks::<4>();
        let fields = core::iter::once(&dma.used_len).chain(&dma.addr);
        for (field, word) in fields.zip(words) {
            field.store(u32::from_le_bytes(*word), Ordering::Relaxed);
        }
        let (lens, _) = lens.as_chunks::<2>();
        for (field, len) in dma.len.iter().zip(lens) {
            field.store(u16::from_le_bytes(*len), Ordering::Relaxed);
        }
        dma
    }

    /// Names up to [`SECTIONS`] pieces, and no others. Pieces beyond that are left out, and so is
    /// everything from the first empty one on, since a length of 0 ends the list.
    pub fn set_sections(&self, sections: impl IntoIterator<Item = Section>) {
        let mut sections = sections.into_iter();
        for (addr, len) in self.addr.iter().zip(&self.len) {
            let section = sections.next().unwrap_or(Section { addr: Phys(0), len: 0 });
            addr.store(section.addr.0, Ordering::Relaxed);
            len.store(section.len, Ordering::Relaxed);
        }
    }

    /// The pieces, up to the first whose length is 0.
    pub fn sections(&self) -> impl Iterator<Item = Section> + '_ {
        self.addr
            .iter()
            .zip(&self.len)
            .map(|(addr, len)| Section {
                addr: Phys(addr.load(Ordering::Relaxed)),
                len: len.load(Ordering::Relaxed),
            })
            .take_while(|section| section.len != 0)
    }
}

impl Default for Dma {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = {
    assert!(size_of::<Dma>() == Dma::SIZE);
    assert!(offset_of!(Dma, used_len) == offset::USED_LEN as usize);
    assert!(offset_of!(Dma, addr) == offset::ADDR as usize);
    assert!(offset_of!(Dma, len) == offset::LEN as usize);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn sections_end_at_the_first_empty_one() {
        let mut bytes = [0; Dma::SIZE];
        bytes[0..4].copy_from_slice(&7u32.to_le_bytes());
        for (n, len) in [(0, 5u16), (1, 6), (2, 0), (3, 8)] {
            bytes[4 + 4 * n..][..4].copy_from_slice(&(0x1000 * (n as u32 + 1)).to_le_bytes());
            bytes[68 + 2 * n..][..2].copy_from_slice(&len.to_le_bytes());
        }
        let dma = Dma::from_bytes(&bytes);
        assert_eq!(dma.used_len.load(Ordering::Relaxed), 7);
        let expected =
            [Section { addr: Phys(0x1000), len: 5 }, Section { addr: Phys(0x2000), len: 6 }];
        assert_eq!(dma.sections().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn all_sixteen_sections_can_be_used() {
        let sections = (0..20).map(|n| Section { addr: Phys(n * 64), len: 64 });
        let dma = Dma::new();
        dma.set_sections(sections.clone());
        let expected = sections.take(SECTIONS).collect::<Vec<_>>();
        assert_eq!(dma.sections().collect::<Vec<_>>(), expected);
    }
}
