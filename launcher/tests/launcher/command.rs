//! The command as a user types it: what it prints, and its exit statuses.

use crate::bzimage;
use crate::elf_file::{Segment, elf};
use crate::tiny_guest::power_off;
use lguest::Generation;
use lguest::loader::Compression;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::{NamedTempFile, TempPath};

/// The command, with nothing on its standard input.
pub(crate) fn lguest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lguest"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A file with these bytes, which lives as long as the value.
pub(crate) fn file(bytes: &[u8]) -> TempPath {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.into_temp_path()
}

/// Runs the command, and gives its exit status and what it printed to both sides.
pub(crate) fn finish(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// What the command says to this kernel with these options, when it doesn't boot it.
fn refusal(kernel: &[u8], options: &[&str]) -> String {
    let kernel = file(kernel);
    let mut command = lguest(&["run"]);
    let (status, out, error) = finish(command.args(options).arg(&kernel));
    assert_eq!((status, out.as_str()), (Some(2), ""), "{error}");
    error.replace(&kernel.display().to_string(), "KERNEL")
}

#[test]
fn a_bad_kernel_is_a_sentence_and_status_2() {
    let whole = power_off();
    assert_eq!(refusal(b"", &[]), "lguest: KERNEL can't be booted: the file is empty\n");
    assert_eq!(
        refusal(&whole[..20], &[]),
        "lguest: KERNEL can't be booted: it is cut short: the ELF header would end at byte 52, and the file has 20\n"
    );
    assert_eq!(
        refusal(&std::fs::read(env!("CARGO_BIN_EXE_lguest")).unwrap(), &[]),
        "lguest: KERNEL can't be booted: it is a 64-bit ELF file, and lguest runs 32-bit kernels\n"
    );
    let unsigned: Vec<u8> = whole.iter().map(|&b| if b == b'G' { b'g' } else { b }).collect();
    assert_eq!(
        refusal(&unsigned, &[]),
        "lguest: the kernel can't be booted: there is neither \"GenuineLguest\" nor a Linux banner in it, so it is no guest of lguest's\n"
    );
    assert_eq!(
        refusal(&unsigned, &["--abi", "first"]),
        "lguest: KERNEL can't be booted: there is no \"GenuineLguest\" in it: it was built without support for running under lguest\n"
    );
}

/// A kernel of Linux 4.1.15 that was, or wasn't, built to be a guest.
fn linux(is_guest: bool) -> Vec<u8> {
    let word = if is_guest { "LGUEST\0" } else { "GUEST\0" };
    let text = format!("Linux version 4.1.15 (me@here) #1\n\0{word}");
    elf(&[Segment::at(0x100_0000, text.as_bytes())])
}

#[test]
fn a_kernel_without_guest_support_is_told_so_and_tried() {
    let warning = "looks as if it was built without LGUEST_GUEST, and won't boot then";
    for (is_guest, warnings) in [(true, 0), (false, 1)] {
        let kernel = file(&linux(is_guest));
        let (status, out, error) = finish(lguest(&["run"]).arg(&kernel));
        assert_eq!((status, out.as_str()), (Some(1), ""), "{error}");
        assert_eq!(error.matches(warning).count(), warnings, "{error}");
        assert!(error.contains("the guest was ended: no handler for trap"), "{error}");
    }
}

#[test]
fn a_kernel_of_another_generation_than_named_is_told_by_what_it_shares() {
    let kernel = file(&power_off());
    let mut command = lguest(&["run", "--abi", "2.6.23"]);
    let (status, _, error) = finish(command.arg(&kernel));
    assert_eq!(status, Some(0), "these two differ in nothing that it uses: {error}");
    let mut command = lguest(&["run", "--abi", "2.6.24"]);
    let (status, _, error) = finish(command.arg(&kernel));
    assert_eq!(status, Some(1), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_sentence_and_status_2() {
    let missing = PathBuf::from("no/such/file");
    for arguments in [
        vec!["run", "no/such/file"],
        vec!["run", "--initrd", "no/such/file"],
        vec!["run", "--trace", "no/such/file"],
        vec!["inspect", "no/such/file"],
    ] {
        let (status, out, error) = finish(&mut lguest(&arguments));
        assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(error.contains(&missing.display().to_string()), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn memory_that_cannot_be_is_a_sentence_and_status_2() {
    for (size, sentence) in [
        ("1K", "1K of memory is too little: a guest needs at least 1M"),
        ("100G", "100G of memory is too much: a 32-bit guest reaches at most 4092M"),
        ("lots", "\"lots\" is no memory size: write a number and K, M or G, such as 64M"),
    ] {
        let error = refusal(&power_off(), &["--memory", size]);
        assert!(error.contains(sentence), "{error}");
        assert!(!error.contains("panicked"), "{error}");
    }
    assert_eq!(
        refusal(&power_off(), &["--memory", "1M"]),
        "lguest: the kernel needs memory up to 0x20000b, and 1M end at 0x100000\n"
    );
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [&[][..], &["boot"], &["run", "--fast"], &["run", "one", "two"], &["inspect"]]
    {
        let (status, out, error) = finish(&mut lguest(arguments));
        assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(error.contains("Usage"), "{error}");
    }
}

#[test]
fn help_teaches() {
    let (status, out, _) = finish(&mut lguest(&["run", "--help"]));
    assert_eq!(status, Some(0));
    let parts = [
        "--memory",
        "--initrd",
        "--trace",
        "--abi",
        "the guest's keyboard",
        "three ^C",
        "Exit status:",
        "143",
    ];
    for part in parts.into_iter().chain(Generation::ALL.map(Generation::name)) {
        assert!(out.contains(part), "{part} isn't in:\n{out}");
    }
    let (status, out, _) = finish(&mut lguest(&["--help"]));
    assert_eq!(status, Some(0));
    assert!(out.contains("Examples:"), "{out}");
}

/// What `inspect` prints behind the kernel's name.
fn inspection(kernel: &[u8], options: &[&str]) -> String {
    let kernel = file(kernel);
    let mut command = lguest(&["inspect"]);
    let (status, out, error) = finish(command.args(options).arg(&kernel));
    assert_eq!((status, error.as_str()), (Some(0), ""));
    out.strip_prefix(&format!("{}: ", kernel.display())).expect("the kernel's name").to_owned()
}

#[test]
fn inspect_shows_what_the_loader_sees() {
    let code = Segment::at(0x10_0000, b"GenuineLguest and code");
    assert_eq!(
        inspection(&elf(&[code, Segment { size: 0x123, ..Segment::at(0x20_0000, b"data") }]), &[]),
        "\
32-bit x86 ELF executable

  interface      first: the first lguest, of July 2007, and the bundled kernel
  guest support  yes
  load address   0x00100000
  memory         to 0x00200123
  mapped at      0xc0000000
  entry          0xc010000d

  physical    virtual     in file    in memory
  0x00100000  0xc0100000         22         22
  0x00200000  0xc0200000          4        291
"
    );
}

#[test]
fn inspect_shows_what_a_bzimage_says() {
    assert_eq!(
        inspection(&bzimage::usual(Compression::Lzo), &[]),
        "\
bzImage

  banner         Linux version 4.1.15 (me@here) #1 of one
  interface      4.0: Linux 4.0 to 4.13
  guest support  yes
  boot protocol  2.13
  payload        lzo, 173 bytes at 0xb23, unpacked 373
  command line   2047 bytes
  relocatable    yes, to multiples of 0x100000
  load address   0x01000000
  memory         to 0x01000121, and to 0x01123000 while it starts
  mapped at      0xc0000000
  entry          0x01000000

  physical    virtual     in file    in memory
  0x01000000  0xc1000000        289        289
"
    );
}

#[test]
fn inspect_shows_kernels_that_are_no_guests() {
    let out = inspection(&elf(&[Segment::at(0x10_0000, b"of my own")]), &[]);
    assert!(out.contains("interface      none: there is neither"), "{out}");
    assert!(out.contains("guest support  not seen\n"), "{out}");
    let out = inspection(&linux(false), &["--abi", "2.6.38"]);
    assert!(out.contains("interface      2.6.38: Linux 2.6.38 to 3.19\n"), "{out}");
}

#[test]
fn arguments_longer_than_a_kernel_keeps_are_a_sentence_and_status_2() {
    let old = file(&bzimage::first_generation());
    let words = "x".repeat(255);
    let (status, _, error) = finish(lguest(&["run"]).arg(&old).args(["--", words.as_str()]));
    assert_eq!(
        (status, error.as_str()),
        (
            Some(2),
            "lguest: the kernel's arguments take 256 bytes, and this kernel keeps 255 bytes of its command line\n"
        )
    );
}

#[test]
fn inspect_refuses_what_run_refuses() {
    let kernel = file(b"MZ");
    let mut command = lguest(&["inspect"]);
    let (status, out, error) = finish(command.arg(&kernel));
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(error.ends_with("can't be booted: it is neither an ELF file nor a bzImage\n"));
}
