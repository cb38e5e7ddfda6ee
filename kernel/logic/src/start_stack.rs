//! What a program finds on its stack when it starts: its arguments, its environment, and what the
//! kernel tells it (the System V ABI for i386, "Process Initialization").
//!
//! From the stack pointer up: how many arguments there are; a pointer to each, and 0; a pointer to
//! each variable of the environment, and 0; pairs of a number and a value, and a pair of zeros; then
//! the strings themselves, up to the stack's end.

use alloc::vec::Vec;

/// Numbers of what the kernel tells: the auxiliary vector.
pub mod tell {
    /// Where the program headers are.
    pub const HEADERS: u32 = 3;
    /// Bytes in a program header.
    pub const HEADER_SIZE: u32 = 4;
    /// How many program headers there are.
    pub const HEADER_COUNT: u32 = 5;
    /// Bytes in a page.
    pub const PAGE_SIZE: u32 = 6;
    /// Where the program starts.
    pub const ENTRY: u32 = 9;
    /// The user, who is root.
    pub const USER: u32 = 11;
    /// The user whose rights count.
    pub const EFFECTIVE_USER: u32 = 12;
    /// The group.
    pub const GROUP: u32 = 13;
    /// The group whose rights count.
    pub const EFFECTIVE_GROUP: u32 = 14;
    /// What the processor offers: cpuid leaf 1's edx.
    pub const PROCESSOR: u32 = 16;
    /// Ticks in a second, for `times`.
    pub const TICKS: u32 = 17;
    /// Whether the program has rights its user hasn't.
    pub const SECURE: u32 = 23;
    /// Where sixteen random bytes are.
    pub const RANDOM: u32 = 25;
    /// Where the program's path is.
    pub const PATH: u32 = 31;
}

/// What goes onto the stack.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The arguments, the program's name first.
    pub arguments: &'a [Vec<u8>],
    /// The environment: `NAME=value`.
    pub environment: &'a [&'a [u8]],
    /// The program's path.
    pub path: &'a [u8],
    /// Sixteen random bytes.
    pub random: [u8; 16],
    /// Pairs of a number of [`tell`] and a value; those for strings are added.
    pub told: &'a [(u32, u32)],
}

impl Start<'_> {
    /// The bytes that end at address `top`. The first one's address, a multiple of 16, is the stack pointer.
    #[must_use]
    pub fn bytes(&self, top: u32) -> Vec<u8> {
        let strings = Strings::place(self, top);
        let mut words = Vec::new();
        words.push(self.arguments.len() as u32);
        words.extend_from_slice(&strings.arguments);
        words.push(0);
        words.extend_from_slice(&strings.environment);
        words.push(0);
        for (number, value) in self.told {
            words.extend_from_slice(&[*number, *value]);
        }
        words.extend_from_slice(&[tell::RANDOM, strings.random, tell::PATH, strings.path, 0, 0]);

        let strings_start = top - strings.bytes.len() as u32;
        let start = (strings_start - 4 * words.len() as u32) & !15;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize((strings_start - start) as usize, 0);
        bytes.extend_from_slice(&strings.bytes);
        bytes
    }
}

/// The strings, one behind another, and the address of each.
struct Strings {
    bytes: Vec<u8>,
    arguments: Vec<u32>,
    environment: Vec<u32>,
    random: u32,
    path: u32,
}

impl Strings {
    fn place(start: &Start<'_>, top: u32) -> Self {
        let arguments: usize = start.arguments.iter().map(|text| text.len() + 1).sum();
        let environment: usize = start.environment.iter().map(|text| text.len() + 1).sum();
        let total = arguments + environment + start.path.len() + 1 + start.random.len();
        let base = top - total as u32;

        let mut bytes = Vec::with_capacity(total);
        let mut put = |text: &[u8], end: &[u8]| {
            let address = base + bytes.len() as u32;
            bytes.extend_from_slice(text);
            bytes.extend_from_slice(end);
            address
        };
        let arguments = start.arguments.iter().map(|text| put(text, b"\0")).collect();
        let environment = start.environment.iter().map(|text| put(text, b"\0")).collect();
        let path = put(start.path, b"\0");
        let random = put(&start.random, b"");
        Self { bytes, arguments, environment, random, path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn everything_is_where_the_pointers_say() {
        let top = 0xb000_0000;
        let arguments = [b"echo".to_vec(), b"hello".to_vec()];
        let start = Start {
            arguments: &arguments,
            environment: &[b"HOME=/"],
            path: b"/busybox",
            random: [7; 16],
            told: &[(tell::PAGE_SIZE, 4096)],
        };
        let bytes = start.bytes(top);
        let base = top - bytes.len() as u32;
        assert_eq!(base % 16, 0);
        let word = |at: u32| {
            let at = at as usize;
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        };
        let text = |address: u32| {
            let bytes = &bytes[(address - base) as usize..];
            bytes[..bytes.iter().position(|b| *b == 0).unwrap()].to_vec()
        };
        assert_eq!(word(0), 2);
        assert_eq!(text(word(4)), b"echo");
        assert_eq!(text(word(8)), b"hello");
        assert_eq!((word(12), text(word(16)), word(20)), (0, b"HOME=/".to_vec(), 0));
        assert_eq!((word(24), word(28)), (tell::PAGE_SIZE, 4096));
        assert_eq!(word(32), tell::RANDOM);
        let random = (word(36) - base) as usize;
        assert_eq!(bytes[random..random + 16].to_vec(), vec![7; 16]);
        assert_eq!((word(40), text(word(44))), (tell::PATH, b"/busybox".to_vec()));
        assert_eq!((word(48), word(52)), (0, 0));
    }
}
