//! What no sane guest of any generation does: each such guest ends with a reason, or does no harm. Nobody panics, nor waits.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall, number};
use lguest_abi::lguest_data::HCALL_RING_SIZE;
use lguest_host::{End, Generation, GuestPhys};
use tiny_guest::*;

/// Values that are near some edge.
const EDGES: [u32; 16] = [
    0,
    1,
    2,
    0x1f,
    0x1ff,
    POINTERS | 0x1f,
    MIDDLE_HIGH,
    0x8000_0000,
    MEMORY,
    MEMORY + 0xfe0,
    MEMORY + 0xfff,
    MEMORY + 0x1000,
    PAGE_OFFSET,
    0xffdf_ffff,
    0xffff_f000,
    u32::MAX,
];
/// As far into memory as its last 32 bytes.
const LAST_POINTERS: u32 = MEMORY + 0x1000 - 32;

/// Xorshift, from a seed: the same garbage each time.
struct Garbage(u64);

impl Garbage {
    fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn of<const N: usize>(&mut self, choices: [u32; N]) -> u32 {
        choices[self.word() as usize % N]
    }

    /// A number that a call may take for something.
    fn argument(&mut self) -> u32 {
        match self.word() % 4 {
            0 => self.word(),
            1 => self.word() % MEMORY,
            2 => self.of(EDGES),
            _ => self.word() % 64,
        }
    }

    /// Half of an entry that a table may have: most of them are good ones.
    fn entry(&mut self) -> u32 {
        let frames = [POINTERS, MIDDLE_LOW, MIDDLE_HIGH, WIDE_LINEAR_TABLE, WIDE_USER_TABLE];
        match self.word() % 8 {
            0 => self.word(),
            1 => self.word() & 0x3f_f000 | 0x67,
            2 => self.of([0, 1, MEMORY | 7, (MEMORY + 0x1000) | 7, 0xffff_f067]),
            3 => self.of(frames) | self.word() & 0xfff,
            4 => self.of(frames) | 1,
            _ => self.of(frames) | 0x67,
        }
    }
}

/// Each later generation, with two levels of page tables, and with three where there may be.
const KINDS: [(Generation, bool); 8] = [
    (Generation::V2_6_24, false),
    (Generation::V2_6_25, false),
    (Generation::V2_6_30, false),
    (Generation::V2_6_38, false),
    (Generation::V4_0, false),
    (Generation::V2_6_30, true),
    (Generation::V2_6_38, true),
    (Generation::V4_0, true),
];

fn of_kind((generation, wide): (Generation, bool)) -> TinyGuest {
    let guest = TinyGuest::of(generation);
    if wide { guest.wide() } else { guest }
}

/// It ended by itself, or the Host ended it with a reason; nobody lost patience.
#[track_caller]
fn is_an_end(outcome: &Outcome, what: impl std::fmt::Debug) {
    let end = &outcome.end;
    assert!(!matches!(end, End::Stopped(_)), "{what:x?}: {end:?} {:#?}", outcome.trace);
}

#[test]
fn every_call_with_every_edge_in_every_argument() {
    let mut turn = 0;
    // HALT sleeps, as it should.
    for number in (0..21).filter(|&number| number != number::HALT) {
        for edge in EDGES {
            // In one of the four, and in all.
            for place in [1, 2, 4, 8, 15] {
                let argument = |bit: u32| if place & 1 << bit != 0 { edge } else { 1 };
                let words = [number, argument(0), argument(1), argument(2), argument(3)];
                // Two of the kinds have their turn; over all edges and places each makes each call.
                turn += 1;
                for kind in [KINDS[turn % 8], KINDS[(turn / 2 + 5) % 8]] {
                    let guest = of_kind(kind).reporting(14, 1);
                    let outcome = guest.kernel(|c| c.raw_hypercall(words)).run();
                    is_an_end(&outcome, (kind, words));
                }
            }
        }
    }
}

#[test]
fn every_call_with_every_edge_before_the_first_tables() {
    for number in (2..21).filter(|&number| number != number::HALT) {
        for edge in EDGES {
            for generation in LOW {
                let guest = TinyGuest::of(generation);
                guest.low(|c| {
                    c.mov(esp, STACK)?;
                    c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
                    c.raw_hypercall([number, edge, edge, edge, edge])?;
                    c.power_off()
                });
                is_an_end(&guest.run(), (generation, number, edge));
            }
        }
    }
}

#[test]
fn a_ring_of_garbage() {
    let mut garbage = Garbage(0x2545_f491_4f6c_dd1d);
    for round in 0..25 {
        for kind in KINDS {
            let guest = of_kind(kind);
            for slot in 0..HCALL_RING_SIZE as u32 {
                // Numbers that exist, but for some; and arguments that are plausible, but for some.
                let strange = garbage.word().is_multiple_of(32);
                let number = if strange { garbage.word() } else { garbage.word() % 20 };
                let arguments = [(); 4].map(|()| garbage.argument());
                if number != number::HALT {
                    let [a, b, c, d] = arguments;
                    guest.queue_words(slot, [number, a, b, c, d]);
                }
            }
            let outcome = guest.reporting(14, 1).kernel(|_| Ok(())).run();
            is_an_end(&outcome, (round, kind));
        }
    }
}

#[test]
fn lguest_data_of_garbage() {
    let mut garbage = Garbage(0x9e37_79b9_7f4a_7c15);
    for round in 0..50 {
        for kind in KINDS {
            let guest = of_kind(kind);
            let layout = guest.layout;
            for at in (0..layout.size).step_by(4) {
                let queued = at >= layout.hcall_status && at < layout.reserve_mem;
                // A ring of calls that are done; a round in which they aren't is another test's.
                let word = if queued { u32::MAX } else { garbage.argument() };
                guest.put_word(DATA + at, word);
            }
            if round % 8 != 0 {
                guest.put_field(layout.kernel_address, PAGE_OFFSET);
            }
            if round % 4 != 0 {
                guest.put_field(layout.syscall_vec, 0x80 >> (round & 1));
            }
            let guest = guest.handler(32, |c| c.iretd()).handler(33, |c| c.iretd());
            let outcome = guest.reporting(14, 1).kernel(|c| {
                c.hypercall(Hypercall::SetClockevent { nanoseconds: 100 })?;
                c.raise(3)?;
                c.hypercall(Hypercall::FlushAsync)?;
                c.enable_interrupts()?;
                c.hypercall(Hypercall::FlushAsync)
            });
            is_an_end(&outcome.run(), (round, kind));
        }
    }
}

#[test]
fn lguest_data_in_the_middle_of_everything() {
    let places = [0, GDT, ENTRY, CODE - 8, POINTERS, DIRECTORY - 600, MEMORY - 1, u32::MAX, !0x3ff];
    for kind in KINDS {
        for data in places {
            let guest = of_kind(kind);
            let fields = guest.layout.kernel_address.map_or(data, |at| data.wrapping_add(at));
            // PAGE_OFFSET, and vector 0x80; where there is no memory it can't be written.
            let _ = guest.memory.write(GuestPhys(fields), &[0, 0, 0, 0xc0, 0x80, 0, 0, 0]);
            let init = |c: &mut Code| {
                c.hypercall(Hypercall::LguestInit { data: Phys(data) })?;
                c.hypercall(Hypercall::FlushAsync)?;
                c.power_off()
            };
            guest.low(init);
            is_an_end(&guest.bare(init).run(), (kind, data));
        }
    }
}

#[test]
fn tables_of_three_levels_that_lead_in_circles() {
    // Everything is one page: the pointers, the middle tables, and the last; or two that name each other.
    for generation in WIDE {
        for (first, second) in [(FREE, FREE), (FREE, FREE + 0x1000), (MEMORY, MEMORY)] {
            for flags in [1, 7, 0x67, 0xfff] {
                let guest = TinyGuest::of(generation).wide();
                for entry in 0..512 {
                    guest.put_wide(first + entry * 8, second | flags);
                    guest.put_wide(second + entry * 8, first | flags);
                }
                let outcome = guest.reporting(14, 1).kernel(|c| {
                    let segment = 0x69;
                    c.hypercall(Hypercall::SetStack { segment, esp: Virt(0), pages: 0 })?;
                    c.hypercall(Hypercall::NewPgtable { directory: Phys(first) })?;
                    c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })
                });
                is_an_end(&outcome.run(), (generation, first, second, flags));
            }
        }
    }
}

#[test]
fn pointers_at_the_end_of_memory() {
    for generation in WIDE {
        for (root, good) in
            [(LAST_POINTERS, true), (LAST_POINTERS | 0x1f, true), (MEMORY + 0x1000, false)]
        {
            let guest = TinyGuest::of(generation).wide();
            guest.put_wide(LAST_POINTERS, MIDDLE_LOW | 1);
            guest.put_wide(LAST_POINTERS + 3 * 8, MIDDLE_HIGH | 1);
            let outcome = guest.kernel(|c| {
                let directory = Phys(root);
                c.hypercall(Hypercall::NewPgtable { directory })?;
                c.hypercall(Hypercall::SetPmd { directory, index: 3 })?;
                c.hypercall(Hypercall::SetMiddle { table: Phys(MIDDLE_HIGH), index: 511 })?;
                c.hypercall(Hypercall::NewPgtable { directory: Phys(POINTERS) })
            });
            let outcome = outcome.run();
            let ended = matches!(outcome.end, End::PowerOff);
            assert_eq!(ended, good, "{generation}, {root:#x}: {:?}", outcome.end);
        }
    }
}

#[test]
fn tables_of_garbage() {
    let mut garbage = Garbage(0x6a09_e667_f3bc_c908);
    for round in 0..60 {
        for generation in WIDE {
            let guest = TinyGuest::of(generation).wide();
            let tables = [POINTERS, MIDDLE_LOW, MIDDLE_HIGH, WIDE_USER_TABLE];
            // The kernel's own linear table stays, or it wouldn't get far.
            let changes: Vec<[u32; 3]> = (0..24)
                .map(|_| {
                    let table = garbage.of(tables);
                    let index = match table {
                        POINTERS => garbage.word() % 3,
                        MIDDLE_HIGH => 1 + garbage.word() % 511,
                        _ => garbage.word() % 512,
                    };
                    let at = table + index * 8;
                    let high = if garbage.word().is_multiple_of(8) { garbage.word() } else { 0 };
                    [at, garbage.entry(), high]
                })
                .collect();
            let outcome = guest
                .gate(0x80, 0xf, 3, |c| c.power_off())
                .handler(14, |c| c.power_off())
                .handler(13, |c| c.power_off())
                .user(|c| {
                    c.mov(eax, dword_ptr(USER_DATA))?;
                    c.mov(dword_ptr(USER_DATA), eax)?;
                    c.int(0x80)
                })
                .kernel(|c| {
                    for [at, low, high] in changes {
                        c.mov(dword_ptr(virt(at) + 4), high)?;
                        c.mov(dword_ptr(virt(at)), low)?;
                        let call = match garbage.word() % 5 {
                            0 => Hypercall::FlushTlb { scope: FlushScope::All },
                            1 => Hypercall::FlushTlb { scope: FlushScope::User },
                            2 => Hypercall::SetPmd { directory: Phys(at), index: at / 8 % 4 },
                            3 => Hypercall::NewPgtable {
                                directory: Phys(garbage.of([POINTERS, POINTERS, POINTERS + 0x20])),
                            },
                            _ => Hypercall::SetMiddle { table: Phys(at), index: at / 8 % 512 },
                        };
                        c.hypercall(call)?;
                    }
                    c.enter_user()
                });
            is_an_end(&outcome.run(), (round, generation));
        }
    }
}

/// Behind memory, shown in user page 4 and at the kernel's addresses behind its linear map.
const DEVICE: u32 = 0x9000_0000;
const DEVICE_PAGE: u32 = USER_CODE + 0x4000;
const KERNEL_DEVICE_PAGE: u32 = PAGE_OFFSET + MEMORY + 0x10_0000;

#[test]
fn devices_in_the_place_of_everything_else() {
    let with_device = || {
        let guest = TinyGuest::of(Generation::V4_0).with_word(USER_TABLE + 4 * 4, DEVICE | 0x67);
        guest.with_word(
            LINEAR_TABLE + (KERNEL_DEVICE_PAGE - PAGE_OFFSET) / 0x1000 * 4,
            DEVICE | 0x67,
        )
    };
    type Step = fn(&mut Code, u32) -> Assembled;
    let steps: [(&str, Step); 12] = [
        ("a stack for traps", |c, at| {
            let segment = 0x69;
            c.hypercall(Hypercall::SetStack { segment, esp: Virt(at + 0x800), pages: 1 })?;
            c.enter_user()
        }),
        ("a stack", |c, at| {
            c.mov(esp, at + 0x800)?;
            c.ud2()
        }),
        ("code", |c, at| {
            c.mov(eax, at)?;
            c.jmp(eax)
        }),
        ("a GDT", |c, at| {
            c.mov(word_ptr(virt(SCRATCH)), 0xff)?;
            c.mov(dword_ptr(virt(SCRATCH) + 2), at)?;
            c.lgdt(ptr(virt(SCRATCH)))?;
            c.mov(eax, 0x69)?;
            c.mov(ds, eax)
        }),
        ("an IDT", |c, at| {
            c.mov(word_ptr(virt(SCRATCH)), 0x7ff)?;
            c.mov(dword_ptr(virt(SCRATCH) + 2), at)?;
            c.lidt(ptr(virt(SCRATCH)))?;
            c.raise(1)?;
            c.enable_interrupts()?;
            c.ud2()
        }),
        ("a pseudo-descriptor", |c, at| c.lgdt(ptr(at))),
        ("the end of a page with a device behind it", |c, at| {
            c.mov(eax, dword_ptr(at - 2))?;
            c.mov(dword_ptr(at + 0xffe), eax)
        }),
        ("copied words", |c, at| {
            c.mov(esi, at)?;
            c.mov(edi, at + 0x800)?;
            c.mov(ecx, 64)?;
            c.rep().movsd()
        }),
        ("words for a port", |c, at| {
            c.mov(esi, at)?;
            c.mov(ecx, 8)?;
            c.mov(edx, 0x80)?;
            c.rep().outsd()
        }),
        ("a locked operation", |c, at| c.lock().add(dword_ptr(at + 1), 1)),
        ("FPU registers", |c, at| {
            c.fnsave(ptr(at))?;
            c.fxsave(ptr(at))?;
            c.movaps(xmm0, xmmword_ptr(at))
        }),
        ("a frame to return to", |c, at| {
            c.mov(esp, at)?;
            c.iretd()
        }),
    ];
    for (what, step) in steps {
        for at in [DEVICE_PAGE, KERNEL_DEVICE_PAGE] {
            let outcome = with_device()
                .handler(6, |c| c.power_off())
                .handler(13, |c| c.power_off())
                .reporting(14, 1)
                .user(|c| c.ud2())
                .kernel(|c| step(c, at));
            is_an_end(&outcome.run(), (what, at));
        }
    }
}

#[test]
fn a_device_as_page_table() {
    // Found by a directory, it is no memory; and a directory it can't be at all.
    let guest = TinyGuest::of(Generation::V4_0).with_word(DIRECTORY + 4 * 4, DEVICE | 7);
    let outcome = guest.reporting(14, 1).kernel(|c| c.mov(eax, dword_ptr(0x0100_0000))).run();
    assert!(matches!(outcome.end, End::Killed(_)), "{:?}", outcome.end);
    let call = Hypercall::NewPgtable { directory: Phys(DEVICE) };
    let outcome = TinyGuest::of(Generation::V4_0).kernel(|c| c.hypercall(call)).run();
    assert!(matches!(outcome.end, End::Killed(_)), "{:?}", outcome.end);
}

#[test]
fn interrupts_at_a_protected_iret_without_a_frame() {
    const NOIRQ_IRET: u32 = 1376;
    // The stack is nowhere; the handler's own next trap then can't be delivered.
    for stack in [0, 0xffff_ffff, virt(MEMORY), 0x4000_0000] {
        let guest = TinyGuest::of(Generation::V4_0).with_word(DATA + NOIRQ_IRET, virt(FREE) + 10);
        guest.code(virt(FREE), FREE, |c| {
            c.enable_interrupts()?;
            c.iretd()
        });
        let guest = guest.handler(33, |c| {
            c.count(4)?;
            c.iretd()
        });
        let outcome = guest.reporting(14, 1).kernel(|c| {
            c.raise(1 << 1)?;
            c.mov(esp, stack)?;
            c.jmp(u64::from(virt(FREE)))
        });
        let outcome = outcome.run();
        is_an_end(&outcome, stack);
        assert_eq!(outcome.result(4), 1, "{stack:#x}");
    }
}
