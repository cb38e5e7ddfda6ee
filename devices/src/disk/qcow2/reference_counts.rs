//! **The reference counts that a killed process leaves behind.**
//!
//! For each cluster of a qcow2 image there is a count of its uses, and one without any may be taken for something new. `imago`
//! stores the counts of data before it stores what uses the data; but when a *table* is new, what leads to the table is
//! stored at once, and its count only later. Killed in between, a process leaves a table whose count is zero, and the next one
//! would put data in its place. So before an image is written to, each table that has no count gets one.
//!
//! In an image that was closed, or that QEMU left, there is nothing to do.

use super::header::{Header, invalid};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What of a table's entry is an offset; both kinds of table have flags in the bits around it.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Counts the tables that aren't counted.
pub(super) fn mend(file: &File, header: &Header) -> io::Result<()> {
    let l1 = entries(file, header.l1)?;
    let blocks = entries(file, header.refcounts)?;
    let cluster_of = |offset: u64| offset >> header.cluster_bits;
    let clusters_of = |(offset, length): (u64, u64)| {
        cluster_of(offset)..(offset + length).div_ceil(1 << header.cluster_bits)
    };
    // In their order, each block of counts is read once.
    let mut tables: Vec<u64> = l1
        .iter()
        .chain(&blocks)
        .filter(|&&offset| offset != 0)
        .map(|&offset| cluster_of(offset))
        .collect();
    tables.push(0);
    tables.extend(clusters_of(header.l1).chain(clusters_of(header.refcounts)));
    tables.sort_unstable();
    tables.dedup();

    let mut counts = Counts { file, header, blocks, block: None };
    tables.into_iter().try_for_each(|table| counts.count(table))
}

/// A table of offsets.
fn entries(file: &File, (offset, length): (u64, u64)) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    let (entries, _) = bytes.as_chunks();
    Ok(entries.iter().map(|&entry| u64::from_be_bytes(entry) & OFFSET).collect())
}

/// The counts of an image.
struct Counts<'a> {
    file: &'a File,
    header: &'a Header,
    /// Where the blocks of counts are.
    blocks: Vec<u64>,
    /// The block that was looked at last, and where it is.
    block: Option<(u64, Vec<u8>)>,
}

impl Counts<'_> {
    /// Makes a cluster's count one if it is zero.
    fn count(&mut self, cluster: u64) -> io::Result<()> {
        let counts_of_a_block = 1u64 << (self.header.cluster_bits + 3 - self.header.refcount_order);
        let block = usize::try_from(cluster / counts_of_a_block)
            .ok()
            .and_then(|block| self.blocks.get(block));
        let &at = block
            .filter(|&&at| at != 0)
            .ok_or_else(|| invalid("it has tables that aren't counted as used"))?;
        let mut bytes = match self.block.take() {
            Some((known, bytes)) if known == at => bytes,
            _ => {
                let mut bytes = vec![0; 1 << self.header.cluster_bits];
                self.file.read_exact_at(&mut bytes, at)?;
                bytes
            }
        };
        // Counts of less than a byte are in it from the lowest bit on; those of several bytes have the lowest last.
        let bits = 1u64 << self.header.refcount_order;
        let first = cluster % counts_of_a_block * bits;
        let [from, last] = [first / 8, (first + bits).div_ceil(8) - 1];
        let mask = u8::MAX >> 8u64.saturating_sub(bits) << (first % 8);
        if bytes[from as usize..=last as usize].iter().all(|byte| byte & mask == 0) {
            let byte = &mut bytes[last as usize];
            *byte |= 1 << (first % 8);
            self.file.write_all_at(&[*byte], at + last)?;
        }
        self.block = Some((at, bytes));
        Ok(())
    }
}
