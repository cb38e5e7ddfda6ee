//! How fast disks are from one end to the other, in pieces of 64 KiB, beside the bare file: `cargo bench -p lguest-devices`.
//!
//! The images fit into the page cache, so reads are what a disk costs, and not what the machine's is able to do. Writes
//! include a flush at their end, which waits for the machine's.

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
use lguest_devices::disk::DiskConfig;
use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const SIZE: u64 = 256 << 20;
const PIECE: usize = 64 << 10;

/// How often each is done; the best counts, for the others were disturbed.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().replace(',', ",,");
    println!("{:24}{:>16}{:>12}{:>12}", "MB/s", "first writes", "writes", "reads");

    let bare = File::create_new(path("bare"))?;
    let writes = || rate(|at, piece| bare.write_all_at(piece, at), || bare.sync_data());
    let (first, writes) = (writes()?, best(writes)?);
    let bare = File::open(path("bare"))?;
    row(
        "the file itself",
        first,
        writes,
        best(|| rate(|at, piece| bare.read_exact_at(piece, at), || Ok(())))?,
    );

    let raw = path("raw");
    File::create_new(&raw)?.set_len(SIZE)?;
    let qcow2 = path("qcow2");
    let image = ImageFile::create_open(StorageCreateOptions::new().filename(&qcow2))?;
    Qcow2::<ImageFile>::create_builder(image).size(SIZE).create()?;
    for (name, image) in [("raw", &raw), ("qcow2", &qcow2)] {
        disk(name, image)?;
        disk(&format!("{name}, snapshot"), &format!("{image},snapshot"))?;
    }
    Ok(())
}

fn disk(name: &str, config: &str) -> Result<(), Box<dyn Error>> {
    let disk = RefCell::new(config.parse::<DiskConfig>()?.open()?);
    let writes =
        || rate(|at, piece| disk.borrow_mut().write(at, piece), || disk.borrow_mut().flush());
    let (first, writes) = (writes()?, best(writes)?);
    row(
        name,
        first,
        writes,
        best(|| rate(|at, piece| disk.borrow_mut().read(at, piece), || Ok(())))?,
    );
    Ok(())
}

fn row(name: &str, first: f64, writes: f64, reads: f64) {
    println!("{name:24}{first:>16.0}{writes:>12.0}{reads:>12.0}");
}

fn best(mut measure: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    (0..RUNS).try_fold(0.0, |best: f64, _| Ok(best.max(measure()?)))
}

/// Does it to each piece of the disk, and tells how many megabytes went by in a second.
fn rate(
    mut each: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    end: impl FnOnce() -> io::Result<()>,
) -> io::Result<f64> {
    let mut piece = vec![0x55; PIECE];
    let start = Instant::now();
    for at in (0..SIZE).step_by(PIECE) {
        each(at, &mut piece)?;
    }
    end()?;
    Ok(SIZE as f64 / 1e6 / start.elapsed().as_secs_f64())
}
