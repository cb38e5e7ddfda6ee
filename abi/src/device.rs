//! The descriptor page: which devices this guest has.
//!
//! It is the first page above the guest's memory, and holds sixteen descriptors. A driver that
//! knows a descriptor's type answers through its status word, one bit at a time: seen, driven,
//! ready. A device's interrupt is its place in the page, plus one.

use core::mem::{offset_of, size_of};

/// How many descriptors the page holds.
pub const MAX_DEVICES: usize = 16;

/// What kind of device a descriptor is for.
pub mod kind {
    /// No device; the other fields mean nothing.
    pub const NONE: u16 = 0;
    /// The console: no pages, key 0.
    pub const CONSOLE: u16 = 1;
    /// A network: one page of MAC slots.
    pub const NET: u16 = 2;
    /// A disk: one [`BlockPage`](super::BlockPage).
    pub const BLOCK: u16 = 3;
}

/// Bits of the features word, written by the launcher.
pub mod features {
    /// The interrupts come at random enough times to feed an entropy pool.
    pub const RANDOMNESS: u16 = 0x8000;
    /// Net: frames need no checksum.
    pub const NET_NO_CHECKSUM: u16 = 0x4000;
    /// Net: the low bits are the guest's slot.
    pub const NET_SLOT_MASK: u16 = 0x3fff;
}

/// Bits of the status word, written by the guest, except [`REMOVED`](status::REMOVED).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGED: u16 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u16 = 2;
    /// The driver works.
    pub const DRIVER_OK: u16 = 4;
    /// The device is going away.
    pub const REMOVED: u16 = 8;
    /// The guest has seen that.
    pub const REMOVED_ACKNOWLEDGED: u16 = 16;
    /// The guest has given up on the device.
    pub const FAILED: u16 = 128;
}

// ANCHOR: device_descriptor
/// One entry of the descriptor page.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DeviceDescriptor {
    /// One of [`kind`].
    pub kind: u16,
    /// Bits of [`features`].
    pub features: u16,
    /// Bits of [`status`].
    pub status: u16,
    /// How many pages the device has.
    pub num_pages: u16,
    /// The first one's page frame number.
    pub pfn: u32,
}
// ANCHOR_END: device_descriptor

/// Where each field is, in bytes from the start of a [`DeviceDescriptor`].
pub mod offset {
    /// u16
    pub const KIND: u32 = 0;
    /// u16
    pub const FEATURES: u32 = 2;
    /// u16
    pub const STATUS: u32 = 4;
    /// u16
    pub const NUM_PAGES: u32 = 6;
    /// u32
    pub const PFN: u32 = 8;
}

impl DeviceDescriptor {
    /// Bytes in the structure.
    pub const SIZE: usize = 12;

    /// What these bytes of the page say.
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [k0, k1, f0, f1, s0, s1, n0, n1, p0, p1, p2, p3] = *bytes;
        Self {
            kind: u16::from_le_bytes([k0, k1]),
            features: u16::from_le_bytes([f0, f1]),
            status: u16::from_le_bytes([s0, s1]),
            num_pages: u16::from_le_bytes([n0, n1]),
            pfn: u32::from_le_bytes([p0, p1, p2, p3]),
        }
    }

    /// How it looks in the page.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; Self::SIZE] {
        let [k0, k1] = self.kind.to_le_bytes();
        let [f0, f1] = self.features.to_le_bytes();
        let [s0, s1] = self.status.to_le_bytes();
        let [n0, n1] = self.num_pages.to_le_bytes();
        let [p0, p1, p2, p3] = self.pfn.to_le_bytes();
        [k0, k1, f0, f1, s0, s1, n0, n1, p0, p1, p2, p3]
    }
}

/// The interrupt of the device whose descriptor is at `index`: 1..=16.
#[must_use]
pub const fn irq_of(index: usize) -> u8 {
    index as u8 + 1
}

/// The console.
pub mod console {
    /// The key its output is sent to and its input is bound at.
    pub const KEY: u32 = 0;
    /// How many bytes of input it takes at a time.
    pub const INPUT_BYTES: usize = 256;
}

/// A disk's page.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BlockPage {
    /// [`block::READ`] or [`block::WRITE`]. Written by the guest.
    pub kind: i32,
    /// The first sector. Written by the guest.
    pub sector: u32,
    /// How many bytes. Written by the guest.
    pub bytes: u32,
    /// [`block::PENDING`] (guest), then [`block::DONE`] or [`block::FAILED`] (launcher).
    pub result: i32,
    /// The disk's size in sectors. Written by the launcher.
    pub num_sectors: u32,
}

/// Values in a [`BlockPage`].
pub mod block {
    /// Bytes in a sector.
    pub const SECTOR_BYTES: u32 = 512;
    /// The request reads.
    pub const READ: i32 = 0;
    /// The request writes.
    pub const WRITE: i32 = 1;
    /// No answer yet.
    pub const PENDING: i32 = 0;
    /// It was done.
    pub const DONE: i32 = 1;
    /// It went wrong.
    pub const FAILED: i32 = 2;
}

/// A network's page: an array of slots, one for each guest on it.
pub mod net {
    /// Bytes in a slot: a MAC address. First byte 0 means that it is free.
    pub const SLOT_BYTES: u32 = 6;
    /// How many slots fit in the page.
    pub const SLOTS: u32 = 682;
    /// The key of slot n is the page's address and n times this.
    pub const KEY_STRIDE: u32 = 4;
    /// The longest frame.
    pub const MAX_FRAME_BYTES: u32 = 1514;
    /// The shortest frame.
    pub const MIN_FRAME_BYTES: u32 = 14;
    /// How many receive buffers a guest binds.
    pub const RECEIVE_BUFFERS: u32 = 8;
    /// The bit of a MAC's first byte that says multicast; in a slot, that the guest is promiscuous.
    pub const MULTICAST: u8 = 1;
}

const _: () = {
    assert!(size_of::<DeviceDescriptor>() == DeviceDescriptor::SIZE);
    assert!(offset_of!(DeviceDescriptor, kind) == offset::KIND as usize);
    assert!(offset_of!(DeviceDescriptor, features) == offset::FEATURES as usize);
    assert!(offset_of!(DeviceDescriptor, status) == offset::STATUS as usize);
    assert!(offset_of!(DeviceDescriptor, num_pages) == offset::NUM_PAGES as usize);
    assert!(offset_of!(DeviceDescriptor, pfn) == offset::PFN as usize);
    assert!(size_of::<BlockPage>() == 20);
    assert!(offset_of!(BlockPage, sector) == 4);
    assert!(offset_of!(BlockPage, bytes) == 8);
    assert!(offset_of!(BlockPage, result) == 12);
    assert!(offset_of!(BlockPage, num_sectors) == 16);
    assert!(net::SLOT_BYTES * net::SLOTS <= crate::paging::PAGE_SIZE);
    assert!(MAX_DEVICES * DeviceDescriptor::SIZE <= crate::paging::PAGE_SIZE as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_the_page() {
        let descriptor =
            DeviceDescriptor { kind: 1, features: 0x8000, status: 7, num_pages: 2, pfn: 0x1_2345 };
        let bytes = descriptor.to_bytes();
        assert_eq!(bytes, [1, 0, 0, 0x80, 7, 0, 2, 0, 0x45, 0x23, 1, 0]);
        assert_eq!(DeviceDescriptor::from_bytes(&bytes), descriptor);
    }
}
