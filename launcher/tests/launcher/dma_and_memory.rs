//! What a guest finds in its memory, as it says itself by sending the pieces to its console; and what becomes of guests
//! whose buffers are odd.

use crate::command::{file, finish, lguest};
use crate::endings::{send, start};
use crate::tiny_guest::{DATA, READY, call, crash, guest, init, sleep};
use lguest_abi::address::Phys;
use lguest_abi::dma::{Dma, Section};
use lguest_abi::hypercall::{Hypercall, POWER_OFF_MESSAGE};
use rustix::process::Signal;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Where a guest of [`with_dmas`] has its first `Dma`, the second one, and text.
const FIRST: Phys = Phys(DATA + 0x100);
const SECOND: Phys = Phys(DATA + 0x200);
const TEXT: u32 = DATA + 0x300;

const MEMORY: u32 = 16 << 20;

/// What a guest finds at [`DATA`]: how to power off, two `Dma` with these sections, and text.
fn with_dmas(first: &[(u32, u16)], second: &[(u32, u16)], text: &[u8]) -> Vec<u8> {
    let mut data = vec![0; 0x300];
    data[..POWER_OFF_MESSAGE.len()].copy_from_slice(POWER_OFF_MESSAGE.as_bytes());
    data[0x100..0x164].copy_from_slice(&dma(first));
    data[0x200..0x264].copy_from_slice(&dma(second));
    data.extend(text);
    data
}

/// How a `Dma` with these sections lies in memory.
fn dma(sections: &[(u32, u16)]) -> Vec<u8> {
    let dma = Dma::new();
    dma.set_sections(sections.iter().map(|&(addr, len)| Section { addr: Phys(addr), len }));
    let mut bytes = dma.used_len.load(Ordering::Relaxed).to_le_bytes().to_vec();
    let mut starts: Vec<u32> = dma.sections().map(|section| section.addr.0).collect();
    let mut lengths: Vec<u16> = dma.sections().map(|section| section.len).collect();
    starts.resize(16, 0);
    lengths.resize(16, 0);
    bytes.extend(starts.iter().flat_map(|start| start.to_le_bytes()));
    bytes.extend(lengths.iter().flat_map(|len| len.to_le_bytes()));
    bytes
}

/// What a guest of 16 MiB finds in these pieces of its memory.
fn found(pieces: &[(u32, u16)], arguments: &[&str]) -> Vec<u8> {
    let kernel = file(&guest(&with_dmas(pieces, &[], b""), |a| {
        init(a)?;
        call(a, Hypercall::SendDma { key: Phys(0), dma: FIRST })?;
        crash(a)
    }));
    let mut command = lguest(&["run", "--memory", "16M"]);
    let output = command.arg(&kernel).args(arguments).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    output.stdout
}

#[test]
fn the_memory_map_and_the_platform() {
    let map = found(&[(0x1e8, 1), (0x2d0, 20), (0x228, 4), (0x23c, 4)], &[]);
    let mut expected = vec![1];
    expected.extend(0u64.to_le_bytes());
    expected.extend(u64::from(MEMORY).to_le_bytes());
    expected.extend([1u32, 4096, 1].iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(map, expected);
}

#[test]
fn the_command_line_behind_it() {
    assert_eq!(found(&[(4096, 7)], &["--", "one", "2"]), b"one 2 \0");
    assert_eq!(found(&[(4096, 7)], &[]), [0; 7]);
}

#[test]
fn a_page_of_devices_beyond_its_memory() {
    let descriptors = found(&[(MEMORY, 16 * 12)], &[]);
    let mut console_and_nothing_else = [0; 16 * 12];
    console_and_nothing_else[0] = 1;
    assert_eq!(descriptors, console_and_nothing_else);
}

#[test]
fn nothing_beyond_that_page() {
    let kernel = file(&guest(&with_dmas(&[(MEMORY + 4096, 1)], &[], b""), |a| {
        init(a)?;
        call(a, Hypercall::SendDma { key: Phys(0), dma: FIRST })
    }));
    let (status, out, error) = finish(lguest(&["run", "--memory", "16M"]).arg(&kernel));
    assert_eq!((status, out.as_str()), (Some(1), ""));
    let section = "bad DMA section at 0x01001000, length 1, of the Dma at 0x00200100";
    assert_eq!(error, format!("lguest: the guest was ended: {section}\n"));
}

#[test]
fn what_is_sent_where_no_device_is_gets_one_warning() {
    let kernel = file(&guest(&with_dmas(&[(TEXT, 4)], &[], b"lost"), |a| {
        init(a)?;
        for key in [4, 4, MEMORY, 0x1000] {
            call(a, Hypercall::SendDma { key: Phys(key), dma: FIRST })?;
        }
        crash(a)
    }));
    let (status, out, error) = finish(lguest(&["run", "--memory", "16M"]).arg(&kernel));
    assert_eq!((status, out.as_str()), (Some(0), ""));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("0x00000004, where it has no device"), "{error}");
}

/// Says that it is ready, with something bound at the console's key, and sleeps.
fn listening_with(input: &[(u32, u16)], count: u32) -> Vec<u8> {
    guest(&with_dmas(&[(TEXT, READY.len() as u16)], input, READY), |a| {
        init(a)?;
        let (key, irq) = (Phys(0), 1);
        call(a, Hypercall::BindDma { key, array: SECOND, count, irq })?;
        call(a, Hypercall::SendDma { key, dma: FIRST })?;
        sleep(a)
    })
}

#[test]
fn a_guest_without_room_for_its_input_can_be_ended() {
    // A buffer of no bytes, and an array of no buffers.
    for kernel in [listening_with(&[], 1), listening_with(&[(TEXT, 4)], 0)] {
        let kernel = file(&kernel);
        let mut child = start(&kernel);
        child.stdin.as_mut().unwrap().write_all(b"is anybody there?").unwrap();
        thread::sleep(Duration::from_millis(100));
        let asked = Instant::now();
        send(Signal::TERM, &child);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
        // At once, and not by the rescue that comes when a guest's thread is stuck.
        assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?}", asked.elapsed());
    }
}

#[test]
fn a_bad_input_buffer_ends_its_guest_when_input_comes() {
    let kernel = file(&listening_with(&[(u32::MAX, 2)], 1));
    let mut child = lguest(&["run"])
        .arg(&kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let section = "bad DMA section at 0xffffffff, length 2, of the Dma at 0x00200200";
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, format!("lguest: the guest was ended: {section}\n"));
}
