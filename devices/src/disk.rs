//! **Disks**: what a block device keeps its bytes in.
//!
//! The user describes a disk ([`DiskConfig`]), and [`DiskConfig::open`] makes a [`Disk`] of the description.

mod config;
mod locks;
mod open;
mod qcow2;
mod raw;
mod snapshot;

pub use config::{ConfigError, DiskConfig, Format, Writes};
pub use locks::Holder;
pub use open::OpenError;

use std::io;

/// Bytes of a sector, the unit in which guests count.
pub const SECTOR: u64 = 512;

/// How many bytes of a disk's name a guest can ask for.
pub const LONGEST_NAME: usize = 20;

/// A disk. It belongs to one thread, which may wait in any of these.
///
/// Offsets and lengths are in bytes, multiples of [`SECTOR`], and inside [`Disk::size`]: whoever calls has seen to
/// that.
pub trait Disk: Send {
    /// Its size in bytes, a multiple of [`SECTOR`]. It never changes.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// A name of at most [`LONGEST_NAME`] bytes, which the guest can ask for.
    fn name(&self) -> &str;

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// What the system says; `into` may hold anything then.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Stores `from` from `offset` on. It is durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// What the system says; any part may have been stored then.
    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes everything durable that was written before.
    ///
    /// # Errors
    /// What the system says; then what was written since the last flush may be lost.
    fn flush(&mut self) -> io::Result<()>;
}
