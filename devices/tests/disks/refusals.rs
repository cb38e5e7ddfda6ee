//! What can't be a disk, and what is said of it.

use crate::{create_qcow2, open, path_text, qemu_img, refusal};
use lguest_devices::disk::OpenError;
use rustix::fs::{FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn file(directory: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).expect("write the image");
    path
}

/// The refusal of a disk, with the directory taken out of it.
fn words(directory: &TempDir, name: &str) -> String {
    let said = refusal(&format!("{}/{name}", path_text(directory.path()))).to_string();
    said.replace(&format!("{}/", path_text(directory.path())), "")
}

#[test]
fn what_has_no_size_is_no_image() {
    let directory = TempDir::new().expect("a directory");
    fs::create_dir(directory.path().join("d")).expect("a directory in it");
    mknodat(
        rustix::fs::CWD,
        directory.path().join("p"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .expect("a pipe");
    file(&directory, "e", b"");
    assert_eq!(
        words(&directory, "d"),
        "`d` is a directory; a disk image is a regular file or a block device"
    );
    assert_eq!(
        words(&directory, "p,ro"),
        "`p` is a pipe; a disk image is a regular file or a block device"
    );
    assert!(refusal("/dev/null").to_string().starts_with("`/dev/null` is a character device"));
    assert_eq!(
        words(&directory, "e"),
        "the disk image `e` is empty; give it a size first, as in `truncate -s 1G e`"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let directory = TempDir::new().expect("a directory");
    let words = words(&directory, "none");
    assert!(words.starts_with("can't open the disk image `none`: No such file"), "{words}");
    assert!(words.ends_with("`truncate -s 1G FILE` would make one"), "{words}");
}

#[test]
fn what_may_not_be_written_may_be_read() {
    let directory = TempDir::new().expect("a directory");
    let path = file(&directory, "image", &[1; 1024]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("take permissions away");
    if fs::OpenOptions::new().write(true).open(&path).is_ok() {
        eprintln!("Left out: this user may write what nobody may.");
        return;
    }
    assert!(words(&directory, "image").ends_with("; ro and snapshot disks needn't be writable"));
    open(&format!("{},ro", path_text(&path)));
    open(&format!("{},snapshot", path_text(&path))).write(0, &[2; 512]).expect("write");
}

#[test]
fn a_writable_disk_ends_where_a_sector_does() {
    let directory = TempDir::new().expect("a directory");
    file(&directory, "odd", &[1; 1000]);
    let words = words(&directory, "odd");
    assert!(
        words.contains(
            "has 1000 bytes, and sectors have 512; lengthen it, as in `truncate -s 1024 odd`"
        ),
        "{words}"
    );
}

#[test]
fn a_truncated_qcow2_image_is_no_disk() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    create_qcow2(&path, 1 << 20, 65536);
    let whole = fs::read(&path).expect("the image");
    for length in [4, 71, 100, 512, 65536, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("shorten it");
        let words = words(&directory, "image");
        assert!(
            words.starts_with("`image` is no qcow2 image that can be used: "),
            "{length}: {words}"
        );
        assert_eq!(fs::read(&path).expect("the image"), whole[..length], "it is left alone");
    }
}

#[test]
fn qcow2_features_that_are_missing_are_named() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    create_qcow2(&path, 1 << 20, 65536);
    let whole = fs::read(&path).expect("the image");
    let with = |offset: u64, bytes: &[u8]| {
        fs::write(&path, &whole).expect("write the image");
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(bytes, offset))
            .expect("change it");
        words(&directory, "image")
    };
    assert!(with(7, &[4]).contains("v4"), "the version");
    assert!(with(35, &[1]).contains("encrypted"), "the encryption");
    assert!(with(30, &[1, 1]).contains("a disk can't have"), "the size");
    assert!(with(24, &[0xff]).contains("a disk can't have"), "the size");
    assert!(with(29, &[0]).contains("a disk can't have 0 bytes"), "the size");
    for (offset, value) in [(23, 8), (23, 22), (99, 7)] {
        let said = with(offset, &[value]);
        assert!(said.contains("an impossible size"), "{value} at {offset}: {said}");
    }
    for (offset, table) in [(37, "clusters"), (57, "reference counts")] {
        assert!(with(offset, &[1]).contains("before its tables do"), "the table of {table}");
    }
    assert!(with(79, &[1]).contains("0 (dirty"), "the dirty bit");
    assert!(with(79, &[4]).contains("another file"), "the data file");
}

#[test]
fn no_file_is_opened_that_only_the_image_names() {
    let directory = TempDir::new().expect("a directory");
    let secret = file(&directory, "secret", &[1; 1 << 16]);
    let path = directory.path().join("image");
    let absolute = path_text(&secret).to_owned();
    for name in ["secret", absolute.as_str()] {
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", name, path_text(&path)];
        if qemu_img(create).is_none() {
            return;
        }
        let before = fs::read(&path).expect("the image");
        for options in ["", ",ro", ",snapshot"] {
            let said = words(&directory, &format!("image{options}"));
            assert!(said.starts_with("the disk image `image` is built upon `secret`"), "{said}");
            assert!(said.ends_with("add `,backing=secret`"), "{said}");
        }
        let other = file(&directory, "other", &[1; 1 << 16]);
        let refused = refusal(&format!("{},backing={}", path_text(&path), path_text(&other)));
        assert!(matches!(refused, OpenError::BackingNotAllowed { .. }), "{refused}");
        assert_eq!(fs::read(&path).expect("the image"), before);
        open(&format!("{},backing={absolute}", path_text(&path)));
    }
}

#[test]
fn images_built_upon_each_other_are_no_disk() {
    let directory = TempDir::new().expect("a directory");
    let name = |name: &str| path_text(&directory.path().join(name)).to_owned();
    let create = |below: &str, above: &str| {
        qemu_img([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            below,
            &name(above),
            "1M",
        ])
        .is_some()
    };
    if !create("b", "a") || !create("a", "b") || !create("itself", "itself") {
        return;
    }
    let both = format!("{},backing={},backing={}", name("a"), name("a"), name("b"));
    let itself = format!("{0},backing={0},ro", name("itself"));
    for disk in [both.as_str(), &format!("{both},ro"), &itself] {
        let refused = refusal(disk);
        assert!(
            matches!(refused, OpenError::BackingLoop { .. } | OpenError::InUse { .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_backing_file_that_is_no_image_is_named() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    let below = directory.path().join("below");
    let below: &Path = &below;
    let create = [
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "vmdk",
        "-b",
        path_text(below),
        path_text(&path),
        "1M",
    ];
    if qemu_img(create).is_none() {
        return;
    }
    fs::create_dir(below).expect("a directory");
    let disk = format!("image,backing={}", path_text(below));
    assert!(words(&directory, &disk).starts_with("`below` is a directory"));
    fs::remove_dir(below).expect("no directory");
    fs::write(below, [1; 512]).expect("an image");
    assert!(words(&directory, &disk).contains("the format `vmdk`"));
}
