//! Privileged instructions that a kernel executes natively, and user code that tries to.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use tiny_guest::*;

const IRQ_ENABLED: u32 = virt(DATA) + offset::IRQ_ENABLED;

/// Notes what a kernel reads back.
fn note_field(c: &mut Code, slot: u32, field: u32) -> Assembled {
    c.mov(eax, dword_ptr(virt(DATA) + field))?;
    c.note(slot, eax)
}

fn results<const N: usize>(outcome: &Outcome) -> [u32; N] {
    std::array::from_fn(|slot| outcome.result(slot as u32))
}

/// A kernel that uses nothing but these instructions.
fn kernel(write: impl FnOnce(&mut Code) -> Assembled) -> Outcome {
    TinyGuest::new().kernel(write).run().powered_off()
}

#[test]
fn cli_and_sti_mean_irq_enabled() {
    let outcome = kernel(|c| {
        c.sti()?;
        note_field(c, 0, offset::IRQ_ENABLED)?;
        c.cli()?;
        note_field(c, 1, offset::IRQ_ENABLED)
    });
    assert_eq!(results(&outcome), [512, 0]);
}

#[test]
fn pushf_and_popf_mean_it_too() {
    let outcome = kernel(|c| {
        c.pushfd()?;
        c.pop(eax)?;
        c.note(0, eax)?;
        c.push(0x246)?;
        c.popfd()?;
        c.pushfd()?;
        c.pop(eax)?;
        c.note(1, eax)?;
        note_field(c, 2, offset::IRQ_ENABLED)?;
        c.push(0x3002)?;
        c.popfd()?;
        note_field(c, 3, offset::IRQ_ENABLED)?;
        c.pushfd()?;
        c.pop(eax)?;
        c.note(4, eax)
    });
    let [at_first, enabled, word, after, iopl] = results(&outcome);
    assert_eq!(at_first & 512, 0);
    assert_eq!((enabled & 0x244, word, after), (0x244, 512, 0));
    assert_eq!(iopl & 0x3000, 0, "IOPL can't be raised");
}

#[test]
fn pushf_and_popf_of_16_bits() {
    let outcome = kernel(|c| {
        c.mov(ebp, esp)?;
        c.stc()?;
        c.pushf()?;
        c.sub(ebp, esp)?;
        c.note(0, ebp)?;
        c.pop(ax)?;
        c.movzx(eax, ax)?;
        c.note(1, eax)?;
        c.push(ax)?;
        c.clc()?;
        c.popf()?;
        c.setc(byte_ptr(virt(RESULTS + 8)))
    });
    let [moved, flags, carry] = results(&outcome);
    assert_eq!((moved, flags & 3, carry), (2, 3, 1));
}

#[test]
fn user_popf_changes_neither_if_nor_iopl() {
    let outcome = TinyGuest::new()
        .gate(128, 0xf, 3, |c| {
            c.note(0, eax)?;
            c.mov(ebx, dword_ptr(IRQ_ENABLED))?;
            c.note(1, ebx)?;
            c.power_off()
        })
        .user(|c| {
            c.push(0x3001)?;
            c.popfd()?;
            c.pushfd()?;
            c.pop(eax)?;
            c.int(0x80)
        })
        .kernel(|c| {
            c.enable_interrupts()?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [0x203, 512]);
}

#[test]
fn sti_lets_one_more_instruction_through() {
    // Or `sti; hlt` could sleep through the interrupt that it waits for.
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.mov(eax, dword_ptr(esp))?;
            c.note(0, eax)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 2_000_000 })?;
            c.mov(ecx, 50_000_000)?;
            let mut wait = c.create_label();
            c.set_label(&mut wait)?;
            c.dec(ecx)?;
            c.jne(wait)?;
            c.sti()?;
            c.hlt()?;
            c.cli()
        })
        .run()
        .powered_off();
    let at = outcome.result(0) - PAGE_OFFSET;
    assert_eq!(outcome.guest.word(at - 2) & 0xff_ffff, 0x00fa_f4fb, "behind hlt, before cli");
}

#[test]
fn an_endless_loop_behind_sti_is_interrupted() {
    let outcome = TinyGuest::new()
        .reporting(32, 1)
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 2_000_000 })?;
            c.sti()?;
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.jmp(again)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.guest.word(outcome.result(0) - PAGE_OFFSET - 1) & 0xff_ffff, 0xfe_ebfb);
}

#[test]
fn hlt_waits_for_an_interrupt() {
    let outcome = TinyGuest::new()
        .handler(32, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| {
            c.hypercall(Hypercall::SetClockevent { nanoseconds: 10_000_000 })?;
            c.enable_interrupts()?;
            c.hlt()?;
            c.mov(eax, dword_ptr(virt(RESULTS)))?;
            c.note(1, eax)
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [1, 1]);
}

#[test]
fn in_gives_all_ones_in_the_part_that_is_read() {
    let outcome = kernel(|c| {
        for (slot, width) in [(0, 1), (1, 2), (2, 4)] {
            c.mov(eax, 0x1234_5678)?;
            c.mov(edx, 0x3f8)?;
            match width {
                1 => c.in_(al, dx)?,
                2 => c.in_(ax, dx)?,
                _ => c.in_(eax, dx)?,
            }
            c.note(slot, eax)?;
        }
        c.mov(eax, 0)?;
        c.in_(al, 0x64)?;
        c.note(3, eax)?;
        c.out(0x64, al)?;
        c.out(dx, eax)
    });
    assert_eq!(results(&outcome), [0x1234_56ff, 0x1234_ffff, u32::MAX, 0xff]);
}

#[test]
fn string_input_fills_memory_with_ones() {
    let outcome = kernel(|c| {
        c.mov(edi, virt(RESULTS))?;
        c.mov(ecx, 3)?;
        c.mov(edx, 0x1f0)?;
        c.rep().insw()?;
        c.note(4, ecx)?;
        c.note(5, edi)?;
        c.std()?;
        c.insb()?;
        c.cld()?;
        c.note(6, edi)?;
        c.mov(esi, virt(RESULTS))?;
        c.mov(ecx, 2)?;
        c.rep().outsd()?;
        c.note(7, esi)
    });
    let start = virt(RESULTS);
    let expected = [u32::MAX, 0x00ff_ffff, 0, 0, 0, start + 6, start + 5, start + 8];
    assert_eq!(results(&outcome), expected);
}

#[test]
fn string_input_faults_where_a_page_is_missing() {
    let outcome = TinyGuest::new()
        .handler(14, |c| {
            c.note(0, ecx)?;
            c.note(1, edi)?;
            c.mov(eax, dword_ptr(virt(DATA) + offset::CR2))?;
            c.note(2, eax)?;
            c.pop(eax)?;
            c.note(3, eax)?;
            c.power_off()
        })
        .kernel(|c| {
            c.mov(edi, USER_CODE + 0x2ff8)?;
            c.mov(ecx, 100)?;
            c.rep().insd()
        })
        .run()
        .powered_off();
    let missing = USER_CODE + 0x3000;
    assert_eq!(results(&outcome), [98, missing, missing, 2]);
}

#[test]
fn a_long_string_is_finished_too() {
    let outcome = kernel(|c| {
        c.mov(esi, virt(0))?;
        c.mov(ecx, 100_000)?;
        c.rep().outsb()?;
        c.note(0, ecx)?;
        c.note(1, esi)
    });
    assert_eq!(results(&outcome), [0, virt(100_000)]);
}

#[test]
fn cpuid_offers_nothing_beyond_the_offer() {
    let outcome = kernel(|c| {
        c.mov(eax, 1)?;
        c.cpuid()?;
        c.note(0, ecx)?;
        c.note(1, edx)?;
        c.mov(eax, 7)?;
        c.mov(ecx, 0)?;
        c.cpuid()?;
        c.note(2, ebx)
    });
    let [features, more, extended] = results(&outcome);
    assert_eq!(features & !0x0298_0201, 0);
    assert_eq!(more & !0x0780_8911, 0);
    assert_eq!(more & 0x0780_8911, 0x0780_8911, "every 64-bit processor has these");
    assert_eq!(extended, 0);
}

#[test]
fn control_registers_read_back() {
    let outcome = kernel(|c| {
        c.mov(eax, cr0)?;
        c.note(0, eax)?;
        c.mov(eax, cr3)?;
        c.note(1, eax)?;
        c.mov(eax, 0x600)?;
        c.mov(cr4, eax)?;
        c.mov(eax, cr4)?;
        c.note(2, eax)?;
        c.mov(eax, 0x1234)?;
        c.mov(cr2, eax)?;
        c.mov(ebx, cr2)?;
        c.note(3, ebx)
    });
    let [zero, three, four, two] = results(&outcome);
    assert_eq!(zero & 0x8001_0001, 0x8001_0001, "PG, WP, PE");
    assert_eq!((three, four, two), (DIRECTORY, 0x600, 0x1234));
}

#[test]
fn cr2_is_the_address_of_the_last_fault() {
    let outcome = TinyGuest::new()
        .handler(14, |c| {
            c.mov(eax, cr2)?;
            c.note(0, eax)?;
            c.power_off()
        })
        .kernel(|c| c.mov(al, byte_ptr(0x1234)))
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x1234);
}

#[test]
fn a_cr4_bit_that_is_not_offered_is_trap_13() {
    let outcome = TinyGuest::new()
        .reporting(13, 1)
        .kernel(|c| {
            c.mov(eax, 0x10)?;
            c.mov(cr4, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0);
}

#[test]
fn moving_to_cr3_flushes() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.mov(eax, dword_ptr(USER_DATA))?;
            c.note(0, eax)?;
            c.mov(dword_ptr(virt(USER_TABLE + 4)), FREE | 7)?;
            c.mov(eax, cr3)?;
            c.mov(cr3, eax)?;
            c.mov(eax, dword_ptr(USER_DATA))?;
            c.note(1, eax)
        })
        .with_word(USER_FRAMES + 0x1000, 1)
        .with_word(FREE, 2)
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [1, 2]);
}

#[test]
fn invlpg_forgets_one_page() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.mov(eax, dword_ptr(USER_DATA))?;
            c.note(0, eax)?;
            c.mov(dword_ptr(virt(USER_TABLE + 4)), FREE | 7)?;
            c.invlpg(byte_ptr(USER_DATA))?;
            c.mov(eax, dword_ptr(USER_DATA))?;
            c.note(1, eax)
        })
        .with_word(USER_FRAMES + 0x1000, 1)
        .with_word(FREE, 2)
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [1, 2]);
}

#[test]
fn ts_by_cr0_and_clts() {
    let outcome = TinyGuest::new()
        .handler(7, |c| {
            c.count(0)?;
            c.clts()?;
            c.iretd()
        })
        .kernel(|c| {
            c.mov(eax, cr0)?;
            c.or(eax, 8)?;
            c.mov(cr0, eax)?;
            c.fninit()?;
            c.fninit()?;
            c.smsw(ebx)?;
            c.or(ebx, 8)?;
            c.lmsw(bx)?;
            c.fninit()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 2);
}

#[test]
fn without_wp_the_kernel_writes_to_read_only_pages() {
    let outcome = TinyGuest::new()
        .reporting(14, 1)
        .kernel(|c| {
            c.mov(eax, cr0)?;
            c.and(eax, !0x1_0000)?;
            c.mov(cr0, eax)?;
            c.mov(dword_ptr(USER_DATA), 7)?;
            c.or(eax, 0x1_0000)?;
            c.mov(cr0, eax)?;
            c.mov(eax, dword_ptr(USER_DATA))?;
            c.note(8, eax)?;
            c.mov(dword_ptr(USER_DATA), 8)
        })
        .with_word(USER_TABLE + 4, USER_FRAMES + 0x1005)
        .run()
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (7, 3));
}

#[test]
fn debug_registers_keep_their_values() {
    let outcome = kernel(|c| {
        c.mov(eax, 0x1234_5678)?;
        c.mov(dr0, eax)?;
        c.mov(dr3, eax)?;
        c.mov(ebx, dr0)?;
        c.note(0, ebx)?;
        c.mov(ebx, dr3)?;
        c.note(1, ebx)?;
        c.mov(ebx, dr6)?;
        c.note(2, ebx)?;
        c.mov(ebx, dr7)?;
        c.note(3, ebx)
    });
    assert_eq!(results(&outcome), [0x1234_5678, 0x1234_5678, 0xffff_0ff0, 0x400]);
}

#[test]
fn model_specific_registers() {
    let outcome = TinyGuest::new()
        .reporting(13, 1)
        .kernel(|c| {
            c.mov(ecx, 0x175)?;
            c.mov(eax, 0x4321)?;
            c.xor(edx, edx)?;
            c.wrmsr()?;
            c.xor(eax, eax)?;
            c.rdmsr()?;
            c.note(8, eax)?;
            c.mov(ecx, 0x10)?;
            c.rdmsr()?;
            c.or(eax, edx)?;
            c.note(9, eax)?;
            c.mov(ecx, 0x9999)?;
            c.rdmsr()
        })
        .run()
        .powered_off();
    assert_eq!((outcome.result(8), outcome.result(0)), (0x4321, 0));
    assert_ne!(outcome.result(9), 0);
}

#[test]
fn sysenter_and_sysexit() {
    let entry = FREE;
    let guest = TinyGuest::new()
        .gate(128, 0xf, 3, |c| {
            c.note(4, eax)?;
            c.note(5, ebx)?;
            c.note(6, ebp)?;
            c.power_off()
        })
        .user(|c| {
            // The call pushes where to come back to.
            let mut enter = c.create_label();
            c.call(enter)?;
            c.mov(eax, cs)?;
            c.mov(ebx, ss)?;
            c.mov(ebp, esp)?;
            c.int(0x80)?;
            c.set_label(&mut enter)?;
            c.pop(edx)?;
            c.mov(ecx, esp)?;
            c.sysenter()
        })
        .kernel(|c| {
            let values = [(0x174, 0x60), (0x175, virt(TRAP_STACK)), (0x176, virt(entry))];
            for (register, value) in values {
                c.mov(ecx, register)?;
                c.mov(eax, value)?;
                c.xor(edx, edx)?;
                c.wrmsr()?;
            }
            c.enable_interrupts()?;
            c.enter_user()
        });
    guest.code(virt(entry), entry, |c| {
        c.mov(eax, cs)?;
        c.note(0, eax)?;
        c.mov(eax, ss)?;
        c.note(1, eax)?;
        c.mov(ebp, esp)?;
        c.note(2, ebp)?;
        note_field(c, 3, offset::IRQ_ENABLED)?;
        c.sysexit()
    });
    let outcome = guest.run().powered_off();
    let expected = [0x61, 0x69, virt(TRAP_STACK), 0, 0x73, 0x7b, USER_STACK];
    assert_eq!(results(&outcome), expected);
}

#[test]
fn sysenter_that_is_not_set_up_is_trap_13() {
    let outcome = TinyGuest::new()
        .reporting(13, 2)
        .user(|c| c.sysenter())
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [0, USER_CODE]);
}

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

#[test]
fn iret_at_level_1_cannot_change_the_real_interrupt_flag() {
    let outcome = kernel(|c| {
        for (slot, flags) in [(0, 0x202), (1, 2)] {
            let (mut iret, mut over) = (c.create_label(), c.create_label());
            c.push(flags)?;
            c.push(0x61)?;
            // The call pushes where to come back to.
            c.call(iret)?;
            note_field(c, slot, offset::IRQ_ENABLED)?;
            c.jmp(over)?;
            c.set_label(&mut iret)?;
            c.iretd()?;
            c.set_label(&mut over)?;
        }
        Ok(())
    });
    assert_eq!(results(&outcome), [0, 0]);
}

#[test]
fn privileged_instructions_in_user_mode_are_trap_13() {
    type Instruction = fn(&mut Code) -> Assembled;
    let forbidden: [(&str, Instruction); 22] = [
        ("cli", |c| c.cli()),
        ("sti", |c| c.sti()),
        ("hlt", |c| c.hlt()),
        ("in", |c| c.in_(al, dx)),
        ("out", |c| c.out(dx, al)),
        ("insb", |c| c.insb()),
        ("rep outsd", |c| c.rep().outsd()),
        ("lgdt", |c| c.lgdt(dword_ptr(USER_DATA))),
        ("lidt", |c| c.lidt(dword_ptr(USER_DATA))),
        ("lldt", |c| c.lldt(ax)),
        ("ltr", |c| c.ltr(ax)),
        ("lmsw", |c| c.lmsw(ax)),
        ("clts", |c| c.clts()),
        ("mov from cr0", |c| c.mov(eax, cr0)),
        ("mov to cr3", |c| c.mov(cr3, eax)),
        ("mov to dr0", |c| c.mov(dr0, eax)),
        ("rdmsr", |c| c.rdmsr()),
        ("wrmsr", |c| c.wrmsr()),
        ("invlpg", |c| c.invlpg(byte_ptr(USER_DATA))),
        ("wbinvd", |c| c.wbinvd()),
        ("invd", |c| c.invd()),
        ("sysexit", |c| c.sysexit()),
    ];
    for (name, instruction) in forbidden {
        let outcome = TinyGuest::new()
            .reporting(13, 3)
            .user(instruction)
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!(results(&outcome), [0, USER_CODE, 0x73], "{name}");
    }
}

#[test]
fn what_user_code_may_ask_it_is_told() {
    let outcome = TinyGuest::new()
        .gate(128, 0xf, 3, |c| {
            c.note(0, ebx)?;
            c.note(1, edi)?;
            c.power_off()
        })
        .user(|c| {
            c.sgdt(dword_ptr(USER_DATA))?;
            c.mov(ebx, dword_ptr(USER_DATA + 2))?;
            c.smsw(edi)?;
            c.str(eax)?;
            c.sldt(eax)?;
            c.mov(eax, 0)?;
            c.cpuid()?;
            c.mov(ebx, dword_ptr(USER_DATA + 2))?;
            c.int(0x80)
        })
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), virt(GDT));
    assert_eq!(outcome.result(1) & 1, 1);
}
