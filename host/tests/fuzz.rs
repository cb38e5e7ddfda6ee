//! Guests that do anything: whatever a guest says or runs, it alone may end.
//!
//! Each case is a kernel that makes random hypercalls, directly and by the ring, writes random words into
//! its tables, runs random bytes at level 1 and at level 3, and goes on behind every trap. How it
//! ends doesn't matter, as long as it does, and nobody panics. Debug builds check the Switcher's own
//! rules along the way.
//!
//! Runs for a second; for `LGUEST_FUZZ_SECONDS` when that is set. What ran last is kept in a file, for the
//! day when the whole process dies. What was found once is replayed each time, from
//! `fuzz.proptest-regressions`.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::lguest_data::offset;
use lguest_abi::segments::{USER_CS, USER_DS};
use lguest_host::{DeviceIo, Devices, End, GuestPhys, Kicker, Sections, Stop};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tiny_guest::*;

/// Longest time that a guest may take before it is stopped from outside.
const ENOUGH: Duration = Duration::from_millis(16);
/// Longest time until it has heard of that: a machine that does much else is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Traps after which a guest has seen enough.
const TRAPS: u32 = 300;

/// One thing that the kernel does.
#[derive(Clone, Debug)]
enum Step {
    Hypercall([u32; 4]),
    /// An entry in the ring, pending.
    Queue(u32, [u32; 4]),
    /// A store by virtual address.
    Store(u32, u32),
    /// A store to a word of one of the tables that the Host reads.
    Table(u32, u32),
    /// Bytes that are run as they are.
    Bytes(Vec<u8>),
    Interrupts(bool),
}

/// A whole guest.
#[derive(Clone, Debug)]
struct Case {
    steps: Vec<Step>,
    registers: [u32; 7],
    user: Vec<u8>,
    flags: u32,
    /// The user's code is a page that it may write, as its data.
    writable_code: bool,
}

/// A physical address that means something.
fn place() -> impl Strategy<Value = u32> {
    let places = [
        DATA,
        RESULTS,
        GDT,
        MESSAGE,
        USER_TABLE,
        SCRATCH,
        TRAP_STACK,
        STACK,
        CODE,
        HANDLERS,
        USER_FRAMES,
        FREE,
        DIRECTORY,
        LINEAR_TABLE,
        MEMORY,
        MEMORY + 0x1000,
        0,
    ];
    (proptest::sample::select(places.to_vec()), prop_oneof![Just(0), -16i32..4096])
        .prop_map(|(place, distance)| place.wrapping_add_signed(distance))
}

/// A word that may mean something: a number, an address, a page table entry, half a descriptor.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..40,
        place(),
        place().prop_map(|place| place.wrapping_add(PAGE_OFFSET)),
        (place(), 0u32..0x200).prop_map(|(place, flags)| place & !0xfff | flags),
        proptest::sample::select(vec![USER_CODE, USER_DATA, USER_STACK, 0xffc0_0000, 0xffff_fffc]),
        (0u32..32, 0u32..8).prop_map(|(index, low)| (index * 8) | low),
        any::<u32>(),
    ]
}

/// Instructions, nearly: an opcode of any kind, and an operand that has a chance.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix =
        proptest::sample::select(vec![0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65]);
    let opcode = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u8>().prop_map(|byte| vec![0x0f, byte]),
        any::<u8>().prop_map(|byte| vec![0x0f, 0x38, byte]),
        any::<u8>().prop_map(|byte| vec![0xd8 | byte & 7]),
        // Segments, tables, returns, strings, flags: what Rust does itself.
        proptest::sample::select(vec![
            vec![0x8e],
            vec![0x8c],
            vec![0x0f, 0x00],
            vec![0x0f, 0x01],
            vec![0xcf],
            vec![0xcb],
            vec![0xca],
            vec![0x9a],
            vec![0xea],
            vec![0xff],
            vec![0xa4],
            vec![0xab],
            vec![0x9c],
            vec![0x9d],
            vec![0xc8],
            vec![0x60],
            vec![0x61],
            vec![0x0f, 0xae],
            vec![0x0f, 0x20],
            vec![0x0f, 0x22],
            vec![0x0f, 0xb2],
            vec![0xc4],
            vec![0x62],
            vec![0x17],
            vec![0x07],
        ]),
    ];
    let operand = (any::<u8>(), proptest::option::of(word())).prop_map(|(modrm, word)| {
        let mut bytes = vec![modrm];
        bytes.extend(word.into_iter().flat_map(u32::to_le_bytes));
        bytes
    });
    let one = (proptest::collection::vec(prefix, 0..3), opcode, operand)
        .prop_map(|(prefixes, opcode, operand)| [prefixes, opcode, operand].concat());
    proptest::collection::vec(one, 1..24).prop_map(|code| code.concat())
}

fn hypercall() -> impl Strategy<Value = [u32; 4]> {
    (0u32..18, word(), word(), word()).prop_map(<[u32; 4]>::from)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => hypercall().prop_map(Step::Hypercall),
        3 => (0u32..64, hypercall()).prop_map(|(slot, call)| Step::Queue(slot, call)),
        1 => (word(), word()).prop_map(|(at, value)| Step::Store(at, value)),
        2 => (place(), word()).prop_map(|(at, value)| Step::Table(at & 0x1f_fffc, value)),
        3 => code().prop_map(Step::Bytes),
        1 => any::<bool>().prop_map(Step::Interrupts),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (
        proptest::collection::vec(step(), 0..12),
        [word(), word(), word(), word(), word(), word(), word()],
        code(),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(|(steps, registers, user, flags, writable_code)| Case {
            steps,
            registers,
            user,
            flags,
            writable_code,
        })
}

/// Behind a trap: on with the next byte, until it has been enough. `error` says that the processor has
/// pushed a code.
fn go_on(c: &mut Code, error: bool) -> Assembled {
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

/// The guest of a case.
fn guest(case: &Case) -> TinyGuest {
    let mut guest = TinyGuest::new();
    for vector in (0..32).filter(|vector| ![2, 8, 15, 31].contains(vector)) {
        let error = matches!(vector, 10..=14 | 17);
        guest = guest.gate(vector, 0xe, vector % 4, |c| go_on(c, error));
    }
    for vector in [32, 33, 128] {
        guest = guest.gate(vector, 0xe, 3, |c| c.iretd());
    }
    guest.put(USER_FRAMES, &case.user);
    if !case.writable_code {
        guest.put_word(USER_TABLE, USER_FRAMES | 5);
    }
    let Case { steps, registers, flags, .. } = case.clone();
    guest.kernel(|c| {
        for step in &steps {
            one_step(c, step)?;
        }
        c.mov(eax, u32::from(USER_DS))?;
        c.mov(ds, eax)?;
        c.mov(es, eax)?;
        for word in [u32::from(USER_DS), USER_STACK, flags, u32::from(USER_CS), USER_CODE] {
            c.push(word as i32)?;
        }
        let all = [eax, ecx, edx, ebx, ebp, esi, edi];
        for (register, word) in all.into_iter().zip(registers) {
            c.mov(register, word)?;
        }
        c.iretd()
    })
}

fn one_step(c: &mut Code, step: &Step) -> Assembled {
    match step {
        Step::Hypercall(words) => c.raw_hypercall(*words),
        Step::Queue(slot, words) => {
            for (index, word) in (0..).zip(words) {
                c.set_field(offset::HCALLS + slot * 16 + index * 4, *word)?;
            }
            c.mov(byte_ptr(virt(DATA + offset::HCALL_STATUS + slot)), 0)
        }
        Step::Store(at, value) => c.mov(dword_ptr(*at), *value),
        Step::Table(at, value) => c.mov(dword_ptr(virt(*at)), *value),
        Step::Bytes(bytes) => c.db(bytes),
        Step::Interrupts(on) => c.set_field(offset::IRQ_ENABLED, u32::from(*on) << 9),
    }
}

/// Devices that stop a guest when it has had its time.
struct Clock(Instant);

impl Devices for Clock {
    fn send(&mut self, _: GuestPhys, sections: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        Some(sections.iter().map(|(_, bytes)| u32::from(bytes)).sum())
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        (self.0.elapsed() > ENOUGH).then(|| Stop::Failed("it has had its time".to_owned()))
    }
}

/// Whom the watchman kicks.
static RUNNING: Mutex<Option<Kicker>> = Mutex::new(None);

/// Kicks whoever runs, again and again.
fn watch_over_guests() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(ENOUGH / 4);
            if let Some(kicker) = &*RUNNING.lock().expect("nobody panics with it") {
                kicker.kick();
            }
        }
    });
}

/// How it ended, after what time, and how many traps its handlers saw, as far as it hasn't overwritten that.
fn run(case: &Case) -> (End, Duration, u32) {
    let guest = guest(case);
    let mut machine = guest.machine();
    *RUNNING.lock().expect("nobody panics with it") = Some(machine.kicker());
    let start = Instant::now();
    let end = machine.run(&mut Clock(start));
    *RUNNING.lock().expect("nobody panics with it") = None;
    (end, start.elapsed(), guest.word(RESULTS).min(TRAPS))
}

#[test]
fn fuzz_whatever_a_guest_does() {
    watch_over_guests();
    let last = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz-last-case.txt");
    let seconds = std::env::var("LGUEST_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let mut ends = [0u64; 4];
    let traps = std::cell::Cell::new(0u64);
    while Instant::now() < until {
        let persistence = FileFailurePersistence::WithSource("proptest-regressions");
        let config = Config {
            cases: 100,
            source_file: Some(file!()),
            failure_persistence: Some(Box::new(persistence)),
            ..Config::default()
        };
        let mut runner = TestRunner::new(config);
        let counts = std::cell::RefCell::new(&mut ends);
        let result = runner.run(&case(), |case| {
            std::fs::write(&last, format!("{case:#x?}")).expect("a place for tests to write");
            let (end, took, seen) = run(&case);
            traps.set(traps.get() + u64::from(seen));
            let kind = match &end {
                End::PowerOff => 0,
                End::Crashed(_) => 1,
                End::Killed(kill) => {
                    prop_assert!(!kill.to_string().is_empty());
                    2
                }
                End::Stopped(_) => 3,
            };
            counts.borrow_mut()[kind] += 1;
            prop_assert!(took < PATIENCE, "it took {took:?} to stop it: {end:?}");
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }
    let [off, crashed, killed, stopped] = ends;
    println!("{off} powered off, {crashed} crashed, {killed} ended by the Host, {stopped} stopped");
    println!("their handlers saw {} traps", traps.get());
    assert!(off > 0 && killed > 0, "these guests are all the same");
}
