//! ELF kernels: the file says which bytes belong where.
//!
//! Only the file header and the program headers matter here (the System V ABI calls it the
//! *execution view*): every `PT_LOAD` header names bytes of the file and the physical
//! address they go to. Its virtual address lies `PAGE_OFFSET` higher, the same distance for all of
//! them, since the launcher maps memory once, in a piece.

use super::{Image, KernelError, Segment, piece, truncated};
use lguest_switcher::GuestPhys;
use object::LittleEndian;
use object::elf::{
    ELFCLASS64, ELFDATA2MSB, ELFMAG, EM_386, ET_EXEC, FileHeader32, PT_LOAD, ProgramHeader32,
};
use object::pod::{from_bytes, slice_from_bytes};
use std::mem::size_of;

/// Offsets in the sixteen identification bytes that open every ELF file.
const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;

type FileHeader = FileHeader32<LittleEndian>;
type ProgramHeader = ProgramHeader32<LittleEndian>;

/// Whether a file claims to be ELF.
pub(super) fn recognizes(file: &[u8]) -> bool {
    file.starts_with(&ELFMAG)
}

/// Collects the loadable segments of a file that [`recognizes`] took for ELF.
pub(super) fn read(file: &[u8]) -> Result<Image, KernelError> {
    let header = header(file)?;
    let mut segments = Vec::new();
    let mut page_offset = None;
    let mut taken = 0;
    for program_header in program_headers(file, header)? {
        let size = program_header.p_memsz.get(LittleEndian);
        if program_header.p_type.get(LittleEndian) != PT_LOAD || size == 0 {
            continue;
        }
        let virt = program_header.p_vaddr.get(LittleEndian);
        let phys = program_header.p_paddr.get(LittleEndian);
        let other = virt.wrapping_sub(phys);
        let first = *page_offset.get_or_insert(other);
        if first != other {
            return Err(KernelError::MixedOffsets { first, other });
        }
        let bytes = segment_bytes(file, program_header)?;
        // Thousands of segments that are the same bytes would fill our memory when they are copied.
        taken += bytes.len() as u64;
        if taken > file.len() as u64 {
            return Err(KernelError::SharedBytes { have: file.len() as u64 });
        }
        segments.push(Segment::new(GuestPhys(phys), bytes.to_vec(), size)?);
    }
    match page_offset {
        Some(page_offset) => {
            let entry = GuestPhys(header.e_entry.get(LittleEndian));
            Ok(Image { segments, page_offset, entry })
        }
        None => Err(KernelError::NoSegments),
    }
}

/// The file header, when it is one for 32-bit x86.
fn header(file: &[u8]) -> Result<&FileHeader, KernelError> {
    // A 64-bit header is longer, so ask what the file is before asking whether it is complete.
    if file.get(EI_CLASS) == Some(&ELFCLASS64.0) {
        return Err(KernelError::SixtyFourBit);
    }
    if file.get(EI_DATA) == Some(&ELFDATA2MSB.0) {
        return Err(KernelError::BigEndian);
    }
    let (header, _) = from_bytes::<FileHeader>(file)
        .map_err(|()| truncated("the ELF header", 0, size_of::<FileHeader>() as u64, file))?;
    let machine = header.e_machine.get(LittleEndian);
    if machine != EM_386 {
        return Err(KernelError::WrongMachine(machine.0));
    }
    let kind = header.e_type.get(LittleEndian);
    if kind != ET_EXEC {
        return Err(KernelError::NotExecutable(kind.0));
    }
    Ok(header)
}

/// The table of program headers.
fn program_headers<'a>(
    file: &'a [u8],
    header: &FileHeader,
) -> Result<&'a [ProgramHeader], KernelError> {
    let count = header.e_phnum.get(LittleEndian);
    if count == 0 {
        return Err(KernelError::NoSegments);
    }
    let each = header.e_phentsize.get(LittleEndian);
    if usize::from(each) != size_of::<ProgramHeader>() {
        return Err(KernelError::HeaderSize(each));
    }
    let start = u64::from(header.e_phoff.get(LittleEndian));
    let bytes = u64::from(count) * u64::from(each);
    let table = piece(file, "its table of program headers", start, bytes)?;
    match slice_from_bytes::<ProgramHeader>(table, usize::from(count)) {
        Ok((headers, _)) => Ok(headers),
        Err(()) => Err(truncated("its table of program headers", start, bytes, file)),
    }
}

/// What the file has for one segment.
fn segment_bytes<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<&'a [u8], KernelError> {
    let start = header.p_offset.get(LittleEndian);
    let bytes = header.p_filesz.get(LittleEndian);
    piece(file, "a segment", start.into(), bytes.into())
}
