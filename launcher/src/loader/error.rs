//! What can be wrong with a kernel, in sentences.
//!
//! A file comes from a user and may be anything. Whoever is told that it is no good wants to know what in it isn't, and where.

use super::{Compression, Protocol};
use lguest_switcher::GuestPhys;
use std::io;
use std::path::PathBuf;

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
    /// More bytes in all segments than in the file.
    #[error(
        "its segments have more bytes of the file than the {have} there are: some have the same"
    )]
    SharedBytes {
        /// The file's length in bytes.
        have: u64,
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
    /// A bzImage that doesn't say where its kernel is, and it isn't compressed by gzip.
    #[error(
        "it is a bzImage of boot protocol {0}, which doesn't say where its kernel is, and there is no gzip stream in it"
    )]
    NoGzip(Protocol),
    /// A bzImage whose kernel is compressed by something new.
    #[error(
        "its kernel is compressed by zstd, which only kernels from 5.9 on are, and lguest left Linux with 4.14"
    )]
    Zstd,
    /// A bzImage whose kernel is compressed by something else, or was damaged.
    #[error(
        "its compressed kernel, at byte {at:#x} of the file, begins as no compression does that is known here: {begins:02x?}"
    )]
    UnknownCompression {
        /// Where it is, in bytes from the start of the file.
        at: u64,
        /// Its first bytes.
        begins: Vec<u8>,
    },
    /// The compressed kernel is broken.
    #[error("its {compression} stream, at byte {at:#x} of the file, can't be unpacked: {error}")]
    BadPayload {
        /// How it is packed.
        compression: Compression,
        /// Where it is, in bytes from the start of the file.
        at: u64,
        /// What is wrong.
        error: io::Error,
    },
    /// The compressed kernel isn't the one it was.
    #[error(
        "its {compression} stream, at byte {at:#x} of the file, doesn't unpack to the {announced} bytes that are announced behind it"
    )]
    WrongSize {
        /// How it is packed.
        compression: Compression,
        /// Where it is, in bytes from the start of the file.
        at: u64,
        /// What it should unpack to.
        announced: u64,
    },
    /// The compressed kernel is a bomb.
    #[error("it unpacks to more than {limit} bytes, which is no kernel")]
    TooLarge {
        /// The most that is unpacked.
        limit: u64,
    },
    /// The kernel in a bzImage isn't one.
    #[error("what it unpacks to is bad: {0}")]
    Unpacked(Box<KernelError>),
    /// What should be an ELF file isn't.
    #[error("it isn't an ELF file")]
    NotElf,
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
