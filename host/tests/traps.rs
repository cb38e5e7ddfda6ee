//! Traps: what is pushed, where, and who may raise what.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::Hypercall;
use lguest_abi::lguest_data::offset;
use lguest_host::Kill;
use lguest_switcher::GuestVirt;
use tiny_guest::*;

#[test]
fn a_fault_in_the_kernel_pushes_three_words_on_its_own_stack() {
    let outcome = TinyGuest::new()
        .reporting(6, 3)
        .kernel(|c| {
            c.enable_interrupts()?;
            c.ud2()
        })
        .run()
        .powered_off();
    let code = outcome.result(0) - virt(CODE);
    assert_eq!(outcome.guest.word(CODE + code) & 0xffff, 0x0b0f, "eip is at ud2");
    assert_eq!(outcome.result(1), 0x61);
    assert_eq!(outcome.result(2) & 0x202, 0x202);
    assert_eq!(outcome.result(3), virt(STACK) - 12);
}

#[test]
fn from_user_mode_ss_and_esp_go_first_on_the_set_stack_stack() {
    let outcome = TinyGuest::new()
        .reporting(6, 5)
        .user(|c| c.ud2())
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    let pushed: Vec<u32> = (0..6).map(|slot| outcome.result(slot)).collect();
    assert_eq!(pushed[..2], [USER_CODE, 0x73]);
    assert_eq!(pushed[3..], [USER_STACK, 0x7b, virt(TRAP_STACK) - 20]);
}

#[test]
fn the_pushed_interrupt_flag_is_irq_enabled_s() {
    for (word, flag) in [(0, 0), (512, 512), (0xffff_ffff, 512), (!512, 0), (0x246, 512)] {
        let outcome = TinyGuest::new()
            .reporting(6, 3)
            .kernel(|c| {
                c.set_field(offset::IRQ_ENABLED, word)?;
                c.ud2()
            })
            .run()
            .powered_off();
        assert_eq!(outcome.result(2) & 512, flag, "irq_enabled = {word:#x}");
    }
}

#[test]
fn an_interrupt_gate_disables_interrupts_and_a_trap_gate_does_not() {
    for (kind, after) in [(0xe, 0), (0xf, 512)] {
        let outcome = TinyGuest::new()
            .gate(6, kind, 0, |c| {
                c.mov(eax, dword_ptr(virt(DATA) + offset::IRQ_ENABLED))?;
                c.note(0, eax)?;
                c.power_off()
            })
            .kernel(|c| {
                c.enable_interrupts()?;
                c.ud2()
            })
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), after, "type {kind:x}");
    }
}

#[test]
fn divide_error_has_no_error_code() {
    let outcome = TinyGuest::new()
        .reporting(0, 2)
        .kernel(|c| {
            c.xor(ecx, ecx)?;
            c.xor(edx, edx)?;
            c.div(ecx)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(1), 0x61);
}

#[test]
fn a_segment_fault_pushes_its_selector() {
    let outcome = TinyGuest::new()
        .reporting(13, 3)
        .kernel(|c| {
            c.mov(eax, 22 * 8 + 1)?;
            c.mov(ds, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 22 * 8);
    assert_eq!(outcome.result(2), 0x61);
}

#[test]
fn a_segment_that_is_not_present_is_trap_11() {
    let guest = TinyGuest::new();
    guest.put(GDT + 20 * 8, &0x00cf_7300_0000_ffffu64.to_le_bytes());
    let outcome = guest
        .reporting(11, 3)
        .kernel(|c| {
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(es, eax)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 20 * 8);
}

#[test]
fn a_page_fault_tells_address_and_error_code() {
    let missing = USER_CODE + 0x5000;
    for (write, user, error) in
        [(false, false, 0), (true, false, 2), (false, true, 4), (true, true, 6)]
    {
        let touch = move |c: &mut Code| {
            if write { c.mov(byte_ptr(missing), 1) } else { c.mov(al, byte_ptr(missing)) }
        };
        let outcome = TinyGuest::new()
            .handler(14, |c| {
                c.pop(eax)?;
                c.note(0, eax)?;
                c.mov(eax, dword_ptr(virt(DATA) + offset::CR2))?;
                c.note(1, eax)?;
                c.power_off()
            })
            .user(touch)
            .kernel(|c| if user { c.enter_user() } else { touch(c) })
            .run()
            .powered_off();
        assert_eq!((outcome.result(0), outcome.result(1)), (error, missing));
    }
}

#[test]
fn a_fault_can_be_returned_from() {
    let outcome = TinyGuest::new()
        .handler(14, |c| {
            c.mov(dword_ptr(virt(USER_TABLE) + 5 * 4), FREE | 7)?;
            c.count(0)?;
            c.add(esp, 4)?;
            c.iretd()
        })
        .gate(128, 0xf, 3, |c| {
            c.note(1, eax)?;
            c.power_off()
        })
        .user(|c| {
            c.mov(eax, dword_ptr(USER_CODE + 0x5000))?;
            c.int(0x80)
        })
        .kernel(|c| c.enter_user())
        .with_word(FREE, 0x4321)
        .run()
        .powered_off();
    assert_eq!((outcome.result(0), outcome.result(1)), (1, 0x4321));
}

#[test]
fn a_system_call_comes_back_behind_the_instruction() {
    let outcome = TinyGuest::new()
        .gate(128, 0xf, 3, |c| {
            c.count(0)?;
            c.add(eax, 1)?;
            c.iretd()
        })
        .gate(3, 0xe, 3, |c| {
            c.note(1, eax)?;
            c.power_off()
        })
        .user(|c| {
            c.mov(eax, 41)?;
            c.int(0x80)?;
            c.int3()
        })
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    assert_eq!((outcome.result(0), outcome.result(1)), (1, 42));
}

#[test]
fn int_n_from_user_mode_needs_a_gate_of_level_3() {
    for (vector, level, delivered) in [(5, 3, true), (5, 0, false), (5, 1, false), (40, 3, true)] {
        let outcome = TinyGuest::new()
            .gate(vector, 0xe, level, |c| {
                c.note_number(8, 1)?;
                c.power_off()
            })
            .reporting(13, 2)
            .user(|c| c.int(vector as i32))
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!(outcome.result(8) == 1, delivered, "vector {vector}, level {level}");
        if !delivered {
            assert_eq!(outcome.result(0), vector * 8 + 2);
            assert_eq!(outcome.result(1), USER_CODE, "eip is at the instruction");
        }
    }
}

#[test]
fn int_n_of_a_vector_without_a_gate_is_trap_13() {
    for vector in [60, 100, 200, 255] {
        let outcome = TinyGuest::new()
            .reporting(13, 2)
            .user(|c| c.int(vector))
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), vector as u32 * 8 + 2);
    }
}

#[test]
fn int3_and_into_need_their_gate_s_level_too() {
    let into = |c: &mut Code| {
        c.mov(al, 0x7f)?;
        c.add(al, 1)?;
        c.db(&[0xce])
    };
    for (vector, at) in [(3, USER_CODE), (4, USER_CODE + 4)] {
        let outcome = TinyGuest::new()
            .gate(vector, 0xe, 0, |c| c.power_off())
            .reporting(13, 2)
            .user(|c| if vector == 3 { c.int3() } else { into(c) })
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!((outcome.result(0), outcome.result(1)), (vector * 8 + 2, at));
    }
}

#[test]
fn the_kernel_may_use_every_gate() {
    let outcome = TinyGuest::new()
        .handler(5, |c| {
            c.count(0)?;
            c.iretd()
        })
        .kernel(|c| c.int(5))
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
}

#[test]
fn an_entry_that_is_not_present_clears_the_vector() {
    let cleared = Hypercall::LoadIdtEntry { vector: 5, low: 0, high: 0x0e00 };
    let outcome = TinyGuest::new()
        .handler(5, |c| c.power_off())
        .reporting(13, 1)
        .kernel(|c| {
            c.hypercall(cleared)?;
            c.int(5)
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 5 * 8 + 2);
}

#[test]
fn set_stack_decides_where_the_next_trap_goes() {
    let top = Virt(virt(SCRATCH + 0xf00));
    let outcome = TinyGuest::new()
        .reporting(6, 5)
        .user(|c| c.ud2())
        .kernel(|c| {
            c.hypercall(Hypercall::SetStack { segment: 0x69, esp: top, pages: 1 })?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(5), top.0 - 20);
}

#[test]
fn set_stack_marks_its_pages_accessed_and_dirty() {
    let guest = TinyGuest::new();
    // Not the launcher's: outside the linear map.
    let table = SCRATCH;
    guest.put_word(DIRECTORY + 0x340 * 4, table | 7);
    for page in 0..3 {
        guest.put_word(table + page * 4, (FREE + page * 0x1000) | 3);
    }
    let top = Virt(0xd000_2ff0);
    let outcome = guest
        .kernel(|c| c.hypercall(Hypercall::SetStack { segment: 0x69, esp: top, pages: 2 }))
        .run()
        .powered_off();
    let flags = [0, 1, 2].map(|page| outcome.guest.word(table + page * 4) & 0x60);
    assert_eq!(flags, [0, 0x60, 0x60]);
}

#[test]
fn a_trap_clears_tf_and_nt_but_pushes_them() {
    let outcome = TinyGuest::new()
        .handler(6, |c| {
            c.mov(eax, dword_ptr(esp + 8))?;
            c.note(0, eax)?;
            c.pushfd()?;
            c.pop(eax)?;
            c.note(1, eax)?;
            c.power_off()
        })
        .kernel(|c| {
            c.push(0x4002)?;
            c.popfd()?;
            c.ud2()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0) & 0x4000, 0x4000);
    assert_eq!(outcome.result(1) & 0x4000, 0);
}

#[test]
fn single_step_is_trap_1_behind_the_next_instruction() {
    let outcome = TinyGuest::new()
        .handler(1, |c| {
            c.count(0)?;
            c.mov(eax, dword_ptr(esp))?;
            c.note(1, eax)?;
            c.and(dword_ptr(esp + 8), !0x100)?;
            c.iretd()
        })
        .kernel(|c| {
            c.push(0x102)?;
            c.popfd()?;
            c.nop()?;
            c.nop()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 1);
    let eip = outcome.result(1) - PAGE_OFFSET;
    assert_eq!(outcome.guest.word(eip - 2) & 0xffff, 0x909d, "behind popf, nop");
}

#[test]
fn a_stack_that_cannot_be_written_is_a_double_fault() {
    let outcome = TinyGuest::new()
        .handler(6, |c| c.power_off())
        .kernel(|c| {
            c.mov(esp, 0xd000_0000u32)?;
            c.ud2()
        })
        .run();
    let text = format!("{:?}", outcome.end);
    assert!(text.contains("DoubleFault") && text.contains("its stack can't be written"), "{text}");
}

#[test]
fn a_trap_without_a_handler_ends_the_guest() {
    let outcome = TinyGuest::new().kernel(|c| c.mov(al, byte_ptr(0x1000))).run();
    let eip = match outcome.end {
        lguest_host::End::Killed(Kill::NoHandler { eip, .. }) => eip,
        _ => 0,
    };
    let address = GuestVirt(0x1000);
    outcome.killed(Kill::NoHandler { vector: 14, error: 0, address, eip });
}

#[test]
fn vectors_that_are_not_the_guests_are_ignored_whatever_they_are_set_to() {
    // A task gate would end the guest elsewhere; a good one would be used.
    for vector in [2, 8, 15, 31, 64, 100, 127, 129, 255, 256, u32::MAX] {
        let (low, high) = gate_words(virt(HANDLERS), 5, 3);
        let outcome = TinyGuest::new()
            .reporting(13, 1)
            .user(|c| if vector < 256 { c.int(vector as i32) } else { c.hlt() })
            .kernel(|c| {
                c.hypercall(Hypercall::LoadIdtEntry { vector, low, high })?;
                c.hypercall(load_gate(vector, virt(HANDLERS), 0xe, 3))?;
                c.enter_user()
            })
            .run()
            .powered_off();
        let error = if vector < 256 { vector * 8 + 2 } else { 0 };
        assert_eq!(outcome.result(0), error, "vector {vector}");
    }
}

#[test]
fn a_handler_runs_on_the_kernels_code_segment_whatever_its_gate_names() {
    for selector in [0, 0x10, 0x73, 0xffff] {
        let (low, high) = gate_words(virt(HANDLERS + 6 * 256), 0xe, 0);
        let low = low & 0xffff | selector << 16;
        let outcome = TinyGuest::new()
            .handler(6, |c| {
                c.mov(eax, cs)?;
                c.note(0, eax)?;
                c.mov(eax, ss)?;
                c.note(1, eax)?;
                c.power_off()
            })
            .user(|c| c.ud2())
            .kernel(|c| {
                c.hypercall(Hypercall::LoadIdtEntry { vector: 6, low, high: high | 0x1f })?;
                c.enter_user()
            })
            .run()
            .powered_off();
        assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0x61, 0x69], "{selector:#x}");
    }
}

#[test]
fn a_stack_fault_has_an_error_code() {
    // A read behind the limit of a stack segment of 256 bytes.
    let guest = TinyGuest::new();
    let base = u64::from(virt(FREE));
    let small = 0x0040_9200_0000_00ffu64 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    guest.put(GDT + 20 * 8, &small.to_le_bytes());
    let outcome = guest
        .handler(12, |c| {
            c.pop(eax)?;
            c.note(0, eax)?;
            c.pop(eax)?;
            c.pop(eax)?;
            c.note(1, eax)?;
            c.power_off()
        })
        .kernel(|c| {
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(ss, eax)?;
            c.mov(esp, 0x80)?;
            c.mov(ebp, 0x1000)?;
            c.mov(eax, dword_ptr(ebp))
        })
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [0, 0x61]);
}

#[test]
fn int_13_by_the_kernel_has_no_error_code() {
    let outcome = TinyGuest::new().reporting(13, 2).kernel(|c| c.int(13)).run().powered_off();
    let at = outcome.result(0) - PAGE_OFFSET;
    assert_eq!(outcome.guest.word(at - 2) & 0xffff, 0x0dcd, "eip comes first, and is behind it");
    assert_eq!(outcome.result(1), 0x61);
}

#[test]
fn a_second_fault_in_a_handler_is_on_the_same_stack() {
    let outcome = TinyGuest::new()
        .handler(6, |c| c.mov(al, byte_ptr(0x1000)))
        .handler(14, |c| {
            c.mov(ebp, esp)?;
            c.note(0, ebp)?;
            c.mov(eax, dword_ptr(esp + 8))?;
            c.note(1, eax)?;
            c.power_off()
        })
        .user(|c| c.ud2())
        .kernel(|c| c.enter_user())
        .run()
        .powered_off();
    assert_eq!([0, 1].map(|slot| outcome.result(slot)), [virt(TRAP_STACK) - 20 - 16, 0x61]);
}

#[test]
fn a_trap_pushes_through_the_current_mapping() {
    // The stack's page maps another frame than the linear map says.
    let outcome = TinyGuest::new()
        .reporting(6, 5)
        .user(|c| c.ud2())
        .kernel(|c| {
            let entry = FREE | 0x67;
            c.mov(dword_ptr(virt(LINEAR_TABLE) + (TRAP_STACK >> 12) * 4), entry)?;
            let address = Virt(virt(TRAP_STACK));
            c.hypercall(Hypercall::SetPte {
                directory: Phys(DIRECTORY),
                address,
                value: entry.into(),
            })?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), USER_CODE);
    assert_eq!(outcome.guest.word(FREE + (TRAP_STACK & 0xfff) - 20), USER_CODE);
    assert_eq!(outcome.guest.word(TRAP_STACK - 20), 0);
}

#[test]
fn a_16_bit_stack_is_where_sp_says() {
    // The upper half of esp is kept, and means nothing.
    let guest = TinyGuest::new();
    let base = u64::from(virt(FREE));
    let narrow = 0x0000_9200_0000_ffffu64 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    guest.put(GDT + 20 * 8, &narrow.to_le_bytes());
    let outcome = guest
        .handler(6, |c| {
            c.mov(ebp, esp)?;
            c.note(0, ebp)?;
            c.power_off()
        })
        .kernel(|c| {
            c.mov(eax, 20 * 8 + 1)?;
            c.mov(ss, eax)?;
            c.mov(esp, 0x1234_0f00)?;
            c.ud2()
        })
        .run()
        .powered_off();
    assert_eq!(outcome.result(0), 0x1234_0f00 - 12);
    assert_eq!(outcome.guest.word(FREE + 0xf00 - 8), 0x61);
}
