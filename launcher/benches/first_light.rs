//! How fast it is, each number beside the same thing done natively in the same run.
//!
//! A bare number says more about the machine than about the program, and changes from day to day; a ratio to a
//! peer that ran a moment ago is worth comparing. Run it with `make bench`. `LGUEST_BENCH_RUNS` says how many
//! times the guest is booted for the time to its prompt.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::getppid;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the guest says when it can be talked to.
const PROMPT: &[u8] = b"lguest# ";

/// How many boots, unless the environment says otherwise.
const RUNS: usize = 20;

/// How often the cheap things are done.
const TIMES: u32 = 200_000;

/// Pages touched in one mapping, as the guest's benchmark does it, and how many mappings.
const PAGES: usize = 512;
const MAPPINGS: u32 = 64;

fn main() -> Result<()> {
    let runs = env::var("LGUEST_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok());
    println!("{:<28} {:>12} {:>12} {:>8}  native peer", "", "lguest", "native", "ratio");
    let boot = median(runs.unwrap_or(RUNS), time_to_prompt)?;
    let start = median(runs.unwrap_or(RUNS), time_to_run_true)?;
    row("start to prompt", boot, start, "start and end of `true`");

    let system_call = per_time(TIMES, || _ = getppid());
    let switch = context_switch()?;
    let fault = page_fault()?;
    for line in guest_benchmark()?.lines() {
        let Some((name, cost)) = measurement(line) else { continue };
        match name {
            "null hypercall" | "async hypercall" | "system call" => {
                row(name, cost, system_call, "system call (getppid)");
            }
            "context switch" => row(name, cost, switch, "switch of threads by a pipe"),
            "page fault" => row(name, cost, fault, "page fault of a new mapping"),
            _ => println!("{name:<28} {:>12}", show(cost)),
        }
    }
    Ok(())
}

fn row(name: &str, ours: Duration, native: Duration, peer: &str) {
    let ratio = ours.as_secs_f64() / native.as_secs_f64();
    println!("{name:<28} {:>12} {:>12} {ratio:>8.2}  {peer}", show(ours), show(native));
}

/// In the unit that fits.
fn show(time: Duration) -> String {
    let nanoseconds = time.as_secs_f64() * 1e9;
    match nanoseconds {
        _ if nanoseconds < 10_000.0 => format!("{nanoseconds:.1} ns"),
        _ if nanoseconds < 1_000_000.0 => format!("{:.1} µs", nanoseconds / 1e3),
        _ => format!("{:.1} ms", nanoseconds / 1e6),
    }
}

/// The middle one of several measurements.
fn median(times: usize, measure: impl Fn() -> Result<Duration>) -> Result<Duration> {
    let mut all = (0..times).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    all.sort();
    all.get(times / 2).copied().ok_or_else(|| "nothing was measured".into())
}

/// What one of many takes.
fn per_time(times: u32, mut what: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..times).for_each(|_| what());
    start.elapsed() / times
}

/// From starting the command to the guest's prompt.
fn time_to_prompt() -> Result<Duration> {
    let start = Instant::now();
    let mut guest = Command::new(env!("CARGO_BIN_EXE_lguest"))
        .arg("run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut screen = guest.stdout.take().ok_or("no standard output")?;
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    let time = loop {
        match screen.read(&mut piece)? {
            0 => return Err(format!("no prompt in {:?}", String::from_utf8_lossy(&seen)).into()),
            count => seen.extend(&piece[..count]),
        }
        if seen.windows(PROMPT.len()).any(|window| window == PROMPT) {
            break start.elapsed();
        }
    };
    drop(guest.stdin.take());
    io::copy(&mut screen, &mut io::sink())?;
    guest.wait()?;
    Ok(time)
}

/// What starting any process takes.
fn time_to_run_true() -> Result<Duration> {
    let start = Instant::now();
    Command::new("true").status()?;
    Ok(start.elapsed())
}

/// What the guest's own `bench` prints.
fn guest_benchmark() -> Result<String> {
    let mut guest = Command::new(env!("CARGO_BIN_EXE_lguest"))
        .arg("run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    guest.stdin.take().ok_or("no standard input")?.write_all(b"bench\npoweroff\n")?;
    let output = guest.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads "name: 12.3 ns".
fn measurement(line: &str) -> Option<(&str, Duration)> {
    let (name, cost) = line.strip_suffix(" ns")?.split_once(": ")?;
    let nanoseconds: f64 = cost.parse().ok()?;
    Some((name, Duration::from_secs_f64(nanoseconds / 1e9)))
}

/// One switch between two threads on one processor that wake each other through pipes.
fn context_switch() -> Result<Duration> {
    let (mut here_from, mut there_into) = io::pipe()?;
    let (mut there_from, mut here_into) = io::pipe()?;
    let rounds = TIMES / 10;
    let other = thread::spawn(move || -> io::Result<()> {
        stay_on_one_processor()?;
        let mut byte = [0];
        for _ in 0..rounds {
            there_from.read_exact(&mut byte)?;
            there_into.write_all(&byte)?;
        }
        Ok(())
    });
    let this = thread::spawn(move || -> io::Result<Duration> {
        stay_on_one_processor()?;
        let mut byte = [0];
        let start = Instant::now();
        for _ in 0..rounds {
            here_into.write_all(&byte)?;
            here_from.read_exact(&mut byte)?;
        }
        Ok(start.elapsed() / (2 * rounds))
    });
    other.join().map_err(|_| "a thread panicked")??;
    Ok(this.join().map_err(|_| "a thread panicked")??)
}

fn stay_on_one_processor() -> io::Result<()> {
    let mut processors = CpuSet::new();
    processors.set(0);
    Ok(sched_setaffinity(None, &processors)?)
}

/// Touching a page of a new mapping, with its share of making and removing the mapping.
fn page_fault() -> Result<Duration> {
    let mut outcome = Ok(());
    let per_mapping = per_time(MAPPINGS, || outcome = outcome.and_then(|()| touch_new_pages()));
    outcome?;
    Ok(per_mapping / PAGES as u32)
}

fn touch_new_pages() -> std::result::Result<(), Errno> {
    const BYTES: usize = PAGES * 4096;
    // SAFETY: a new mapping where the kernel likes, written within its bounds, and gone before anybody else
    // hears of it.
    unsafe {
        let start = mmap_anonymous(null_mut(), BYTES, ProtFlags::WRITE, MapFlags::PRIVATE)?;
        madvise(start, BYTES, Advice::LinuxNoHugepage)?;
        for page in 0..PAGES {
            start.cast::<u8>().add(page * 4096).write_volatile(1);
        }
        munmap(start, BYTES)
    }
}
