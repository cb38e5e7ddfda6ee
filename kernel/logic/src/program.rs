//! Programs: what an ELF file says should be in memory, and where to start.
//!
//! Only static 32-bit programs are understood, since nobody here links. A program that doesn't
//! care where it lies (static, position-independent) is put at [`ANYWHERE`].

use crate::areas::{HIGHEST, LOWEST, PAGE};
use object::Endianness;
use object::elf::{
    EM_386, ET_DYN, ET_EXEC, FileHeader32, PF_W, PT_INTERP, PT_LOAD, PT_PHDR, ProgramHeader32,
};
use object::read::elf::{FileHeader, ProgramHeader};

/// Where a program goes that runs anywhere.
pub const ANYWHERE: u32 = 0x5655_5000;

/// How many segments a program can have.
pub const MAX_SEGMENTS: usize = 16;

/// A file this kernel can't run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAProgram;

/// Bytes of a file that go into memory, and zeros behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// The first byte's address.
    pub address: u32,
    /// The bytes from the file.
    pub contents: &'a [u8],
    /// How many bytes of memory it takes, at least as many as there are contents.
    pub size: u32,
    /// Whether the program may write there.
    pub writable: bool,
}

impl Segment<'_> {
    /// The address behind its last byte.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.address + self.size
    }
}

/// A program.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    segments: [Option<Segment<'a>>; MAX_SEGMENTS],
    /// Where it starts.
    pub entry: u32,
    /// Where in its memory the program headers are; 0 if nowhere.
    pub headers: u32,
    /// How many program headers there are.
    pub header_count: u16,
}

/// Bytes in a program header.
pub const PROGRAM_HEADER_SIZE: u32 = size_of::<ProgramHeader32<Endianness>>() as u32;

impl<'a> Program<'a> {
    /// Reads a file.
    ///
    /// # Errors
    /// When it isn't a static 32-bit x86 program, is damaged, or wants to be where it can't.
    pub fn read(file: &'a [u8]) -> Result<Self, NotAProgram> {
        let header = FileHeader32::<Endianness>::parse(file).map_err(|_| NotAProgram)?;
        let endian = header.endian().map_err(|_| NotAProgram)?;
        let kind = header.e_type(endian);
        if header.e_machine(endian) != EM_386 || !matches!(kind, ET_EXEC | ET_DYN) {
            return Err(NotAProgram);
        }
        let bias = if kind == ET_DYN { ANYWHERE } else { 0 };
        let headers = header.program_headers(endian, file).map_err(|_| NotAProgram)?;

        let mut program = Self {
            segments: [None; MAX_SEGMENTS],
            entry: header.e_entry(endian).wrapping_add(bias),
            headers: 0,
            header_count: header.e_phnum(endian),
        };
        let mut places = program.segments.iter_mut();
        let table = header.e_phoff(endian);
        for header in headers {
            match header.p_type(endian) {
                PT_INTERP => return Err(NotAProgram),
                PT_PHDR => program.headers = header.p_vaddr(endian).wrapping_add(bias),
                PT_LOAD if header.p_memsz(endian) > 0 => {
                    let segment = segment(file, header, endian, bias)?;
                    let offset = header.p_offset(endian);
                    if program.headers == 0
                        && (offset..offset + segment.contents.len() as u32).contains(&table)
                    {
                        program.headers = segment.address + (table - offset);
                    }
                    *places.next().ok_or(NotAProgram)? = Some(segment);
                }
                _ => {}
            }
        }
        if program.segments().next().is_none() { Err(NotAProgram) } else { Ok(program) }
    }

    /// Its segments, in the file's order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().flatten()
    }

    /// Whether a segment's pages are the same for all who run the program: it is only read, and has its pages for
    /// itself.
    #[must_use]
    pub fn can_share(&self, segment: &Segment<'_>) -> bool {
        let first = segment.address / PAGE;
        let end = segment.end().div_ceil(PAGE);
        let alone = self
            .segments()
            .filter(|other| other.address != segment.address)
            .all(|other| other.end().div_ceil(PAGE) <= first || end <= other.address / PAGE);
        !segment.writable && alone
    }

    /// The first address behind all of it: where its heap can begin.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.segments().map(Segment::end).max().unwrap_or(LOWEST)
    }
}

/// What a program header says, checked.
fn segment<'a>(
    file: &'a [u8],
    header: &ProgramHeader32<Endianness>,
    endian: Endianness,
    bias: u32,
) -> Result<Segment<'a>, NotAProgram> {
    let contents = header.data(endian, file).map_err(|()| NotAProgram)?;
    let address = header.p_vaddr(endian).checked_add(bias).ok_or(NotAProgram)?;
    let size = header.p_memsz(endian);
    let end = address.checked_add(size).ok_or(NotAProgram)?;
    // An offset and a length that add up to more than 32 bits would be beyond any file.
    let offset_fits = header.p_offset(endian).checked_add(header.p_filesz(endian)).is_some();
    if address < LOWEST || end > HIGHEST || contents.len() > size as usize || !offset_fits {
        return Err(NotAProgram);
    }
    Ok(Segment { address, contents, size, writable: header.p_flags(endian).contains(PF_W) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const EXECUTABLE: u16 = 2;
    const ANYWHERE_TOO: u16 = 3;
    const READ: u32 = 4;
    const WRITE: u32 = 2;

    /// A program header of the kind `PT_LOAD`, from the file's start.
    fn load(address: u32, in_file: u32, in_memory: u32, flags: u32) -> [u32; 8] {
        [1, 0, address, address, in_file, in_memory, flags, 4096]
    }

    /// A file of 256 bytes with some program headers.
    fn file(kind: u16, headers: &[[u32; 8]]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        let half = |value: u16, file: &mut Vec<u8>| file.extend_from_slice(&value.to_le_bytes());
        half(kind, &mut file);
        half(3, &mut file); // the machine: a 386
        for word in [1, 0x0804_8060, 52, 0, 0] {
            file.extend_from_slice(&u32::to_le_bytes(word));
        }
        for value in [52, 32, headers.len() as u16, 40, 0, 0] {
            half(value, &mut file);
        }
        for word in headers.iter().flatten() {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.resize(256, 0xaa);
        file
    }

    #[test]
    fn a_small_program() {
        let file = file(EXECUTABLE, &[load(0x0804_8000, 256, 0x2000, READ | WRITE)]);
        let program = Program::read(&file).unwrap();
        let segment = program.segments().next().unwrap();
        assert_eq!((segment.address, segment.size, segment.writable), (0x0804_8000, 0x2000, true));
        assert_eq!(segment.contents, &file[..]);
        assert_eq!(program.entry, 0x0804_8060);
        assert_eq!((program.headers, program.header_count), (0x0804_8034, 1));
        assert_eq!(program.end(), 0x0804_a000);
    }

    #[test]
    fn a_program_for_anywhere_is_moved() {
        let file = file(ANYWHERE_TOO, &[load(0, 256, 256, READ)]);
        let program = Program::read(&file).unwrap();
        assert_eq!(program.segments().next().unwrap().address, ANYWHERE);
        assert!(!program.segments().next().unwrap().writable);
    }

    #[test]
    fn pages_are_shared_that_nobody_writes_and_nobody_else_has() {
        let can_share = |segments: &[[u32; 8]]| {
            let file = file(EXECUTABLE, segments);
            let program = Program::read(&file).unwrap();
            program.segments().map(|segment| program.can_share(segment)).collect::<Vec<_>>()
        };
        let code = load(0x0804_8000, 256, 0x1000, READ);
        assert_eq!(can_share(&[code, load(0x0804_9000, 256, 256, READ | WRITE)]), [true, false]);
        assert_eq!(can_share(&[code, load(0x0804_8f00, 256, 256, READ | WRITE)]), [false, false]);
    }

    #[test]
    fn what_is_no_program() {
        let good = file(EXECUTABLE, &[load(0x0804_8000, 256, 256, READ)]);
        for end in 0..good.len() {
            assert!(Program::read(&good[..end]).is_err(), "{end} bytes");
        }
        let bad = [
            load(0, 256, 256, READ),
            load(0xc000_0000, 256, 256, READ),
            load(0xbfff_f000, 256, 0x1001, READ),
            load(0xffff_f000, 256, 0x2000, READ),
            load(0x0804_8000, 256, 255, READ),
            load(0x0804_8000, 257, 257, READ),
        ];
        for header in bad {
            assert!(Program::read(&file(EXECUTABLE, &[header])).is_err(), "{header:x?}");
        }
    }
}
