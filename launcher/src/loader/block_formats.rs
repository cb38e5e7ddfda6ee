//! LZO and LZ4 as kernels are packed by them: blocks, one after another, in the frame of a tool.
//!
//! The algorithms know nothing of files. The tools that a kernel's build calls, `lzop` and `lz4 -l`, cut the kernel into
//! blocks, pack each for itself and write its sizes before it. The frames are those of the tools' files; lzop's has
//! no description but its source, and lz4's is chapter "Legacy frame" of "LZ4 Frame Format Description".

use std::io;

/// How an lzop file begins.
pub(super) const LZOP_MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// How a legacy lz4 file begins, and each further one that was appended to it.
pub(super) const LZ4_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();

/// What a block of a legacy lz4 file unpacks to, but for the last one, which may be less.
const LZ4_BLOCK: usize = 8 << 20;

/// The most that lzop puts into one block.
const LZOP_BLOCK: u32 = 64 << 20;

/// The version of lzop from which on the header has a compression level and a longer date.
const LZOP_LEVEL_SINCE: u16 = 0x940;

/// The methods of lzop that are LZO1X: packed in three different ways, unpacked in one.
const LZO1X: std::ops::RangeInclusive<u8> = 1..=3;

/// Flags in lzop's header: which checksums each block has, of what is unpacked and of what is packed; that
/// the bytes were filtered before they were packed.
mod flag {
    pub(super) const ADLER_UNPACKED: u32 = 1;
    pub(super) const ADLER_PACKED: u32 = 2;
    pub(super) const CRC_UNPACKED: u32 = 0x100;
    pub(super) const CRC_PACKED: u32 = 0x200;
    pub(super) const FILTER: u32 = 0x800;
}

/// Unpacks a legacy lz4 file, or a block more than `most` bytes of it.
pub(super) fn unpack_lz4(stream: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let mut rest = Rest(stream);
    rest.take(LZ4_MAGIC.len())?;
    let mut block = vec![0; LZ4_BLOCK];
    let mut bytes = Vec::new();
    while !rest.0.is_empty() && bytes.len() as u64 <= most {
        let size = rest.array()?;
        if size == LZ4_MAGIC {
            continue;
        }
        let packed = rest.take(u32::from_le_bytes(size) as usize)?;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block).map_err(invalid)?;
        bytes.extend_from_slice(&block[..unpacked]);
    }
    Ok(bytes)
}

/// Unpacks an lzop file, or a block more than `most` bytes of it.
pub(super) fn unpack_lzop(stream: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let mut rest = Rest(stream);
    let flags = lzop_flags(&mut rest)?;
    let count = |mask: u32| (flags & mask).count_ones() as usize;
    let mut bytes = Vec::new();
    while bytes.len() as u64 <= most {
        let unpacked = u32::from_be_bytes(rest.array()?);
        if unpacked == 0 {
            break;
        }
        let packed = u32::from_be_bytes(rest.array()?);
        if unpacked > LZOP_BLOCK || packed > unpacked {
            return Err(invalid(format!("a block of {unpacked} bytes, packed into {packed}")));
        }
        let adler = match flags & flag::ADLER_UNPACKED {
            0 => None,
            _ => Some(u32::from_be_bytes(rest.array()?)),
        };
        rest.take(4 * count(flag::CRC_UNPACKED))?;
        // What can't be packed is stored, and then one kind of checksum is enough.
        if packed < unpacked {
            rest.take(4 * count(flag::ADLER_PACKED | flag::CRC_PACKED))?;
        }
        let start = bytes.len();
        append_lzo_block(&mut bytes, rest.take(packed as usize)?, unpacked as usize)?;
        if adler.is_some_and(|adler| adler != adler32(&bytes[start..])) {
            return Err(invalid("the checksum of a block is wrong"));
        }
    }
    Ok(bytes)
}

/// Reads lzop's header, which has little that matters to us, and gives its flags.
fn lzop_flags(rest: &mut Rest) -> io::Result<u32> {
    rest.take(LZOP_MAGIC.len())?;
    let version = u16::from_be_bytes(rest.array()?);
    rest.take(4)?; // the library's version, and the one that is needed
    let [method] = rest.array()?;
    if !LZO1X.contains(&method) {
        return Err(invalid(format!("lzop's method {method} isn't LZO1X")));
    }
    let has_level = version >= LZOP_LEVEL_SINCE;
    rest.take(usize::from(has_level))?;
    let flags = u32::from_be_bytes(rest.array()?);
    if flags & flag::FILTER != 0 {
        return Err(invalid("lzop's filters aren't known here"));
    }
    rest.take(if has_level { 12 } else { 8 })?; // mode and date
    let [name] = rest.array()?;
    rest.take(usize::from(name))?;
    rest.take(4)?; // the header's checksum
    Ok(flags)
}

/// Unpacks one block of LZO to exactly so many bytes.
fn append_lzo_block(bytes: &mut Vec<u8>, packed: &[u8], unpacked: usize) -> io::Result<()> {
    if packed.len() == unpacked {
        bytes.extend_from_slice(packed);
        return Ok(());
    }
    let start = bytes.len();
    bytes.resize(start + unpacked, 0);
    match lzo::decompress_into(packed, &mut bytes[start..]).map_err(invalid)? {
        length if length == unpacked => Ok(()),
        length => Err(invalid(format!("a block of {unpacked} bytes unpacks to {length}"))),
    }
}

/// Adler-32 (RFC 1950, "ZLIB Compressed Data Format Specification", section 8.2).
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    /// So many bytes can be added up before a sum outgrows 32 bits.
    const STRETCH: usize = 5552;
    let (mut low, mut high) = (1, 0);
    for stretch in bytes.chunks(STRETCH) {
        for &byte in stretch {
            low += u32::from(byte);
            high += low;
        }
        low %= MODULUS;
        high %= MODULUS;
    }
    high << 16 | low
}

/// What is left of a stream.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(*taken)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adler32_is_as_others_compute_it() {
        assert_eq!(adler32(b""), 1);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
        assert_eq!(adler32(&[0xff; 100_000]), 0x149a_302c);
    }
}
