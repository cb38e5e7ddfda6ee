//! The console with pipes and files at its ends.

use crate::command::{file, lguest};
use crate::endings::{send, start};
use crate::tiny_guest::{chattering, echoing};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// Something too long for any buffer on its way, and unlike itself everywhere.
fn long_text() -> Vec<u8> {
    (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

#[test]
fn a_pipe_is_read_to_its_end_and_every_byte_comes_back() {
    let kernel = file(&echoing());
    let mut child =
        lguest(&["run"]).arg(&kernel).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = thread::spawn(move || input.write_all(&long_text()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == long_text(), "{} bytes came back", output.stdout.len());
}

#[test]
fn a_file_is_read_to_its_end() {
    let kernel = file(&echoing());
    let text = file(&long_text());
    let input = File::open(&text).unwrap();
    let output = lguest(&["run"]).arg(&kernel).stdin(input).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == long_text(), "{} bytes came back", output.stdout.len());
}

#[test]
fn no_input_at_all_is_an_end_too() {
    let kernel = file(&echoing());
    let output = lguest(&["run"]).arg(&kernel).output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()));
}

#[test]
fn a_slow_reader_misses_nothing() {
    let kernel = file(&echoing());
    let text = file(&long_text());
    let mut child = lguest(&["run"])
        .arg(&kernel)
        .stdin(File::open(&text).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    thread::sleep(Duration::from_millis(300));
    let mut seen = Vec::new();
    output.read_to_end(&mut seen).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(seen == long_text(), "{} bytes came back", seen.len());
}

#[test]
fn a_reader_that_leaves_ends_the_guest_quietly() {
    let kernel = file(&chattering());
    let mut child = start(&kernel);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_full_disk_is_told() {
    let kernel = file(&chattering());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = lguest(&["run"]).arg(&kernel).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("can't be written: No space left on device"), "{error}");
}

#[test]
fn a_signal_ends_a_guest_whose_output_nobody_reads() {
    let kernel = file(&chattering());
    let mut child = start(&kernel);
    let _unread = child.stdout.take();
    thread::sleep(Duration::from_millis(200)); // by now the pipe is full
    send(Signal::TERM, &child);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
