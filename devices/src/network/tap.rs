//! **TAP**: an Ethernet interface of the host's whose other end is a descriptor.
//!
//! Making one, giving it addresses and bridging it is an administrator's work. This only takes hold of one that is there, and
//! says how to make it when it isn't. Linux, `Documentation/networking/tuntap.rst`.

use super::{LONGEST_FRAME, Network, cable};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Bytes of the longest name of an interface: IFNAMSIZ less the zero that ends it.
pub const LONGEST_NAME: usize = 15;

/// Where TAP devices are got from.
const CLONE: &str = "/dev/net/tun";

/// Why a TAP device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host's kernel, or this container, has none.
    #[error(
        "tap {name}: there is no {CLONE} here: load the kernel's module tun or give the container that device"
    )]
    NoClone {
        /// Its name.
        name: String,
    },
    /// This user may not use any.
    #[error(
        "tap {name}: can't open {CLONE}: {source}: whoever runs this needs to read and write it"
    )]
    Clone {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// This user may not use this one.
    #[error(
        "tap {name}: it isn't this user's: `sudo ip link del {name} && sudo ip tuntap add dev {name} mode tap user $USER` would make it so"
    )]
    Permission {
        /// Its name.
        name: String,
    },
    /// There is no such interface.
    #[error(
        "tap {name}: there is no such interface: `sudo ip tuntap add dev {name} mode tap user $USER && sudo ip link set {name} up` would make it"
    )]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// There is one, of another kind.
    #[error("tap {name}: that interface is no TAP device; `ip tuntap list` shows which are")]
    OtherKind {
        /// Its name.
        name: String,
    },
    /// Somebody has it.
    #[error("tap {name}: another program is using it")]
    Busy {
        /// Its name.
        name: String,
    },
    /// The system says something else.
    #[error("tap {name}: {source}")]
    Other {
        /// Its name.
        name: String,
        /// What.
        source: io::Error,
    },
}

/// Takes hold of the TAP device of that name.
///
/// # Errors
/// It can't be had; the error says what would help.
pub fn open(name: &str) -> Result<Box<dyn Network>, TapError> {
    let name = name.to_owned();
    match OpenOptions::new().read(true).write(true).open(CLONE) {
        Ok(_) => {}
        // In turn: no such file, and one that no driver is behind.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NXIO | Errno::NODEV)
            ) =>
        {
            return Err(TapError::NoClone { name });
        }
        Err(source) => return Err(TapError::Clone { name, source }),
    }
    // Asking for one that isn't there makes it, for who has the right; then it would be gone with this process, and until
    // then have no address. So it is looked for first.
    match exists(&name) {
        Ok(true) => {}
        Ok(false) => return Err(TapError::NoDevice { name }),
        Err(source) => return Err(TapError::Other { name, source }),
    }
    let device = DeviceBuilder::new()
        .name(name.as_str())
        .layer(Layer::L2)
        .packet_information(false)
        .inherit_enable_state()
        .build_sync()
        .and_then(|device| device.set_nonblocking(true).map(|()| device));
    match device {
        Ok(device) => Ok(Box::new(Tap { device })),
        Err(source) => Err(why(name, source)),
    }
}

fn exists(name: &str) -> io::Result<bool> {
    let any = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match netdevice::name_to_index(any, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn why(name: String, source: io::Error) -> TapError {
    match Errno::from_io_error(&source) {
        Some(Errno::ACCESS | Errno::PERM) => TapError::Permission { name },
        Some(Errno::BUSY) => TapError::Busy { name },
        Some(Errno::INVAL) => TapError::OtherKind { name },
        _ => TapError::Other { name, source },
    }
}

struct Tap {
    device: SyncDevice,
}

impl Network for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.device.recv(frame) {
                Ok(length) => return Ok(Some(length)),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Ok(None),
                    Some(Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        if !(cable::HEADER..=LONGEST_FRAME).contains(&frame.len()) {
            return Ok(true);
        }
        loop {
            match self.device.send(frame) {
                Ok(_) => return Ok(true),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
                    Some(Errno::INTR) => {}
                    // The interface is down, as a cable can be: what is sent meanwhile is lost. Or the frame isn't to its taste.
                    Some(Errno::IO | Errno::INVAL) => return Ok(true),
                    _ => return Err(error),
                },
            }
        }
    }
}
