//! **Networks**: where a network device's frames go to and come from.
//!
//! Three kinds there are, and the command line names one ([`NetworkConfig`], whose file has the grammar):
//! - **user** ([`user`]): a little network of the guest's own, with a gateway to wherever this process may talk. It needs no
//!   rights and nothing installed, so it is what somebody in a container wants.
//! - **tap** ([`tap`]): a network interface of the host's, which an administrator has made.
//! - **socket** ([`socket`]): frames over a Unix socket, to another guest or another program.
//!
//! [`tap`] is one descriptor and no thread. The other two serve several descriptors, so a thread does that, and the device
//! holds one end of a `cable` whose other end the thread holds.

mod cable;
mod config;
pub mod socket;
pub mod tap;
pub mod user;

use std::io;
use std::os::fd::BorrowedFd;

pub use config::{ConfigError, Forward, NetworkConfig, OpenError, Protocol, UserConfig};

/// Bytes of the longest frame: what an Ethernet header, a VLAN tag and 1500 bytes make, and a guest's own idea of a larger
/// one.
pub const LONGEST_FRAME: usize = 65550;

/// One end of a network, to which Ethernet frames (without their check sequence) go and from which they come. It belongs to
/// one thread, which never waits in any of these but sleeps in `poll` on [`Network::descriptor`].
pub trait Network: Send {
    /// Is readable when a frame has come; writable when one can be sent, after one couldn't.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Takes the next frame that has come into `frame`, and gives its length; `None` when there is none now.
    ///
    /// # Errors
    /// The network is gone for good: there will be no more frames.
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends a frame. `false` when there is no room for it now: to be tried again when the descriptor is writable, or dropped,
    /// as networks do.
    ///
    /// # Errors
    /// The network is gone for good.
    fn send(&mut self, frame: &[u8]) -> io::Result<bool>;
}
