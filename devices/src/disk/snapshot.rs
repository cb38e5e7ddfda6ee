//! **A snapshot**: a disk that can be written, over one that never is.
//!
//! What the guest writes goes to a file without a name, which is gone when this process is, however it ends. It is handed out
//! in clusters as they are first written to, so it is as large as what was written and not as the disk. A cluster's sectors
//! that weren't written aren't there: reads take each sector from where it was written last.

use super::{Disk, SECTOR};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A cluster has as many sectors as a `u128` has bits.
const CLUSTER: u64 = u128::BITS as u64 * SECTOR;

pub(super) struct Snapshot {
    below: Box<dyn Disk>,
    overlay: File,
    clusters: HashMap<u64, Cluster>,
}

/// Where a cluster is in the overlay, and which of its sectors are there.
struct Cluster {
    at: u64,
    written: u128,
}

/// Sectors that follow each other inside a cluster, and are all here or all below.
struct Run {
    from: usize,
    to: usize,
    /// Where they are in the overlay.
    here: Option<u64>,
}

impl Snapshot {
    pub(super) fn new(below: Box<dyn Disk>, overlay: File) -> Self {
        Self { below, overlay, clusters: HashMap::new() }
    }

    /// The next sectors of a read of `offset..end` that are in one place. Positions are counted from `offset`.
    fn run(&self, offset: u64, position: usize, end: usize) -> Run {
        let at = offset + position as u64;
        let sector = at % CLUSTER / SECTOR;
        let Some(cluster) = self.clusters.get(&(at / CLUSTER)) else {
            let rest = (CLUSTER - at % CLUSTER) as usize;
            return Run { from: position, to: end.min(position + rest), here: None };
        };
        // Beyond the last sector there are zeros in the shifted map: for sectors that are here, they end the run there, and
        // for sectors that aren't, the cluster's end does.
        let rest = cluster.written >> sector;
        let is_here = rest & 1 != 0;
        let sectors = if is_here {
            u64::from(rest.trailing_ones())
        } else {
            u64::from(rest.trailing_zeros()).min(128 - sector)
        };
        let to = end.min(position + (sectors * SECTOR) as usize);
        Run { from: position, to, here: is_here.then_some(cluster.at + sector * SECTOR) }
    }

    /// Stores bytes that are inside one cluster.
    fn write_in_cluster(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let next = self.clusters.len() as u64 * CLUSTER;
        let cluster = match self.clusters.entry(offset / CLUSTER) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Cluster { at: next, written: 0 }),
        };
        self.overlay.write_all_at(from, cluster.at + offset % CLUSTER)?;
        // Only now: sectors for which there was no room are still where they were.
        let sectors = from.len() as u64 / SECTOR;
        let mask = u128::MAX.checked_shl(sectors as u32).map_or(u128::MAX, |above| !above);
        cluster.written |= mask << (offset % CLUSTER / SECTOR);
        Ok(())
    }
}

impl Disk for Snapshot {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        self.below.name()
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut position = 0;
        while position < into.len() {
            let mut run = self.run(offset, position, into.len());
            // Most of a disk is below: what follows there is read along.
            while run.here.is_none() && run.to < into.len() {
                let next = self.run(offset, run.to, into.len());
                if next.here.is_some() {
                    break;
                }
                run.to = next.to;
            }
            let part = &mut into[run.from..run.to];
            match run.here {
                Some(at) => self.overlay.read_exact_at(part, at)?,
                None => self.below.read(offset + run.from as u64, part)?,
            }
            position = run.to;
        }
        Ok(())
    }

    fn write(&mut self, mut offset: u64, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            let in_cluster = from.len().min((CLUSTER - offset % CLUSTER) as usize);
            let (now, later) = from.split_at(in_cluster);
            self.write_in_cluster(offset, now)?;
            offset += in_cluster as u64;
            from = later;
        }
        Ok(())
    }

    /// Nothing of it outlives this process, so there is nothing to make durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
