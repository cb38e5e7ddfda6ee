//! A guest's first files: a cpio archive in the format that kernels unpack ("newc", as the kernel's
//! `Documentation/early-userspace/buffer-format.txt` has it), with BusyBox and a script that makes the machine usable.

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The console's number, which the kernel opens for its first program.
const CONSOLE: (u32, u32) = (5, 1);

/// The archive.
pub(crate) fn initramfs(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "tmp", "mnt", "etc"] {
        archive.add(directory, DIRECTORY, (0, 0), b"");
    }
    archive.add("dev/console", CHARACTER_DEVICE, CONSOLE, b"");
    archive.add("bin/busybox", PROGRAM, (0, 0), busybox);
    archive.add("init", PROGRAM, (0, 0), include_bytes!("init.sh"));
    archive.add("bin/leased", PROGRAM, (0, 0), include_bytes!("leased.sh"));
    archive.add("etc/passwd", FILE, (0, 0), b"root::0:0:root:/:/bin/sh\n");
    archive.add("TRAILER!!!", 0, (0, 0), b"");
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends one entry: thirteen numbers, its name and what is in it, both padded to words.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let (inode, links, owner, time) = (self.entries, 1, 0, 0);
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let (major, minor, check) = (0, 0, 0);
        let numbers = [
            inode, mode, owner, owner, links, time, size, major, minor, device.0, device.1,
            name_size, check,
        ];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
