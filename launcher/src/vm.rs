//! **A virtual machine**, from what it is made of to how it ended.
//!
//! This is the whole launcher in two functions: [`VmBuilder::build`] lays out memory and makes the
//! Host's [`Machine`], and [`Vm::run`] lends it the devices until the guest ends. The `lguest` command does
//! nothing that a program with this library can't.

use crate::console::{Console, ConsoleDevice};
use crate::control::{Control, StopReason, Stopper};
use crate::devices::{DeviceSet, write_descriptors};
use crate::layout::{Layout, LayoutError};
use crate::loader::{Generation, Kernel, KernelError, NoGeneration};
use crate::memory_size::MemorySize;
use crate::statistics::Statistics;
use crate::terminal::RawTerminal;
use crate::virtio_devices::{self, SharedBus, VirtioDevices, bytes_behind_memory};
use lguest_abi::generation::DeviceBus;
use lguest_devices::disk::DiskConfig;
use lguest_devices::network::NetworkConfig;
use lguest_devices::virtio::Model;
use lguest_host::{End, InterruptLines, Kill, Machine, MachineConfig, SetupError, Tracer};
use lguest_switcher::GuestMemory;
use std::io;
use std::sync::Arc;

/// Everything a virtual machine is made of. [`Vm::builder`] gives one with sixty-four mebibytes, the bundled
/// kernel, and a console that nobody listens to.
#[derive(Default)]
#[must_use]
pub struct VmBuilder {
    memory: MemorySize,
    kernel: Option<Kernel>,
    arguments: Vec<String>,
    initrd: Vec<u8>,
    disks: Vec<DiskConfig>,
    networks: Vec<NetworkConfig>,
    console: Console,
    tracer: Option<Tracer>,
    statistics: Option<Statistics>,
}

/// A virtual machine that is ready to run. It belongs to the thread that built it.
pub struct Vm {
    plan: Plan,
    made: Made,
    /// Its devices, but for the console.
    models: Vec<Model>,
    console: Console,
    control: Arc<Control>,
    statistics: Option<Statistics>,
}

/// What a machine is made from, as often as the guest wants to start again.
struct Plan {
    memory: MemorySize,
    kernel: Kernel,
    generation: Generation,
    initrd: Vec<u8>,
    layout: Layout,
    guest_id: u16,
    bus: SharedBus,
}

/// A machine, and what its devices must know of it.
struct Made {
    machine: Machine,
    memory: Arc<GuestMemory>,
    lines: InterruptLines,
}

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It powered itself off.
    PowerOff,
    /// It gave up, with this message.
    Crashed(String),
    /// The Host ended it, because it broke the rules.
    Killed(Kill),
    /// Somebody asked for it.
    Stopped(StopReason),
}

/// Why a virtual machine couldn't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The bundled kernel isn't one.
    #[error("the bundled kernel can't be booted: {0}")]
    BundledKernel(#[from] KernelError),
    /// The kernel is no guest of lguest's.
    #[error("the kernel can't be booted: {0}")]
    NoGuest(#[from] NoGeneration),
    /// Something doesn't fit into its memory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host has no memory for it.
    #[error("{size} of memory can't be had: {error}")]
    NoMemory {
        /// What was asked for.
        size: MemorySize,
        /// What the system said.
        error: io::Error,
    },
    /// This machine or system lacks something that the engine needs.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Such a kernel can't have what was asked for.
    #[error(
        "a kernel of generation {0} of lguest's interface can't have disks and networks yet: later ones can, from {later} on",
        later = Generation::V2_6_24.kernels()
    )]
    NoSuchDevices(Generation),
    /// A disk can't be used.
    #[error(transparent)]
    Disk(#[from] lguest_devices::disk::OpenError),
    /// A network can't be used.
    #[error(transparent)]
    Network(#[from] lguest_devices::network::OpenError),
    /// A device lacks something of the host's.
    #[error("a device can't be made: {0}")]
    Device(io::Error),
    /// The host is out of something small.
    #[error("no descriptors for a virtual machine: {0}")]
    NoDescriptors(io::Error),
}

/// Why the host couldn't go on running a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The terminal can't be made raw.
    #[error("the terminal can't be made raw: {0}")]
    Terminal(io::Error),
    /// The input can't be read by a thread of its own.
    #[error("the console's input can't be set up: {0}")]
    Input(io::Error),
    /// The devices can't be tied to the guest's memory.
    #[error("the devices can't be set up: {0}")]
    Devices(io::Error),
    /// There is no machine to restart it in.
    #[error("the guest can't be restarted: {0}")]
    Restart(BuildError),
    /// The console's output isn't taken: a full disk, or a reader that left.
    #[error("the console's output can't be written: {0}")]
    Output(io::Error),
}

impl VmBuilder {
    /// How much memory the guest has.
    pub fn memory(mut self, size: MemorySize) -> Self {
        self.memory = size;
        self
    }

    /// Boots this kernel rather than the bundled one.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// The words of the kernel's command line. None may have a zero byte in it.
    pub fn arguments<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.arguments = words.into_iter().map(Into::into).collect();
        self
    }

    /// The guest's first files: what the kernel finds as its initrd, usually a cpio archive. An empty one is none.
    pub fn initrd(mut self, archive: Vec<u8>) -> Self {
        self.initrd = archive;
        self
    }

    /// Another disk. The first one is the guest's first, and so on.
    pub fn disk(mut self, disk: DiskConfig) -> Self {
        self.disks.push(disk);
        self
    }

    /// Another network card.
    pub fn network(mut self, network: NetworkConfig) -> Self {
        self.networks.push(network);
        self
    }

    /// What its console is bound to.
    pub fn console(mut self, console: Console) -> Self {
        self.console = console;
        self
    }

    /// Who sees what guest and Host say to each other; see [`Trace`](crate::Trace).
    pub fn trace(mut self, tracer: Tracer) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Counts what happens, to be looked at when the guest has ended.
    pub fn statistics(mut self, statistics: &Statistics) -> Self {
        self.statistics = Some(statistics.clone());
        self
    }

    /// Makes the machine, with everything in memory and nothing run yet.
    ///
    /// # Errors
    /// What doesn't fit, or what this machine or system lacks, with what would help.
    pub fn build(self) -> Result<Vm, BuildError> {
        let kernel = match self.kernel {
            Some(kernel) => kernel,
            None => Kernel::bundled()?,
        };
        let generation = kernel.generation()?;
        let initrd = self.initrd.len() as u64;
        let layout = Layout::plan(self.memory, &kernel, generation, &self.arguments, initrd)?;
        let plan = Plan {
            memory: self.memory,
            kernel,
            generation,
            initrd: self.initrd,
            layout,
            guest_id: guest_id(),
            bus: SharedBus::default(),
        };
        let models = if generation.device_bus() == DeviceBus::Dma {
            if !self.disks.is_empty() || !self.networks.is_empty() {
                return Err(BuildError::NoSuchDevices(generation));
            }
            Vec::new()
        } else {
            virtio_devices::models(&self.disks, &self.networks)?
        };
        let mut made = plan.make()?;
        let tracer = match &self.statistics {
            Some(statistics) => Some(statistics.tracer(self.tracer)),
            None => self.tracer,
        };
        made.machine.set_tracer(tracer);
        let control = Control::new().map_err(|error| BuildError::NoDescriptors(error.into()))?;
        control.attach(made.machine.kicker());
        Ok(Vm {
            plan,
            made,
            models,
            console: self.console,
            control: Arc::new(control),
            statistics: self.statistics,
        })
    }
}

impl Plan {
    /// A machine at its first instruction.
    fn make(&self) -> Result<Made, BuildError> {
        let memory = guest_memory(self)
            .map_err(|error| BuildError::NoMemory { size: self.memory, error })?;
        let (memory, lines) = (Arc::new(memory), InterruptLines::default());
        let machine = Machine::new(MachineConfig {
            memory: Arc::clone(&memory),
            generation: self.generation,
            page_offset: self.kernel.page_offset().0,
            entry: self.kernel.entry().0,
            page_directory: self.layout.page_directory(),
            guest_id: self.guest_id,
            lines: lines.clone(),
            bus: Box::new(self.bus.clone()),
        })?;
        Ok(Made { machine, memory, lines })
    }
}

impl Vm {
    /// A machine to be described.
    pub fn builder() -> VmBuilder {
        lguest_host::begin_to_measure();
        VmBuilder::default()
    }

    /// A handle that ends the guest from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(Arc::clone(&self.control))
    }

    /// Runs the guest to its end, on this thread. If it wants to be restarted, it is.
    ///
    /// # Errors
    /// The host can't go on; the guest was ended then, and knows nothing of it.
    pub fn run(mut self) -> Result<Ending, RunError> {
        let _raw = match &self.console.input {
            Some(input) => {
                RawTerminal::enter(input).map_err(|error| RunError::Terminal(error.into()))?
            }
            None => None,
        };
        let console = std::mem::take(&mut self.console);
        let ending = match self.plan.generation.device_bus() {
            DeviceBus::Dma => self.run_with_dma(console),
            bus => self.run_with_virtio(bus, console),
        };
        if let Some(statistics) = &self.statistics {
            statistics.finish(self.made.machine.statistics());
        }
        ending
    }

    /// With the first generation's devices.
    fn run_with_dma(&mut self, console: Console) -> Result<Ending, RunError> {
        let console = ConsoleDevice::start(console, &self.control).map_err(RunError::Input)?;
        let mut devices = DeviceSet::new(console, Arc::clone(&self.control));
        loop {
            let end = self.made.machine.run(&mut devices);
            if let Some(error) = devices.failure() {
                return Err(RunError::Output(error.into()));
            }
            match end {
                End::Restart => self.restart()?,
                end => return Ok(self.ending(end)),
            }
        }
    }

    /// With later ones'.
    fn run_with_virtio(&mut self, kind: DeviceBus, console: Console) -> Result<Ending, RunError> {
        let bus = self.plan.bus.clone();
        let size = self.plan.memory.bytes();
        let models = std::mem::take(&mut self.models);
        let mut devices = VirtioDevices::start(kind, bus, console, models, &self.control)
            .map_err(RunError::Input)?;
        loop {
            devices
                .plug_in(&self.made.memory, size, &self.made.lines)
                .map_err(RunError::Devices)?;
            let end = self.made.machine.run(devices.supervisor());
            devices.unplug();
            if let Some(error) = devices.failure() {
                return Err(RunError::Output(error.into()));
            }
            match end {
                End::Restart => self.restart()?,
                end => return Ok(self.ending(end)),
            }
        }
    }

    /// What an end means to whoever started the guest.
    fn ending(&self, end: End) -> Ending {
        match end {
            End::PowerOff | End::Restart => Ending::PowerOff,
            End::Crashed(message) => Ending::Crashed(message),
            End::Killed(kill) => Ending::Killed(kill),
            End::Stopped(_) => {
                Ending::Stopped(self.control.wish().unwrap_or(StopReason::Requested))
            }
        }
    }

    /// The same machine, as it was before its first instruction.
    fn restart(&mut self) -> Result<(), RunError> {
        let tracer = self.made.machine.set_tracer(None);
        self.made = self.plan.make().map_err(RunError::Restart)?;
        self.made.machine.set_tracer(tracer);
        self.control.attach(self.made.machine.kicker());
        Ok(())
    }
}

/// Memory with everything in its place.
fn guest_memory(plan: &Plan) -> io::Result<GuestMemory> {
    let Plan { memory: size, layout, kernel, initrd, generation, .. } = plan;
    let bus = generation.device_bus();
    let memory = GuestMemory::new(size.bytes() + bytes_behind_memory(bus))?;
    layout.fill(&memory, kernel, initrd).map_err(io::Error::other)?;
    if bus == DeviceBus::Dma {
        write_descriptors(&memory, layout.devices()).map_err(io::Error::other)?;
    }
    Ok(memory)
}

/// A number that no other guest on this host has at the moment, as far as sixteen bits go: what
/// the guest's network address is made of.
fn guest_id() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static GUESTS: AtomicU32 = AtomicU32::new(0);
    let nth = GUESTS.fetch_add(1, Ordering::Relaxed);
    std::process::id().wrapping_add(nth) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use lguest_switcher::GuestPhys;

    #[test]
    fn the_device_page_lies_directly_above_memory() {
        let memory = Vm::builder().build().unwrap().made.memory;
        let mut descriptors = [0; 24];
        memory.read(GuestPhys(64 << 20), &mut descriptors).unwrap();
        assert_eq!(descriptors[..2], [1, 0], "the first is a console");
        assert_eq!(descriptors[2..], [0; 22], "and there is no second");
    }
}
