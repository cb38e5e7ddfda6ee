//! bzImages: the form in which distributions ship a kernel.
//!
//! In front is code that prepares a real PC and unpacks the rest. A guest needs none of it: the
//! launcher finds the compressed kernel and unpacks it itself. From boot protocol 2.08 on the [set-up
//! header](super::setup_header) says where it is, and it is an ELF file. Before, it is bare memory without headers, gzipped, and
//! somewhere: the stream is found by how it begins, and the one thing that must be known about
//! the kernel, `PAGE_OFFSET`, is read from its code.

use super::compression::Compression;
use super::setup_header::{PayloadPlace, SetupHeader};
use super::{Image, KernelError, Segment, elf, piece};
use lguest_switcher::GuestPhys;

/// How gzip streams in old bzImages begin, their one method included, and, at byte nine, the operating system that made
/// them: Unix. Four bytes rather than two, because two occur by chance.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const GZIP_SYSTEM: (usize, u8) = (9, 3);

/// How zstd streams begin. Kernels have them since 5.9, and have no lguest any more.
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();

/// Kernels without headers are linked to run from 1 MiB on, above the PC's own holes, and are entered
/// at their first byte.
const LOAD_ADDRESS: GuestPhys = GuestPhys(1 << 20);

/// The most that is unpacked: no kernel comes near, and a small file can't fill the host's memory.
const UNPACKED_LIMIT: u64 = 256 << 20;

/// `mov moffs, %eax`: one opcode byte and the absolute address it loads from.
const MOV_EAX_ABSOLUTE: u8 = 0xa1;

/// So often must the same top byte occur in such addresses before it is believed.
const SIGHTINGS: u32 = 4;

/// What only a bzImage says about a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BzImage {
    /// Its header.
    pub header: SetupHeader,
    /// Its compressed kernel.
    pub payload: Payload,
}

/// A compressed kernel in a bzImage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// How it is packed.
    pub compression: Compression,
    /// Where it is, in bytes from the start of the file.
    pub at: u64,
    /// Its bytes in the file. For a kernel whose header doesn't tell, all that follow.
    pub packed: u64,
    /// What they unpack to.
    pub unpacked: u64,
}

/// Unpacks the kernel of a file that has a set-up header.
pub(super) fn read(file: &[u8]) -> Result<(BzImage, Image), KernelError> {
    let header = SetupHeader::parse(file)?;
    let (payload, image) = match header.payload {
        Some(place) => told(file, place)?,
        None => untold(file, &header)?,
    };
    Ok((BzImage { header, payload }, image))
}

/// The kernel, where the header says that it is. The payload's last four bytes are what it unpacks to: gzip's format
/// has that anyway, and behind the others a kernel's build writes it.
fn told(
    file: &[u8],
    PayloadPlace { at, length }: PayloadPlace,
) -> Result<(Payload, Image), KernelError> {
    let payload = piece(file, "its compressed kernel", at, length)?;
    if payload.starts_with(&ZSTD_MAGIC) {
        return Err(KernelError::Zstd);
    }
    let (Some(compression), Some((stream, size))) =
        (Compression::of(payload), payload.split_last_chunk())
    else {
        let begins = payload.iter().take(8).copied().collect();
        return Err(KernelError::UnknownCompression { at, begins });
    };
    let announced = u64::from(u32::from_le_bytes(*size));
    if announced > UNPACKED_LIMIT {
        return Err(KernelError::TooLarge { limit: UNPACKED_LIMIT });
    }
    let stream = if compression == Compression::Gzip { payload } else { stream };
    let bytes = compression.unpack(stream, announced).map_err(|error| KernelError::BadPayload {
        compression,
        at,
        error,
    })?;
    if bytes.len() as u64 != announced {
        return Err(KernelError::WrongSize { compression, at, announced });
    }
    if !elf::recognizes(&bytes) {
        return Err(KernelError::Unpacked(Box::new(KernelError::NotElf)));
    }
    let image = elf::read(&bytes).map_err(|error| KernelError::Unpacked(Box::new(error)))?;
    Ok((Payload { compression, at, packed: length, unpacked: announced }, image))
}

/// The kernel in an image that doesn't say where it is.
fn untold(file: &[u8], header: &SetupHeader) -> Result<(Payload, Image), KernelError> {
    let code = piece(file, "its set-up code", 0, header.code).map(|setup| &file[setup.len()..])?;
    let start = gzip_stream(code).ok_or(KernelError::NoGzip(header.protocol))?;
    let (compression, at) = (Compression::Gzip, header.code + start as u64);
    let stream = &code[start..];
    let bytes = compression
        .unpack(stream, UNPACKED_LIMIT)
        .map_err(|error| KernelError::BadPayload { compression, at, error })?;
    let size = match u32::try_from(bytes.len()) {
        Ok(size) if u64::from(size) <= UNPACKED_LIMIT => size,
        _ => return Err(KernelError::TooLarge { limit: UNPACKED_LIMIT }),
    };
    let page_offset = page_offset(&bytes).ok_or(KernelError::NoPageOffset)?;
    let segments = vec![Segment::new(LOAD_ADDRESS, bytes, size)?];
    let payload = Payload { compression, at, packed: stream.len() as u64, unpacked: size.into() };
    Ok((payload, Image { segments, page_offset, entry: LOAD_ADDRESS }))
}

/// Where the first gzip stream begins.
fn gzip_stream(code: &[u8]) -> Option<usize> {
    let (at, system) = GZIP_SYSTEM;
    code.windows(at + 1).position(|window| window.starts_with(&GZIP_MAGIC) && window[at] == system)
}

// ANCHOR: guessing_page_offset
/// Tells `PAGE_OFFSET` from the code: a kernel loads global variables all the time, their
/// addresses are `PAGE_OFFSET` and a little, and loading one into eax has an opcode of its own. The
/// first top byte to be seen four times is it. 0 isn't: code that runs before paging uses physical addresses.
fn page_offset(code: &[u8]) -> Option<u32> {
    let mut sightings = [0u32; 256];
    code.windows(5).filter(|window| window[0] == MOV_EAX_ABSOLUTE && window[4] != 0).find_map(
        |window| {
            let top = window[4];
            let seen = sightings.get_mut(usize::from(top))?;
            *seen += 1;
            (*seen == SIGHTINGS).then_some(u32::from(top) << 24)
        },
    )
}
// ANCHOR_END: guessing_page_offset
