//! Every kind of disk against the simplest model of one: an array of bytes.

use crate::{SECTOR, create_qcow2, open, path_text, qemu_finds_no_error, qemu_img};
use lguest_devices::disk::Disk;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Not a multiple of anything.
const SECTORS: usize = 701;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Write { sector: usize, sectors: usize, seed: u8 },
    Read { sector: usize, sectors: usize },
    Flush,
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Mostly a few sectors, sometimes more than a cluster.
    let range = (0..SECTORS, prop_oneof![3 => 1..9usize, 1 => 1..300usize])
        .prop_map(|(sector, sectors)| (sector, sectors.min(SECTORS - sector)));
    let operation = prop_oneof![
        6 => (range.clone(), any::<u8>()).prop_map(|((sector, sectors), seed)| Operation::Write { sector, sectors, seed }),
        4 => range.prop_map(|(sector, sectors)| Operation::Read { sector, sectors }),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Reopen),
    ];
    prop::collection::vec(operation, 1..60)
}

/// Bytes that are different in each sector, and of which none is zero.
fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i / SECTOR * 7 + i + usize::from(seed)) % 255 + 1) as u8).collect()
}

fn contents(disk: &mut dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.size()).expect("a small disk")];
    disk.read(0, &mut bytes).expect("read all");
    bytes
}

/// Does the operations to the disk and to the model, which is the disk's contents before and after. When it is opened again, a
/// disk that forgets has the first contents.
fn agrees_with_model(
    disk: &str,
    operations: &[Operation],
    model: &mut Vec<u8>,
    forgets: bool,
) -> Result<(), TestCaseError> {
    let first = model.clone();
    let mut opened = open(disk);
    prop_assert_eq!(opened.size(), model.len() as u64);
    prop_assert!(!opened.is_read_only());
    for operation in operations {
        match *operation {
            Operation::Write { sector, sectors, seed } => {
                let bytes = pattern(seed, sectors * SECTOR);
                model[sector * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
                opened.write((sector * SECTOR) as u64, &bytes).expect("write");
            }
            Operation::Read { sector, sectors } => {
                let mut bytes = vec![0xee; sectors * SECTOR];
                opened.read((sector * SECTOR) as u64, &mut bytes).expect("read");
                prop_assert!(bytes == model[sector * SECTOR..][..bytes.len()], "{:?}", operation);
            }
            Operation::Flush => opened.flush().expect("flush"),
            Operation::Reopen => {
                drop(opened);
                opened = open(disk);
                if forgets {
                    model.clone_from(&first);
                }
            }
        }
    }
    prop_assert!(contents(&mut *opened) == *model);
    Ok(())
}

/// A raw image with something in every other stretch of sectors.
fn raw_image(directory: &TempDir) -> (PathBuf, Vec<u8>) {
    let mut bytes = pattern(0, SECTORS * SECTOR);
    bytes.chunks_mut(13 * SECTOR).step_by(2).for_each(|chunk| chunk.fill(0));
    let path = directory.path().join("raw");
    fs::write(&path, &bytes).expect("write the image");
    (path, bytes)
}

/// A qcow2 image with something in some of its clusters.
fn qcow2_image(directory: &TempDir, cluster: usize) -> (PathBuf, Vec<u8>) {
    let path = directory.path().join("qcow2");
    let mut bytes = vec![0; SECTORS * SECTOR];
    create_qcow2(&path, bytes.len() as u64, cluster);
    let mut disk = open(path_text(&path));
    for sector in (0..SECTORS - 5).step_by(50) {
        let written = pattern(sector as u8, 5 * SECTOR);
        bytes[sector * SECTOR..][..written.len()].copy_from_slice(&written);
        disk.write((sector * SECTOR) as u64, &written).expect("write");
    }
    (path, bytes)
}

/// QEMU sees the same contents in an image.
fn qemu_sees(image: &Path, expected: &[u8]) {
    qemu_finds_no_error(image);
    let raw = image.with_extension("for-qemu");
    fs::write(&raw, expected).expect("write the model");
    qemu_img(["compare", "-F", "raw", path_text(image), path_text(&raw)]);
}

fn clusters() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![512, 4096, 65536])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn raw_is_an_array(operations in operations()) {
        let directory = TempDir::new().expect("a directory");
        let (path, mut model) = raw_image(&directory);
        agrees_with_model(path_text(&path), &operations, &mut model, false)?;
        prop_assert!(fs::read(&path).expect("the image") == model);
    }

    #[test]
    fn qcow2_is_an_array(operations in operations(), cluster in clusters()) {
        let directory = TempDir::new().expect("a directory");
        let (path, mut model) = qcow2_image(&directory, cluster);
        agrees_with_model(path_text(&path), &operations, &mut model, false)?;
        qemu_sees(&path, &model);
    }

    #[test]
    fn a_snapshot_of_raw_is_an_array_that_forgets(operations in operations()) {
        let directory = TempDir::new().expect("a directory");
        let (path, first) = raw_image(&directory);
        let mut model = first.clone();
        agrees_with_model(&format!("{},snapshot", path_text(&path)), &operations, &mut model, true)?;
        prop_assert!(fs::read(&path).expect("the image") == first);
    }

    #[test]
    fn a_snapshot_of_qcow2_is_an_array_that_forgets(operations in operations(), cluster in clusters()) {
        let directory = TempDir::new().expect("a directory");
        let (path, mut model) = qcow2_image(&directory, cluster);
        let before = fs::read(&path).expect("the image");
        agrees_with_model(&format!("{},snapshot", path_text(&path)), &operations, &mut model, true)?;
        prop_assert!(fs::read(&path).expect("the image") == before);
    }

    #[test]
    fn an_image_built_upon_another_is_an_array(operations in operations(), cluster in clusters()) {
        let directory = TempDir::new().expect("a directory");
        let (below, first) = raw_image(&directory);
        let path = directory.path().join("upon");
        let options = format!("cluster_size={cluster}");
        let create = ["create", "-q", "-f", "qcow2", "-o", &options, "-F", "raw", "-b", "raw", path_text(&path)];
        if qemu_img(create).is_none() {
            return Ok(());
        }
        let mut model = first.clone();
        let disk = format!("{},backing={}", path_text(&path), path_text(&below));
        agrees_with_model(&disk, &operations, &mut model, false)?;
        qemu_sees(&path, &model);
        prop_assert!(fs::read(&below).expect("the image below") == first);
    }
}

#[test]
fn what_qemu_compressed_is_read_and_overwritten() {
    let directory = TempDir::new().expect("a directory");
    let (raw, mut model) = raw_image(&directory);
    let path = directory.path().join("compressed");
    if qemu_img(["convert", "-c", "-f", "raw", "-O", "qcow2", path_text(&raw), path_text(&path)])
        .is_none()
    {
        return;
    }
    let mut disk = open(path_text(&path));
    assert!(contents(&mut *disk) == model);
    let bytes = pattern(9, 3 * SECTOR);
    disk.write(SECTOR as u64, &bytes).expect("write");
    model[SECTOR..][..bytes.len()].copy_from_slice(&bytes);
    assert!(contents(&mut *disk) == model);
    drop(disk);
    qemu_sees(&path, &model);
}

#[test]
fn images_are_built_upon_images_built_upon_images() {
    let directory = TempDir::new().expect("a directory");
    let (_, model) = raw_image(&directory);
    let name = |name: &str| path_text(&directory.path().join(name)).to_owned();
    // As old as can be: version 2 doesn't know of formats below, so this one has to be guessed.
    let oldest = |format: &str, below: &str, name: &str| {
        let fixed = ["create", "-q", "-u", "-f", "qcow2", "-o", "compat=0.10"];
        qemu_img(fixed.into_iter().chain(["-F", format, "-b", below, name, "358912"]))
    };
    if oldest("raw", "raw", &name("old")).is_none() {
        return;
    }
    qemu_img(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &name("old"), &name("new")]);
    let disk = format!("{},backing={},backing={}", name("new"), name("raw"), name("old"));
    assert!(contents(&mut *open(&disk)) == model);
    assert!(contents(&mut *open(&format!("{disk},ro"))) == model);
    oldest("qcow2", "new", &name("top"));
    assert!(contents(&mut *open(&format!("{},backing={disk}", name("top")))) == model);
}

#[test]
fn a_snapshot_is_as_large_as_what_was_written() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("large");
    let size = 1 << 40;
    fs::File::create(&path).and_then(|file| file.set_len(size)).expect("a large image");
    let mut disk = open(&format!("{},snapshot", path_text(&path)));
    disk.write(size - 512, &pattern(1, SECTOR)).expect("write at the end");
    assert_eq!(fs::metadata(&path).expect("the image").blocks(), 0, "the image has no blocks");
    let entries = fs::read_dir(directory.path()).expect("the directory").count();
    assert_eq!(entries, 1, "what was written has no name");
}

#[test]
fn holes_stay_holes() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("holes");
    fs::File::create(&path).and_then(|file| file.set_len(64 << 20)).expect("a large image");
    let mut disk = open(path_text(&path));
    disk.write(32 << 20, &pattern(1, SECTOR)).expect("write in the middle");
    assert!(contents(&mut *disk)[(32 << 20) + SECTOR..].iter().all(|&byte| byte == 0));
    disk.flush().expect("flush");
    assert!(fs::metadata(&path).expect("the image").blocks() * 512 < 1 << 20);
}

#[test]
fn only_readers_see_a_sector_that_the_file_ends_in() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("odd");
    fs::write(&path, vec![7; 700]).expect("write the image");
    let mut expected = vec![7; 700];
    expected.resize(1024, 0);
    assert_eq!(contents(&mut *open(&format!("{},ro", path_text(&path)))), expected);
    let mut disk = open(&format!("{},snapshot", path_text(&path)));
    assert_eq!(contents(&mut *disk), expected);
    disk.write(512, &[8; 512]).expect("write");
    expected[512..].fill(8);
    assert_eq!(contents(&mut *disk), expected);
    assert_eq!(fs::metadata(&path).expect("the image").len(), 700);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let directory = TempDir::new().expect("a directory");
    for (path, model) in [raw_image(&directory), qcow2_image(&directory, 65536)] {
        let before = fs::read(&path).expect("the image");
        let mut disk = open(&format!("{},ro", path_text(&path)));
        assert!(disk.is_read_only());
        disk.write(0, &[1; 512]).expect_err("a write");
        disk.flush().expect("flush");
        assert!(contents(&mut *disk) == model);
        drop(disk);
        assert!(fs::read(&path).expect("the image") == before);
    }
}

#[test]
fn a_guest_cannot_make_its_raw_image_a_qcow2_one_unless_it_may() {
    let directory = TempDir::new().expect("a directory");
    let (path, _) = raw_image(&directory);
    let (other, _) = qcow2_image(&directory, 65536);
    let qcow2 = fs::read(other).expect("the qcow2 image");
    let mut disk = open(path_text(&path));
    let error = disk.write(0, &qcow2[..1024]).expect_err("a change of format");
    assert!(error.to_string().contains("format=raw"), "{error}");
    disk.write(512, &qcow2[..1024]).expect("elsewhere it means nothing");
    drop(disk);
    let mut disk = open(&format!("{},format=raw", path_text(&path)));
    disk.write(0, &qcow2[..1024]).expect("the format was said");
    assert_eq!(disk.size(), (SECTORS * SECTOR) as u64);
    drop(disk);
    // Whatever a snapshot's guest writes, nobody opens.
    open(&format!("{},format=raw,snapshot", path_text(&path)))
        .write(0, &qcow2[..1024])
        .expect("forgotten");
}

#[test]
fn an_image_that_gets_shorter_is_an_error_of_the_read() {
    let directory = TempDir::new().expect("a directory");
    let (path, model) = raw_image(&directory);
    let mut disk = open(path_text(&path));
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(1024))
        .expect("shorten it");
    let mut bytes = [0; 1024];
    disk.read(0, &mut bytes).expect("what is there");
    assert_eq!(bytes, model[..1024]);
    let error = disk.read(512, &mut bytes).expect_err("what isn't");
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[test]
fn disks_are_named_after_their_files() {
    let directory = TempDir::new().expect("a directory");
    for (file, name) in
        [("root.img", "root.img"), ("a name, and a long ünï", "a_name,_and_a_long__"), ("ü", "_")]
    {
        let path = directory.path().join(file);
        fs::File::create(&path).and_then(|file| file.write_all_at(&[1; 512], 0)).expect("an image");
        assert_eq!(open(&path_text(&path).replace(',', ",,")).name(), name);
    }
}
