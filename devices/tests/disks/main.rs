//! What the command line's disks do: hold what was written, refuse what can't be one, keep others out, survive being killed.

mod contents;
mod hostile;
mod killed;
mod no_room;
mod refusals;
mod sharing;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
use lguest_devices::disk::{Disk, DiskConfig, OpenError};
use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Sectors have 512 bytes, here as everywhere.
const SECTOR: usize = 512;

/// The variable by which a test tells a copy of itself, in another process, which disk to use.
const CHILDS_DISK: &str = "LGUEST_TEST_DISK";

/// The disk, if this is the copy.
fn childs_disk() -> Option<String> {
    env::var(CHILDS_DISK).ok()
}

/// A command that runs a copy of the test of that name, for that disk. The test's own word comes on standard error, for
/// standard output has the harness's.
fn child(test: &str, disk: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("the test's own file"));
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILDS_DISK, disk)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn open(disk: &str) -> Box<dyn Disk> {
    disk.parse::<DiskConfig>().expect(disk).open().unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(disk: &str) -> OpenError {
    match disk.parse::<DiskConfig>().expect(disk).open() {
        Ok(_) => panic!("{disk} was opened"),
        Err(error) => error,
    }
}

/// A new qcow2 image, without anything in it.
fn create_qcow2(path: &Path, size: u64, cluster: usize) {
    let file = ImageFile::create_open(StorageCreateOptions::new().filename(path))
        .expect("a file for the image");
    let image = Qcow2::<ImageFile>::create_builder(file).size(size).cluster_size(cluster);
    image.create().expect("an image");
}

/// Runs a tool of QEMU's, or says that it isn't there.
fn qemu<S: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = S>) -> Option<Output> {
    match Command::new(tool).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("Left out, without {tool} (package qemu-utils): {error}");
            None
        }
    }
}

/// As [`qemu`], and it has to succeed.
fn qemu_img<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Option<Output> {
    let output = qemu("qemu-img", arguments)?;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    Some(output)
}

/// QEMU finds nothing wrong with the image; clusters that nobody uses, at most.
fn qemu_finds_no_error(image: &Path) {
    let Some(output) =
        qemu("qemu-img", ["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), image.as_os_str()])
    else {
        return;
    };
    let leaks = 3;
    let fine = matches!(output.status.code(), Some(code) if code == 0 || code == leaks);
    assert!(fine, "{}{}", text(&output.stdout), text(&output.stderr));
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path of plain characters")
}
