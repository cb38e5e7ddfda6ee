//! The ring of queued hypercalls: when it is served, how far, and what is left behind.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::{Hypercall, number};
use lguest_abi::lguest_data::{HCALL_RING_SIZE, offset};
use lguest_host::{Devices, End, GuestPhys, Kill, Sections};
use tiny_guest::*;

const HALF_RING: u32 = HCALL_RING_SIZE as u32 / 2;

/// Queues an entry while the guest runs.
fn enqueue(c: &mut Code, slot: u32, call: Hypercall) -> Assembled {
    for (index, word) in (0..4).zip(call.encode()) {
        c.set_field(offset::HCALLS + slot * 16 + index * 4, word)?;
    }
    c.mov(byte_ptr(virt(DATA) + offset::HCALL_STATUS + slot), 0)
}

/// A bind_dma of an array of no buffers: something to count.
fn bind(key: u32) -> Hypercall {
    Hypercall::BindDma { key: Phys(key), array: Phys(SCRATCH), count: 0, irq: 1 }
}

/// The keys of the calls in the ring, as the trace shows that they were carried out.
fn served(outcome: &Outcome) -> Vec<String> {
    let queued = outcome.trace.iter().filter(|line| line.ends_with("(queued)"));
    queued.map(|line| line.replace("hypercall  ", "").replace("  (queued)", "")).collect()
}

#[test]
fn init_itself_is_served_before_the_ring() {
    let guest = TinyGuest::new();
    guest.queue(0, bind(4));
    let outcome = guest.kernel(|_| Ok(())).run().powered_off();
    assert_eq!(served(&outcome).len(), 1);
    assert_eq!(outcome.status(0), 0xff);
}

#[test]
fn the_ring_is_served_in_order_before_the_direct_call() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            for slot in 0..3 {
                enqueue(c, slot, bind(4 * slot))?;
            }
            c.hypercall(Hypercall::GetWallclock)
        })
        .run()
        .powered_off();
    let at = |what: &str| outcome.trace.iter().position(|line| line.contains(what));
    let keys: Vec<_> = served(&outcome);
    assert_eq!(keys.len(), 3);
    for (line, key) in keys.iter().zip(["key=0x00000000", "key=0x00000004", "key=0x00000008"]) {
        assert!(line.contains(key), "{line} has {key}");
    }
    assert!(at("key=0x00000008") < at("GET_WALLCLOCK"));
}

#[test]
fn results_of_ring_entries_are_dropped() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            enqueue(c, 0, Hypercall::GetWallclock)?;
            c.hypercall(Hypercall::FlushAsync)?;
            c.note(0, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), number::FLUSH_ASYNC);
}

#[test]
fn it_stops_at_the_first_entry_that_is_done_and_goes_on_from_there() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            enqueue(c, 0, bind(0))?;
            enqueue(c, 2, bind(8))?;
            c.hypercall(Hypercall::FlushAsync)?;
            c.mov(al, byte_ptr(virt(DATA) + offset::HCALL_STATUS + 2))?;
            c.mov(byte_ptr(virt(RESULTS)), al)?;
            enqueue(c, 1, bind(4))?;
            c.hypercall(Hypercall::FlushAsync)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0, "entry 2 was still pending after the first time");
    assert_eq!([0, 1, 2].map(|slot| outcome.status(slot)), [0xff; 3]);
    assert_eq!(served(&outcome).len(), 3);
}

#[test]
fn any_status_but_ff_means_pending() {
    let guest = TinyGuest::new();
    for (slot, status) in [(0, 1u8), (1, 0xfe), (2, 0x80)] {
        guest.queue(slot, bind(slot * 4));
        guest.put(DATA + offset::HCALL_STATUS + slot, &[status]);
    }
    let outcome = guest.kernel(|_| Ok(())).run().powered_off();
    assert_eq!(served(&outcome).len(), 3);
}

#[test]
fn a_full_ring_is_served_once_round() {
    let guest = TinyGuest::new();
    for slot in 0..2 * HALF_RING {
        guest.queue(slot, Hypercall::FlushAsync);
    }
    let outcome = guest.kernel(|_| Ok(())).run().powered_off();
    assert_eq!(served(&outcome).len(), HCALL_RING_SIZE);
}

#[test]
fn the_cursor_wraps() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            for round in 0..3 {
                for slot in 0..HALF_RING {
                    let slot = (round * HALF_RING + slot) % (2 * HALF_RING);
                    enqueue(c, slot, Hypercall::FlushAsync)?;
                }
                c.hypercall(Hypercall::FlushAsync)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!(served(&outcome).len(), 3 * HALF_RING as usize);
}

#[test]
fn a_trap_serves_the_ring_too() {
    let outcome = TinyGuest::new()
        .handler(3, |c| {
            c.mov(al, byte_ptr(virt(DATA) + offset::HCALL_STATUS))?;
            c.mov(byte_ptr(virt(RESULTS)), al)?;
            c.iretd()
        })
        .kernel(|c| {
            enqueue(c, 0, bind(4))?;
            c.int3()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0xff);
}

#[test]
fn a_crash_in_the_ring_ends_the_guest() {
    let guest = TinyGuest::new();
    guest.put(SCRATCH, b"from the ring\0");
    guest.queue(0, Hypercall::Crash { message: Phys(SCRATCH) });
    guest.queue_words(1, [99, 0, 0, 0, 0]);
    let outcome = guest.kernel(|_| Ok(())).run();
    assert_eq!(outcome.end, End::Crashed("from the ring".to_owned()));
}

#[test]
fn a_bad_entry_ends_the_guest() {
    let guest = TinyGuest::new();
    guest.queue_words(0, [17, 0, 0, 0, 0]);
    guest.kernel(|_| Ok(())).run().killed(Kill::UnknownHypercall { number: 17 });
}

/// Serves one key, and looks at the status of ring entry 1 while it does.
struct Nosy {
    status: Option<u8>,
}

impl Devices for Nosy {
    fn send(
        &mut self,
        _: GuestPhys,
        _: &Sections,
        io: &mut lguest_host::DeviceIo<'_>,
    ) -> Option<u32> {
        self.status = io.memory().read_u8(GuestPhys(DATA + offset::HCALL_STATUS + 1)).ok();
        Some(3)
    }

    fn poll(&mut self, _: &mut lguest_host::DeviceIo<'_>) -> Option<lguest_host::Stop> {
        None
    }
}

#[test]
fn the_rest_waits_until_a_dma_has_been_served() {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0, &[(FREE, 3)]);
    guest.queue(0, Hypercall::SendDma { key: Phys(4), dma: Phys(SCRATCH) });
    guest.queue(1, bind(8));
    let mut nosy = Nosy { status: None };
    let outcome = guest.kernel(|_| Ok(())).run_with(&mut nosy).powered_off();
    assert_eq!(nosy.status, Some(0), "entry 1 was still pending");
    assert_eq!(outcome.status(1), 0xff);
    assert_eq!(outcome.guest.word(SCRATCH), 3, "used_len was written");
}

/// What user code or the kernel notes of the status of entry 0.
fn note_status(c: &mut Code) -> Assembled {
    c.mov(al, byte_ptr(virt(DATA) + offset::HCALL_STATUS))?;
    c.mov(byte_ptr(virt(RESULTS)), al)
}

#[test]
fn whatever_the_guest_leaves_for_the_ring_is_served() {
    type Way = fn(&mut Code) -> Assembled;
    let ways: [(&str, Way); 4] = [
        ("a privileged instruction", |c| c.cli()),
        ("a page fault", |c| c.mov(ebx, dword_ptr(USER_CODE + 0x8000))),
        ("a fault", |c| c.ud2()),
        ("an interrupt", |c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 100 })?;
            enqueue(c, 1, bind(8))?;
            c.enable_interrupts()?;
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.cmp(byte_ptr(virt(DATA) + offset::HCALL_STATUS + 1), 0)?;
            c.je(again)
        }),
    ];
    for (name, way) in ways {
        let skip = |c: &mut Code| {
            c.add(esp, 4)?;
            c.add(dword_ptr(esp), 6)?;
            c.iretd()
        };
        let outcome = TinyGuest::new()
            .handler(14, skip)
            .handler(6, |c| {
                c.add(dword_ptr(esp), 2)?;
                c.iretd()
            })
            .handler(32, |c| c.iretd())
            .kernel(|c| {
                enqueue(c, 0, bind(4))?;
                way(c)?;
                note_status(c)
            })
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), 0xff, "{name}");
    }
}

#[test]
fn user_code_serves_it_too() {
    let outcome = TinyGuest::new()
        .gate(128, 0xf, 3, |c| {
            note_status(c)?;
            c.power_off()
        })
        .user(|c| c.int(0x80))
        .kernel(|c| {
            enqueue(c, 0, bind(4))?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0xff);
}

#[test]
fn a_halt_in_the_ring_sleeps_after_the_direct_call() {
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            enqueue(c, 0, Hypercall::Halt)?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 1_000_000 })?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(1, eax)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [1, 1]);
}
