//! The page of facts at physical address 0: what a bare PC's firmware would have told the kernel.
//!
//! Linux calls it the *zero page*. Of its four kilobytes a guest needs half a dozen fields: how much
//! memory there is, where the initrd and the command line lie, and that the machine is no PC.
//! Where each field lies is in `lguest_abi::boot`, since the guest reads what is written here.

use crate::layout::Initrd;
use crate::memory_size::MemorySize;
use lguest_abi::Generation;
use lguest_abi::boot::{self, E820Entry, offset};
use lguest_switcher::GuestPhys;

/// Where the boot parameters lie; esi points here when the guest starts.
pub const ADDRESS: GuestPhys = GuestPhys(boot::BOOT_PARAMS);

/// Where the command line lies: the page above.
pub const COMMAND_LINE: GuestPhys = GuestPhys(boot::COMMAND_LINE);

/// What the guest is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootParameters {
    /// Its memory.
    pub memory: MemorySize,
    /// Where its initrd lies, if it has one.
    pub initrd: Option<Initrd>,
    /// Which of lguest's interfaces its kernel speaks.
    pub generation: Generation,
}

impl BootParameters {
    /// The page as the guest reads it.
    #[must_use]
    pub fn to_page(self) -> [u8; boot::BOOT_PARAMS_BYTES] {
        let mut page = [0; boot::BOOT_PARAMS_BYTES];
        let size = u64::from(self.memory.bytes());
        let whole = E820Entry { addr: 0, size, kind: boot::E820_RAM };
        put(&mut page, offset::E820_COUNT, &[1]);
        put(&mut page, offset::E820_MAP, &whole.to_bytes());
        if let Some(Initrd { start, size }) = self.initrd {
            put(&mut page, offset::LOADER_TYPE, &[boot::LOADER_UNKNOWN]);
            put(&mut page, offset::INITRD_START, &start.0.to_le_bytes());
            put(&mut page, offset::INITRD_SIZE, &size.to_le_bytes());
        }
        put(&mut page, offset::COMMAND_LINE_POINTER, &COMMAND_LINE.0.to_le_bytes());
        put(&mut page, offset::PLATFORM, &boot::PLATFORM_LGUEST.to_le_bytes());
        if !self.generation.is_signed() {
            // These come in by the same door as on a PC, and ask the header where they are.
            put(&mut page, offset::PROTOCOL, &boot::PROTOCOL_VERSION.to_le_bytes());
            put(&mut page, offset::LOADER_TYPE, &[boot::LOADER_UNKNOWN]);
            put(&mut page, offset::LOAD_FLAGS, &[boot::KEEP_SEGMENTS]);
            put(&mut page, offset::KERNEL_ALIGNMENT, &boot::KERNEL_ALIGNMENT.to_le_bytes());
        }
        page
    }
}

/// Writes one field. The offsets are constants that lie within the page.
fn put(page: &mut [u8], offset: u32, bytes: &[u8]) {
    let start = offset as usize;
    page[start..start + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
    }

    /// The offsets as the interface's description has them, not as our constants have.
    #[test]
    fn the_fields_lie_where_every_guest_looks_for_them() {
        let memory = MemorySize::from_mib(64).unwrap();
        let initrd = Initrd { start: GuestPhys(0x3f0_0000), size: 0x10_0000 };
        let page = BootParameters { memory, initrd: Some(initrd), generation: Generation::First }
            .to_page();
        assert_eq!(page[0x1e8], 1, "one e820 entry");
        assert_eq!(page[0x2d0..0x2d8], 0u64.to_le_bytes(), "from 0");
        assert_eq!(page[0x2d8..0x2e0], (64u64 << 20).to_le_bytes(), "64 MiB");
        assert_eq!(u32_at(&page, 0x2e0), 1, "of usable memory");
        assert_eq!(page[0x210], 0xff, "a loader that has no number");
        assert_eq!(u32_at(&page, 0x218), 0x3f0_0000);
        assert_eq!(u32_at(&page, 0x21c), 0x10_0000);
        assert_eq!(u32_at(&page, 0x228), 4096, "the command line");
        assert_eq!(u32_at(&page, 0x23c), 1, "the platform is lguest");
    }

    fn parameters(generation: Generation) -> BootParameters {
        BootParameters { memory: MemorySize::DEFAULT, initrd: None, generation }
    }

    #[test]
    fn later_kernels_find_the_header_of_a_pc() {
        for generation in [Generation::V2_6_24, Generation::V4_0] {
            let page = parameters(generation).to_page();
            assert_eq!(page[0x206..0x208], [7, 2], "protocol 2.07");
            assert_eq!((page[0x210], page[0x211]), (0xff, 0x40), "keep the segments");
            assert_eq!(u32_at(&page, 0x230), 0x100_0000);
            assert_eq!(u32_at(&page, 0x23c), 1);
        }
        assert_eq!(parameters(Generation::First).to_page()[0x206..0x208], [0, 0]);
    }

    #[test]
    fn without_an_initrd_there_is_no_loader() {
        let page = parameters(Generation::First).to_page();
        assert_eq!(page[0x210], 0);
        assert_eq!(u32_at(&page, 0x218), 0);
        assert_eq!(u32_at(&page, 0x21c), 0);
    }
}
