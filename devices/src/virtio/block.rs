//! **The disk**: reads, writes and flushes of sectors (section 5.2, Block Device).
//!
//! A request is a header, then data one way or the other, then a byte that says how it went. That byte is the last the device may
//! write; wherever it lies, that is how much data there is.

use crate::disk::{Disk, SECTOR};
use crate::virtio::chain::Chain;
use crate::virtio::model::{Kind, Model, Version, Work};
use crate::virtio::queue::{Broken, Rings};
use std::io;

/// The configuration tells how many buffers of data a request may have.
const SEGMENTS_MAX: u64 = 1 << 2;
/// Writes are refused.
const READ_ONLY: u64 = 1 << 5;
/// The configuration tells the size of a block.
const BLOCK_SIZE: u64 = 1 << 6;
/// There are requests to flush.
const FLUSH: u64 = 1 << 9;

const QUEUES: [u16; 1] = [128];
/// A header and a status besides, and it fits into the queue.
const SEGMENTS: u32 = 126;

/// Types of requests.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSHES: [u32; 2] = [4, 5];
const GET_ID: u32 = 8;

/// A request's header: type, priority, sector. The very first drivers had eight bytes more, which meant nothing.
const HEADER_BYTES: usize = 16;
const FIRST_HEADER_BYTES: usize = 24;

/// How long a disk's name is.
const ID_BYTES: usize = 20;

/// How much data is on its way at once.
const PIECE: usize = 0x1_0000;

/// How a request went.
#[derive(Clone, Copy)]
enum Status {
    Ok = 0,
    Failed = 1,
    Unsupported = 2,
}

/// The device, on this disk.
#[must_use]
pub fn block(disk: Box<dyn Disk>) -> Model {
    let mut config = vec![0; 24];
    config[..8].copy_from_slice(&(disk.size() / SECTOR).to_le_bytes());
    config[12..16].copy_from_slice(&SEGMENTS.to_le_bytes());
    config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
    Model {
        kind: Kind::Block,
        features: SEGMENTS_MAX
            | BLOCK_SIZE
            | FLUSH
            | if disk.is_read_only() { READ_ONLY } else { 0 },
        queues: &QUEUES,
        config,
        config_writes: None,
        work: Box::new(BlockWork {
            disk,
            write_through: true,
            header: HEADER_BYTES,
            piece: vec![0; PIECE],
        }),
    }
}

struct BlockWork {
    disk: Box<dyn Disk>,
    /// The driver can't flush, so every write must be durable when it is done.
    write_through: bool,
    /// How long headers are.
    header: usize,
    piece: Vec<u8>,
}

impl Work for BlockWork {
    fn begin(&mut self, version: Version, features: u64) {
        self.write_through = features & FLUSH == 0;
        self.header = if version == Version::First { FIRST_HEADER_BYTES } else { HEADER_BYTES };
    }

    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        while let Some(mut chain) = rings.ring(0).take()? {
            if chain.writable() == 0 {
                return Err(Broken::Request("status"));
            }
            let status = self.serve(&mut chain, rings);
            if rings.stopping() {
                break;
            }
            chain.skip_to_last(1);
            chain.write(&[status as u8]);
            rings.ring(0).give_back(&chain)?;
        }
        Ok(())
    }
}

impl BlockWork {
    fn serve(&mut self, chain: &mut Chain, rings: &Rings) -> Status {
        let mut header = [0; FIRST_HEADER_BYTES];
        if chain.read(&mut header[..self.header]) < self.header {
            return Status::Failed;
        }
        let [a, b, c, d, _, _, _, _, sector @ .., _, _, _, _, _, _, _, _] = header;
        let sector = u64::from_le_bytes(sector);
        let done = match u32::from_le_bytes([a, b, c, d]) {
            READ => self.read(sector, chain, rings),
            WRITE => self.write(sector, chain, rings),
            kind if FLUSHES.contains(&kind) => self.disk.flush(),
            GET_ID => self.get_id(chain),
            _ => return Status::Unsupported,
        };
        if done.is_ok() { Status::Ok } else { Status::Failed }
    }

    fn read(&mut self, sector: u64, chain: &mut Chain, rings: &Rings) -> io::Result<()> {
        let bytes = chain.writable() - 1;
        let mut at = self.offset(sector, bytes)?;
        let end = at + bytes;
        while at < end && !rings.stopping() {
            let piece = piece(&mut self.piece, end - at);
            self.disk.read(at, piece)?;
            if chain.write(piece) < piece.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, chain: &mut Chain, rings: &Rings) -> io::Result<()> {
        if self.disk.is_read_only() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let bytes = chain.readable();
        let mut at = self.offset(sector, bytes)?;
        let end = at + bytes;
        while at < end && !rings.stopping() {
            let piece = piece(&mut self.piece, end - at);
            if chain.read(piece) < piece.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.disk.write(at, piece)?;
            at += piece.len() as u64;
        }
        if self.write_through { self.disk.flush() } else { Ok(()) }
    }

    fn get_id(&mut self, chain: &mut Chain) -> io::Result<()> {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(self.disk.name().bytes()) {
            *to = from;
        }
        let room = usize::try_from(chain.writable() - 1).unwrap_or(ID_BYTES).min(ID_BYTES);
        chain.write(&id[..room]);
        Ok(())
    }

    /// Where on the disk a request begins, if all of it is there.
    fn offset(&self, sector: u64, bytes: u64) -> io::Result<u64> {
        let inside = |at: &u64| at.checked_add(bytes).is_some_and(|end| end <= self.disk.size());
        let at = sector.checked_mul(SECTOR).filter(inside);
        at.filter(|_| bytes.is_multiple_of(SECTOR)).ok_or(io::ErrorKind::InvalidInput.into())
    }
}

/// As much of the buffer as there are bytes left.
fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..bytes]
}
