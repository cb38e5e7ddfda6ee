//! Segments of the later generations: descriptors that are set one by one, and what a selector names when it is loaded again.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::segments::KERNEL_DS;
use lguest_host::{Generation, Kill};
use tiny_guest::*;

/// The three generations that set single entries and nothing else.
const SINGLE_ENTRIES: [Generation; 3] = WIDE;

#[test]
fn load_gdt_entry_raises_level_0_and_sets_accessed() {
    of_each(LATER, |guest| {
        let outcome = guest
            .kernel(|c| {
                // Data of level 0, not accessed, based at 0x1000.
                c.hypercall(Hypercall::LoadGdtEntry {
                    entry: 20,
                    low: 0x1000_ffff,
                    high: 0x00cf_9200,
                })?;
                c.mov(ecx, 20 * 8 + 1)?;
                c.lar(eax, ecx)?;
                c.note(0, eax)?;
                c.mov(fs, ecx)?;
                c.mov(eax, dword_ptr(virt(RESULTS) - 0x1000 + 64).fs())?;
                c.note(1, eax)
            })
            .with_word(RESULTS + 64, 0x1234);
        assert_eq!(results(&outcome.run().powered_off()), [0x00cf_b300, 0x1234]);
    });
}

#[test]
fn load_gdt_entry_ignores_the_hosts_own_entries() {
    for entry in [10, 11, 16, 31] {
        of_each(LATER, |guest| {
            let outcome = guest.reporting(13, 1).kernel(|c| {
                c.hypercall(Hypercall::LoadGdtEntry { entry, low: 0xffff, high: 0x00cf_9200 })?;
                c.mov(eax, entry * 8 + 1)?;
                c.mov(fs, eax)
            });
            assert_eq!(outcome.run().powered_off().result(0), entry * 8);
        });
    }
}

#[test]
fn load_gdt_entry_has_room_for_32() {
    for (entry, entries) in [(32, 33), (0x8000_0000, 0x8000_0001), (u32::MAX, u32::MAX)] {
        of_each(LATER, |guest| {
            let call = Hypercall::LoadGdtEntry { entry, low: 0, high: 0 };
            guest.kernel(|c| c.hypercall(call)).run().killed(Kill::GdtTooLarge { entries });
        });
    }
}

#[test]
fn what_a_guest_hands_over_counts_again_after_lgdt_and_lidt() {
    of_each([Generation::First, Generation::V2_6_23, Generation::V2_6_24], |guest| {
        guest.put(SCRATCH, &[0xff, 0]);
        guest.put_word(SCRATCH + 2, virt(FREE));
        let outcome = guest
            .handler(3, |c| {
                c.note_number(0, 1)?;
                c.power_off()
            })
            .kernel(|c| {
                c.lgdt(ptr(virt(SCRATCH)))?;
                c.hypercall(Hypercall::LoadGdt { table: Phys(GDT), entries: 32 })?;
                c.lidt(ptr(virt(SCRATCH)))?;
                c.hypercall(load_gate(14, virt(FREE), 0xf, 0))?;
                // It was copied.
                c.mov(dword_ptr(virt(GDT) + u32::from(KERNEL_DS & !7) + 4), 0)?;
                c.mov(eax, u32::from(KERNEL_DS))?;
                c.mov(fs, eax)?;
                c.int3()
            });
        assert_eq!(outcome.run().powered_off().result(0), 1);
    });
}

#[test]
fn load_gdt_entry_counts_again_after_lgdt() {
    of_each(SINGLE_ENTRIES, |guest| {
        guest.put(SCRATCH, &[0xff, 0]);
        guest.put_word(SCRATCH + 2, virt(FREE));
        let outcome = guest.kernel(|c| {
            c.lgdt(ptr(virt(SCRATCH)))?;
            c.hypercall(Hypercall::LoadGdtEntry { entry: 20, low: 0xffff, high: 0x00cf_9200 })?;
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(fs, eax)
        });
        outcome.run().powered_off();
    });
}

#[test]
fn a_selector_loaded_again_names_what_its_descriptor_is_by_now() {
    const HIGH: u32 = 0x00cf_9200;
    of_each(Generation::ALL, |guest| {
        let calls = [
            Hypercall::LoadGdt { table: Phys(GDT), entries: 32 },
            Hypercall::LoadGdtEntry { entry: 6, low: 0, high: HIGH },
            Hypercall::LoadTls { descriptors: Phys(SCRATCH), cpu: 0 },
        ];
        for call in calls {
            if Hypercall::decode(guest.generation, call.encode()).is_err() {
                continue;
            }
            let outcome = TinyGuest::of(guest.generation)
                .kernel(|c| {
                    for (slot, base) in [(0, 0), (1, 4)] {
                        let low = base << 16 | 0xffff;
                        for at in [GDT + 6 * 8, SCRATCH] {
                            c.mov(dword_ptr(virt(at)), low)?;
                            c.mov(dword_ptr(virt(at) + 4), HIGH)?;
                        }
                        c.hypercall(match call {
                            Hypercall::LoadGdtEntry { entry, high, .. } => {
                                Hypercall::LoadGdtEntry { entry, low, high }
                            }
                            call => call,
                        })?;
                        c.mov(eax, 6 * 8 + 1)?;
                        c.mov(fs, eax)?;
                        c.mov(eax, dword_ptr(virt(RESULTS) + 64).fs())?;
                        c.note(slot, eax)?;
                    }
                    Ok(())
                })
                .with_word(RESULTS + 64, 1)
                .with_word(RESULTS + 68, 2);
            assert_eq!(results(&outcome.run().powered_off()), [1, 2], "{call:?}");
        }
    });
}
