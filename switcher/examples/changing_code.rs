//! Prints what a store into code costs on this machine, once the engine has learned about it:
//! `cargo run --release --example changing_code`.
//!
//! Each line is the mean over a loop that stores and then runs what it stored, in the best of some
//! repetitions; the first repetition is the one that learns.

#[path = "../tests/guest/mod.rs"]
mod guest;

use guest::{DATA, Guest, USER};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::PAGE_SIZE;
use std::time::{Duration, Instant};

/// Stores in each repetition.
const ROUNDS: u32 = 5_000;
/// A function that returns a constant, in a page of its own, and that constant.
const FUNCTION: u32 = USER + 0x2000;
const CONSTANT: u32 = FUNCTION + 1;

/// What is measured, and how.
type Line = (&'static str, fn() -> Duration);

fn main() {
    let lines: [Line; 8] = [
        ("the next instruction of the running block", next_instruction),
        ("a function in the same page", || patched_function(USER + 0x800, USER + 0x801)),
        ("a function in another page", || patched_function(FUNCTION, CONSTANT)),
        ("the same through an alias of its frame", aliased),
        ("the target of a call, at its call site", call_site),
        ("data beside the code that is running", || beside(USER + 0xf00)),
        ("data beside other code that runs each time", || beside(FUNCTION + 0x800)),
        ("a function that a device writes", device),
    ];
    for (what, measure) in lines {
        println!("{what:<44} {:>8.2?}", measure());
    }
}

/// The cost of a round of the program at [`USER`].
fn per_round(guest: &mut Guest) -> Duration {
    let once = |guest: &mut Guest| {
        let start = Instant::now();
        guest.start_user(USER);
        guest.finish();
        start.elapsed()
    };
    (0..7).map(|_| once(guest)).min().unwrap_or_default() / ROUNDS
}

/// A program that does `body` in a loop, with the count in ecx, and a function.
fn looped(body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    function(&mut guest, FUNCTION);
    guest
}

fn function(guest: &mut Guest, at: u32) {
    guest.assemble(at, |a| {
        a.mov(eax, 0)?;
        a.ret()
    });
}

fn next_instruction() -> Duration {
    // Behind `mov ecx` (5 bytes) and the store itself (6) comes the opcode, then what is stored.
    let stored = USER + 12;
    per_round(&mut looped(|a| {
        a.mov(dword_ptr(stored), ecx)?;
        a.mov(eax, 0)
    }))
}

fn patched_function(at: u32, stored: u32) -> Duration {
    let mut guest = looped(|a| {
        a.mov(dword_ptr(stored), ecx)?;
        a.mov(edx, at)?;
        a.call(edx)
    });
    function(&mut guest, at);
    per_round(&mut guest)
}

fn aliased() -> Duration {
    let mut guest = looped(|a| {
        a.mov(dword_ptr(DATA + 1), ecx)?;
        a.mov(edx, FUNCTION)?;
        a.call(edx)
    });
    let page = guest.tables.pages[&(FUNCTION / PAGE_SIZE)];
    guest.tables.pages.insert(DATA / PAGE_SIZE, page);
    per_round(&mut guest)
}

fn call_site() -> Duration {
    // Between two functions, in turn: the displacement of the call is what is stored.
    let site = USER + 0x101;
    let mut guest = Guest::user(|a| a.jmp(u64::from(USER + 0x80)));
    guest.assemble(USER + 0x80, |a| {
        a.mov(ecx, ROUNDS)?;
        a.mov(ebx, FUNCTION - (site + 4))?;
        a.jmp(u64::from(USER + 0xf0))
    });
    guest.assemble(USER + 0xf0, |a| {
        a.xor(ebx, 0x40)?;
        a.mov(dword_ptr(site), ebx)?;
        a.jmp(u64::from(USER + 0x100))
    });
    guest.assemble(USER + 0x100, |a| {
        a.call(u64::from(FUNCTION))?;
        a.dec(ecx)?;
        a.jnz(u64::from(USER + 0xf0))
    });
    function(&mut guest, FUNCTION);
    let other = (FUNCTION - (site + 4)) ^ 0x40;
    function(&mut guest, other + site + 4);
    per_round(&mut guest)
}

fn beside(data: u32) -> Duration {
    per_round(&mut looped(|a| {
        a.mov(dword_ptr(data), ecx)?;
        a.mov(edx, FUNCTION)?;
        a.call(edx)
    }))
}

/// The whole of it: a write, a run of the guest, the end.
fn device() -> Duration {
    let mut guest = Guest::user(|a| {
        a.mov(edx, FUNCTION)?;
        a.call(edx)
    });
    function(&mut guest, FUNCTION);
    let once = |guest: &mut Guest| {
        let start = Instant::now();
        for round in 0..ROUNDS {
            guest.poke(CONSTANT, &[round as u8]);
            guest.start_user(USER);
            guest.finish();
        }
        start.elapsed()
    };
    (0..7).map(|_| once(&mut guest)).min().unwrap_or_default() / ROUNDS
}
