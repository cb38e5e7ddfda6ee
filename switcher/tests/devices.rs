//! Devices in physical addresses beyond memory: each instruction makes one access of its own width, and no other.

mod guest;

use guest::{DeviceAccess, Guest, MEMORY, Page};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::{Exit, Gpr, PAGE_SIZE};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Where the kernel sees the device's page.
const REGISTERS: u32 = 0xc070_0000;
/// Where it lies in physical memory.
const PHYS: u32 = MEMORY + 0x10_0000;

/// A kernel that has the device mapped.
fn with_device(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut guest = Guest::kernel(&program);
    let page = Page { frame: PHYS / PAGE_SIZE, writable: true, user: false };
    guest.tables.pages.insert(REGISTERS / PAGE_SIZE, page);
    guest.tables.has_device = true;
    guest
}

/// Such a kernel, run to its end twice: what was learned at the first time makes no difference.
fn accesses(
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (Guest, Vec<DeviceAccess>) {
    let mut guest = with_device(program);
    guest.finish();
    let first = std::mem::take(&mut guest.tables.device_accesses);
    guest.start_kernel(guest::KERNEL);
    guest.finish();
    let second = std::mem::take(&mut guest.tables.device_accesses);
    assert_eq!(first, second);
    (guest, first)
}

fn read(offset: u32, bytes: usize) -> DeviceAccess {
    DeviceAccess::Read(PHYS + offset, bytes)
}

fn write(offset: u32, bytes: &[u8]) -> DeviceAccess {
    DeviceAccess::Write(PHYS + offset, bytes.to_vec())
}

#[test]
fn loads_read_once_and_as_wide_as_they_are() {
    let (guest, accesses) = accesses(|a| {
        a.mov(edi, REGISTERS)?;
        a.mov(eax, dword_ptr(edi + 0x10))?;
        a.movzx(ebx, word_ptr(edi + 0x22))?;
        a.mov(cl, byte_ptr(edi + 0x33))?;
        a.mov(edx, dword_ptr(REGISTERS + 0x44))
    });
    assert_eq!(accesses, [read(0x10, 4), read(0x22, 2), read(0x33, 1), read(0x44, 4)]);
    let [a, b, d] = [Gpr::Eax, Gpr::Ebx, Gpr::Edx].map(|register| guest.gpr(register));
    assert_eq!((a, b, d), (0x1312_1110, 0x2322, 0x4746_4544));
    assert_eq!(guest.gpr(Gpr::Ecx) & 0xff, 0x33);
}

/// A device may forget what it told: who is called back meanwhile takes the answer along.
#[test]
fn a_kick_in_the_middle_of_a_load_comes_behind_it() {
    for read in [false, true] {
        let mut guest = with_device(|a| {
            a.mov(eax, dword_ptr(REGISTERS + 0x10))?;
            if read { a.add(eax, dword_ptr(REGISTERS + 0x20)) } else { a.nop() }
        });
        guest.tables.kicker = Some(guest.vcpu.kicker());
        let reads = 1 + usize::from(read);
        for n in 1..=reads {
            assert_eq!(guest.run(), Exit::Kicked);
            assert_eq!(guest.tables.device_accesses.len(), n, "once each");
        }
        guest.finish();
        assert_eq!(guest.tables.device_accesses.len(), reads);
        let sum = 0x1312_1110u32.wrapping_add(if read { 0x2322_2120 } else { 0 });
        assert_eq!(guest.gpr(Gpr::Eax), sum);
    }
}

/// The call may also come when the answer is on its way to its register.
#[test]
fn kicks_at_any_moment_repeat_no_load() {
    const LOADS: u32 = 500_000;
    let mut guest = with_device(|a| {
        let mut again = a.create_label();
        a.mov(ecx, LOADS)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.add(eax, dword_ptr(REGISTERS + 0x10))?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    let (kicker, done) = (guest.vcpu.kicker(), AtomicBool::new(false));
    let kicks = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                kicker.kick();
            }
        });
        let mut kicks = 0;
        while guest.run() == Exit::Kicked {
            kicks += 1;
        }
        done.store(true, Ordering::Relaxed);
        kicks
    });
    assert!(kicks > 0);
    assert_eq!(guest.tables.device_accesses.len(), LOADS as usize);
    assert_eq!(guest.gpr(Gpr::Eax), 0x1312_1110u32.wrapping_mul(LOADS));
}

#[test]
fn stores_dont_read() {
    let (_, accesses) = accesses(|a| {
        a.mov(edi, REGISTERS)?;
        a.mov(eax, 0x4433_2211)?;
        a.mov(dword_ptr(edi), eax)?;
        a.mov(word_ptr(edi + 6), ax)?;
        a.mov(byte_ptr(edi + 9), al)?;
        a.mov(dword_ptr(edi + 12), 5)
    });
    assert_eq!(
        accesses,
        [
            write(0, &[0x11, 0x22, 0x33, 0x44]),
            write(6, &[0x11, 0x22]),
            write(9, &[0x11]),
            write(12, &[5, 0, 0, 0])
        ]
    );
}

#[test]
fn what_reads_and_writes_does_each_once() {
    let (_, accesses) = accesses(|a| {
        a.mov(edi, REGISTERS)?;
        a.or(dword_ptr(edi + 4), 0x80)?;
        a.mov(al, 1)?;
        a.xchg(byte_ptr(edi + 8), al)
    });
    assert_eq!(accesses, [read(4, 4), write(4, &[0x84, 5, 6, 7]), read(8, 1), write(8, &[1])]);
}

#[test]
fn strings_access_element_by_element() {
    let (guest, accesses) = accesses(|a| {
        a.mov(esi, REGISTERS + 0x20)?;
        a.mov(edi, guest::KERNEL_DATA)?;
        a.mov(ecx, 3)?;
        a.rep().movsw()
    });
    let words: Vec<DeviceAccess> = (0..3).map(|n| read(0x20 + n * 2, 2)).collect();
    assert_eq!(accesses, words);
    assert_eq!(guest.peek(guest::KERNEL_DATA), 0x2322_2120);
}
