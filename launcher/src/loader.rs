//! Kernels, from the bytes of a file to something that can be laid out in memory.
//!
//! Two forms are understood: an ELF file, which says itself where its parts belong
//! ([`elf`]), and a bzImage as distributions ship it ([`bzimage`]), which has such a file packed into it, or, if it is old, bare
//! memory that is searched for clues. Both end as a [`Kernel`]: segments, the distance
//! between virtual and physical addresses, the entry point, and which of lguest's interfaces it speaks
//! ([`generation`]). The bytes come from a user and may
//! be anything, so each way of being wrong has a sentence of its own ([`error`]).
//!
//! The story goes on in [`layout`](crate::layout), where the segments find their places.

mod block_formats;
mod bzimage;
mod compression;
mod elf;
mod error;
mod generation;
mod setup_header;

pub use bzimage::{BzImage, Payload};
pub use compression::Compression;
pub use error::{KernelError, ReadKernelError};
pub use generation::{NoGeneration, Version};
pub use lguest_abi::Generation;
pub use setup_header::{Protocol, SetupHeader};

use lguest_switcher::{GuestPhys, GuestVirt};
use memchr::memmem;
use std::path::Path;
use std::{fmt, fs};

// ANCHOR: finding_the_entry
/// The bytes that stand directly in front of a kernel's lguest entry.
///
/// A kernel built for several machines has several ways in; this is how the launcher finds the one
/// that knows it is a guest. No header says where it is, so the image is searched for it, lowest
/// address first. From Linux 2.6.24 on there is one way in for all machines, which asks the boot parameters where it is.
pub use lguest_abi::boot::SIGNATURE;
// ANCHOR_END: finding_the_entry

/// What virtual and physical addresses of a kernel may differ by: a multiple of 16 MiB, the grain
/// in which the Switcher divides the kernel's addresses from the user's.
const PAGE_OFFSET_GRAIN: u32 = 16 << 20;

/// The image of the guest's kernel that is part of this very library.
static BUNDLED: &[u8] = include_bytes!(env!("LGUEST_BUNDLED_KERNEL"));

/// A kernel, read and found to be sound, ready to be loaded any number of times.
#[derive(Clone, Debug)]
pub struct Kernel {
    format: Format,
    segments: Vec<Segment>,
    page_offset: u32,
    banner: Option<String>,
    common_entry: GuestPhys,
    behind_signature: Option<GuestVirt>,
    generation: Result<Generation, NoGeneration>,
}

/// The form a kernel came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A 32-bit ELF executable.
    Elf,
    /// A bzImage: set-up code for a real PC, which is skipped, and the kernel proper, compressed.
    BzImage(BzImage),
}

/// A piece of the kernel that goes to one place in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    phys: GuestPhys,
    bytes: Vec<u8>,
    size: u32,
}

impl Kernel {
    /// Understands the bytes of a kernel file.
    ///
    /// # Errors
    /// What is wrong with the bytes; never a panic, whatever they are.
    pub fn parse(file: &[u8]) -> Result<Self, KernelError> {
        let (format, image) = if file.is_empty() {
            return Err(KernelError::Empty);
        } else if elf::recognizes(file) {
            (Format::Elf, elf::read(file)?)
        } else if SetupHeader::is_in(file) {
            let (bzimage, image) = bzimage::read(file)?;
            (Format::BzImage(bzimage), image)
        } else {
            return Err(KernelError::UnknownFormat);
        };
        let Image { mut segments, page_offset, entry: common_entry } = image;
        if page_offset == 0 || !page_offset.is_multiple_of(PAGE_OFFSET_GRAIN) {
            return Err(KernelError::BadPageOffset(page_offset));
        }
        segments.sort_by_key(|segment| segment.phys);
        let behind_signature = segments
            .iter()
            .find_map(Segment::behind_signature)
            .map(|GuestPhys(phys)| GuestVirt(phys.wrapping_add(page_offset)));
        let banner = generation::banner(&segments);
        let version = banner.as_deref().and_then(Version::of_banner);
        let generation = generation::generation_of(behind_signature.is_some(), version);
        Ok(Self {
            format,
            segments,
            page_offset,
            banner,
            common_entry,
            behind_signature,
            generation,
        })
    }

    /// The same kernel, taken to speak this generation of the interface, whatever it looks like.
    ///
    /// # Errors
    /// The generation's kernels have a signature, and this one hasn't.
    pub fn with_generation(self, generation: Generation) -> Result<Self, KernelError> {
        if generation.is_signed() && self.behind_signature.is_none() {
            return Err(KernelError::NoSignature);
        }
        Ok(Self { generation: Ok(generation), ..self })
    }

    /// Reads a kernel from a file.
    ///
    /// # Errors
    /// The file can't be read, or [`Kernel::parse`] has something against it.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ReadKernelError> {
        let path = path.as_ref();
        let file = fs::read(path)
            .map_err(|error| ReadKernelError::Unreadable { path: path.to_owned(), error })?;
        Self::parse(&file)
            .map_err(|error| ReadKernelError::NoKernel { path: path.to_owned(), error })
    }

    /// The guest's kernel that is built into this library.
    ///
    /// # Errors
    /// Only when the library was built around something that is no kernel.
    pub fn bundled() -> Result<Self, KernelError> {
        Self::parse(BUNDLED)
    }

    /// The form it came in.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its pieces, lowest address first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// `PAGE_OFFSET`: the virtual address at which it expects physical address 0. A multiple of
    /// 16 MiB, and not 0.
    #[must_use]
    pub fn page_offset(&self) -> GuestVirt {
        GuestVirt(self.page_offset)
    }

    /// The line that a Linux begins its messages with: its version, who built it, and when.
    #[must_use]
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }

    /// Which generation of lguest's interface it speaks.
    ///
    /// # Errors
    /// Why it speaks none.
    pub fn generation(&self) -> Result<Generation, NoGeneration> {
        self.generation
    }

    /// Whether it looks as if it was built to run under lguest. That is certain for kernels that have a
    /// [`SIGNATURE`]; for later ones it is a guess by a word in them, good enough for a warning.
    #[must_use]
    pub fn has_guest_support(&self) -> bool {
        self.behind_signature.is_some() || generation::names_lguest(&self.segments)
    }

    /// Where it begins to run: the byte behind its [`SIGNATURE`], or for later generations its one
    /// entry for all machines, where paging is still to come and virtual addresses are physical.
    #[must_use]
    pub fn entry(&self) -> GuestVirt {
        match (self.generation, self.behind_signature) {
            (Ok(generation), Some(entry)) if generation.is_signed() => entry,
            _ => GuestVirt(self.common_entry.0),
        }
    }

    /// The bytes of the command line that it keeps, without the zero byte at its end, if it says so.
    #[must_use]
    pub fn command_line_limit(&self) -> Option<u32> {
        match self.format {
            Format::Elf => None,
            Format::BzImage(bzimage) => Some(bzimage.header.command_line_limit),
        }
    }

    /// The first byte it takes in memory.
    #[must_use]
    pub fn start(&self) -> GuestPhys {
        self.segments.first().map_or(GuestPhys(0), |segment| segment.phys)
    }

    /// The first byte behind everything it takes in memory; at most 2³², hence 64 bits.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }
}

impl Segment {
    /// `bytes` at `phys`, and zeros after them until `size` bytes are reached.
    fn new(phys: GuestPhys, bytes: Vec<u8>, size: u32) -> Result<Self, KernelError> {
        match u32::try_from(bytes.len()) {
            Ok(file) if file <= size => {}
            file => {
                let file = file.unwrap_or(u32::MAX);
                return Err(KernelError::SegmentShrinks { phys, file, memory: size });
            }
        }
        let segment = Self { phys, bytes, size };
        if segment.end() > 1 << 32 {
            return Err(KernelError::SegmentWraps { phys, size });
        }
        Ok(segment)
    }

    /// Where it belongs.
    #[must_use]
    pub fn phys(&self) -> GuestPhys {
        self.phys
    }

    /// What the file has for it. It takes [`Segment::size`] bytes in memory; the rest is zero.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes it takes in memory.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The first byte behind it, at most 2³².
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.phys.0) + u64::from(self.size)
    }

    /// The physical address behind the first signature in it.
    fn behind_signature(&self) -> Option<GuestPhys> {
        let at = memmem::find(&self.bytes, SIGNATURE)?;
        let behind = u32::try_from(at + SIGNATURE.len()).ok()?;
        Some(self.phys.wrapping_add(behind))
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} bytes for {} at {})", self.bytes.len(), self.size, self.phys)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "32-bit x86 ELF executable",
            Self::BzImage(_) => "bzImage",
        })
    }
}

/// What both forms boil down to, before anything is looked for in it.
struct Image {
    segments: Vec<Segment>,
    page_offset: u32,
    /// Where the kernel is entered on all machines but the first generation's lguest.
    entry: GuestPhys,
}

/// `bytes` of the file from `start` on.
fn piece<'a>(
    file: &'a [u8],
    what: &'static str,
    start: u64,
    bytes: u64,
) -> Result<&'a [u8], KernelError> {
    let missing = || truncated(what, start, bytes, file);
    let end = usize::try_from(start + bytes).map_err(|_| missing())?;
    let start = usize::try_from(start).map_err(|_| missing())?;
    file.get(start..end).ok_or_else(missing)
}

fn truncated(what: &'static str, start: u64, bytes: u64, file: &[u8]) -> KernelError {
    KernelError::Truncated { what, end: start + bytes, have: file.len() as u64 }
}
