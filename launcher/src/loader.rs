//! Kernels, from the bytes of a file to something that can be laid out in memory.
//!
//! Two forms are understood: an ELF file, which says itself where its parts belong
//! ([`elf`]), and a compressed bzImage as distributions ship it ([`bzimage`]), which says
//! next to nothing and is searched for clues. Both end as a [`Kernel`]: segments, the distance
//! between virtual and physical addresses, and the entry point. The bytes come from a user and may
//! be anything, so each way of being wrong has a sentence of its own.
//!
//! The story goes on in [`layout`](crate::layout), where the segments find their places.

mod bzimage;
mod elf;

use lguest_switcher::{GuestPhys, GuestVirt};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

// ANCHOR: finding_the_entry
/// The bytes that stand directly in front of a kernel's lguest entry.
///
/// A kernel built for several machines has several ways in; this is how the launcher finds the one
/// that knows it is a guest. No header says where it is, so the image is searched for it, lowest
/// address first.
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
    entry: GuestVirt,
}

/// The form a kernel came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A 32-bit ELF executable.
    Elf,
    /// A bzImage: set-up code for a real PC, which is skipped, and the kernel proper, gzipped.
    BzImage,
}

/// A piece of the kernel that goes to one place in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    phys: GuestPhys,
    bytes: Vec<u8>,
    size: u32,
}

/// What is wrong with a kernel image. Each message completes "… can't be booted: ".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Neither of the two forms.
    #[error("it is neither an ELF file nor a bzImage")]
    UnknownFormat,
    /// It ends before something it announces.
    #[error("it is cut short: {what} would end at byte {end}, and the file has {have}")]
    Truncated {
        /// What is missing, as a noun.
        what: &'static str,
        /// Where it would end, in bytes from the start of the file.
        end: u64,
        /// The file's length in bytes.
        have: u64,
    },
    /// A program of the host's own kind.
    #[error("it is a 64-bit ELF file, and lguest runs 32-bit kernels")]
    SixtyFourBit,
    /// The other end first.
    #[error("it is a big-endian ELF file, and lguest runs kernels for 32-bit x86")]
    BigEndian,
    /// Another processor's code.
    #[error(
        "it is built for another processor (ELF machine {0}), and lguest runs kernels for 32-bit x86 (machine 3)"
    )]
    WrongMachine(u16),
    /// An object file, a shared library, a core dump.
    #[error("it isn't a linked executable (ELF type {0}; an executable has 2)")]
    NotExecutable(u16),
    /// Program headers of a size that isn't theirs.
    #[error("its program headers are {0} bytes each, where 32-bit ELF has 32")]
    HeaderSize(u16),
    /// Nothing to load.
    #[error("it has no loadable segments, so there is nothing to run")]
    NoSegments,
    /// More bytes in the file than in memory.
    #[error("its segment at {phys} has {file} bytes in the file and only {memory} in memory")]
    SegmentShrinks {
        /// Where it belongs.
        phys: GuestPhys,
        /// Bytes the file has for it.
        file: u32,
        /// Bytes it says it takes in memory.
        memory: u32,
    },
    /// It runs over the end of the physical addresses.
    #[error("its segment at {phys} is {size} bytes long and runs past 4 GiB")]
    SegmentWraps {
        /// Where it begins.
        phys: GuestPhys,
        /// Its bytes in memory.
        size: u32,
    },
    /// Segments that disagree about the linear mapping.
    #[error(
        "its segments disagree on where memory is mapped: one at {first:#x} above its physical address, one at {other:#x}"
    )]
    MixedOffsets {
        /// Virtual minus physical address of the first segment.
        first: u32,
        /// And of one that differs.
        other: u32,
    },
    /// The linear mapping begins where it can't.
    #[error("it wants memory mapped at {0:#x}, which must be a multiple of 16 MiB, and not 0")]
    BadPageOffset(u32),
    /// No entry for us.
    #[error(
        "there is no \"GenuineLguest\" in it: it was built without support for running under lguest"
    )]
    NoSignature,
    /// A bzImage whose kernel isn't compressed by gzip.
    #[error(
        "it is a bzImage without a gzip stream; if it is compressed another way, use the vmlinux it was made from"
    )]
    NoGzip,
    /// The gzip stream is broken.
    #[error("its gzip stream can't be unpacked: {0}")]
    BadGzip(io::Error),
    /// The gzip stream is a bomb.
    #[error("it unpacks to more than {limit} bytes, which is no kernel")]
    TooLarge {
        /// The most that is unpacked.
        limit: u64,
    },
    /// The clues to a bzImage's virtual addresses are missing.
    #[error(
        "nothing in it tells where it wants memory mapped (no `mov %eax` from the same 16 MiB four times)"
    )]
    NoPageOffset,
}

/// A kernel that couldn't be had from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadKernelError {
    /// The file can't be read.
    #[error("{path} can't be read: {error}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file can be read, and is no kernel.
    #[error("{path} can't be booted: {error}", path = path.display())]
    NoKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: KernelError,
    },
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
        } else if bzimage::recognizes(file) {
            (Format::BzImage, bzimage::read(file)?)
        } else {
            return Err(KernelError::UnknownFormat);
        };
        let Image { mut segments, page_offset } = image;
        if page_offset == 0 || !page_offset.is_multiple_of(PAGE_OFFSET_GRAIN) {
            return Err(KernelError::BadPageOffset(page_offset));
        }
        segments.sort_by_key(|segment| segment.phys);
        let entry = segments
            .iter()
            .find_map(Segment::behind_signature)
            .ok_or(KernelError::NoSignature)?
            .0
            .wrapping_add(page_offset);
        Ok(Self { format, segments, page_offset, entry: GuestVirt(entry) })
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

    /// Where it begins to run: the byte behind its [`SIGNATURE`].
    #[must_use]
    pub fn entry(&self) -> GuestVirt {
        self.entry
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
        let at = self.bytes.windows(SIGNATURE.len()).position(|window| window == SIGNATURE)?;
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
            Self::BzImage => "bzImage with a gzipped kernel",
        })
    }
}

/// What both forms boil down to, before the entry is looked for.
struct Image {
    segments: Vec<Segment>,
    page_offset: u32,
}
