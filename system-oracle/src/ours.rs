//! Our machine: the bare processor of `lguest-processor`.

use std::sync::Arc;

use lguest_processor::bare::{Bare, Board, Event, Left, Source, Stop};
use lguest_processor::{SystemSegment, TableRegister};
use lguest_switcher::{Gpr, SegmentRegister};
use lguest_switcher::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, View};

use crate::machine::{Delivers, End, Machine, Origin, Outcome};
use crate::state::{MEMORY, Segment, State, Table};

const REGISTERS: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];
const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];
/// The debug registers that there are.
const DEBUG: [usize; 6] = [0, 1, 2, 3, 6, 7];

/// A board with nothing on it.
struct Empty;

impl Board for Empty {}

/// The bare processor as a [`Machine`].
pub struct OurMachine {
    bare: Bare<Empty>,
    memory: Arc<GuestMemory>,
    /// What is to be delivered since the last step.
    pending: Option<Event>,
}

impl OurMachine {
    /// A processor with [`MEMORY`] bytes.
    ///
    /// # Panics
    /// If this machine can't run one.
    #[must_use]
    pub fn new() -> Self {
        let memory = Arc::new(GuestMemory::new(MEMORY as u32).expect("memory"));
        let bare = Bare::new(Arc::clone(&memory), Empty).expect("a processor");
        Self { bare, memory, pending: None }
    }

    /// Writes the pages that are to hold something else than they do.
    fn load_memory(&self, wanted: &[u8]) {
        let mut page = [0; PAGE_SIZE as usize];
        for (number, wanted) in wanted.chunks(page.len()).enumerate() {
            let at = GuestPhys(number as u32 * PAGE_SIZE);
            self.memory.read(at, &mut page).expect("memory");
            if page != wanted {
                self.memory.write(at, wanted).expect("memory");
            }
        }
    }

    fn load_system(&mut self, state: &State) {
        let registers = &mut self.bare.system.registers;
        (registers.cr0, registers.cr2) = (state.cr0, state.cr2);
        (registers.cr3, registers.cr4) = (state.cr3, state.cr4);
        (registers.gdt, registers.idt) = (table(state.gdtr), table(state.idtr));
        (registers.ldt, registers.task) = (system_segment(state.ldtr), system_segment(state.tr));
        for (number, value) in DEBUG.into_iter().zip(state.dr) {
            registers.set_debug(number, value).expect("no alias");
        }
        let [cs, esp, eip] = state.sysenter;
        (registers.fast_call.cs, registers.fast_call.esp, registers.fast_call.eip) = (cs, esp, eip);
    }

    fn enter(&mut self, event: &Event) -> Outcome {
        self.bare.note(event);
        match self.bare.enter(event) {
            Ok(()) => Outcome::Done,
            Err(exception) => {
                let event = Event::from(exception);
                self.bare.note(&event);
                Outcome::Exception { vector: event.vector, error: event.error }
            }
        }
    }
}

/// Whether eip is at the instruction that raised it.
fn is_fault(event: &Event) -> bool {
    const INT1: u8 = 1;
    matches!(event.source, Source::Exception { .. }) && event.vector != INT1
}

fn table(table: Table) -> TableRegister {
    TableRegister { base: GuestVirt(table.base), limit: table.limit.into() }
}

fn system_segment(segment: Segment) -> SystemSegment {
    let Segment { selector, base, limit, attributes } = segment;
    let table = TableRegister { base: GuestVirt(base), limit };
    SystemSegment { selector, table, kind: (attributes & 0xf) as u8 }
}

fn shown(segment: SystemSegment) -> Segment {
    let SystemSegment { selector, table, kind } = segment;
    let present = if segment.is_null() { 0 } else { 0x80 };
    Segment {
        selector,
        base: table.base.0,
        limit: table.limit,
        attributes: u16::from(kind) | present,
    }
}

impl Default for OurMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine for OurMachine {
    fn load(&mut self, state: &State) {
        self.pending = None;
        self.load_memory(&state.memory);
        self.load_system(state);
        let vcpu = &mut self.bare.vcpu;
        for (register, value) in REGISTERS.into_iter().zip(state.gpr) {
            vcpu.cpu.set_gpr(register, value);
        }
        for (register, segment) in SEGMENTS.into_iter().zip(state.segments) {
            let Segment { selector, base, limit, attributes } = segment;
            let segment = lguest_switcher::Segment { selector, base, limit, attributes };
            vcpu.cpu.set_segment(register, segment);
        }
        vcpu.cpu.set_eip(state.eip);
        vcpu.cpu.set_eflags(state.eflags);
        vcpu.cpu.set_fpu_trap(state.cr0 & 0xc != 0);
        for view in [View::Kernel, View::AllUsers] {
            vcpu.unmap_all(view);
        }
    }

    fn step(&mut self) -> Outcome {
        let start = self.bare.vcpu.cpu.eip();
        match self.bare.execute() {
            Left::Going => Outcome::Done,
            Left::Stopped(_) if self.bare.vcpu.cpu.eip() != start => Outcome::Done,
            Left::Stopped(_) => Outcome::Beyond,
            Left::Raised(event) if is_fault(&event) && self.bare.vcpu.cpu.eip() != start => {
                // A load of ss holds the single step back, so that the next instruction has been tried as well.
                Outcome::Done
            }
            Left::Raised(event) => {
                self.bare.note(&event);
                self.pending = Some(event);
                match event.source {
                    Source::Software { .. } => Outcome::Software(event.vector),
                    _ => Outcome::Exception { vector: event.vector, error: event.error },
                }
            }
        }
    }

    fn interrupt(&mut self, vector: u8, origin: Origin) -> Outcome {
        let source = match origin {
            Origin::External => Source::External,
            Origin::Software => Source::Software { length: 2 },
        };
        self.enter(&Event { vector, error: None, source })
    }

    fn save(&self) -> State {
        let mut state = State::default();
        let cpu = &self.bare.vcpu.cpu;
        state.gpr = REGISTERS.map(|register| cpu.gpr(register));
        state.segments = SEGMENTS.map(|register| {
            let lguest_switcher::Segment { selector, base, limit, attributes } =
                cpu.segment(register);
            Segment { selector, base, limit, attributes }
        });
        (state.eip, state.eflags) = (cpu.eip(), cpu.eflags());
        let registers = &self.bare.system.registers;
        (state.cr0, state.cr2) = (registers.cr0, registers.cr2);
        (state.cr3, state.cr4) = (registers.cr3, registers.cr4);
        let table = |table: TableRegister| Table { base: table.base.0, limit: table.limit as u16 };
        (state.gdtr, state.idtr) = (table(registers.gdt), table(registers.idt));
        (state.ldtr, state.tr) = (shown(registers.ldt), shown(registers.task));
        // 6 and 7 have no other name.
        state.dr = DEBUG.map(|number| registers.debug(number).expect("no alias"));
        let call = registers.fast_call;
        state.sysenter = [call.cs, call.esp, call.eip];
        self.memory.read(GuestPhys(0), &mut state.memory).expect("memory");
        state
    }
}

impl Delivers for OurMachine {
    fn deliver(&mut self, _: Outcome) -> Outcome {
        let event = self.pending.take().expect("something to be delivered");
        self.enter(&event)
    }

    fn step_and_deliver(&mut self) -> End {
        match self.bare.step() {
            None => End::Running,
            Some(Stop::Shutdown { .. }) => End::Shutdown,
            Some(stop) => unreachable!("{stop:?}"),
        }
    }
}
