//! The 256 bytes in which a PCI device says what it is.
//!
//! Each byte has a mask of the bits that can be written, and everything follows from that: a guest learns the size of a device's
//! registers by writing ones to their address and seeing which stick (*PCI Local Bus Specification*, Address Maps).

/// Offsets in the header that every device has.
const VENDOR: u8 = 0x00;
const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const REVISION: u8 = 0x08;
const CACHE_LINE: u8 = 0x0c;
const LATENCY: u8 = 0x0d;
const BAR0: u8 = 0x10;
const SUBSYSTEM: u8 = 0x2c;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT_LINE: u8 = 0x3c;
const INTERRUPT_PIN: u8 = 0x3d;

/// In the command register: the device's registers can be accessed.
const MEMORY: u16 = 1 << 1;
/// In the command register: the device may access memory by itself.
const BUS_MASTER: u16 = 1 << 2;
/// In the command register: no interrupts.
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// In the status register: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;

/// Who made a device, and what it is.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Class, subclass and programming interface, from the highest byte down.
    pub(crate) class: u32,
    pub(crate) revision: u8,
    pub(crate) subsystem: (u16, u16),
}

/// A bridge that does nothing, as the number for that says. Operating systems look for one to believe that there is a bus.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    class: 0x06_0000,
    revision: 0,
    subsystem: (0x1af4, 0x1100),
};

/// A device's configuration.
pub(crate) struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Where the next capability goes.
    end: u8,
    /// The byte that refers to the next capability.
    link: u8,
}

impl ConfigSpace {
    /// The configuration of a device without registers or capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self { bytes: [0; 256], writable: [0; 256], end: 0x40, link: CAPABILITIES };
        space.set(VENDOR, &identity.vendor.to_le_bytes());
        space.set(VENDOR + 2, &identity.device.to_le_bytes());
        space.set(REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.set(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        space.allow(COMMAND, &(MEMORY | BUS_MASTER | INTERRUPT_DISABLE).to_le_bytes());
        space.allow(CACHE_LINE, &[0xff]);
        space.allow(LATENCY, &[0xff]);
        space
    }

    pub(crate) fn host_bridge() -> Self {
        Self::new(HOST_BRIDGE)
    }

    /// The device has `size` bytes of registers (a power of 2, at least 16), at `at` to begin with: in memory, anywhere below 4 GiB, and
    /// not to be read ahead.
    pub(crate) fn set_registers(&mut self, at: u32, size: u32) {
        self.set(BAR0, &(at & !(size - 1)).to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// The device has an interrupt, which comes by this line.
    pub(crate) fn set_interrupt(&mut self, irq: u8) {
        self.set(INTERRUPT_LINE, &[irq]);
        self.allow(INTERRUPT_LINE, &[0xff]);
        self.set(INTERRUPT_PIN, &[1]);
    }

    /// Adds a capability of the makers' own, and gives its offset. `body` is what follows the two bytes of number and link.
    pub(crate) fn add_capability(&mut self, body: &[u8]) -> u8 {
        const VENDOR_SPECIFIC: u8 = 9;
        let at = self.end;
        self.set(STATUS, &HAS_CAPABILITIES.to_le_bytes());
        self.set(self.link, &[at]);
        self.set(at, &[VENDOR_SPECIFIC, 0]);
        self.set(at + 2, body);
        self.link = at + 1;
        self.end = (at + 2 + body.len() as u8).next_multiple_of(4);
        at
    }

    /// Where the device's registers are now; `None` while they can't be accessed.
    pub(crate) fn registers(&self) -> Option<u32> {
        let command = u16::from_le_bytes([self.byte(COMMAND), self.byte(COMMAND + 1)]);
        (command & MEMORY != 0).then_some(self.word(BAR0))
    }

    /// Whether the device may raise its interrupt.
    pub(crate) fn interrupts(&self) -> bool {
        let command = u16::from_le_bytes([self.byte(COMMAND), self.byte(COMMAND + 1)]);
        command & INTERRUPT_DISABLE == 0
    }

    /// The guest reads. An access doesn't run over the end, since it stays inside four aligned bytes.
    pub(crate) fn read(&self, register: u8, into: &mut [u8]) {
        for (byte, there) in into.iter_mut().zip(&self.bytes[usize::from(register)..]) {
            *byte = *there;
        }
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, register: u8, from: &[u8]) {
        let from_there = usize::from(register)..;
        let there = self.bytes[from_there.clone()].iter_mut().zip(&self.writable[from_there]);
        for ((byte, writable), new) in there.zip(from) {
            *byte = *byte & !writable | new & writable;
        }
    }

    pub(crate) fn byte(&self, register: u8) -> u8 {
        self.bytes[usize::from(register)]
    }

    pub(crate) fn word(&self, register: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Puts something there, whether the guest may or not.
    pub(crate) fn set(&mut self, register: u8, bytes: &[u8]) {
        self.bytes[usize::from(register)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets the guest write these bits.
    pub(crate) fn allow(&mut self, register: u8, bits: &[u8]) {
        self.writable[usize::from(register)..][..bits.len()].copy_from_slice(bits);
    }
}
