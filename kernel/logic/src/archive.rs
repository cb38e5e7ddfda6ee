//! The guest's files: a cpio archive, as the launcher put it into memory.
//!
//! Its form is the "new ASCII" one: for each file a header of thirteen eight-digit hexadecimal
//! numbers, the name and the contents, each padded to a multiple of four; the last name is
//! `TRAILER!!!` (Linux's documentation, `initramfs-buffer-format`). Nothing is
//! copied: files are slices of the archive. A damaged archive ends where the damage begins, and
//! [`Archive::damage`] says so.

use alloc::vec::Vec;
use core::fmt;

/// Bytes in a header.
const HEADER: usize = 110;
/// The plain form's first digits, and those of the form with a checksum in a field that is 0 otherwise.
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
const END: &[u8] = b"TRAILER!!!";

/// The bits of a mode that say what kind of file it is.
const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const SYMBOLIC_LINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;

/// How many links are followed before it must be a ring.
const MAX_LINKS: usize = 8;

/// What compressed files begin with, and how they are called.
const COMPRESSED: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// What is wrong with an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// It is compressed, in a way of this name.
    Compressed(&'static str),
    /// It is no archive at all.
    NotAnArchive,
    /// It ends early, or goes on as something else, at this offset.
    BrokenAt(usize),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed(how) => {
                write!(f, "it is compressed by {how}; this kernel takes it uncompressed")
            }
            Self::NotAnArchive => f.write_str("it isn't a cpio archive of the \"newc\" form"),
            Self::BrokenAt(offset) => write!(f, "it is damaged or cut off at byte {offset}"),
        }
    }
}

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
    /// If it has several names: what tells it apart from others that have.
    pub links: Option<HardLinks>,
}

/// A file with several names is in the archive once for each, but its contents only with one of them. All have the same
/// number, on the same device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardLinks {
    number: u32,
    device: [u32; 2],
}

/// The directory above all, when the archive has no entry for it.
const ROOT: File<'static> =
    File { path: "", mode: DIRECTORY | 0o755, inode: 1, modified: 0, contents: &[], links: None };

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

    /// What is wrong with it, if anything is.
    #[must_use]
    pub fn damage(&self) -> Option<Damage> {
        let mut at = 0;
        loop {
            match entry_at(self.bytes, at) {
                Some(Entry::File(_, next)) => at = next,
                Some(Entry::End) => return None,
                None if at > 0 => return Some(Damage::BrokenAt(at)),
                None if MAGICS.iter().any(|magic| self.bytes.starts_with(magic)) => {
                    return Some(Damage::BrokenAt(0));
                }
                None => {
                    let known = |(magic, _): &&(&[u8], _)| self.bytes.starts_with(magic);
                    let compressed = COMPRESSED.iter().find(known);
                    return Some(
                        compressed.map_or(Damage::NotAnArchive, |(_, how)| Damage::Compressed(how)),
                    );
                }
            }
        }
    }

    /// All files, in the archive's order.
    pub fn files(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        let archive = *self;
        self.entries().map(move |file| archive.with_contents(file))
    }

    /// The same, as they lie there: of a file with several names, only one has the contents.
    fn entries(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        let bytes = self.bytes;
        let mut at = 0;
        core::iter::from_fn(move || match entry_at(bytes, at)? {
            Entry::File(file, next) => {
                at = next;
                Some(file)
            }
            Entry::End => None,
        })
    }

    /// A file with the contents that lie with another of its names.
    fn with_contents(&self, file: File<'a>) -> File<'a> {
        if file.links.is_none() || !file.contents.is_empty() {
            return file;
        }
        let twin =
            self.entries().find(|other| other.links == file.links && !other.contents.is_empty());
        twin.map_or(file, |twin| File { contents: twin.contents, inode: twin.inode, ..file })
    }

    /// The file at a path, with or without a slash in front. Links are followed, the last one included.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<File<'a>> {
        self.walk(path, true)
    }

    /// The same, but if it is a link itself, that is returned, not followed.
    #[must_use]
    pub fn find_link(&self, path: &str) -> Option<File<'a>> {
        self.walk(path, false)
    }

    /// Follows a path name by name, since any of them may be a link, or `..`.
    fn walk(&self, path: &str, follow_last: bool) -> Option<File<'a>> {
        let mut links = 0;
        let mut left: Vec<&str> = parts(path).rev().collect();
        let mut here: Vec<&str> = Vec::new();
        let mut found = self.exactly(&here);
        while let Some(part) = left.pop() {
            if part == ".." {
                here.pop();
                found = self.exactly(&here);
                continue;
            }
            here.push(part);
            let file = self.exactly(&here)?;
            if file.is_link() && (follow_last || !left.is_empty()) {
                links += 1;
                let target = core::str::from_utf8(file.contents).ok()?;
                if links > MAX_LINKS {
                    return None;
                }
                here.pop();
                if target.starts_with('/') {
                    here.clear();
                }
                left.extend(parts(target).rev());
                found = self.exactly(&here);
                continue;
            }
            if !left.is_empty() && !file.is_directory() {
                return None;
            }
            found = Some(file);
        }
        found
    }

    /// What is in a directory, given by its path. The root's is empty.
    pub fn list(&self, directory: &str) -> impl Iterator<Item = File<'a>> {
        self.files().filter(move |file| {
            let mut inside = parts(file.path);
            let mut above = parts(directory);
            above.by_ref().all(|part| inside.next() == Some(part)) && inside.count() == 1
        })
    }

    /// The file at a path without links in it. There is always a root.
    fn exactly(&self, path: &[&str]) -> Option<File<'a>> {
        let is_it = |file: &File<'_>| parts(file.path).eq(path.iter().copied());
        let file = self.entries().find(is_it).map(|file| self.with_contents(file));
        file.or_else(|| path.is_empty().then_some(ROOT))
    }
}

/// The names a path consists of.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

/// What is at an offset.
enum Entry<'a> {
    /// A file, and where the next entry is.
    File(File<'a>, usize),
    /// The archive's end.
    End,
}

/// The entry whose header is at `at`; None if there is no whole one.
fn entry_at(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    let header = bytes.get(at..)?.get(..HEADER)?;
    let number = |index: usize| {
        let digits = header.get(6 + index * 8..14 + index * 8)?;
        u32::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
    };
    if !MAGICS.iter().any(|magic| header.starts_with(magic)) {
        return None;
    }
    let (mode, modified, size, name_size) = (number(1)?, number(5)?, number(6)?, number(11)?);

    let name_start = at + HEADER;
    let name_end = name_start.checked_add(name_size as usize)?;
    let name = bytes.get(name_start..name_end)?.strip_suffix(b"\0")?;
    if name == END {
        return Some(Entry::End);
    }
    let start = name_end.checked_next_multiple_of(4)?;
    let end = start.checked_add(size as usize)?;
    let contents = bytes.get(start..end)?;
    let path = core::str::from_utf8(name).ok()?.trim_start_matches("./");
    let inode = (at / 4) as u32 + 2;
    let links = HardLinks { number: number(0)?, device: [number(7)?, number(8)?] };
    let links = (number(4)? > 1 && mode & KIND == REGULAR).then_some(links);
    let file = File { path, mode, inode, modified, contents, links };
    Some(Entry::File(file, end.checked_next_multiple_of(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
        add_linked(archive, name, mode, 1, contents);
    }

    fn add_linked(archive: &mut Vec<u8>, name: &str, mode: u32, links: u32, contents: &[u8]) {
        let numbers =
            [9, mode, 0, 0, links, 77, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(MAGICS[0]);
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
    fn links_lead_through_directories() {
        let mut bytes = Vec::new();
        add(&mut bytes, "usr", 0o040_755, b"");
        add(&mut bytes, "usr/bin", 0o040_755, b"");
        add(&mut bytes, "usr/bin/tool", 0o100_755, b"program");
        add(&mut bytes, "bin", 0o120_777, b"usr/bin");
        add(&mut bytes, "usr/up", 0o120_777, b"../bin/tool");
        add(&mut bytes, "root", 0o120_777, b"/");
        let archive = Archive::new(&bytes);
        for path in ["/bin/tool", "usr/up", "usr/../bin/./tool", "../usr/bin/../bin/tool"] {
            assert_eq!(archive.find(path).map(|file| file.path), Some("usr/bin/tool"), "{path}");
        }
        assert!(["", "/", "root", "/../."].map(|path| archive.find(path).unwrap()) == [ROOT; 4]);
        assert_eq!(archive.find("root/usr").map(|file| file.path), Some("usr"));
        assert_eq!(archive.find("bin").unwrap().path, "usr/bin");
        assert_eq!(archive.find_link("bin").unwrap().path, "bin");
        assert!(archive.find("usr/bin/tool/more").is_none());
    }

    #[test]
    fn all_names_of_a_file_have_its_contents() {
        let mut bytes = Vec::new();
        add_linked(&mut bytes, "first", 0o100_755, 2, b"");
        add(&mut bytes, "empty", 0o100_644, b"");
        add_linked(&mut bytes, "second", 0o100_755, 2, b"program");
        let archive = Archive::new(&bytes);
        let [first, second] = ["first", "second"].map(|name| archive.find(name).unwrap());
        assert_eq!((first.path, first.contents), ("first", &b"program"[..]));
        assert_eq!(first.inode, second.inode);
        assert_eq!(archive.find("empty").unwrap().contents, b"");
    }

    #[test]
    fn damage_is_named() {
        let bytes = sample();
        assert_eq!(Archive::new(&bytes).damage(), None);
        let trailer = bytes.windows(END.len()).position(|window| window == END).unwrap();
        let whole = trailer + END.len() + 1;
        for end in 6..whole {
            let damage = Archive::new(&bytes[..end]).damage();
            assert!(matches!(damage, Some(Damage::BrokenAt(_))), "{end}: {damage:?}");
        }
        assert_eq!(Archive::new(&bytes[..whole]).damage(), None);
        assert_eq!(Archive::new(b"\x1f\x8b\x08").damage(), Some(Damage::Compressed("gzip")));
        for nothing in [&b"rubbish"[..], b"", b"0707"] {
            assert_eq!(Archive::new(nothing).damage(), Some(Damage::NotAnArchive));
        }
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
