//! A virtio device in a PCI slot (section 4.1, Virtio Over PCI Bus).
//!
//! A page of registers has four parts, and a capability in the configuration says where each is: what all devices have in common
//! ([common_config]), the bell, what the interrupt was for, and the device's own configuration. A fifth
//! capability is a window through which the registers can be accessed before anybody has given them an address.

use crate::interrupts::Interrupts;
use crate::pci::common_config::{self, CommonConfig};
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::virtio::{Broken, Complaint, Device, DeviceMemory, Driver, Kind, Model};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Size of a device's registers.
pub const BAR_BYTES: u32 = 0x1000;

/// Where the parts are: offset and length. That of the device's configuration follows from the device.
const COMMON: (u32, u32) = (0x000, common_config::BYTES);
const INTERRUPT_STATUS: (u32, u32) = (0x040, 1);
const NOTIFY: (u32, u32) = (0x080, 2);
const DEVICE_CONFIG: u32 = 0x100;

/// Types of capabilities.
const COMMON_CAPABILITY: u8 = 1;
const NOTIFY_CAPABILITY: u8 = 2;
const INTERRUPT_CAPABILITY: u8 = 3;
const DEVICE_CAPABILITY: u8 = 4;
const WINDOW_CAPABILITY: u8 = 5;

/// Offsets in a capability.
const CAPABILITY_BAR: u8 = 4;
const CAPABILITY_OFFSET: u8 = 8;
const CAPABILITY_LENGTH: u8 = 12;
const WINDOW_DATA: u8 = 16;

/// In the interrupt status: a queue has something for the driver.
const QUEUE_INTERRUPT: u8 = 1;
/// In the interrupt status: something of the device has changed.
const CHANGE_INTERRUPT: u8 = 2;

/// A device in a slot.
pub(crate) struct VirtioFunction {
    space: ConfigSpace,
    /// Where the window's capability is.
    window: u8,
    common: CommonConfig,
    line: Arc<Line>,
}

/// The device's interrupt, which its thread raises.
pub(crate) struct Line {
    complaint: Complaint,
    irq: u8,
    interrupts: Arc<dyn Interrupts>,
    enabled: AtomicBool,
    status: AtomicU8,
    broken: AtomicBool,
}

impl Line {
    fn raise(&self, status: u8) {
        self.status.fetch_or(status, Ordering::AcqRel);
        if self.enabled.load(Ordering::Acquire) {
            self.interrupts.raise(self.irq);
        }
    }

    /// Whether the device gave up.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// As it is after a reset.
    pub(crate) fn clear(&self) {
        self.broken.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

impl Driver for Line {
    fn used(&self, _queue: usize) {
        self.raise(QUEUE_INTERRUPT);
    }

    fn broken(&self, why: &Broken) {
        self.complaint.say(why);
        self.broken.store(true, Ordering::Release);
        self.raise(CHANGE_INTERRUPT);
    }
}

impl VirtioFunction {
    pub(crate) fn into_model(self) -> Option<Model> {
        self.common.into_model()
    }

    pub(crate) fn new(
        model: Model,
        memory: DeviceMemory,
        interrupts: Arc<dyn Interrupts>,
        bar: u32,
        irq: u8,
    ) -> Self {
        let device = Device::new(model, memory);
        let (space, window) = describe(&device, bar, irq);
        let line = Arc::new(Line {
            complaint: Complaint::about(device.kind),
            irq,
            interrupts,
            enabled: AtomicBool::new(true),
            status: AtomicU8::new(0),
            broken: AtomicBool::new(false),
        });
        let common = CommonConfig::new(device, Arc::clone(&line));
        Self { space, window, common, line }
    }

    /// Where its registers are now.
    pub(crate) fn bar(&self) -> Option<u32> {
        self.space.registers()
    }

    pub(crate) fn read_config(&mut self, register: u8, into: &mut [u8]) {
        if self.is_window_data(register)
            && let Some((offset, bytes)) = self.window()
        {
            let mut data = [0; 4];
            self.read(offset, &mut data[..bytes]);
            self.space.set(self.window + WINDOW_DATA, &data[..bytes]);
        }
        self.space.read(register, into);
    }

    pub(crate) fn write_config(&mut self, register: u8, from: &[u8]) {
        self.space.write(register, from);
        self.line.enabled.store(self.space.interrupts(), Ordering::Release);
        if self.is_window_data(register)
            && let Some((offset, bytes)) = self.window()
        {
            let data = self.space.word(self.window + WINDOW_DATA).to_le_bytes();
            self.write(offset, &data[..bytes]);
        }
    }

    fn is_window_data(&self, register: u8) -> bool {
        register & !3 == self.window + WINDOW_DATA
    }

    /// Which registers the window shows. `None` when it shows none, or more than an access can have.
    fn window(&self) -> Option<(u32, usize)> {
        let offset = self.space.word(self.window + CAPABILITY_OFFSET);
        let bytes = self.space.word(self.window + CAPABILITY_LENGTH);
        let fits = matches!(bytes, 1 | 2 | 4)
            && offset.is_multiple_of(bytes)
            && offset < BAR_BYTES
            && self.space.byte(self.window + CAPABILITY_BAR) == 0;
        fits.then_some((offset, bytes as usize))
    }

    /// The guest reads registers.
    pub(crate) fn read(&mut self, offset: u32, into: &mut [u8]) {
        into.fill(0);
        if offset < COMMON.0 + COMMON.1 {
            self.common.read(offset - COMMON.0, into);
        } else if offset >= DEVICE_CONFIG {
            self.common.device.read_config((offset - DEVICE_CONFIG) as usize, into);
        } else if let Some(status) = into.first_mut().filter(|_| offset == INTERRUPT_STATUS.0) {
            // Who has read it knows; reading it again tells what came since.
            *status = self.line.status.swap(0, Ordering::AcqRel);
        }
    }

    /// The guest writes registers.
    pub(crate) fn write(&mut self, offset: u32, from: &[u8]) {
        if offset < COMMON.0 + COMMON.1 {
            self.common.write(offset - COMMON.0, from);
        } else if offset >= DEVICE_CONFIG {
            self.common.device.write_config((offset - DEVICE_CONFIG) as usize, from);
        } else if offset == NOTIFY.0 {
            // There is one bell for all queues: which of them was meant is soon seen.
            self.common.device.ring();
        }
    }
}

/// A device's configuration, and where in it the window's capability is.
fn describe(device: &Device, bar: u32, irq: u8) -> (ConfigSpace, u8) {
    let class = match device.kind {
        Kind::Network => 0x02_0000,
        Kind::Block => 0x01_8000,
        Kind::Console => 0x07_8000,
        Kind::Entropy => 0xff_0000,
    };
    let kind = device.kind as u16;
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1040 + kind,
        class,
        revision: 1,
        subsystem: (0x1af4, 0x40 + kind),
    });
    space.set_registers(bar, BAR_BYTES);
    space.set_interrupt(irq);
    let config = (DEVICE_CONFIG, device.config.len() as u32);
    // No queue has a bell of its own, which a multiplier of 0 says.
    let multiplier = [0; 4];
    space.add_capability(&capability(COMMON_CAPABILITY, COMMON, &[]));
    space.add_capability(&capability(NOTIFY_CAPABILITY, NOTIFY, &multiplier));
    space.add_capability(&capability(INTERRUPT_CAPABILITY, INTERRUPT_STATUS, &[]));
    if !device.config.is_empty() {
        space.add_capability(&capability(DEVICE_CAPABILITY, config, &[]));
    }
    let window = space.add_capability(&capability(WINDOW_CAPABILITY, (0, 0), &[0; 4]));
    space.allow(window + CAPABILITY_BAR, &[0xff]);
    space.allow(window + CAPABILITY_OFFSET, &[0xff; 4]);
    space.allow(window + CAPABILITY_LENGTH, &[0xff; 4]);
    space.allow(window + WINDOW_DATA, &[0xff; 4]);
    (space, window)
}

/// A capability's body: its own length, its type, which registers (there is but one set), an id, padding, where in them, how many
/// bytes, and what this type has besides.
fn capability(kind: u8, (offset, length): (u32, u32), more: &[u8]) -> Vec<u8> {
    let bytes = CAPABILITY_LENGTH + 4 + more.len() as u8;
    let head = [bytes, kind, 0, 0, 0, 0];
    [&head[..], &offset.to_le_bytes(), &length.to_le_bytes(), more].concat()
}
