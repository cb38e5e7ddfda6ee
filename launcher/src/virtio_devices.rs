//! **The devices of later guests**: virtio's, on the bus that their kernels look at.
//!
//! The devices themselves are `lguest-devices`' business. Here they are made from what the user asked for, put on a
//! bus, and tied to the Host: its accesses go to the bus, the devices' interrupts to its lines. When a guest is
//! restarted, the bus is made anew and the devices move over: a disk keeps its lock, a console its keyboard.

use crate::console::Console;
use crate::control::Control;
use crate::input::InputThread;
use lguest_abi::generation::DeviceBus;
use lguest_devices::interrupts::Interrupts;
use lguest_devices::pci::{BAR_BYTES, PciBus};
use lguest_devices::virtio::console::Console as ConsoleModel;
use lguest_devices::virtio::{DeviceMemory, Model};
use lguest_host::{Bus, DeviceIo, Devices, GuestMemory, GuestPhys, InterruptLines, Sections, Stop};
use rustix::io::Errno;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The keyboard controller's status, which a kernel asks before it resets a PC; and what it says: ready for a command.
const KEYBOARD_STATUS: u16 = 0x64;
const KEYBOARD_READY: u32 = 1;

/// The devices, and who watches over the guest that has them.
pub(crate) struct VirtioDevices {
    bus: SharedBus,
    models: Vec<Model>,
    supervisor: Supervisor,
    /// Reads the keyboard until this is dropped.
    _input: Option<InputThread>,
}

/// A bus that the Host calls, and that can be taken apart when the Host's machine is gone.
#[derive(Clone, Default)]
pub(crate) struct SharedBus(Arc<Mutex<Option<PciBus>>>);

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
        Ok(Self { bus, models, supervisor, _input: thread })
    }

    /// Puts the devices on a new bus beside this memory.
    ///
    /// # Errors
    /// There is no room for them, or the system won't map the memory once more.
    pub(crate) fn plug_in(
        &mut self,
        memory: &Arc<GuestMemory>,
        lines: &InterruptLines,
    ) -> io::Result<()> {
        let interrupts = Arc::new(Lines(lines.clone()));
        let mut bus = PciBus::new(DeviceMemory::new(memory)?, interrupts);
        let mut bar = memory.size().next_multiple_of(BAR_BYTES);
        for (irq, model) in (1..).zip(self.models.drain(..)) {
            bus.add(model, bar, irq).map_err(io::Error::other)?;
            bar += BAR_BYTES;
        }
        *self.bus.lock() = Some(bus);
        Ok(())
    }

    /// Takes the devices off their bus, each as before its driver came.
    pub(crate) fn unplug(&mut self) {
        if let Some(bus) = self.bus.lock().take() {
            self.models = bus.into_models();
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

/// Whether a guest that looks at this bus has its devices here.
pub(crate) fn is_for(bus: DeviceBus) -> bool {
    matches!(bus, DeviceBus::Pci)
}

impl SharedBus {
    /// A bus is right between any two accesses.
    fn lock(&self) -> MutexGuard<'_, Option<PciBus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus for SharedBus {
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        if port == KEYBOARD_STATUS {
            return KEYBOARD_READY;
        }
        self.lock().as_mut().and_then(|bus| bus.port_in(port, bytes)).unwrap_or(u32::MAX)
    }

    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        if let Some(bus) = &mut *self.lock() {
            bus.port_out(port, bytes, value);
        }
    }

    fn read(&mut self, at: GuestPhys, into: &mut [u8]) {
        if !self.lock().as_mut().is_some_and(|bus| bus.read(at.0, into)) {
            into.fill(0xff);
        }
    }

    fn write(&mut self, at: GuestPhys, from: &[u8]) {
        if let Some(bus) = &mut *self.lock() {
            bus.write(at.0, from);
        }
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
