//! What `stat` and its kin tell of a file, in the forms Linux has for it on i386.

use super::open::Open;

/// A character device that anybody may read and write.
const CHARACTER_DEVICE: u32 = 0o020_666;

/// Device numbers, by Linux's list of allocated devices: major, minor.
const CONSOLE_DEVICE: (u32, u32) = (5, 1);
const NULL_DEVICE: (u32, u32) = (1, 3);

/// What devices' reads and writes do best at a time.
const BLOCK: u32 = 4096;

/// What there is to tell of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    mode: u32,
    inode: u32,
    size: u32,
    modified: u32,
    /// Of a device: major and minor number.
    device: (u32, u32),
}

impl Status {
    /// Of something opened.
    pub(crate) fn of(open: &Open) -> Self {
        let device =
            |device| Self { mode: CHARACTER_DEVICE, inode: 1, size: 0, modified: 0, device };
        match open {
            Open::Console => device(CONSOLE_DEVICE),
            Open::Null => device(NULL_DEVICE),
            Open::File { file, .. } => Self {
                mode: file.mode,
                inode: file.inode,
                size: file.contents.len() as u32,
                modified: file.modified,
                device: (0, 0),
            },
        }
    }

    /// A device's number in one word, as `stat64` has it.
    fn device_number(&self) -> u32 {
        self.device.0 << 8 | self.device.1
    }

    /// Half-kilobytes it takes.
    fn blocks(&self) -> u32 {
        self.size.div_ceil(512)
    }

    /// As `struct stat64`.
    pub(crate) fn to_stat64(self) -> [u8; 96] {
        let mut bytes = [0; 96];
        let mut put = |at: usize, value: u32| put_u32(&mut bytes, at, value);
        put(12, self.inode);
        put(16, self.mode);
        put(20, 1); // links
        put(32, self.device_number());
        put(44, self.size);
        put(52, BLOCK);
        put(56, self.blocks());
        for time in [64, 72, 80] {
            put(time, self.modified);
        }
        put(88, self.inode);
        bytes
    }

    /// As `struct statx`, with all that the older calls tell.
    pub(crate) fn to_statx(self) -> [u8; 256] {
        const BASIC: u32 = 0x7ff;
        let mut bytes = [0; 256];
        let mut put = |at: usize, value: u32| put_u32(&mut bytes, at, value);
        put(0, BASIC);
        put(4, BLOCK);
        put(16, 1); // links
        put(28, self.mode);
        put(32, self.inode);
        put(40, self.size);
        put(48, self.blocks());
        for time in [64, 96, 112] {
            put(time, self.modified);
        }
        put(128, self.device.0);
        put(132, self.device.1);
        bytes
    }
}

/// Writes a word of a record.
fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}
