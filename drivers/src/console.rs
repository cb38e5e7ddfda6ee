//! The console: bytes out, bytes in.
//!
//! Output is sent to key 0; the launcher writes it to its standard output before the call comes
//! back, so there is nothing to wait for and no interrupt. It needs no start either: a
//! kernel's first words come out this way.
//!
//! Input is one buffer of 256 bytes bound at key 0. The launcher fills it and interrupts, and
//! waits with what comes next until the guest has taken all and freed it. Input that has ended
//! (a pipe's writer is gone) shows as an interrupt with nothing in the buffer.

use crate::devices::{Device, Driver, StartError};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use lguest_abi::Phys;
use lguest_abi::device::{console, kind};
use lguest_guest::dma::{self, Inbox};
use lguest_guest::interrupts;

/// The key of the console, for both directions.
const KEY: Phys = Phys(console::KEY);

/// The console. A guest has at most one.
pub static CONSOLE: Console = Console {
    inbox: Inbox::new(),
    irq: AtomicU8::new(0),
    filled: AtomicBool::new(false),
    taken: AtomicUsize::new(0),
    ended: AtomicBool::new(false),
};

/// A console device. There is [`CONSOLE`].
#[derive(Debug)]
pub struct Console {
    inbox: Inbox<{ console::INPUT_BYTES }>,
    /// The interrupt line; 0 before the device is started.
    irq: AtomicU8,
    /// An interrupt said that there is something in the inbox, and not all of it is taken.
    filled: AtomicBool,
    /// How many of those bytes are taken.
    taken: AtomicUsize,
    /// An interrupt said that nothing more will come.
    ended: AtomicBool,
}

/// What [`Console::read`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// So many bytes, at least one (none if there was room for none).
    Bytes(usize),
    /// Nothing yet. An interrupt will tell.
    Nothing,
    /// Nothing, and nothing more will come.
    End,
}

impl Console {
    /// Writes bytes of the linear map (a static, a kernel stack, the kernel's heap). What the
    /// launcher doesn't take is lost.
    pub fn write(&self, bytes: &[u8]) {
        dma::send(KEY, bytes);
    }

    /// Takes input that has come.
    pub fn read(&self, into: &mut [u8]) -> Input {
        // The interrupt's handler changes the same words.
        interrupts::without(|| {
            if !self.filled.load(Ordering::Relaxed) {
                let ended = self.ended.load(Ordering::Relaxed);
                return if ended { Input::End } else { Input::Nothing };
            }
            Input::Bytes(self.take(into))
        })
    }

    /// Whether [`read`](Self::read) would find something: bytes, or the end.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.filled.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed)
    }

    /// To be called when the console's interrupt comes, with interrupts off.
    pub fn interrupt(&self) {
        if self.filled.load(Ordering::Relaxed) {
            return;
        }
        if self.inbox.filled() == 0 {
            self.ended.store(true, Ordering::Relaxed);
        } else {
            self.taken.store(0, Ordering::Relaxed);
            self.filled.store(true, Ordering::Relaxed);
        }
    }

    /// The interrupt line, once the device is started.
    #[must_use]
    pub fn irq(&self) -> Option<u8> {
        match self.irq.load(Ordering::Relaxed) {
            0 => None,
            irq => Some(irq),
        }
    }

    /// Takes bytes from the inbox, and frees it when it is empty.
    fn take(&self, into: &mut [u8]) -> usize {
        let start = self.taken.load(Ordering::Relaxed);
        let mut bytes = 0;
        for place in into {
            let Some(byte) = self.inbox.byte(start + bytes) else {
                break;
            };
            *place = byte;
            bytes += 1;
        }
        if start + bytes >= self.inbox.filled() {
            // Not the other way round: once it is free, the next interrupt may come.
            self.filled.store(false, Ordering::Relaxed);
            self.inbox.clear();
        } else {
            self.taken.store(start + bytes, Ordering::Relaxed);
        }
        bytes
    }
}

impl Driver for Console {
    fn kind(&self) -> u16 {
        kind::CONSOLE
    }

    fn start(&'static self, device: &Device) -> Result<(), StartError> {
        if self.irq().is_some() {
            return Err(StartError::Taken);
        }
        if !self.inbox.bind(KEY, device.irq()) {
            return Err(StartError::NotBound);
        }
        self.irq.store(device.irq(), Ordering::Relaxed);
        Ok(())
    }
}

/// So that `write!` works on `&CONSOLE`.
impl fmt::Write for &Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}
