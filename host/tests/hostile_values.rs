//! Arguments that no sane guest gives: each ends its guest with the reason and the value, or does no harm.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall, number};
use lguest_abi::lguest_data::{HCALL_RING_SIZE, offset};
use lguest_host::{DeviceIo, Devices, End, GuestPhys, Kill, Sections, Stop};
use lguest_switcher::GuestVirt;
use std::time::Duration;
use tiny_guest::*;

/// Values that are near some edge.
const EDGES: [u32; 16] = [
    0,
    1,
    3,
    0x1f,
    0x7fff_ffff,
    0x8000_0000,
    MEMORY - 1,
    MEMORY,
    MEMORY + 0xfff,
    MEMORY + 0x1000,
    PAGE_OFFSET,
    0xffbf_ffff,
    0xffc0_0000,
    0xffff_f000,
    u32::MAX - 3,
    u32::MAX,
];

/// What a guest that makes one call, once it has booted, ends with.
fn end_of(words: [u32; 4]) -> End {
    TinyGuest::new().reporting(14, 1).kernel(|c| c.raw_hypercall(words)).run().end
}

/// It ended by itself, or the Host ended it with a reason; nobody lost patience.
#[track_caller]
fn is_an_end(end: &End, what: impl std::fmt::Debug) {
    assert!(!matches!(end, End::Stopped(_)), "{what:?}: {end:?}");
}

#[test]
fn every_call_with_every_edge_in_every_argument() {
    // HALT sleeps, as it should.
    for number in (0..18).filter(|&number| number != number::HALT) {
        for edge in EDGES {
            // In one of the three, and in all.
            for place in [1, 2, 4, 7] {
                let argument = |bit| if place & 1 << bit != 0 { edge } else { 1 };
                let words = [number, argument(0), argument(1), argument(2)];
                is_an_end(&end_of(words), words);
            }
        }
    }
}

#[test]
fn ranges_that_wrap_around() {
    for start in [u32::MAX, u32::MAX - 7, 0xffff_f000] {
        let named = |what, bytes: u64| Kill::BadAddress { what, start: GuestPhys(start), bytes };
        let calls = [
            (Hypercall::Crash { message: Phys(start) }, named("crash message", 128)),
            (Hypercall::LoadGdt { table: Phys(start), entries: 32 }, named("GDT", 256)),
            (Hypercall::LoadTls { descriptors: Phys(start), cpu: 0 }, named("TLS descriptors", 24)),
            (Hypercall::SendDma { key: Phys(0), dma: Phys(start) }, named("Dma", 100)),
            (
                Hypercall::BindDma { key: Phys(0), array: Phys(start), count: 0xff_ffff, irq: 1 },
                named("array of Dma", 0xff_ffff * 100),
            ),
        ];
        for (call, kill) in calls {
            TinyGuest::new().kernel(|c| c.hypercall(call)).run().killed(kill);
        }
    }
}

#[test]
fn lguest_data_anywhere_in_memory_will_do() {
    // Unaligned, across pages, at the very end, and where the Host reads other things.
    for data in [SCRATCH + 1, SCRATCH + 0xf03, MEMORY + 0x1000 - 1120, 0, GDT] {
        let guest = TinyGuest::new();
        guest.put(data + offset::HCALL_STATUS, &[0xff; HCALL_RING_SIZE]);
        let outcome = guest
            .bare(|c| {
                c.hypercall(Hypercall::LguestInit { data: Phys(data) })?;
                c.hypercall(Hypercall::FlushAsync)?;
                c.sti()?;
                c.power_off()
            })
            .run()
            .powered_off();
        assert_eq!(outcome.guest.word(data + offset::RESERVE_MEM), 4 << 20, "at {data:#x}");
        assert_eq!(outcome.guest.word(data + offset::IRQ_ENABLED), 512, "at {data:#x}");
    }
}

#[test]
fn a_ring_of_garbage() {
    // Xorshift, from one seed: the same garbage each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    for round in 0..200 {
        let guest = TinyGuest::new();
        for slot in 0..HCALL_RING_SIZE as u32 {
            // Numbers that exist, but for some; and arguments that are plausible, but for some.
            let number = if random() % 16 == 0 { random() } else { random() % 18 };
            let mut argument = || match random() % 4 {
                0 => random(),
                1 => random() % MEMORY,
                2 => EDGES[random() as usize % EDGES.len()],
                _ => random() % 64,
            };
            let words = [number, argument(), argument(), argument()];
            if number != number::HALT {
                let [number, a, b, c] = words;
                guest.queue_words(slot, [number, a, b, c, 0]);
            }
        }
        let outcome = guest.reporting(14, 1).kernel(|_| Ok(())).run();
        is_an_end(&outcome.end, (round, &outcome.trace));
    }
}

#[test]
fn lguest_init_in_the_ring_is_a_second_one() {
    let guest = TinyGuest::new();
    guest.queue(0, Hypercall::LguestInit { data: Phys(SCRATCH) });
    guest.kernel(|_| Ok(())).run().killed(Kill::InitializedTwice { data: GuestPhys(SCRATCH) });
}

#[test]
fn an_inverted_noirq_range_is_empty() {
    let guest = TinyGuest::new();
    guest.put_word(DATA + offset::NOIRQ_START, u32::MAX);
    guest.put_word(DATA + offset::NOIRQ_END, 0);
    let outcome = guest
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 100 })?;
            c.hypercall(Hypercall::Halt)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn stacks_at_odd_places() {
    let odd = [
        (0, 1, Kill::BadStackPage { address: GuestVirt(0) }),
        (0x800, 2, Kill::BadStackPage { address: GuestVirt(0x800) }),
        (
            u32::MAX,
            1,
            Kill::ReservedAddress { what: "the trap stack", address: GuestVirt(u32::MAX) },
        ),
        (
            0xffc0_0000,
            2,
            Kill::ReservedAddress { what: "the trap stack", address: GuestVirt(0xffc0_0000) },
        ),
        // Behind memory's end in the linear map.
        (virt(MEMORY), 1, Kill::BadStackPage { address: GuestVirt(virt(MEMORY)) }),
    ];
    for (top, pages, kill) in odd {
        let call = Hypercall::SetStack { segment: 0x69, esp: Virt(top), pages };
        TinyGuest::new().kernel(|c| c.hypercall(call)).run().killed(kill);
    }
}

#[test]
fn no_stack_page_is_pinned_when_none_is_asked_for() {
    let call = Hypercall::SetStack { segment: 0x69, esp: Virt(0xffff_fff0), pages: 0 };
    TinyGuest::new().kernel(|c| c.hypercall(call)).run().powered_off();
}

#[test]
fn a_trap_on_a_stack_that_is_none() {
    // Selectors of level 1: null, beyond the table, of the LDT, of user data, of code, of a task.
    let guest = || {
        let guest = TinyGuest::new();
        guest.put(GDT + 20 * 8, &0x0000_8900_0000_0067u64.to_le_bytes());
        guest.handler(6, |c| c.power_off()).user(|c| c.ud2())
    };
    for segment in [1, 0xfff9, 0x6d, 0x79, 0x61, 20 * 8 + 1, 0xffff_0001] {
        let call = Hypercall::SetStack { segment, esp: Virt(virt(TRAP_STACK)), pages: 1 };
        let outcome = guest().kernel(|c| {
            c.hypercall(call)?;
            c.enter_user()
        });
        let end = outcome.run().end;
        let what = "its stack segment is unusable";
        let value = segment & 0xffff;
        let kill = Kill::DoubleFault { vector: 6, eip: USER_CODE, what, value };
        assert_eq!(end, End::Killed(kill), "{segment:#x}");
    }
}

#[test]
fn user_code_without_any_trap_stack() {
    let outcome = TinyGuest::new()
        .user(|c| c.ud2())
        .bare(|c| {
            c.mov(esp, virt(STACK))?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.hypercall(Hypercall::LoadGdt { table: Phys(GDT), entries: 32 })?;
            c.hypercall(load_gate(6, virt(HANDLERS), 0xe, 0))?;
            c.enter_user()
        })
        .run();
    let what = "its stack segment is unusable";
    outcome.killed(Kill::DoubleFault { vector: 6, eip: USER_CODE, what, value: 1 });
}

#[test]
fn a_gdt_without_kernel_segments() {
    for (entry, what) in
        [(12, "the kernel's code segment is unusable"), (13, "its stack segment is unusable")]
    {
        for descriptor in [0u64, 0x00cf_7b00_0000_ffff, 0x00cf_fb00_0000_ffff, !0] {
            let guest = TinyGuest::new();
            guest.put(GDT + entry * 8, &descriptor.to_le_bytes());
            let outcome = guest
                .handler(6, |c| c.power_off())
                .user(|c| c.ud2())
                .kernel(|c| c.enter_user())
                .run();
            let value = entry * 8 + 1;
            let kill = Kill::DoubleFault { vector: 6, eip: USER_CODE, what, value };
            assert_eq!(outcome.end, End::Killed(kill), "{descriptor:#x}");
        }
    }
}

#[test]
fn gdt_entries_of_every_type() {
    // Present and not, for all 32 types: as a data segment, as a stack, as code.
    for access in (0..=0xff).filter(|access| access & 0x60 == 0) {
        let descriptor = 0x00cf_0000_0000_ffffu64 | access << 40;
        let (segment, code, present) = (access & 0x10 != 0, access & 8 != 0, access & 0x80 != 0);
        let readable = !code || access & 2 != 0;
        let writable = !code && access & 2 != 0;
        let selector = 20 * 8 + 1;
        for (stack, allowed) in [(false, readable), (true, writable)] {
            let guest = TinyGuest::new();
            guest.put(GDT + 20 * 8, &descriptor.to_le_bytes());
            let noting = |vector: u32| {
                move |c: &mut Code| {
                    c.note_number(0, vector)?;
                    c.power_off()
                }
            };
            let outcome = guest
                .handler(11, noting(11))
                .handler(12, noting(12))
                .handler(13, noting(13))
                .kernel(|c| {
                    c.mov(eax, selector)?;
                    if stack { c.mov(ss, eax) } else { c.mov(fs, eax) }
                })
                .run()
                .powered_off();
            let expected = match (segment && allowed, present, stack) {
                (false, ..) => 13,
                (true, true, _) => 0,
                (true, false, false) => 11,
                (true, false, true) => 12,
            };
            assert_eq!(outcome.result(0), expected, "access {access:#x}, stack {stack}");
        }
    }
}

#[test]
fn directories_full_of_the_same() {
    // Every entry names: the directory itself, the device page, the last frame, page 0; with all flags that may be.
    for frame in [FREE, MEMORY, MEMORY - 0x1000, 0] {
        for flags in [7, 0x67, 0xfff, 1] {
            let guest = TinyGuest::new();
            for entry in 0..1024 {
                guest.put_word(FREE + entry * 4, frame | flags);
            }
            let outcome = guest
                .reporting(14, 1)
                .kernel(|c| {
                    let segment = 0x69;
                    c.hypercall(Hypercall::SetStack { segment, esp: Virt(0), pages: 0 })?;
                    c.hypercall(Hypercall::NewPgtable { directory: Phys(FREE) })?;
                    c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })
                })
                .run();
            is_an_end(&outcome.end, (frame, flags));
        }
    }
}

#[test]
fn the_device_page_as_directory_and_as_table() {
    let guest = TinyGuest::new();
    guest.put_word(MEMORY + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
    guest.put_word(MEMORY + (USER_CODE >> 22) * 4, MEMORY | 7);
    let outcome = guest
        .kernel(|c| {
            c.hypercall(Hypercall::NewPgtable { directory: Phys(MEMORY) })?;
            // Entry 0x300 of the table is the linear table.
            c.mov(eax, dword_ptr(USER_CODE + 0x30_0000))?;
            c.note(0, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x67);
}

#[test]
fn arrays_of_buffers_that_lie_in_themselves() {
    // All 32 arrays may be one and the same, as large as memory.
    let outcome = TinyGuest::new()
        .kernel(|c| {
            for _ in 0..32 {
                let (key, array, count) = (Phys(MEMORY), Phys(0), (MEMORY + 0x1000) / 100);
                c.hypercall(Hypercall::BindDma { key, array, count, irq: 1 })?;
                c.add(dword_ptr(virt(RESULTS)), eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 32);
}

#[test]
fn timers_of_any_length() {
    for nanoseconds in [1, 99, 100, u32::MAX] {
        let outcome = TinyGuest::new()
            .handler(32, |c| {
                c.count(0)?;
                c.iretd()
            })
            .kernel(|c| {
                for _ in 0..100 {
                    c.hypercall(Hypercall::SetClockevent { nanoseconds: u32::MAX })?;
                    c.hypercall(Hypercall::SetClockevent { nanoseconds })?;
                }
                if nanoseconds < 1000 { c.hypercall(Hypercall::Halt) } else { Ok(()) }
            })
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), u32::from(nanoseconds < 1000));
    }
}

/// Stops the guest at the first kick.
struct StopAtKick;

impl Devices for StopAtKick {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        Some(Stop::Interrupted)
    }
}

/// Runs a guest that never ends by itself, kicks it once, and gives what became of it.
fn end_when_kicked(guest: &TinyGuest) -> End {
    let mut machine = guest.machine();
    let kicker = machine.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        kicker.kick();
    });
    let end = machine.run(&mut StopAtKick);
    thread.join().expect("the thread only kicks");
    end
}

#[test]
fn a_guest_that_only_leaves_and_never_arrives_can_be_stopped() {
    /// For ever.
    fn repeat(c: &mut Code, body: impl FnOnce(&mut Code) -> Assembled) -> Assembled {
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        body(c)?;
        c.jmp(again)
    }
    let guests = [
        TinyGuest::new().kernel(|c| repeat(c, |c| c.hypercall(Hypercall::FlushAsync))),
        TinyGuest::new().kernel(|c| repeat(c, |c| c.cli())),
        TinyGuest::new().kernel(|c| c.hlt()),
        TinyGuest::new().kernel(|c| c.hypercall(Hypercall::Halt)),
        // An interrupt that waits to be enabled, and never is.
        TinyGuest::new().handler(32, |c| c.iretd()).kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 100 })?;
            repeat(c, |c| c.inc(eax))
        }),
        // A handler that faults at its first instruction.
        TinyGuest::new()
            .handler(6, |c| {
                c.mov(esp, virt(STACK))?;
                c.ud2()
            })
            .kernel(|c| c.ud2()),
        endless_exceptions(),
    ];
    for (n, guest) in guests.iter().enumerate() {
        assert_eq!(end_when_kicked(guest), End::Stopped(Stop::Interrupted), "guest {n}");
    }
}

/// No instruction is ever carried out: the handler isn't there, and the stack is a 16-bit one that wraps.
fn endless_exceptions() -> TinyGuest {
    let guest = TinyGuest::new();
    let base = u64::from(virt(FREE));
    let stack = 0x0000_9200_0000_ffffu64 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    guest.put(GDT + 20 * 8, &stack.to_le_bytes());
    guest.kernel(|c| {
        for vector in [6, 14] {
            c.hypercall(load_gate(vector, 0xd000_0000, 0xe, 0))?;
        }
        c.mov(eax, 20 * 8 + 1)?;
        c.mov(ss, eax)?;
        // So that no frame straddles the wrap: 12 bytes for the first, 16 for the others.
        c.mov(esp, 0xff0c)?;
        c.ud2()
    })
}
