//! A guest's devices: the page that lists them, and who serves what the guest sends.
//!
//! A guest finds its devices by reading one page above its memory: sixteen descriptors, each with
//! a type. A device's interrupt follows from its place in the list. What a guest sends goes by keys, and
//! each device knows its own; this is where the two are matched. There is one device so far. The console
//! comes last in the list, whatever else there will be.

use crate::console::{CONSOLE_KEY, ConsoleDevice};
use crate::control::Control;
use lguest_abi::device::{DeviceDescriptor, kind};
use lguest_host::{DeviceIo, Devices, Sections, Stop};
use lguest_switcher::{GuestMemory, GuestPhys, OutsideMemory, PAGE_SIZE};
use rustix::io::Errno;
use std::sync::Arc;

/// Pages of the devices' part of memory: only the list itself, since a console has none.
pub(crate) const DEVICE_BYTES: u32 = PAGE_SIZE;

/// Everything that serves one guest.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    console: ConsoleDevice,
    control: Arc<Control>,
    /// Why the console's output had to be given up.
    failure: Option<Errno>,
    warned: bool,
}

/// Writes the list of devices to the page at `page`.
pub(crate) fn write_descriptors(
    memory: &GuestMemory,
    page: GuestPhys,
) -> Result<(), OutsideMemory> {
    let console = DeviceDescriptor { kind: kind::CONSOLE, ..DeviceDescriptor::default() };
    memory.write(page, &console.to_bytes())
}

impl DeviceSet {
    pub(crate) fn new(console: ConsoleDevice, control: Arc<Control>) -> Self {
        Self { console, control, failure: None, warned: false }
    }

    /// What a device couldn't survive, if that is why the guest was stopped.
    pub(crate) fn failure(&self) -> Option<Errno> {
        self.failure
    }
}

impl Devices for DeviceSet {
    fn send(&mut self, key: GuestPhys, sections: &Sections, io: &mut DeviceIo<'_>) -> Option<u32> {
        if key == CONSOLE_KEY {
            let sent = self.console.send(sections, io);
            return Some(sent.unwrap_or_else(|error| {
                self.failure = Some(error);
                self.control.kick();
                0
            }));
        }
        if !self.warned {
            self.warned = true;
            eprintln!("lguest: the guest sends to {key}, where it has no device (said once)");
        }
        None
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop> {
        if let Some(error) = self.failure {
            return Some(Stop::Failed(error.to_string()));
        }
        if self.control.wish().is_some() {
            return Some(Stop::Terminated);
        }
        self.console.deliver(io);
        None
    }
}
