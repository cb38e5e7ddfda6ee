//! **A qcow2 header**, as far as we judge it ourselves. Fields are where QEMU's `docs/interop/qcow2.txt` has them.

use super::super::SECTOR;
use super::super::open::Image;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;

const VERSION: Range<usize> = 4..8;
const CLUSTER_BITS: Range<usize> = 20..24;
const SIZE: Range<usize> = 24..32;
const ENCRYPTION: Range<usize> = 32..36;
const L1_ENTRIES: Range<usize> = 36..40;
const L1_OFFSET: Range<usize> = 40..48;
const REFCOUNTS_OFFSET: Range<usize> = 48..56;
const REFCOUNT_CLUSTERS: Range<usize> = 56..60;
const REFCOUNT_ORDER: Range<usize> = 96..100;

/// What it takes to find an image's tables.
pub(super) struct Header {
    /// Clusters have two to the power of this many bytes.
    pub(super) cluster_bits: u32,
    /// Reference counts have two to the power of this many bits.
    pub(super) refcount_order: u32,
    /// Where the table of tables of clusters is, and how many bytes it has.
    pub(super) l1: (u64, u64),
    /// Where the table of blocks of reference counts is, and how many bytes it has.
    pub(super) refcounts: (u64, u64),
}

impl Header {
    /// Reads the header, and refuses what `imago` would let pass.
    pub(super) fn read(image: &Image) -> io::Result<Self> {
        let mut header = [0; 100];
        image
            .file
            .read_exact_at(&mut header, 0)
            .map_err(|_| invalid("it ends inside its header"))?;
        let long = |at: Range<usize>| {
            header[at].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        let short = |at: Range<usize>| {
            header[at].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
        };
        if short(ENCRYPTION) != 0 {
            return Err(io::Error::new(
                ErrorKind::Unsupported,
                "it is encrypted, which isn't supported",
            ));
        }
        let size = long(SIZE);
        if size == 0 || !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
            return Err(invalid(&format!("a disk can't have {size} bytes")));
        }
        // The oldest version's counts all have 16 bits.
        let refcount_order = if short(VERSION) == 2 { 4 } else { short(REFCOUNT_ORDER) };
        let cluster_bits = short(CLUSTER_BITS);
        if !(9..=21).contains(&cluster_bits) || refcount_order > 6 {
            return Err(invalid("its clusters or reference counts have an impossible size"));
        }
        let l1 = (long(L1_OFFSET), u64::from(short(L1_ENTRIES)) * 8);
        let refcounts =
            (long(REFCOUNTS_OFFSET), u64::from(short(REFCOUNT_CLUSTERS)) << cluster_bits);
        // Tables that aren't there would be taken for empty ones, and be as large in memory as the header says.
        for (offset, length) in [l1, refcounts] {
            if offset.saturating_add(length) > image.length {
                return Err(invalid("it ends before its tables do"));
            }
        }
        Ok(Self { cluster_bits, refcount_order, l1, refcounts })
    }
}

pub(super) fn invalid(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
