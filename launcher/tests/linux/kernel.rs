//! The kernels under test, and what they boot with.

use crate::Skip;
use crate::initramfs::initramfs;
use lguest::{Generation, Kernel as KernelFile};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};
use tempfile::{NamedTempFile, TempPath};

/// The variable that names kernels.
pub(crate) const KERNELS: &str = "LGUEST_LINUX_KERNELS";

/// The variable that names a BusyBox for those that the usual one finds too old.
const BUSYBOX: &str = "LGUEST_LINUX_BUSYBOX";

/// The first Linux on which the C library of the usual BusyBox runs.
const FIRST_FOR_USUAL: [u32; 2] = [3, 2];

/// A kernel that guests boot.
pub(crate) struct Kernel {
    pub(crate) path: PathBuf,
    /// What `uname -r` says in it.
    pub(crate) release: String,
    pub(crate) generation: Generation,
    /// Its first files.
    pub(crate) initramfs: TempPath,
}

/// Each kernel that the environment names, or why it can't be tested.
pub(crate) type Named = (PathBuf, Result<Kernel, Skip>);

/// The kernels that the environment names.
///
/// # Errors
/// A file that is no kernel, or that can't be read.
pub(crate) fn from_environment() -> Result<Vec<Named>, String> {
    let names = env::var(KERNELS).unwrap_or_default();
    let paths = names.split([' ', '\t', '\n', ':']).filter(|name| !name.is_empty());
    paths.map(|path| Ok((from_here(path), Kernel::read(&from_here(path))?))).collect()
}

impl Kernel {
    fn read(path: &Path) -> Result<Result<Self, Skip>, String> {
        let file = KernelFile::read(path).map_err(|error| error.to_string())?;
        let generation =
            file.generation().map_err(|error| format!("{}: {error}", path.display()))?;
        let release = file
            .banner()
            .and_then(|banner| banner.strip_prefix("Linux version ")?.split(' ').next())
            .ok_or_else(|| format!("{}: there is no Linux in it", path.display()))?
            .to_owned();
        let busybox = match busybox(&release) {
            Ok(path) => path,
            Err(skip) => return Ok(Err(skip)),
        };
        let program = fs::read(&busybox)
            .map_err(|error| format!("the BusyBox {}: {error}", busybox.display()))?;
        let initramfs = file_with(&initramfs(&program));
        Ok(Ok(Self { path: path.to_owned(), release, generation, initramfs }))
    }
}

/// The BusyBox that runs on such a kernel.
fn busybox(release: &str) -> Result<PathBuf, Skip> {
    if numbers(release) >= FIRST_FOR_USUAL {
        return Ok(from_here("build/busybox-i386/bin/busybox"));
    }
    env::var_os(BUSYBOX).map(|path| from_here(&path.to_string_lossy())).ok_or_else(|| {
        let [major, minor] = FIRST_FOR_USUAL;
        Skip(format!(
            "the usual BusyBox needs Linux {major}.{minor}; {BUSYBOX} can name another static 32-bit one"
        ))
    })
}

/// The first two numbers of a release's name.
fn numbers(release: &str) -> [u32; 2] {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)]
}

/// A path as it is meant where the command was typed, which is the project's root.
fn from_here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A file with these bytes, which lives as long as the value.
pub(crate) fn file_with(bytes: &[u8]) -> TempPath {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.into_temp_path()
}
