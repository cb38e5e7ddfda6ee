//! One writes, or any number read: among disks of one process, of several, and with QEMU.

use crate::{child, childs_disk, create_qcow2, open, path_text, qemu, qemu_img, refusal, text};
use lguest_devices::disk::{DiskConfig, Holder, OpenError};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_WRLCK, SEEK_SET, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

fn image(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("image");
    fs::write(&path, [1; 65536]).expect("write the image");
    path
}

fn qcow2_image(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("qcow2");
    create_qcow2(&path, 1 << 20, 65536);
    path
}

fn holder(disk: &str) -> Holder {
    match refusal(disk) {
        OpenError::InUse { by, .. } => by,
        other => panic!("{other}"),
    }
}

#[test]
fn who_writes_is_alone() {
    let directory = TempDir::new().expect("a directory");
    let raw = image(&directory);
    let qcow2 = qcow2_image(&directory);
    for path in [path_text(&raw), path_text(&qcow2)] {
        let writer = open(path);
        for options in ["", ",ro", ",snapshot"] {
            assert_eq!(holder(&format!("{path}{options}")), Holder::Ourselves);
        }
        drop(writer);
        open(path);
    }
}

#[test]
fn readers_share() {
    let directory = TempDir::new().expect("a directory");
    let path = image(&directory);
    let path = path_text(&path);
    let readers =
        [",ro", ",snapshot", ",ro", ",snapshot"].map(|options| open(&format!("{path}{options}")));
    assert_eq!(holder(path), Holder::Ourselves);
    drop(readers);
    open(path);
}

#[test]
fn what_an_image_is_built_upon_is_read_as_long() {
    let directory = TempDir::new().expect("a directory");
    let (raw, qcow2) = (image(&directory), qcow2_image(&directory));
    let upon = directory.path().join("upon");
    for (format, below) in [("raw", path_text(&raw)), ("qcow2", path_text(&qcow2))] {
        let create = ["create", "-q", "-f", "qcow2", "-F", format, "-b", below, path_text(&upon)];
        if qemu_img(create).is_none() {
            return;
        }
        let disk = open(&format!("{},backing={below}", path_text(&upon)));
        assert_eq!(holder(below), Holder::Ourselves);
        open(&format!("{below},ro"));
        drop(disk);
        open(below);
    }
}

#[test]
fn a_name_of_its_own_makes_no_second_image() {
    let directory = TempDir::new().expect("a directory");
    let path = image(&directory);
    let link = directory.path().join("link");
    fs::hard_link(&path, &link).expect("a second name");
    let _writer = open(path_text(&path));
    let said = refusal(path_text(&link)).to_string();
    assert!(said.contains("link` is in use by this very process; only ro and snapshot"), "{said}");
}

/// A process that has a disk until it is killed.
struct Keeper(Child);

impl Keeper {
    fn of(disk: &str) -> Self {
        let mut child = child("sharing::a_lock_ends_with_its_process", disk)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stderr.as_mut().expect("its standard error")).lines();
        let opened = lines.by_ref().map_while(Result::ok).any(|line| line == "opened");
        assert!(opened, "the child didn't open {disk}");
        Self(child)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("kill the child");
    }
}

#[test]
fn a_lock_ends_with_its_process() {
    if let Some(disk) = childs_disk() {
        let _disk = open(&disk);
        eprintln!("opened");
        // Until killed, or until who started this is gone.
        std::io::stdin().read_to_end(&mut Vec::new()).expect("read to the end");
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let path = image(&directory);
    let path = path_text(&path);
    let writer = Keeper::of(path);
    for options in ["", ",ro", ",snapshot"] {
        match holder(&format!("{path}{options}")) {
            Holder::Process(process, command) => {
                assert_eq!(process, writer.0.id());
                assert!(command.starts_with("disks"), "{command}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(writer);
    let reader = Keeper::of(&format!("{path},ro"));
    open(&format!("{path},snapshot"));
    assert!(matches!(holder(path), Holder::Process(process, _) if process == reader.0.id()));
    drop(reader);
    open(path);
}

/// A lock of this kind on one byte of a file, if it can be had.
fn lock(path: &str, kind: i32, byte: i64) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the image");
    let (l_type, l_whence) = (kind as i16, SEEK_SET as i16);
    let lock = flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).is_ok().then_some(file)
}

/// From byte 100 on is what somebody does, from 200 on what nobody else may: read, write, write what is there already, resize.
#[test]
fn each_lock_means_what_it_means_to_qemu() {
    let directory = TempDir::new().expect("a directory");
    let path = image(&directory);
    let path = path_text(&path);
    // Whether one who writes may be beside it, and one who reads.
    for (byte, write, read) in [
        (100, true, true),
        (101, false, false),
        (102, true, true),
        (103, false, false),
        (200, false, false),
        (201, false, true),
        (202, true, true),
        (203, false, true),
    ] {
        let _lock = lock(path, F_RDLCK, byte).expect("nobody has it");
        for (options, may) in [("", write), (",ro", read), (",snapshot", read)] {
            let disk = format!("{path}{options}").parse::<DiskConfig>().expect("a disk").open();
            assert_eq!(disk.is_ok(), may, "{byte}, `{options}`");
        }
    }
    for (options, ours) in [
        ("", &[100, 101, 103, 201, 203][..]),
        (",ro", &[100, 201, 203]),
        (",snapshot", &[100, 201, 203]),
    ] {
        let _disk = open(&format!("{path}{options}"));
        let locked: Vec<i64> =
            (99..300).filter(|byte| lock(path, F_WRLCK, *byte).is_none()).collect();
        assert_eq!(locked, ours, "`{options}`");
    }
}

#[test]
fn qemu_keeps_away_from_our_images() {
    let directory = TempDir::new().expect("a directory");
    let path = qcow2_image(&directory);
    let path = path_text(&path);
    let qemu_reads = || qemu("qemu-img", ["info", "-f", "qcow2", path]);
    let qemu_writes = || qemu("qemu-io", ["-f", "qcow2", "-c", "write 0 512", path]);
    let writer = open(path);
    let (Some(reading), Some(writing)) = (qemu_reads(), qemu_writes()) else { return };
    assert!(text(&reading.stderr).contains("lock"), "{reading:?}");
    assert!(text(&writing.stderr).contains("lock"), "{writing:?}");
    drop(writer);
    let _reader = open(&format!("{path},snapshot"));
    assert!(qemu_reads().expect("as before").status.success());
    assert!(text(&qemu_writes().expect("as before").stderr).contains("lock"));
}

#[test]
fn we_keep_away_from_qemus_images() {
    let directory = TempDir::new().expect("a directory");
    let path = qcow2_image(&directory);
    let path = path_text(&path);
    let keep = |options: &[&str]| {
        let mut command = Command::new("qemu-io");
        command
            .args(["-f", "qcow2"])
            .args(options)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut keeper = Keeper(command.spawn().expect("qemu-io"));
        // When it answers, it has opened the image.
        keeper.0.stdin.as_mut().expect("its input").write_all(b"length\n").expect("ask it");
        let mut answer = [0; 5];
        let output = keeper.0.stdout.as_mut().expect("its output");
        while !answer.ends_with(b"1 MiB") {
            answer.rotate_left(1);
            output.read_exact(&mut answer[4..]).expect("its answer");
        }
        keeper
    };
    if qemu("qemu-io", ["--version"]).is_none() {
        return;
    }
    let writer = keep(&[]);
    for options in ["", ",ro", ",snapshot"] {
        assert_eq!(
            holder(&format!("{path}{options}")),
            Holder::Process(writer.0.id(), "qemu-io".to_owned())
        );
    }
    drop(writer);
    let _reader = keep(&["-r"]);
    open(&format!("{path},ro"));
    assert!(matches!(holder(path), Holder::Process(..)));
}
