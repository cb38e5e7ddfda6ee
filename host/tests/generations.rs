//! Hypercalls and LguestData of every generation: what differs, and what became of the calls that went or came.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::generation::ArgumentRegister;
use lguest_abi::hypercall::{Hypercall, number};
use lguest_abi::lguest_data::{HCALL_RING_SIZE, Layout};
use lguest_host::{End, Generation, GuestPhys, Kill};
use std::time::{SystemTime, UNIX_EPOCH};
use tiny_guest::*;

const SHUTDOWN: [u32; 3] = [number::SHUTDOWN, SCRATCH, 1];
const RESTART: u32 = 2;

// Calls, and the registers and ring entries in which they come.

#[test]
fn arguments_come_in_the_registers_of_their_time() {
    // SET_STACK with too many pages names its third argument, LOAD_IDT_ENTRY all three.
    of_each(LATER, |guest| {
        let registers = match guest.generation {
            Generation::V2_6_24 | Generation::V2_6_25 => [edx, ebx, ecx],
            _ => [ebx, ecx, edx],
        };
        let outcome = guest.kernel(|c| {
            c.mov(eax, number::LOAD_IDT_ENTRY)?;
            for (register, word) in registers.into_iter().zip([3, 0x60_1234, 0x8500]) {
                c.mov(register, word)?;
            }
            c.int(0x1f)
        });
        outcome.run().killed(Kill::BadGate { vector: 3, low: 0x60_1234, high: 0x8500 });
    });
}

#[test]
fn a_call_changes_no_register() {
    of_each(LATER, |guest| {
        let all = [eax, ebx, ecx, edx, esi, edi, ebp];
        let outcome = guest.kernel(|c| {
            for (value, register) in (100..).zip(all) {
                c.mov(register, value)?;
            }
            c.mov(eax, number::FLUSH_ASYNC)?;
            c.int(0x1f)?;
            for (slot, register) in (0..).zip(all) {
                c.note(slot, register)?;
            }
            Ok(())
        });
        assert_eq!(results(&outcome.run().powered_off()), [0, 101, 102, 103, 104, 105, 106]);
    });
}

#[test]
fn ring_entries_are_laid_out_as_their_time_had_them() {
    // The words in memory of LOAD_IDT_ENTRY with arguments 1, 2 and 3 (not present: harmless, but to be seen).
    let layouts = [
        (Generation::V2_6_24, &Layout::V2_6_24, 84, &[6, 2, 3, 1][..]),
        (Generation::V2_6_25, &Layout::V2_6_24, 84, &[6, 2, 3, 1]),
        (Generation::V2_6_30, &Layout::V2_6_30, 88, &[6, 1, 2, 3]),
        (Generation::V2_6_30, &Layout::V2_6_31, 88, &[6, 1, 2, 3, 4]),
        (Generation::V2_6_38, &Layout::V2_6_38, 88, &[6, 1, 2, 3, 4]),
        (Generation::V4_0, &Layout::V4_0, 88, &[6, 1, 2, 3, 4]),
    ];
    for (generation, layout, at, words) in layouts {
        let guest = TinyGuest::of(generation).with_layout(layout);
        // The second entry, so that its length counts; the first is a FLUSH_ASYNC.
        for (index, word) in (0..).zip(words) {
            guest.put_word(DATA + at + (words.len() as u32 + index) * 4, *word);
        }
        guest.put(DATA + layout.hcall_status, &[0, 0]);
        let outcome = guest.kernel(|_| Ok(())).run().powered_off();
        let wanted = "LOAD_IDT_ENTRY vector=1 handler=0x00000002 attributes=0x0003  (queued)";
        let served = outcome.trace.iter().any(|line| line.contains(wanted));
        assert!(served, "{generation}: {:#?}", outcome.trace);
        assert_eq!([0, 1, 2].map(|slot| outcome.status(slot)), [0xff; 3], "{generation}");
    }
}

#[test]
fn the_ring_goes_round() {
    of_each(LATER, |guest| {
        let (ring, layout) = (HCALL_RING_SIZE as u32, guest.layout);
        for slot in 0..ring {
            guest.queue(slot, Hypercall::Ts { set: false });
        }
        let outcome = guest.kernel(|c| {
            c.enqueue(layout, 0, Hypercall::Ts { set: true })?;
            c.hypercall(Hypercall::FlushAsync)
        });
        let outcome = outcome.run().powered_off();
        let served = |what: &str| outcome.trace.iter().filter(|line| line.contains(what)).count();
        assert_eq!((served("TS clear"), served("TS set")), (64, 1));
    });
}

#[test]
fn calls_that_a_generation_does_not_have() {
    let missing: [(Generation, &[u32]); 5] = [
        (Generation::V2_6_24, &[11, 12, 13, 19]),
        (Generation::V2_6_25, &[11, 12, 13, 19]),
        (Generation::V2_6_30, &[3, 11, 12]),
        (Generation::V2_6_38, &[3, 11, 12]),
        (Generation::V4_0, &[3, 11, 12, 17]),
    ];
    for (generation, numbers) in missing {
        for number in numbers.iter().copied().chain([20, u32::MAX]) {
            let direct = TinyGuest::of(generation).kernel(|c| c.raw_hypercall([number, 0, 0]));
            direct.run().killed(Kill::UnknownHypercall { number });
            let queued = TinyGuest::of(generation);
            queued.queue_words(0, [number, 0, 0, 0, 0]);
            queued.kernel(|_| Ok(())).run().killed(Kill::UnknownHypercall { number });
        }
    }
}

#[test]
fn nothing_but_lguest_init_comes_first() {
    for generation in LATER {
        for number in (0..20).filter(|number| *number != number::LGUEST_INIT) {
            let guest = TinyGuest::of(generation);
            let first = |c: &mut Code| c.raw_hypercall([number, 0, 0]);
            guest.low(first);
            guest.bare(first).run().killed(Kill::NotInitialized { number });
        }
    }
}

#[test]
fn user_code_makes_no_calls() {
    of_each(LATER, |guest| {
        let outcome = guest
            .reporting(13, 2)
            .user(|c| {
                c.mov(eax, number::HALT)?;
                c.int(0x1f)
            })
            .kernel(|c| c.enter_user());
        assert_eq!(results(&outcome.run().powered_off()), [0x1f * 8 + 2, USER_CODE + 5]);
    });
}

// SHUTDOWN.

#[test]
fn shutdown_powers_off_crashes_or_restarts() {
    of_each(LATER, |guest| {
        guest.put(SCRATCH, b"Power down\0");
        assert_eq!(guest.kernel(|c| c.raw_hypercall(SHUTDOWN)).run().end, End::PowerOff);
    });
    of_each(LATER, |guest| {
        guest.put(SCRATCH, b"it is enough\0");
        let crashed = End::Crashed("it is enough".to_owned());
        assert_eq!(guest.kernel(|c| c.raw_hypercall(SHUTDOWN)).run().end, crashed);
    });
    of_each(LATER, |guest| {
        guest.put(SCRATCH, b"Power down\0");
        let words = [number::SHUTDOWN, SCRATCH, RESTART];
        assert_eq!(guest.kernel(|c| c.raw_hypercall(words)).run().end, End::Restart);
    });
}

#[test]
fn a_restart_does_not_depend_on_its_message() {
    of_each(LATER, |guest| {
        let words = [number::SHUTDOWN, u32::MAX, RESTART];
        assert_eq!(guest.kernel(|c| c.raw_hypercall(words)).run().end, End::Restart);
    });
    of_each(LATER, |guest| {
        let start = GuestPhys(u32::MAX);
        let outcome = guest.kernel(|c| c.raw_hypercall([number::SHUTDOWN, u32::MAX, 1])).run();
        outcome.killed(Kill::BadAddress { what: "crash message", start, bytes: 128 });
    });
}

#[test]
fn before_shutdown_there_was_nothing_to_restart() {
    let guest = TinyGuest::of(Generation::V2_6_23);
    let outcome = guest.kernel(|c| c.raw_hypercall([number::CRASH, MESSAGE, RESTART])).run();
    outcome.powered_off();
}

// LguestData.

#[test]
fn lguest_init_writes_what_the_guest_waits_for() {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32;
    // Offsets of the time, reserve_mem, tsc_khz and pgdir.
    let fields: [(_, &'static Layout, u32, u32, Option<u32>); 8] = [
        (Generation::V2_6_23, &Layout::V2_6_23, 1108, 1116, None),
        (Generation::V2_6_24, &Layout::V2_6_24, 1108, 1112, Some(1116)),
        (Generation::V2_6_25, &Layout::V2_6_24, 1108, 1112, Some(1116)),
        (Generation::V2_6_30, &Layout::V2_6_30, 1112, 1116, Some(1120)),
        (Generation::V2_6_30, &Layout::V2_6_31, 1368, 1372, Some(1376)),
        (Generation::V2_6_38, &Layout::V2_6_38, 1368, 1372, None),
        (Generation::V2_6_38, &Layout::V2_6_31, 1368, 1372, Some(1376)),
        (Generation::V4_0, &Layout::V4_0, 1368, 1372, None),
    ];
    for (generation, layout, reserve_mem, tsc_khz, pgdir) in fields {
        let guest = TinyGuest::of(generation).with_layout(layout);
        let outcome = guest.kernel(|_| Ok(())).run().powered_off();
        assert_eq!(outcome.field(reserve_mem), 4 << 20, "{generation}");
        let khz = outcome.field(tsc_khz);
        assert!(khz == 0 || (100_000..20_000_000).contains(&khz), "{generation}: {khz} kHz");
        let (seconds, nanoseconds) = (outcome.field(12), outcome.field(16));
        assert!((before..before + 60).contains(&seconds), "{generation}: {seconds} s");
        assert!(nanoseconds < 1_000_000_000, "{generation}: {nanoseconds} ns");
        assert_eq!(pgdir.map(|at| outcome.field(at)), pgdir.map(|_| DIRECTORY), "{generation}");
    }
}

#[test]
fn the_guests_own_fields_stay_as_it_wrote_them() {
    of_each(LATER, |guest| {
        let layout = guest.layout;
        guest.put_word(DATA, 0x246);
        let outcome = guest.kernel(|_| Ok(())).run().powered_off();
        assert_eq!(outcome.field(0), 0x246);
        assert_eq!(layout.kernel_address.map(|at| outcome.field(at)), Some(PAGE_OFFSET));
        assert_eq!(layout.syscall_vec.map(|at| outcome.field(at)), Some(0x80));
        assert_eq!(outcome.field(layout.size), 0, "nor is anything behind them");
    });
}

#[test]
fn another_kernel_address_means_another_generation() {
    of_each(LATER, |guest| {
        let (generation, field) = (guest.generation, guest.layout.kernel_address);
        for value in [0, PAGE_OFFSET - 1, PAGE_OFFSET | 1, 0x8000_0000] {
            let guest = TinyGuest::of(generation);
            guest.put_field(field, value);
            let expected = PAGE_OFFSET;
            let kill = Kill::OtherGeneration { data: GuestPhys(DATA), generation, expected };
            guest.kernel(|_| Ok(())).run().killed(kill);
        }
    });
}

#[test]
fn system_calls_come_by_vector_0x40_or_0x80() {
    for generation in LATER {
        for vector in [0x40, 0x80] {
            let guest = TinyGuest::of(generation);
            guest.put_field(guest.layout.syscall_vec, vector);
            let outcome = guest
                .gate(vector, 0xf, 3, |c| {
                    c.note(0, eax)?;
                    c.power_off()
                })
                .user(|c| {
                    c.mov(eax, 20)?;
                    c.int(vector as i32)
                })
                .kernel(|c| c.enter_user());
            assert_eq!(outcome.run().powered_off().result(0), 20, "{generation}, {vector:#x}");
        }
        for vector in [0, 14, 0x1f, 0x20, 0x3f, 0x41, 0x7f, 0x81, 0x100, 0x140, 0x8000_0080] {
            let guest = TinyGuest::of(generation);
            guest.put_field(guest.layout.syscall_vec, vector);
            guest.kernel(|_| Ok(())).run().killed(Kill::BadSystemCallVector);
        }
    }
}

#[test]
fn the_other_vector_for_system_calls_is_ignored() {
    for (vector, other) in [(0x40, 0x80), (0x80, 0x40)] {
        let guest = TinyGuest::of(Generation::V4_0);
        guest.put_field(guest.layout.syscall_vec, vector);
        let outcome = guest
            .gate(vector, 0xf, 3, |c| c.power_off())
            .gate(other, 0xf, 3, |c| c.ud2())
            .reporting(13, 1)
            .user(|c| c.int(other as i32))
            .kernel(|c| {
                // Whatever it holds.
                c.raw_hypercall([number::LOAD_IDT_ENTRY, other, 0, 0x8500])?;
                c.enter_user()
            });
        assert_eq!(outcome.run().powered_off().result(0), other * 8 + 2);
    }
}

#[test]
fn lguest_data_may_be_the_last_thing_in_memory() {
    for (generation, layout) in LATER
        .into_iter()
        .flat_map(|generation| generation.layouts().iter().map(move |layout| (generation, layout)))
    {
        for (behind, good) in [(0, true), (1, false)] {
            let data = MEMORY + 0x1000 - layout.size + behind;
            let guest = TinyGuest::of(generation);
            if let Some(field) = layout.kernel_address {
                guest.put_word(data + field, PAGE_OFFSET);
                guest.put(data + field + 4, &[0x80, 0, 0, 0][..4 - behind as usize]);
                guest.put(data + layout.hcall_status, &[0xff; HCALL_RING_SIZE]);
            }
            let init = |c: &mut Code| {
                c.hypercall(Hypercall::LguestInit { data: Phys(data) })?;
                c.power_off()
            };
            guest.low(init);
            let end = guest.bare(init).run().end;
            match end {
                End::PowerOff => assert!(good, "{layout:?}"),
                End::Killed(Kill::BadAddress { start: GuestPhys(start), .. }) => {
                    assert!(!good && start == data, "{layout:?}");
                }
                // There is room for a smaller one.
                End::Killed(Kill::OtherGeneration { .. }) => assert!(!good, "{layout:?}"),
                end => panic!("{layout:?}: {end:?}"),
            }
        }
    }
}

// NOTIFY, and calls by another hypervisor's instruction.

#[test]
fn notify_reaches_the_devices_with_its_address() {
    let notifying =
        [Generation::V2_6_24, Generation::V2_6_25, Generation::V2_6_30, Generation::V2_6_38];
    of_each(notifying, |guest| {
        let (layout, bus) = (guest.layout, guest.bus.clone());
        let bell = Hypercall::Notify { address: Phys(BELL) };
        let outcome = guest.kernel(|c| {
            c.hypercall(bell)?;
            c.enqueue(layout, 0, bell)
        });
        outcome.run().powered_off();
        assert_eq!(bus.touches(), [Touch::Notify(BELL), Touch::Notify(BELL)]);
    });
    of_each(notifying, |guest| {
        for address in [0, BELL + 1, u32::MAX] {
            let call = Hypercall::Notify { address: Phys(address) };
            let outcome = TinyGuest::of(guest.generation).kernel(|c| c.hypercall(call)).run();
            let (what, start) = ("what NOTIFY names", GuestPhys(address));
            outcome.killed(Kill::BadAddress { what, start, bytes: 1 });
        }
    });
}

/// `vmcall`, and `vmmcall`.
const VMCALLS: [[u8; 3]; 2] = [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]];

#[test]
fn a_call_by_vmcall_is_made_a_usual_one() {
    for vmcall in VMCALLS {
        let guest = TinyGuest::of(Generation::V2_6_30);
        let outcome = guest.kernel(|c| {
            let mut again = c.create_label();
            c.mov(edi, 0)?;
            c.set_label(&mut again)?;
            c.load_call([number::LOAD_IDT_ENTRY, 1, 2, 3])?;
            c.call(u64::from(virt(FREE)))?;
            c.note(0, eax)?;
            c.inc(edi)?;
            c.cmp(edi, 2)?;
            c.jb(again)
        });
        outcome.code(virt(FREE), FREE, |c| {
            c.db(&vmcall)?;
            c.ret()
        });
        let outcome = outcome.run().powered_off();
        let wanted = "LOAD_IDT_ENTRY vector=1 handler=0x00000002 attributes=0x0003";
        let calls = outcome.trace.iter().filter(|line| line.contains(wanted)).count();
        assert_eq!(calls, 2, "{:#?}", outcome.trace);
        assert_eq!(outcome.guest.word(FREE) & 0xff_ffff, 0x90_1fcd, "int 0x1f, and nop");
        assert!(!outcome.trace.iter().any(|line| line.contains("trap")), "{:#?}", outcome.trace);
    }
}

#[test]
fn a_vmcall_may_lie_in_a_read_only_page_or_across_two() {
    // One page is at another place than the one before; both may only be read.
    for distance in [0, 0xffd, 0xffe, 0xfff] {
        let guest = TinyGuest::of(Generation::V2_6_30);
        let (frames, pages) = ([FREE + 0x3000, FREE], USER_DATA + 0x10_0000);
        for (index, frame) in (0..).zip(frames) {
            guest.put_word(USER_TABLE + ((pages >> 12 & 0x3ff) + index) * 4, frame | 1);
        }
        for (at, byte) in (distance..).zip([0x0f, 0x01, 0xc1, 0xc3]) {
            guest.put(frames[(at >> 12) as usize] + (at & 0xfff), &[byte]);
        }
        let outcome = guest.kernel(|c| {
            c.load_call([number::LOAD_IDT_ENTRY, 1, 2, 3])?;
            c.mov(edi, pages + distance)?;
            c.call(edi)
        });
        let outcome = outcome.run().powered_off();
        let calls = outcome.trace.iter().filter(|line| line.contains("vector=1")).count();
        assert_eq!(calls, 1, "{distance:#x}: {:#?}", outcome.trace);
    }
}

#[test]
fn a_vmcall_in_a_code_segment_with_a_base_is_found() {
    let guest = TinyGuest::of(Generation::V2_6_30);
    // Level 1, based at 0x1000.
    guest.put(GDT + 20 * 8, &0x00cf_bb00_1000_ffffu64.to_le_bytes());
    guest.code(virt(FREE), FREE, |c| {
        c.db(&VMCALLS[0])?;
        c.power_off()
    });
    let outcome = guest.kernel(|c| {
        c.load_call([number::LOAD_IDT_ENTRY, 1, 2, 3])?;
        c.push(20 * 8 + 1)?;
        c.push((virt(FREE) - 0x1000) as i32)?;
        c.retf()
    });
    let outcome = outcome.run().powered_off();
    assert_eq!(outcome.guest.word(FREE) & 0xff_ffff, 0x90_1fcd);
}

#[test]
fn a_vmcall_of_user_code_or_of_another_time_does_not_exist() {
    for vmcall in VMCALLS {
        let report = |guest: TinyGuest| guest.reporting(6, 2);
        let user = report(TinyGuest::of(Generation::V2_6_30)).user(|c| c.db(&vmcall));
        let outcome = user.kernel(|c| c.enter_user()).run().powered_off();
        assert_eq!(results(&outcome), [USER_CODE, 0x73]);
        of_each([Generation::V2_6_25, Generation::V2_6_38, Generation::V4_0], |guest| {
            let guest = report(guest);
            guest.code(virt(FREE), FREE, |c| c.db(&vmcall));
            let outcome = guest.kernel(|c| c.jmp(u64::from(virt(FREE)))).run().powered_off();
            assert_eq!(results(&outcome), [virt(FREE), 0x61]);
        });
    }
}

#[test]
fn registers_are_as_the_table_of_generations_says() {
    use ArgumentRegister::{Ebx, Ecx, Edx, Esi};
    for generation in LATER {
        let early = generation < Generation::V2_6_30;
        let wanted = if early { &[Edx, Ebx, Ecx][..] } else { &[Ebx, Ecx, Edx, Esi] };
        assert_eq!(generation.argument_registers(), wanted);
    }
}

#[test]
fn set_pte_takes_the_high_word_only_where_entries_have_one() {
    // With two levels, nobody has written esi, or the fifth word, for the Host.
    of_each(WIDE, |guest| {
        let directory = Phys(DIRECTORY);
        let [number, first, second, third, _] = Hypercall::SetPte {
            directory,
            address: Virt(USER_CODE + 0x4000),
            value: (FREE | 0x67).into(),
        }
        .encode();
        let outcome = guest
            .kernel(|c| {
                c.raw_hypercall([number, first, second, third, 0xdead_beef])?;
                c.mov(eax, dword_ptr(USER_CODE + 0x4000))?;
                c.note(0, eax)
            })
            .with_word(USER_TABLE + 4 * 4, FREE | 0x67)
            .with_word(FREE, 0x1234);
        assert_eq!(outcome.run().powered_off().result(0), 0x1234);
    });
}
