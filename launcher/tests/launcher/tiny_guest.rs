//! Guests of a few instructions, and the ELF files around them.
//!
//! A kernel with a prompt shows that everything works together; a guest of ten instructions shows
//! what one thing does. These are assembled in the test that runs them.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, eax, ebx, ecx, edx, ptr};
use lguest_abi::address::Phys;
use lguest_abi::boot::SIGNATURE;
use lguest_abi::hypercall::{Hypercall, VECTOR};

/// Where these guests have their memory mapped, as most kernels do.
pub(crate) const PAGE_OFFSET: u32 = 0xc000_0000;

/// Where their code begins.
pub(crate) const CODE: u32 = 0x10_0000;

/// Where their text and other constants lie.
pub(crate) const DATA: u32 = 0x20_0000;

/// Free memory: where they have the page they share with the Host.
pub(crate) const LGUEST_DATA: u32 = 0x3000;

/// A segment for [`elf`].
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) virt: u32,
    pub(crate) phys: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) size: u32,
}

impl Segment {
    /// Bytes at a physical address, mapped where they should be.
    pub(crate) fn at(phys: u32, bytes: &[u8]) -> Self {
        let virt = phys.wrapping_add(PAGE_OFFSET);
        Self { virt, phys, bytes: bytes.to_vec(), size: bytes.len() as u32 }
    }
}

/// A 32-bit x86 ELF executable: the file header, the program headers, the bytes.
pub(crate) fn elf(segments: &[Segment]) -> Vec<u8> {
    const HEADER: u32 = 52;
    const PROGRAM_HEADER: u32 = 32;
    let half = |value: u32| (value as u16).to_le_bytes();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([half(2), half(3)].concat()); // executable, 386
    for word in [1, segments.first().map_or(0, |s| s.virt), HEADER, 0, 0] {
        file.extend(u32::to_le_bytes(word)); // version, entry, program headers, sections, flags
    }
    for value in [HEADER, PROGRAM_HEADER, segments.len() as u32, 40, 0, 0] {
        file.extend(half(value));
    }
    let mut offset = HEADER + PROGRAM_HEADER * segments.len() as u32;
    for segment in segments {
        let length = segment.bytes.len() as u32;
        for word in [1, offset, segment.virt, segment.phys, length, segment.size, 7, 4096] {
            file.extend(u32::to_le_bytes(word)); // PT_LOAD
        }
        offset += length;
    }
    segments.iter().for_each(|segment| file.extend(&segment.bytes));
    file
}

/// The ELF file of a guest that runs `code` and finds `data` at [`DATA`].
pub(crate) fn guest(
    data: &[u8],
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).unwrap();
    code(&mut assembler).unwrap();
    let entry = u64::from(PAGE_OFFSET + CODE) + SIGNATURE.len() as u64;
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend(assembler.assemble(entry).unwrap());
    elf(&[Segment::at(CODE, &bytes), Segment::at(DATA, data)])
}

/// Makes one hypercall.
pub(crate) fn call(a: &mut CodeAssembler, call: Hypercall) -> Result<(), IcedError> {
    let [number, first, second, third] = call.encode();
    a.mov(eax, number)?;
    a.mov(edx, first)?;
    a.mov(ebx, second)?;
    a.mov(ecx, third)?;
    a.int(i32::from(VECTOR))
}

/// The first call of every guest.
pub(crate) fn init(a: &mut CodeAssembler) -> Result<(), IcedError> {
    call(a, Hypercall::LguestInit { data: Phys(LGUEST_DATA) })
}

/// Ends the guest with the message at [`DATA`].
pub(crate) fn crash(a: &mut CodeAssembler) -> Result<(), IcedError> {
    call(a, Hypercall::Crash { message: Phys(DATA) })
}

/// Stores a word at a physical address.
pub(crate) fn store(a: &mut CodeAssembler, phys: u32, value: u32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.mov(ptr(PAGE_OFFSET + phys), eax)
}

/// A guest that gives up with this message.
pub(crate) fn crashing(message: &str) -> Vec<u8> {
    guest(&[message.as_bytes(), b"\0"].concat(), |a| {
        init(a)?;
        crash(a)
    })
}

/// A guest that powers off at once.
pub(crate) fn power_off() -> Vec<u8> {
    crashing("Power down")
}

/// A guest that computes and never ends, with interrupts enabled.
pub(crate) fn spinning() -> Vec<u8> {
    guest(b"", |a| {
        init(a)?;
        let mut again: CodeLabel = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    })
}
