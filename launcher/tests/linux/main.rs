//! **Linux guests**, as a user runs them: the real command, a real kernel, a keyboard and a screen.
//!
//! No kernel comes with the project, so this tests those that the environment names, one after another:
//!
//! ```text
//! LGUEST_LINUX_KERNELS="vmlinux-2.6.24 bzImage-4.1" make test-linux
//! ```
//! Each is held against everything in [`CHECKS`]. A kernel that lacks a driver isn't wrong: what it can't do is skipped, and the
//! reason printed. With words as arguments, only checks are made whose names contain one of them.
//!
//! The story: [`kernel`] and [`initramfs`], what is booted; [`guest`], a guest under our hands; and then a file for
//! each thing that guests do: [`console`], [`block`], [`network`], [`neighbours`], [`machine`], [`endings`].

mod block;
mod console;
mod endings;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod neighbours;
mod network;
mod web;

use kernel::Kernel;
use std::env;
use std::io::{self, Write};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

/// Why a check can't be made. What a check finds wrong is a panic instead, as in any test.
struct Skip(String);

type Check = fn(&Kernel) -> Result<(), Skip>;

/// What every kernel must pass.
const CHECKS: &[(&str, Check)] = &[
    ("console: what is typed comes back", console::echo),
    ("console: a long line", console::a_long_line),
    ("console: 100 kB of output", console::much_output),
    ("console: a script, and its end", console::a_script),
    ("block: a file system", block::a_file_system),
    ("block: two disks", block::two_disks),
    ("block: read-only", block::read_only),
    ("block: a snapshot", block::a_snapshot),
    ("block: qcow2", block::qcow2),
    ("block: no room on the host", block::no_room),
    ("network: out to the host", network::out),
    ("network: in from the host", network::forwarded),
    ("network: two guests", neighbours::two_guests),
    ("machine: entropy", machine::entropy),
    ("machine: 64M of memory", machine::memory_64m),
    ("machine: 512M of memory", machine::memory_512m),
    ("machine: 1G of memory", machine::memory_1g),
    ("ending: restart", endings::restart),
    ("ending: init exits", endings::init_exits),
    ("ending: a crash by request", endings::crash_by_request),
    ("ending: SIGTERM", endings::terminated),
];

/// What takes long, and depends on the kernel little: only the first one must pass it.
const LONG_CHECKS: &[(&str, Check)] = &[
    ("long: 100 MB each way", neighbours::much_traffic),
    ("long: one of two guests is killed", neighbours::one_is_killed),
];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let kernels = match kernel::from_environment() {
        Ok(kernels) if kernels.is_empty() => {
            println!(
                "No Linux guests were tested: {} names no kernels (paths, separated by blanks or colons).",
                kernel::KERNELS
            );
            return ExitCode::SUCCESS;
        }
        Ok(kernels) => kernels,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut failures = Vec::new();
    for (nth, (path, kernel)) in kernels.iter().enumerate() {
        println!("\n{}", path.display());
        let start = Instant::now();
        match kernel {
            Ok(kernel) => {
                println!("Linux {}, interface {}", kernel.release, kernel.generation);
                let long = if nth == 0 { LONG_CHECKS } else { &[] };
                let checks = CHECKS.iter().chain(long);
                let wanted = checks.filter(|(name, _)| {
                    words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
                });
                let failed = wanted.filter(|(name, check)| !passes(name, *check, kernel));
                failures
                    .extend(failed.map(|(name, _)| format!("Linux {}: {name}", kernel.release)));
            }
            Err(Skip(reason)) => println!("  skipped: {reason}"),
        }
        println!("  {:.0} s", start.elapsed().as_secs_f64());
    }
    println!();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes one check, and says how it went.
fn passes(name: &str, check: Check, kernel: &Kernel) -> bool {
    print!("  {name:<36}");
    // Who watches wants to know what takes so long; who can't be told needn't.
    let _ = io::stdout().flush();
    let start = Instant::now();
    let outcome = catch_unwind(|| check(kernel));
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(Ok(())) => println!("ok {seconds:6.1} s"),
        Ok(Err(Skip(reason))) => println!("skipped: {reason}"),
        Err(_) => println!("  {name:<36}FAILED {seconds:6.1} s"),
    }
    outcome.is_ok()
}
