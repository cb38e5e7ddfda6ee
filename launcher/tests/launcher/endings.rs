//! How guests end, and what the command's exit status says.

use crate::command::{file, finish, lguest};
use crate::tiny_guest::{READY, crash, crashing, guest, init, power_off, sleeping, spinning};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a guest to its end.
fn run(kernel: &[u8]) -> (Option<i32>, String, String) {
    let kernel = file(kernel);
    finish(lguest(&["run"]).arg(&kernel))
}

#[test]
fn power_off_is_status_0() {
    assert_eq!(run(&power_off()), (Some(0), String::new(), String::new()));
}

#[test]
fn a_crash_is_status_1_and_the_guests_own_message() {
    let (status, out, error) = run(&crashing("no init found"));
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert_eq!(error, "lguest: the guest crashed: no init found\n");
}

#[test]
fn breaking_the_rules_is_status_1_and_the_hosts_message() {
    let (status, out, error) = run(&guest(b"", crash));
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert_eq!(error, "lguest: the guest was ended: hypercall 2 before LGUEST_INIT\n");
    let (status, _, error) = run(&guest(b"", |a| {
        init(a)?;
        init(a)
    }));
    assert_eq!(status, Some(1));
    assert!(error.starts_with("lguest: the guest was ended: LGUEST_INIT a second time"), "{error}");
}

/// Starts a guest with its input open, and waits until it says that it runs.
pub(crate) fn start(kernel: &std::path::Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lguest"))
        .arg("run")
        .arg(kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = vec![0; READY.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(said, READY);
    child
}

/// Sends a signal to a process of ours.
pub(crate) fn send(signal: Signal, child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn signals_end_a_guest_whatever_it_does() {
    for kernel in [spinning(), sleeping()] {
        for (signal, status) in
            [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129), (Signal::QUIT, 131)]
        {
            let kernel = file(&kernel);
            let child = start(&kernel);
            let asked = Instant::now();
            send(signal, &child);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{output:?}");
            assert_eq!(output.stderr, b"");
            assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?}", asked.elapsed());
        }
    }
}

#[test]
fn a_trace_has_a_line_for_each_event() {
    let kernel = file(&crashing("traced"));
    let trace = file(b"");
    let mut command = lguest(&["run", "--trace"]);
    let (status, _, _) = finish(command.arg(&trace).arg(&kernel));
    assert_eq!(status, Some(1));
    let text = std::fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, call) in lines.iter().zip(["LGUEST_INIT", "CRASH"]) {
        let (time, event) = line.trim_start().split_once(' ').unwrap();
        assert!(time.parse::<u64>().is_ok(), "{line}");
        assert!(event.starts_with("hypercall") && event.contains(call), "{line}");
    }
}
