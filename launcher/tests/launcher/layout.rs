//! Memory as a guest finds it when it wakes up, byte by byte.

use crate::bzimage;
use crate::elf_file::{Segment, elf};
use crate::tiny_guest::CODE;
use lguest::layout::{Layout, LayoutError};
use lguest::{Generation, Kernel, MemorySize};
use lguest_switcher::{GuestMemory, GuestPhys};

const MIB: u32 = 1 << 20;

fn kernel_at(phys: u32, size: u32) -> Kernel {
    let mut segment = Segment::at(phys, b"GenuineLguest\x90");
    segment.size = size;
    Kernel::parse(&elf(&[segment])).unwrap()
}

fn plan(memory: &str, kernel: &Kernel, words: &[&str], initrd: u64) -> Result<Layout, LayoutError> {
    let words: Vec<String> = words.iter().map(|&word| word.into()).collect();
    Layout::plan(memory.parse().unwrap(), kernel, Generation::First, &words, initrd)
}

fn refusal(memory: &str, kernel: &Kernel, words: &[&str], initrd: u64) -> String {
    plan(memory, kernel, words, initrd).expect_err("something that doesn't fit").to_string()
}

fn word(memory: &GuestMemory, at: u32) -> u32 {
    let mut bytes = [0; 4];
    memory.read(GuestPhys(at), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn everything_is_where_the_interface_says() {
    let kernel = kernel_at(CODE, 0x3000);
    let initrd = b"files".repeat(1000);
    let layout = plan("8M", &kernel, &["root=none", "quiet"], 5000).unwrap();
    let memory = GuestMemory::new(8 * MIB).unwrap();
    layout.fill(&memory, &kernel, &initrd).unwrap();

    assert_eq!(word(&memory, 0x228), 4096, "the command line");
    let mut line = [0; 17];
    memory.read(GuestPhys(4096), &mut line).unwrap();
    assert_eq!(&line, b"root=none quiet \0");

    let mut code = [0; 14];
    memory.read(GuestPhys(CODE), &mut code).unwrap();
    assert_eq!(&code, b"GenuineLguest\x90");

    let initrd_start = 8 * MIB - 0x2000;
    assert_eq!(word(&memory, 0x218), initrd_start);
    assert_eq!(word(&memory, 0x21c), 0x2000, "rounded up to pages");
    let mut files = vec![0; initrd.len()];
    memory.read(GuestPhys(initrd_start), &mut files).unwrap();
    assert_eq!(files, initrd);

    let directory = initrd_start - 0x1000;
    assert_eq!(layout.page_directory(), GuestPhys(directory));
    let tables = directory - 0x2000;
    assert_eq!(word(&memory, directory + 768 * 4), tables | 7, "0xc0000000 on");
    assert_eq!(word(&memory, directory + 769 * 4), (tables + 0x1000) | 7);
    assert_eq!(word(&memory, directory + 770 * 4), 0, "and no more");
    assert_eq!(word(&memory, tables), 7, "page 0");
    assert_eq!(word(&memory, tables + 2047 * 4), (8 * MIB - 0x1000) | 7, "the last page");
    assert_eq!(layout.devices(), GuestPhys(8 * MIB));
}

#[test]
fn without_an_initrd_the_page_tables_are_at_the_top() {
    let kernel = kernel_at(CODE, 0x3000);
    let layout = plan("4M", &kernel, &[], 0).unwrap();
    assert_eq!(layout.page_directory(), GuestPhys(4 * MIB - 0x1000));
    assert_eq!(layout.initrd(), None);
}

#[test]
fn what_does_not_fit_gets_a_sentence() {
    let kernel = kernel_at(CODE, 0x3000);
    assert_eq!(
        refusal("4M", &kernel_at(CODE, 4 * MIB), &[], 0),
        "the kernel needs memory up to 0x500000, and 4M end at 0x400000"
    );
    assert_eq!(
        refusal("4M", &kernel, &[], 3 * u64::from(MIB)),
        "4M of memory is too little: the kernel, 3145728 bytes of initrd and its page tables need 4214784 bytes"
    );
    assert_eq!(
        refusal("4M", &kernel, &[], u64::MAX / 2),
        format!(
            "4M of memory is too little: the kernel, {} bytes of initrd and its page tables need {} bytes",
            u64::MAX / 2,
            u64::MAX / 2 + 1 + 0x10_3000 + 0x2000
        )
    );
    assert_eq!(
        refusal("4M", &kernel_at(0x800, 0x100), &[], 0),
        "the kernel begins at 0x00000800, where the launcher puts its boot parameters"
    );
    assert_eq!(
        refusal("4M", &kernel_at(0x1004, 0x100), &["four"], 0),
        "the kernel's arguments take 6 bytes, and there is room for 4 before the kernel"
    );
    assert_eq!(
        refusal("4M", &kernel, &["a\0b"], 0),
        "the kernel's argument \"a\\0b\" has a zero byte in it"
    );
}

#[test]
fn the_largest_guest_can_be_laid_out() {
    let layout = plan("4092M", &kernel_at(CODE, 0x3000), &[], 1).unwrap();
    assert_eq!(layout.devices(), GuestPhys(MemorySize::MAX.bytes()));
}

/// Linux 2.6.24 leaves an initrd alone that isn't all in what it keeps mapped, and has no root then.
#[test]
fn the_initrd_is_where_every_kernel_reaches() {
    let kernel = kernel_at(CODE, 0x3000);
    for memory in ["768M", "769M", "1G", "4092M"] {
        let layout = plan(memory, &kernel, &[], 1).unwrap();
        assert_eq!(layout.initrd().unwrap().start, GuestPhys(768 * MIB - 0x1000), "{memory}");
        assert_eq!(layout.page_directory(), GuestPhys(768 * MIB - 0x2000), "{memory}");
    }
    assert_eq!(
        refusal("1G", &kernel, &[], 768 * u64::from(MIB)),
        "the kernel, 805306368 bytes of initrd and its page tables need 807419904 bytes, and kernels reach 805306368 when they start"
    );
}

#[test]
fn a_kernel_gets_no_longer_command_line_than_it_keeps() {
    let old = Kernel::parse(&bzimage::first_generation()).unwrap();
    let (fits, longer) = ("x".repeat(254), "x".repeat(255));
    assert!(plan("8M", &old, &[&fits], 0).is_ok());
    assert_eq!(
        plan("8M", &old, &[&longer], 0).unwrap_err(),
        LayoutError::CommandLineTooLong { length: 256, limit: 255 }
    );
    let unlimited = kernel_at(CODE, 0x3000);
    assert!(plan("8M", &unlimited, &[&longer], 0).is_ok());
}
