//! Privileged instructions that a kernel executes natively, and user code that tries to.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use tiny_guest::*;

const IRQ_ENABLED: u32 = virt(DATA) + offset::IRQ_ENABLED;

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

#[test]
fn what_nobody_offers_is_trap_6_or_its_older_meaning() {
    type Instruction = fn(&mut Code) -> Assembled;
    let missing: [(&str, Instruction); 5] = [
        ("vaddps", |c| c.vaddps(xmm0, xmm1, xmm2)),
        ("xgetbv", |c| c.xgetbv()),
        ("rdrand", |c| c.rdrand(eax)),
        ("andn", |c| c.andn(eax, ebx, ecx)),
        ("movbe", |c| c.movbe(eax, dword_ptr(USER_DATA))),
    ];
    for (name, instruction) in missing {
        let outcome = TinyGuest::new()
            .reporting(6, 2)
            .user(instruction)
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!(results(&outcome), [USER_CODE, 0x73], "{name}");
    }
    let outcome = kernel(|c| {
        c.mov(ecx, 0x0010_0000)?;
        c.tzcnt(eax, ecx)?;
        c.note(0, eax)?;
        c.lzcnt(eax, ecx)?;
        c.note(1, eax)
    });
    assert_eq!(results(&outcome), [20, 20], "bsf and bsr");
}

#[test]
fn counters_that_are_not_there_are_trap_13_for_the_kernel_too() {
    let outcome = TinyGuest::new().reporting(13, 3).kernel(|c| c.rdpmc()).run().powered_off();
    assert_eq!((outcome.result(0), outcome.result(2)), (0, 0x61));
}

#[test]
fn pushf_and_popf_respect_the_stacks_limit() {
    type Instruction = fn(&mut Code) -> Assembled;
    let guest = |instruction: Instruction, top: u32| {
        let guest = TinyGuest::new();
        let base = u64::from(virt(FREE));
        let small = 0x0040_9200_0000_00ffu64 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
        guest.put(GDT + 20 * 8, &small.to_le_bytes());
        guest
            .handler(12, |c| {
                c.pop(eax)?;
                c.note(0, eax)?;
                c.note_number(1, 1)?;
                c.power_off()
            })
            .kernel(|c| {
                c.mov(eax, 20 * 8 + 1)?;
                c.mov(ss, eax)?;
                c.mov(esp, top)?;
                instruction(c)
            })
            .run()
    };
    // Where the trap itself has no room, it shows as a double fault of vector 12.
    for (instruction, top, faults) in [
        ((|c: &mut Code| c.pushfd()) as Instruction, 0x100, false),
        (|c: &mut Code| c.pushfd(), 0x104, true),
        (|c: &mut Code| c.popfd(), 0xfc, false),
        (|c: &mut Code| c.popfd(), 0x100, true),
    ] {
        let outcome = guest(instruction, top);
        let stack_fault = matches!(
            outcome.end,
            lguest_host::End::Killed(lguest_host::Kill::DoubleFault { vector: 12, .. })
        ) || outcome.result(1) == 1;
        assert_eq!(stack_fault, faults, "esp {top:#x}");
    }
}
