//! **The devices of later guests**: virtio's, on the bus that their kernels look at.
//!
//! The devices themselves are `lguest-devices`' business. Here they are made from what the user asked for, put on a
//! bus, and tied to the Host: its accesses go to the bus, the devices' interrupts to its lines. When a guest is
//! restarted, the bus is made anew and the devices move over: a disk keeps its lock, a console its keyboard.

use crate::console::Console;
use crate::control::Control;
use crate::input::InputThread;
use crate::output::Output;
use crate::vm::BuildError;
use lguest_abi::generation::DeviceBus;
use lguest_devices::disk::DiskConfig;
use lguest_devices::interrupts::Interrupts;
use lguest_devices::lguest_bus::{Format, LguestBus, early_text};
use lguest_devices::network::NetworkConfig;
use lguest_devices::pci::{BAR_BYTES, PciBus};
use lguest_devices::virtio::block::block;
use lguest_devices::virtio::console::Console as ConsoleModel;
use lguest_devices::virtio::entropy::entropy;
use lguest_devices::virtio::network::{MacAddress, network};
use lguest_devices::virtio::{DeviceMemory, Model};
use lguest_host::{Bus, DeviceIo, Devices, GuestMemory, GuestPhys, InterruptLines, Sections, Stop};
use lguest_switcher::PAGE_SIZE;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The interrupt of the first device; those of the others follow. Line 0 is the timer's.
const FIRST_IRQ: u8 = 1;

/// Bytes behind memory for an lguest bus: its list, and the rings of as many devices as it has room for.
const BUS_BYTES: u32 = 256 * PAGE_SIZE;

/// The keyboard controller's status, which a kernel asks before it resets a PC; and what it says: ready for a command.
const KEYBOARD_STATUS: u16 = 0x64;
const KEYBOARD_READY: u32 = 1;

/// Bytes that a bus takes of the guest's memory, behind what the guest is told it has.
pub(crate) fn bytes_behind_memory(bus: DeviceBus) -> u32 {
    match bus {
        DeviceBus::Dma => crate::devices::DEVICE_BYTES,
        DeviceBus::TaggedVirtio | DeviceBus::Virtio => BUS_BYTES,
        DeviceBus::Pci => 0,
    }
}

/// The devices that the user asked for, opened, and the one that every guest has.
pub(crate) fn models(
    disks: &[DiskConfig],
    networks: &[NetworkConfig],
) -> Result<Vec<Model>, BuildError> {
    let mut models = Vec::new();
    for disk in disks {
        models.push(block(disk.open()?));
    }
    for config in networks {
        let address = MacAddress::random().map_err(BuildError::Device)?;
        models.push(network(config.open()?, address));
    }
    models.push(entropy());
    Ok(models)
}

/// The devices, and who watches over the guest that has them.
pub(crate) struct VirtioDevices {
    kind: DeviceBus,
    bus: SharedBus,
    models: Vec<Model>,
    early: Option<Output>,
    supervisor: Supervisor,
    /// Reads the keyboard until this is dropped.
    _input: Option<InputThread>,
}

/// A bus that the Host calls, and that can be taken apart when the Host's machine is gone.
#[derive(Clone, Default)]
pub(crate) struct SharedBus(Arc<Mutex<Option<Plugged>>>);

/// A bus with its devices.
enum Plugged {
    Pci(Box<PciBus>),
    /// Texts that kernels print early go the shortest way.
    Lguest(LguestBus, Option<Output>),
}

/// Ends a guest when it is to end.
pub(crate) struct Supervisor {
    control: Arc<Control>,
    failure: Arc<OnceLock<Errno>>,
}

impl VirtioDevices {
    /// Makes the devices; from here on the keyboard is read.
    ///
    /// # Errors
    /// The system won't give a thread or descriptors.
    pub(crate) fn start(
        kind: DeviceBus,
        bus: SharedBus,
        console: Console,
        others: Vec<Model>,
        control: &Arc<Control>,
    ) -> io::Result<Self> {
        let failure = Arc::new(OnceLock::new());
        let (input, thread) = match console.input {
            Some(input) => {
                let (input, thread) = InputThread::into_pipe(input, Arc::clone(control))?;
                (Some(input), Some(thread))
            }
            None => (None, None),
        };
        let early = match &console.output {
            Some(output) => {
                let output = fcntl_dupfd_cloexec(output, 3)?;
                Some(Output::new(output, Arc::clone(control)))
            }
            None => None,
        };
        let (failed, kick) = (Arc::clone(&failure), Arc::clone(control));
        let console = ConsoleModel {
            input,
            output: console.output,
            size: None,
            output_failed: Some(Box::new(move |error| {
                let _ = failed.set(error);
                kick.kick();
            })),
        };
        let mut models = vec![console.into_model()];
        models.extend(others);
        let supervisor = Supervisor { control: Arc::clone(control), failure };
        Ok(Self { kind, bus, models, early, supervisor, _input: thread })
    }

    /// Puts the devices on a new bus beside this memory, of which the guest is told the first `size` bytes.
    ///
    /// # Errors
    /// There is no room for them, or the system won't map the memory once more.
    pub(crate) fn plug_in(
        &mut self,
        memory: &Arc<GuestMemory>,
        size: u32,
        lines: &InterruptLines,
    ) -> io::Result<()> {
        let interrupts: Arc<dyn Interrupts> = Arc::new(Lines(lines.clone()));
        let mapped = DeviceMemory::new(memory)?;
        let models = self.models.drain(..);
        let plugged = match self.kind {
            DeviceBus::Pci => Plugged::Pci(Box::new(pci(models, mapped, size, interrupts)?)),
            kind => {
                let fields = kind == DeviceBus::TaggedVirtio;
                let format = if fields { Format::Fields } else { Format::Records };
                let (memory, page) = (Arc::clone(memory), GuestPhys(size));
                let mut bus = LguestBus::new(memory, mapped, format, page, FIRST_IRQ, interrupts);
                for model in models {
                    bus.add(model).map_err(io::Error::other)?;
                }
                Plugged::Lguest(bus, self.early.take())
            }
        };
        *self.bus.lock() = Some(plugged);
        Ok(())
    }

    /// Takes the devices off their bus, each as before its driver came.
    pub(crate) fn unplug(&mut self) {
        match self.bus.lock().take() {
            Some(Plugged::Pci(bus)) => self.models = bus.into_models(),
            Some(Plugged::Lguest(bus, early)) => {
                (self.models, self.early) = (bus.into_models(), early);
            }
            None => {}
        }
    }

    /// Who watches over the guest.
    pub(crate) fn supervisor(&mut self) -> &mut Supervisor {
        &mut self.supervisor
    }

    /// What the console couldn't survive, if that is why the guest was stopped.
    pub(crate) fn failure(&self) -> Option<Errno> {
        self.supervisor.failure.get().copied()
    }
}

impl Drop for VirtioDevices {
    /// The devices' threads end before anything that they use.
    fn drop(&mut self) {
        self.unplug();
    }
}

/// A PCI bus, with each device's registers and interrupt at their first place.
fn pci(
    models: impl Iterator<Item = Model>,
    mapped: DeviceMemory,
    memory_size: u32,
    interrupts: Arc<dyn Interrupts>,
) -> io::Result<PciBus> {
    let mut bus = PciBus::new(mapped, interrupts);
    let mut registers = memory_size.next_multiple_of(BAR_BYTES);
    for (irq, model) in (FIRST_IRQ..).zip(models) {
        bus.add(model, registers, irq).map_err(io::Error::other)?;
        registers += BAR_BYTES;
    }
    Ok(bus)
}

impl SharedBus {
    /// A bus is right between any two accesses.
    fn lock(&self) -> MutexGuard<'_, Option<Plugged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the PCI bus, if that is what there is.
    fn with_pci<T>(&self, act: impl FnOnce(&mut PciBus) -> T) -> Option<T> {
        match &mut *self.lock() {
            Some(Plugged::Pci(bus)) => Some(act(bus)),
            _ => None,
        }
    }
}

impl Bus for SharedBus {
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        let found = self.with_pci(|bus| match port {
            KEYBOARD_STATUS => Some(KEYBOARD_READY),
            port => bus.port_in(port, bytes),
        });
        found.flatten().unwrap_or(u32::MAX)
    }

    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        self.with_pci(|bus| bus.port_out(port, bytes, value));
    }

    fn read(&mut self, at: GuestPhys, into: &mut [u8]) {
        if self.with_pci(|bus| bus.read(at.0, into)) != Some(true) {
            into.fill(0xff);
        }
    }

    fn write(&mut self, at: GuestPhys, from: &[u8]) {
        self.with_pci(|bus| bus.write(at.0, from));
    }

    fn notify(&mut self, memory: &GuestMemory, address: GuestPhys) -> bool {
        let Some(Plugged::Lguest(bus, early)) = &mut *self.lock() else { return false };
        if bus.notify(address) {
            return true;
        }
        let is_text = memory.contains(address, 1);
        if let (true, Some(output)) = (is_text, early) {
            // Who doesn't take it is found out by the console itself.
            let _ = output.write_all(&early_text(memory, address));
        }
        is_text
    }
}

/// The Host's lines, as devices know them.
struct Lines(InterruptLines);

impl Interrupts for Lines {
    fn raise(&self, irq: u8) {
        self.0.raise(irq);
    }
}

impl Devices for Supervisor {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        if let Some(error) = self.failure.get() {
            return Some(Stop::Failed(error.to_string()));
        }
        self.control.wish().map(|_| Stop::Terminated)
    }
}
