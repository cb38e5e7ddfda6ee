//! DMA between a guest and the launcher's devices.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use lguest_host::{DeviceIo, Devices, GuestPhys, NoBuffer, Sections, Stop};
use tiny_guest::*;

/// The device's key: the device page.
const KEY: u32 = MEMORY;

/// Takes what is sent to [`KEY`], and answers it through the bound buffers as the closure says.
struct Device<F> {
    sent: Vec<Vec<u8>>,
    answer: F,
}

impl<F: FnMut(&mut DeviceIo<'_>) -> u32> Device<F> {
    fn new(answer: F) -> Self {
        Self { sent: Vec::new(), answer }
    }
}

impl<F: FnMut(&mut DeviceIo<'_>) -> u32> Devices for Device<F> {
    fn send(&mut self, key: GuestPhys, sections: &Sections, io: &mut DeviceIo<'_>) -> Option<u32> {
        if key != GuestPhys(KEY) {
            return None;
        }
        let mut bytes = Vec::new();
        sections.gather(io.memory(), &mut bytes);
        self.sent.push(bytes);
        Some((self.answer)(io))
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        None
    }
}

fn send(c: &mut Code, key: u32) -> Assembled {
    c.hypercall(Hypercall::SendDma { key: Phys(key), dma: Phys(SCRATCH) })
}

fn bind(key: u32, array: u32, count: u32, irq: u8) -> Hypercall {
    Hypercall::BindDma { key: Phys(key), array: Phys(array), count, irq }
}

#[test]
fn send_dma_gives_the_sections_up_to_the_first_empty_one() {
    let guest = TinyGuest::new();
    guest.put(FREE, b"hello, ");
    guest.put(FREE + 0x1ffe, b"world!");
    guest.put_dma(SCRATCH, 0, &[(FREE, 7), (FREE + 0x1ffe, 6), (0, 0), (FREE, 7)]);
    let mut device = Device::new(|_| 13);
    let outcome = guest.kernel(|c| send(c, KEY)).run_with(&mut device).powered_off();
    assert_eq!(device.sent, [b"hello, world!".to_vec()]);
    assert_eq!(outcome.guest.word(SCRATCH), 13, "used_len is what was taken");
}

#[test]
fn a_key_that_no_device_has_changes_nothing() {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0x55, &[(FREE, 7)]);
    let mut device = Device::new(|_| 13);
    let outcome = guest.kernel(|c| send(c, 8)).run_with(&mut device).powered_off();
    assert_eq!(outcome.guest.word(SCRATCH), 0x55);
    assert!(outcome.trace.iter().any(|line| line.contains("which no device has")));
}

#[test]
fn send_dma_leaves_eax_alone() {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0, &[]);
    let outcome = guest
        .kernel(|c| {
            send(c, 8)?;
            c.note(0, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 13);
}

#[test]
fn bind_dma_says_whether_it_did() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            let calls = [
                bind(KEY, SCRATCH, 1, 1),
                bind(KEY, SCRATCH, 1, 31),
                bind(KEY, SCRATCH, 1, 32),
                bind(KEY, SCRATCH, 1, 255),
            ];
            for (slot, call) in (0..).zip(calls) {
                c.hypercall(call)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2, 3].map(|slot| outcome.result(slot)), [1, 1, 0, 0]);
}

#[test]
fn at_most_32_arrays_are_bound() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            for index in 0..33 {
                c.hypercall(bind(index * 4, SCRATCH, 1, 1))?;
                c.add(dword_ptr(virt(RESULTS)), eax)?;
            }
            // Withdrawing one makes room.
            c.hypercall(bind(0, SCRATCH, 1, 0))?;
            c.note(1, eax)?;
            c.hypercall(bind(0, SCRATCH, 1, 1))?;
            c.note(2, eax)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2].map(|slot| outcome.result(slot)), [32, 1, 1]);
}

#[test]
fn irq_0_withdraws_the_array_at_that_key_and_address() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.hypercall(bind(KEY, SCRATCH, 1, 1))?;
            let calls = [
                bind(KEY, SCRATCH + 100, 1, 0),
                bind(KEY + 4, SCRATCH, 1, 0),
                bind(KEY, SCRATCH, 1, 0),
                bind(KEY, SCRATCH, 1, 0),
            ];
            for (slot, call) in (0..).zip(calls) {
                c.hypercall(call)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2, 3].map(|slot| outcome.result(slot)), [0, 0, 1, 0]);
}

#[test]
fn data_goes_into_the_lowest_free_buffer_and_raises_its_interrupt() {
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 9, &[(FREE, 100)]);
    guest.put_dma(array + 100, 0, &[(FREE + 0x100, 3), (FREE + 0x200, 100)]);
    guest.put_dma(array + 200, 0, &[(FREE + 0x300, 100)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), b"abcdef"), Ok(6));
        0
    });
    let outcome = guest
        .handler(37, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 3, 5))?;
            c.enable_interrupts()?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    let used = [0, 1, 2].map(|index| outcome.guest.word(array + index * 100));
    assert_eq!(used, [9, 6, 0]);
    assert_eq!(outcome.guest.word(FREE + 0x100), u32::from_le_bytes(*b"abc\0"));
    assert_eq!(outcome.guest.word(FREE + 0x200), u32::from_le_bytes(*b"def\0"));
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn a_buffer_takes_no_more_than_it_holds_and_is_never_overwritten() {
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(FREE, 4)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), b"abcdef"), Ok(4));
        assert_eq!(io.fill(GuestPhys(KEY), b"ef"), Err(NoBuffer::NoneFree));
        assert_eq!(io.fill(GuestPhys(KEY + 4), b"ef"), Err(NoBuffer::NotBound));
        0
    });
    let outcome = guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.guest.word(FREE), u32::from_le_bytes(*b"abcd"));
    assert_eq!(outcome.guest.word(array), 4);
}

#[test]
fn a_device_may_interrupt_without_data() {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0, &[]);
    let mut device = Device::new(|io| {
        assert!(io.interrupt(GuestPhys(KEY)));
        assert!(!io.interrupt(GuestPhys(KEY + 4)));
        0
    });
    let outcome = guest
        .handler(37, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(bind(KEY, SCRATCH, 1, 5))?;
            c.enable_interrupts()?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn a_device_may_fill_a_buffer_itself() {
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(FREE, 4)]);
    let mut device = Device::new(|io| {
        let buffer = io.buffer(GuestPhys(KEY)).expect("one is free");
        let pieces: Vec<_> = buffer.sections().iter().collect();
        assert_eq!(pieces, [(GuestPhys(FREE), 4)]);
        io.memory().write(GuestPhys(FREE), b"self").expect("it is memory");
        io.complete(&buffer, 0x1234);
        0
    });
    let outcome = guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.guest.word(array), 0x1234);
    assert_eq!(outcome.guest.word(FREE), u32::from_le_bytes(*b"self"));
}

#[test]
fn a_bad_section_in_a_bound_buffer_ends_its_owner() {
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    let start = GuestPhys(MEMORY + 0xffe);
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(FREE, 4), (start.0, 4)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), b"abcdef"), Err(NoBuffer::NoneFree));
        0
    });
    guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .killed(lguest_host::Kill::BadDmaSection { dma: GuestPhys(array), start, bytes: 4 });
}

#[test]
fn a_free_buffer_without_room_takes_nothing() {
    // Or a device that waits until all is taken would wait for ever.
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(FREE, 0), (FREE, 4)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), b"abcdef"), Err(NoBuffer::NoRoom));
        assert_eq!(io.fill(GuestPhys(KEY), b""), Ok(0));
        0
    });
    let outcome = guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.guest.word(array), 0);
    assert_eq!(outcome.guest.word(FREE), 0);
}

#[test]
fn an_array_is_withdrawn_by_its_address_alone() {
    // Nothing is read from it any more, so it needn't be memory, and the count says nothing.
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.hypercall(bind(KEY, SCRATCH, 1, 1))?;
            for (slot, call) in
                [(0, bind(KEY, u32::MAX, 0xff_ffff, 0)), (1, bind(KEY, SCRATCH, 0xff_ffff, 0))]
            {
                c.hypercall(call)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [0, 1]);
}

#[test]
fn after_withdrawal_nothing_is_delivered() {
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(FREE, 4)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), b"abcd"), Err(NoBuffer::NotBound));
        0
    });
    let outcome = guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            c.hypercall(bind(KEY, array, 1, 0))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.guest.word(FREE), 0);
}

#[test]
fn all_sixteen_sections_count_and_may_cross_pages() {
    let guest = TinyGuest::new();
    let sections: Vec<(u32, u16)> = (0..16).map(|n| (FREE + n * 0x1000 + 0xfff, 2)).collect();
    for (n, (start, _)) in (0..).zip(&sections) {
        guest.put(*start, &[b'a' + n, b'A' + n]);
    }
    guest.put_dma(SCRATCH, 0, &sections);
    let mut device = Device::new(|_| 32);
    guest.kernel(|c| send(c, KEY)).run_with(&mut device).powered_off();
    assert_eq!(device.sent, [b"aAbBcCdDeEfFgGhHiIjJkKlLmMnNoOpP".to_vec()]);
}

#[test]
fn a_buffer_that_names_its_own_description_is_no_trap_for_the_host() {
    // What arrives overwrites the Dma that describes where it goes; used_len is written last.
    let guest = TinyGuest::new();
    let array = SCRATCH + 0x400;
    guest.put_dma(SCRATCH, 0, &[]);
    guest.put_dma(array, 0, &[(array, 100)]);
    let mut device = Device::new(|io| {
        assert_eq!(io.fill(GuestPhys(KEY), &[0; 100]), Ok(100));
        assert_eq!(io.fill(GuestPhys(KEY), &[0; 100]), Err(NoBuffer::NoneFree));
        0
    });
    let outcome = guest
        .kernel(|c| {
            c.hypercall(bind(KEY, array, 1, 5))?;
            send(c, KEY)
        })
        .run_with(&mut device)
        .powered_off();
    assert_eq!(outcome.guest.word(array), 100);
}
