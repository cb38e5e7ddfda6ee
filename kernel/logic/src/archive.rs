//! The guest's files: a cpio archive, as the launcher put it into memory.
//!
//! Its form is the "new ASCII" one: for each file a header of thirteen eight-digit hexadecimal
//! numbers, the name and the contents, each padded to a multiple of four; the last name is
//! `TRAILER!!!` (Linux's documentation, `initramfs-buffer-format`). Nothing is
//! copied: files are slices of the archive. A damaged archive ends where the damage begins.

/// Bytes in a header.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const END: &[u8] = b"TRAILER!!!";

/// The bits of a mode that say what kind of file it is.
const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const SYMBOLIC_LINK: u32 = 0o120_000;

/// How many links are followed before it must be a ring.
const MAX_LINKS: usize = 8;

/// An archive.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
}

/// A file in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// Its path, without a slash at the start.
    pub path: &'a str,
    /// Kind and permissions, as `stat` gives them.
    pub mode: u32,
    /// Its place in the archive: unlike any other's.
    pub inode: u32,
    /// When it was last changed, in seconds since 1970.
    pub modified: u32,
    /// Its contents; of a symbolic link, where it leads.
    pub contents: &'a [u8],
}

impl<'a> File<'a> {
    /// Whether it's a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.mode & KIND == DIRECTORY
    }

    /// Whether it's a symbolic link.
    #[must_use]
    pub fn is_link(&self) -> bool {
        self.mode & KIND == SYMBOLIC_LINK
    }

    /// Its name, without the directories it's in.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

impl<'a> Archive<'a> {
    /// The archive in some bytes. There may be padding behind it.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// All files, in the archive's order.
    pub fn files(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        let bytes = self.bytes;
        let mut at = 0;
        core::iter::from_fn(move || {
            let (file, next) = file_at(bytes, at)?;
            at = next;
            Some(file)
        })
    }

    /// The file at a path, with or without a slash in front. Links are followed, the last one included.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<File<'a>> {
        let mut file = self.find_link(path)?;
        for _ in 0..MAX_LINKS {
            if !file.is_link() {
                return Some(file);
            }
            let target = core::str::from_utf8(file.contents).ok()?;
            file = match target.strip_prefix('/') {
                Some(target) => self.find_link(target)?,
                None => self.find_beside(file.path, target)?,
            };
        }
        None
    }

    /// The same, but a link is returned, not followed.
    #[must_use]
    pub fn find_link(&self, path: &str) -> Option<File<'a>> {
        self.files().find(|file| parts(file.path).eq(parts(path)))
    }

    /// What is in a directory, given by its path. The root's is empty.
    pub fn list(&self, directory: &str) -> impl Iterator<Item = File<'a>> {
        self.files().filter(move |file| {
            let mut inside = parts(file.path);
            let mut above = parts(directory);
            above.by_ref().all(|part| inside.next() == Some(part)) && inside.count() == 1
        })
    }

    /// Where a relative link leads.
    fn find_beside(&self, link: &str, target: &str) -> Option<File<'a>> {
        let directory = link.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.files().find(|file| parts(file.path).eq(parts(directory).chain(parts(target))))
    }
}

/// The names a path consists of.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

/// The file whose header is at `at`, and where the next header is.
fn file_at(bytes: &[u8], at: usize) -> Option<(File<'_>, usize)> {
    let header = bytes.get(at..)?.get(..HEADER)?;
    let number = |index: usize| {
        let digits = header.get(6 + index * 8..14 + index * 8)?;
        u32::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
    };
    if !header.starts_with(MAGIC) {
        return None;
    }
    let (mode, modified, size, name_size) = (number(1)?, number(5)?, number(6)?, number(11)?);

    let name_start = at + HEADER;
    let name_end = name_start.checked_add(name_size as usize)?;
    let start = name_end.checked_next_multiple_of(4)?;
    let end = start.checked_add(size as usize)?;
    let contents = bytes.get(start..end)?;
    let name = bytes.get(name_start..name_end)?.strip_suffix(b"\0")?;
    if name == END {
        return None;
    }
    let path = core::str::from_utf8(name).ok()?.trim_start_matches("./");
    let inode = (at / 4) as u32 + 2;
    Some((File { path, mode, inode, modified, contents }, end.checked_next_multiple_of(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec::Vec;

    fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
        let numbers =
            [9, mode, 0, 0, 1, 77, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(MAGIC);
        for number in numbers {
            archive.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        add(&mut bytes, "bin", 0o040_755, b"");
        add(&mut bytes, "./bin/tool", 0o100_755, b"program");
        add(&mut bytes, "bin/alias", 0o120_777, b"tool");
        add(&mut bytes, "alias", 0o120_777, b"/bin/alias");
        add(&mut bytes, "ring", 0o120_777, b"ring");
        add(&mut bytes, "text", 0o100_644, b"abc");
        add(&mut bytes, "TRAILER!!!", 0, b"");
        bytes.resize(bytes.len() + 512, 0);
        bytes
    }

    #[test]
    fn files_are_found_by_path() {
        let bytes = sample();
        let archive = Archive::new(&bytes);
        let text = archive.find("/text").unwrap();
        assert_eq!((text.contents, text.modified, text.mode), (&b"abc"[..], 77, 0o100_644));
        assert_eq!(archive.find("bin//tool").unwrap().contents, b"program");
        assert!(archive.find("bin").unwrap().is_directory());
        assert!(archive.find("nothing").is_none());
        assert_eq!(archive.files().count(), 6);
    }

    #[test]
    fn links_are_followed_but_not_for_ever() {
        let bytes = sample();
        let archive = Archive::new(&bytes);
        assert_eq!(archive.find("alias").unwrap().path, "bin/tool");
        assert!(archive.find_link("alias").unwrap().is_link());
        assert!(archive.find("ring").is_none());
    }

    #[test]
    fn directories_list_what_is_right_inside() {
        let bytes = sample();
        let archive = Archive::new(&bytes);
        let names: Vec<_> = archive.list("/bin").map(|file| file.name()).collect();
        assert_eq!(names, ["tool", "alias"]);
        assert_eq!(archive.list("").count(), 4);
    }

    #[test]
    fn a_truncated_archive_has_fewer_files() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(Archive::new(&bytes[..end]).files().count() <= 6);
        }
        assert_eq!(Archive::new(b"not an archive at all").files().count(), 0);
    }
}
