//! A small driver: what Linux has in `virtio_ring` and `virtio_pci`, as far as tests need it.

use lguest_devices::interrupts::Interrupts;
use lguest_devices::pci::PciBus;
use lguest_devices::virtio::{DeviceMemory, EVENT_IDX, Model, VERSION_1};
use lguest_switcher::{GuestMemory, GuestPhys};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(crate) const MEMORY: u32 = 0x10_0000;
/// Where the first device's registers are; the next ones' follow.
pub(crate) const BAR: u32 = 0x20_0000;
/// Nothing in a test takes so long.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 64;

/// Counts interrupts by line.
#[derive(Default)]
pub(crate) struct Lines {
    raised: Mutex<[u32; 32]>,
    changed: Condvar,
}

impl Interrupts for Lines {
    fn raise(&self, irq: u8) {
        self.raised.lock().unwrap()[usize::from(irq)] += 1;
        self.changed.notify_all();
    }
}

impl Lines {
    /// Waits for an interrupt, and takes all that have come. False when none does.
    pub(crate) fn wait(&self, irq: u8, how_long: Duration) -> bool {
        let raised = self.raised.lock().unwrap();
        let none = |raised: &mut [u32; 32]| raised[usize::from(irq)] == 0;
        let (mut raised, late) = self.changed.wait_timeout_while(raised, how_long, none).unwrap();
        raised[usize::from(irq)] = 0;
        !late.timed_out()
    }

    pub(crate) fn count(&self, irq: u8) -> u32 {
        self.raised.lock().unwrap()[usize::from(irq)]
    }
}

/// A guest with devices on a PCI bus.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) bus: PciBus,
}

pub(crate) fn device_memory(memory: &Arc<GuestMemory>) -> DeviceMemory {
    DeviceMemory::new(memory).unwrap()
}

impl Guest {
    /// Puts each model into a slot, from 1 on, with the slot's number as its interrupt line.
    pub(crate) fn new(models: Vec<Model>) -> Self {
        Self::with_memory(GuestMemory::new(MEMORY).unwrap(), models)
    }

    pub(crate) fn with_memory(memory: GuestMemory, models: Vec<Model>) -> Self {
        let memory = Arc::new(memory);
        let lines = Arc::new(Lines::default());
        let interrupts = Arc::clone(&lines) as Arc<dyn Interrupts>;
        let mut bus = PciBus::new(device_memory(&memory), interrupts);
        for (model, slot) in models.into_iter().zip(1u8..) {
            bus.add(model, bar(slot), slot).unwrap();
        }
        Self { memory, lines, bus }
    }

    pub(crate) fn config_read(&mut self, slot: u8, register: u8, bytes: u32) -> u32 {
        self.address(slot, register);
        let value = self.bus.port_in(0xcfc + u16::from(register & 3), bytes).unwrap();
        value & (u32::MAX >> (32 - 8 * bytes))
    }

    pub(crate) fn config_write(&mut self, slot: u8, register: u8, bytes: u32, value: u32) {
        self.address(slot, register);
        assert!(self.bus.port_out(0xcfc + u16::from(register & 3), bytes, value));
    }

    fn address(&mut self, slot: u8, register: u8) {
        let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & !3);
        assert!(self.bus.port_out(0xcf8, 4, address));
    }

    pub(crate) fn read(&mut self, slot: u8, offset: u32, bytes: usize) -> u32 {
        let mut value = [0; 4];
        assert!(self.bus.read(bar(slot) + offset, &mut value[..bytes]));
        u32::from_le_bytes(value)
    }

    pub(crate) fn write(&mut self, slot: u8, offset: u32, bytes: usize, value: u32) {
        assert!(self.bus.write(bar(slot) + offset, &value.to_le_bytes()[..bytes]));
    }

    pub(crate) fn status(&mut self, slot: u8) -> u8 {
        self.read(slot, 20, 1) as u8
    }

    pub(crate) fn set_status(&mut self, slot: u8, bits: u8) {
        self.write(slot, 20, 1, bits.into());
    }

    pub(crate) fn offered(&mut self, slot: u8) -> u64 {
        self.write(slot, 0, 4, 0);
        let low = self.read(slot, 4, 4);
        self.write(slot, 0, 4, 1);
        u64::from(self.read(slot, 4, 4)) << 32 | u64::from(low)
    }

    /// Makes the device's registers accessible and takes it as far as features are concerned.
    pub(crate) fn agree(&mut self, slot: u8, features: u64) {
        self.config_write(slot, 4, 2, 6);
        self.set_status(slot, 0);
        self.lines.wait(slot, Duration::ZERO);
        self.set_status(slot, 3);
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(slot, 8, 4, half);
            self.write(slot, 12, 4, bits);
        }
        self.set_status(slot, 3 | FEATURES_OK);
    }

    /// Tells the device where a queue is.
    pub(crate) fn enable(&mut self, slot: u8, queue: &Queue) {
        self.write(slot, 22, 2, queue.index.into());
        self.write(slot, 24, 2, queue.size.into());
        for (at, value) in [(32, queue.descriptors), (40, queue.available), (48, queue.used)] {
            self.write(slot, at, 4, value);
            self.write(slot, at + 4, 4, 0);
        }
        self.write(slot, 28, 2, 1);
    }

    /// All the steps by which a driver starts a device: gives its queues.
    pub(crate) fn start(&mut self, slot: u8, features: u64) -> Vec<Queue> {
        let features = features | VERSION_1;
        self.agree(slot, features);
        assert_ne!(self.status(slot) & FEATURES_OK, 0);
        let count = self.read(slot, 18, 2) as u16;
        let queue = |index| Queue::new(&self.memory, slot, index, features & EVENT_IDX != 0);
        let queues: Vec<_> = (0..count).map(queue).collect();
        queues.iter().for_each(|queue| self.enable(slot, queue));
        self.set_status(slot, 3 | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.status(slot), 3 | FEATURES_OK | DRIVER_OK);
        queues
    }

    pub(crate) fn ring(&mut self, slot: u8, queue: &Queue) {
        self.write(slot, 0x80, 2, queue.index.into());
    }

    /// Rings, unless the device doesn't want it.
    pub(crate) fn ring_if_wanted(&mut self, slot: u8, queue: &mut Queue) {
        if queue.wants_bell() {
            self.ring(slot, queue);
        }
    }

    /// Waits until the device gives a chain back: its head and how much was written.
    pub(crate) fn wait(&mut self, slot: u8, queue: &mut Queue) -> (u16, u32) {
        loop {
            if let Some(done) = queue.take_used() {
                return done;
            }
            assert!(self.lines.wait(slot, LONG), "no interrupt came");
            // What it was for may have been read by the last time already.
            self.read(slot, 0x40, 1);
        }
    }

    /// Waits until the device says that it needs a reset.
    pub(crate) fn wait_broken(&mut self, slot: u8) {
        loop {
            assert!(self.lines.wait(slot, LONG), "no interrupt came");
            if self.status(slot) & NEEDS_RESET != 0 {
                break;
            }
        }
    }

    pub(crate) fn bytes(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestPhys(at), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn put(&self, at: u32, bytes: &[u8]) {
        self.memory.write(GuestPhys(at), bytes).unwrap();
    }
}

pub(crate) fn bar(slot: u8) -> u32 {
    BAR + 0x1000 * u32::from(slot - 1)
}

/// A queue, seen from the driver.
pub(crate) struct Queue {
    memory: Arc<GuestMemory>,
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) descriptors: u32,
    pub(crate) available: u32,
    pub(crate) used: u32,
    event_idx: bool,
    next_descriptor: u16,
    /// How many chains were added, and how many at the last look whether to ring.
    added: u16,
    told: u16,
    seen: u16,
}

impl Queue {
    /// A queue of eight, in memory that depends on the device and the queue.
    pub(crate) fn new(memory: &Arc<GuestMemory>, slot: u8, index: u16, event_idx: bool) -> Self {
        let at = 0x1_0000 + 0x4000 * u32::from(slot) + 0x1000 * u32::from(index);
        memory.write(GuestPhys(at), &[0; 0x1000]).unwrap();
        Self::at(memory, index, 8, (at, at + 0x200, at + 0x400), event_idx)
    }

    /// A queue whose table, available and used ring are at these addresses.
    pub(crate) fn at(
        memory: &Arc<GuestMemory>,
        index: u16,
        size: u16,
        (descriptors, available, used): (u32, u32, u32),
        event_idx: bool,
    ) -> Self {
        Self {
            memory: Arc::clone(memory),
            index,
            size,
            descriptors,
            available,
            used,
            event_idx,
            next_descriptor: 0,
            added: 0,
            told: 0,
            seen: 0,
        }
    }

    pub(crate) fn put_descriptor(&self, table: u32, index: u16, to: (u64, u32, u16, u16)) {
        let (at, len, flags, next) = to;
        let bytes =
            [&at.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.memory.write(GuestPhys(table + 16 * u32::from(index)), &bytes.concat()).unwrap();
    }

    /// Makes a chain of buffers (address, length, whether the device writes it) available, and gives its head.
    pub(crate) fn add(&mut self, buffers: &[(u32, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (nth, (at, len, write)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = nth + 1 < buffers.len();
            let flags = if *write { WRITE } else { 0 } | if more { NEXT } else { 0 };
            let to = ((*at).into(), *len, flags, self.next_descriptor);
            self.put_descriptor(self.descriptors, index, to);
        }
        self.offer(head);
        head
    }

    /// Makes whatever is at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.available + 4 + 2 * u32::from(self.added % self.size);
        self.memory.write_u16(GuestPhys(entry), head).unwrap();
        self.added = self.added.wrapping_add(1);
        // The flags beside it are 0, or as they were: one store makes the entry visible.
        let flags = self.memory.read_u32(GuestPhys(self.available)).unwrap() & 0xffff;
        let index = u32::from(self.added) << 16;
        self.memory.write_u32(GuestPhys(self.available), index | flags).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn set_no_interrupt(&mut self) {
        self.memory.write_u16(GuestPhys(self.available), 1).unwrap();
    }

    /// Whether the device wants to hear of what was added since the last time.
    pub(crate) fn wants_bell(&mut self) -> bool {
        let (old, new) = (self.told, self.added);
        self.told = new;
        if self.event_idx {
            let event = self.used + 4 + 8 * u32::from(self.size);
            let event = self.memory.read_u16(GuestPhys(event)).unwrap();
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        self.memory.read_u16(GuestPhys(self.used)).unwrap() & 1 == 0
    }

    /// Takes what the device gave back; when that is nothing, asks for an interrupt at the next.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.event_idx {
            let event = self.available + 4 + 2 * u32::from(self.size);
            self.memory.write_u16(GuestPhys(event), self.seen).unwrap();
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        let index = (self.memory.read_u32(GuestPhys(self.used)).unwrap() >> 16) as u16;
        if index == self.seen {
            return None;
        }
        let entry = GuestPhys(self.used + 4 + 8 * u32::from(self.seen % self.size));
        self.seen = self.seen.wrapping_add(1);
        let head = self.memory.read_u32(entry).unwrap();
        Some((head as u16, self.memory.read_u32(entry.wrapping_add(4)).unwrap()))
    }
}

impl Queue {
    /// Asks for an interrupt once more than `seen` chains have come back.
    pub(crate) fn want_interrupt_after(&self, seen: u16) {
        let event = self.available + 4 + 2 * u32::from(self.size);
        self.memory.write_u16(GuestPhys(event), seen).unwrap();
    }

    /// How many chains have come back, modulo 2¹⁶.
    pub(crate) fn used_index(&self) -> u16 {
        (self.memory.read_u32(GuestPhys(self.used)).unwrap() >> 16) as u16
    }
}
