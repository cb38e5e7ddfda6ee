//! What a guest finds at its first instruction, and what it may count on before it has said anything.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use lguest_host::{DeviceIo, Devices, End, GuestPhys, Sections, Stop};
use std::time::Duration;
use tiny_guest::*;

/// LGUEST_INIT and the end, for a guest without a GDT or gates of its own.
fn init_and_power_off(c: &mut Code) -> Assembled {
    c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
    c.power_off()
}

#[test]
fn registers() {
    let outcome = TinyGuest::new()
        .bare(|c| {
            for (slot, register) in (0..).zip([eax, ebx, ecx, edx, esi, edi, ebp, esp]) {
                c.note(slot, register)?;
            }
            c.mov(esp, virt(STACK))?;
            for (slot, segment) in (8..).zip([cs, ds, es, ss, fs, gs]) {
                c.mov(eax, segment)?;
                c.note(slot, eax)?;
            }
            c.pushfd()?;
            c.pop(eax)?;
            c.note(14, eax)?;
            init_and_power_off(c)
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [0, 0, 0, 0, 0, 0, 0, 0, 0x61, 0x69, 0x69, 0x69, 0, 0, 0x202]);
}

#[test]
fn paging_is_on_in_32_bit_protected_mode() {
    let outcome = TinyGuest::new()
        .bare(|c| {
            c.mov(eax, cr0)?;
            c.note(0, eax)?;
            c.mov(eax, cr3)?;
            c.note(1, eax)?;
            init_and_power_off(c)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0) & 0x8000_0001, 0x8000_0001);
    assert_eq!(outcome.result(1), DIRECTORY);
}

#[test]
fn the_first_segments_are_flat_and_of_level_1() {
    let outcome = TinyGuest::new()
        .bare(|c| {
            // They can be loaded again, though nobody has loaded a GDT, and have limits of 4 GiB.
            c.mov(eax, 0x69)?;
            for segment in [ds, es, ss, fs, gs] {
                c.mov(segment, eax)?;
            }
            c.mov(esp, virt(STACK))?;
            for (slot, selector) in [(0, 0x61), (1, 0x69)] {
                c.mov(ecx, selector)?;
                c.lsl(eax, ecx)?;
                c.note(slot, eax)?;
                c.lar(eax, ecx)?;
                c.note(slot + 2, eax)?;
            }
            // A far return to the code segment.
            let mut far = c.create_label();
            c.call(far)?;
            init_and_power_off(c)?;
            c.set_label(&mut far)?;
            c.pop(eax)?;
            c.push(0x61)?;
            c.push(eax)?;
            c.retf()
        })
        .run()
        .powered_off();
    let [code_limit, data_limit, code, data] = results(&outcome);
    assert_eq!((code_limit, data_limit), (u32::MAX, u32::MAX));
    // 4 KiB grains, 32 bits; present, level 1, accessed, readable code and writable data.
    assert_eq!((code & 0x00d0_ff00, data & 0x00d0_ff00), (0x00c0_bb00, 0x00c0_b300));
}

#[test]
fn memory_is_mapped_from_page_offset_on() {
    let outcome = TinyGuest::new()
        .with_word(0x1f_0000, 0x1234)
        .bare(|c| {
            c.mov(eax, dword_ptr(virt(0x1f_0000)))?;
            c.note(0, eax)?;
            c.mov(dword_ptr(virt(SCRATCH)), 0x55)?;
            init_and_power_off(c)
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(0), outcome.guest.word(SCRATCH)), (0x1234, 0x55));
}

#[test]
fn the_device_page_is_beyond_memory_but_may_be_mapped() {
    let outcome = TinyGuest::new()
        .with_word(MEMORY, 0x0000_0001)
        .with_word(USER_TABLE + 5 * 4, MEMORY | 7)
        .bare(|c| {
            c.mov(eax, dword_ptr(USER_CODE + 0x5000))?;
            c.note(0, eax)?;
            // The status word.
            c.mov(word_ptr(USER_CODE + 0x5004), 7)?;
            init_and_power_off(c)
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(0), outcome.guest.word(MEMORY + 4)), (1, 7));
}

/// Raises interrupt 1 at each poll, and counts them.
struct Nagging {
    polls: u32,
}

impl Devices for Nagging {
    fn send(&mut self, _: GuestPhys, _: &Sections, _: &mut DeviceIo<'_>) -> Option<u32> {
        None
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) -> Option<Stop> {
        self.polls += 1;
        io.raise(1);
        None
    }
}

#[test]
fn no_interrupt_comes_before_lguest_init() {
    // Interrupts count as enabled, and there would even be a handler: in a table that lidt loaded.
    let guest = TinyGuest::new();
    let (low, high) = gate_words(virt(HANDLERS), 0xe, 0);
    guest.put_word(FREE + 33 * 8, low);
    guest.put_word(FREE + 33 * 8 + 4, high);
    guest.put(SCRATCH, &[0xff, 0x07]);
    guest.put_word(SCRATCH + 2, virt(FREE));
    guest.code(virt(HANDLERS), HANDLERS, |c| {
        c.count(0)?;
        c.iretd()
    });
    let guest = guest.bare(|c| {
        c.mov(esp, virt(STACK))?;
        c.lidt(dword_ptr(virt(SCRATCH)))?;
        c.mov(ecx, 200_000_000)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.dec(ecx)?;
        c.jne(again)?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(1, eax)?;
        c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
        c.enable_interrupts()?;
        c.nop()?;
        c.mov(eax, dword_ptr(virt(RESULTS)))?;
        c.note(2, eax)?;
        c.power_off()
    });
    let mut machine = guest.machine();
    let kicker = machine.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
    });
    let mut devices = Nagging { polls: 0 };
    assert_eq!(machine.run(&mut devices), End::PowerOff);
    thread.join().expect("the thread only kicks");
    assert!(devices.polls > 0, "the interrupt was raised while the guest ran");
    assert_eq!([1, 2].map(|slot| guest.word(RESULTS + slot * 4)), [0, 1]);
}
