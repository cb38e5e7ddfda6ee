//! What lies in memory when the guest starts.
//!
//! The launcher puts a page of boot parameters at physical address 0, the *zero page*, laid out as
//! a PC's boot loader lays it out for Linux (its documentation calls it that too), and the command
//! line behind it. The kernel itself is marked by thirteen bytes.

/// The bytes right before the entry point.
pub const SIGNATURE: &[u8; 13] = b"GenuineLguest";

/// Physical address of the boot parameters.
pub const BOOT_PARAMS: u32 = 0;

/// Physical address of the command line: each word followed by a space, then NUL.
pub const COMMAND_LINE: u32 = 4096;

/// Bytes in the boot parameters.
pub const BOOT_PARAMS_BYTES: usize = 4096;

/// Offsets in the boot parameters.
pub mod offset {
    /// u8: how many entries the memory map has.
    pub const E820_COUNT: u32 = 0x1e8;
    /// u16: the boot protocol's version.
    pub const PROTOCOL: u32 = 0x206;
    /// u8: [`LOADER_UNKNOWN`](super::LOADER_UNKNOWN) when there is an initrd.
    pub const LOADER_TYPE: u32 = 0x210;
    /// u8: flags.
    pub const LOAD_FLAGS: u32 = 0x211;
    /// u32: where the initrd is.
    pub const INITRD_START: u32 = 0x218;
    /// u32: its size, rounded up to pages.
    pub const INITRD_SIZE: u32 = 0x21c;
    /// u32: where the command line is.
    pub const COMMAND_LINE_POINTER: u32 = 0x228;
    /// u32: to what a kernel that can be moved must be aligned.
    pub const KERNEL_ALIGNMENT: u32 = 0x230;
    /// u32: [`PLATFORM_LGUEST`](super::PLATFORM_LGUEST).
    pub const PLATFORM: u32 = 0x23c;
    /// The memory map: entries of [`E820Entry::SIZE`](super::E820Entry::SIZE) bytes.
    pub const E820_MAP: u32 = 0x2d0;
}

/// The boot protocol that later guests are told of: the first one with the platform type.
pub const PROTOCOL_VERSION: u16 = 0x207;

/// Flag: the kernel isn't to load segment registers, since they are right.
pub const KEEP_SEGMENTS: u8 = 1 << 6;

/// The alignment that later guests are told of, in bytes.
pub const KERNEL_ALIGNMENT: u32 = 16 << 20;

/// The loader type of a loader without a number of its own.
pub const LOADER_UNKNOWN: u8 = 0xff;

/// The platform type that says lguest.
pub const PLATFORM_LGUEST: u32 = 1;

/// How many entries the memory map can have.
pub const E820_MAX: usize = 128;

/// The kind of an [`E820Entry`] that is usable memory.
pub const E820_RAM: u32 = 1;

/// An entry of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct E820Entry {
    /// Where the range starts.
    pub addr: u64,
    /// How many bytes it has.
    pub size: u64,
    /// [`E820_RAM`], or something to keep away from.
    pub kind: u32,
}

impl E820Entry {
    /// Bytes of an entry in memory.
    pub const SIZE: usize = 20;

    /// What these bytes say.
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, s0, s1, s2, s3, s4, s5, s6, s7, k0, k1, k2, k3] =
            *bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            size: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
        }
    }

    /// How it looks in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_map_entry_survives_memory() {
        let entry = E820Entry { addr: 0x1_0000_0000, size: 0x0400_0000, kind: E820_RAM };
        let bytes = entry.to_bytes();
        assert_eq!(&bytes[..8], &[0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&bytes[16..], &[1, 0, 0, 0]);
        assert_eq!(E820Entry::from_bytes(&bytes), entry);
    }
}
