//! Calls on files and what passes for them.
//!
//! Paths without a slash in front mean the same as with one: there is one directory to be in.

use super::Answer;
use crate::files;
use crate::files::open::Open;
use crate::files::status::Status;
use crate::keyboard;
use crate::memory::user_memory;
use crate::processes::of_current;
use alloc::string::String;
use alloc::vec::Vec;
use lguest_drivers::console::CONSOLE;
use lguest_kernel_logic::archive::File;
use lguest_system_calls::Errno;

/// Bytes in a path at most.
const PATH_MAX: usize = 4096;
/// Pieces in a vector of buffers at most.
const VECTOR_MAX: u32 = 1024;
/// Bytes copied in one go.
const PIECE: usize = 1024;

/// For `openat` and kin: relative to where the process is.
const HERE: u32 = -100_i32 as u32;
/// Flags of `openat` that want to change something: write, read-write, create, truncate.
const WRITING: u32 = 0o3 | 0o100 | 0o1000;
/// Of the above: only to write to what is there.
const ACCESS_MODE: u32 = 0o3;
/// Flag of `fstatat64` and `statx`: of a link, the link itself.
const NO_FOLLOW: u32 = 0x100;
/// Flag of the same: an empty path means the open file.
const EMPTY_PATH: u32 = 0x1000;

/// The path at an address.
pub(super) fn path(at: u32) -> Result<String, Errno> {
    let bytes = user_memory::read_string(at, PATH_MAX, Errno::ENAMETOOLONG)?;
    // The archive's names are UTF-8: others can't be among them.
    String::from_utf8(bytes).map_err(|_| Errno::ENOENT)
}

pub(super) fn read(number: u32, buffer: u32, length: u32) -> Answer {
    let (open, at) = of_current(|process| {
        let open = *process.files.get(number)?;
        let at = if let Open::File { position, .. } = open { position } else { 0 };
        Ok((open, at))
    })?;
    let count = read_at(&open, at, buffer, length)?;
    of_current(|process| {
        if let Open::File { position, .. } = process.files.get(number)? {
            *position += u64::from(count);
        }
        Ok(count)
    })
}

pub(super) fn pread(number: u32, buffer: u32, length: u32, at: u64) -> Answer {
    let open = of_current(|process| process.files.get(number).copied())?;
    match open {
        Open::Console => Err(Errno::ESPIPE),
        open => read_at(&open, at, buffer, length),
    }
}

fn read_at(open: &Open, at: u64, buffer: u32, length: u32) -> Answer {
    match open {
        Open::Null => Ok(0),
        Open::File { file, .. } if file.is_directory() => Err(Errno::EISDIR),
        Open::File { file, .. } => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let rest = file.contents.get(at..).unwrap_or_default();
            let bytes = &rest[..rest.len().min(length as usize)];
            user_memory::write(buffer, bytes)?;
            Ok(bytes.len() as u32)
        }
        Open::Console => {
            let mut piece = [0; PIECE];
            let room = PIECE.min(length as usize);
            let count = keyboard::read(&mut piece[..room])?;
            user_memory::write(buffer, &piece[..count])?;
            Ok(count as u32)
        }
    }
}

pub(super) fn write(number: u32, buffer: u32, length: u32) -> Answer {
    match of_current(|process| process.files.get(number).copied())? {
        Open::Null => Ok(length),
        Open::File { .. } => Err(Errno::EBADF),
        Open::Console => {
            let mut piece = [0; PIECE];
            let mut done = 0;
            while done < length {
                let count = PIECE.min((length - done) as usize);
                let piece = &mut piece[..count];
                match user_memory::read(buffer.wrapping_add(done), piece) {
                    Ok(()) => CONSOLE.write(piece),
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error),
                }
                done += count as u32;
            }
            Ok(done)
        }
    }
}

/// Does `one` for each buffer of a vector, until one isn't filled or emptied.
fn each_buffer(vector: u32, count: u32, one: impl Fn(u32, u32) -> Answer) -> Answer {
    if count > VECTOR_MAX {
        return Err(Errno::EINVAL);
    }
    let mut total = 0_u32;
    for at in 0..count {
        let [buffer, length] = user_memory::read_words(vector.wrapping_add(8 * at))?;
        match one(buffer, length) {
            Ok(done) => {
                total = total.saturating_add(done);
                if done < length {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

pub(super) fn readv(number: u32, vector: u32, count: u32) -> Answer {
    each_buffer(vector, count, |buffer, length| read(number, buffer, length))
}

pub(super) fn writev(number: u32, vector: u32, count: u32) -> Answer {
    each_buffer(vector, count, |buffer, length| write(number, buffer, length))
}

pub(super) fn open(path_at: u32, flags: u32) -> Answer {
    openat(HERE, path_at, flags)
}

pub(super) fn openat(_directory: u32, path_at: u32, flags: u32) -> Answer {
    let open = match path(path_at)?.as_str() {
        "" => return Err(Errno::ENOENT),
        "/dev/null" => Open::Null,
        "/dev/tty" | "/dev/console" => Open::Console,
        path => match files::find(path) {
            Some(file) if file.is_directory() && flags & ACCESS_MODE != 0 => {
                return Err(Errno::EISDIR);
            }
            _ if flags & WRITING != 0 => return Err(Errno::EROFS),
            Some(file) => Open::File { file, position: 0 },
            None => return Err(Errno::ENOENT),
        },
    };
    of_current(|process| process.files.add(open, 0))
}

pub(super) fn close(number: u32) -> Answer {
    of_current(|process| process.files.close(number)).map(|()| 0)
}

/// Moves the position in a file.
fn seek(number: u32, offset: i64, whence: u32) -> Result<u64, Errno> {
    of_current(|process| match process.files.get(number)? {
        Open::Console => Err(Errno::ESPIPE),
        Open::Null => Ok(0),
        Open::File { file, position } => {
            let base = match whence {
                0 => 0,
                1 => i64::try_from(*position).map_err(|_| Errno::EOVERFLOW)?,
                2 => file.contents.len() as i64,
                _ => return Err(Errno::EINVAL),
            };
            let target = base.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
            *position = u64::try_from(target).map_err(|_| Errno::EINVAL)?;
            Ok(*position)
        }
    })
}

pub(super) fn lseek(number: u32, offset: u32, whence: u32) -> Answer {
    let position = seek(number, i64::from(offset as i32), whence)?;
    u32::try_from(position).map_err(|_| Errno::EOVERFLOW)
}

pub(super) fn llseek(number: u32, [high, low]: [u32; 2], result: u32, whence: u32) -> Answer {
    let offset = (u64::from(high) << 32 | u64::from(low)) as i64;
    let position = seek(number, offset, whence)?;
    user_memory::write(result, &position.to_le_bytes())?;
    Ok(0)
}

pub(super) fn dup(number: u32) -> Answer {
    of_current(|process| {
        let open = *process.files.get(number)?;
        process.files.add(open, 0)
    })
}

pub(super) fn dup2(number: u32, target: u32) -> Answer {
    of_current(|process| {
        let open = *process.files.get(number)?;
        process.files.replace(target, open)
    })
}

pub(super) fn fcntl(number: u32, command: u32, argument: u32) -> Answer {
    const DUPLICATE: u32 = 0;
    const GET_FD_FLAGS: u32 = 1;
    const SET_FD_FLAGS: u32 = 2;
    const GET_FLAGS: u32 = 3;
    const SET_FLAGS: u32 = 4;
    const DUPLICATE_CLOEXEC: u32 = 1030;
    const READ_WRITE: u32 = 2;
    of_current(|process| {
        let open = *process.files.get(number)?;
        match command {
            DUPLICATE | DUPLICATE_CLOEXEC => process.files.add(open, argument),
            GET_FD_FLAGS | SET_FD_FLAGS | SET_FLAGS => Ok(0),
            GET_FLAGS => Ok(if let Open::File { .. } = open { 0 } else { READ_WRITE }),
            _ => Err(Errno::EINVAL),
        }
    })
}

/// What a path leads to, as if it were opened.
fn look_up(path: &str, follow: bool) -> Result<Open, Errno> {
    let find = if follow { files::find } else { files::find_link };
    match path {
        "" => Err(Errno::ENOENT),
        "/dev/null" => Ok(Open::Null),
        "/dev/tty" | "/dev/console" => Ok(Open::Console),
        path => find(path).map(|file| Open::File { file, position: 0 }).ok_or(Errno::ENOENT),
    }
}

/// For calls that name a file by a path or a number.
fn status_at(number: u32, path_at: u32, flags: u32) -> Result<Status, Errno> {
    let path = path(path_at)?;
    let open = if path.is_empty() && flags & EMPTY_PATH != 0 {
        of_current(|process| process.files.get(number).copied())?
    } else {
        look_up(&path, flags & NO_FOLLOW == 0)?
    };
    Ok(Status::of(&open))
}

pub(super) fn stat64(path_at: u32, result: u32, follow: bool) -> Answer {
    let status = Status::of(&look_up(&path(path_at)?, follow)?);
    user_memory::write(result, &status.to_stat64())?;
    Ok(0)
}

pub(super) fn fstat64(number: u32, result: u32) -> Answer {
    let open = of_current(|process| process.files.get(number).copied())?;
    user_memory::write(result, &Status::of(&open).to_stat64())?;
    Ok(0)
}

pub(super) fn fstatat64(number: u32, path_at: u32, result: u32, flags: u32) -> Answer {
    user_memory::write(result, &status_at(number, path_at, flags)?.to_stat64())?;
    Ok(0)
}

pub(super) fn statx(number: u32, path_at: u32, flags: u32, result: u32) -> Answer {
    user_memory::write(result, &status_at(number, path_at, flags)?.to_statx())?;
    Ok(0)
}

pub(super) fn access(path_at: u32, mode: u32) -> Answer {
    const WRITE: u32 = 2;
    match look_up(&path(path_at)?, true)? {
        Open::File { .. } if mode & WRITE != 0 => Err(Errno::EROFS),
        _ => Ok(0),
    }
}

pub(super) fn readlink(path_at: u32, buffer: u32, length: u32) -> Answer {
    let file = files::find_link(&path(path_at)?).ok_or(Errno::ENOENT)?;
    if !file.is_link() {
        return Err(Errno::EINVAL);
    }
    let target = &file.contents[..file.contents.len().min(length as usize)];
    user_memory::write(buffer, target)?;
    Ok(target.len() as u32)
}

pub(super) fn getdents64(number: u32, buffer: u32, length: u32) -> Answer {
    let open = of_current(|process| process.files.get(number).copied())?;
    let Open::File { file: directory, position } = open else {
        return Err(Errno::ENOTDIR);
    };
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    let mut written = 0;
    let mut seen = position;
    for file in
        files::archive().list(directory.path).skip(usize::try_from(position).unwrap_or(usize::MAX))
    {
        let entry = directory_entry(&file, seen + 1);
        if written + entry.len() > length as usize {
            if written == 0 {
                return Err(Errno::EINVAL);
            }
            break;
        }
        user_memory::write(buffer.wrapping_add(written as u32), &entry)?;
        written += entry.len();
        seen += 1;
    }
    of_current(|process| {
        if let Open::File { position, .. } = process.files.get(number)? {
            *position = seen;
        }
        Ok(written as u32)
    })
}

/// A `struct linux_dirent64`: inode, where the next one is, length, type, name.
fn directory_entry(file: &File<'_>, next: u64) -> Vec<u8> {
    let name = file.name().as_bytes();
    let length = (8 + 8 + 2 + 1 + name.len() + 1).next_multiple_of(8);
    let mut entry = Vec::with_capacity(length);
    entry.extend_from_slice(&u64::from(file.inode).to_le_bytes());
    entry.extend_from_slice(&next.to_le_bytes());
    entry.extend_from_slice(&(length as u16).to_le_bytes());
    entry.push((file.mode >> 12) as u8 & 0xf);
    entry.extend_from_slice(name);
    entry.resize(length, 0);
    entry
}

pub(super) fn getcwd(buffer: u32, length: u32) -> Answer {
    const HERE: &[u8] = b"/\0";
    if (length as usize) < HERE.len() {
        return Err(Errno::ERANGE);
    }
    user_memory::write(buffer, HERE)?;
    Ok(HERE.len() as u32)
}

pub(super) fn chdir(path_at: u32) -> Answer {
    match path(path_at)?.trim_matches(['/', '.']) {
        "" => Ok(0),
        _ => Err(Errno::ENOENT),
    }
}
