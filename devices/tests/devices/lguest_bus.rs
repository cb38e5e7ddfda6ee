//! The list of devices as its guests read it, and the devices as they reach them.

use crate::block::Plate;
use crate::driver::{LONG, Lines, Queue, device_memory};
use crate::network::Cable;
use crate::work::{Event, patient};
use lguest_devices::interrupts::Interrupts;
use lguest_devices::lguest_bus::{Format, LguestBus, NoRoom, early_text};
use lguest_devices::virtio::block::block;
use lguest_devices::virtio::console::Console;
use lguest_devices::virtio::entropy::entropy;
use lguest_devices::virtio::network::{MacAddress, network};
use lguest_devices::virtio::{EVENT_IDX, INDIRECT_DESCRIPTORS, Kind, Model, Version};
use lguest_switcher::{GuestMemory, GuestPhys};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The end of what the guest takes for its memory.
const TOP: u32 = 0x8_0000;
const FIRST_IRQ: u8 = 1;
const DATA: u32 = 0x1_0000;

const FAILED: u8 = 0x80;

struct Guest {
    memory: Arc<GuestMemory>,
    lines: Arc<Lines>,
    bus: LguestBus,
    listed: Vec<Listed>,
}

/// What the list says of a device.
struct Listed {
    kind: u8,
    at: u32,
    status: u32,
    /// Size, interrupt, page.
    queues: Vec<(u16, u16, u32)>,
    features: Option<(u32, u32)>,
    config: Vec<u8>,
}

fn empty(format: Format) -> Guest {
    let memory = Arc::new(GuestMemory::new(TOP + 0x4_0000).unwrap());
    let lines = Arc::new(Lines::default());
    let interrupts = Arc::clone(&lines) as Arc<dyn Interrupts>;
    let mapped = device_memory(&memory);
    let page = GuestPhys(TOP);
    let bus = LguestBus::new(Arc::clone(&memory), mapped, format, page, FIRST_IRQ, interrupts);
    Guest { memory, lines, bus, listed: Vec::new() }
}

fn guest(format: Format, models: Vec<Model>) -> Guest {
    let mut guest = empty(format);
    models.into_iter().for_each(|model| guest.bus.add(model).unwrap());
    guest.listed = guest.read_list(format);
    guest
}

impl Guest {
    fn bytes(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestPhys(at), &mut bytes).unwrap();
        bytes
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        self.memory.write(GuestPhys(at), bytes).unwrap();
    }

    fn read_list(&self, format: Format) -> Vec<Listed> {
        let mut all = Vec::new();
        let mut at = TOP;
        while self.bytes(at, 1) != [0] {
            let (listed, next) = match format {
                Format::Fields => self.read_fields(at),
                Format::Records => self.read_records(at),
            };
            all.push(listed);
            at = next;
        }
        all
    }

    fn read_queue(&self, at: u32) -> (u16, u16, u32) {
        let word = |at| self.memory.read_u16(GuestPhys(at)).unwrap();
        (word(at), word(at + 2), self.memory.read_u32(GuestPhys(at + 4)).unwrap())
    }

    fn read_records(&self, at: u32) -> (Listed, u32) {
        let [kind, queues, features, config, status] = self.bytes(at, 5)[..] else { panic!() };
        assert_eq!(status, 0);
        let after_queues = at + 5 + 8 * u32::from(queues);
        let config_at = after_queues + 2 * u32::from(features);
        let listed = Listed {
            kind,
            at,
            status: at + 4,
            queues: (0..queues).map(|nth| self.read_queue(at + 5 + 8 * u32::from(nth))).collect(),
            features: Some((after_queues, after_queues + u32::from(features))),
            config: self.bytes(config_at, config.into()),
        };
        (listed, config_at + u32::from(config))
    }

    fn read_fields(&self, at: u32) -> (Listed, u32) {
        let [kind, length, status] = self.bytes(at, 3)[..] else { panic!() };
        assert_eq!(status, 0);
        let mut listed =
            Listed { kind, at, status: at + 2, queues: vec![], features: None, config: vec![] };
        let end = at + 3 + u32::from(length);
        let mut field = at + 3;
        while field < end {
            let [tag, length] = self.bytes(field, 2)[..] else { panic!() };
            if tag == 2 {
                assert_eq!(length, 8);
                listed.queues.push(self.read_queue(field + 2));
            } else {
                listed.config.extend(self.bytes(field, 2 + usize::from(length)));
            }
            field += 2 + u32::from(length);
        }
        assert_eq!(field, end);
        (listed, end)
    }

    /// What a driver does until it is ready: gives the device's queues.
    fn start(&mut self, device: usize, features: u32) -> Vec<Queue> {
        self.reset(device);
        let listed = &self.listed[device];
        self.put(listed.status, &[3]);
        if let Some((_, ours)) = listed.features {
            self.put(ours, &features.to_le_bytes());
            // Some kernels tell of it.
            assert!(self.bus.notify(GuestPhys(self.listed[device].at)));
        }
        let listed = &self.listed[device];
        let event_idx = u64::from(features) & EVENT_IDX != 0;
        let queue = |(index, (size, _, page)): (usize, &(u16, u16, u32))| {
            let (at, entries) = (page * 0x1000, u32::from(*size));
            let available = at + 16 * entries;
            let used = (available + 6 + 2 * entries).next_multiple_of(0x1000);
            Queue::at(&self.memory, index as u16, *size, (at, available, used), event_idx)
        };
        let queues = listed.queues.iter().enumerate().map(queue).collect();
        self.put(listed.status, &[7]);
        queues
    }

    fn reset(&mut self, device: usize) {
        let listed = &self.listed[device];
        self.put(listed.status, &[0]);
        if listed.features.is_some() {
            assert!(self.bus.notify(GuestPhys(listed.at)));
        }
    }

    fn ring_if_wanted(&mut self, queue: &mut Queue) {
        if queue.wants_bell() {
            assert!(self.bus.notify(GuestPhys(queue.descriptors)));
        }
    }

    fn wait(&mut self, device: usize, queue: &mut Queue) -> (u16, u32) {
        let (_, irq, _) = self.listed[device].queues[usize::from(queue.index)];
        loop {
            if let Some(done) = queue.take_used() {
                return done;
            }
            assert!(self.lines.wait(irq as u8, LONG), "no interrupt came");
        }
    }

    /// Makes a chain available, rings, and waits until it comes back.
    fn send(&mut self, device: usize, queue: &mut Queue, chain: &[(u32, u32, bool)]) -> u32 {
        let head = queue.add(chain);
        self.ring_if_wanted(queue);
        let (done, written) = self.wait(device, queue);
        assert_eq!(done, head);
        written
    }
}

struct Ends {
    keyboard: PipeWriter,
    screen: PipeReader,
    plate: Plate,
    far: UnixDatagram,
}

/// A guest with one device of each kind, and the other ends of them.
fn all(format: Format) -> (Guest, Ends) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let plate = Plate::new();
    let (cable, far) = Cable::pair();
    let console = Console {
        input: Some(input.into()),
        output: Some(output.into()),
        size: Some((80, 25)),
        ..Console::default()
    };
    let models = vec![
        console.into_model(),
        block(Box::new(plate.clone())),
        network(Box::new(cable), MacAddress([2, 0, 0, 0, 0, 9])),
        entropy(),
    ];
    (guest(format, models), Ends { keyboard, screen, plate, far })
}

#[test]
fn the_list_says_what_there_is() {
    let (guest, _ends) = all(Format::Records);
    let kinds: Vec<u8> = guest.listed.iter().map(|listed| listed.kind).collect();
    assert_eq!(kinds, [3, 2, 1, 4]);
    let irqs: Vec<u16> =
        guest.listed.iter().flat_map(|listed| &listed.queues).map(|queue| queue.1).collect();
    assert_eq!(irqs, [1, 2, 3, 4, 5, 6]);
    let (theirs, ours) = guest.listed[0].features.unwrap();
    // The size, but no emergency writes, which nobody would notice.
    let rings = (EVENT_IDX | INDIRECT_DESCRIPTORS) as u32;
    assert_eq!(guest.memory.read_u32(GuestPhys(theirs)).unwrap(), 1 | rings);
    assert_eq!(ours, theirs + 4);
    assert_eq!(guest.listed[0].config[..4], [80, 0, 25, 0]);
    assert_eq!(guest.listed[1].config[..8], 512u64.to_le_bytes());
    assert_eq!(guest.listed[2].config, [2, 0, 0, 0, 0, 9]);
    assert_eq!(guest.listed[3].config, []);
}

#[test]
fn the_first_list_has_fields() {
    let (guest, _ends) = all(Format::Fields);
    let kinds: Vec<u8> = guest.listed.iter().map(|listed| listed.kind).collect();
    assert_eq!(kinds, [3, 2, 1, 4]);
    assert_eq!(guest.listed[0].config, []);
    let capacity = [&[0x41, 8][..], &512u64.to_le_bytes(), &[0x43, 4, 126, 0, 0, 0]].concat();
    assert_eq!(guest.listed[1].config, capacity);
    assert_eq!(guest.listed[2].config, [0x41, 6, 2, 0, 0, 0, 0, 9]);
    assert_eq!(guest.listed[2].queues.len(), 2);
}

fn every_device_works(format: Format, features: u32, block_header: u32, network_header: u32) {
    let (mut guest, mut ends) = all(format);
    let mut queues = guest.start(0, features);
    guest.put(DATA, b"screen");
    assert_eq!(guest.send(0, &mut queues[1], &[(DATA, 6, false)]), 0);
    let mut said = [0; 6];
    ends.screen.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"screen");
    ends.keyboard.write_all(b"keys").unwrap();
    assert_eq!(guest.send(0, &mut queues[0], &[(DATA, 16, true)]), 4);
    assert_eq!(guest.bytes(DATA, 5), b"keyse");

    let mut queues = guest.start(1, features);
    let header = [&[0; 8][..], &7u64.to_le_bytes(), &[0xee; 8]].concat();
    guest.put(DATA, &header);
    let read = [(DATA, block_header, false), (DATA + 0x1000, 512, true), (DATA + 0x2000, 1, true)];
    assert_eq!(guest.send(1, &mut queues[0], &read), 513);
    assert_eq!(guest.bytes(DATA + 0x1000, 512), [7; 512]);
    guest.put(DATA, &[1]);
    guest.put(DATA + 0x1000, &[0x99; 512]);
    let write =
        [(DATA, block_header, false), (DATA + 0x1000, 512, false), (DATA + 0x2000, 1, true)];
    assert_eq!(guest.send(1, &mut queues[0], &write), 1);
    assert_eq!(guest.bytes(DATA + 0x2000, 1), [0]);
    assert_eq!(ends.plate.sector(7), [0x99; 512]);

    let mut queues = guest.start(2, features);
    guest.put(DATA, &[0x42; 60]);
    guest.send(2, &mut queues[1], &[(DATA + 0x1000, network_header, false), (DATA, 60, false)]);
    let mut frame = [0; 100];
    assert_eq!(ends.far.recv(&mut frame).unwrap(), 60);
    assert_eq!(frame[..60], [0x42; 60]);
    ends.far.send(&[0x43; 60]).unwrap();
    guest.put(DATA, &[0xff; 80]);
    assert_eq!(guest.send(2, &mut queues[0], &[(DATA, 2000, true)]), 60 + network_header);
    let header = network_header as usize;
    assert_eq!(guest.bytes(DATA, header), vec![0; header]);
    assert_eq!(guest.bytes(DATA + network_header, 61), [&[0x43; 60][..], &[0xff]].concat());

    let mut queues = guest.start(3, features);
    assert_eq!(guest.send(3, &mut queues[0], &[(DATA, 64, true)]), 64);
}

#[test]
fn every_device_works_for_later_guests() {
    every_device_works(Format::Records, 0, 16, 10);
}

#[test]
fn every_device_works_with_event_indices() {
    every_device_works(Format::Records, EVENT_IDX as u32, 16, 10);
}

#[test]
fn every_device_works_for_the_first_guests() {
    every_device_works(Format::Fields, 0, 24, 8);
}

#[test]
fn a_reset_leaves_clean_rings() {
    let (mut guest, _ends) = all(Format::Records);
    for _ in 0..3 {
        let mut queues = guest.start(0, EVENT_IDX as u32);
        for _ in 0..5 {
            guest.send(0, &mut queues[1], &[(DATA, 1, false)]);
        }
        queues[0].add(&[(DATA, 16, true)]);
        guest.ring_if_wanted(&mut queues[0]);
        guest.reset(0);
        for queue in &queues {
            assert!(guest.bytes(queue.descriptors, 0x2000).iter().all(|byte| *byte == 0));
        }
        let (_, ours) = guest.listed[0].features.unwrap();
        assert_eq!(guest.bytes(ours, 4), [0; 4]);
    }
    // A driver that gives up ends the device's work as well.
    let mut queues = guest.start(0, 0);
    guest.send(0, &mut queues[1], &[(DATA, 1, false)]);
    let (status, at) = (guest.listed[0].status, guest.listed[0].at);
    guest.put(status, &[FAILED | 3]);
    assert!(guest.bus.notify(GuestPhys(at)));
    assert_eq!((guest.bytes(status, 1), queues[1].used_index()), (vec![FAILED | 3], 0));
}

#[test]
fn features_nobody_offered_are_not_used() {
    for (format, version, features) in
        [(Format::Records, Version::Legacy, 3), (Format::Fields, Version::First, 0)]
    {
        let (model, told) = patient();
        let mut guest = guest(format, vec![model]);
        let queue = &mut guest.start(0, 0x4fff_ffff)[0];
        assert!(told.try_recv().is_err(), "nothing begins without a bell");
        queue.add(&[(DATA, 8, true)]);
        guest.ring_if_wanted(queue);
        assert_eq!(told.recv(), Ok(Event::Began(version, features)));
    }
}

#[test]
fn a_driver_that_cant_flush_gets_durable_writes() {
    let (mut guest, ends) = all(Format::Records);
    let write = [(DATA, 16, false), (DATA + 0x1000, 512, false), (DATA + 0x2000, 1, true)];
    for (features, flushes) in [(1 << 9, 0), (0, 1)] {
        let mut queues = guest.start(1, features);
        guest.put(DATA, &[&[1; 1][..], &[0; 15]].concat());
        guest.send(1, &mut queues[0], &write);
        assert_eq!(ends.plate.flushes(), flushes);
    }
}

#[test]
fn a_broken_device_sleeps_until_a_reset() {
    let (mut guest, _ends) = all(Format::Records);
    let mut queues = guest.start(0, 0);
    queues[1].add(&[(TOP + 0x4_0000, 1, false)]);
    guest.ring_if_wanted(&mut queues[1]);
    thread::sleep(Duration::from_millis(10));
    queues[1].add(&[(DATA, 1, false)]);
    assert!(guest.bus.notify(GuestPhys(queues[1].descriptors)));
    thread::sleep(Duration::from_millis(10));
    assert_eq!(queues[1].take_used(), None);
    let mut queues = guest.start(0, 0);
    guest.send(0, &mut queues[1], &[(DATA, 1, false)]);
}

#[test]
fn devices_can_be_taken_to_another_bus() {
    let (mut guest, _ends) = all(Format::Records);
    guest.start(0, 0);
    let models = guest.bus.into_models();
    let kinds = [Kind::Console, Kind::Block, Kind::Network, Kind::Entropy];
    assert_eq!(models.iter().map(|model| model.kind).collect::<Vec<_>>(), kinds);
    let mut again = self::guest(Format::Records, models);
    let mut queues = again.start(3, 0);
    assert_eq!(again.send(3, &mut queues[0], &[(DATA, 64, true)]), 64);
}

#[test]
fn other_addresses_are_not_the_buss() {
    let (mut guest, _ends) = all(Format::Records);
    let ring = guest.listed[0].queues[0].2 * 0x1000;
    for at in [0, DATA, TOP - 1, TOP + 1, ring + 1, ring + 0x1000, u32::MAX] {
        assert!(!guest.bus.notify(GuestPhys(at)), "{at:#x}");
    }
    guest.put(DATA, b"Linux\0 version");
    assert_eq!(early_text(&guest.memory, GuestPhys(DATA)), b"Linux");
    guest.put(DATA, &[b'x'; 0x2000]);
    assert_eq!(early_text(&guest.memory, GuestPhys(DATA)).len(), 4096);
    let end = TOP + 0x4_0000;
    guest.put(end - 3, b"end");
    assert_eq!(early_text(&guest.memory, GuestPhys(end - 3)), b"end");
    assert_eq!(early_text(&guest.memory, GuestPhys(u32::MAX)), b"");
}

#[test]
fn room_is_limited_in_three_ways() {
    let until_full = |guest: &mut Guest, config: usize| loop {
        if let Err(error) = guest.bus.add(Model { config: vec![1; config], ..entropy() }) {
            return error;
        }
    };
    let mut full = empty(Format::Records);
    assert!(matches!(until_full(&mut full, 0), NoRoom::Lines));
    assert_eq!(full.read_list(Format::Records).len(), 31);
    // The list's last byte is its end.
    for (config, devices) in [(111, 31), (112, 30), (235, 15), (255, 14), (256, 0)] {
        let mut full = empty(Format::Records);
        let error = until_full(&mut full, config);
        assert!(matches!(error, NoRoom::Descriptors) != (config == 111));
        assert_eq!(full.read_list(Format::Records).len(), devices);
    }
    // Without memory behind the page, not even one.
    let memory = Arc::new(GuestMemory::new(TOP + 0x2000).unwrap());
    let interrupts = Arc::clone(&full.lines) as Arc<dyn Interrupts>;
    let (mapped, page) = (device_memory(&memory), GuestPhys(TOP));
    let mut bus =
        LguestBus::new(memory, mapped, Format::Records, page, FIRST_IRQ, Arc::clone(&interrupts));
    assert!(matches!(bus.add(entropy()), Err(NoRoom::Rings(_))));
    // Without lines neither.
    let memory = Arc::clone(&full.memory);
    let mapped = device_memory(&memory);
    let mut bus = LguestBus::new(memory, mapped, Format::Records, page, 31, interrupts);
    assert!(matches!(bus.add(Console::default().into_model()), Err(NoRoom::Lines)));
    assert!(bus.add(entropy()).is_ok());
}
