//! The virtual CPU: the loop that ties translation, execution and emulation together.

use crate::address::GuestVirt;
use crate::cpu::{Cpu, SegmentRegister};
use crate::environment::{Environment, Mapping, PageFault};
use crate::execute::SetupError;
use crate::execute::kick::Kicker;
use crate::exit::{Exception, Exit};
use crate::memory::GuestMemory;
use iced_x86::Instruction;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// What a virtual CPU is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the kernel's half of the virtual addresses begins: a multiple of 16 MiB, 0 for
    /// "everything". Above it all address spaces look the same to the kernel, so one window serves
    /// them all.
    pub kernel_start: GuestVirt,
    /// Bytes of translated code that are kept: 1 MiB to 1 GiB, a multiple of the page size.
    pub code_cache: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { kernel_start: GuestVirt(0xc000_0000), code_cache: 64 << 20 }
    }
}

/// One of the guest's user address spaces, as the Switcher keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpaceId(pub(crate) u32);

/// Which of the shadows of the guest's page tables is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// What the kernel sees from `kernel_start` up, in every address space.
    Kernel,
    /// What user code sees in one address space.
    User(SpaceId),
    /// What user code sees, in every address space.
    AllUsers,
}

/// What a virtual CPU has done so far: plain counters, which only ever grow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Pieces of code translated.
    pub units: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Times the code cache was emptied because it was full.
    pub cache_flushes: u64,
    /// Host faults in translated code.
    pub faults: u64,
    /// Mappings made, in runs.
    pub mappings: u64,
    /// Instructions carried out by the interpreter.
    pub emulated: u64,
    /// Instructions whose operand went through a buffer.
    pub bounced: u64,
    /// Frames whose code was dropped because it was written to.
    pub code_writes: u64,
    /// Windows emptied because the process had too many mappings.
    pub windows_dropped: u64,
}

/// A virtual CPU.
///
/// It belongs to the thread it was made on, because between runs the guest's x87 registers stay in the
/// processor; [`park`](Vcpu::park) takes it to another.
pub struct Vcpu {
    /// The registers, free to be read and changed between runs.
    pub cpu: Cpu,
    _of_this_thread: PhantomData<*const ()>,
}

/// A virtual CPU on its way from one thread to another.
pub struct ParkedVcpu {}

impl ParkedVcpu {
    /// Makes the virtual CPU belong to the calling thread.
    ///
    /// # Errors
    /// When the thread's signal stack or timer can't be set up.
    pub fn unpark(self) -> Result<Vcpu, SetupError> {
        unimplemented!()
    }
}

#[allow(unused_variables)]
impl Vcpu {
    /// A virtual CPU on `memory`, with one (empty, current) user address space; at level 0, with
    /// flat segments, and everything else as after reset.
    ///
    /// # Errors
    /// What this machine lacks, and what would help.
    pub fn new(memory: Arc<GuestMemory>, config: Config) -> Result<Self, SetupError> {
        unimplemented!()
    }

    /// Runs guest code until something happens that the embedder must decide.
    pub fn run(&mut self, env: &mut dyn Environment) -> Exit {
        unimplemented!()
    }

    /// A handle that makes [`run`](Self::run) and [`wait`](Self::wait) come back.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        unimplemented!()
    }

    /// Sleeps until kicked, the alarm rings, or `timeout` has passed; perhaps less. The kick
    /// still makes the next [`run`](Self::run) come back at once.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        unimplemented!()
    }

    /// Kicks this virtual CPU once, `after` from now; replaces the alarm set earlier. `None` takes
    /// it back.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        unimplemented!()
    }

    /// Prepares this virtual CPU to move to another thread.
    #[must_use]
    pub fn park(self) -> ParkedVcpu {
        unimplemented!()
    }

    /// Another user address space, empty.
    ///
    /// # Errors
    /// When there is no address space for its window.
    pub fn create_space(&mut self) -> Result<SpaceId, SetupError> {
        unimplemented!()
    }

    /// Gives a user address space back.
    ///
    /// # Panics
    /// When it is the current one.
    pub fn destroy_space(&mut self, space: SpaceId) {
        unimplemented!()
    }

    /// Makes `space` the one that user code runs in.
    pub fn switch_space(&mut self, space: SpaceId) {
        unimplemented!()
    }

    /// The user address space that is current.
    #[must_use]
    pub fn current_space(&self) -> SpaceId {
        unimplemented!()
    }

    /// Shows a run of pages ahead of need. In a user view only what has `user` set may be shown.
    pub fn map(&mut self, view: View, mapping: Mapping) {
        unimplemented!()
    }

    /// Forgets what `pages` pages from `page` on show; the next access asks the environment.
    pub fn unmap(&mut self, view: View, page: GuestVirt, pages: u32) {
        unimplemented!()
    }

    /// Forgets everything a view shows.
    pub fn unmap_all(&mut self, view: View) {
        unimplemented!()
    }

    /// What a view shows at one page: a run of one. `None` for [`View::AllUsers`].
    #[must_use]
    pub fn mapped(&self, view: View, page: GuestVirt) -> Option<Mapping> {
        unimplemented!()
    }

    /// Goes through the runs a view shows, by rising address; those of
    /// [`View::AllUsers`] one space after the other.
    pub fn for_each_mapped(&self, view: View, f: &mut dyn FnMut(Mapping)) {
        unimplemented!()
    }

    /// Reads virtual memory as the guest would, at level 3 when `user`, else as its kernel.
    ///
    /// # Errors
    /// The page fault the guest would get. What lies before the faulting page has been read.
    pub fn read_virt(
        &mut self,
        env: &mut dyn Environment,
        at: GuestVirt,
        into: &mut [u8],
        user: bool,
    ) -> Result<(), PageFault> {
        unimplemented!()
    }

    /// Writes virtual memory as the guest would, at level 3 when `user`, else as its kernel.
    ///
    /// # Errors
    /// The page fault the guest would get; nothing is written then.
    pub fn write_virt(
        &mut self,
        env: &mut dyn Environment,
        at: GuestVirt,
        from: &[u8],
        user: bool,
    ) -> Result<(), PageFault> {
        unimplemented!()
    }

    /// The linear address of `instruction`'s memory operand of `len` bytes, checked against its segment.
    ///
    /// # Errors
    /// #GP or #SS, as the segment demands.
    pub fn linear_address(
        &self,
        instruction: &Instruction,
        len: u32,
        write: bool,
    ) -> Result<GuestVirt, Exception> {
        unimplemented!()
    }

    /// Loads a segment register as `mov` to it does, with all checks. The state is unchanged on error.
    ///
    /// # Errors
    /// #GP, #NP, #SS or #PF, as the descriptor demands.
    pub fn load_segment(
        &mut self,
        env: &mut dyn Environment,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<(), Exception> {
        unimplemented!()
    }

    /// Carries out a protected-mode 32-bit `iret` to the same or an outer level. The state is unchanged on error.
    ///
    /// # Errors
    /// The exception it raises.
    pub fn iret(&mut self, env: &mut dyn Environment) -> Result<(), Exception> {
        unimplemented!()
    }

    /// Watches `range` (first address, bytes) for stores by absolute operand: see
    /// [`set_pending`](Self::set_pending). All translated code is dropped when it changes.
    pub fn set_watch(&mut self, range: Option<(GuestVirt, u32)>) {
        unimplemented!()
    }

    /// While set, a store to the watched range makes [`run`](Self::run) come back with
    /// [`Exit::Watched`].
    pub fn set_pending(&mut self, pending: bool) {
        unimplemented!()
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        unimplemented!()
    }
}
