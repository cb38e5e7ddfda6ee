//! The registers that all virtio devices have (section 4.1.4.3, Common configuration structure layout), and the steps in
//! which a driver brings a device to life with them (section 3.1.1, Driver Requirements: Device Initialization).
//!
//! Fields are written whole, by accesses of their own size; one of another size is no write. They are read as the guest likes.

use crate::pci::virtio_function::Line;
use crate::virtio::{Broken, Device, Driver, RING_FEATURES, RingSetup, VERSION_1, Version, status};
use std::sync::Arc;

/// How many bytes of registers there are.
pub(crate) const BYTES: u32 = 56;

/// Offsets of the fields.
const DEVICE_FEATURE_SELECT: u32 = 0;
const DEVICE_FEATURE: u32 = 4;
const DRIVER_FEATURE_SELECT: u32 = 8;
const DRIVER_FEATURE: u32 = 12;
const MSIX_CONFIG: u32 = 16;
const NUM_QUEUES: u32 = 18;
const DEVICE_STATUS: u32 = 20;
const QUEUE_SELECT: u32 = 22;
const QUEUE_SIZE: u32 = 24;
const QUEUE_MSIX_VECTOR: u32 = 26;
const QUEUE_ENABLE: u32 = 28;
const QUEUE_DESC: u32 = 32;
const QUEUE_DRIVER: u32 = 40;
const QUEUE_DEVICE: u32 = 48;

/// What the fields for message-signalled interrupts say where there are none.
const NO_VECTOR: u16 = 0xffff;

/// A device and its common registers.
pub(crate) struct CommonConfig {
    pub(crate) device: Device,
    line: Arc<Line>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// A queue's registers.
struct QueueRegisters {
    ring: RingSetup,
    enabled: bool,
}

impl CommonConfig {
    pub(crate) fn new(device: Device, line: Arc<Line>) -> Self {
        let queues = fresh_queues(&device);
        Self {
            device,
            line,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues,
        }
    }

    /// Reads any part of the registers; past their end there are zeros.
    pub(crate) fn read(&self, offset: u32, into: &mut [u8]) {
        let image = self.image();
        for (byte, at) in into.iter_mut().zip(offset as usize..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// All registers as they are now. Reading them changes nothing.
    fn image(&self) -> [u8; BYTES as usize] {
        let mut image = [0; BYTES as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        };
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.offered(), self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(MSIX_CONFIG, &NO_VECTOR.to_le_bytes());
        put(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(DEVICE_STATUS, &[self.status()]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
        // The size of a queue that isn't there is 0. The generation of the configuration is 0 too, since it never changes.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(QUEUE_SIZE, &queue.ring.size.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_DESC, &queue.ring.descriptors.to_le_bytes());
            put(QUEUE_DRIVER, &queue.ring.available.to_le_bytes());
            put(QUEUE_DEVICE, &queue.ring.used.to_le_bytes());
        }
        image
    }

    pub(crate) fn write(&mut self, offset: u32, from: &[u8]) {
        match *from {
            [value] if offset == DEVICE_STATUS => self.write_status(value),
            [low, high] => self.write_16(offset, u16::from_le_bytes([low, high])),
            [a, b, c, d] => self.write_32(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }

    fn write_16(&mut self, offset: u32, value: u16) {
        if offset == QUEUE_SELECT {
            self.queue_select = value;
            return;
        }
        let select = usize::from(self.queue_select);
        let Some(most) = self.device.queues.get(select) else { return };
        let Some(queue) = self.changeable_queue() else { return };
        match offset {
            QUEUE_SIZE if value.is_power_of_two() && value <= *most => queue.ring.size = value,
            QUEUE_ENABLE if value == 1 => queue.enabled = true,
            _ => {}
        }
    }

    fn write_32(&mut self, offset: u32, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value);
            }
            _ => {
                let Some(queue) = self.changeable_queue() else { return };
                let ring = &mut queue.ring;
                for (at, place) in [
                    (QUEUE_DESC, &mut ring.descriptors),
                    (QUEUE_DRIVER, &mut ring.available),
                    (QUEUE_DEVICE, &mut ring.used),
                ] {
                    if offset & !7 == at {
                        set_half(place, (offset - at) / 4, value);
                    }
                }
            }
        }
    }

    /// The selected queue, while it may still be set up.
    fn changeable_queue(&mut self) -> Option<&mut QueueRegisters> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled && self.status & status::DRIVER_OK == 0).then_some(queue)
    }

    pub(crate) fn into_model(self) -> Option<crate::virtio::Model> {
        self.device.into_model()
    }

    fn offered(&self) -> u64 {
        self.device.features | RING_FEATURES | VERSION_1
    }

    fn status(&self) -> u8 {
        self.status | if self.line.is_broken() { status::NEEDS_RESET } else { 0 }
    }

    /// The driver says how far it has come. 0 is a reset; other than by that, nothing it has said is taken back.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let new = value & !self.status & !status::NEEDS_RESET;
        self.status |= new & !status::FEATURES_OK & !status::DRIVER_OK;
        if new & status::FEATURES_OK != 0 && self.agreed() {
            self.status |= status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 {
            self.status |= status::DRIVER_OK;
            if let Err(broken) = self.start() {
                self.line.broken(&broken);
            }
        }
    }

    /// Whether the device can do with the features the driver chose.
    fn agreed(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn start(&mut self) -> Result<(), Broken> {
        if self.status & status::FEATURES_OK == 0 {
            return Err(Broken::Features);
        }
        let setup = |queue: &QueueRegisters| queue.enabled.then_some(queue.ring);
        let setups: Vec<_> = self.queues.iter().map(setup).collect();
        let driver = Arc::clone(&self.line) as Arc<dyn Driver>;
        self.device.start(Version::One, self.driver_features, &setups, driver)
    }

    fn reset(&mut self) {
        self.device.reset();
        self.line.clear();
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.queues = fresh_queues(&self.device);
    }
}

fn fresh_queues(device: &Device) -> Vec<QueueRegisters> {
    let fresh = |size: &u16| {
        let ring = RingSetup { size: *size, ..RingSetup::default() };
        QueueRegisters { ring, enabled: false }
    };
    device.queues.iter().map(fresh).collect()
}

/// The low half of a value, the high one, or nothing.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Sets the low half of a value or the high one.
fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
