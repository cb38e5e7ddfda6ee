//! Calls on memory.

use super::Answer;
use crate::files::open::Open;
use crate::memory::user_memory;
use crate::processes::of_current;
use lguest_kernel_logic::areas::{Access, HIGHEST, LOWEST, PAGE};
use lguest_system_calls::Errno;

/// Bits of `mmap`'s and `mprotect`'s protection.
const READ: u32 = 1;
const WRITE: u32 = 2;
const EXECUTE: u32 = 4;

/// Bits of `mmap`'s flags.
const SHARED: u32 = 0x01;
const FIXED: u32 = 0x10;
const ANONYMOUS: u32 = 0x20;
const FIXED_NO_REPLACE: u32 = 0x10_0000;

fn access(protection: u32) -> Access {
    if protection & WRITE != 0 {
        Access::Write
    } else if protection & (READ | EXECUTE) != 0 {
        Access::Read
    } else {
        Access::None
    }
}

pub(super) fn brk(end: u32) -> Answer {
    of_current(|process| Ok(process.space()?.move_heap_end(end)))
}

/// The first `mmap`: its arguments are in memory.
pub(super) fn old_mmap(arguments: u32) -> Answer {
    let [address, length, protection, flags, number, offset] = user_memory::read_words(arguments)?;
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    mmap2(address, length, protection, flags, number, offset / PAGE)
}

pub(super) fn mmap2(
    address: u32,
    length: u32,
    protection: u32,
    flags: u32,
    number: u32,
    page_offset: u32,
) -> Answer {
    let contents = if flags & ANONYMOUS != 0 {
        &[][..]
    } else {
        file_part(number, page_offset, protection, flags)?
    };
    if length == 0 {
        return Err(Errno::EINVAL);
    }
    let access = access(protection);
    let start = of_current(|process| {
        let space = process.space()?;
        let range = if flags & (FIXED | FIXED_NO_REPLACE) != 0 {
            let end =
                address.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE));
            let end = end.filter(|end| *end <= HIGHEST).ok_or(Errno::ENOMEM)?;
            if !address.is_multiple_of(PAGE) || address < LOWEST {
                return Err(Errno::EINVAL);
            }
            if flags & FIXED_NO_REPLACE != 0 && !space.is_free(&(address..end)) {
                return Err(Errno::EEXIST);
            }
            space.unmap(address..end)?;
            address..end
        } else {
            space.find_room(address, length).ok_or(Errno::ENOMEM)?
        };
        // A file's bytes are copied in below: until then it must be writable.
        let first = if contents.is_empty() { access } else { Access::Write };
        space.add_area(range.clone(), first, false)?;
        Ok(range.start)
    })?;
    if !contents.is_empty() {
        let contents = &contents[..contents.len().min(length as usize)];
        user_memory::write(start, contents)?;
        let end = start + length.next_multiple_of(PAGE);
        of_current(|process| process.space()?.protect(start..end, access))?;
    }
    Ok(start)
}

/// The part of a file that is to be mapped. Changes stay private, since files can't be written.
fn file_part(
    number: u32,
    page_offset: u32,
    protection: u32,
    flags: u32,
) -> Result<&'static [u8], Errno> {
    match of_current(|process| process.files.get(number).copied())? {
        Open::File { file, .. } if !file.is_directory() => {
            if flags & SHARED != 0 && protection & WRITE != 0 {
                return Err(Errno::EACCES);
            }
            let at = (page_offset as usize).saturating_mul(PAGE as usize);
            Ok(file.contents.get(at..).unwrap_or_default())
        }
        _ => Err(Errno::EACCES),
    }
}

/// Whole pages from an address on.
fn pages(address: u32, length: u32) -> Result<core::ops::Range<u32>, Errno> {
    let end = address.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE));
    Ok(address..end.ok_or(Errno::EINVAL)?)
}

pub(super) fn munmap(address: u32, length: u32) -> Answer {
    let range = pages(address, length)?;
    of_current(|process| process.space()?.unmap(range)).map(|()| 0)
}

pub(super) fn mprotect(address: u32, length: u32, protection: u32) -> Answer {
    let range = pages(address, length)?;
    of_current(|process| process.space()?.protect(range, access(protection))).map(|()| 0)
}

pub(super) fn mremap(address: u32, old_length: u32, new_length: u32, flags: u32) -> Answer {
    const MAY_MOVE: u32 = 1;
    let range = pages(address, old_length)?;
    if flags & !MAY_MOVE != 0 || range.is_empty() || new_length == 0 {
        return Err(Errno::EINVAL);
    }
    of_current(|process| process.space()?.resize(range, new_length, flags & MAY_MOVE != 0))
}
