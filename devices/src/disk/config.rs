//! **What the user says of a disk**: `FILE[,ro][,snapshot][,format=raw|qcow2][,backing=FILE]...`
//!
//! A comma in a file's name is written twice, as QEMU has it. The story goes on in [`open`](super::open).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// A disk, as the user describes it. [`DiskConfig::open`] makes a [`Disk`](super::Disk) of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image: a regular file or a block device.
    pub file: PathBuf,
    /// What becomes of the guest's writes.
    pub writes: Writes,
    /// How the image is laid out. When it isn't said, the image's first bytes say it.
    pub format: Option<Format>,
    /// The files that the image may be built upon. A qcow2 image names its backing file itself, and whoever made the image may
    /// have named any of the user's files for the guest to read: none is opened that isn't listed here.
    pub backing: Vec<PathBuf>,
}

/// What becomes of a guest's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// They go to the image, which nobody else may use meanwhile.
    #[default]
    Image,
    /// They are refused: `ro`.
    Refused,
    /// They are forgotten with the disk: `snapshot`.
    Forgotten,
}

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk, one after another.
    Raw,
    /// QEMU's format, which grows as it is written and may be built upon another image.
    Qcow2,
}

/// Why a description of a disk makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Nothing is before the first comma.
    #[error(
        "`{0}` names no file; a disk is FILE[,ro][,snapshot][,format=raw|qcow2][,backing=FILE]"
    )]
    NoFile(String),
    /// An option nobody knows.
    #[error(
        "`{0}` is no option of a disk; there are ro, snapshot, format= and backing=, and a comma in a file's name is written `,,`"
    )]
    UnknownOption(String),
    /// A format nobody knows.
    #[error("`{0}` is no format of a disk; there are raw and qcow2")]
    UnknownFormat(String),
    /// `backing=` without a file.
    #[error("`backing=` names no file")]
    NoBackingFile,
    /// The same thing said again.
    #[error("`{0}` is said twice")]
    Twice(&'static str),
    /// Two options that exclude each other.
    #[error("`ro` refuses the writes that `snapshot` forgets: a disk has one of them")]
    ReadOnlySnapshot,
}

impl DiskConfig {
    /// The disk in this image, writable.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), writes: Writes::Image, format: None, backing: Vec::new() }
    }

    fn set(&mut self, option: &str) -> Result<(), ConfigError> {
        match option.split_once('=') {
            None if option == "ro" => self.set_writes(Writes::Refused, "ro"),
            None if option == "snapshot" => self.set_writes(Writes::Forgotten, "snapshot"),
            Some(("format", name)) => match self.format.replace(name.parse()?) {
                None => Ok(()),
                Some(_) => Err(ConfigError::Twice("format=")),
            },
            Some(("backing", "")) => Err(ConfigError::NoBackingFile),
            Some(("backing", file)) => {
                self.backing.push(file.into());
                Ok(())
            }
            _ => Err(ConfigError::UnknownOption(option.to_owned())),
        }
    }

    fn set_writes(&mut self, writes: Writes, option: &'static str) -> Result<(), ConfigError> {
        match std::mem::replace(&mut self.writes, writes) {
            Writes::Image => Ok(()),
            before if before == writes => Err(ConfigError::Twice(option)),
            _ => Err(ConfigError::ReadOnlySnapshot),
        }
    }
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut parts = split_at_single_commas(text).into_iter();
        let file = parts
            .next()
            .filter(|file| !file.is_empty())
            .ok_or_else(|| ConfigError::NoFile(text.to_owned()))?;
        let mut config = Self::new(file);
        parts.try_for_each(|option| config.set(&option))?;
        Ok(config)
    }
}

impl FromStr for Format {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(ConfigError::UnknownFormat(name.to_owned())),
        }
    }
}

/// Splits at commas, where two of them stand for one that doesn't split.
fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

/// A file's name as it is said in a description.
pub(super) fn escaped(file: &Path) -> String {
    file.to_string_lossy().replace(',', ",,")
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", escaped(&self.file))?;
        match self.writes {
            Writes::Image => {}
            Writes::Refused => write!(out, ",ro")?,
            Writes::Forgotten => write!(out, ",snapshot")?,
        }
        if let Some(format) = self.format {
            write!(out, ",format={format}")?;
        }
        self.backing.iter().try_for_each(|file| write!(out, ",backing={}", escaped(file)))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<DiskConfig>().expect_err(text).to_string()
    }

    #[test]
    fn a_file_alone_is_a_writable_disk_of_whatever_format() {
        assert_eq!("/dev/sdb".parse(), Ok(DiskConfig::new("/dev/sdb")));
    }

    #[test]
    fn options_follow_the_file() {
        let expected = DiskConfig {
            file: "a.qcow2".into(),
            writes: Writes::Forgotten,
            format: Some(Format::Qcow2),
            backing: vec!["b".into(), "c=d".into()],
        };
        assert_eq!("a.qcow2,backing=b,snapshot,format=qcow2,backing=c=d".parse(), Ok(expected));
        let expected = DiskConfig { writes: Writes::Refused, ..DiskConfig::new("ro") };
        assert_eq!("ro,ro".parse(), Ok(expected), "the first is always the file");
    }

    #[test]
    fn two_commas_stand_for_one() {
        assert_eq!("a,,b".parse(), Ok(DiskConfig::new("a,b")));
        assert_eq!(",,".parse(), Ok(DiskConfig::new(",")));
        let expected = DiskConfig { writes: Writes::Refused, ..DiskConfig::new("a,") };
        assert_eq!("a,,,ro".parse(), Ok(expected));
        let expected = DiskConfig { backing: vec!["b,ro".into()], ..DiskConfig::new("a") };
        assert_eq!("a,backing=b,,ro".parse(), Ok(expected));
    }

    #[test]
    fn nonsense_is_named() {
        assert!(error("").starts_with("`` names no file"));
        assert!(error(",ro").starts_with("`,ro` names no file"));
        assert!(error("a,").starts_with("`` is no option of a disk; there are ro, snapshot"));
        assert!(error("a,rw").starts_with("`rw` is no option"));
        assert!(error("a,ro=1").starts_with("`ro=1` is no option"));
        assert_eq!(error("a,format=vdi"), "`vdi` is no format of a disk; there are raw and qcow2");
        assert_eq!(error("a,backing="), "`backing=` names no file");
        assert_eq!(error("a,ro,ro"), "`ro` is said twice");
        assert_eq!(error("a,snapshot,snapshot"), "`snapshot` is said twice");
        assert_eq!(error("a,format=raw,format=raw"), "`format=` is said twice");
        assert!(error("a,ro,snapshot").starts_with("`ro` refuses"));
        assert!(error("a,snapshot,ro").starts_with("`ro` refuses"));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            file in ".{1,20}",
            writes in prop::sample::select(vec![Writes::Image, Writes::Refused, Writes::Forgotten]),
            format in prop::option::of(prop::sample::select(vec![Format::Raw, Format::Qcow2])),
            backing in prop::collection::vec(".{1,20}", 0..3),
        ) {
            let backing = backing.into_iter().map(PathBuf::from).collect();
            let config = DiskConfig { file: file.into(), writes, format, backing };
            prop_assert_eq!(config.to_string().parse(), Ok(config));
        }

        #[test]
        fn any_text_is_judged(text in "[a,=ro]{0,12}") {
            if let Ok(config) = text.parse::<DiskConfig>() {
                prop_assert_eq!(config.to_string().parse(), Ok(config));
            }
        }
    }
}
