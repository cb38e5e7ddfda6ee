//! The other machine: unicorn, which is QEMU's translator as a library.
//!
//! Unicorn never delivers an exception or an interrupt: it asks a hook. That suits [`Machine::step`], which doesn't
//! deliver either. But its core can deliver: `vmrun`, AMD's instruction that enters a virtual machine, may bring an
//! external interrupt along, which is delivered before the first instruction (AMD's manual, volume 2, section "Event
//! Injection"). So [`Machine::interrupt`] puts the state into a control block, and enters it.

use std::collections::HashSet;

use unicorn_engine::{Arch, Mode, Prot, RegisterX86 as Register, Unicorn, uc_error};

use crate::control_block;
use crate::hidden::{Image, at, set, set_msr};
use crate::machine::{Machine, Origin, Outcome};
use crate::state::{MEMORY, Segment, State, Table, gpr, sreg};

/// Physical addresses that no case can name: the instruction, the control block and what else `vmrun` needs.
const HOST: u32 = 0xf000_0000;
const HOST_CODE: u32 = HOST;
const CONTROL_BLOCK: u32 = HOST + 0x1000;
const HOST_SAVE: u32 = HOST + 0x2000;
const HOST_BYTES: u64 = 0x3000;

const VMRUN: [u8; 3] = [0x0f, 0x01, 0xd8];
const INVALID_OPCODE: u32 = 6;
const PAGE_FAULT: u32 = 14;
const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];

/// The bit of a task segment's type.
const BUSY: u16 = 2;

/// The model called "qemu64", which has `vmrun`.
const MODEL: i32 = 0;
/// Where a run would end, if it didn't end by itself. Of any other address unicorn would look up the page afterwards.
const NOWHERE: u64 = 0;

/// What the hook was told.
#[derive(Default)]
struct Heard {
    vector: Option<u32>,
}

/// Unicorn as a [`Machine`].
pub struct UnicornMachine {
    unicorn: Unicorn<'static, Heard>,
    image: Image,
    /// The image of a processor to which nothing has happened.
    pristine: Vec<u8>,
    /// Linear addresses of what it has translated and hasn't forgotten.
    translated: HashSet<u32>,
}

impl UnicornMachine {
    /// A processor with [`MEMORY`] bytes.
    ///
    /// # Panics
    /// If unicorn isn't as expected.
    #[must_use]
    pub fn new() -> Self {
        let mut unicorn = Unicorn::new_with_data(Arch::X86, Mode::MODE_32, Heard::default())
            .expect("a processor");
        unicorn.ctl_set_cpu_model(MODEL).expect("a model");
        unicorn.mem_map(0, MEMORY as u64, Prot::ALL).expect("memory");
        unicorn.mem_map(HOST.into(), HOST_BYTES, Prot::ALL).expect("memory");
        unicorn.mem_write(HOST_CODE.into(), &VMRUN).expect("memory");
        let hear = |unicorn: &mut Unicorn<'_, Heard>, vector| {
            unicorn.get_data_mut().vector = Some(vector);
            unicorn.emu_stop().expect("a stop");
        };
        unicorn.add_intr_hook(hear).expect("a hook");
        let image = Image::new(&mut unicorn);
        let pristine = image.copy();
        Self { unicorn, image, pristine, translated: HashSet::new() }
    }

    fn set(&mut self, register: Register, value: u32) {
        set(&mut self.unicorn, register, value.into());
    }

    fn get(&self, register: Register) -> u32 {
        self.unicorn.reg_read(register).expect("a register") as u32
    }

    fn set_segment(&mut self, at: usize, segment: Segment) {
        self.image.set_dword(at, segment.selector.into());
        self.image.set_qword(at + 8, segment.base);
        self.image.set_dword(at + 16, segment.limit);
        // The limit's upper bits, which a descriptor has between, aren't looked at there.
        self.image.set_dword(at + 20, u32::from(segment.attributes) << 8);
    }

    fn segment(&self, at: usize) -> Segment {
        Segment {
            selector: self.image.dword(at) as u16,
            base: self.image.dword(at + 8),
            limit: self.image.dword(at + 16),
            attributes: (self.image.dword(at + 20) >> 8) as u16 & 0xf0ff,
        }
    }

    fn table(&self, at: usize) -> Table {
        let Segment { base, limit, .. } = self.segment(at);
        Table { base, limit: limit as u16 }
    }

    /// All registers.
    fn load_registers(&mut self, state: &State) {
        let pristine = std::mem::take(&mut self.pristine);
        self.image.overwrite(&pristine);
        self.pristine = pristine;
        for (number, &value) in state.gpr.iter().enumerate() {
            self.image.set_qword(at::GPR + 8 * number, value);
        }
        for (number, &segment) in state.segments.iter().enumerate() {
            self.set_segment(at::SEGMENTS + at::SEGMENT * number, segment);
        }
        self.set_segment(at::LDTR, state.ldtr);
        // Unicorn remembers a task segment as available, and wouldn't go on with a busy one.
        self.set_segment(at::TR, Segment { attributes: state.tr.attributes & !BUSY, ..state.tr });
        for (at, table) in [(at::GDTR, state.gdtr), (at::IDTR, state.idtr)] {
            let Table { base, limit } = table;
            self.set_segment(at, Segment { base, limit: limit.into(), ..Segment::default() });
        }
        self.image.set_dword(at::HIDDEN_FLAGS, hidden_flags(state));
        self.image.restore(self.unicorn.get_handle());
        // These have consequences inside, which the interface sees to.
        self.set(Register::CR0, state.cr0);
        self.set(Register::CR2, state.cr2);
        self.set(Register::CR3, state.cr3);
        self.set(Register::CR4, state.cr4);
        self.set(Register::EFLAGS, state.eflags);
        let debug = [
            Register::DR0,
            Register::DR1,
            Register::DR2,
            Register::DR3,
            Register::DR6,
            Register::DR7,
        ];
        for (register, value) in debug.into_iter().zip(state.dr) {
            self.set(register, value);
        }
        for (number, value) in SYSENTER.into_iter().zip(state.sysenter) {
            set_msr(&mut self.unicorn, number, value.into());
        }
        self.set(Register::EIP, state.eip);
        self.unicorn.ctl_flush_tlb().expect("a flush");
        self.forget_translations(state);
        self.image.save(self.unicorn.get_handle());
    }

    /// Translations of instructions aren't dropped when memory is written from here. To drop all of them takes a
    /// millisecond, so that is done only when one would be met.
    fn forget_translations(&mut self, state: &State) {
        let address = state.linear_eip();
        if !self.translated.insert(address) {
            self.unicorn.ctl_flush_tb().expect("a flush");
            self.translated = HashSet::from([address]);
        }
    }

    /// Where the next instruction is, by the image.
    fn linear_eip(&self) -> u32 {
        let base = self.segment(at::SEGMENTS + at::SEGMENT * sreg::CS).base;
        base.wrapping_add(self.get(Register::EIP))
    }

    /// Runs one instruction from where it is.
    fn run(&mut self, eip: u32) -> Result<(), uc_error> {
        self.unicorn.get_data_mut().vector = None;
        self.unicorn.emu_start(eip.into(), NOWHERE, 0, 1)
    }

    /// What came of it: `start` is the linear address of an instruction, from which every completed one has moved on.
    fn judge(&mut self, result: Result<(), uc_error>, start: u32) -> Outcome {
        let engine = self.unicorn.get_handle();
        self.image.save(engine);
        let linear = self.linear_eip();
        let moved = linear != start;
        self.translated.insert(linear);
        let vector = match result {
            Ok(()) => self.unicorn.get_data().vector,
            Err(uc_error::INSN_INVALID) => Some(INVALID_OPCODE),
            Err(_) => return Outcome::Beyond,
        };
        match vector {
            None => Outcome::Done,
            Some(vector) if self.is_software() => Outcome::Software(vector as u8),
            // The next instruction couldn't be fetched.
            Some(PAGE_FAULT) if moved => Outcome::Done,
            Some(vector) => {
                let has_error = matches!(vector, 8 | 10..=14 | 17);
                Outcome::Exception {
                    vector: vector as u8,
                    error: has_error.then(|| self.image.error()),
                }
            }
        }
    }

    /// Whether the last interruption came from an instruction that is meant to make one.
    fn is_software(&self) -> bool {
        self.image.is_software()
    }
}

impl Default for UnicornMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine for UnicornMachine {
    fn load(&mut self, state: &State) {
        self.unicorn.mem_write(0, &state.memory).expect("memory");
        self.load_registers(state);
    }

    fn step(&mut self) -> Outcome {
        // A far transfer may go to the same eip in another segment.
        let (start, eip) = (self.linear_eip(), self.get(Register::EIP));
        let result = self.run(eip);
        self.judge(result, start)
    }

    /// To unicorn all of them are external ones.
    fn interrupt(&mut self, vector: u8, _: Origin) -> Outcome {
        let state = self.save();
        let block = control_block::with_interrupt(&state, vector);
        self.unicorn.mem_write(CONTROL_BLOCK.into(), &block).expect("memory");
        self.load_registers(&host_of(&state));
        // The instruction there is always the same.
        self.translated.remove(&HOST_CODE);
        set_msr(&mut self.unicorn, EFER, EFER_SVME);
        set_msr(&mut self.unicorn, VM_HSAVE_PA, HOST_SAVE.into());
        let result = self.run(HOST_CODE);
        let outcome = self.judge(result, state.linear_eip());
        // The vector stands where exceptions are named, so it is heard of once it has been delivered. A handler may begin
        // at the very eip that was interrupted, but something has been pushed.
        let esp = self.image.dword(at::GPR + 8 * gpr::ESP);
        let delivered = self.get(Register::EIP) != state.eip || esp != state.gpr[gpr::ESP];
        match outcome {
            Outcome::Exception { vector: heard, .. } if delivered && heard == vector => {
                Outcome::Done
            }
            outcome => outcome,
        }
    }

    fn save(&self) -> State {
        let mut state = State::default();
        for (number, value) in state.gpr.iter_mut().enumerate() {
            *value = self.image.dword(at::GPR + 8 * number);
        }
        for (number, segment) in state.segments.iter_mut().enumerate() {
            *segment = self.segment(at::SEGMENTS + at::SEGMENT * number);
        }
        state.ldtr = self.segment(at::LDTR);
        state.tr = self.segment(at::TR);
        state.tr.attributes |= if state.tr.is_loaded() { BUSY } else { 0 };
        state.gdtr = self.table(at::GDTR);
        state.idtr = self.table(at::IDTR);
        state.eip = self.get(Register::EIP);
        state.eflags = self.get(Register::EFLAGS);
        state.cr0 = self.get(Register::CR0);
        state.cr2 = self.get(Register::CR2);
        state.cr3 = self.get(Register::CR3);
        state.cr4 = self.get(Register::CR4);
        let debug = [
            Register::DR0,
            Register::DR1,
            Register::DR2,
            Register::DR3,
            Register::DR6,
            Register::DR7,
        ];
        state.dr = debug.map(|register| self.get(register));
        state.sysenter = self.image.sysenter();
        self.unicorn.mem_read(0, &mut state.memory).expect("memory");
        state
    }
}

/// The flags that unicorn's translator keeps beside eflags, as far as segments decide them: the current level,
/// 32-bit code, a 32-bit stack, and whether any base but zero is about.
fn hidden_flags(state: &State) -> u32 {
    let segments = &state.segments;
    let big = |number: usize| u32::from(segments[number].attributes >> 14 & 1);
    let based = [sreg::ES, sreg::SS, sreg::DS].iter().any(|&number| segments[number].base != 0);
    let add_bases = u32::from(based || big(sreg::CS) == 0);
    u32::from(state.cpl()) | big(sreg::CS) << 4 | big(sreg::SS) << 5 | add_bases << 6
}

/// The state in which the host executes `vmrun`: flat segments at level 0, no paging; the rest as the guest will have it.
fn host_of(guest: &State) -> State {
    let mut host = guest.clone();
    host.cr0 = 1;
    host.eflags = 2;
    for (number, segment) in host.segments.iter_mut().enumerate() {
        let kind = if number == sreg::CS { 0xc09b } else { 0xc093 };
        if !matches!(number, sreg::FS | sreg::GS) {
            *segment = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: kind };
        }
    }
    host.gpr[gpr::EAX] = CONTROL_BLOCK;
    host.eip = HOST_CODE;
    host
}
