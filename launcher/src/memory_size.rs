//! How much memory a guest gets, and how people write that.
//!
//! A size is checked once, here, so that everything behind it may rely on a whole number of pages
//! that leaves room for the device pages above it. Where it goes next: [`layout`](crate::layout).

use lguest_switcher::PAGE_SIZE;
use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A guest's memory: a whole number of pages from [`MemorySize::MIN`] to [`MemorySize::MAX`].
///
/// ```
/// use lguest::MemorySize;
///
/// let size: MemorySize = "64M".parse()?;
/// assert_eq!(size.bytes(), 64 << 20);
/// assert_eq!(size.to_string(), "64M");
/// # Ok::<(), lguest::MemorySizeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemorySize(u32);

/// What is wrong with a memory size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemorySizeError {
    /// Neither digits nor digits and a unit.
    #[error("\"{0}\" is no memory size: write a number and K, M or G, such as 64M")]
    Malformed(String),
    /// Less than any guest could use.
    #[error("{0} of memory is too little: a guest needs at least {min}", min = MemorySize::MIN)]
    TooSmall(String),
    /// More than 32-bit physical addresses reach, device pages included.
    #[error("{0} of memory is too much: a 32-bit guest reaches at most {max}", max = MemorySize::MAX)]
    TooLarge(String),
    /// Not a whole number of pages.
    #[error("{0} of memory is no whole number of pages: make it a multiple of {PAGE_SIZE} bytes")]
    Ragged(String),
}

impl MemorySize {
    /// The least: 1 MiB, below which a PC's own programs never had to live either.
    pub const MIN: Self = Self(MIB as u32);

    /// The most: 4 GiB less 4 MiB. What is left out is room for the device pages, which lie
    /// directly above a guest's memory and must have 32-bit physical addresses too.
    pub const MAX: Self = Self((4 * GIB - 4 * MIB) as u32);

    /// Sixty-four mebibytes: plenty for the bundled guest.
    pub const DEFAULT: Self = Self(64 * MIB as u32);

    /// A size in bytes.
    ///
    /// # Errors
    /// The number is out of range, or isn't a multiple of the page size.
    pub fn from_bytes(bytes: u64) -> Result<Self, MemorySizeError> {
        Self::checked(bytes, || format!("{bytes} bytes"))
    }

    /// A size in mebibytes (2²⁰ bytes).
    ///
    /// # Errors
    /// The number is out of range.
    pub fn from_mib(mebibytes: u32) -> Result<Self, MemorySizeError> {
        Self::checked(u64::from(mebibytes) * MIB, || format!("{mebibytes}M"))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// The size in pages.
    #[must_use]
    pub const fn pages(self) -> u32 {
        self.0 / PAGE_SIZE
    }

    /// Checks the range; `written` is how the user wrote it, for the message.
    fn checked(bytes: u64, written: impl Fn() -> String) -> Result<Self, MemorySizeError> {
        if bytes < u64::from(Self::MIN.0) {
            return Err(MemorySizeError::TooSmall(written()));
        }
        if bytes > u64::from(Self::MAX.0) {
            return Err(MemorySizeError::TooLarge(written()));
        }
        if !bytes.is_multiple_of(u64::from(PAGE_SIZE)) {
            return Err(MemorySizeError::Ragged(written()));
        }
        match u32::try_from(bytes) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(MemorySizeError::TooLarge(written())),
        }
    }
}

impl Default for MemorySize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads `64M`, `1G`, `512KiB` or plain bytes: a number, then nothing or one of
    /// K, M, G, with or without `B` or `iB`, in either case. A unit is always a power of 1024.
    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let malformed = || MemorySizeError::Malformed(text.to_owned());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            _ => return Err(malformed()),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        // Too many digits for a u64 is a well-formed size all the same, and far too much.
        let number: u64 = digits.parse().unwrap_or(u64::MAX);
        let bare = digits.len() == text.len();
        Self::checked(number.saturating_mul(unit), || {
            if bare { format!("{text} bytes") } else { text.to_owned() }
        })
    }
}

impl fmt::Display for MemorySize {
    /// In the largest unit that shows it exactly, the way it can be read back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u64::from(self.0);
        match bytes {
            _ if bytes % GIB == 0 => write!(f, "{}G", bytes / GIB),
            _ if bytes % MIB == 0 => write!(f, "{}M", bytes / MIB),
            _ => write!(f, "{}K", bytes / KIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_ways_to_write_a_size() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("64MB", 64 << 20),
            ("1G", 1 << 30),
            ("2048K", 2 << 20),
            ("67108864", 64 << 20),
            ("4092M", 4092 << 20),
        ] {
            assert_eq!(text.parse::<MemorySize>().map(MemorySize::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1M", "64X", "64 M", "0x4000000", "6four", "1.5G", "٣M", "64é"] {
            let refused = text.parse::<MemorySize>();
            assert!(matches!(refused, Err(MemorySizeError::Malformed(_))), "{text}: {refused:?}");
        }
    }

    #[test]
    fn the_limits_get_a_sentence_each() {
        let message = |text: &str| text.parse::<MemorySize>().unwrap_err().to_string();
        assert_eq!(message("1K"), "1K of memory is too little: a guest needs at least 1M");
        assert_eq!(
            message("100G"),
            "100G of memory is too much: a 32-bit guest reaches at most 4092M"
        );
        assert_eq!(
            message("99999999999999999999G"),
            "99999999999999999999G of memory is too much: a 32-bit guest reaches at most 4092M"
        );
        assert_eq!(
            message("2097153"),
            "2097153 bytes of memory is no whole number of pages: make it a multiple of 4096 bytes"
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_back(pages in MemorySize::MIN.pages()..=MemorySize::MAX.pages()) {
            let size = MemorySize::from_bytes(u64::from(pages) * u64::from(PAGE_SIZE)).unwrap();
            prop_assert_eq!(size.to_string().parse::<MemorySize>(), Ok(size));
        }

        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = text.parse::<MemorySize>();
        }
    }
}
