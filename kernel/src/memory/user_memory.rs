//! Touching what belongs to a process: pointers that come with system calls.
//!
//! A range is checked first, so that no process makes the kernel touch the kernel. Whether there is
//! memory shows only when it is touched: a fault on one of the copying instructions is mended like any
//! other, or else goes on at the fix-up behind the loop, and the call answers EFAULT.
//!
//! This is a room where unsafe code lives: the copying.

use alloc::vec::Vec;
use core::arch::global_asm;
use lguest_kernel_logic::areas::{HIGHEST, LOWEST};
use lguest_system_calls::Errno;

unsafe extern "C" {
    /// Copies words, then bytes. Returns how many bytes weren't copied: 0, or all that were left at a fault.
    fn copy_user(to: *mut u8, from: *const u8, bytes: usize) -> usize;
}

// copy_user(to, from, bytes). esi and edi point, ecx counts. Plain moves rather than
// `rep movs`: each has one side in user memory and one in the kernel's, and is told apart by its address.
global_asm!(
    ".pushsection .text.copy_user, \"ax\", @progbits",
    "copy_user:",
    "    push esi",
    "    push edi",
    "    mov edi, [esp + 12]", // to
    "    mov esi, [esp + 16]", // from
    "    mov ecx, [esp + 20]", // bytes
    "20: cmp ecx, 16",
    "    jb 30f",
    // sixteen bytes a turn
    "21: mov eax, [esi]",
    "22: mov edx, [esi + 4]",
    "23: mov [edi], eax",
    "24: mov [edi + 4], edx",
    "25: mov eax, [esi + 8]",
    "26: mov edx, [esi + 12]",
    "27: mov [edi + 8], eax",
    "28: mov [edi + 12], edx",
    "    add esi, 16",
    "    add edi, 16",
    "    sub ecx, 16",
    "    jmp 20b",
    // then one
    "30: test ecx, ecx",
    "    jz 40f",
    "31: mov al, [esi]",
    "32: mov [edi], al",
    "    inc esi",
    "    inc edi",
    "    dec ecx",
    "    jmp 30b",
    "40: mov eax, ecx",
    "    pop edi",
    "    pop esi",
    "    ret",
    ".popsection",
    // A fault at any of these ends the copying.
    ".pushsection kernel_fixups, \"aR\", @progbits",
    ".balign 4",
    ".long 21b, 40b, 22b, 40b, 23b, 40b, 24b, 40b, 25b, 40b, 26b, 40b, 27b, 40b, 28b, 40b",
    ".long 31b, 40b, 32b, 40b",
    ".popsection",
);

/// Whether all of a range is a process's to name.
fn check(address: u32, bytes: usize) -> Result<(), Errno> {
    let end = u64::from(address) + bytes as u64;
    if address >= LOWEST && end <= u64::from(HIGHEST) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Copies from the current process.
pub(crate) fn read(from: u32, into: &mut [u8]) -> Result<(), Errno> {
    if into.is_empty() {
        return Ok(());
    }
    check(from, into.len())?;
    let from = core::ptr::with_exposed_provenance(from as usize);
    // SAFETY: `into` may be written, the source isn't the kernel's, and a fault there is survived.
    let left = unsafe { copy_user(into.as_mut_ptr(), from, into.len()) };
    if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Copies to the current process.
pub(crate) fn write(to: u32, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    check(to, bytes.len())?;
    let to = core::ptr::with_exposed_provenance_mut(to as usize);
    // SAFETY: the target isn't the kernel's, and a fault there is survived.
    let left = unsafe { copy_user(to, bytes.as_ptr(), bytes.len()) };
    if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// A u32 of the current process.
pub(crate) fn read_u32(from: u32) -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    read(from, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// A few u32 of the current process.
pub(crate) fn read_words<const N: usize>(from: u32) -> Result<[u32; N], Errno> {
    let mut words = [0; N];
    for (at, word) in words.iter_mut().enumerate() {
        *word = read_u32(from.wrapping_add(4 * at as u32))?;
    }
    Ok(words)
}

/// A string that ends in a zero byte, of at most `limit` bytes. `too_long` is the error if it's longer.
pub(crate) fn read_string(from: u32, limit: usize, too_long: Errno) -> Result<Vec<u8>, Errno> {
    let mut string = Vec::new();
    let mut at = from;
    loop {
        // As much as is sure to be in one page.
        let mut piece = [0; 64];
        let length = piece.len().min((64 - at % 64) as usize);
        let piece = &mut piece[..length];
        read(at, piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            string.extend_from_slice(&piece[..end]);
        } else {
            string.extend_from_slice(piece);
        }
        if string.len() > limit {
            return Err(too_long);
        }
        if piece.contains(&0) {
            return Ok(string);
        }
        at = at.wrapping_add(length as u32);
    }
}
