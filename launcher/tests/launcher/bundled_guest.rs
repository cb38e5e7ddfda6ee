//! The guest that is built in: a session with a script, and one at a terminal.

use crate::command::lguest;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What `make` builds for the guest to run.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build").join(name);
    assert!(path.exists(), "{} isn't there: run `make initrd`", path.display());
    path
}

/// Types `script` at a guest with the initrd, and gives what came of it.
fn session(script: &str) -> Output {
    session_with(&built("initrd.cpio"), script)
}

/// The same with another initrd. The script is a file: of a pipe, somebody would have to fill one end while emptying another.
pub(crate) fn session_with(initrd: &Path, script: &str) -> Output {
    let mut typed = tempfile::tempfile().unwrap();
    typed.write_all(script.as_bytes()).unwrap();
    typed.rewind().unwrap();
    lguest(&["run", "--initrd"]).arg(initrd).stdin(typed).output().unwrap()
}

/// What one command of the guest prints.
fn prints(command: &str) -> String {
    let output = session(&format!("{command}\npoweroff\n"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stderr, b"");
    let screen = String::from_utf8_lossy(&output.stdout);
    let from = format!("lguest# {command}\n");
    let (_, rest) = screen.split_once(&from).unwrap_or_else(|| panic!("no {from:?} in {screen}"));
    let (printed, _) = rest.split_once("lguest# poweroff").unwrap_or_else(|| panic!("{screen}"));
    printed.to_owned()
}

/// A script that comes by a pipe, as from `printf`.
#[test]
fn a_script_may_come_by_a_pipe() {
    let mut child = lguest(&["run", "--initrd"])
        .arg(built("initrd.cpio"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo by a pipe\npoweroff\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nby a pipe\n"));
}

#[test]
fn a_script_runs_to_power_off_and_prints_no_control_codes() {
    let output = session("ps\necho hello\nspin &\nmem\npoweroff\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let screen = String::from_utf8(output.stdout).unwrap();
    assert!(screen.contains("PID") && screen.contains("\nhello\n"), "{screen}");
    assert!(screen.chars().all(|c| c == '\n' || !c.is_control()), "{screen:?}");
}

#[test]
fn a_script_may_simply_end() {
    let output = session("echo the last line\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nthe last line\n"));
}

#[test]
fn a_script_may_be_a_file_and_longer_than_any_buffer() {
    let mut script = tempfile::tempfile().unwrap();
    for n in 0..500 {
        writeln!(script, "echo line number {n}").unwrap();
    }
    script.rewind().unwrap();
    let output = lguest(&["run"]).stdin(script).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let screen = String::from_utf8(output.stdout).unwrap();
    for n in 0..500 {
        assert!(screen.contains(&format!("\nline number {n}\n")), "line {n} is missing");
    }
}

#[test]
fn a_panic_of_the_kernel_is_status_1_and_its_message() {
    let output = session("crash out of patience\n");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("lguest: the guest crashed: "), "{error}");
    assert!(error.contains("out of patience"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_panics_reason_may_be_longer_than_its_message() {
    let output = session(&format!("crash {}\n", "é".repeat(1000)));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("panic: ééé"), "{error}");
}

#[test]
fn a_line_that_is_too_long_is_refused_as_a_whole() {
    for length in [16_385, 60_000, 200_000] {
        let words = "echo x; ".repeat(length / 8 + 1);
        let output = session(&format!("{words}\necho after\n{words}"));
        assert_eq!(output.status.code(), Some(0), "{length}: {:?}", output.stderr);
        let screen = String::from_utf8(output.stdout).unwrap();
        assert_eq!(screen.matches("this one is ignored").count(), 2, "{length}");
        assert!(screen.contains("\nafter\n") && !screen.contains("\nx;"), "{length}");
    }
}

#[test]
fn processes_are_preempted_and_share_the_fpu() {
    let output = session("spin &\nspin &\nfpu\nps\npoweroff\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let screen = String::from_utf8(output.stdout).unwrap();
    assert!(screen.contains("process 1: 20 checks, all right"), "{screen}");
    assert!(screen.contains("process 2: 20 checks, all right"), "{screen}");
    assert_eq!(screen.matches(" running ").count(), 3, "the shell and two spins: {screen}");
}

/// Applets whose output depends only on what they are given: here each line is run by the guest, and by the
/// very same program on the host.
#[test]
fn busybox_says_what_it_says_on_the_host() {
    let busybox = built("busybox-i386/bin/busybox");
    let texts = unpacked_texts();
    for (applet, words) in [
        ("cat", &["texts/poem.txt"][..]),
        ("md5sum", &["texts/poem.txt", "texts/numbers.txt"]),
        ("sha256sum", &["texts/poem.txt"]),
        ("sort", &["-n", "texts/numbers.txt"]),
        ("sort", &["-r", "texts/poem.txt"]),
        (
            "awk",
            &["{ n += length($0); s += $1 / 7 } END { print n, s, s * s }", "texts/numbers.txt"],
        ),
        ("factor", &["1234567890", "97", "4294967291"]),
        ("cal", &["7", "2007"]),
        ("date", &["-u", "-d", "@1185926400"]),
        ("echo", &["one", "two"]),
        ("wc", &["texts/poem.txt"]),
        ("cal", &["2024"]),
        ("cal", &["9", "1752"]),
        (
            "awk",
            &[
                "BEGIN { for (i = 1; i < 40; i++) printf \"%.15g %.17g %e %a\\n\", i / 7, i * 1e10 / 3, 1 / i, i / 3 }",
            ],
        ),
        (
            "awk",
            &[
                "BEGIN { print 1e300 * 1e300, -1e999, 1e-320, 9007199254740993, int(-3.7), -7 % 3, 0.1 + 0.2 }",
            ],
        ),
        ("awk", &["function f(n) { return n ? n + f(n - 1) : 0 } BEGIN { print f(3000) }"]),
        ("dc", &["-e", "40k 2v p 100 3 ^ p"]),
        ("sed", &["s/[aeiou]/<&>/g", "texts/poem.txt"]),
        ("gunzip", &["--help"]),
        ("seq", &["1", "0.1", "3"]),
        ("sha512sum", &["busybox"]),
        ("bzip2", &["-c", "texts/poem.txt"]),
        ("tr", &["--help"]),
    ] {
        let host = Command::new(&busybox).arg(applet).args(words).current_dir(&texts).output();
        let host = host.unwrap();
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let line = format!("busybox {applet} {}", quoted.join(" "));
        let expected = [host.stdout, host.stderr].concat();
        assert_eq!(prints(&line), String::from_utf8_lossy(&expected), "{line}");
    }
}

/// The files of the initrd, for the host to look at.
fn unpacked_texts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("cpio")
        .args(["--extract", "--make-directories", "--quiet"])
        .current_dir(&folder)
        .stdin(File::open(built("initrd.cpio")).unwrap())
        .status()
        .unwrap();
    assert!(unpacked.success());
    folder
}
