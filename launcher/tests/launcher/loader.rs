//! What the loader says to good kernels and to bad ones.

use crate::elf_file::{PAGE_OFFSET, Segment, elf};
use crate::tiny_guest::{CODE, DATA, power_off};
use lguest::loader::Format;
use lguest::{Kernel, KernelError};
use lguest_switcher::{GuestPhys, GuestVirt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::time::{Duration, Instant};

/// Offsets in an ELF file's header (System V ABI, "ELF Header").
const CLASS: usize = 4;
const ENDIAN: usize = 5;
const TYPE: usize = 16;
const MACHINE: usize = 18;
const PROGRAM_HEADER_OFFSET: usize = 28;
const PROGRAM_HEADER_SIZE: usize = 42;
const PROGRAM_HEADER_COUNT: usize = 44;

/// What the loader says to `file`.
fn refusal(file: &[u8]) -> String {
    Kernel::parse(file).expect_err("a bad kernel").to_string()
}

/// A good kernel with one byte changed.
fn changed(at: usize, value: u8) -> Vec<u8> {
    let mut file = power_off();
    file[at] = value;
    file
}

#[test]
fn a_good_kernel_is_understood() {
    let kernel = Kernel::parse(&power_off()).unwrap();
    assert_eq!(kernel.format(), Format::Elf);
    assert_eq!(kernel.page_offset(), GuestVirt(PAGE_OFFSET));
    assert_eq!(kernel.entry(), GuestVirt(PAGE_OFFSET + CODE + 13));
    assert_eq!(kernel.start(), GuestPhys(CODE));
    assert_eq!(kernel.end(), u64::from(DATA) + 11);
    let places: Vec<u32> = kernel.segments().iter().map(|s| s.phys().0).collect();
    assert_eq!(places, [CODE, DATA]);
}

#[test]
fn the_lowest_signature_counts_wherever_it_stands_in_the_file() {
    let high = Segment::at(DATA, b"-GenuineLguest-");
    let low = Segment::at(CODE, b"GenuineLguest?");
    let kernel = Kernel::parse(&elf(&[high, low])).unwrap();
    assert_eq!(kernel.entry(), GuestVirt(PAGE_OFFSET + CODE + 13));
}

#[test]
fn each_malformation_has_its_sentence() {
    assert_eq!(refusal(b""), "the file is empty");
    assert_eq!(refusal(b"#!/bin/sh\n"), "it is neither an ELF file nor a bzImage");
    assert_eq!(
        refusal(&power_off()[..20]),
        "it is cut short: the ELF header would end at byte 52, and the file has 20"
    );
    assert_eq!(
        refusal(&power_off()[..100]),
        "it is cut short: its table of program headers would end at byte 116, and the file has 100"
    );
    let whole = power_off();
    assert_eq!(
        refusal(&whole[..whole.len() - 1]),
        format!(
            "it is cut short: a segment would end at byte {}, and the file has {}",
            whole.len(),
            whole.len() - 1
        )
    );
    assert_eq!(
        refusal(&changed(CLASS, 2)),
        "it is a 64-bit ELF file, and lguest runs 32-bit kernels"
    );
    assert_eq!(
        refusal(&changed(ENDIAN, 2)),
        "it is a big-endian ELF file, and lguest runs kernels for 32-bit x86"
    );
    assert_eq!(
        refusal(&changed(MACHINE, 40)),
        "it is built for another processor (ELF machine 40), and lguest runs kernels for 32-bit x86 (machine 3)"
    );
    assert_eq!(
        refusal(&changed(TYPE, 1)),
        "it isn't a linked executable (ELF type 1; an executable has 2)"
    );
    assert_eq!(
        refusal(&changed(PROGRAM_HEADER_SIZE, 56)),
        "its program headers are 56 bytes each, where 32-bit ELF has 32"
    );
    assert_eq!(
        refusal(&changed(PROGRAM_HEADER_COUNT, 0)),
        "it has no loadable segments, so there is nothing to run"
    );
}

#[test]
fn each_way_in_which_segments_can_be_wrong_has_its_sentence() {
    let good = Segment::at(CODE, b"GenuineLguest?");
    let with = |change: fn(&mut Segment)| {
        let mut other = Segment::at(DATA, b"other");
        change(&mut other);
        refusal(&elf(&[good.clone(), other]))
    };
    assert_eq!(
        with(|s| s.virt += 0x1000),
        "its segments disagree on where memory is mapped: one at 0xc0000000 above its physical address, one at 0xc0001000"
    );
    assert_eq!(
        with(|s| s.size = 4),
        "its segment at 0x00200000 has 5 bytes in the file and only 4 in memory"
    );
    assert_eq!(
        with(|s| s.size = 0xffff_ffff),
        "its segment at 0x00200000 is 4294967295 bytes long and runs past 4 GiB"
    );
    // Of many that are the same bytes, a small file could make more than the host has memory.
    let mut same = elf(&[Segment::at(CODE, &[0x90; 4096]), Segment::at(DATA, b"")]);
    same.copy_within(52..84, 84); // the first program header over the second
    assert_eq!(
        refusal(&same),
        "its segments have more bytes of the file than the 4212 there are: some have the same"
    );
    let at_one_megabyte_more = Segment { virt: 0xc020_0000, ..good.clone() };
    assert_eq!(
        refusal(&elf(&[at_one_megabyte_more])),
        "it wants memory mapped at 0xc0100000, which must be a multiple of 16 MiB, and not 0"
    );
    let where_it_lies = Segment { virt: CODE, ..good };
    assert!(refusal(&elf(&[where_it_lies])).starts_with("it wants memory mapped at 0x0,"));
}

#[test]
fn an_empty_segment_is_none() {
    let nothing = Segment { virt: 0, phys: 0, bytes: Vec::new(), size: 0 };
    assert!(matches!(Kernel::parse(&elf(&[nothing])), Err(KernelError::NoSegments)));
}

/// Runs a property over and over, each time from another seed, for `LGUEST_FUZZ_SECONDS` (one, if
/// nothing is said).
pub(crate) fn for_a_while<S: Strategy>(
    inputs: &S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let seconds = std::env::var("LGUEST_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let mut cases = 0;
    while Instant::now() < end {
        let config = Config { cases: 1000, ..Config::default() };
        cases += config.cases;
        TestRunner::new(config).run(inputs, &property).unwrap();
    }
    println!("{cases} inputs");
}

#[test]
fn fuzz_elf_files_with_damage() {
    let damage = (
        proptest::collection::vec((0usize..200, any::<u8>()), 0..8),
        proptest::option::of(any::<proptest::sample::Index>()),
    );
    for_a_while(&damage, |(changes, length)| {
        let mut file = power_off();
        let size = file.len();
        changes.into_iter().for_each(|(at, value)| file[at % size] = value);
        file.truncate(length.map_or(size, |length| length.index(size)));
        if let Ok(kernel) = Kernel::parse(&file) {
            prop_assert!(kernel.end() <= 1 << 32);
            prop_assert!(kernel.page_offset().0 != 0);
            prop_assert!(!kernel.segments().is_empty());
        }
        Ok(())
    });
}

#[test]
fn fuzz_program_headers() {
    // Headers of any content, in a file that has them where it says, and a signature behind them.
    let words = proptest::collection::vec(any::<[u32; 7]>(), 1..4);
    for_a_while(&words, |headers| {
        let mut file = elf(&[]);
        file[PROGRAM_HEADER_OFFSET] = 52;
        file[PROGRAM_HEADER_COUNT] = headers.len() as u8;
        for header in &headers {
            file.extend(1u32.to_le_bytes());
            header.iter().for_each(|word| file.extend(word.to_le_bytes()));
        }
        file.extend(b"GenuineLguest");
        let _ = Kernel::parse(&file);
        Ok(())
    });
}

#[test]
fn fuzz_anything_behind_each_magic() {
    let mut setup = [0; 0x400];
    setup[0x202..0x206].copy_from_slice(b"HdrS");
    let starts: [&[u8]; 3] = [b"", b"\x7fELF\x01\x01\x01", &setup];
    let input = (0usize..3, proptest::collection::vec(any::<u8>(), 0..300));
    for_a_while(&input, |(start, rest)| {
        let _ = Kernel::parse(&[starts[start], &rest].concat());
        Ok(())
    });
}
