//! The Switcher alone, in a small world that changes under it: random code, in a random state, at levels
//! 0, 1 and 3.
//!
//! Each case is run twice. The first run is left alone. The second is *disturbed* in ways that must make no
//! difference to a guest: kicks, pages mapped ahead of need or forgotten, each instruction alone. So both must stop for the
//! same reasons, in the same states, with the same memory. What that memory should be, nobody here knows: that is the
//! oracle's business.
//!
//! - `case`: what bytes mean;
//! - `world`: pages and descriptors, and which frames may change at all;
//! - `answers`: what the embedder does about each exit, and to the world;
//! - `checks`: what must be so at each exit;
//! - this file: the two runs.

mod answers;
mod case;
mod checks;
mod world;

pub use case::Case;
use case::{Disturbance, SELECTORS, Start};
use checks::State;
use lguest_switcher::{
    Config, Exit, Gpr, GuestMemory, GuestPhys, GuestVirt, Segment, SegmentRegister, Vcpu,
};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{MEMORY, World};

/// Processor time after which a run has had enough, when there are many to come.
pub const ENOUGH: Duration = Duration::from_millis(4);
/// How much more a run may have that is disturbed.
const SLOWER: u32 = 5;
/// Longest time until it has heard of that.
const PATIENCE: Duration = Duration::from_secs(20);
/// Exits that there may be when nothing more is going to happen.
const BEHIND: usize = 12;

const GPR: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];

/// A virtual CPU and its world.
struct Machine {
    vcpu: Vcpu,
    memory: Arc<GuestMemory>,
    world: World,
    /// Each instruction alone, by TF.
    step: bool,
    /// A store to a watched range is told.
    watched: bool,
    /// A kick hasn't been answered.
    kicked: bool,
    /// A repeated string instruction has overwritten itself, between two of its steps.
    overwritten: bool,
}

/// What a run has shown.
struct Report {
    exits: Vec<(Exit, State)>,
    memory: Vec<u8>,
    /// It ended because it was over, and not because time was.
    whole: bool,
    overwritten: bool,
}

/// What became of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// How often the embedder was asked, in the first run.
    pub exits: usize,
    /// Whether both runs came to their ends, and could be compared.
    pub compared: bool,
}

impl Case {
    /// Runs the case twice, the first time for no more than `enough` of the processor's time.
    ///
    /// # Panics
    /// When something isn't as it must be.
    #[must_use]
    pub fn run(&self, enough: Duration) -> Outcome {
        let alone = self.run_once(None, enough);
        // Where there is nothing to compare, a glance is enough.
        let enough = if alone.whole { enough * SLOWER } else { enough };
        let disturbed = self.run_once(Some(&self.disturbance), enough);
        let mut compared = alone.whole && disturbed.whole && !self.asks_for_the_time();
        if compared && let Err(difference) = checks::same(&alone, &disturbed) {
            assert!(self.overwrites_itself(enough), "{difference}");
            compared = false;
        }
        Outcome { exits: alone.exits.len(), compared }
    }

    /// Whether there are the bytes of `rdtsc` anywhere: no two runs see the same time.
    fn asks_for_the_time(&self) -> bool {
        self.all_bytes().any(|bytes| bytes.windows(2).any(|pair| pair == [0x0f, 0x31]))
    }

    /// Whether a repeated string instruction overwrites itself. The processor goes on with the one it has
    /// fetched, but fetches again when it was interrupted between two steps: so a disturbance does make a difference.
    fn overwrites_itself(&self, enough: Duration) -> bool {
        let steps = Disturbance { kick: 0, alarm: 0, ahead: false, forget: false, step: true };
        self.run_once(Some(&steps), enough).overwritten
    }

    fn run_once(&self, disturbance: Option<&Disturbance>, enough: Duration) -> Report {
        let mut machine = Machine::new(self, disturbance);
        let before = machine.contents();
        let report = machine.run(self, disturbance, enough);
        machine.world.check_untouched(&before, &report.memory);
        report
    }
}

impl Machine {
    fn new(case: &Case, disturbance: Option<&Disturbance>) -> Self {
        let memory = Arc::new(GuestMemory::new(MEMORY).expect("memory"));
        memory.write(GuestPhys(0), &vec![case.fill; MEMORY as usize]).expect("all there is");
        let kernel_start = GuestVirt(case.start.kernel_start);
        let config = Config { kernel_start, code_cache: 1 << 20 };
        let vcpu = Vcpu::new(memory.clone(), config).expect("a machine that can run this");
        let world = World::new(case, vcpu.kicker(), disturbance);
        let step = disturbance.is_some_and(|disturbance| disturbance.step);
        let mut machine =
            Self { vcpu, memory, world, step, watched: false, kicked: false, overwritten: false };
        for (at, bytes) in &case.code {
            machine.world.store(&machine.memory, *at, &bytes.0);
        }
        machine.start(&case.start);
        machine
    }

    fn start(&mut self, start: &Start) {
        self.enter_level(start.level);
        for (register, value) in GPR.into_iter().zip(start.gpr) {
            self.vcpu.cpu.set_gpr(register, value);
        }
        self.vcpu.cpu.set_eip(start.eip);
        self.set_flags(start.flags);
        self.vcpu.cpu.set_fpu_trap(start.fpu_trap);
        for (register, selector) in SELECTORS.into_iter().zip(start.selectors) {
            // What the processor refuses isn't loaded.
            let _ = self.vcpu.load_segment(&mut self.world, register, selector);
        }
        if let Some(code) = self.world.code_segment(start.code, start.level) {
            self.vcpu.cpu.set_segment(SegmentRegister::Cs, code);
        }
        if let Some((at, bytes)) = start.watch {
            self.vcpu.set_watch(Some((GuestVirt(at), bytes)));
            self.vcpu.set_pending(true);
            self.watched = true;
        }
    }

    /// Flat segments of a level, as an interrupt or a return from one would load them.
    fn enter_level(&mut self, level: u16) {
        let (code, data) = (world::flat_code(level), world::flat_code(level) + 8);
        let cpu = &mut self.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(code));
        for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
            cpu.set_segment(register, Segment::flat_data(data));
        }
    }

    /// Sets the guest's flags; TF is ours.
    fn set_flags(&mut self, flags: u32) {
        let step = if self.step { lguest_switcher::cpu::TF } else { 0 };
        self.vcpu.cpu.set_eflags(flags & case::FLAGS | step);
    }

    fn contents(&self) -> Vec<u8> {
        let mut contents = vec![0; MEMORY as usize];
        self.memory.read(GuestPhys(0), &mut contents).expect("all there is");
        contents
    }

    fn run(&mut self, case: &Case, disturbance: Option<&Disturbance>, enough: Duration) -> Report {
        let (start, mut exits, mut steps) = (Instant::now(), Vec::new(), case.steps.iter());
        let (until, mut whole) = (processor_time() + enough, true);
        loop {
            let exit = self.run_until_exit(until, disturbance);
            assert!(start.elapsed() < PATIENCE, "it took {:?} to stop it", start.elapsed());
            let Some(exit) = exit else {
                whole = false;
                break;
            };
            exits.push((exit, State::of(&self.vcpu.cpu)));
            self.answer(&exit, case.start.eip, case.start.level);
            match steps.next() {
                Some(step) => self.take(step),
                None if exits.len() >= case.steps.len() + BEHIND => break,
                None => {}
            }
        }
        Report { exits, memory: self.contents(), whole, overwritten: self.overwritten }
    }
}

/// What this thread has had of the processor: on a machine that does much else, that says more than a clock.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a time since it began")
}
