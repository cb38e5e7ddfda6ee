//! Compression: the ways in which kernels are packed, and how each is undone.
//!
//! Linux had one at first, gzip, and took up others as they came to pack better or unpack faster. Which one it is is told
//! by the first bytes. All the work is done by other people's crates (the decision page "Crates that unpack kernels"
//! says why these); what is ours is that none may produce more than it should, or take more memory than that. Two
//! formats need a frame taken off first: [`block_formats`].

use super::block_formats;
use bzip2::read::BzDecoder;
use flate2::read::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use std::fmt;
use std::io::{self, Read};

/// How a kernel is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Deflate, with a checksum and the unpacked size. Since ever.
    Gzip,
    /// Blocks sorted so that like comes to like. From 2.6.30.
    Bzip2,
    /// LZMA as the first tools of that name wrote it, without a checksum. From 2.6.30.
    Lzma,
    /// LZMA again, by its second version, with x86 branches made absolute before. From 2.6.38.
    Xz,
    /// LZO in lzop's frame. From 2.6.33.
    Lzo,
    /// LZ4 in its legacy frame. From 3.11.
    Lz4,
}

/// How each begins, as far as it is always the same: of lzma, which has no magic, parameters that nobody
/// changes.
const MAGICS: [(Compression, &[u8]); 6] = [
    (Compression::Gzip, &[0x1f, 0x8b]),
    (Compression::Bzip2, b"BZh"),
    (Compression::Lzma, &[0x5d, 0, 0]),
    (Compression::Xz, b"\xfd7zXZ\0"),
    (Compression::Lzo, block_formats::LZOP_MAGIC),
    (Compression::Lz4, &block_formats::LZ4_MAGIC),
];

/// The memory that the LZMA decoders may use. The tools' best setting wants 64 MiB, and no stream has a use for a
/// dictionary larger than what it unpacks to.
const DICTIONARY_LIMIT_KIB: u32 = 256 << 10;

impl Compression {
    /// What a stream is packed by.
    pub(super) fn of(stream: &[u8]) -> Option<Self> {
        MAGICS
            .iter()
            .find(|(_, magic)| stream.starts_with(magic))
            .map(|(compression, _)| *compression)
    }

    /// Unpacks a stream, or as much of it as shows that it is longer than `most`: one byte more, or a block.
    pub(super) fn unpack(self, stream: &[u8], most: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => read(GzDecoder::new(stream), most),
            Self::Bzip2 => read(BzDecoder::new(stream), most),
            Self::Lzma => {
                read(LzmaReader::new_mem_limit(stream, DICTIONARY_LIMIT_KIB, None)?, most)
            }
            Self::Xz => read(XzReader::new_mem_limit(stream, false, DICTIONARY_LIMIT_KIB), most),
            Self::Lzo => block_formats::unpack_lzop(stream, most),
            Self::Lz4 => block_formats::unpack_lz4(stream, most),
        }
    }
}

fn read(decoder: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    decoder.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
        })
    }
}
