//! The disk's requests, those that can't be done, and a reset while one is being done.

use crate::driver::{Guest, Queue};
use lguest_devices::disk::{Disk, SECTOR};
use lguest_devices::virtio::block::block;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SECTORS: u64 = 512;
const FLUSH: u64 = 1 << 9;
/// The sector that can't be read or written.
const BAD: u64 = 300;

const HEADER: u32 = 0x4_0000;
const STATUS: u32 = 0x4_1000;
const DATA: u32 = 0x5_0000;

/// Where a read says that it has begun, and waits for permission.
type Gate = Arc<Mutex<(Sender<()>, Receiver<()>)>>;

/// A disk in memory that counts its flushes, and may have a gate.
#[derive(Clone, Default)]
pub(crate) struct Plate {
    bytes: Arc<Mutex<Vec<u8>>>,
    flushes: Arc<Mutex<u32>>,
    read_only: bool,
    gate: Option<Gate>,
}

impl Plate {
    pub(crate) fn new() -> Self {
        let bytes: Vec<u8> = (0..SECTORS * SECTOR).map(|n| (n / SECTOR) as u8).collect();
        Self { bytes: Arc::new(Mutex::new(bytes)), ..Self::default() }
    }

    pub(crate) fn sector(&self, sector: usize) -> Vec<u8> {
        self.bytes.lock().unwrap()[512 * sector..][..512].to_vec()
    }

    pub(crate) fn flushes(&self) -> u32 {
        *self.flushes.lock().unwrap()
    }

    fn touch(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let end = offset + len as u64;
        assert!(offset.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR));
        assert!(end <= SECTORS * SECTOR);
        let bad = offset <= BAD * SECTOR && BAD * SECTOR < end;
        if bad { Err(io::Error::other("scratched")) } else { Ok(offset as usize..end as usize) }
    }
}

impl Disk for Plate {
    fn size(&self) -> u64 {
        SECTORS * SECTOR
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn name(&self) -> &str {
        "plate"
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if let Some(gate) = &self.gate {
            let gate = gate.lock().unwrap();
            gate.0.send(()).unwrap();
            gate.1.recv().unwrap();
        }
        into.copy_from_slice(&self.bytes.lock().unwrap()[self.touch(offset, into.len())?]);
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.bytes.lock().unwrap()[self.touch(offset, from.len())?].copy_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        *self.flushes.lock().unwrap() += 1;
        Ok(())
    }
}

fn guest(plate: &Plate) -> Guest {
    Guest::new(vec![block(Box::new(plate.clone()))])
}

/// Makes a request available.
fn offer(guest: &mut Guest, queue: &mut Queue, kind: u32, sector: u64, data: &[(u32, u32, bool)]) {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    guest.put(HEADER, &header);
    guest.put(STATUS, &[0xaa]);
    let chain = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
    queue.add(&chain);
    guest.ring_if_wanted(1, queue);
}

/// Makes a request and waits: its status, and how much was written.
fn request(
    guest: &mut Guest,
    queue: &mut Queue,
    kind: u32,
    sector: u64,
    data: &[(u32, u32, bool)],
) -> (u8, u32) {
    offer(guest, queue, kind, sector, data);
    let (_, written) = guest.wait(1, queue);
    (guest.bytes(STATUS, 1)[0], written)
}

#[test]
fn sectors_are_read_and_written() {
    let plate = Plate::new();
    let mut guest = guest(&plate);
    let queue = &mut guest.start(1, FLUSH)[0];
    let pieces = [(DATA, 100, true), (DATA + 0x1000, 1436, true)];
    assert_eq!(request(&mut guest, queue, 0, 7, &pieces), (0, 1537));
    assert_eq!(
        (guest.bytes(DATA, 100), guest.bytes(DATA + 0x1000, 412)),
        (vec![7; 100], vec![7; 412])
    );
    assert_eq!(guest.bytes(DATA + 0x1000 + 412, 1024), [[8; 512], [9; 512]].concat());
    guest.put(DATA, &[0x77; 1024]);
    assert_eq!(request(&mut guest, queue, 1, SECTORS - 2, &[(DATA, 1024, false)]), (0, 1));
    let bytes = plate.bytes.lock().unwrap();
    assert_eq!(bytes[bytes.len() - 1025..], [&[253; 1][..], &[0x77; 1024]].concat());
}

#[test]
fn large_requests_go_in_pieces() {
    let plate = Plate::new();
    let mut guest = guest(&plate);
    let queue = &mut guest.start(1, FLUSH)[0];
    let bytes = 250 * SECTOR as u32;
    assert_eq!(request(&mut guest, queue, 0, 2, &[(DATA, bytes, true)]), (0, bytes + 1));
    assert!(
        guest.bytes(DATA, bytes as usize)
            == plate.bytes.lock().unwrap()[1024..1024 + bytes as usize]
    );
    assert_eq!(request(&mut guest, queue, 1, 0, &[(DATA, bytes, false)]), (0, 1));
    assert!(guest.bytes(DATA, bytes as usize) == plate.bytes.lock().unwrap()[..bytes as usize]);
}

#[test]
fn its_configuration_says_how_large_it_is() {
    let mut guest = guest(&Plate { read_only: true, ..Plate::new() });
    assert_eq!(guest.config_read(1, 0, 4), 0x1042_1af4);
    guest.agree(1, 1 << 32);
    assert_eq!(guest.offered(1) & 0xffff, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9);
    assert_eq!((guest.read(1, 0x100, 4), guest.read(1, 0x104, 4)), (SECTORS as u32, 0));
    assert_eq!((guest.read(1, 0x10c, 4), guest.read(1, 0x114, 4)), (126, 512));
}

#[test]
fn a_driver_that_cant_flush_needs_not() {
    let plate = Plate::new();
    let mut guest = guest(&plate);
    let queue = &mut guest.start(1, FLUSH)[0];
    assert_eq!(request(&mut guest, queue, 1, 0, &[(DATA, 512, false)]), (0, 1));
    assert_eq!(plate.flushes(), 0);
    for kind in [4, 5] {
        assert_eq!(request(&mut guest, queue, kind, 0, &[]), (0, 1));
    }
    assert_eq!(plate.flushes(), 2);
    let queue = &mut guest.start(1, 0)[0];
    assert_eq!(request(&mut guest, queue, 1, 0, &[(DATA, 512, false)]), (0, 1));
    assert_eq!(plate.flushes(), 3);
}

#[test]
fn it_has_a_name() {
    let mut guest = guest(&Plate::new());
    let queue = &mut guest.start(1, 0)[0];
    guest.put(DATA, &[0xff; 32]);
    assert_eq!(request(&mut guest, queue, 8, 0, &[(DATA, 20, true)]), (0, 21));
    let name = [&b"plate"[..], &[0; 15], &[0xff]].concat();
    assert_eq!(guest.bytes(DATA, 21), name);
    assert_eq!(request(&mut guest, queue, 8, 0, &[(DATA, 3, true)]), (0, 4));
    assert_eq!(request(&mut guest, queue, 8, 0, &[(DATA + 8, 64, true)]).0, 0);
    assert_eq!(guest.bytes(DATA + 8, 20), name[..20]);
}

#[test]
fn what_cant_be_done_is_told() {
    let plate = Plate::new();
    let mut guest = guest(&plate);
    let queue = &mut guest.start(1, 0)[0];
    let before = plate.bytes.lock().unwrap().clone();
    // Past the end, by its end, by much, and by so much that it wraps; half a sector; a bad one.
    let wrong = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (1 << 55, 512),
        (u64::MAX, 512),
        (0, 100),
        (BAD, 512),
    ];
    for (sector, bytes) in wrong {
        assert_eq!(request(&mut guest, queue, 0, sector, &[(DATA, bytes, true)]).0, 1);
        assert_eq!(request(&mut guest, queue, 1, sector, &[(DATA, bytes, false)]).0, 1);
    }
    assert!(*plate.bytes.lock().unwrap() == before);
    // Nothing at all is inside, even at the end.
    assert_eq!(request(&mut guest, queue, 0, SECTORS, &[]), (0, 1));
    for kind in [2, 3, 11, 0x8000_0001, u32::MAX] {
        assert_eq!(request(&mut guest, queue, kind, 0, &[(DATA, 512, true)]).0, 2);
    }
}

#[test]
fn what_a_failed_read_left_out_doesnt_count_as_written() {
    let mut guest = guest(&Plate::new());
    let queue = &mut guest.start(1, 0)[0];
    assert_eq!(request(&mut guest, queue, 0, BAD, &[(DATA, 512, true)]), (1, 0));
    // The bad sector is in the second piece.
    let read = [(DATA, 0x2_0000, true)];
    assert_eq!(request(&mut guest, queue, 0, BAD - 200, &read), (1, 0x1_0000));
}

#[test]
fn a_disk_may_be_for_reading_only() {
    let plate = Plate { read_only: true, ..Plate::new() };
    let mut guest = guest(&plate);
    let queue = &mut guest.start(1, 0)[0];
    assert_eq!(request(&mut guest, queue, 1, 0, &[(DATA, 512, false)]), (1, 1));
    assert_eq!(request(&mut guest, queue, 0, 0, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(plate.bytes.lock().unwrap()[0], 0);
}

#[test]
fn requests_lack_things() {
    let mut guest = guest(&Plate::new());
    let queue = &mut guest.start(1, 0)[0];
    guest.put(STATUS, &[0xaa]);
    queue.add(&[(HEADER, 15, false), (STATUS, 1, true)]);
    guest.ring_if_wanted(1, queue);
    guest.wait(1, queue);
    assert_eq!(guest.bytes(STATUS, 1), [1]);
    queue.add(&[(HEADER, 16, false)]);
    guest.ring_if_wanted(1, queue);
    guest.wait_broken(1);
}

#[test]
fn after_a_reset_nothing_is_written() {
    let (entered, at_gate) = channel();
    let (let_in, permission) = channel();
    let gate = Some(Arc::new(Mutex::new((entered, permission))));
    let mut guest = guest(&Plate { gate, ..Plate::new() });
    let queue = &mut guest.start(1, 0)[0];
    offer(&mut guest, queue, 0, 7, &[(DATA, 0x2_0000, true)]);
    at_gate.recv().unwrap();
    let opener = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let_in.send(()).unwrap();
        let_in
    });
    // This waits for the disk, and then the request isn't finished.
    guest.set_status(1, 0);
    let let_in = opener.join().unwrap();
    assert_eq!((guest.bytes(STATUS, 1), queue.used_index()), (vec![0xaa], 0));
    assert!(at_gate.try_recv().is_err(), "the second piece is not read");
    // And the device works again.
    let queue = &mut guest.start(1, 0)[0];
    let_in.send(()).unwrap();
    assert_eq!(request(&mut guest, queue, 0, 7, &[(DATA, 512, true)]), (0, 513));
}
