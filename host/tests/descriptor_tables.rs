//! Descriptor tables that a kernel loads by instruction: they stay in its memory, and count as they are there.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use tiny_guest::*;

#[test]
fn descriptor_table_registers_show_the_guests_tables() {
    let outcome = kernel(|c| {
        c.sgdt(dword_ptr(virt(RESULTS)))?;
        c.sldt(eax)?;
        c.note(2, eax)?;
        c.str(eax)?;
        c.note(3, eax)
    });
    let [low, high, ldt, task] = results(&outcome);
    assert_eq!((low & 0xffff, low >> 16 | high << 16), (255, virt(GDT)));
    assert_eq!((ldt, task), (0, 0));
}

#[test]
fn lgdt_reads_descriptors_from_memory_at_each_load() {
    let guest = TinyGuest::new();
    // A table of its own: entry 2 is flat data of level 0, entries 12 and 13 the kernel's.
    let table = FREE;
    for (index, descriptor) in
        [(2, 0x00cf_9200_0000_ffffu64), (12, 0x00cf_9a00_0000_ffff), (13, 0x00cf_9200_0000_ffff)]
    {
        guest.put(table + index * 8, &descriptor.to_le_bytes());
    }
    guest.put(SCRATCH, &[111, 0]);
    guest.put_word(SCRATCH + 2, virt(table));
    let outcome = guest
        .with_word(RESULTS + 0x100, 0x77)
        .reporting(13, 1)
        .kernel(|c| {
            c.lgdt(dword_ptr(virt(SCRATCH)))?;
            // A base of RESULTS, written after lgdt.
            c.mov(word_ptr(virt(table + 2 * 8 + 2)), RESULTS)?;
            c.mov(eax, 2 * 8 + 1)?;
            c.mov(fs, eax)?;
            c.mov(eax, dword_ptr(PAGE_OFFSET + 0x100).fs())?;
            c.note(8, eax)?;
            c.mov(eax, 14 * 8 + 3)?;
            c.mov(fs, eax)
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (0x77, 14 * 8));
}

#[test]
fn lldt_gives_a_local_table() {
    let guest = TinyGuest::new();
    // An LDT of two entries; the second is user data with a base.
    let ldt = 0x0000_8200_0000_000fu64 | u64::from(FREE) << 16 | 0xc0u64 << 56;
    guest.put(GDT + 20 * 8, &ldt.to_le_bytes());
    guest.put(FREE + 8, &(0x00cf_f200_0000_ffffu64 | 0x100 << 16).to_le_bytes());
    let outcome = guest
        .with_word(RESULTS + 0x140, 0x99)
        .reporting(13, 1)
        .kernel(|c| {
            c.mov(eax, 20 * 8)?;
            c.lldt(ax)?;
            c.mov(eax, 8 + 4 + 3)?;
            c.mov(gs, eax)?;
            c.mov(eax, dword_ptr(virt(RESULTS + 0x40)).gs())?;
            c.note(8, eax)?;
            c.sldt(eax)?;
            c.note(9, eax)?;
            c.mov(eax, 16 + 4 + 3)?;
            c.mov(gs, eax)
        })
        .run()
        .powered_off();
    assert_eq!([8, 9, 0].map(|slot| outcome.result(slot)), [0x99, 20 * 8, 16 + 4]);
}

#[test]
fn a_selector_loaded_again_after_lgdt_names_what_is_in_memory() {
    let guest = TinyGuest::new();
    let based_at = |base: u64| 0x00cf_9200_0000_ffff | base << 16;
    guest.put(GDT + 20 * 8, &based_at(0).to_le_bytes());
    guest.put(FREE + 20 * 8, &based_at(4).to_le_bytes());
    guest.put(SCRATCH, &[0xff, 0]);
    guest.put_word(SCRATCH + 2, virt(FREE));
    let outcome = guest.with_word(RESULTS + 64, 1).with_word(RESULTS + 68, 2).kernel(|c| {
        for slot in [0, 1] {
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(fs, eax)?;
            c.mov(eax, dword_ptr(virt(RESULTS) + 64).fs())?;
            c.note(slot, eax)?;
            if slot == 0 {
                c.lgdt(ptr(virt(SCRATCH)))?;
            }
        }
        Ok(())
    });
    let outcome = outcome.run().powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [1, 2]);
}

#[test]
fn lidt_reads_gates_from_memory() {
    let guest = TinyGuest::new();
    let (low, high) = gate_words(virt(SCRATCH + 0x100), 0xe, 0);
    guest.put_word(FREE + 6 * 8, low);
    guest.put_word(FREE + 6 * 8 + 4, high);
    guest.put(SCRATCH, &[0xff, 0x07]);
    guest.put_word(SCRATCH + 2, virt(FREE));
    guest.code(virt(SCRATCH + 0x100), SCRATCH + 0x100, |c| {
        c.note_number(0, 1)?;
        c.power_off()
    });
    let outcome = guest
        .kernel(|c| {
            c.lidt(dword_ptr(virt(SCRATCH)))?;
            c.ud2()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn ltr_says_where_the_trap_stack_is() {
    let guest = TinyGuest::new();
    let task = 0x0000_8900_0000_0067u64 | u64::from(FREE) << 16 | 0xc0u64 << 56;
    guest.put(GDT + 20 * 8, &task.to_le_bytes());
    guest.put_word(FREE + 4, virt(TRAP_STACK - 0x100));
    guest.put_word(FREE + 8, 0x68);
    let outcome = guest
        .reporting(6, 5)
        .user(|c| c.ud2())
        .bare(|c| {
            c.mov(esp, virt(STACK))?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.hypercall(Hypercall::LoadGdt { table: Phys(GDT), entries: 32 })?;
            c.hypercall(load_gate(6, virt(HANDLERS + 6 * 256), 0xe, 0))?;
            c.mov(eax, 20 * 8)?;
            c.ltr(ax)?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(5), virt(TRAP_STACK - 0x100) - 20);
}
