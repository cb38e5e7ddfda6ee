//! Prints what the engine's crossings cost on this machine: `cargo run --release --example costs`.

#[path = "../tests/guest/mod.rs"]
mod guest;

use guest::{DATA, END, Guest, KERNEL_DATA, USER};
use iced_x86::code_asm::*;
use lguest_switcher::{Exit, Gpr, GuestVirt, PAGE_SIZE, View};
use std::time::{Duration, Instant};

/// The shortest of some repetitions of `work`, divided by the `rounds` that each does.
fn best(rounds: u32, mut work: impl FnMut()) -> Duration {
    let once = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..7).map(|_| once(&mut work)).min().unwrap_or_default() / rounds
}

fn main() {
    println!("null exit (int n, and back)     {:>8.1?}", null_exit());
    println!("instruction emulated in Rust    {:>8.1?}", emulated());
    println!("instruction through the buffer  {:>8.1?}", bounced());
    println!("page fault, mapped and retried  {:>8.1?}", page_in(1));
    println!("the same for runs of 16 pages   {:>8.1?}", page_in(16));
    println!("page fault the guest gets       {:>8.1?}", guest_fault());
    println!("store into code, dropped, rerun {:>8.1?}", self_modifying());
    println!("kick from another thread        {:>8.1?}", kicked());
}

fn null_exit() -> Duration {
    const ROUNDS: u32 = 200_000;
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.int(0x1f)?;
        a.jmp(again)
    });
    best(ROUNDS, || {
        for _ in 0..ROUNDS {
            assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: 0x1f, length: 2 });
        }
    })
}

/// A loop of `body`, `rounds` times.
fn looped(
    rounds: u32,
    body: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Duration {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, rounds)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    best(rounds, || {
        guest.start_user(USER);
        assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: END, length: 2 });
    })
}

fn emulated() -> Duration {
    looped(50_000, |a| a.mov(eax, ds))
}

fn bounced() -> Duration {
    looped(50_000, |a| a.fnstenv(ptr(DATA)))
}

fn page_in(run: u32) -> Duration {
    const PAGES: u32 = 1024;
    let mut guest = Guest::kernel(|a| {
        let mut again = a.create_label();
        a.mov(edi, KERNEL_DATA)?;
        a.mov(ecx, PAGES)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, PAGE_SIZE)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.tables.run = run;
    guest.provide(KERNEL_DATA, PAGES, false);
    best(PAGES / run, || {
        guest.vcpu.unmap(View::Kernel, GuestVirt(KERNEL_DATA), PAGES);
        guest.start_kernel(guest::KERNEL);
        guest.finish();
    })
}

fn guest_fault() -> Duration {
    const ROUNDS: u32 = 5_000;
    let mut guest = Guest::user(|a| a.mov(eax, dword_ptr(8)));
    best(ROUNDS, || {
        for _ in 0..ROUNDS {
            guest.exception();
        }
    })
}

fn self_modifying() -> Duration {
    const ROUNDS: u32 = 2_000;
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(USER + 0x2001), ecx)?;
        a.mov(edx, USER + 0x2000)?;
        a.call(edx)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.assemble(USER + 0x2000, |a| {
        a.mov(eax, 0)?;
        a.ret()
    });
    let cost = best(ROUNDS, || {
        guest.start_user(USER);
        guest.finish();
    });
    assert_eq!(guest.gpr(Gpr::Eax), 1);
    cost
}

fn kicked() -> Duration {
    const ROUNDS: u32 = 2_000;
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    });
    let kicker = guest.vcpu.kicker();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        while asked.recv().is_ok() {
            kicker.kick();
        }
    });
    let cost = best(ROUNDS, || {
        for _ in 0..ROUNDS {
            let _ = ask.send(());
            assert_eq!(guest.run(), Exit::Kicked);
        }
    });
    drop(ask);
    let _ = other.join();
    cost
}
