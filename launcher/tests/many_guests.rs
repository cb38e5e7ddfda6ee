//! Guests one after another and at the same time: all of them end, and nothing of them stays.
//!
//! A program of its own, because it counts what its process holds.

use lguest::{Console, Ending, MemorySize, Vm};
use std::fs;
use std::io::{self, Read, Write};
use std::thread;

const ONE_AFTER_ANOTHER: usize = 200;
const AT_ONCE: usize = 20;

/// What this process holds of what a guest might leave behind.
#[derive(Debug)]
struct Held {
    /// Memory that is really there, in KiB.
    resident: usize,
    descriptors: usize,
    threads: usize,
    mappings: usize,
    children: usize,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let children = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        let count = |folder: &str| fs::read_dir(folder).unwrap().count();
        Self {
            resident: resident.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
            children,
        }
    }
}

/// Boots the bundled guest, has it do something and power off, and gives what it printed.
fn boot() -> String {
    let (input, mut keyboard) = io::pipe().unwrap();
    let (mut screen, output) = io::pipe().unwrap();
    keyboard.write_all(b"echo it runs\npoweroff\n").unwrap();
    let guest = thread::spawn(move || {
        let console = Console::silent().input(input).output(output);
        let memory = MemorySize::from_mib(32).unwrap();
        Vm::builder().memory(memory).console(console).build().unwrap().run().unwrap()
    });
    let mut printed = String::new();
    screen.read_to_string(&mut printed).unwrap();
    assert_eq!(guest.join().unwrap(), Ending::PowerOff, "{printed}");
    assert!(printed.contains("it runs"), "{printed}");
    printed
}

/// Files that guests of any process may have left.
fn left_over_files() -> usize {
    ["/tmp", "/dev/shm"]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("lguest") || name.contains("guest-memory"))
        .count()
}

#[test]
fn guests_come_and_go_and_leave_nothing() {
    let files = left_over_files();
    // The first ones make what a process keeps: pools of the allocator, signal handlers, tables.
    (0..10).for_each(|_| drop(boot()));
    let before = Held::now();

    (0..ONE_AFTER_ANOTHER).for_each(|_| drop(boot()));
    same(&before, &Held::now());

    let guests: Vec<_> = (0..AT_ONCE).map(|_| thread::spawn(boot)).collect();
    guests.into_iter().for_each(|guest| drop(guest.join().unwrap()));
    same(&before, &Held::now());
    assert_eq!(left_over_files(), files);
}

/// What can't change hasn't, and what the allocator may hold on to has hardly.
fn same(before: &Held, after: &Held) {
    let context = format!("{before:?} became {after:?}");
    assert_eq!(before.descriptors, after.descriptors, "{context}");
    assert_eq!(before.threads, after.threads, "{context}");
    assert_eq!(before.children, after.children, "{context}");
    // The allocator keeps an arena for each thread there ever was at the same time.
    assert!(after.mappings <= before.mappings + 4 * AT_ONCE, "{context}");
    assert!(after.resident <= before.resident + 32 * 1024, "{context}");
}
