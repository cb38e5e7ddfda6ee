//! Interrupts of the later generations: the note that one waits, the time that comes with each, the instruction that isn't
//! interrupted, and devices that raise them from threads of their own.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::{NoIrq, offset};
use lguest_host::{End, Generation, NoDevices};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tiny_guest::*;

/// Where a guest of 4.0 has the address of the instruction that isn't interrupted.
const NOIRQ_IRET: u32 = 1376;
const TIME: u32 = 12;

/// A handler that notes how often it ran in slot 0, and goes on with interrupts enabled.
fn counting(guest: TinyGuest, irq: u32) -> TinyGuest {
    guest.handler(32 + irq, |c| {
        c.count(0)?;
        c.enable_interrupts()?;
        c.iretd()
    })
}

/// Goes round until slot 0 has counted something.
fn until_counted(c: &mut Code) -> Assembled {
    let mut again = c.create_label();
    c.set_label(&mut again)?;
    c.cmp(dword_ptr(virt(RESULTS)), 0)?;
    c.je(again)
}

/// Stores to `irq_enabled` in a way that nobody watches.
fn enable_secretly(c: &mut Code) -> Assembled {
    c.mov(edi, virt(DATA))?;
    c.mov(eax, 512)?;
    c.stosd()
}

/// A guest's field where it is told that an interrupt waits.
fn irq_pending(guest: &TinyGuest) -> u32 {
    guest.layout.irq_pending.expect("a generation that has it")
}

// The note that an interrupt waits.

#[test]
fn irq_pending_says_that_an_interrupt_waits_to_be_enabled() {
    for generation in WIDE {
        let guest = counting(TinyGuest::of(generation), 3);
        let field = irq_pending(&guest);
        let outcome = guest.kernel(|c| {
            note_field(c, 1, field)?;
            c.raise(1 << 3)?;
            note_field(c, 2, field)?;
            // It stays so through whatever else happens.
            c.hypercall(Hypercall::FlushAsync)?;
            note_field(c, 3, field)?;
            c.enable_interrupts()?;
            note_field(c, 4, field)
        });
        assert_eq!(results(&outcome.run().powered_off()), [1, 0, 512, 512, 0], "{generation}");
    }
}

#[test]
fn send_interrupts_is_answered_by_them() {
    for generation in WIDE {
        let guest = counting(TinyGuest::of(generation), 3);
        let field = irq_pending(&guest);
        let outcome = guest.kernel(|c| {
            c.raise(1 << 3)?;
            enable_secretly(c)?;
            c.hypercall(Hypercall::SendInterrupts)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(1, eax)?;
            note_field(c, 2, field)
        });
        assert_eq!(results(&outcome.run().powered_off()), [1, 1, 0], "{generation}");
    }
}

#[test]
fn irq_pending_is_set_for_nothing_else() {
    for generation in WIDE {
        // The interrupt is masked; it has no handler; interrupts are enabled.
        for (blocked, irq, enabled) in [(1 << 3, 3, 0), (0, 4, 0), (1 << 3, 3, 512)] {
            let guest = counting(TinyGuest::of(generation), 3);
            let field = irq_pending(&guest);
            let outcome = guest.kernel(|c| {
                c.set_field(offset::BLOCKED_INTERRUPTS, blocked)?;
                c.set_field(offset::IRQ_ENABLED, enabled)?;
                c.raise(1 << irq)?;
                c.hypercall(Hypercall::FlushAsync)?;
                note_field(c, 1, field)
            });
            let case = format!("{generation}: blocked {blocked}, irq {irq}, enabled {enabled}");
            assert_eq!(results(&outcome.run().powered_off()), [0, 0], "{case}");
        }
    }
}

#[test]
fn irq_pending_is_cleared_when_the_interrupt_is_masked() {
    for generation in WIDE {
        let guest = counting(TinyGuest::of(generation), 3);
        let field = irq_pending(&guest);
        let outcome = guest.kernel(|c| {
            c.raise(1 << 3)?;
            note_field(c, 1, field)?;
            c.set_field(offset::BLOCKED_INTERRUPTS, 1 << 3)?;
            c.hypercall(Hypercall::FlushAsync)?;
            note_field(c, 2, field)
        });
        assert_eq!(results(&outcome.run().powered_off()), [0, 512, 0], "{generation}");
    }
}

#[test]
fn a_handler_finds_irq_pending_set_if_another_interrupt_waits_for_it() {
    for generation in WIDE {
        let guest = TinyGuest::of(generation);
        let field = irq_pending(&guest);
        // One through an interrupt gate, which the next waits for; then one through a trap gate, which leaves them enabled.
        let outcome = guest
            .handler(33, |c| {
                note_field(c, 1, field)?;
                c.enable_interrupts()?;
                c.iretd()
            })
            .gate(34, 0xf, 0, |c| {
                note_field(c, 2, field)?;
                c.iretd()
            });
        let outcome = outcome.kernel(|c| {
            c.raise(1 << 1 | 1 << 2)?;
            c.enable_interrupts()?;
            note_field(c, 3, field)
        });
        assert_eq!(results(&outcome.run().powered_off()), [0, 512, 0, 0], "{generation}");
    }
}

#[test]
fn kernels_that_have_no_such_field_keep_what_is_there() {
    for generation in [Generation::V2_6_24, Generation::V2_6_25] {
        let outcome = counting(TinyGuest::of(generation), 3).kernel(|c| {
            // The status of ring entries begins where later kernels have the field: all done.
            c.raise(1 << 3)?;
            note_field(c, 1, 20)
        });
        assert_eq!(results(&outcome.run().powered_off()), [0, u32::MAX], "{generation}");
    }
}

// Sleep, the time, and system calls.

#[test]
fn halt_wakes_with_interrupts_enabled() {
    for generation in LATER {
        let outcome = TinyGuest::of(generation)
            .gate(35, 0xf, 0, |c| {
                c.count(0)?;
                note_field(c, 1, offset::IRQ_ENABLED)?;
                c.iretd()
            })
            .kernel(|c| {
                c.raise(1 << 3)?;
                c.hypercall(Hypercall::Halt)
            });
        assert_eq!(results(&outcome.run().powered_off()), [1, 512], "{generation}");
    }
}

#[test]
fn the_time_comes_with_each_interrupt_and_with_nothing_else() {
    for generation in [Generation::V2_6_23].into_iter().chain(LATER) {
        let outcome = TinyGuest::of(generation)
            .gate(33, 0xf, 0, |c| {
                note_field(c, 0, TIME)?;
                note_field(c, 1, TIME + 4)?;
                c.iretd()
            })
            .handler(6, |c| {
                note_field(c, 2, TIME)?;
                c.add(dword_ptr(esp), 2)?;
                c.iretd()
            })
            .kernel(|c| {
                c.set_field(TIME, 0)?;
                c.set_field(TIME + 4, u32::MAX)?;
                c.ud2()?;
                c.enable_interrupts()?;
                c.raise(1 << 1)?;
                // So that it has come.
                spin(c, 100_000)
            });
        let outcome = outcome.run().powered_off();
        let [seconds, nanoseconds, before] = results(&outcome);
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32;
        assert!((now - 60..=now).contains(&seconds), "{generation}: {seconds}");
        assert!(nanoseconds < 1_000_000_000, "{generation}: {nanoseconds}");
        assert_eq!(before, 0, "{generation}");
    }
}

#[test]
fn a_system_call_by_an_interrupt_gate_disables_interrupts() {
    for generation in LATER {
        for (kind, enabled) in [(0xe, 0), (0xf, 512)] {
            let outcome = TinyGuest::of(generation)
                .gate(0x80, kind, 3, |c| {
                    note_field(c, 0, offset::IRQ_ENABLED)?;
                    c.mov(eax, dword_ptr(esp + 8))?;
                    c.and(eax, 512)?;
                    c.note(1, eax)?;
                    c.power_off()
                })
                .user(|c| c.int(0x80))
                .kernel(|c| {
                    c.enable_interrupts()?;
                    c.enter_user()
                });
            let wanted = [enabled, 512];
            assert_eq!(results(&outcome.run().powered_off()), wanted, "{generation}, {kind:#x}");
        }
    }
}

// Where a guest isn't interrupted.

#[test]
fn none_comes_in_the_noirq_range() {
    for generation in LATER {
        let guest = counting(TinyGuest::of(generation), 1);
        let NoIrq::Range(start, end) = guest.layout.noirq else { continue };
        let pending = guest.layout.irq_pending;
        guest.put_word(DATA + start, virt(FREE));
        guest.put_word(DATA + end, virt(FREE) + 0x800);
        guest.code(virt(FREE), FREE, |c| {
            c.enable_interrupts()?;
            spin(c, 10_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(1, eax)?;
            // It doesn't wait to be enabled, so that isn't said either.
            if let Some(field) = pending {
                note_field(c, 2, field)?;
            }
            c.ret()
        });
        let outcome = guest.kernel(|c| {
            c.raise(1 << 1)?;
            c.mov(eax, virt(FREE))?;
            c.call(eax)?;
            spin(c, 10_000_000)
        });
        assert_eq!(results(&outcome.run().powered_off()), [1, 0, 0], "{generation}");
    }
}

/// The way back of a kernel of 4.0, at [`FREE`]: it enables interrupts as the frame says, right before its protected `iret`.
fn with_way_back(guest: TinyGuest) -> TinyGuest {
    const IRET: u32 = FREE + 11;
    guest.code(virt(FREE), FREE, |c| {
        c.push(dword_ptr(esp + 8))?;
        c.pop(dword_ptr(virt(DATA) + offset::IRQ_ENABLED).ss())?;
        c.iretd()
    });
    assert_eq!(guest.word(IRET) & 0xff, 0xcf, "the iret is where it is said to be");
    guest.with_word(DATA + NOIRQ_IRET, virt(IRET))
}

/// Pushes the frame of an interrupt of user code, which had interrupts enabled. Its data segments are back already.
fn push_user_frame(c: &mut Code) -> Assembled {
    c.mov(eax, 0x7b)?;
    c.mov(ds, eax)?;
    c.mov(es, eax)?;
    c.push(0x7b)?;
    c.push(USER_STACK)?;
    c.push(0x202)?;
    c.push(0x73)?;
    c.push(USER_CODE)
}

#[test]
fn an_interrupt_at_the_protected_iret_takes_over_its_frame() {
    let outcome = with_way_back(TinyGuest::of(Generation::V4_0)).reporting(33, 5).kernel(|c| {
        c.raise(1 << 1)?;
        push_user_frame(c)?;
        c.mov(eax, virt(FREE))?;
        c.jmp(eax)
    });
    let outcome = outcome.run().powered_off();
    let stack = virt(STACK) - 20;
    assert_eq!(results(&outcome), [USER_CODE, 0x73, 0x202, USER_STACK, 0x7b, stack]);
    assert_eq!(outcome.field(offset::IRQ_ENABLED), 0, "through an interrupt gate");
}

#[test]
fn behind_the_handler_the_frame_leads_where_it_led_before() {
    let guest = with_way_back(TinyGuest::of(Generation::V4_0))
        .gate(33, 0xf, 0, |c| {
            c.count(0)?;
            c.mov(eax, virt(FREE))?;
            c.jmp(eax)
        })
        .gate(0x80, 0xf, 3, |c| {
            c.note(1, ebp)?;
            c.power_off()
        })
        .user(|c| {
            c.mov(ebp, 77)?;
            c.int(0x80)
        });
    let outcome = guest.kernel(|c| {
        c.raise(1 << 1)?;
        push_user_frame(c)?;
        c.mov(eax, virt(FREE))?;
        c.jmp(eax)
    });
    assert_eq!(results(&outcome.run().powered_off()), [1, 77]);
}

#[test]
fn a_return_inside_the_kernel_is_taken_over_too() {
    let outcome = with_way_back(TinyGuest::of(Generation::V4_0)).reporting(33, 3).kernel(|c| {
        c.raise(1 << 1)?;
        c.push(0x246)?;
        c.push(0x61)?;
        c.push(0x1234)?;
        c.mov(eax, virt(FREE))?;
        c.jmp(eax)
    });
    let wanted = [0x1234, 0x61, 0x246, virt(STACK) - 12];
    assert_eq!(results(&outcome.run().powered_off()), wanted);
}

#[test]
fn the_handler_runs_in_the_kernels_own_segment_and_without_tracing() {
    let guest = with_way_back(TinyGuest::of(Generation::V4_0));
    // The kernel's code once more, as entry 20.
    guest.put(GDT + 20 * 8, &0x00cf_bb00_0000_ffffu64.to_le_bytes());
    let guest = guest.handler(33, |c| {
        c.mov(eax, cs)?;
        c.note(0, eax)?;
        c.pushfd()?;
        c.pop(eax)?;
        c.and(eax, 1 << 14)?;
        c.note(1, eax)?;
        c.power_off()
    });
    let outcome = guest.kernel(|c| {
        c.raise(1 << 1)?;
        push_user_frame(c)?;
        // Nested task, which delivery clears.
        c.push(1 << 14)?;
        c.popfd()?;
        c.push(20 * 8 + 1)?;
        c.push(virt(FREE) as i32)?;
        c.retf()
    });
    assert_eq!(results(&outcome.run().powered_off()), [0x61, 0]);
}

#[test]
fn the_protected_address_means_nothing_to_user_code_nor_to_traps() {
    // An endless loop of user code at that address, interrupted there.
    let guest = TinyGuest::of(Generation::V4_0).with_word(DATA + NOIRQ_IRET, USER_CODE);
    let outcome = guest.reporting(32, 5).user(|c| c.jmp(u64::from(USER_CODE))).kernel(|c| {
        c.hypercall(Hypercall::SetClockevent { nanoseconds: 5_000_000 })?;
        c.enable_interrupts()?;
        c.enter_user()
    });
    let outcome = outcome.run().powered_off();
    assert_eq!([0, 1, 3, 4].map(|slot| outcome.result(slot)), [USER_CODE, 0x73, USER_STACK, 0x7b]);
    assert_eq!(outcome.result(5), virt(TRAP_STACK) - 20);

    // An iret that faults: to a code segment that doesn't exist.
    let outcome = with_way_back(TinyGuest::of(Generation::V4_0)).reporting(13, 4).kernel(|c| {
        c.push(0x202)?;
        c.push(29 * 8 + 1)?;
        c.push(0x1234)?;
        c.mov(eax, virt(FREE))?;
        c.jmp(eax)
    });
    let outcome = outcome.run().powered_off();
    assert_eq!([0, 1, 2].map(|slot| outcome.result(slot)), [29 * 8, virt(FREE) + 11, 0x61]);
}

// Devices with threads of their own.

/// Runs a guest while another thread raises interrupt 1, a moment after the start.
fn run_with_a_late_interrupt(guest: &TinyGuest) -> End {
    let mut machine = guest.machine();
    let lines = guest.lines.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        lines.raise(1);
    });
    let end = machine.run(&mut NoDevices);
    thread.join().expect("the thread only raises");
    end
}

#[test]
fn an_interrupt_from_another_thread_wakes_a_halted_guest() {
    for generation in LATER {
        let guest = counting(TinyGuest::of(generation), 1).kernel(|c| c.hypercall(Hypercall::Halt));
        assert_eq!(run_with_a_late_interrupt(&guest), End::PowerOff, "{generation}");
        assert_eq!(guest.word(RESULTS), 1, "{generation}");
    }
}

#[test]
fn an_interrupt_from_another_thread_interrupts_a_busy_guest() {
    for generation in LATER {
        let guest = counting(TinyGuest::of(generation), 1).kernel(|c| {
            c.enable_interrupts()?;
            until_counted(c)
        });
        assert_eq!(run_with_a_late_interrupt(&guest), End::PowerOff, "{generation}");
    }
    // User code that never calls.
    let guest = TinyGuest::of(Generation::V4_0).reporting(33, 2);
    let guest = guest.user(|c| c.jmp(u64::from(USER_CODE))).kernel(|c| {
        c.enable_interrupts()?;
        c.enter_user()
    });
    assert_eq!(run_with_a_late_interrupt(&guest), End::PowerOff);
    assert_eq!([guest.word(RESULTS), guest.word(RESULTS + 4)], [USER_CODE, 0x73]);
}

#[test]
fn an_interrupt_raised_before_there_was_a_guest_is_not_forgotten() {
    let guest = counting(TinyGuest::of(Generation::V4_0), 1).kernel(|c| {
        c.enable_interrupts()?;
        until_counted(c)
    });
    for irq in [1, 32, 255] {
        guest.lines.raise(irq);
    }
    guest.run().powered_off();
}

#[test]
fn raising_many_times_before_delivery_is_raising_once() {
    let outcome = counting(TinyGuest::of(Generation::V4_0), 1).kernel(|c| {
        for _ in 0..10 {
            c.raise(1 << 1)?;
        }
        c.enable_interrupts()?;
        spin(c, 1_000_000)?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(1, eax)?;
        c.raise(1 << 1)?;
        spin(c, 1_000_000)
    });
    assert_eq!(results(&outcome.run().powered_off()), [2, 1]);
}

#[test]
fn no_interrupt_of_many_from_threads_is_lost() {
    const EACH: u32 = 2_000;
    // Two lines; a thread for each waits until its interrupt has been counted before it raises the next.
    let guest = [1, 2].into_iter().fold(TinyGuest::of(Generation::V4_0), |guest, irq| {
        guest.gate(32 + irq, 0xe, 0, |c| {
            c.count(irq)?;
            c.enable_interrupts()?;
            c.iretd()
        })
    });
    let guest = guest.kernel(|c| {
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.hypercall(Hypercall::Halt)?;
        // None may come between the look and the sleep.
        c.set_field(offset::IRQ_ENABLED, 0)?;
        for irq in [1, 2] {
            c.cmp(dword_ptr(virt(RESULTS + irq * 4)), EACH)?;
            c.jb(again)?;
        }
        Ok(())
    });
    let mut machine = guest.machine();
    let threads = [1, 2].map(|irq| {
        let (lines, memory) = (guest.lines.clone(), guest.memory.clone());
        thread::spawn(move || {
            let start = Instant::now();
            for done in 1..=EACH {
                lines.raise(irq as u8);
                let count = lguest_host::GuestPhys(RESULTS + irq * 4);
                while memory.read_u32(count).expect("in memory") < done {
                    assert!(start.elapsed() < Duration::from_secs(60), "{done} was lost");
                    thread::yield_now();
                }
            }
        })
    });
    assert_eq!(machine.run(&mut NoDevices), End::PowerOff);
    for thread in threads {
        thread.join().expect("no interrupt is lost");
    }
}
