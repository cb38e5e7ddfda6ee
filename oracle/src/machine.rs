//! The Switcher's side: a virtual CPU in the same small world.
//!
//! Frames of physical memory are the layout's regions, one behind the other, and behind them a
//! page of our own, which no case knows of: its code loads and stores the x87 and SSE registers
//! (`fxrstor`, `fxsave`) before and after a case.

use crate::layout::{Layout, PAGE};
use crate::state::{CODE_SELECTOR, Case, DATA_SELECTOR, End, FX_BYTES, FxImage, Outcome, State};
use crate::world::World;
use iced_x86::{Instruction, Mnemonic};
use lguest_switcher::{
    Access, Config, Environment, Exit, Gpr, GuestMemory, GuestPhys, GuestVirt, Mapping, PageFault,
    Segment, SegmentRegister, Vcpu,
};
use std::sync::Arc;
use std::time::Duration;

/// Where our own page is, in the middle of nowhere.
const OWN: u32 = 0x5a5a_5000;
/// Offset of `fxrstor [OWN+RESTORED]; int3`.
const RESTORE: u32 = 0;
/// Offset of `fxsave [OWN+SAVED]; int3`.
const SAVE: u32 = 0x20;
/// Offset of the image that is loaded.
const RESTORED: u32 = 0x400;
/// Offset of the image that is stored.
const SAVED: u32 = 0x800;

/// How long a case may take. Longer than any needs, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(3);

const GPR: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];
const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// How a case ended on the Switcher.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stop {
    /// As it could on the processor.
    End(End),
    /// `int n`; eip is behind it.
    Interrupt(u8),
    /// The embedder was asked to carry the instruction out.
    Privileged(Instruction),
    /// The Switcher says it can't.
    Unsupported(Instruction),
    /// The Switcher came back for a reason that this test gave it no reason for.
    Strange,
}

/// A virtual CPU that runs [`Case`]s.
pub struct Machine {
    vcpu: Vcpu,
    memory: Arc<GuestMemory>,
    pages: Pages,
    /// What memory holds, as far as it was read or written from here.
    known: Vec<u8>,
}

/// The page tables: what is where.
struct Pages {
    layout: Layout,
}

impl Pages {
    fn own_frame(&self) -> GuestPhys {
        GuestPhys(self.layout.len() as u32)
    }
}

impl Environment for Pages {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        let one = |phys: u32, writable| Mapping {
            virt: address.page(),
            phys: GuestPhys(phys),
            pages: 1,
            writable,
            user: true,
        };
        if address.page().0 == OWN {
            return Ok(one(self.own_frame().0, true));
        }
        let bits = u32::from(access == Access::Write) << 1 | u32::from(user) << 2;
        let Some((region, offset)) = self.layout.locate(address.0) else {
            return Err(PageFault { address, error: bits });
        };
        if access == Access::Write && !region.writable {
            return Err(PageFault { address, error: bits | 1 });
        }
        Ok(one(offset as u32 & !(PAGE - 1), region.writable))
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        Ok(World::descriptor(selector))
    }
}

impl Machine {
    /// A virtual CPU in a world of this layout.
    ///
    /// # Panics
    /// When the machine lacks what the Switcher needs.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let bytes = layout.len() as u32 + PAGE;
        let memory = Arc::new(GuestMemory::new(bytes).expect("memory for the guest"));
        let vcpu = Vcpu::new(Arc::clone(&memory), Config::default()).expect("a virtual CPU");
        let known = vec![0; layout.len()];
        let machine = Self { vcpu, memory, pages: Pages { layout }, known };
        machine.write_own(RESTORE, &fx_code(0x0d, RESTORED));
        machine.write_own(SAVE, &fx_code(0x05, SAVED));
        machine
    }

    /// Runs a case to its end.
    ///
    /// # Panics
    /// When the case's memory hasn't the layout's size.
    pub fn run(&mut self, case: &Case) -> (Stop, State) {
        self.fill_memory(&case.memory);
        self.write_own(RESTORED, &case.state.fx.0);
        self.run_own(RESTORE);
        self.load(&case.state);
        let stop = self.run_to_end();
        let mut state = self.state();
        self.run_own(SAVE);
        let mut image = [0; FX_BYTES];
        let at = self.pages.own_frame().wrapping_add(SAVED);
        self.memory.read(at, &mut image).expect("our own page");
        state.fx = FxImage(image);
        (stop, state)
    }

    /// What memory holds now, in the layout's order.
    pub fn memory(&mut self) -> &[u8] {
        self.memory.read(GuestPhys(0), &mut self.known).expect("all memory there is");
        &self.known
    }

    /// What the virtual CPU has done so far.
    #[must_use]
    pub fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Writes what isn't there already: code that stays the same needn't be translated again.
    fn fill_memory(&mut self, wanted: &[u8]) {
        const PIECE: usize = 64;
        assert_eq!(wanted.len(), self.known.len(), "the case's memory has the layout's size");
        self.memory();
        let pieces = self.known.chunks(PIECE).zip(wanted.chunks(PIECE));
        for (index, (_, new)) in pieces.enumerate().filter(|(_, (old, new))| old != new) {
            let at = GuestPhys((index * PIECE) as u32);
            self.memory.write(at, new).expect("all memory there is");
        }
    }

    fn write_own(&self, offset: u32, bytes: &[u8]) {
        let at = self.pages.own_frame().wrapping_add(offset);
        self.memory.write(at, bytes).expect("our own page");
    }

    /// Runs the code at `offset` of our own page, to its breakpoint.
    fn run_own(&mut self, offset: u32) {
        self.load(&State { eip: OWN + offset, ..State::default() });
        assert_eq!(self.run_to_end(), Stop::Interrupt(3), "fxsave and fxrstor work");
    }

    fn load(&mut self, state: &State) {
        for (register, value) in GPR.into_iter().zip(state.gpr) {
            self.vcpu.cpu.set_gpr(register, value);
        }
        for (register, selector) in SEGMENTS.into_iter().zip(state.segments) {
            self.vcpu.cpu.set_segment(register, segment(selector));
        }
        self.vcpu.cpu.set_eip(state.eip);
        self.vcpu.cpu.set_eflags(state.eflags | 2 | 1 << 9);
    }

    fn state(&self) -> State {
        let cpu = &self.vcpu.cpu;
        State {
            gpr: GPR.map(|register| cpu.gpr(register)),
            eip: cpu.eip(),
            eflags: cpu.eflags(),
            segments: SEGMENTS.map(|register| cpu.segment(register).selector),
            fx: FxImage::default(),
        }
    }

    fn run_to_end(&mut self) -> Stop {
        self.vcpu.set_alarm(Some(PATIENCE));
        let stop = match self.vcpu.run(&mut self.pages) {
            Exit::Exception(exception) => Stop::End(End::Exception {
                vector: exception.vector,
                error: exception.error.unwrap_or(0),
                address: exception.address.0,
            }),
            Exit::Debug(_) => Stop::End(End::Exception { vector: 1, error: 0, address: 0 }),
            Exit::SoftwareInterrupt { vector, .. } => Stop::Interrupt(vector),
            Exit::Privileged(instruction) => Stop::Privileged(instruction),
            Exit::Unsupported(instruction) => Stop::Unsupported(instruction),
            Exit::Kicked => Stop::End(End::Endless),
            Exit::Watched => Stop::Strange,
        };
        self.vcpu.set_alarm(None);
        stop
    }
}

/// Whether `stop` and `state` say the same as the processor's `outcome`, where the two have
/// different words for it: `int n` at level 3 is #GP on Linux, whose gates refuse it.
#[must_use]
pub fn in_processors_words(stop: Stop, state: State, outcome: &Outcome) -> (Stop, State) {
    let number = match stop {
        // Linux has gates of level 3 for these two.
        Stop::Interrupt(number @ (3 | 4)) => {
            return (Stop::End(End::Exception { vector: number, error: 0, address: 0 }), state);
        }
        Stop::Interrupt(number) => number,
        Stop::Privileged(instruction) if is_refused(&instruction) => {
            let end = End::Exception { vector: 13, error: 0, address: 0 };
            return (Stop::End(end), state);
        }
        _ => return (stop, state),
    };
    let error = u32::from(number) * 8 + 2;
    let refused = End::Exception { vector: 13, error, address: 0 };
    let passed = state.eip.wrapping_sub(outcome.state.eip);
    if outcome.end == refused && (2..=15).contains(&passed) {
        return (Stop::End(refused), State { eip: outcome.state.eip, ..state });
    }
    (stop, state)
}

/// Whether an instruction of the embedder's is #GP(0) for a Linux program, whatever it finds.
fn is_refused(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    #[rustfmt::skip]
    let refused = matches!(
        instruction.mnemonic(),
        M::Cli | M::Sti | M::Hlt | M::Clts | M::Invd | M::Wbinvd | M::Rdmsr | M::Wrmsr
            | M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Lmsw | M::Invlpg | M::Rdpmc
            | M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
    );
    refused
}

fn segment(selector: u16) -> Segment {
    match selector {
        CODE_SELECTOR => Segment::flat_code(selector),
        DATA_SELECTOR => Segment::flat_data(selector),
        _ => match World::descriptor(selector) {
            Some(raw) if selector > 3 => Segment::from_descriptor(selector, raw),
            _ => Segment { selector, ..Segment::default() },
        },
    }
}

/// `0F AE /r` with an absolute operand in our own page, and a breakpoint.
fn fx_code(modrm: u8, operand: u32) -> Vec<u8> {
    let mut code = vec![0x0f, 0xae, modrm];
    code.extend((OWN + operand).to_le_bytes());
    code.push(0xcc);
    code
}
