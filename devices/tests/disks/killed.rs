//! A process that is killed while it writes: what it wrote is there, flushed or not, and the image makes sense.

use crate::{SECTOR, child, childs_disk, create_qcow2, open, path_text, qemu_finds_no_error};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const SECTORS: u64 = 4096;
const WRITES_OF_A_ROUND: u64 = 20;

/// Which sector the `i`th write of a round goes to. Both processes know: it is anywhere, but not by chance.
fn sector(round: u64, i: u64) -> u64 {
    (round * WRITES_OF_A_ROUND + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (SECTORS - 1)
}

/// A sector with its number and that of the round all over it. Rounds are counted from 1, so no sector is like an empty one.
fn contents(round: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_mut(16).for_each(|chunk| {
        chunk.copy_from_slice(&(u128::from(round) << 64 | u128::from(sector)).to_le_bytes())
    });
    bytes
}

fn write_until_killed(disk: &str) {
    let mut disk = open(disk);
    for round in 1.. {
        for i in 0..WRITES_OF_A_ROUND {
            let sector = sector(round, i);
            disk.write(sector * SECTOR as u64, &contents(round, sector)).expect("write");
        }
        if round % 64 == 0 {
            disk.flush().expect("flush");
        }
        eprintln!("wrote {round}");
    }
}

/// Kills a process that writes, some time after it wrote a round, and tells the last round of which it said so.
fn kill_after(test: &str, path: &Path, rounds: u64, then: Duration) -> u64 {
    let mut child = child(test, path_text(path)).spawn().expect("a child");
    let lines = BufReader::new(child.stderr.take().expect("its standard error"))
        .lines()
        .map_while(Result::ok);
    let mut wrote = lines.filter_map(|line| line.strip_prefix("wrote ")?.parse::<u64>().ok());
    let reached = wrote.find(|&round| round >= rounds);
    sleep(then);
    child.kill().expect("kill it");
    let last = wrote.last().or(reached);
    child.wait().expect("wait for it");
    last.expect("the child ended by itself")
}

/// Each sector has what was written to it last in the rounds up to this, or something later.
fn holds_what_was_written(path: &Path, last: u64) {
    let mut disk = open(path_text(path));
    let mut written = vec![0; SECTORS as usize];
    for round in 1..=last {
        (0..WRITES_OF_A_ROUND).for_each(|i| written[sector(round, i) as usize] = round);
    }
    for (sector, round) in (0..).zip(written) {
        let mut bytes = [0; SECTOR];
        disk.read(sector * SECTOR as u64, &mut bytes).expect("read");
        // The round in which it was killed, and one that was done, but of which it couldn't say so any more.
        let possible = [round, last + 1, last + 2];
        let is_there = possible.iter().any(|&round| {
            if round == 0 { bytes == [0; SECTOR] } else { bytes == contents(round, sector) }
        });
        assert!(
            is_there,
            "sector {sector} of round {round}, written to {last}: {:?}",
            &bytes[..16]
        );
    }
}

#[test]
fn a_raw_image_survives() {
    if let Some(disk) = childs_disk() {
        return write_until_killed(&disk);
    }
    for trial in 0..4 {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("image");
        fs::File::create(&path)
            .and_then(|file| file.set_len(SECTORS * SECTOR as u64))
            .expect("an image");
        let last = kill_after(
            "killed::a_raw_image_survives",
            &path,
            2 + trial,
            Duration::from_micros(trial * 700),
        );
        holds_what_was_written(&path, last);
    }
}

#[test]
fn a_qcow2_image_survives() {
    if let Some(disk) = childs_disk() {
        return write_until_killed(&disk);
    }
    for (trial, cluster) in (0..).zip([512, 512, 512, 4096, 4096, 65536, 65536, 65536]) {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("image");
        create_qcow2(&path, SECTORS * SECTOR as u64, cluster);
        let last = kill_after(
            "killed::a_qcow2_image_survives",
            &path,
            2 + trial,
            Duration::from_micros(trial * 700),
        );
        // By opening it to write, which mends it if that is needed.
        holds_what_was_written(&path, last);
        qemu_finds_no_error(&path);
    }
}

/// What a process leaves that was killed as it made a table: the table is used, but isn't counted.
#[test]
fn tables_are_counted_before_anything_is_written() {
    const CLUSTER: usize = 512;
    for order in 0..=6 {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("image");
        let file = ImageFile::create_open(StorageCreateOptions::new().filename(&path))
            .expect("a file for the image");
        let image = Qcow2::<ImageFile>::create_builder(file)
            .size(1 << 22)
            .cluster_size(CLUSTER)
            .refcount_width(1 << order);
        image.create().expect("an image");
        // So much that there are several tables of each kind.
        open(path_text(&path)).write(1 << 18, &[1; 200 * SECTOR]).expect("write");

        let whole = fs::read(&path).expect("the image");
        let number = |at: usize| {
            u64::from_be_bytes(whole[at..at + 8].try_into().expect("eight bytes")) as usize
        };
        let (l1, blocks) = (number(40), number(48));
        let entries = |table: usize, bytes: usize| {
            let entries = (table..table + bytes).step_by(8).map(&number);
            entries.map(|entry| entry & 0xffff_ffff).filter(|&offset| offset != 0)
        };
        let l1_bytes = (1 << 22) / (CLUSTER * CLUSTER / 8) * 8;
        assert_eq!(l1_bytes, 2 * CLUSTER);
        let tables = entries(l1, l1_bytes).chain(entries(blocks, CLUSTER));
        let mut killed = whole.clone();
        for offset in tables.chain([0, l1, l1 + CLUSTER, blocks]) {
            let counts_of_a_block = (CLUSTER * 8) >> order;
            let (block, count) = (
                number(blocks + offset / CLUSTER / counts_of_a_block * 8),
                offset / CLUSTER % counts_of_a_block,
            );
            let bit = count << order;
            let counts = &mut killed[block + bit / 8..];
            match order {
                0..3 => counts[0] &= !(((1 << (1 << order)) - 1) << (bit % 8)),
                _ => counts[..1 << order >> 3].fill(0),
            }
        }
        fs::write(&path, &killed).expect("write the image");
        drop(open(&format!("{},ro", path_text(&path))));
        assert!(fs::read(&path).expect("the image") == killed, "who only reads leaves it alone");
        drop(open(path_text(&path)));
        assert!(fs::read(&path).expect("the image") == whole, "counts of {} bits", 1 << order);
        qemu_finds_no_error(&path);
    }
}
