//! What the Host asks of whoever has the devices: the launcher.
//!
//! The Host moves hypercalls and interrupts; what a console or a disk is, it doesn't know. A
//! guest sends by naming a *key*, which the launcher recognizes ([`Devices::send`]), and gets data
//! in buffers that it bound to a key beforehand, which the launcher fills through [`DeviceIo`].
//! All that happens on the vCPU's own thread, between two instructions of the guest, so a
//! device needs no lock. Other threads (one that waits for the keyboard, say) queue what they
//! have and kick the vCPU: then [`Devices::poll`] is called.
//!
//! Later guests find their devices on a [`Bus`]. These have threads of their own, use the guest's memory while it runs, and
//! raise interrupts by [`InterruptLines`](crate::InterruptLines).
//!
//! The rules of the buffers themselves are in `dma.rs`.

use crate::dma::{BoundBuffer, NoBuffer, Sections};
use crate::guest::Guest;
use lguest_switcher::GuestMemory;
use lguest_switcher::address::GuestPhys;
use std::time::{Duration, Instant};

/// Why the launcher wants a guest to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Somebody at the terminal asked for it.
    Interrupted,
    /// The system asked for it.
    Terminated,
    /// A device can't go on.
    Failed(String),
}

/// The launcher's side of DMA and input.
pub trait Devices {
    /// The guest sends `sections`, already found to lie in memory, to `key`.
    ///
    /// Gives the number of bytes taken, which the guest sees as `used_len`; `None` when no device
    /// has that key (the launcher may warn; the guest isn't told).
    fn send(&mut self, key: GuestPhys, sections: &Sections, io: &mut DeviceIo<'_>) -> Option<u32>;

    /// Called after each kick, and before and after the guest sleeps: the time to deliver queued
    /// input, or to ask for the end.
    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop>;
}

/// No devices at all: what a guest sends goes nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevices;

impl Devices for NoDevices {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        None
    }
}

/// What is behind ports and beyond memory, and hears the bells that later guests ring. It is called on the vCPU's
/// thread, in the middle of an instruction. What a method does when it isn't written is an empty bus.
pub trait Bus: Send {
    /// `in` of `bytes` (1, 2 or 4) from `port`.
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        let _ = (port, bytes);
        u32::MAX
    }

    /// `out` of `bytes` (1, 2 or 4) to `port`.
    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        let _ = (port, bytes, value);
    }

    /// Reads physical addresses where there is no memory, in one access.
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) {
        let _ = at;
        into.fill(0xff);
    }

    /// Writes physical addresses where there is no memory, in one access.
    fn write(&mut self, at: GuestPhys, from: &[u8]) {
        let _ = (at, from);
    }

    /// NOTIFY: the guest names a device's ring or descriptor, or a string to be printed. Says whether it means anything.
    fn notify(&mut self, memory: &GuestMemory, address: GuestPhys) -> bool {
        let _ = (memory, address);
        false
    }
}

/// A bus with nothing on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyBus;

impl Bus for EmptyBus {}

/// A device's hold on a guest that isn't running at the moment.
pub struct DeviceIo<'a> {
    guest: &'a mut Guest,
}

impl<'a> DeviceIo<'a> {
    pub(crate) fn new(guest: &'a mut Guest) -> Self {
        Self { guest }
    }

    /// The guest's memory, by physical address.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.guest.memory
    }

    /// The lowest free buffer of the array bound to `key`. It stays free until
    /// [`complete`](Self::complete).
    ///
    /// # Errors
    /// Nothing is bound to `key`, or every buffer is in use. (A buffer with a section outside memory ends the
    /// guest as soon as the device returns; it counts as in use.)
    pub fn buffer(&mut self, key: GuestPhys) -> Result<BoundBuffer, NoBuffer> {
        self.guest.dma.free_buffer(&self.guest.memory, key).unwrap_or_else(|kill| {
            self.guest.condemn(kill);
            Err(NoBuffer::NoneFree)
        })
    }

    /// Hands `buffer` to the guest with `used` bytes in it, and raises its interrupt.
    pub fn complete(&mut self, buffer: &BoundBuffer, used: u32) {
        if let Err(kill) = buffer.mark_used(&self.guest.memory, used) {
            self.guest.condemn(kill);
        }
        self.guest.interrupts.raise(buffer.irq());
    }

    /// Puts as much of `bytes` as fits into the lowest free buffer bound to `key`, hands it to the
    /// guest and raises its interrupt. Gives the number of bytes taken: at least one, if there are any.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer), or there are bytes and the buffer has room for none: then nothing was taken,
    /// and the guest isn't told. (An interrupt with nothing in the buffer would mean something else to it; and the
    /// buffer would stay free, for a device to fill with nothing again and again.)
    pub fn fill(&mut self, key: GuestPhys, bytes: &[u8]) -> Result<usize, NoBuffer> {
        let buffer = self.buffer(key)?;
        if !bytes.is_empty() && buffer.sections().bytes() == 0 {
            return Err(NoBuffer::NoRoom);
        }
        let taken = buffer.sections().scatter(&self.guest.memory, bytes);
        self.complete(&buffer, taken as u32);
        Ok(taken)
    }

    /// Raises the interrupt of the array bound to `key`, without any data. Says whether there is
    /// one.
    pub fn interrupt(&mut self, key: GuestPhys) -> bool {
        let irq = self.guest.dma.irq_of(key);
        if let Some(irq) = irq {
            self.guest.interrupts.raise(irq);
        }
        irq.is_some()
    }

    /// Raises interrupt `irq`, 0..32; a higher one is ignored.
    pub fn raise(&mut self, irq: u8) {
        self.guest.interrupts.raise(irq);
    }

    /// Asks for another [`Devices::poll`] after at most this time of the guest running: for input that waits
    /// until the guest frees a buffer, which it does without telling anybody.
    pub fn poll_again_after(&mut self, time: Duration) {
        self.guest.clock.poll_at(Instant::now() + time);
    }
}
