//! Windows on a small memory, looked at through the process's own eyes.

use super::*;
use std::ptr::with_exposed_provenance_mut;

const PAGES: u32 = 64;

fn windows() -> (Arc<GuestMemory>, Windows, Slot) {
    let memory = Arc::new(GuestMemory::new(PAGES * PAGE_SIZE).unwrap());
    let mut windows = Windows::new(memory.clone(), account::limit());
    let slot = windows.create().unwrap();
    (memory, windows, slot)
}

fn run(page: u32, frame: u32, pages: u32, writable: bool) -> Mapping {
    let (virt, phys) = (GuestVirt(page * PAGE_SIZE), GuestPhys(frame * PAGE_SIZE));
    Mapping { virt, phys, pages, writable, user: false }
}

fn peek(windows: &Windows, slot: Slot, at: u32) -> u32 {
    let address = windows.base(slot) + u64::from(at);
    // SAFETY: the tests only look where they have mapped something.
    unsafe { with_exposed_provenance_mut::<u32>(address as usize).read_volatile() }
}

#[test]
fn a_window_shows_the_frames_it_was_told() {
    let (memory, mut windows, slot) = windows();
    memory.write_u32(GuestPhys(0x3004), 7).unwrap();
    windows.map(slot, &run(0xfffff, 3, 1, true)).unwrap();
    windows.map(slot, &run(0x10, 2, 4, false)).unwrap();
    assert_eq!(peek(&windows, slot, 0xffff_f004), 7);
    assert_eq!(peek(&windows, slot, 0x11004), 7);
    assert_eq!(windows.shown(slot, 0x13), Some(run(0x13, 5, 1, false)));
    assert_eq!(windows.shown(slot, 0x14), None);
    assert_eq!(windows.mapped_pages(slot), 5);
}

#[test]
fn runs_are_reported_joined() {
    let (_, mut windows, slot) = windows();
    windows.map(slot, &run(0x10, 2, 4, true)).unwrap();
    windows.map(slot, &run(0x14, 6, 2, true)).unwrap();
    windows.map(slot, &run(0x16, 8, 1, false)).unwrap();
    windows.record(slot, 0x20, &run(0x20, 1, 1, false));
    windows.forget(slot, 0x12, 1);
    let mut runs = Vec::new();
    windows.for_each_run(slot, &mut |run| runs.push(run));
    let expected = [
        run(0x10, 2, 2, true),
        run(0x13, 5, 3, true),
        run(0x16, 8, 1, false),
        run(0x20, 1, 1, false),
    ];
    assert_eq!(runs, expected);
}

#[test]
fn what_is_not_memory_is_left_out() {
    let (_, mut windows, slot) = windows();
    windows.map(slot, &run(0x10, PAGES - 1, 4, true)).unwrap();
    assert!(windows.get(slot, 0x10).is_mapped() && !windows.get(slot, 0x11).is_known());
}

#[test]
fn frames_with_code_are_read_only_wherever_they_are_shown() {
    let (_, mut windows, slot) = windows();
    let other = windows.create().unwrap();
    windows.map(slot, &run(0, 0, 8, true)).unwrap();
    windows.protect_frame(5);
    windows.map(other, &run(0x100, 4, 3, true)).unwrap();
    assert!(windows.get(slot, 5).is_protected() && !windows.get(slot, 4).is_protected());
    assert!(windows.get(other, 0x101).is_protected() && windows.get(other, 0x101).is_writable());
    windows.unprotect_frame(5);
    assert!(!windows.get(slot, 5).is_protected() && !windows.get(other, 0x101).is_protected());
}

#[test]
fn the_account_follows_the_kernel() {
    let (_, mut windows, slot) = windows();
    let mappings = |windows: &Windows| windows.windows[0].as_ref().unwrap().mappings;
    assert_eq!(mappings(&windows), 1);
    windows.map(slot, &run(0x10, 0, 8, true)).unwrap();
    assert_eq!(mappings(&windows), 3);
    windows.map(slot, &run(0x18, 8, 8, true)).unwrap();
    assert_eq!(mappings(&windows), 3, "contiguous runs join");
    windows.map(slot, &run(0x20, 1, 1, true)).unwrap();
    assert_eq!(mappings(&windows), 4);
    windows.protect_frame(4);
    assert_eq!(mappings(&windows), 6);
    windows.unprotect_frame(4);
    assert_eq!(mappings(&windows), 4);
    windows.forget(slot, 0x14, 2);
    assert_eq!(mappings(&windows), 6);
    windows.forget_all(slot);
    assert_eq!(mappings(&windows), 1);
    let base = windows.base(slot);
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = text.lines().filter(|line| {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
        start.is_some_and(|start| start >= base && start < base + WINDOW)
    });
    assert_eq!(inside.count(), 0, "one mapping, which starts with the guard");
}

#[test]
fn near_the_limit_mapping_is_refused_and_dropping_a_window_helps() {
    let memory = Arc::new(GuestMemory::new(PAGES * PAGE_SIZE).unwrap());
    let mut windows = Windows::new(memory, account::count() + 40);
    let slot = windows.create().unwrap();
    let mut made = 0;
    while windows.map(slot, &run(made * 2, made % PAGES, 1, true)).is_ok() {
        made += 1;
        assert!(made < 100);
    }
    windows.drop_mappings(slot);
    assert!(windows.shown(slot, 0).is_some() && !windows.get(slot, 0).is_mapped());
    windows.map(slot, &run(0, 0, 1, true)).unwrap();
}
