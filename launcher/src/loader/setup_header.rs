//! The set-up header: what a bzImage says about itself.
//!
//! It lies in the first sectors, among the code that prepares a real PC, and has grown with every version
//! of the boot protocol: a field exists since the version that brought it, and what lies there in an older image is
//! something else. The protocol is Linux' own "The Linux/x86 Boot Protocol", chapter "The Real-Mode
//! Kernel Header"; here are the fields that matter to somebody who doesn't boot a PC.

use super::{KernelError, piece};
use std::fmt;

/// Where the header has "HdrS", its sign of life; an image without it is older than the protocol.
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// Offsets of fields, each with the version of the protocol that brought it.
mod field {
    use super::Protocol;

    pub(super) const SETUP_SECTORS: u64 = 0x1f1;
    pub(super) const VERSION: u64 = 0x206;
    pub(super) const ALIGNMENT: (u64, Protocol) = (0x230, Protocol(0x205));
    pub(super) const RELOCATABLE: (u64, Protocol) = (0x234, Protocol(0x205));
    pub(super) const COMMAND_LINE_SIZE: (u64, Protocol) = (0x238, Protocol(0x206));
    pub(super) const PAYLOAD_OFFSET: (u64, Protocol) = (0x248, Protocol(0x208));
    pub(super) const PAYLOAD_LENGTH: (u64, Protocol) = (0x24c, Protocol(0x208));
    pub(super) const INIT_SIZE: (u64, Protocol) = (0x260, Protocol(0x20a));
}

/// What the header calls a sector.
const SECTOR: u64 = 512;

/// How many sectors of set-up code there are when the header says 0.
const SETUP_SECTORS_OF_OLD: u8 = 4;

/// How long a command line may be where the header doesn't say.
const COMMAND_LINE_OF_OLD: u32 = 255;

/// The header's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetupHeader {
    /// The version of the boot protocol, on which the presence of the other fields depends.
    pub protocol: Protocol,
    /// The bytes of the command line that the kernel keeps, without the zero byte at its end.
    pub command_line_limit: u32,
    /// If the kernel may be loaded elsewhere than where it was linked: at multiples of what.
    pub relocatable: Option<u32>,
    /// The bytes from its first one on that the kernel uses before it knows how much memory there is.
    pub init_size: Option<u32>,
    /// Where the code begins that isn't for a real PC, in bytes from the start of the file.
    pub(super) code: u64,
    /// Where the compressed kernel is, if that is told.
    pub(super) payload: Option<PayloadPlace>,
}

/// A version of the boot protocol: the major number in the upper byte, the minor one in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Protocol(pub u16);

/// Bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PayloadPlace {
    /// From the start of the file.
    pub(super) at: u64,
    pub(super) length: u64,
}

impl SetupHeader {
    /// Whether a file claims to have such a header.
    pub(super) fn is_in(file: &[u8]) -> bool {
        let (at, magic) = MAGIC;
        file.get(at..).is_some_and(|rest| rest.starts_with(magic))
    }

    /// Reads it from a file that claims to have one.
    pub(super) fn parse(file: &[u8]) -> Result<Self, KernelError> {
        let protocol = Protocol(u16::from_le_bytes(bytes(file, field::VERSION)?));
        let word = |(at, since): (u64, Protocol)| match protocol >= since {
            true => bytes(file, at).map(|word| Some(u32::from_le_bytes(word))),
            false => Ok(None),
        };
        let [setup_sectors] = match bytes(file, field::SETUP_SECTORS)? {
            [0] => [SETUP_SECTORS_OF_OLD],
            sectors => sectors,
        };
        let code = (1 + u64::from(setup_sectors)) * SECTOR; // the boot sector comes first
        let (at, since) = field::RELOCATABLE;
        let is_relocatable = protocol >= since && bytes(file, at)? != [0];
        let payload = match (word(field::PAYLOAD_OFFSET)?, word(field::PAYLOAD_LENGTH)?) {
            (Some(offset), Some(length)) if offset != 0 => {
                Some(PayloadPlace { at: code + u64::from(offset), length: length.into() })
            }
            _ => None,
        };
        Ok(Self {
            protocol,
            command_line_limit: word(field::COMMAND_LINE_SIZE)?.unwrap_or(COMMAND_LINE_OF_OLD),
            relocatable: word(field::ALIGNMENT)?.filter(|_| is_relocatable),
            init_size: word(field::INIT_SIZE)?,
            code,
            payload,
        })
    }
}

/// A field of the header.
fn bytes<const N: usize>(file: &[u8], at: u64) -> Result<[u8; N], KernelError> {
    let mut field = [0; N];
    field.copy_from_slice(piece(file, "its set-up header", at, N as u64)?);
    Ok(field)
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor] = self.0.to_be_bytes();
        write!(f, "{major}.{minor:02}")
    }
}
