//! When there is no room for a write, that write fails, and the others don't.
//!
//! A limit on the length of files takes the place of a full disk.

use crate::{SECTOR, child, childs_disk, create_qcow2, open, path_text, qemu_finds_no_error, text};
use lguest_devices::disk::Disk;
use std::fs;
use std::process::Command;
use tempfile::TempDir;

const STEP: u64 = 65536;

fn step(disk: &mut dyn Disk, number: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; STEP as usize];
    disk.read(number * STEP, &mut bytes).expect("read");
    bytes
}

/// Writes further and further, until there is no room. Then there is room where there was, and everything is still there.
fn write_until_there_is_no_room(name: &str) {
    let mut disk = open(name);
    let written = (0..disk.size() / STEP)
        .take_while(|&number| {
            disk.write(number * STEP, &vec![number as u8 + 1; STEP as usize]).is_ok()
        })
        .count() as u64;
    assert!((2..60).contains(&written), "{written} were written");
    // It isn't the first attempt only that fails.
    for number in written..written + 3 {
        assert!(disk.write(number * STEP, &vec![0xff; STEP as usize]).is_err());
        // What a snapshot had no room for is as it was; of an image, any part may be there.
        if name.ends_with(",snapshot") {
            assert!(step(&mut *disk, number) == vec![0; STEP as usize]);
        }
    }
    disk.write(STEP, &[0xaa; SECTOR]).expect("where there was room, there is");
    disk.flush().expect("flush");
    for number in 0..written {
        let mut expected = vec![number as u8 + 1; STEP as usize];
        if number == 1 {
            expected[..SECTOR].fill(0xaa);
        }
        assert!(step(&mut *disk, number) == expected, "at {number} of {written}");
    }
    eprintln!("had room for {written}");
}

/// Runs a copy of a test that may not make files longer than two megabytes, and tells for how many steps there was room.
fn with_limit(test: &str, disk: &str) -> u64 {
    let limited = child(test, disk);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(limited.get_program())
        .args(limited.get_args());
    shell.envs(limited.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().expect("a shell");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let steps = said.lines().find_map(|line| line.strip_prefix("had room for ")?.parse().ok());
    steps.expect("what it had room for")
}

#[test]
fn a_qcow2_image_that_cannot_grow_keeps_what_it_has() {
    if let Some(disk) = childs_disk() {
        return write_until_there_is_no_room(&disk);
    }
    for cluster in [512, 65536] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("image");
        create_qcow2(&path, 64 * STEP, cluster);
        let steps = with_limit(
            "no_room::a_qcow2_image_that_cannot_grow_keeps_what_it_has",
            path_text(&path),
        );
        qemu_finds_no_error(&path);
        let mut disk = open(path_text(&path));
        (2..steps).for_each(|number| {
            assert!(step(&mut *disk, number) == vec![number as u8 + 1; STEP as usize])
        });
        disk.write(40 * STEP, &[7; SECTOR]).expect("with more room, it grows");
        drop(disk);
        qemu_finds_no_error(&path);
    }
}

#[test]
fn a_snapshot_that_cannot_grow_keeps_what_it_has() {
    if let Some(disk) = childs_disk() {
        return write_until_there_is_no_room(&disk);
    }
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image");
    fs::File::create(&path).and_then(|file| file.set_len(64 * STEP)).expect("an image");
    let disk = format!("{},snapshot", path_text(&path));
    assert_eq!(with_limit("no_room::a_snapshot_that_cannot_grow_keeps_what_it_has", &disk), 32);
}
