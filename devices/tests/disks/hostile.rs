//! Images that somebody made to do harm: an error, or a disk with strange contents, but neither a panic nor a wait.

use crate::{SECTOR, create_qcow2, open, path_text};
use lguest_devices::disk::DiskConfig;
use proptest::prelude::*;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

/// An honest image with something in it.
fn honest(cluster: usize) -> Vec<u8> {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    create_qcow2(&path, SIZE, cluster);
    let mut disk = open(path_text(&path));
    (0..SIZE / 7).step_by(16 * SECTOR).for_each(|at| {
        disk.write(at / SECTOR as u64 * SECTOR as u64, &[5; SECTOR]).expect("write");
    });
    drop(disk);
    fs::read(path).expect("the image")
}

/// Does what a guest might: reads and writes here and there, as far as the disk lets it.
fn use_as_a_guest_would(disk: &str) {
    let Ok(mut disk) = disk.parse::<DiskConfig>().expect(disk).open() else { return };
    let size = disk.size();
    let sectors = size / SECTOR as u64;
    let mut bytes = [1; 4 * SECTOR];
    for i in 0..40 {
        let sector =
            [i, i * 37 + 11, sectors / 41 * i, sectors.saturating_sub(4 + i)][i as usize % 4];
        let offset = sector.min(sectors - 1) * SECTOR as u64;
        let length = usize::try_from(size - offset).unwrap_or(usize::MAX).min(bytes.len());
        let _ = if i % 3 == 0 {
            disk.write(offset, &bytes[..length])
        } else {
            disk.read(offset, &mut bytes[..length])
        };
        if i % 10 == 9 {
            let _ = disk.flush();
        }
    }
}

/// Whatever is in the file, it is used up in time.
fn comes_to_an_end(image: &[u8]) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    for options in [",format=qcow2", ",format=qcow2,ro"] {
        fs::write(&path, image).expect("write the image");
        let disk = format!("{}{options}", path_text(&path));
        let (done, is_done) = mpsc::channel();
        let guest = thread::spawn(move || {
            use_as_a_guest_would(&disk);
            let _ = done.send(());
        });
        // A panic drops the sender, so that isn't waited for.
        assert_ne!(
            is_done.recv_timeout(Duration::from_secs(60)),
            Err(mpsc::RecvTimeoutError::Timeout),
            "it hangs"
        );
        guest.join().expect("no panic");
    }
}

fn interesting() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![0, 1, 2, 4, 9, 16, 21, 22, 63, 64, 127, 128, 255])
    ]
}

/// Numbers of a qcow2 image, at their places.
fn put(image: &mut [u8], numbers: &[(usize, u64)]) {
    numbers
        .iter()
        .for_each(|&(at, number)| image[at..at + 8].copy_from_slice(&number.to_be_bytes()));
}

#[test]
fn an_image_whose_header_has_no_reference_count_is_refused() {
    let mut image = honest(512);
    let counts = u64::from_be_bytes(image[48..56].try_into().expect("eight bytes")) as usize;
    put(&mut image, &[(counts, 0)]);
    comes_to_an_end(&image);
}

#[test]
fn an_image_whose_table_of_names_ends_inside_a_name_is_refused() {
    let mut image = honest(512);
    // The only one of the header's extensions, of which each name has 48 bytes.
    assert_eq!(image[104..108], 0x6803_f857_u32.to_be_bytes());
    image[108..112].copy_from_slice(&49u32.to_be_bytes());
    comes_to_an_end(&image);
}

/// Its reference counts have one bit each, and the first two parts of them, where all are used, are in the same place, and so
/// are the next two, where none is. When there must be more of them, each bit of these is counted up twice.
fn contradiction() -> Vec<u8> {
    const CLUSTER: usize = 512;
    const PARTS: usize = 1 << 18;
    let [l1, l2, full, free, counts] = [1, 2, 3, 4, 8].map(|cluster| cluster * CLUSTER);
    let mut image = vec![0; counts + PARTS * 8];
    image[full..free].fill(0xff);
    put(
        &mut image,
        &[
            (0, u64::from_be_bytes(*b"QFI\xfb\0\0\0\x03")),
            (20, 9 << 32),
            (24, SIZE),
            (36, 32 << 32),
            (40, l1 as u64),
            (48, counts as u64),
            (56, ((PARTS * 8 / CLUSTER) as u64) << 32),
            (96, 104),
            (l1, 1 << 63 | l2 as u64),
            // The last cluster that can be counted, so that the next one can't.
            (l2, 1 << 63 | ((PARTS * CLUSTER * 8 - 1) * CLUSTER) as u64),
            (counts, full as u64),
            (counts + 8, full as u64),
            (counts + 16, free as u64),
            (counts + 24, free as u64),
        ],
    );
    image
}

#[test]
fn an_image_that_contradicts_itself_is_a_disk_that_fails() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    let image = contradiction();
    fs::write(&path, &image).expect("write the image");
    let mut disk = open(path_text(&path));
    let mut bytes = [0; 2 * SECTOR];
    disk.read(0, &mut bytes).expect("it can be read");
    for _ in 0..2 {
        let error = disk.write(0, &bytes).expect_err("it can't be written");
        assert!(error.to_string().contains("contradicts itself"), "{error}");
        disk.read(0, &mut bytes).expect_err("and not be read any more");
        disk.flush().expect_err("nor be flushed");
    }
    drop(disk);
    assert!(fs::read(&path).expect("the image")[..image.len()] == image, "nothing is stored");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_header_with_anything_in_it(
        cluster in prop::sample::select(vec![512, 4096]),
        changes in prop::collection::vec((4..160usize, interesting()), 1..6),
    ) {
        let mut image = honest(cluster);
        changes.iter().for_each(|&(at, byte)| image[at] = byte);
        comes_to_an_end(&image);
    }

    #[test]
    fn tables_with_anything_in_them(
        cluster in prop::sample::select(vec![512, 4096]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), interesting()), 1..40),
    ) {
        let mut image = honest(cluster);
        // In front, where the tables are, and not in the header, most of the time.
        let tables = 512..(image.len() / 4).max(8192).min(image.len());
        changes.iter().for_each(|(at, byte)| image[tables.start + at.index(tables.len())] = *byte);
        comes_to_an_end(&image);
    }

    #[test]
    fn anything_after_the_magic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        comes_to_an_end(&[b"QFI\xfb".as_slice(), &bytes].concat());
    }
}
