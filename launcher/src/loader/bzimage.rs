//! bzImages: the form in which distributions ship a kernel.
//!
//! In front is code that prepares a real PC and unpacks the rest. A guest needs none of it: the
//! launcher unpacks the kernel itself. What it unpacks is bare memory without headers, so
//! the one thing that must be known about it, `PAGE_OFFSET`, is read from the code.

use super::{Image, KernelError, Segment};
use flate2::read::GzDecoder;
use lguest_switcher::GuestPhys;
use std::io::Read;

/// Where the boot protocol of x86 Linux has "HdrS", its sign of life.
const HEADER_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// How the gzip streams in bzImages begin, and, at byte nine, the operating system that made them:
/// Unix. Three bytes rather than two, because two occur by chance.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const GZIP_SYSTEM: (usize, u8) = (9, 3);

/// Kernels of this form are linked to run from 1 MiB on, above the PC's own holes.
const LOAD_ADDRESS: GuestPhys = GuestPhys(1 << 20);

/// The most that is unpacked: no kernel comes near, and a small file can't fill the host's memory.
const UNPACKED_LIMIT: u64 = 256 << 20;

/// `mov moffs, %eax`: one opcode byte and the absolute address it loads from.
const MOV_EAX_ABSOLUTE: u8 = 0xa1;

/// So often must the same top byte occur in such addresses before it is believed.
const SIGHTINGS: u32 = 4;

/// Whether a file claims to be a bzImage.
pub(super) fn recognizes(file: &[u8]) -> bool {
    let (at, magic) = HEADER_MAGIC;
    file.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Unpacks the kernel of a file that [`recognizes`] took for a bzImage.
pub(super) fn read(file: &[u8]) -> Result<Image, KernelError> {
    let stream = gzip_stream(file).ok_or(KernelError::NoGzip)?;
    let mut bytes = Vec::new();
    GzDecoder::new(stream)
        .take(UNPACKED_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(KernelError::BadGzip)?;
    let size = match u32::try_from(bytes.len()) {
        Ok(size) if u64::from(size) <= UNPACKED_LIMIT => size,
        _ => return Err(KernelError::TooLarge { limit: UNPACKED_LIMIT }),
    };
    let page_offset = page_offset(&bytes).ok_or(KernelError::NoPageOffset)?;
    Ok(Image { segments: vec![Segment::new(LOAD_ADDRESS, bytes, size)?], page_offset })
}

/// The file from its first gzip stream on.
fn gzip_stream(file: &[u8]) -> Option<&[u8]> {
    let (at, system) = GZIP_SYSTEM;
    let start = file
        .windows(at + 1)
        .position(|window| window.starts_with(&GZIP_MAGIC) && window[at] == system)?;
    file.get(start..)
}

// ANCHOR: guessing_page_offset
/// Tells `PAGE_OFFSET` from the code: a kernel loads global variables all the time, their
/// addresses are `PAGE_OFFSET` and a little, and loading one into eax has an opcode of its own. The
/// first top byte to be seen four times is it.
fn page_offset(code: &[u8]) -> Option<u32> {
    let mut sightings = [0u32; 256];
    code.windows(5).filter(|window| window[0] == MOV_EAX_ABSOLUTE).find_map(|window| {
        let top = window[4];
        let seen = sightings.get_mut(usize::from(top))?;
        *seen += 1;
        (*seen == SIGHTINGS).then_some(u32::from(top) << 24)
    })
}
// ANCHOR_END: guessing_page_offset
