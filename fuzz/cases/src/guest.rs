//! Guests that do anything: whatever a guest says or runs, it alone may end.
//!
//! Each case is a kernel that makes random hypercalls, directly and by the ring, writes random words into
//! its tables, runs random bytes at level 1 and at level 3, and goes on behind every trap. How it
//! ends doesn't matter, as long as it does, and nobody panics. Debug builds check the Switcher's own
//! rules along the way.

use crate::code::{self, Code};
use crate::tiny_guest::{Code as Assembler, *};
use arbitrary::{Arbitrary, Result, Unstructured};
use iced_x86::code_asm::*;
use lguest_abi::generation::CALL_WORDS;
use lguest_abi::lguest_data::{Layout, offset};
use lguest_abi::segments::{USER_CS, USER_DS};
use lguest_host::{DeviceIo, Devices, End, Generation, GuestPhys, Kicker, Sections, Stop};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, Once};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How often a guest is kicked.
const BEAT: Duration = Duration::from_millis(4);
/// Kicks and sleeps after which a guest is stopped, if it has had [`ENOUGH`] time too.
const POLLS: u32 = 6;
/// Time that each guest may take.
const ENOUGH: Duration = Duration::from_millis(16);
/// Traps after which a guest has seen enough.
const TRAPS: u32 = 300;
/// The most that a kernel does.
const STEPS: usize = 16;

/// One thing that the kernel does.
#[derive(Clone, Debug)]
enum Step {
    Hypercall([u32; CALL_WORDS]),
    /// An entry in the ring, pending.
    Queue(u32, [u32; CALL_WORDS]),
    /// A store by virtual address.
    Store(u32, u32),
    /// A store to a word of one of the tables that the Host reads.
    Table(u32, u32),
    /// Bytes that are run as they are.
    Bytes(Code),
    Interrupts(bool),
    /// Interrupts of the devices' own, a bit for each.
    Raise(u32),
}

/// A whole guest.
#[derive(Clone, Debug)]
pub struct Case {
    generation: Generation,
    /// Its page tables have three levels.
    wide: bool,
    registers: [u32; 7],
    user: Code,
    flags: u32,
    /// The user's code is a page that it may write, as its data.
    writable_code: bool,
    /// The key for which there is input.
    input: u32,
    /// What it does, as long as there are bytes.
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let flags = u.arbitrary()?;
        let kind = Kind(u.arbitrary()?);
        let generation = kind.generation();
        let wide = kind.wide() && generation.may_have_three_levels();
        let mut case = Self {
            generation,
            wide,
            flags,
            writable_code: kind.writable_code(),
            input: place(u)?,
            registers: words(u)?,
            user: code::code(u, word)?,
            steps: Vec::new(),
        };
        while !u.is_empty() && case.steps.len() < STEPS {
            case.steps.push(step(u, generation)?);
        }
        Ok(case)
    }
}

/// What a byte says about a guest. When there was only the first generation, it had its lowest bit alone.
#[derive(Clone, Copy)]
struct Kind(u8);

impl Kind {
    fn writable_code(self) -> bool {
        self.0 & 1 != 0
    }

    fn wide(self) -> bool {
        self.0 & 2 != 0
    }

    fn generation(self) -> Generation {
        Generation::ALL[usize::from(self.0 >> 2) % Generation::ALL.len()]
    }
}

fn step(u: &mut Unstructured<'_>, generation: Generation) -> Result<Step> {
    let last = if generation == Generation::First { 13 } else { 16 };
    Ok(match u.int_in_range(0..=last)? {
        0..=3 => Step::Hypercall(hypercall(u, generation)?),
        4..=6 => Step::Queue(u.int_in_range(0..=63)?, hypercall(u, generation)?),
        7 => Step::Store(word(u)?, word(u)?),
        8 | 9 => Step::Table(place(u)? & 0x1f_fffc, word(u)?),
        10..=12 => Step::Bytes(code::code(u, word)?),
        13 => Step::Interrupts(u.arbitrary()?),
        14 => Step::Raise(u.int_in_range(0..=7)?),
        _ => Step::Table(wide_place(u)?, word(u)?),
    })
}

fn hypercall(u: &mut Unstructured<'_>, generation: Generation) -> Result<[u32; CALL_WORDS]> {
    if generation == Generation::First {
        return Ok([u.int_in_range(0..=17)?, word(u)?, word(u)?, word(u)?, 0]);
    }
    // The last word is the upper half of an entry: most often nothing.
    let number = u.int_in_range(0..=20)?;
    Ok([number, word(u)?, word(u)?, word(u)?, if u.arbitrary()? { word(u)? } else { 0 }])
}

fn words<const N: usize>(u: &mut Unstructured<'_>) -> Result<[u32; N]> {
    let mut words = [0; N];
    for to in &mut words {
        *to = word(u)?;
    }
    Ok(words)
}

/// A physical address that means something.
fn place(u: &mut Unstructured<'_>) -> Result<u32> {
    #[rustfmt::skip]
    const PLACES: [u32; 17] = [
        DATA, RESULTS, GDT, MESSAGE, USER_TABLE, SCRATCH, TRAP_STACK, STACK, CODE, HANDLERS,
        USER_FRAMES, FREE, DIRECTORY, LINEAR_TABLE, MEMORY, MEMORY + 0x1000, 0,
    ];
    let place = *u.choose(&PLACES)?;
    let near = u.arbitrary()?;
    Ok(if near { place.wrapping_add_signed(u.int_in_range(-16..=4095)?) } else { place })
}

/// A word of the tables of three levels.
fn wide_place(u: &mut Unstructured<'_>) -> Result<u32> {
    const TABLES: [u32; 5] =
        [POINTERS, MIDDLE_LOW, MIDDLE_HIGH, WIDE_LINEAR_TABLE, WIDE_USER_TABLE];
    // Most often an entry that is used, rather than any.
    let index = match u.int_in_range(0..=3)? {
        0 => u.int_in_range(0..=511)?,
        1 => USER_CODE >> 21,
        _ => u.int_in_range(0..=3)?,
    };
    let upper = u.int_in_range(0..=7)? == 7;
    Ok(*u.choose(&TABLES)? + index * 8 + if upper { 4 } else { 0 })
}

/// A word that may mean something: a number, an address, a page table entry, half a descriptor.
fn word(u: &mut Unstructured<'_>) -> Result<u32> {
    const ADDRESSES: [u32; 5] = [USER_CODE, USER_DATA, USER_STACK, 0xffc0_0000, 0xffff_fffc];
    Ok(match u.int_in_range(0..=6)? {
        0 => u.int_in_range(0..=39)?,
        1 => place(u)?,
        2 => place(u)?.wrapping_add(PAGE_OFFSET),
        3 => place(u)? & !0xfff | u.int_in_range(0..=0x1ff)?,
        4 => *u.choose(&ADDRESSES)?,
        5 => u.int_in_range(0..=0xff)?,
        _ => u.arbitrary()?,
    })
}

/// Behind a trap: on with the next byte, until it has been enough. `error` says that the processor has
/// pushed a code.
fn go_on(c: &mut Assembler, error: bool) -> Assembled {
    let mut enough = c.create_label();
    c.inc(dword_ptr(virt(RESULTS)).ss())?;
    c.cmp(dword_ptr(virt(RESULTS)).ss(), TRAPS)?;
    c.ja(enough)?;
    if error {
        c.lea(esp, dword_ptr(esp + 4))?;
    }
    c.inc(dword_ptr(esp))?;
    c.iretd()?;
    c.set_label(&mut enough)?;
    c.power_off()
}

impl Case {
    /// The guest of this case.
    fn guest(&self) -> TinyGuest {
        let mut guest = TinyGuest::of(self.generation);
        if self.wide {
            guest = guest.wide();
        }
        let layout = guest.layout;
        for vector in (0..32).filter(|vector| ![2, 8, 15, 31].contains(vector)) {
            let error = matches!(vector, 10..=14 | 17);
            guest = guest.gate(vector, 0xe, vector % 4, |c| go_on(c, error));
        }
        for vector in [32, 33, 128] {
            guest = guest.gate(vector, 0xe, 3, |c| c.iretd());
        }
        guest.put(USER_FRAMES, &self.user.0);
        if !self.writable_code {
            guest.put_word(USER_TABLE, USER_FRAMES | 5);
            if self.wide {
                guest.put_word(WIDE_USER_TABLE, USER_FRAMES | 5);
            }
        }
        guest.kernel(|c| {
            self.steps.iter().try_for_each(|step| step.assemble(c, layout))?;
            c.mov(eax, u32::from(USER_DS))?;
            c.mov(ds, eax)?;
            c.mov(es, eax)?;
            let frame = [u32::from(USER_DS), USER_STACK, self.flags, u32::from(USER_CS), USER_CODE];
            for word in frame {
                c.push(word as i32)?;
            }
            let all = [eax, ecx, edx, ebx, ebp, esi, edi];
            for (register, word) in all.into_iter().zip(self.registers) {
                c.mov(register, word)?;
            }
            c.iretd()
        })
    }

    /// Runs the guest to its end.
    #[must_use]
    pub fn run(&self) -> Outcome {
        watch_over_guests();
        let guest = self.guest();
        let mut machine = guest.machine();
        let thread = thread::current().id();
        RUNNING.lock().expect("nobody panics with it").insert(thread, machine.kicker());
        let end = machine.run(&mut Clock {
            start: Instant::now(),
            polls: 0,
            input: GuestPhys(self.input),
        });
        RUNNING.lock().expect("nobody panics with it").remove(&thread);
        if let End::Killed(kill) = &end {
            assert!(!kill.to_string().is_empty(), "every end has a sentence");
        }
        Outcome { end, traps: guest.word(RESULTS).min(TRAPS) }
    }
}

/// What became of a guest.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// How many traps its handlers saw, as far as it hasn't overwritten that.
    pub traps: u32,
}

impl Step {
    fn assemble(&self, c: &mut Assembler, layout: &Layout) -> Assembled {
        match self {
            Self::Hypercall(words) => c.raw_hypercall(*words),
            Self::Queue(slot, words) => {
                for (at, word) in ring_entry(layout, *slot, *words) {
                    c.set_field(at, word)?;
                }
                c.mov(byte_ptr(virt(DATA + layout.hcall_status + slot)), 0)
            }
            Self::Store(at, value) => c.mov(dword_ptr(*at), *value),
            Self::Table(at, value) => c.mov(dword_ptr(virt(*at)), *value),
            Self::Bytes(bytes) => c.db(&bytes.0),
            Self::Interrupts(on) => c.set_field(offset::IRQ_ENABLED, u32::from(*on) << 9),
            Self::Raise(irqs) => c.raise(*irqs),
        }
    }
}

/// Devices that have input, take all output, and stop a guest when it has had its time.
struct Clock {
    start: Instant,
    polls: u32,
    input: GuestPhys,
}

impl Devices for Clock {
    fn send(&mut self, _: GuestPhys, sections: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        Some(sections.iter().map(|(_, bytes)| u32::from(bytes)).sum())
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop> {
        self.polls += 1;
        // As the console does: until there is nothing left, or no room.
        let mut input = &b"some input"[..];
        while !input.is_empty()
            && let Ok(taken) = io.fill(self.input, input)
        {
            input = &input[taken..];
        }
        let over = self.polls >= POLLS && self.start.elapsed() > ENOUGH;
        over.then(|| Stop::Failed("it has had its time".to_owned()))
    }
}

/// Whom the watchman kicks.
static RUNNING: LazyLock<Mutex<HashMap<ThreadId, Kicker>>> = LazyLock::new(Mutex::default);

/// Kicks whoever runs, again and again.
fn watch_over_guests() {
    static ONCE: Once = Once::new();
    let watch = || {
        loop {
            thread::sleep(BEAT);
            RUNNING.lock().expect("nobody panics with it").values().for_each(Kicker::kick);
        }
    };
    ONCE.call_once(|| drop(thread::spawn(watch)));
}
