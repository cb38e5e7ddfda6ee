//! The virtual CPU: what ties translation, execution and emulation together.
//!
//! This file is its public face. Behind it:
//! - [`run`]: the loop;
//! - [`dispatch`]: from an eip to host code, translating where there is none;
//! - [`faults`]: what host faults mean to the guest;
//! - [`bounce`]: instructions whose operand goes through a buffer;
//! - [`breakpoints`]: breakpoints, and the traps behind an instruction;
//! - [`routes`]: what faults have taught;
//! - [`gates`]: ways between levels that nobody is asked about;
//! - [`code_store`], [`fetches`]: translated code, and the way to it; [`decoded`]: instructions that Rust saw not long ago;
//! - [`spaces`]: the worlds of kernel and users;
//! - [`guest_bus`]: memory for everything that Rust does in the guest's name.

mod bounce;
mod breakpoints;
mod code_store;
mod decoded;
mod dispatch;
mod faults;
mod fetches;
mod gates;
mod guest_bus;
mod routes;
mod run;
mod spaces;

use crate::address::{GuestVirt, PAGE_SIZE};
use crate::cpu::{Cpu, SegmentRegister};
use crate::emulate;
use crate::environment::{Environment, Mapping, PageFault};
use crate::execute::SetupError;
use crate::execute::alarm::Alarm;
use crate::execute::fpu::{Fpu, SavedFpu};
use crate::execute::kick::{Kick, Kicker};
use crate::execute::windows::{Slot, Windows};
use crate::execute::{mapping_account, signal_stack, signals};
use crate::exit::Exception;
use crate::frame::Frame;
use crate::memory::{CodeWrites, GuestMemory};
use crate::translate::Assumptions;
use bounce::Bounce;
use code_store::{CodeSegment, CodeStore};
use decoded::DecodedCache;
use faults::Fault;
use guest_bus::GuestBus;
use iced_x86::Instruction;
use routes::Routes;
use run::Resume;
use spaces::Spaces;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a virtual CPU is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the kernel's half of the virtual addresses begins: a multiple of 16 MiB, 0 for
    /// "everything". Above it all address spaces look the same to the kernel, so one window serves
    /// them all.
    pub kernel_start: GuestVirt,
    /// Bytes of translated code that are kept: 1 MiB to 1 GiB, a multiple of 8 KiB.
    pub code_cache: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { kernel_start: GuestVirt(0xc000_0000), code_cache: 64 << 20 }
    }
}

/// One of the guest's user address spaces, as the Switcher keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpaceId(pub(crate) u16);

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
    /// Times a [`CallGate`](crate::CallGate) was passed, either way.
    pub gate_passes: u64,
}

/// A virtual CPU.
///
/// It belongs to the thread it was made on, because between runs the guest's x87 registers stay in the
/// processor; [`park`](Vcpu::park) takes it to another.
///
/// What the embedder shows it of memory ([`map`](Vcpu::map), and what
/// [`Environment::translate`] answers) is kept until it is taken back
/// ([`unmap`](Vcpu::unmap)), as a processor's TLB would.
pub struct Vcpu {
    /// The registers, free to be read and changed between runs.
    pub cpu: Cpu,
    memory: Arc<GuestMemory>,
    spaces: Spaces,
    code: CodeStore,
    routes: Routes,
    /// The world that the frame is set up for: see `enter_world`.
    assumptions: Assumptions,
    segment: CodeSegment,
    frame: *const Frame,
    world_changed: bool,
    /// The operand in the bounce buffer.
    bounce: Option<Bounce>,
    /// [`GuestMemory::code_writes`] when it was last looked at.
    seen_writes: CodeWrites,
    /// Where the instruction behind a load of ss is, while that was the last one.
    new_stack_at: Option<u32>,
    /// The last page fault of this run, and how often it was repeated at once.
    last_fault: Option<Fault>,
    repeats: u32,
    watch: Option<(u32, u32)>,
    /// The instruction at eip goes alone: see [`breakpoints`].
    alone: bool,
    /// The instruction at eip has a breakpoint, which counts no more.
    looked_at: bool,
    /// Data breakpoints hit by an instruction behind which no trap comes.
    held: u32,
    statistics: Statistics,
    decoded: DecodedCache,
    /// Reused by each translation.
    bytes: Vec<u8>,
    kick: Arc<Kick>,
    alarm: Alarm,
    fpu: Fpu,
}

/// A virtual CPU on its way from one thread to another.
pub struct ParkedVcpu {
    parts: Parts,
    fpu: SavedFpu,
}

/// All of a virtual CPU that doesn't belong to a thread.
struct Parts {
    cpu: Cpu,
    memory: Arc<GuestMemory>,
    spaces: Spaces,
    code: CodeStore,
    routes: Routes,
    watch: Option<(u32, u32)>,
    held: u32,
    statistics: Statistics,
    kick: Arc<Kick>,
}

impl ParkedVcpu {
    /// Makes the virtual CPU belong to the calling thread.
    ///
    /// # Errors
    /// When the thread's signal stack or timer can't be set up.
    pub fn unpark(self) -> Result<Vcpu, SetupError> {
        Vcpu::on_this_thread(self.parts, self.fpu)
    }
}

impl Vcpu {
    /// A virtual CPU on `memory`, with one (empty, current) user address space; at level 0, with
    /// flat segments, and everything else as after reset.
    ///
    /// # Errors
    /// What this machine lacks, and what would help.
    pub fn new(memory: Arc<GuestMemory>, config: Config) -> Result<Self, SetupError> {
        let bytes = config.check()?;
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(SetupError::Processor("the BMI2 instructions"));
        }
        let windows = Windows::new(memory.clone(), mapping_account::limit());
        let parts = Parts {
            cpu: Cpu::new(Box::new(Frame::new())),
            memory,
            spaces: Spaces::new(windows, config.kernel_start)?,
            code: CodeStore::new(bytes)?,
            routes: Routes::default(),
            watch: None,
            held: 0,
            statistics: Statistics::default(),
            kick: Arc::new(Kick::default()),
        };
        Self::on_this_thread(parts, SavedFpu::initial())
    }

    fn on_this_thread(parts: Parts, fpu: SavedFpu) -> Result<Self, SetupError> {
        signals::install()?;
        signal_stack::install()?;
        let alarm = Alarm::new(parts.kick.clone())?;
        parts.kick.belongs_to(signals::this_thread());
        Ok(Self {
            assumptions: parts.cpu.assumptions(),
            cpu: parts.cpu,
            spaces: parts.spaces,
            code: parts.code,
            routes: parts.routes,
            segment: CodeSegment::FLAT,
            frame: std::ptr::null(),
            world_changed: true,
            bounce: None,
            seen_writes: parts.memory.code_writes().long_before(),
            memory: parts.memory,
            new_stack_at: None,
            last_fault: None,
            repeats: 0,
            watch: parts.watch,
            alone: false,
            looked_at: false,
            held: parts.held,
            statistics: parts.statistics,
            decoded: DecodedCache::new(),
            bytes: Vec::new(),
            kick: parts.kick,
            alarm,
            fpu: Fpu::new(fpu),
        })
    }

    /// Prepares this virtual CPU to move to another thread. An alarm that is set doesn't ring.
    #[must_use]
    pub fn park(self) -> ParkedVcpu {
        self.kick.belongs_to(0);
        let fpu = self.fpu.release();
        let parts = Parts {
            cpu: self.cpu,
            memory: self.memory,
            spaces: self.spaces,
            code: self.code,
            routes: self.routes,
            watch: self.watch,
            held: self.held,
            statistics: self.statistics,
            kick: self.kick,
        };
        ParkedVcpu { parts, fpu }
    }

    /// A handle that makes [`run`](Self::run) and [`wait`](Self::wait) come back.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        Kicker(self.kick.clone())
    }

    /// Sleeps until kicked, the alarm rings, or `timeout` has passed; perhaps less. Coming back
    /// answers the kicks there were, so that the next sleep is one again: the caller does now what
    /// it does after [`Exit::Kicked`](crate::Exit::Kicked).
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.kick.wait(timeout);
        self.kick.take();
    }

    /// Kicks this virtual CPU once, `after` from now; replaces the alarm set earlier. `None` takes
    /// it back.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        self.alarm.set(after);
    }

    /// Another user address space, empty.
    ///
    /// # Errors
    /// When there is no address space for its window.
    pub fn create_space(&mut self) -> Result<SpaceId, SetupError> {
        self.spaces.create().map(|slot| SpaceId(slot.0))
    }

    /// Gives a user address space back.
    ///
    /// # Panics
    /// When it is the current one.
    pub fn destroy_space(&mut self, space: SpaceId) {
        self.spaces.destroy(Slot(space.0));
    }

    /// Makes `space` the one that user code runs in. One that doesn't exist is ignored.
    pub fn switch_space(&mut self, space: SpaceId) {
        self.spaces.switch(Slot(space.0));
        self.world_changed = true;
    }

    /// The user address space that is current.
    #[must_use]
    pub fn current_space(&self) -> SpaceId {
        SpaceId(self.spaces.current().0)
    }

    /// Shows a run of pages ahead of need. A user's view gets only what has `user` set. Physical
    /// addresses without memory are left out.
    pub fn map(&mut self, view: View, mapping: Mapping) {
        for slot in self.spaces.slots(view) {
            if slot == self.spaces.kernel() || mapping.user {
                self.statistics.mappings += 1;
                self.forget_changed_code(slot, &mapping);
                self.spaces.map(slot, &mapping, &mut self.statistics.windows_dropped);
            }
        }
    }

    /// Forgets what `pages` pages from `page` on show; the next access asks the environment.
    pub fn unmap(&mut self, view: View, page: GuestVirt, pages: u32) {
        for slot in self.spaces.slots(view) {
            self.spaces.forget(slot, page.page_number(), pages);
        }
    }

    /// Forgets everything a view shows.
    pub fn unmap_all(&mut self, view: View) {
        for slot in self.spaces.slots(view) {
            self.spaces.forget_all(slot);
        }
    }

    /// What a view shows at one page: a run of one. `None` for [`View::AllUsers`].
    #[must_use]
    pub fn mapped(&self, view: View, page: GuestVirt) -> Option<Mapping> {
        let slot = match view {
            View::Kernel => self.spaces.kernel(),
            View::User(SpaceId(space)) => Slot(space),
            View::AllUsers => return None,
        };
        self.spaces.windows.shown(slot, page.page_number())
    }

    /// Goes through the runs a view shows, by rising address; those of
    /// [`View::AllUsers`] one space after the other. Pages that were only executed are among them.
    pub fn for_each_mapped(&self, view: View, f: &mut dyn FnMut(Mapping)) {
        for slot in self.spaces.slots(view) {
            self.spaces.windows.for_each_run(slot, f);
        }
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
        self.bus(env, user).copy_out(at, into)
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
        self.bus(env, user).copy_in(at, from)
    }

    /// Asks whether [`write_virt`](Self::write_virt) of `len` bytes would succeed.
    ///
    /// # Errors
    /// The page fault that it would meet.
    pub fn check_write(
        &mut self,
        env: &mut dyn Environment,
        at: GuestVirt,
        len: u32,
        user: bool,
    ) -> Result<(), PageFault> {
        self.bus(env, user).probe(at, len as usize)
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
        emulate::linear_address(&self.cpu, instruction, len, write)
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
        let user = self.cpu.cpl() == 3;
        let mut bus = GuestBus::new(env, &self.spaces, &self.memory, user);
        emulate::load_segment(&mut self.cpu, &mut bus, register, selector)
    }

    /// Descriptors have changed that were [settled](Environment::is_settled): those at these indexes of the global table. Segment
    /// registers keep what they were loaded with.
    pub fn descriptors_changed(&mut self, entries: std::ops::Range<u16>) {
        self.cpu.unsettle(entries);
    }

    /// Carries out a protected-mode `iret` with operands of `size` bytes (4 for `iretd`, 2 for
    /// `iretw`) to the same or an outer level. The state is unchanged on error.
    ///
    /// # Errors
    /// The exception it raises.
    pub fn iret(&mut self, env: &mut dyn Environment, size: u32) -> Result<(), Exception> {
        let user = self.cpu.cpl() == 3;
        let mut bus = GuestBus::new(env, &self.spaces, &self.memory, user);
        emulate::iret(&mut self.cpu, &mut bus, size)
    }

    /// The last instruction was a `mov` or `pop` to ss: no interrupt may be delivered before the next one has been
    /// executed (SDM volume 3, section "Masking Exceptions and Interrupts When Switching Stacks").
    #[must_use]
    pub fn holds_interrupts(&self) -> bool {
        self.new_stack_at == Some(self.cpu.eip())
    }

    /// Watches `range` (first address, bytes) for stores by absolute operand: see
    /// [`set_pending`](Self::set_pending). All translated code is dropped when it changes.
    pub fn set_watch(&mut self, range: Option<(GuestVirt, u32)>) {
        let watch = range.map(|(start, bytes)| (start.0, start.0.saturating_add(bytes)));
        if watch != self.watch {
            self.watch = watch;
            self.empty_cache();
        }
    }

    /// While set, a store to the watched range makes [`run`](Self::run) come back with
    /// [`Exit::Watched`](crate::Exit::Watched).
    pub fn set_pending(&mut self, pending: bool) {
        self.cpu.frame.pending = u32::from(pending);
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics { gate_passes: self.cpu.frame.gates.passes, ..self.statistics }
    }

    fn bus<'a>(&'a self, env: &'a mut dyn Environment, user: bool) -> GuestBus<'a> {
        GuestBus::new(env, &self.spaces, &self.memory, user)
    }

    /// Drops code whose frame has been written to through [`GuestMemory`], and says how to go on.
    #[cold]
    fn drop_written_code(&mut self, resume: Resume) -> Resume {
        let now = self.memory.code_writes();
        let only = now.only_since(self.seen_writes);
        self.seen_writes = now;
        let stale = self.code.stale_frames(only, |frame| self.memory.code_version(frame));
        for &frame in &stale {
            self.routes.note_write(frame, Instant::now());
            self.drop_frame(frame);
        }
        if stale.is_empty() {
            return resume;
        }
        Resume::Eip
    }

    /// Drops all code that was read from `frame`, and lets it be written again.
    fn drop_frame(&mut self, frame: u32) {
        self.statistics.code_writes += 1;
        let dropped = self.code.drop_frame(frame);
        self.spaces.forget_code(&dropped);
        self.release_frame(frame);
    }

    /// Drops the code of one page.
    fn drop_page(&mut self, page: u32, frame: u32) {
        let dropped = self.code.drop_page(page, frame);
        self.spaces.forget_code(&dropped);
    }

    /// Drops all code.
    fn empty_cache(&mut self) {
        self.statistics.cache_flushes += 1;
        let frames = self.code.drop_all();
        self.spaces.forget_all_code();
        for frame in frames {
            self.release_frame(frame);
        }
    }

    /// `frame` holds no translated code any more.
    fn release_frame(&mut self, frame: u32) {
        // Our own doing, unless somebody else has written as well.
        if let Some(now) = self.memory.unmark_code(frame)
            && now.only_since(self.seen_writes).is_some()
        {
            self.seen_writes = now;
        }
        self.spaces.windows.unprotect_frame(frame);
    }
}

impl Config {
    /// The size of the code cache, everything checked.
    fn check(&self) -> Result<u32, SetupError> {
        if !self.kernel_start.0.is_multiple_of(1 << 24) {
            return Err(SetupError::Config("kernel_start must be a multiple of 16 MiB"));
        }
        match u32::try_from(self.code_cache) {
            Ok(bytes @ 0x10_0000..=0x4000_0000) if bytes.is_multiple_of(2 * PAGE_SIZE) => Ok(bytes),
            _ => Err(SetupError::Config(
                "the code cache must have 1 MiB to 1 GiB, in multiples of 8 KiB",
            )),
        }
    }
}
