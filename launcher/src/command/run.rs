//! `lguest run`: a guest on this terminal, and an exit status in the end.

use crate::arguments::Run;
use crate::failure::{Failure, of_ending};
use crate::kernel_file;
use lguest::{Console, Ending, Statistics, Stopper, Trace, Vm, rescue};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use std::{fs, io, process, thread};

/// The signals that ask a program to end.
const ENDING_SIGNALS: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// How long a guest that was asked to end may take before the process leaves without it. It only takes
/// that long if something is wrong: with the engine, or with a terminal that takes no more output.
const GRACE: Duration = Duration::from_secs(2);

/// Boots what the command line asks for.
pub(crate) fn run(arguments: Run) -> Result<(), Failure> {
    rescue::on_crash();
    let mut builder = Vm::builder().memory(arguments.memory).arguments(arguments.arguments);
    if let Some(path) = &arguments.kernel {
        let kernel = kernel_file::read(path, arguments.abi)?;
        if kernel.generation().is_ok() && !kernel.has_guest_support() {
            eprintln!(
                "lguest: {} looks as if it was built without LGUEST_GUEST, and won't boot then",
                path.display()
            );
        }
        builder = builder.kernel(kernel);
    }
    for disk in arguments.disk {
        builder = builder.disk(disk);
    }
    for network in arguments.net {
        builder = builder.network(network);
    }
    if let Some(path) = &arguments.initrd {
        builder = builder.initrd(fs::read(path).map_err(file_failure("initrd", path))?);
    }
    let trace = match &arguments.trace {
        Some(path) => Some(Trace::create(path).map_err(file_failure("trace file", path))?),
        None => None,
    };
    if let Some(trace) = &trace {
        builder = builder.trace(trace.tracer());
    }
    let statistics = arguments.stats.then(Statistics::default);
    if let Some(statistics) = &statistics {
        builder = builder.statistics(statistics);
    }
    let console = Console::stdio().map_err(|error| {
        Failure::System("standard input and output can't be the console", error)
    })?;
    let vm = builder.console(console).build().map_err(Failure::Build)?;
    let signal = watch_signals(vm.stopper())
        .map_err(|error| Failure::System("signals can't be watched for", error))?;
    insist_on_ending(vm.stopper(), Arc::clone(&signal), trace.clone());

    let ending = vm.run();
    if let Some(statistics) = statistics {
        // With standard error closed there is nobody left to tell.
        let _ = write!(io::stderr(), "{statistics}");
    }
    if let Some(Err(error)) = trace.map(|trace| trace.finish()) {
        eprintln!("lguest: the trace is incomplete: {error}");
    }
    of_ending(ending.map_err(Failure::Run)?, caught(&signal))
}

/// Ends the guest when a signal asks us to end, and keeps the signal's number (0 before).
fn watch_signals(stopper: Stopper) -> io::Result<Arc<AtomicI32>> {
    let mut signals = Signals::new(ENDING_SIGNALS)?;
    let last = Arc::new(AtomicI32::new(0));
    let caught = Arc::clone(&last);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            caught.store(signal, Ordering::Relaxed);
            stopper.stop();
        }
    })?;
    Ok(last)
}

/// Once the guest was asked to end, leaves without it if it hasn't after [`GRACE`]. The thread ends with
/// the process, which is normally long before.
fn insist_on_ending(stopper: Stopper, signal: Arc<AtomicI32>, trace: Option<Trace>) {
    // Without the thread only the insisting is lost.
    let _ = thread::Builder::new().name("grace period".into()).spawn(move || {
        let reason = stopper.wait();
        thread::sleep(GRACE);
        rescue::restore_now();
        let _ = trace.map(|trace| trace.finish());
        let failure = of_ending(Ending::Stopped(reason), caught(&signal));
        process::exit(failure.map_or_else(|failure| i32::from(failure.status()), |()| 0));
    });
}

/// The signal that was caught last, if any was.
fn caught(signal: &AtomicI32) -> Option<i32> {
    match signal.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

fn file_failure(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::File { what, path, error }
}
