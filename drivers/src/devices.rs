//! Which devices there are: the descriptor page, and the handshake with the launcher.
//!
//! The page lies right above the memory that the guest was told of. For each descriptor in it the
//! guest says how far it got, bit by bit in the status word: it has seen the device, it has a
//! driver, the driver works (or the device failed). The launcher may look at any time.

use core::fmt;
use lguest_abi::Phys;
use lguest_abi::device::{self, DeviceDescriptor, MAX_DEVICES, kind, offset, status};
use lguest_abi::paging::PAGE_SIZE;
use lguest_guest::boot::BootParams;
use lguest_guest::device_pages::{DevicePages, MapPages};

/// A device, as its descriptor had it when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    index: usize,
    descriptor: DeviceDescriptor,
}

impl Device {
    /// What it is: one of [`kind`].
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.descriptor.kind
    }

    /// Bits of [`device::features`].
    #[must_use]
    pub fn features(&self) -> u16 {
        self.descriptor.features
    }

    /// Bits of [`status`].
    #[must_use]
    pub fn status(&self) -> u16 {
        self.descriptor.status
    }

    /// Its interrupt line: 1..=16.
    #[must_use]
    pub fn irq(&self) -> u8 {
        device::irq_of(self.index)
    }

    /// Its own pages: where they start, and how many there are.
    #[must_use]
    pub fn pages(&self) -> (Phys, u32) {
        (Phys(self.descriptor.pfn.wrapping_mul(PAGE_SIZE)), u32::from(self.descriptor.num_pages))
    }
}

/// As in a line at boot: "console, interrupt 1".
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            kind::CONSOLE => f.write_str("console")?,
            kind::NET => f.write_str("net")?,
            kind::BLOCK => f.write_str("block")?,
            other => write!(f, "device of unknown type {other}")?,
        }
        write!(f, ", interrupt {}", self.irq())
    }
}

/// A driver could not start its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// The Host has no place for another buffer.
    NotBound,
    /// The driver has a device already.
    Taken,
}

/// What drives one kind of device.
pub trait Driver {
    /// The kind, one of [`kind`].
    fn kind(&self) -> u16;

    /// Starts driving a device. Its interrupts may come from now on.
    ///
    /// # Errors
    /// When the device can't be used; it is marked as failed.
    fn start(&'static self, device: &Device) -> Result<(), StartError>;
}

/// The descriptor page.
pub struct Devices {
    page: DevicePages,
}

impl Devices {
    /// Maps the page. None when the kernel has no room for it.
    #[must_use]
    pub fn map(mapper: &'static dyn MapPages, boot: &BootParams) -> Option<Self> {
        DevicePages::map(mapper, boot.memory_end(), 1).map(|page| Self { page })
    }

    /// The devices there are.
    pub fn iter(&self) -> impl Iterator<Item = Device> + '_ {
        (0..MAX_DEVICES)
            .map(|index| Device { index, descriptor: self.descriptor(index) })
            .filter(|device| device.kind() != kind::NONE)
    }

    // ANCHOR: bring_up
    /// Starts each device that one of `drivers` is for.
    pub fn bring_up(&self, drivers: &[&'static dyn Driver]) {
        for device in self.iter() {
            self.add_status(&device, status::ACKNOWLEDGED);
            let Some(driver) = drivers.iter().find(|driver| driver.kind() == device.kind()) else {
                continue;
            };
            self.add_status(&device, status::DRIVER);
            let came_to = match driver.start(&device) {
                Ok(()) => status::DRIVER_OK,
                Err(_) => status::FAILED,
            };
            self.add_status(&device, came_to);
        }
    }
    // ANCHOR_END: bring_up

    fn descriptor(&self, index: usize) -> DeviceDescriptor {
        let at = place(index);
        DeviceDescriptor {
            kind: self.page.read_u16(at + offset::KIND),
            features: self.page.read_u16(at + offset::FEATURES),
            status: self.page.read_u16(at + offset::STATUS),
            num_pages: self.page.read_u16(at + offset::NUM_PAGES),
            pfn: self.page.read_u32(at + offset::PFN),
        }
    }

    fn add_status(&self, device: &Device, bits: u16) {
        let at = place(device.index) + offset::STATUS;
        self.page.write_u16(at, self.page.read_u16(at) | bits);
    }
}

/// Where in the page a descriptor is.
fn place(index: usize) -> u32 {
    (index * DeviceDescriptor::SIZE) as u32
}
