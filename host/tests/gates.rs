//! System calls by the gate: a guest sees the same with it and without.
//!
//! Each guest here runs twice (`calling/mod.rs`). What a test says of the passes tells whether there was anything to compare. Which
//! world and which segments a guest is in behind a gate is asked in `gate_worlds.rs`.

mod calling;
mod tiny_guest;

use calling::*;
use iced_x86::code_asm::*;
use lguest_abi::address::Virt;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use lguest_abi::segments::{KERNEL_CS, KERNEL_DS, USER_CS, USER_DS};
use lguest_host::{DeviceIo, Devices, End, Generation, GuestPhys, NoDevices, Sections, Stop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tiny_guest::*;

#[test]
fn calls_pass_and_see_what_the_host_would_show_them() {
    for (kind, after) in [(TRAP_GATE, 512), (INTERRUPT_GATE, 0)] {
        let outcome = both(|| {
            calling(50, |c| {
                c.mov(eax, 0x1234u32)?;
                c.lea(edi, dword_ptr(ebx + ebx * 4))?;
                c.cmp(edi, 100)?;
                c.int(0x80)?;
                c.push(eax)
            })
            .gate(SYSCALL, kind, 3, |c| {
                sum_up(c)?;
                c.mov(edx, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
                c.note(1, edx)?;
                c.enable_interrupts()?;
                c.inc(eax)?;
                c.iretd()
            })
            .kernel(|c| {
                c.enable_interrupts()?;
                c.enter_user()
            })
        });
        assert_eq!((outcome.passes, outcome.result(1)), (99, after), "type {kind:x}");
    }
}

#[test]
fn flags_go_in_and_come_back() {
    for mask in 0..32 {
        let chosen: Vec<u32> = [0, 2, 6, 7, 10]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| mask >> bit & 1 != 0)
            .map(|(_, flag)| 1 << flag)
            .collect();
        let change = chosen.iter().sum::<u32>();
        let outcome = both(|| {
            calling(8, |c| {
                c.cmp(ebx, 3)?;
                c.int(0x80)?;
                c.pushfd()?;
                c.pop(eax)?;
                c.cld()?;
                c.push(eax)
            })
            .gate(SYSCALL, TRAP_GATE, 3, |c| {
                sum_up(c)?;
                c.xor(dword_ptr(esp + 8), change)?;
                c.iretd()
            })
            .kernel(|c| c.enter_user())
        });
        assert_eq!(outcome.passes, 15, "{change:#x}");
    }
}

/// The handler changes its frame at the fourth call (when ebx is 5).
fn with_changed_frame(change: impl Fn(&mut Code) -> Assembled) -> impl Fn() -> TinyGuest {
    move || {
        calling(8, |c| {
            c.int(0x80)?;
            c.pushfd()?;
            c.pop(eax)?;
            c.push(eax)?;
            for register in [ds, es, fs, gs] {
                c.mov(eax, register)?;
                c.push(eax)?;
            }
            c.nop()
        })
        .gate(1, INTERRUPT_GATE, 3, |c| {
            sum_up(c)?;
            c.and(dword_ptr(esp + 8), !0x100)?;
            c.iretd()
        })
        .reporting(13, 4)
        .reporting(11, 4)
        .gate(SYSCALL, TRAP_GATE, 3, |c| {
            sum_up(c)?;
            let mut usual = c.create_label();
            c.cmp(ebx, 5)?;
            c.jne(usual)?;
            change(c)?;
            c.set_label(&mut usual)?;
            c.iretd()
        })
        .kernel(|c| c.enter_user())
    }
}

#[test]
fn flags_that_are_not_computed_go_the_long_way() {
    // TF, IF, IOPL, NT, RF, VM, AC, ID and one that doesn't exist.
    for flag in [8, 9, 12, 14, 16, 17, 18, 21, 3] {
        let outcome = both(with_changed_frame(|c| c.xor(dword_ptr(esp + 8), 1 << flag)));
        assert!(outcome.passes > 0, "bit {flag}");
    }
}

/// With NT, which the kernel and its program have both, `iret` would be a task's.
#[test]
fn a_return_to_another_task_goes_the_long_way() {
    let outcome = both(with_changed_frame(|c| {
        c.or(dword_ptr(esp + 8), 1 << 14)?;
        c.pushfd()?;
        c.or(dword_ptr(esp), 1 << 14)?;
        c.popfd()
    }));
    assert_eq!((outcome.end, outcome.passes), (End::PowerOff, 6));
}

/// The kernel's word for IF has other bits set as well, which no program sees.
#[test]
fn only_one_bit_of_the_word_for_interrupts_counts() {
    let outcome = both(|| {
        calling(8, |c| c.int(0x80))
            .gate(SYSCALL, TRAP_GATE, 3, |c| {
                sum_up(c)?;
                c.iretd()
            })
            .kernel(|c| {
                c.set_field(offset::IRQ_ENABLED, !0)?;
                c.enter_user()
            })
    });
    assert_eq!(outcome.passes, 15);
}

/// Calls by two vectors, in turn. The gate is for the one that came last.
#[test]
fn a_call_of_another_kind_reaches_its_own_handler() {
    let outcome = both(|| {
        calling(8, |c| {
            c.int(0x80)?;
            c.int(0x80)?;
            c.int(4)?;
            c.int(4)
        })
        .gate(SYSCALL, TRAP_GATE, 3, |c| {
            sum_up(c)?;
            c.iretd()
        })
        .gate(4, INTERRUPT_GATE, 3, |c| {
            c.count(1)?;
            sum_up(c)?;
            c.iretd()
        })
        .kernel(|c| c.enter_user())
    });
    assert_eq!((outcome.result(1), outcome.passes), (16, 32 + 16));
}

#[test]
fn other_segments_on_the_stack_go_the_long_way() {
    let selectors = [
        0,
        3,
        u32::from(USER_CS),
        u32::from(USER_DS),
        u32::from(KERNEL_CS),
        0x60,
        0x72,
        0x7a,
        0x77,
        0xfff3,
    ];
    for selector in selectors {
        for place in [4, 16] {
            for upper in [0, 0xabcd_0000] {
                both(with_changed_frame(|c| c.mov(dword_ptr(esp + place), selector | upper)));
            }
        }
    }
}

#[test]
fn a_handler_sends_its_caller_elsewhere() {
    let outcome = both(with_changed_frame(|c| {
        c.sub(dword_ptr(esp + 12), 0x20)?;
        c.mov(dword_ptr(esp), USER_CODE + 0x80)
    }));
    assert!(outcome.passes >= 6, "{}", outcome.passes);
}

#[test]
fn a_data_segment_for_the_kernel_alone_is_emptied_on_the_way_out() {
    for register in [ds, es, fs, gs] {
        let outcome = both(with_changed_frame(|c| {
            c.push(eax)?;
            c.mov(eax, u32::from(KERNEL_DS))?;
            c.mov(register, eax)?;
            c.pop(eax)
        }));
        assert!(outcome.passes >= 6);
    }
}

#[test]
fn what_the_kernel_changes_counts_at_once() {
    let (low, high) = gate_words(virt(HANDLERS) + 13 * 256, INTERRUPT_GATE, 3);
    let (_, private) = gate_words(virt(HANDLERS) + SYSCALL * 256, TRAP_GATE, 0);
    let (same, _) = gate_words(virt(HANDLERS) + SYSCALL * 256, TRAP_GATE, 0);
    let segment = u32::from(KERNEL_DS);
    let below = Virt(virt(TRAP_STACK) - 0x100);
    let changes = [
        Hypercall::SetStack { segment, esp: below, pages: 1 },
        Hypercall::SetStack { segment: u32::from(KERNEL_CS), esp: below, pages: 1 },
        Hypercall::SetStack { segment, esp: Virt(0), pages: 0 },
        Hypercall::SetStack { segment, esp: Virt(19), pages: 0 },
        Hypercall::LoadIdtEntry { vector: SYSCALL, low, high },
        Hypercall::LoadIdtEntry { vector: SYSCALL, low: same, high: private },
        Hypercall::LoadIdtEntry { vector: SYSCALL, low: 0, high: 0 },
        Hypercall::Ts { set: true },
    ];
    for change in changes {
        let outcome = both(with_changed_frame(|c| {
            c.pushad()?;
            c.hypercall(change)?;
            c.popad()
        }));
        assert!(outcome.passes >= 6, "{change:?}");
    }
}

#[test]
fn a_descriptor_that_changes_counts_at_once() {
    // The user's code and data, and the kernel's: smaller, not present, for another level, other rights, gone.
    for index in [12, 13, 14, 15] {
        for bits in [1u64 << 55, 1 << 47, 1 << 46, 1 << 45, 1 << 43, 1 << 42, 1 << 41, !0] {
            both(with_changed_frame(|c| {
                c.pushad()?;
                for half in 0..2 {
                    let bits = (bits >> (half * 32)) as u32;
                    c.xor(dword_ptr(virt(GDT) + index * 8 + half * 4), bits)?;
                }
                c.hypercall(Hypercall::LoadGdt {
                    table: lguest_abi::address::Phys(GDT),
                    entries: 32,
                })?;
                c.popad()
            }));
        }
    }
}

/// The kernel loads a table of its own, and then writes to it without a word.
#[test]
fn tables_in_memory_count_at_once() {
    let table = |at: u32, bytes: u16| {
        move |guest: TinyGuest| {
            guest.put(SCRATCH + 0x40, &(bytes - 1).to_le_bytes());
            guest.put_word(SCRATCH + 0x42, virt(at));
            guest
        }
    };
    for index in [12, 13, 14, 15] {
        let guest = with_changed_frame(|c| {
            c.lgdt(ptr(virt(SCRATCH + 0x40)))?;
            // Not present.
            c.xor(dword_ptr(virt(GDT) + index * 8 + 4), 1 << 15)
        });
        both(|| table(GDT, 256)(guest()));
    }
    let guest = with_changed_frame(|c| c.lidt(ptr(virt(SCRATCH + 0x40))));
    both(|| {
        let guest = table(FREE, 0x408)(guest());
        for (vector, handler) in [(0, 0), (11, 11), (13, 13), (SYSCALL, 13)] {
            let (low, high) = gate_words(virt(HANDLERS) + handler * 256, INTERRUPT_GATE, 3);
            guest.put_word(FREE + vector * 8, low);
            guest.put_word(FREE + vector * 8 + 4, high);
        }
        guest
    });
}

#[test]
fn a_queued_call_is_served_on_the_way_out() {
    let layout = &lguest_abi::lguest_data::Layout::FIRST;
    let outcome = both(|| {
        calling(8, |c| {
            c.int(0x80)?;
            c.fnop()
        })
        .handler(7, |c| {
            c.count(20)?;
            c.pushad()?;
            c.hypercall(Hypercall::Ts { set: false })?;
            c.popad()?;
            c.iretd()
        })
        .gate(SYSCALL, TRAP_GATE, 3, |c| {
            for (slot, count) in [(0, 5), (1, 2)] {
                let mut usual = c.create_label();
                c.cmp(ebx, count)?;
                c.jne(usual)?;
                c.enqueue(layout, slot, Hypercall::Ts { set: true })?;
                c.set_label(&mut usual)?;
            }
            c.iretd()
        })
        .kernel(|c| c.enter_user())
    });
    assert_eq!(outcome.result(20), 2);
    assert!(outcome.passes >= 8, "{}", outcome.passes);
}

#[test]
fn a_stack_that_holds_code_and_a_word_that_does() {
    // The frame lands on an instruction that has run.
    let routine = TRAP_STACK - 8;
    both(|| {
        let guest = calling(8, |c| c.int(0x80)).gate(SYSCALL, TRAP_GATE, 3, |c| {
            sum_up(c)?;
            c.call(u64::from(virt(SCRATCH)))?;
            c.iretd()
        });
        guest.code(virt(routine), routine, |c| c.ret());
        guest.code(virt(SCRATCH), SCRATCH, |c| {
            c.mov(byte_ptr(virt(routine)), 0xc3)?;
            c.call(u64::from(virt(routine)))?;
            c.ret()
        });
        guest.kernel(|c| {
            c.call(u64::from(virt(SCRATCH)))?;
            c.enter_user()
        })
    });
    // A gate that disables interrupts writes to the frame where LguestData is, which holds its handler.
    let handler = DATA + 0x800;
    let outcome = both(|| {
        let guest = calling(8, |c| c.int(0x80)).gate(SYSCALL, INTERRUPT_GATE, 3, |c| {
            sum_up(c)?;
            c.jmp(u64::from(virt(handler)))
        });
        guest.code(virt(handler), handler, |c| {
            c.enable_interrupts()?;
            c.iretd()
        });
        guest.kernel(|c| {
            c.enable_interrupts()?;
            c.enter_user()
        })
    });
    assert!(outcome.passes <= 2, "{}", outcome.passes);
}

#[test]
fn an_interrupt_that_waits_makes_calls_go_the_long_way() {
    for generation in LATER {
        let outcome = both(|| {
            calling_of(generation, 8, |c| c.int(0x80))
                .handler(33, |c| {
                    c.count(10)?;
                    sum_up(c)?;
                    c.enable_interrupts()?;
                    c.iretd()
                })
                .gate(SYSCALL, TRAP_GATE, 3, |c| {
                    sum_up(c)?;
                    let mut later = c.create_label();
                    let mut usual = c.create_label();
                    c.cmp(ebx, 5)?;
                    c.jne(later)?;
                    c.set_field(offset::IRQ_ENABLED, 0)?;
                    c.pushad()?;
                    c.raise(2)?;
                    c.popad()?;
                    c.set_label(&mut later)?;
                    c.cmp(ebx, 3)?;
                    c.jne(usual)?;
                    c.enable_interrupts()?;
                    c.set_label(&mut usual)?;
                    c.iretd()
                })
                .kernel(|c| {
                    c.enable_interrupts()?;
                    c.enter_user()
                })
        });
        assert_eq!((outcome.result(10), outcome.passes), (1, 11), "{generation}");
    }
}

/// A program that can write to LguestData queues a call; it is served before the handler runs.
#[test]
fn a_call_that_a_program_queues_is_served_on_the_way_in() {
    let layout = &lguest_abi::lguest_data::Layout::FIRST;
    let outcome = both(|| {
        let guest = calling(8, |c| {
            let mut usual = c.create_label();
            c.cmp(ebx, 5)?;
            c.jne(usual)?;
            c.mov(byte_ptr(USER_DATA + layout.hcall_status), 0)?;
            c.set_label(&mut usual)?;
            c.int(0x80)
        })
        .with_word(USER_TABLE + 4, DATA | 7)
        .handler(7, |c| {
            c.count(20)?;
            c.note(21, ebx)?;
            c.pushad()?;
            c.hypercall(Hypercall::Ts { set: false })?;
            c.popad()?;
            c.iretd()
        })
        .gate(SYSCALL, TRAP_GATE, 3, |c| {
            c.fnop()?;
            c.iretd()
        });
        guest.queue(0, Hypercall::Ts { set: true });
        guest.put(DATA + layout.hcall_status, &[0xff]);
        guest.kernel(|c| c.enter_user())
    });
    assert_eq!((outcome.result(20), outcome.result(21)), (1, 5));
    assert!(outcome.passes > 10, "{}", outcome.passes);
}

/// Each time that somebody looks after the devices, the guest is stopped.
struct Stopping;

impl Devices for Stopping {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        Some(Stop::Interrupted)
    }
}

#[test]
fn who_begins_to_watch_sees_the_next_call() {
    let guest = calling_of(Generation::V4_0, 8, |c| c.int(0x80))
        .gate(SYSCALL, TRAP_GATE, 3, |c| {
            let mut usual = c.create_label();
            c.cmp(ebx, 5)?;
            c.jne(usual)?;
            c.raise(2)?;
            c.set_label(&mut usual)?;
            c.iretd()
        })
        .kernel(|c| c.enter_user());
    let mut machine = guest.machine();
    // At the start, and in the fourth call.
    for _ in 0..2 {
        assert_eq!(machine.run(&mut Stopping), End::Stopped(Stop::Interrupted));
    }
    let passes = machine.statistics().gate_passes;
    assert!(passes > 0);
    machine.set_tracer(Some(Box::new(|_| {})));
    assert_eq!(machine.run(&mut NoDevices), End::PowerOff);
    assert_eq!(machine.statistics().gate_passes, passes);
}

/// Kicks come all the time; each call must be made once.
#[test]
fn kicks_find_gates_in_every_stretch() {
    const CALLS: u32 = 200_000;
    let guest = calling(CALLS, |c| {
        c.cmp(ebx, 77)?;
        c.int(0x80)
    })
    .gate(SYSCALL, TRAP_GATE, 3, |c| {
        c.count(1)?;
        sum_up(c)?;
        c.iretd()
    })
    .kernel(|c| c.enter_user());
    let mut machine = guest.machine();
    let (kicker, over) = (machine.kicker(), AtomicBool::new(false));
    let end = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                kicker.kick();
                std::thread::sleep(Duration::from_micros(3));
            }
        });
        let end = machine.run(&mut NoDevices);
        over.store(true, Ordering::Relaxed);
        end
    });
    assert_eq!(end, End::PowerOff);
    assert_eq!(guest.word(RESULTS + 4), CALLS);
    assert!(machine.statistics().gate_passes > u64::from(CALLS), "most of them pass");
    let (at, code, stack) = (USER_CODE + 20, u32::from(USER_CS), u32::from(USER_DS));
    let expected = (1..=CALLS).rev().fold(0u32, |sum, count| {
        let words =
            [at, code, flags_of_cmp(count, 77) | 2, USER_STACK, stack, 0, 0, count, 0, 0, 0];
        let sum = words.into_iter().fold(sum, |sum, word| sum.rotate_left(5).wrapping_add(word));
        sum.wrapping_add(u32::from(KERNEL_CS) + u32::from(KERNEL_DS))
    });
    assert_eq!(guest.word(RESULTS), expected);
}

/// CF, PF, AF, ZF, SF and OF behind `cmp`.
fn flags_of_cmp(left: u32, right: u32) -> u32 {
    let result = left.wrapping_sub(right);
    u32::from(left < right)
        | u32::from((result as u8).count_ones().is_multiple_of(2)) << 2
        | u32::from(left & 15 < right & 15) << 4
        | u32::from(result == 0) << 6
        | (result >> 31) << 7
        | u32::from((left ^ right) & (left ^ result) & 1 << 31 != 0) << 11
}
