//! Control, debug and model-specific registers, as a kernel that doesn't know the Host uses them.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::lguest_data::offset;
use tiny_guest::*;

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
fn breakpoints_in_debug_registers_are_trap_1() {
    const WATCHED: u32 = USER_DATA + 0x20;
    let outcome = TinyGuest::new()
        .handler(1, |c| {
            // Which of them, and where; then they are off.
            c.mov(eax, dr6)?;
            c.mov(edx, dword_ptr(virt(RESULTS) + 60))?;
            c.mov(dword_ptr(virt(RESULTS) + edx * 8), eax)?;
            c.mov(ecx, dword_ptr(esp))?;
            c.mov(dword_ptr(virt(RESULTS) + edx * 8 + 4), ecx)?;
            c.inc(dword_ptr(virt(RESULTS) + 60))?;
            c.xor(eax, eax)?;
            c.mov(dr6, eax)?;
            // RF: the instruction with the breakpoint runs when we come back.
            c.or(dword_ptr(esp + 8), 0x1_0000)?;
            c.iretd()
        })
        .handler(6, |c| c.power_off())
        .user(|c| {
            c.nop()?;
            c.nop()?;
            c.mov(dword_ptr(WATCHED + 2), eax)?;
            c.mov(eax, dword_ptr(WATCHED))?;
            c.ud2()
        })
        .kernel(|c| {
            c.mov(dword_ptr(virt(RESULTS) + 60), 0)?;
            c.mov(eax, USER_CODE + 1)?;
            c.mov(dr0, eax)?;
            c.mov(eax, WATCHED)?;
            c.mov(dr3, eax)?;
            // 0 on an instruction, 3 on a write of four bytes.
            c.mov(eax, 0xd000_0081u32)?;
            c.mov(dr7, eax)?;
            c.enter_user()
        })
        .run()
        .powered_off();
    let [reason, place, second, behind] = results(&outcome);
    assert_eq!((reason, place), (0xffff_0ff1, USER_CODE + 1), "before the second nop");
    assert_eq!((second, behind), (0xffff_0ff8, USER_CODE + 7), "behind the store");
    assert_eq!(outcome.result(15), 2);
}

#[test]
fn with_tsd_rdtsc_is_the_kernels() {
    let outcome = TinyGuest::new()
        .reporting(13, 2)
        .user(|c| c.rdtsc())
        .kernel(|c| {
            c.mov(eax, 4)?;
            c.mov(cr4, eax)?;
            c.rdtsc()?;
            c.enter_user()
        })
        .run()
        .powered_off();
    assert_eq!(results(&outcome), [0, USER_CODE]);
}
