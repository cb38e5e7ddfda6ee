//! **The lguest bus**: a page above memory that lists the devices, and one hypercall.
//!
//! This is how guests found their devices from Linux 2.6.24 to 3.19. There is nothing to negotiate but features: where the rings are,
//! above the page, and which interrupt belongs to which, the list says ([`descriptors`]). With the hypercall, NOTIFY, a driver names
//! something by its physical address: a ring, and that rings the device's bell; or a device's descriptor, after a change to the
//! status in it.
//!
//! The change of status that matters is the one to 0, a reset. When the driver is ready, kernels tell at different moments or not at
//! all. But none rings before it is: so a device [starts](LguestBus::notify) at its first bell.

mod descriptors;

use crate::interrupts::Interrupts;
use crate::virtio::{
    Broken, Complaint, Device, DeviceMemory, Driver, Model, RING_FEATURES, RingSetup,
};
pub use descriptors::Format;
use descriptors::{Descriptor, QueueRecord};
use lguest_switcher::{GuestMemory, GuestPhys, OutsideMemory, PAGE_SIZE};
use std::sync::Arc;

/// Interrupt lines of a guest.
const LINES: u8 = 32;

/// In a device's status: the driver has given up.
const FAILED: u8 = 0x80;

/// The longest text that a kernel may want to print early. They send sixteen characters at a time.
const TEXT_BYTES: u32 = 4096;

/// There is no room for another device.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// Not in the list.
    #[error("the page of descriptors is full")]
    Descriptors,
    /// No memory for its rings.
    #[error("there is no memory for its rings: {0}")]
    Rings(#[from] OutsideMemory),
    /// No interrupt lines.
    #[error("all interrupt lines are taken")]
    Lines,
}

/// A bus with devices.
pub struct LguestBus {
    memory: Arc<GuestMemory>,
    mapped: DeviceMemory,
    format: Format,
    interrupts: Arc<dyn Interrupts>,
    /// Where the next descriptor goes, and where their page ends.
    next_descriptor: GuestPhys,
    page_end: GuestPhys,
    /// Where the next ring goes.
    next_ring: GuestPhys,
    next_irq: u8,
    slots: Vec<Slot>,
}

/// A device on the bus.
struct Slot {
    device: Device,
    descriptor: Descriptor,
    rings: Vec<RingSetup>,
    lines: Arc<Lines>,
}

/// The device's interrupts, one for each queue, which its thread raises.
struct Lines {
    complaint: Complaint,
    first: u8,
    interrupts: Arc<dyn Interrupts>,
}

impl Driver for Lines {
    fn used(&self, queue: usize) {
        self.interrupts.raise(self.first + queue as u8);
    }

    fn broken(&self, why: &Broken) {
        // There is no way to tell the driver.
        self.complaint.say(why);
    }
}

impl LguestBus {
    /// A bus without devices. Their list is to be at `page`, the end of what the guest takes for its memory; memory must go on behind it, for
    /// the list and the rings. Interrupt lines are taken from `first_irq` on.
    #[must_use]
    pub fn new(
        memory: Arc<GuestMemory>,
        mapped: DeviceMemory,
        format: Format,
        page: GuestPhys,
        first_irq: u8,
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        let page_end = page.wrapping_add(PAGE_SIZE);
        Self {
            memory,
            mapped,
            format,
            interrupts,
            next_descriptor: page,
            page_end,
            next_ring: page_end,
            next_irq: first_irq,
            slots: Vec::new(),
        }
    }

    /// Adds a device to the list.
    ///
    /// # Errors
    /// There is no room for it, in one way or another.
    pub fn add(&mut self, mut model: Model) -> Result<(), NoRoom> {
        if let Some(writes) = model.config_writes.take() {
            // They are stores to memory, which nobody notices.
            model.features &= !writes.features();
        }
        let device = Device::new(model, self.mapped.clone());
        let first = self.next_irq;
        if usize::from(LINES.saturating_sub(first)) < device.queues.len() {
            return Err(NoRoom::Lines);
        }
        if u8::try_from(device.config.len()).is_err() {
            return Err(NoRoom::Descriptors);
        }
        let mut next_ring = self.next_ring;
        let mut records = Vec::new();
        let mut rings = Vec::new();
        for (size, irq) in device.queues.iter().zip(first..) {
            let (ring, bytes) = ring_at(next_ring, *size);
            self.memory.write(next_ring, &vec![0; bytes as usize])?;
            records.push(QueueRecord {
                size: *size,
                irq: irq.into(),
                page: next_ring.page_number(),
            });
            rings.push(ring);
            next_ring = next_ring.wrapping_add(bytes);
        }
        let features = device.features | RING_FEATURES;
        let (descriptor, bytes) =
            self.format.describe(self.next_descriptor, &device, features as u32, &records);
        let end = self.next_descriptor.wrapping_add(bytes.len() as u32);
        // The byte after the last descriptor is 0, the end of the list.
        if end >= self.page_end {
            return Err(NoRoom::Descriptors);
        }
        self.memory.write(self.next_descriptor, &bytes)?;
        let complaint = Complaint::about(device.kind);
        let lines = Lines { complaint, first, interrupts: Arc::clone(&self.interrupts) };
        self.slots.push(Slot { device, descriptor, rings, lines: Arc::new(lines) });
        self.next_irq += records.len() as u8;
        self.next_ring = next_ring;
        self.next_descriptor = end;
        Ok(())
    }

    /// Takes the bus apart: its devices, in the order of the list, as they were before they were put there.
    #[must_use]
    pub fn into_models(self) -> Vec<Model> {
        self.slots.into_iter().filter_map(|slot| slot.device.into_model()).collect()
    }

    /// The guest makes NOTIFY. False when there is nothing of the bus at that address.
    pub fn notify(&mut self, at: GuestPhys) -> bool {
        for slot in &mut self.slots {
            if slot.rings.iter().any(|ring| ring.descriptors == u64::from(at.0)) {
                slot.bell(&self.memory, self.format);
                return true;
            }
            if slot.descriptor.at == at {
                slot.status_changed(&self.memory);
                return true;
            }
        }
        false
    }
}

impl Slot {
    /// Rings the device's bell, which first wakes it up altogether if need be.
    fn bell(&mut self, memory: &GuestMemory, format: Format) {
        if self.device.works() {
            self.device.ring();
            return;
        }
        let offered = u64::from(self.device.features as u32) | RING_FEATURES;
        let features = u64::from(self.descriptor.driver_features(memory)) & offered;
        let setups: Vec<_> = self.rings.iter().copied().map(Some).collect();
        let driver = Arc::clone(&self.lines) as Arc<dyn Driver>;
        if let Err(broken) = self.device.start(format.version(), features, &setups, driver) {
            self.lines.broken(&broken);
        }
    }

    /// The driver has written to the status.
    fn status_changed(&mut self, memory: &GuestMemory) {
        let status = self.descriptor.status(memory);
        if status == 0 || status & FAILED != 0 {
            self.device.reset();
            self.descriptor.clear_driver_features(memory);
            for ring in &self.rings {
                // The next driver takes its rings as they are. They are memory, or the device wouldn't be here.
                let (_, bytes) = ring_at(GuestPhys(ring.descriptors as u32), ring.size);
                let _ = memory.write(GuestPhys(ring.descriptors as u32), &vec![0; bytes as usize]);
            }
        }
    }
}

/// A legacy ring in pages of its own, and how many bytes these have (section 2.4.2, Legacy Interfaces: A Note on Virtqueue
/// Layout): the table, what the driver offers, and from the next page on what the device has used.
fn ring_at(at: GuestPhys, size: u16) -> (RingSetup, u32) {
    let entries = u32::from(size);
    let available = 16 * entries;
    let used = (available + 6 + 2 * entries).next_multiple_of(PAGE_SIZE);
    let bytes = (used + 6 + 8 * entries).next_multiple_of(PAGE_SIZE);
    let place = |offset| u64::from(at.0) + u64::from(offset);
    let setup =
        RingSetup { size, descriptors: place(0), available: place(available), used: place(used) };
    (setup, bytes)
}

/// A text that a kernel wants to print before it has a console: NOTIFY with an address in its memory, of characters up to a 0.
/// No more than a page of it.
#[must_use]
pub fn early_text(memory: &GuestMemory, at: GuestPhys) -> Vec<u8> {
    let place = |offset| at.0.checked_add(offset).map(GuestPhys);
    let bytes = (0..TEXT_BYTES).map_while(|offset| memory.read_u8(place(offset)?).ok());
    bytes.take_while(|byte| *byte != 0).collect()
}
