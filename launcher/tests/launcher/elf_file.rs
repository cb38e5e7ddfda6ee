//! ELF files, made byte by byte, so that they can be made wrong.

/// Where these kernels want memory mapped, as most kernels do.
pub(crate) const PAGE_OFFSET: u32 = 0xc000_0000;

/// A segment for [`elf`].
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) virt: u32,
    pub(crate) phys: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) size: u32,
}

impl Segment {
    /// Bytes at a physical address, mapped where they should be.
    pub(crate) fn at(phys: u32, bytes: &[u8]) -> Self {
        let virt = phys.wrapping_add(PAGE_OFFSET);
        Self { virt, phys, bytes: bytes.to_vec(), size: bytes.len() as u32 }
    }
}

/// A 32-bit x86 ELF executable: the file header, the program headers, the bytes.
pub(crate) fn elf(segments: &[Segment]) -> Vec<u8> {
    const HEADER: u32 = 52;
    const PROGRAM_HEADER: u32 = 32;
    let half = |value: u32| (value as u16).to_le_bytes();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([half(2), half(3)].concat()); // executable, 386
    for word in [1, segments.first().map_or(0, |s| s.virt), HEADER, 0, 0] {
        file.extend(u32::to_le_bytes(word)); // version, entry, program headers, sections, flags
    }
    for value in [HEADER, PROGRAM_HEADER, segments.len() as u32, 40, 0, 0] {
        file.extend(half(value));
    }
    let mut offset = HEADER + PROGRAM_HEADER * segments.len() as u32;
    for segment in segments {
        let length = segment.bytes.len() as u32;
        for word in [1, offset, segment.virt, segment.phys, length, segment.size, 7, 4096] {
            file.extend(u32::to_le_bytes(word)); // PT_LOAD
        }
        offset += length;
    }
    segments.iter().for_each(|segment| file.extend(&segment.bytes));
    file
}
