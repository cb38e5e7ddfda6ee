//! What each hypercall does, and what it leaves alone.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use lguest_host::End;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tiny_guest::*;

/// A flat writable data segment of level 0, not accessed yet.
const RAW_DATA: u64 = 0x00cf_9200_0000_ffff;

#[test]
fn flush_async_changes_no_register() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.mov(esi, 6)?;
            c.mov(edi, 7)?;
            c.mov(ebp, 8)?;
            c.raw_hypercall([0, 1, 2, 3])?;
            for (slot, register) in (0..).zip([eax, edx, ebx, ecx, esi, edi, ebp, esp]) {
                c.note(slot, register)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    let registers: Vec<u32> = (0..8).map(|slot| outcome.result(slot)).collect();
    assert_eq!(registers, [0, 1, 2, 3, 6, 7, 8, virt(STACK)]);
}

#[test]
fn hypercalls_leave_the_flags_alone() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            let mut done = c.create_label();
            c.mov(eax, 0)?;
            c.stc()?;
            c.int(0x1f)?;
            c.jnc(done)?;
            c.note_number(0, 1)?;
            c.set_label(&mut done)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn lguest_init_writes_what_the_guest_waits_for() {
    let guest = TinyGuest::new().with_word(DATA + offset::GUESTID, 0xabcd_0000);
    let outcome = guest.kernel(|_| Ok(())).run().powered_off();
    assert_eq!(outcome.field(offset::RESERVE_MEM), 4 << 20);
    assert_eq!(outcome.field(offset::GUESTID), 0xabcd_0000 | u32::from(GUEST_ID));
    // 0, or the speed of a processor: more than 100 MHz, less than 20 GHz.
    let khz = outcome.field(offset::TSC_KHZ);
    assert!(khz == 0 || (100_000..20_000_000).contains(&khz), "{khz} kHz");
}

#[test]
fn crash_tells_the_guests_own_message() {
    let guest = TinyGuest::new();
    guest.put(SCRATCH, b"the guest is tired\0and this is no part of it");
    let end = guest.kernel(|c| c.hypercall(Hypercall::Crash { message: Phys(SCRATCH) })).run().end;
    assert_eq!(end, End::Crashed("the guest is tired".to_owned()));
}

#[test]
fn crash_keeps_127_bytes() {
    let guest = TinyGuest::new();
    guest.put(SCRATCH, &[b'x'; 200]);
    let end = guest.kernel(|c| c.hypercall(Hypercall::Crash { message: Phys(SCRATCH) })).run().end;
    assert_eq!(end, End::Crashed("x".repeat(127)));
}

#[test]
fn crash_with_power_down_is_a_power_off() {
    TinyGuest::new().kernel(|_| Ok(())).run().powered_off();
}

#[test]
fn crash_with_more_than_power_down_is_a_crash() {
    let guest = TinyGuest::new();
    guest.put(SCRATCH, b"Power down now\0");
    let end = guest.kernel(|c| c.hypercall(Hypercall::Crash { message: Phys(SCRATCH) })).run().end;
    assert_eq!(end, End::Crashed("Power down now".to_owned()));
}

#[test]
fn load_gdt_raises_level_0_to_level_1() {
    let guest = TinyGuest::new();
    let based = RAW_DATA | 0x1000 << 16;
    guest.put(GDT + 20 * 8, &based.to_le_bytes());
    let outcome = guest
        .kernel(|c| {
            // Level 1 may load it now, and it has the base it was given.
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(fs, eax)?;
            c.mov(eax, dword_ptr(virt(RESULTS) - 0x1000 + 64).fs())?;
            c.note(0, eax)
        })
        .with_word(RESULTS + 64, 0x1234)
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x1234);
}

#[test]
fn load_gdt_ignores_the_hosts_own_entries() {
    for entry in [10, 11, 16, 31] {
        let guest = TinyGuest::new();
        guest.put(GDT + entry * 8, &RAW_DATA.to_le_bytes());
        let outcome = guest
            .reporting(13, 1)
            .kernel(|c| {
                c.mov(eax, entry * 8 + 1)?;
                c.mov(fs, eax)
            })
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), entry * 8, "entry {entry}");
    }
}

#[test]
fn a_gdt_entry_that_is_no_segment_faults_when_loaded() {
    // A present task segment.
    let guest = TinyGuest::new();
    guest.put(GDT + 20 * 8, &0x0000_8900_0000_0067u64.to_le_bytes());
    let outcome = guest
        .reporting(13, 1)
        .kernel(|c| {
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(fs, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 20 * 8);
}

#[test]
fn load_tls_sets_entries_6_to_8() {
    let guest = TinyGuest::new();
    for (index, base) in [(0u32, 0x10u64), (1, 0x20), (2, 0x30)] {
        let user_data = 0x00cf_f200_0000_ffff | base << 16;
        guest.put(SCRATCH + index * 8, &user_data.to_le_bytes());
        guest.put_word(RESULTS + 64 + base as u32, 0x100 + index);
    }
    let outcome = guest
        .kernel(|c| {
            c.hypercall(Hypercall::LoadTls { descriptors: Phys(SCRATCH), cpu: 0 })?;
            for (slot, entry) in [(0, 6), (1, 7), (2, 8)] {
                c.mov(eax, entry * 8 + 3)?;
                c.mov(gs, eax)?;
                c.mov(eax, dword_ptr(virt(RESULTS + 64)).gs())?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 2].map(|slot| outcome.result(slot)), [0x100, 0x101, 0x102]);
}

#[test]
fn ts_makes_the_fpu_raise_trap_7() {
    let outcome = TinyGuest::new()
        .handler(7, |c| {
            c.count(0)?;
            c.hypercall(Hypercall::Ts { set: false })?;
            c.iretd()
        })
        .kernel(|c| {
            c.fninit()?;
            c.hypercall(Hypercall::Ts { set: true })?;
            c.fld1()?;
            c.fstp(dword_ptr(virt(RESULTS + 4)))?;
            c.raw_hypercall([8, 0x8000_0000, 0, 0])?;
            c.movd(xmm0, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 2);
    assert_eq!(outcome.result(1), 1f32.to_bits());
}

#[test]
fn set_clockevent_raises_interrupt_0_once() {
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 1_000_000 })?;
            c.enable_interrupts()?;
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.cmp(dword_ptr(virt(RESULTS)), 0)?;
            c.je(again)?;
            // Long enough for a second one, if there were one.
            c.mov(ecx, 20_000_000)?;
            let mut wait = c.create_label();
            c.set_label(&mut wait)?;
            c.dec(ecx)?;
            c.jne(wait)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn set_clockevent_0_calls_it_off() {
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 3_000_000 })?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 0 })?;
            c.enable_interrupts()?;
            c.mov(ecx, 50_000_000)?;
            let mut wait = c.create_label();
            c.set_label(&mut wait)?;
            c.dec(ecx)?;
            c.jne(wait)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0);
}

#[test]
fn halt_sleeps_until_an_interrupt_and_enables_them() {
    let start = Instant::now();
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.mov(eax, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
            c.note(1, eax)?;
            c.mov(eax, dword_ptr(esp + 8))?;
            c.note(2, eax)?;
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 20_000_000 })?;
            c.hypercall(Hypercall::Halt)
        })
        .run()
        .powered_off();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(outcome.result(0), 1);
    assert_eq!(outcome.result(1), 0, "an interrupt gate disables interrupts");
    assert_eq!(outcome.result(2) & 512, 512, "they were enabled on waking");
}

#[test]
fn get_wallclock_gives_seconds_since_1970() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let before = now();
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.hypercall(Hypercall::GetWallclock)?;
            c.note(0, eax)
        })
        .run()
        .powered_off();
    assert!((before..=now()).contains(&u64::from(outcome.result(0))));
}

#[test]
fn from_user_mode_the_hypercall_vector_is_trap_13() {
    let outcome = TinyGuest::new()
        .reporting(13, 6)
        .user(|c| {
            c.mov(eax, 0)?;
            c.int(0x1f)
        })
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x1f * 8 + 2);
    assert_eq!(outcome.result(1), USER_CODE + 5, "eip is at the instruction");
}

#[test]
fn every_call_makes_a_readable_line() {
    let outcome = TinyGuest::new()
        .kernel(|c| c.hypercall(Hypercall::SetClockevent { nanoseconds: 0 }))
        .run()
        .powered_off();
    let first = outcome.trace.first().map(String::as_str);
    assert_eq!(first, Some("hypercall  LGUEST_INIT data=0x00002000  (eip 0xc001001b)"));
    assert!(outcome.trace.iter().any(|line| line.starts_with("hypercall  SET_CLOCKEVENT")));
}

#[test]
fn eax_changes_only_where_there_is_an_answer() {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0, &[]);
    let call = |number, words: [u32; 3]| [number, words[0], words[1], words[2]];
    let silent = [
        call(0, [0, 0, 0]),
        call(3, [GDT, 32, 0]),
        call(4, [DIRECTORY, 0, 0]),
        call(5, [0, 0, 0]),
        call(5, [1, 0, 0]),
        call(6, [40, 0, 0]),
        call(7, [0x69, virt(TRAP_STACK), 2]),
        call(8, [0, 0, 0]),
        call(9, [0, 0, 0]),
        call(13, [0, SCRATCH, 0]),
        call(14, [DIRECTORY, USER_DATA, 0]),
        call(15, [DIRECTORY, USER_DATA >> 22, 0]),
        call(16, [GDT, 0, 0]),
    ];
    let outcome = guest
        .kernel(|c| {
            for (slot, words) in (0..).zip(silent) {
                c.raw_hypercall(words)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    let numbers: Vec<u32> = (0..silent.len() as u32).map(|slot| outcome.result(slot)).collect();
    assert_eq!(numbers, silent.map(|words| words[0]));
}

#[test]
fn a_crash_message_needs_no_particular_encoding() {
    let guest = TinyGuest::new();
    guest.put(SCRATCH, b"caf\xe9 \xff\0");
    let end = guest.kernel(|c| c.hypercall(Hypercall::Crash { message: Phys(SCRATCH) })).run().end;
    assert_eq!(end, End::Crashed("caf\u{fffd} \u{fffd}".to_owned()));
}

#[test]
fn load_gdt_marks_entries_accessed() {
    let guest = TinyGuest::new();
    guest.put(GDT + 20 * 8, &RAW_DATA.to_le_bytes());
    guest.put(GDT + 21 * 8, &(RAW_DATA | 3 << 45).to_le_bytes());
    let outcome = guest
        .kernel(|c| {
            for (slot, entry) in [(0, 20), (1, 21)] {
                c.mov(ecx, entry * 8 + 1)?;
                c.lar(eax, ecx)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    // Present, writable data, accessed: of level 1, and of level 3 as it was.
    assert_eq!([0, 1].map(|slot| outcome.result(slot) & 0xff00), [0xb300, 0xf300]);
    assert_eq!(
        outcome.guest.word(GDT + 20 * 8 + 4),
        0x00cf_9200,
        "the guest's own table is its own"
    );
}

#[test]
fn load_gdt_of_fewer_entries_leaves_the_others() {
    let guest = TinyGuest::new();
    guest.put(GDT + 20 * 8, &RAW_DATA.to_le_bytes());
    let outcome = guest
        .kernel(|c| {
            c.hypercall(Hypercall::LoadGdt { table: Phys(SCRATCH), entries: 12 })?;
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(fs, eax)?;
            c.mov(eax, fs)?;
            c.note(0, eax)?;
            c.hypercall(Hypercall::LoadGdt { table: Phys(SCRATCH), entries: 0 })?;
            c.mov(fs, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 20 * 8 + 1);
}

#[test]
fn load_tls_raises_level_0_too_and_leaves_the_rest() {
    let guest = TinyGuest::new();
    guest.put(GDT + 5 * 8, &RAW_DATA.to_le_bytes());
    guest.put(GDT + 9 * 8, &RAW_DATA.to_le_bytes());
    for index in 0..3 {
        guest.put(SCRATCH + index * 8, &RAW_DATA.to_le_bytes());
    }
    let outcome = guest
        .kernel(|c| {
            // The processor's number doesn't matter: there is only one.
            c.hypercall(Hypercall::LoadTls { descriptors: Phys(SCRATCH), cpu: 5 })?;
            for (slot, entry) in (0..).zip(5..10) {
                c.mov(ecx, entry * 8 + 1)?;
                c.lar(eax, ecx)?;
                c.note(slot, eax)?;
            }
            Ok(())
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome).map(|access| access & 0xff00), [0xb300; 5]);
}

#[test]
fn halt_sets_irq_enabled_to_512() {
    // A trap gate, so that the handler sees the word as it was on waking.
    let outcome = TinyGuest::new()
        .gate(32, 0xf, 0, |c| {
            c.mov(eax, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
            c.note(0, eax)?;
            c.iretd()
        })
        .kernel(|c| {
            c.set_field(offset::IRQ_ENABLED, 0xffff_fdff)?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 100 })?;
            c.hypercall(Hypercall::Halt)?;
            c.mov(eax, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
            c.note(1, eax)
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [512, 512]);
}

#[test]
fn set_clockevent_replaces_the_one_before() {
    let start = Instant::now();
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: u32::MAX })?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 1_000_000 })?;
            c.hypercall(Hypercall::Halt)?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 1_000_000 })?;
            c.hypercall(Hypercall::Halt)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 2, "each call is one interrupt");
    assert!(start.elapsed() < Duration::from_secs(4));
}
