//! Device interrupts: when they come, in which order, and that they come promptly.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use lguest_host::{DeviceIo, Devices, GuestPhys, Sections, Stop};
use std::time::{Duration, Instant};
use tiny_guest::*;

/// Raises interrupts when anything is sent to key 0: those whose bits the first word of the sections holds.
#[derive(Default)]
struct Raiser {
    raised_at: Option<Instant>,
}

impl Devices for Raiser {
    fn send(&mut self, _: GuestPhys, sections: &Sections, io: &mut DeviceIo<'_>) -> Option<u32> {
        let mut bytes = Vec::new();
        sections.gather(io.memory(), &mut bytes);
        let bits = bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        (0..32).filter(|irq| bits & 1 << irq != 0).for_each(|irq| io.raise(irq));
        self.raised_at = Some(Instant::now());
        Some(0)
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        None
    }
}

/// A guest whose SEND_DMA raises these interrupts.
fn guest_with(bits: u32) -> TinyGuest {
    let guest = TinyGuest::new();
    guest.put_dma(SCRATCH, 0, &[(SCRATCH + 128, 4)]);
    guest.put_word(SCRATCH + 128, bits);
    guest
}

fn raise(c: &mut Code) -> Assembled {
    use lguest_abi::address::Phys;
    c.hypercall(Hypercall::SendDma { key: Phys(0), dma: Phys(SCRATCH) })
}

/// A handler that appends its number to a list in the results, and counts in slot 0.
fn listing(guest: TinyGuest, irq: u32) -> TinyGuest {
    guest.handler(32 + irq, |c| {
        c.push(eax)?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.inc(eax)?;
        c.mov(dword_ptr(virt(RESULTS)), eax)?;
        c.mov(dword_ptr(eax * 4 + virt(RESULTS)), irq)?;
        c.pop(eax)?;
        // As a guest's iret does: enabled again before, where no interrupt comes in between here.
        c.enable_interrupts()?;
        c.iretd()
    })
}

#[test]
fn lowest_number_first() {
    let guest = listing(listing(listing(guest_with(1 << 3 | 1 << 31 | 1 << 9), 3), 9), 31);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.enable_interrupts()?;
            spin(c, 1_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    let list: Vec<u32> = (0..4).map(|slot| outcome.result(slot)).collect();
    // The handler enables interrupts before it returns, so later ones may nest: they still start in order.
    assert_eq!(list, [3, 3, 9, 31]);
}

#[test]
fn none_comes_while_disabled() {
    let guest = listing(guest_with(1 << 1), 1);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            spin(c, 50_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)?;
            c.enable_interrupts()?;
            spin(c, 1_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(8), 0);
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn enabling_by_the_usual_store_delivers_at_once() {
    let guest = listing(guest_with(1 << 1), 1);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.enable_interrupts()?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(8), 1, "before the instruction after the store");
}

#[test]
fn enabling_in_any_other_way_delivers_soon() {
    let guest = listing(guest_with(1 << 1), 1);
    let start = Instant::now();
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.mov(edi, virt(DATA))?;
            c.mov(eax, 0x246)?;
            c.stosd()?;
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.cmp(dword_ptr(virt(RESULTS)), 0)?;
            c.je(again)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(0), 1);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn only_bit_9_enables() {
    let guest = listing(guest_with(1 << 1), 1);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.set_field(offset::IRQ_ENABLED, !512)?;
            spin(c, 10_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)?;
            c.set_field(offset::IRQ_ENABLED, 0x246)?;
            spin(c, 1_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (0, 1));
}

#[test]
fn a_masked_one_waits_and_lets_others_by() {
    let guest = listing(listing(guest_with(1 << 1 | 1 << 2), 1), 2);
    let outcome = guest
        .kernel(|c| {
            c.set_field(offset::BLOCKED_INTERRUPTS, 1 << 1)?;
            raise(c)?;
            c.enable_interrupts()?;
            spin(c, 1_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)?;
            c.set_field(offset::BLOCKED_INTERRUPTS, 0)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(9, eax)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!([0, 1, 2, 8, 9].map(|slot| outcome.result(slot)), [2, 2, 1, 1, 2]);
}

#[test]
fn none_comes_in_the_noirq_range() {
    let noirq = FREE;
    let guest = listing(guest_with(1 << 1), 1);
    guest.put_word(DATA + offset::NOIRQ_START, virt(noirq));
    guest.put_word(DATA + offset::NOIRQ_END, virt(noirq) + 0x800);
    guest.code(virt(noirq), noirq, |c| {
        c.enable_interrupts()?;
        spin(c, 10_000_000)?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(8, eax)?;
        c.ret()
    });
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.mov(eax, virt(noirq))?;
            c.call(eax)?;
            spin(c, 10_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (0, 1));
}

#[test]
fn noirq_ends_before_its_end() {
    let guest = listing(guest_with(1 << 1), 1);
    guest.put_word(DATA + offset::NOIRQ_START, virt(FREE));
    guest.put_word(DATA + offset::NOIRQ_END, virt(FREE) + 10);
    // A store of ten bytes: behind it is the end.
    guest.code(virt(FREE), FREE, |c| {
        c.enable_interrupts()?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(8, eax)?;
        c.ret()
    });
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.mov(eax, virt(FREE))?;
            c.call(eax)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(8), 1);
}

#[test]
fn one_without_a_handler_keeps_those_above_it_waiting() {
    let guest = listing(listing(guest_with(1 << 1 | 1 << 2 | 1 << 0), 0), 2);
    let late = load_gate(33, virt(HANDLERS + 34 * 256), 0xe, 0);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.enable_interrupts()?;
            spin(c, 1_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)?;
            c.hypercall(late)?;
            spin(c, 1_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(8), 1, "only interrupt 0, below it");
    assert_eq!(outcome.result(0), 3, "all, when it has one");
}

#[test]
fn an_interrupt_pushes_like_a_trap_without_error_code() {
    let outcome = guest_with(1 << 4)
        .reporting(36, 5)
        .user(|c| {
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.jmp(again)
        })
        .kernel(|c| {
            raise(c)?;
            c.push(0x7b)?;
            c.push(USER_STACK)?;
            c.push(0x202)?;
            c.push(0x73)?;
            c.push(USER_CODE)?;
            c.enable_interrupts()?;
            c.iretd()
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    // It may come right before the iret, in the kernel: then three words were pushed.
    let (at, segment) = (outcome.result(0), outcome.result(1));
    assert!(segment == 0x61 || (segment, at) == (0x73, USER_CODE));
    assert_eq!(outcome.result(2) & 512, 512);
}

#[test]
fn a_timer_interrupts_user_code_that_never_calls() {
    let outcome = TinyGuest::new()
        .reporting(32, 5)
        .user(|c| {
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.jmp(again)
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 5_000_000 })?;
            c.enable_interrupts()?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!([0, 1, 3, 4].map(|s| outcome.result(s)), [USER_CODE, 0x73, USER_STACK, 0x7b]);
}

#[test]
fn halt_wakes_for_an_interrupt_that_is_pending_already() {
    let guest = listing(guest_with(1 << 1), 1);
    let outcome = guest
        .kernel(|c| {
            raise(c)?;
            c.hypercall(Hypercall::Halt)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn halt_does_not_wake_for_a_masked_one() {
    let guest = listing(listing(guest_with(1 << 1), 1), 0);
    let start = Instant::now();
    let outcome = guest
        .kernel(|c| {
            c.set_field(offset::BLOCKED_INTERRUPTS, 1 << 1)?;
            raise(c)?;
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 30_000_000 })?;
            c.hypercall(Hypercall::Halt)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [1, 0]);
    assert!(start.elapsed() >= Duration::from_millis(30));
}

/// Raises interrupt 1 when kicked.
struct OnKick;

impl Devices for OnKick {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop> {
        io.raise(1);
        None
    }
}

#[test]
fn a_kick_lets_the_devices_speak() {
    let guest = listing(TinyGuest::new(), 1).kernel(|c| {
        c.enable_interrupts()?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.cmp(dword_ptr(virt(RESULTS)), 0)?;
        c.je(again)
    });
    let mut machine = guest.machine();
    let kicker = machine.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(machine.run(&mut OnKick), lguest_host::End::PowerOff);
    thread.join().expect("the thread only kicks");
}

/// Asks for the end at the first poll.
struct Ender;

impl Devices for Ender {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        Some(Stop::Interrupted)
    }
}

#[test]
fn the_devices_can_stop_a_sleeping_guest() {
    let guest = TinyGuest::new().kernel(|c| c.hypercall(Hypercall::Halt));
    assert_eq!(guest.run_with(&mut Ender).end, lguest_host::End::Stopped(Stop::Interrupted));
}

/// Asks for the end at the second poll: the first is before the guest falls asleep.
struct EndAtSecondPoll {
    polls: u32,
}

impl Devices for EndAtSecondPoll {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, _: &mut DeviceIo<'_>) -> Option<Stop> {
        self.polls += 1;
        (self.polls == 2).then_some(Stop::Interrupted)
    }
}

#[test]
fn a_guest_halted_in_the_noirq_range_sleeps_on() {
    let guest = listing(TinyGuest::new(), 0);
    guest.put_word(DATA + offset::NOIRQ_START, virt(CODE));
    guest.put_word(DATA + offset::NOIRQ_END, virt(CODE) + 0x1000);
    let outcome = guest
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 1_000_000 })?;
            c.hypercall(Hypercall::Halt)
        })
        .run_with(&mut EndAtSecondPoll { polls: 0 });
    assert_eq!(outcome.end, lguest_host::End::Stopped(Stop::Interrupted));
    assert_eq!(outcome.result(0), 0);
}

#[test]
fn noirq_begins_at_its_start_and_counts_as_it_was_at_init() {
    let guest = listing(guest_with(1 << 1), 1);
    guest.put_word(DATA + offset::NOIRQ_START, virt(FREE) + 10);
    guest.put_word(DATA + offset::NOIRQ_END, virt(FREE) + 0x800);
    // A store of ten bytes: behind it is the start.
    guest.code(virt(FREE), FREE, |c| {
        c.enable_interrupts()?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(8, eax)?;
        c.ret()
    });
    let outcome = guest
        .kernel(|c| {
            // Too late: the Host has read it.
            c.set_field(offset::NOIRQ_START, 0)?;
            c.set_field(offset::NOIRQ_END, 0)?;
            raise(c)?;
            c.mov(eax, virt(FREE))?;
            c.call(eax)?;
            spin(c, 10_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (0, 1));
}

#[test]
fn an_interrupt_through_a_trap_gate_leaves_interrupts_enabled() {
    let outcome = guest_with(1 << 1)
        .gate(33, 0xf, 0, |c| {
            c.mov(eax, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
            c.note(0, eax)?;
            c.power_off()
        })
        .kernel(|c| {
            raise(c)?;
            c.set_field(offset::IRQ_ENABLED, 0x246)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!(outcome.result(0), 0x246, "as the guest wrote it");
}

#[test]
fn an_interrupt_comes_once() {
    let guest = listing(guest_with(1 << 1), 1);
    let outcome = guest
        .kernel(|c| {
            // Twice before it is delivered is once.
            raise(c)?;
            raise(c)?;
            c.enable_interrupts()?;
            spin(c, 1_000_000)?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(8, eax)?;
            raise(c)?;
            spin(c, 1_000_000)
        })
        .run_with(&mut Raiser::default())
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (1, 2));
}
