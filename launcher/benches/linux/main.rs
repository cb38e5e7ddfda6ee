//! How fast Linux is as a guest, beside the same kernel as a plain PC under QEMU's emulation, and beside the same program
//! run natively.
//!
//! `LGUEST_LINUX_KERNELS` names the kernels, as for `make test-linux`; each must have virtio's console for lguest and a serial one for
//! QEMU. One static program (`program.c`) is init in all of them. Rounds are interleaved, so that a busy moment of the machine hits all
//! alike; each number is the best of them. `LGUEST_BENCH_RUNS` says how many. Without QEMU its column is empty.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Nanoseconds by name.
type Measured = BTreeMap<String, f64>;

/// What the program measures, in the order of the table: its word for it, and ours.
const ROWS: [(&str, &str); 13] = [
    ("boot", "start to init"),
    ("getppid", "system call (getppid)"),
    ("pipe", "round trip by pipes"),
    ("signal", "signal to oneself"),
    ("fault", "page fault"),
    ("mmap", "mmap, touch, munmap"),
    ("fork", "fork, exit, wait"),
    ("exec", "fork, exec, wait"),
    ("sieve", "CPU: sieve"),
    ("calls", "CPU: calls"),
    ("indirect", "CPU: indirect calls"),
    ("matrices", "CPU: floating point"),
    ("hash", "CPU: hash"),
];

/// Rounds, unless the environment says otherwise.
const RUNS: usize = 5;

const QEMU: &str = "qemu-system-i386";

fn main() -> Result<()> {
    let kernels = env::var("LGUEST_LINUX_KERNELS").unwrap_or_default();
    let kernels: Vec<&str> = kernels.split([' ', ':']).filter(|path| !path.is_empty()).collect();
    if kernels.is_empty() {
        println!("No Linux to measure: LGUEST_LINUX_KERNELS names none.");
        return Ok(());
    }
    let runs = env::var("LGUEST_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok());
    let things = Things::make()?;
    let with_qemu = Command::new(QEMU).arg("--version").output().is_ok();
    for kernel in kernels {
        println!("\n{kernel}");
        compare(kernel, &things, runs.unwrap_or(RUNS), with_qemu)?;
    }
    Ok(())
}

/// Measures one kernel, and prints its table.
fn compare(kernel: &str, things: &Things, runs: usize, with_qemu: bool) -> Result<()> {
    let [mut ours, mut qemu, mut native] = [(); 3].map(|()| Measured::new());
    for round in 1..=runs {
        eprint!("\rround {round} of {runs} ");
        keep_best(&mut ours, run(things.on_lguest(kernel))?);
        if with_qemu {
            keep_best(&mut qemu, run(things.on_qemu(kernel))?);
        }
        let mut here = run(Command::new(&things.program))?;
        here.remove("boot");
        keep_best(&mut native, here);
    }
    eprint!("\r\x1b[K");
    println!(
        "{:<24} {:>11} {:>11} {:>7} {:>11} {:>7}",
        "", "lguest", "QEMU", "times", "native", "ratio"
    );
    for (name, title) in ROWS {
        let Some(&cost) = ours.get(name) else { continue };
        let peer = |all: &Measured| all.get(name).copied();
        let (emulated, here) = (peer(&qemu), peer(&native));
        println!(
            "{title:<24} {:>11} {:>11} {:>7} {:>11} {:>7}",
            show(cost),
            emulated.map_or_else(String::new, show),
            emulated.map_or_else(String::new, |other| format!("{:.1}", other / cost)),
            here.map_or_else(String::new, show),
            here.map_or_else(String::new, |other| format!("{:.2}", cost / other)),
        );
    }
    Ok(())
}

fn keep_best(best: &mut Measured, round: Measured) {
    for (name, cost) in round {
        let kept = best.entry(name).or_insert(cost);
        *kept = kept.min(cost);
    }
}

/// Starts a command whose output is the program's, and reads it to the end of the measurements.
fn run(mut command: Command) -> Result<Measured> {
    let start = Instant::now();
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut child = Killed(child);
    let screen = child.0.stdout.take().ok_or("no standard output")?;
    let mut measured = Measured::new();
    let mut seen = String::new();
    for line in BufReader::new(screen).lines() {
        let line = line?;
        match line.trim() {
            "ready" => {
                measured.insert("boot".to_owned(), start.elapsed().as_nanos() as f64);
            }
            "done" => return Ok(measured),
            line => {
                if let Some((name, cost)) = line.split_once(' ')
                    && let Ok(cost) = cost.parse()
                {
                    measured.insert(name.to_owned(), cost);
                }
            }
        }
        seen = seen + &line + "\n";
    }
    Err(format!("{command:?} ended before it was done, with\n{seen}").into())
}

/// A process that doesn't outlive its measurement.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the measurements need beside a kernel.
struct Things {
    program: PathBuf,
    initrd: PathBuf,
}

impl Things {
    /// Compiles the program, and packs it as an initrd's only file.
    fn make() -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/linux/program.c");
        let here = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (program, initrd) = (here.join("linux-program"), here.join("linux-program.cpio"));
        let compiled = Command::new("gcc")
            .args(["-m32", "-O2", "-static", "-o"])
            .args([&program, &source])
            .status()?;
        if !compiled.success() {
            return Err("gcc -m32 can't compile the program".into());
        }
        let mut archive = Vec::new();
        append(&mut archive, "init", &fs::read(&program)?);
        append(&mut archive, "TRAILER!!!", b"");
        fs::File::create(&initrd)?.write_all(&archive)?;
        Ok(Self { program, initrd })
    }

    fn on_lguest(&self, kernel: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lguest"));
        command.args(["run", "--memory", "128M", "--initrd"]).arg(&self.initrd);
        command.args([kernel, "--", "console=hvc0", "quiet"]);
        command
    }

    fn on_qemu(&self, kernel: &str) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-accel", "tcg", "-m", "128", "-display", "none", "-serial", "stdio"]);
        command.args(["-monitor", "none", "-nodefaults", "-kernel", kernel, "-initrd"]);
        command.arg(&self.initrd).args(["-append", "console=ttyS0 quiet"]);
        command
    }
}

/// Appends a file to a cpio archive in its "new" format, as Linux documents it (`initramfs buffer format`).
fn append(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    const EXECUTABLE: usize = 0o100_755;
    let fields = [0, EXECUTABLE, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend(b"070701");
    fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// In the unit that fits.
fn show(nanoseconds: f64) -> String {
    let time = Duration::from_secs_f64(nanoseconds / 1e9);
    match nanoseconds {
        _ if nanoseconds < 10_000.0 => format!("{nanoseconds:.0} ns"),
        _ if nanoseconds < 10_000_000.0 => format!("{:.1} µs", nanoseconds / 1e3),
        _ => format!("{:.0} ms", time.as_secs_f64() * 1e3),
    }
}
