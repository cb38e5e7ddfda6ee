//! Guests of a few instructions each, laid out in memory as the launcher would.
//!
//! A test says what the kernel does, maybe what a trap handler and user code do, and looks at what
//! is left in memory when the guest has ended. Code notes what it sees in the *results*, an
//! array of words. The page tables are the launcher's own, with three user pages beside the linear map.
//! Guests are of the first generation, unless a test names another: `later.rs` says what these do differently.

#![allow(unreachable_pub, reason = "shared by several test programs, none of which uses all of it")]
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

mod later;

pub use later::*;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::generation::{ArgumentRegister, CALL_WORDS};
use lguest_abi::hypercall::{Hypercall, POWER_OFF_MESSAGE, VECTOR};
use lguest_abi::lguest_data::{HCALL_RING_SIZE, Layout, offset};
use lguest_abi::segments::{
    FLAT_KERNEL_CODE, FLAT_KERNEL_DATA, FLAT_USER_CODE, FLAT_USER_DATA, KERNEL_DS, USER_CS, USER_DS,
};
use lguest_host::Stop;
use lguest_host::{Bus, DeviceIo, Devices, EmptyBus, End, Event, Generation, GuestMemory};
use lguest_host::{GuestPhys, InterruptLines, Kill, Machine, MachineConfig, NoDevices, Sections};
use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the kernel's linear map adds.
pub const PAGE_OFFSET: u32 = 0xc000_0000;
/// Bytes of memory. One device page follows.
pub const MEMORY: u32 = 2 << 20;
/// The launcher's page directory, and the one linear page table.
pub const DIRECTORY: u32 = MEMORY - 0x1000;
pub const LINEAR_TABLE: u32 = MEMORY - 0x2000;
/// Where things are in physical memory.
pub const DATA: u32 = 0x2000;
pub const RESULTS: u32 = 0x3000;
pub const GDT: u32 = 0x4000;
pub const MESSAGE: u32 = 0x5000;
pub const USER_TABLE: u32 = 0x6000;
/// For a test to use as it likes: a page.
pub const SCRATCH: u32 = 0x7000;
/// Top of the stack for traps from user mode, in the second of two pages.
pub const TRAP_STACK: u32 = 0x9ff0;
/// Top of the kernel's stack.
pub const STACK: u32 = 0xbff0;
pub const CODE: u32 = 0x1_0000;
/// Each handler has 256 bytes.
pub const HANDLERS: u32 = 0x2_0000;
/// First of the three frames that user code has: code, data, stack.
pub const USER_FRAMES: u32 = 0x3_0000;
/// Frames that nothing uses.
pub const FREE: u32 = 0x4_0000;
/// Flags of a page table entry, as the processor sets them.
pub const ACCESSED: u32 = 0x20;
pub const DIRTY: u32 = 0x40;
/// Present, writable, user; and all that may be shown at once.
pub const FLAGS: u32 = 7;
pub const USED: u32 = FLAGS | ACCESSED | DIRTY;
/// User code's addresses.
pub const USER_CODE: u32 = 0x0800_0000;
pub const USER_DATA: u32 = USER_CODE + 0x1000;
pub const USER_STACK: u32 = USER_CODE + 0x2ff0;
pub const GUEST_ID: u16 = 7;
/// Longest time a guest may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub type Assembled = Result<(), IcedError>;

/// The kernel's address for a physical one.
pub const fn virt(phys: u32) -> u32 {
    PAGE_OFFSET + phys
}

/// An assembler that knows how a guest speaks.
pub struct Code {
    assembler: CodeAssembler,
    generation: Generation,
}

impl Deref for Code {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.assembler
    }
}

impl DerefMut for Code {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.assembler
    }
}

impl Code {
    /// Any words as a hypercall, as far as there are registers for them.
    pub fn raw_hypercall<const N: usize>(&mut self, words: [u32; N]) -> Assembled {
        self.load_call(words)?;
        self.int(i32::from(VECTOR))
    }

    /// The same, up to the instruction that calls.
    pub fn load_call<const N: usize>(&mut self, words: [u32; N]) -> Assembled {
        let arguments =
            self.generation.argument_registers().iter().map(|register| match register {
                ArgumentRegister::Ebx => ebx,
                ArgumentRegister::Ecx => ecx,
                ArgumentRegister::Edx => edx,
                ArgumentRegister::Esi => esi,
            });
        for (register, word) in [eax].into_iter().chain(arguments).zip(words) {
            self.mov(register, word)?;
        }
        Ok(())
    }

    pub fn hypercall(&mut self, call: Hypercall) -> Assembled {
        self.raw_hypercall(call.encode())
    }

    /// Notes a register in a slot of the results.
    pub fn note(&mut self, slot: u32, register: AsmRegister32) -> Assembled {
        self.mov(dword_ptr(virt(RESULTS + slot * 4)), register)
    }

    /// Notes a number.
    pub fn note_number(&mut self, slot: u32, number: u32) -> Assembled {
        self.mov(dword_ptr(virt(RESULTS + slot * 4)), number)
    }

    /// Counts in a slot.
    pub fn count(&mut self, slot: u32) -> Assembled {
        self.inc(dword_ptr(virt(RESULTS + slot * 4)))
    }

    /// Stores to a field of LguestData.
    pub fn set_field(&mut self, field: u32, value: u32) -> Assembled {
        self.mov(dword_ptr(virt(DATA + field)), value)
    }

    pub fn enable_interrupts(&mut self) -> Assembled {
        self.set_field(offset::IRQ_ENABLED, 512)
    }

    pub fn power_off(&mut self) -> Assembled {
        self.hypercall(Hypercall::Crash { message: Phys(MESSAGE) })
    }

    /// Goes to user mode, with interrupts as they are. The data segments are loaded before, since
    /// the way out nulls those that are too good for level 3.
    pub fn enter_user(&mut self) -> Assembled {
        self.mov(eax, u32::from(USER_DS))?;
        self.mov(ds, eax)?;
        self.mov(es, eax)?;
        self.push(u32::from(USER_DS))?;
        self.push(USER_STACK)?;
        self.push(0x202u32)?;
        self.push(u32::from(USER_CS))?;
        self.push(USER_CODE)?;
        self.iretd()
    }
}

/// A gate's two words.
pub fn gate_words(handler: u32, kind: u32, level: u32) -> (u32, u32) {
    (handler & 0xffff | 0x60 << 16, handler & 0xffff_0000 | 0x8000 | level << 13 | kind << 8)
}

pub fn load_gate(vector: u32, handler: u32, kind: u32, level: u32) -> Hypercall {
    let (low, high) = gate_words(handler, kind, level);
    Hypercall::LoadIdtEntry { vector, low, high }
}

/// A guest in the making.
pub struct TinyGuest {
    pub memory: Arc<GuestMemory>,
    pub generation: Generation,
    /// How its LguestData looks.
    pub layout: &'static Layout,
    /// Where interrupts are raised by other threads than its own.
    pub lines: InterruptLines,
    /// What it did to its devices, if it has any.
    pub bus: Recorder,
    /// The page tables that it runs with, once it has booted.
    pub root: u32,
    entry: u32,
    gates: Vec<Hypercall>,
}

impl TinyGuest {
    /// One of the first generation.
    pub fn new() -> Self {
        Self::of(Generation::First)
    }

    /// Memory as the launcher leaves it, and a GDT with user segments that isn't loaded yet.
    pub fn of(generation: Generation) -> Self {
        let memory = GuestMemory::new(MEMORY + 0x1000).expect("memory for a tiny guest");
        let lines = InterruptLines::default();
        let guest = Self {
            memory: Arc::new(memory),
            generation,
            layout: &generation.layouts()[0],
            bus: Recorder::new(lines.clone()),
            lines,
            root: DIRECTORY,
            entry: virt(CODE),
            gates: Vec::new(),
        };
        guest.put_word(DIRECTORY + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
        for page in 0..MEMORY / 0x1000 {
            guest.put_word(LINEAR_TABLE + page * 4, (page * 0x1000) | 7);
        }
        guest.put_word(DIRECTORY + (USER_CODE >> 22) * 4, USER_TABLE | 7);
        for page in 0..3 {
            guest.put_word(USER_TABLE + page * 4, (USER_FRAMES + page * 0x1000) | 7);
        }
        guest.put(MESSAGE, POWER_OFF_MESSAGE.as_bytes());
        let descriptors = [FLAT_KERNEL_CODE, FLAT_KERNEL_DATA, FLAT_USER_CODE, FLAT_USER_DATA];
        for (index, descriptor) in (12..).zip(descriptors) {
            guest.put(GDT + index * 8, &descriptor.to_le_bytes());
        }
        guest.say_what_it_is();
        if generation.starts_with_page_tables() { guest } else { guest.entered_low() }
    }

    pub fn put(&self, phys: u32, bytes: &[u8]) {
        self.memory.write(GuestPhys(phys), bytes).expect("inside the tiny guest");
    }

    pub fn put_word(&self, phys: u32, word: u32) {
        self.put(phys, &word.to_le_bytes());
    }

    /// The same, in a chain.
    pub fn with_word(self, phys: u32, word: u32) -> Self {
        self.put_word(phys, word);
        self
    }

    pub fn word(&self, phys: u32) -> u32 {
        self.memory.read_u32(GuestPhys(phys)).expect("inside the tiny guest")
    }

    /// Puts an entry into the ring, pending.
    pub fn queue(&self, slot: u32, call: Hypercall) {
        self.queue_words(slot, call.encode());
    }

    /// The same, for what may be no call at all.
    pub fn queue_words(&self, slot: u32, words: [u32; CALL_WORDS]) {
        for (at, word) in ring_entry(self.layout, slot, words) {
            self.put_word(DATA + at, word);
        }
        self.put(DATA + self.layout.hcall_status + slot, &[0]);
    }

    /// Puts a `Dma` with these sections into memory.
    pub fn put_dma(&self, at: u32, used: u32, sections: &[(u32, u16)]) {
        self.put(at, &[0; 100]);
        self.put_word(at, used);
        for (index, (start, len)) in (0..).zip(sections) {
            self.put_word(at + 4 + index * 4, *start);
            self.put(at + 68 + index * 2, &len.to_le_bytes());
        }
    }

    /// Assembles code that runs at a virtual address, and puts it at a physical one.
    pub fn code(&self, at: u32, phys: u32, write: impl FnOnce(&mut Code) -> Assembled) {
        let assembler = CodeAssembler::new(32).expect("32-bit code");
        let mut code = Code { assembler, generation: self.generation };
        write(&mut code).expect("correct instructions");
        let bytes = code.assemble(u64::from(at)).expect("code that fits together");
        self.put(phys, &bytes);
    }

    /// Code for a vector. The gate is loaded when the kernel boots.
    pub fn gate(
        mut self,
        vector: u32,
        kind: u32,
        level: u32,
        write: impl FnOnce(&mut Code) -> Assembled,
    ) -> Self {
        let phys = HANDLERS + vector * 256;
        self.code(virt(phys), phys, write);
        self.gates.push(load_gate(vector, virt(phys), kind, level));
        self
    }

    /// An interrupt gate of level 0.
    pub fn handler(self, vector: u32, write: impl FnOnce(&mut Code) -> Assembled) -> Self {
        self.gate(vector, 0xe, 0, write)
    }

    /// A handler that notes what was pushed, from slot 0 on, and ends the guest. `words` counts them.
    pub fn reporting(self, vector: u32, words: u32) -> Self {
        self.handler(vector, |c| {
            for slot in 0..words {
                c.mov(eax, dword_ptr(esp + slot * 4))?;
                c.note(slot, eax)?;
            }
            c.mov(ebp, esp)?;
            c.note(words, ebp)?;
            c.power_off()
        })
    }

    /// What user code does.
    pub fn user(self, write: impl FnOnce(&mut Code) -> Assembled) -> Self {
        self.code(USER_CODE, USER_FRAMES, write);
        self
    }

    /// The very first instructions that run with page tables, and nothing else.
    pub fn bare(self, write: impl FnOnce(&mut Code) -> Assembled) -> Self {
        self.code(virt(CODE), CODE, write);
        self
    }

    /// A kernel that has a stack, a GDT, a trap stack and its gates, with interrupts off; at the end it powers off.
    pub fn kernel(mut self, write: impl FnOnce(&mut Code) -> Assembled) -> Self {
        let gates = std::mem::take(&mut self.gates);
        let beginning = self.beginning();
        self.bare(|c| {
            c.mov(esp, virt(STACK))?;
            for call in beginning {
                c.hypercall(call)?;
            }
            let segment = u32::from(KERNEL_DS);
            c.hypercall(Hypercall::SetStack { segment, esp: Virt(virt(TRAP_STACK)), pages: 2 })?;
            for gate in gates {
                c.hypercall(gate)?;
            }
            write(c)?;
            c.power_off()
        })
    }

    pub fn run(self) -> Outcome {
        self.run_with(&mut NoDevices)
    }

    pub fn run_with(self, devices: &mut dyn Devices) -> Outcome {
        let trace = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&trace);
        let mut machine = self.machine();
        machine.set_tracer(Some(Box::new(move |event: &Event| {
            lines.lock().expect("no test panics in a tracer").push(event.to_string());
        })));
        let end = run_patiently(&mut machine, devices);
        let passes = machine.statistics().gate_passes;
        drop(machine);
        let trace = std::mem::take(&mut *trace.lock().expect("no test panics in a tracer"));
        Outcome { end, guest: self, trace, passes }
    }

    /// Runs it without anybody who watches, so that its system calls may pass by a gate.
    pub fn run_unwatched(self) -> Outcome {
        let mut machine = self.machine();
        let end = run_patiently(&mut machine, &mut NoDevices);
        let passes = machine.statistics().gate_passes;
        Outcome { end, guest: self, trace: Vec::new(), passes }
    }

    /// The same, with other things behind its ports.
    pub fn run_on(&self, bus: Box<dyn Bus>) -> End {
        run_patiently(&mut self.machine_on(bus), &mut NoDevices)
    }

    /// The machine alone, at its first instruction.
    pub fn machine(&self) -> Machine {
        self.machine_on(match self.generation {
            Generation::First => Box::new(EmptyBus),
            _ => Box::new(self.bus.clone()),
        })
    }

    fn machine_on(&self, bus: Box<dyn Bus>) -> Machine {
        Machine::new(MachineConfig {
            memory: Arc::clone(&self.memory),
            generation: self.generation,
            page_offset: PAGE_OFFSET,
            entry: self.entry,
            page_directory: GuestPhys(DIRECTORY),
            guest_id: GUEST_ID,
            lines: self.lines.clone(),
            bus,
        })
        .expect("a machine that can run guests")
    }
}

/// Runs a guest to its end, or to the end of our patience.
fn run_patiently(machine: &mut Machine, devices: &mut dyn Devices) -> End {
    let kicker = machine.kicker();
    // The thread ends as soon as the guest has, when the other end of the channel is dropped.
    let (_running, ended) = channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    machine.run(&mut Impatient { devices, until: Instant::now() + PATIENCE })
}

/// Devices that stop a guest which doesn't end by itself.
struct Impatient<'a> {
    devices: &'a mut dyn Devices,
    until: Instant,
}

impl Devices for Impatient<'_> {
    fn send(&mut self, key: GuestPhys, sections: &Sections, io: &mut DeviceIo<'_>) -> Option<u32> {
        self.devices.send(key, sections, io)
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop> {
        let late = Instant::now() >= self.until;
        late.then(|| Stop::Failed("the guest doesn't end".to_owned()))
            .or_else(|| self.devices.poll(io))
    }
}

/// What a guest left behind.
pub struct Outcome {
    pub end: End,
    pub guest: TinyGuest,
    pub trace: Vec<String>,
    /// Times it passed a gate for system calls.
    pub passes: u64,
}

impl Outcome {
    /// A word of the results.
    pub fn result(&self, slot: u32) -> u32 {
        self.guest.word(RESULTS + slot * 4)
    }

    pub fn field(&self, field: u32) -> u32 {
        self.guest.word(DATA + field)
    }

    pub fn status(&self, slot: u32) -> u8 {
        let status = GuestPhys(DATA + self.guest.layout.hcall_status + slot);
        self.guest.memory.read_u8(status).expect("in memory")
    }

    /// Checks that the guest came to its own end.
    #[track_caller]
    pub fn powered_off(self) -> Self {
        assert_eq!(self.end, End::PowerOff, "{:#?}", self.trace);
        self
    }

    /// Checks that the Host ended it, for this reason.
    #[track_caller]
    pub fn killed(self, kill: Kill) -> Self {
        assert_eq!(self.end, End::Killed(kill), "{:#?}", self.trace);
        self
    }
}

/// One guest of each generation that a test is about.
pub fn of_each<const N: usize>(generations: [Generation; N], test: impl Fn(TinyGuest)) {
    for generation in generations {
        println!("generation {generation}");
        test(TinyGuest::of(generation));
    }
}

/// A kernel that uses nothing but these instructions.
pub fn kernel(write: impl FnOnce(&mut Code) -> Assembled) -> Outcome {
    TinyGuest::new().kernel(write).run().powered_off()
}

/// Notes a field of LguestData.
pub fn note_field(c: &mut Code, slot: u32, field: u32) -> Assembled {
    c.mov(eax, dword_ptr(virt(DATA) + field))?;
    c.note(slot, eax)
}

/// Notes a word of virtual memory.
pub fn look(c: &mut Code, slot: u32, address: u32) -> Assembled {
    c.mov(eax, dword_ptr(address))?;
    c.note(slot, eax)
}

/// Goes round so often; spoils ecx.
pub fn spin(c: &mut Code, rounds: u32) -> Assembled {
    c.mov(ecx, rounds)?;
    let mut again = c.create_label();
    c.set_label(&mut again)?;
    c.dec(ecx)?;
    c.jne(again)
}

/// The first results.
pub fn results<const N: usize>(outcome: &Outcome) -> [u32; N] {
    std::array::from_fn(|slot| outcome.result(slot as u32))
}
