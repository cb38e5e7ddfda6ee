//! **PCI**: a bus on which a guest finds its devices by itself.
//!
//! There is one bus, with a host bridge in slot 0 and [functions] from slot 1 on. Each has 256 bytes of configuration
//! ([`config_space`]), which the guest reaches through two ports: it writes to one which device and which register it means,
//! and then accesses the other (*PCI Local Bus Specification*, Configuration Mechanism #1). In there a device says what it is, and where
//! in the memory's addresses its registers are to be; an access there is an access to the device.
//!
//! All of this happens on the thread of the virtual CPU, a call for each access.
//!
//! [functions]: virtio_function

mod common_config;
mod config_space;
mod virtio_function;

use crate::interrupts::Interrupts;
use crate::virtio::{DeviceMemory, Model};
use config_space::ConfigSpace;
use std::ops::RangeInclusive;
use std::sync::Arc;
pub use virtio_function::BAR_BYTES;
use virtio_function::VirtioFunction;

/// The port that says which register is meant.
const ADDRESS_PORT: u16 = 0xcf8;
/// The ports through which it is accessed: byte `n` of it at the `n`th.
const DATA_PORTS: RangeInclusive<u16> = 0xcfc..=0xcff;

/// Slots on a bus; the first has the bridge.
const SLOTS: usize = 32;

/// In the address: an access to the data port is one to a register.
const ENABLE: u32 = 1 << 31;
/// In the address: the bits that mean something.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// There is no room for another device.
#[derive(Debug, thiserror::Error)]
#[error("a PCI bus has room for {} devices", SLOTS - 1)]
pub struct BusFull;

/// A bus with devices.
pub struct PciBus {
    memory: DeviceMemory,
    interrupts: Arc<dyn Interrupts>,
    /// What was last written to the address port.
    address: u32,
    bridge: ConfigSpace,
    functions: Vec<VirtioFunction>,
}

/// What an address means.
enum Target<'a> {
    Bridge(&'a mut ConfigSpace),
    Function(&'a mut VirtioFunction),
}

impl PciBus {
    /// A bus with nothing but its bridge.
    #[must_use]
    pub fn new(memory: DeviceMemory, interrupts: Arc<dyn Interrupts>) -> Self {
        let bridge = ConfigSpace::host_bridge();
        Self { memory, interrupts, address: 0, bridge, functions: Vec::new() }
    }

    /// Puts a device into the next slot, with its registers at `bar` (a multiple of [`BAR_BYTES`]) to begin with, and
    /// interrupt line `irq`.
    ///
    /// # Errors
    /// The bus is full.
    pub fn add(&mut self, model: Model, bar: u32, irq: u8) -> Result<(), BusFull> {
        if self.functions.len() + 1 == SLOTS {
            return Err(BusFull);
        }
        let (memory, interrupts) = (self.memory.clone(), Arc::clone(&self.interrupts));
        self.functions.push(VirtioFunction::new(model, memory, interrupts, bar, irq));
        Ok(())
    }

    /// Takes the bus apart: its devices, in the order of their slots, as they were before they were put there.
    #[must_use]
    pub fn into_models(self) -> Vec<Model> {
        self.functions.into_iter().filter_map(VirtioFunction::into_model).collect()
    }

    /// The guest reads `bytes` (1, 2 or 4) at a port. `None` when the port isn't the bus's.
    pub fn port_in(&mut self, port: u16, bytes: u32) -> Option<u32> {
        if (port, bytes) == (ADDRESS_PORT, 4) {
            return Some(self.address);
        }
        let mut value = [0xff; 4];
        let into = value.get_mut(..bytes as usize)?;
        let register = self.register(port, bytes)?;
        match self.target() {
            Some(Target::Bridge(bridge)) => bridge.read(register, into),
            Some(Target::Function(function)) => function.read_config(register, into),
            None => {}
        }
        // What isn't there reads as all ones, and bytes that weren't asked for are the caller's to cut off.
        Some(u32::from_le_bytes(value))
    }

    /// The guest writes the low `bytes` (1, 2 or 4) of `value` to a port. False when the port isn't the bus's.
    pub fn port_out(&mut self, port: u16, bytes: u32, value: u32) -> bool {
        if (port, bytes) == (ADDRESS_PORT, 4) {
            self.address = value & ADDRESS_BITS;
            return true;
        }
        let value = value.to_le_bytes();
        let Some(from) = value.get(..bytes as usize) else { return false };
        let Some(register) = self.register(port, bytes) else { return false };
        match self.target() {
            Some(Target::Bridge(bridge)) => bridge.write(register, from),
            Some(Target::Function(function)) => function.write_config(register, from),
            None => {}
        }
        true
    }

    /// The guest reads at a physical address. False when no device is there; then `into` is as it was.
    pub fn read(&mut self, at: u32, into: &mut [u8]) -> bool {
        let Some((function, offset)) = self.at(at, into.len()) else { return false };
        function.read(offset, into);
        true
    }

    /// The guest writes at a physical address. False when no device is there.
    pub fn write(&mut self, at: u32, from: &[u8]) -> bool {
        let Some((function, offset)) = self.at(at, from.len()) else { return false };
        function.write(offset, from);
        true
    }

    /// The device all of whose `len` bytes at `at` are its registers.
    fn at(&mut self, at: u32, len: usize) -> Option<(&mut VirtioFunction, u32)> {
        let inside = |function: &VirtioFunction| {
            let offset = at.checked_sub(function.bar()?)?;
            let room = BAR_BYTES.checked_sub(offset)?;
            (len <= room as usize).then_some(offset)
        };
        self.functions.iter_mut().find_map(|function| inside(function).map(|at| (function, at)))
    }

    /// The register that an access to a data port is one to. It doesn't reach over the last port.
    fn register(&self, port: u16, bytes: u32) -> Option<u8> {
        let last = u32::from(port) + bytes.checked_sub(1)?;
        let ours = DATA_PORTS.contains(&port) && last <= u32::from(*DATA_PORTS.end());
        ours.then(|| (self.address & 0xfc) as u8 + (port - DATA_PORTS.start()) as u8)
    }

    fn target(&mut self) -> Option<Target<'_>> {
        let [_, function, bus, _] = self.address.to_le_bytes();
        let (slot, function) = (usize::from(function >> 3), function & 7);
        if self.address & ENABLE == 0 || (bus, function) != (0, 0) {
            return None;
        }
        match slot.checked_sub(1) {
            None => Some(Target::Bridge(&mut self.bridge)),
            Some(index) => self.functions.get_mut(index).map(Target::Function),
        }
    }
}
