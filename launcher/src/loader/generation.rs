//! Generations: which of lguest's interfaces a kernel speaks.
//!
//! The interface was never promised to last. It changed with the kernel, guest and Host together, so a kernel's version tells it,
//! and the version is in the banner that each Linux prints first. The first generation can also be told by itself:
//! it has a [`SIGNATURE`](super::SIGNATURE).

use super::Segment;
use lguest_abi::Generation;
use memchr::memmem;
use std::fmt;

/// How the banner begins.
const BANNER: &[u8] = b"Linux version ";

/// The most of a banner that is looked at; a kernel's is half as long.
const BANNER_LIMIT: usize = 512;

/// What a Linux that can be a guest calls the memory map it is given, since there is no signature any more: the
/// only string with this word in the whole kernel.
const MEMORY_MAP_NAME: &[u8] = b"LGUEST\0";

/// Why a kernel speaks none of them. Each message completes "the kernel can't be booted: ".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoGeneration {
    /// From before lguest.
    #[error("it is Linux {0}, and lguest came with 2.6.23")]
    TooOld(Version),
    /// From after it.
    #[error("it is Linux {0}, and lguest left with 4.14")]
    TooNew(Version),
    /// From the time of the signature, and without one.
    #[error(
        "it is Linux {0} without \"GenuineLguest\": built without support for running under lguest"
    )]
    Unsigned(Version),
    /// Anything.
    #[error(
        "there is neither \"GenuineLguest\" nor a Linux banner in it, so it is no guest of lguest's"
    )]
    Unknown,
}

/// The version of a Linux kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// The three numbers that make a release, such as 2, 6 and 24, or 4, 1 and 15.
    numbers: [u16; 3],
    /// On the way to that release, not yet there.
    is_candidate: bool,
}

/// The first release of each generation that has one.
const SINCE: [([u16; 3], Generation); 6] = [
    ([2, 6, 23], Generation::V2_6_23),
    ([2, 6, 24], Generation::V2_6_24),
    ([2, 6, 25], Generation::V2_6_25),
    ([2, 6, 30], Generation::V2_6_30),
    ([2, 6, 38], Generation::V2_6_38),
    ([4, 0, 0], Generation::V4_0),
];

/// The first release without lguest.
const REMOVED: [u16; 3] = [4, 14, 0];

/// The generation that a kernel speaks which has, or hasn't, a signature, and this version.
///
/// One Linux was released with a signature. Any other kernel that has one is somebody's own, or from the weeks
/// before that release.
pub(super) fn generation_of(
    is_signed: bool,
    version: Option<Version>,
) -> Result<Generation, NoGeneration> {
    let by_version = version.and_then(Version::generation);
    match (is_signed, version) {
        (true, _) if by_version == Some(Generation::V2_6_23) => Ok(Generation::V2_6_23),
        (true, _) => Ok(Generation::First),
        (false, None) => Err(NoGeneration::Unknown),
        (false, Some(version)) if version.numbers >= REMOVED => Err(NoGeneration::TooNew(version)),
        (false, Some(version)) => match by_version {
            Some(generation) if generation.is_signed() => Err(NoGeneration::Unsigned(version)),
            Some(generation) => Ok(generation),
            None => Err(NoGeneration::TooOld(version)),
        },
    }
}

/// The line that a Linux begins its messages with, if the kernel is one.
pub(super) fn banner(segments: &[Segment]) -> Option<String> {
    segments.iter().find_map(|segment| {
        memmem::find_iter(&segment.bytes, BANNER).find_map(|at| banner_at(&segment.bytes[at..]))
    })
}

/// The banner that begins `bytes`, as far as it can be printed. Other sentences begin like it, but only it goes on with
/// a version and, in brackets, who built it.
fn banner_at(bytes: &[u8]) -> Option<String> {
    let bytes = &bytes[..bytes.len().min(BANNER_LIMIT)];
    let text: String =
        String::from_utf8_lossy(bytes).chars().take_while(|c| !c.is_control()).collect();
    let (_, builder) = text.get(BANNER.len()..)?.split_once(' ')?;
    let is_banner = builder.starts_with('(') && Version::of_banner(&text).is_some();
    is_banner.then_some(text)
}

/// Whether a kernel without a signature can be told to have been built with `LGUEST_GUEST`.
pub(super) fn names_lguest(segments: &[Segment]) -> bool {
    segments.iter().any(|segment| memmem::find(&segment.bytes, MEMORY_MAP_NAME).is_some())
}

impl Version {
    /// Reads it from a banner.
    pub(super) fn of_banner(banner: &str) -> Option<Self> {
        let release = banner.get(BANNER.len()..)?.split(' ').next()?;
        let numbers = release.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Self { numbers: [major, minor, patch], is_candidate: release.contains("-rc") })
    }

    /// The generation of the time. Candidates of the release that brought lguest into Linux spoke the first one still.
    fn generation(self) -> Option<Generation> {
        let (since, generation) =
            SINCE.into_iter().rev().find(|(since, _)| *since <= self.numbers)?;
        let is_first = self.is_candidate && since == SINCE[0].0;
        Some(if is_first { Generation::First } else { generation })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        f.write_str(if self.is_candidate { "-rc" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lguest_switcher::GuestPhys;

    /// What a kernel with this release in its banner speaks.
    fn speaks(is_signed: bool, release: &str) -> Result<Generation, NoGeneration> {
        let version = Version::of_banner(&format!("Linux version {release} (me@here) #1"));
        assert!(version.is_some(), "{release}");
        generation_of(is_signed, version)
    }

    #[test]
    fn each_release_speaks_the_generation_of_its_time() {
        for (release, generation) in [
            ("2.6.24", Generation::V2_6_24),
            ("2.6.24-rc1", Generation::V2_6_24),
            ("2.6.24.7-server", Generation::V2_6_24),
            ("2.6.25", Generation::V2_6_25),
            ("2.6.29.6", Generation::V2_6_25),
            ("2.6.30", Generation::V2_6_30),
            ("2.6.36", Generation::V2_6_30),
            ("2.6.37.6", Generation::V2_6_30),
            ("2.6.39.4", Generation::V2_6_38),
            ("3.0.0", Generation::V2_6_38),
            ("3.4.48-QEMU", Generation::V2_6_38),
            ("3.19.8+", Generation::V2_6_38),
            ("4.0.0-rc1", Generation::V4_0),
            ("4.1.15", Generation::V4_0),
            ("4.13.16_custom", Generation::V4_0),
        ] {
            assert_eq!(speaks(false, release), Ok(generation), "{release}");
        }
        for release in ["2.4.37", "2.6.9-5.EL", "2.6.22"] {
            let refused = speaks(false, release);
            assert!(matches!(refused, Err(NoGeneration::TooOld(_))), "{release}: {refused:?}");
        }
        for release in ["4.14.0-rc1", "4.14", "5.10.0-8-686", "6.1.0"] {
            let refused = speaks(false, release);
            assert!(matches!(refused, Err(NoGeneration::TooNew(_))), "{release}: {refused:?}");
        }
    }

    #[test]
    fn a_signature_is_the_first_generations_but_for_one_release() {
        assert_eq!(generation_of(true, None), Ok(Generation::First));
        assert_eq!(generation_of(false, None), Err(NoGeneration::Unknown));
        for release in ["2.6.21", "2.6.22", "2.6.23-rc1", "6.1.0"] {
            assert_eq!(speaks(true, release), Ok(Generation::First), "{release}");
        }
        for release in ["2.6.23", "2.6.23.17-smp"] {
            assert_eq!(speaks(true, release), Ok(Generation::V2_6_23), "{release}");
        }
        for release in ["2.6.23", "2.6.23-rc3"] {
            let refused = speaks(false, release);
            assert!(matches!(refused, Err(NoGeneration::Unsigned(_))), "{release}: {refused:?}");
        }
    }

    #[test]
    fn a_banner_is_told_from_other_sentences() {
        let find = |text: &str| {
            let size = text.len() as u32;
            banner(&[Segment::new(GuestPhys(0), text.into(), size).unwrap()])
        };
        assert_eq!(
            find("Linux version %s\0Linux version 4.1.15 (me@here) (gcc) #1 Mon\n\0more")
                .as_deref(),
            Some("Linux version 4.1.15 (me@here) (gcc) #1 Mon")
        );
        assert_eq!(find("Linux version 2.2 or later"), None);
        assert_eq!(find("Linux version 4 (me)"), None);
        assert_eq!(find("Linux version 4.1.15"), None);
        assert_eq!(find("Linux version 70000.1.2 (me)"), None);
        // The compiler named there may speak its user's language.
        let spanish = "Linux version 2.6.20.1 (sergi@here) (gcc versión 4.1.3) #1";
        assert_eq!(find(&format!("{spanish}\n")).as_deref(), Some(spanish));
        // A banner is printed: it can't be anything else to a terminal.
        assert_eq!(find("Linux version 4.1 (\x1b[2J)").as_deref(), Some("Linux version 4.1 ("));
        let long = format!("Linux version 4.1 ({})", "x".repeat(10_000));
        assert_eq!(find(&long).map(|banner| banner.len()), Some(BANNER_LIMIT));
    }
}
