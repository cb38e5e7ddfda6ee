//! Whole little programs: arithmetic, loops, calls, strings, the FPU; at both levels.

mod guest;

use guest::breakpoints::ENDED;
use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::{
    Config, Exception, Exit, Gpr, GuestVirt, PAGE_SIZE, Segment, SegmentRegister,
};
use std::time::Duration;

#[test]
fn a_loop_adds_up() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.add(eax, ecx)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ecx)), (500_500, 0));
    assert_eq!(guest.vcpu.cpu.eflags() & 0x40, 0x40, "ZF");
    assert_eq!(guest.vcpu.cpu.eip(), USER + 14);
}

#[test]
fn recursion_calls_and_returns() {
    let mut guest = Guest::user(|a| {
        let (mut fibonacci, mut small, mut end) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(eax, 15)?;
        a.call(fibonacci)?;
        a.jmp(end)?;
        a.set_label(&mut fibonacci)?;
        a.cmp(eax, 2)?;
        a.jb(small)?;
        a.push(ebx)?;
        a.push(eax)?;
        a.dec(eax)?;
        a.call(fibonacci)?;
        a.mov(ebx, eax)?;
        a.pop(eax)?;
        a.sub(eax, 2)?;
        a.call(fibonacci)?;
        a.add(eax, ebx)?;
        a.pop(ebx)?;
        a.set_label(&mut small)?;
        a.ret()?;
        a.set_label(&mut end)?;
        a.nop()
    });
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Esp)), (610, STACK));
}

#[test]
fn calls_through_registers_and_memory_between_pages() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(dword_ptr(DATA), USER + 0x2000)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.mov(edx, USER + 0x1000)?;
        a.call(edx)?;
        a.call(dword_ptr(DATA))?;
        a.call(u64::from(USER + 0x1000))?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.assemble(USER + 0x1000, |a| {
        a.add(eax, 3)?;
        a.ret()
    });
    guest.assemble(USER + 0x2000, |a| {
        a.add(eax, eax)?;
        a.and(eax, 0xfff)?;
        a.ret()
    });
    guest.finish();
    let expected = (0..100).fold(0u32, |sum, _| (((sum + 3) * 2) & 0xfff) + 3);
    assert_eq!(guest.gpr(Gpr::Eax), expected);
    assert!(guest.vcpu.statistics().units < 20);
}

#[test]
fn kernel_programs_run_in_the_kernels_window() {
    let mut guest = Guest::kernel(|a| {
        a.mov(edi, KERNEL_DATA)?;
        a.mov(ecx, 4 * PAGE_SIZE / 4)?;
        a.mov(eax, 0x0101_0101)?;
        a.rep().stosd()?;
        a.mov(esi, KERNEL_DATA)?;
        a.mov(ecx, 4 * PAGE_SIZE)?;
        a.xor(ebx, ebx)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.lodsb()?;
        a.movzx(eax, al)?;
        a.add(ebx, eax)?;
        a.loop_(again)
    });
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 4 * PAGE_SIZE);
    assert_eq!(guest.peek(KERNEL_DATA + 4 * PAGE_SIZE - 4), 0x0101_0101);
}

#[test]
fn instructions_that_run_over_a_page_follow_both_pages() {
    // mov eax, imm32 with two bytes in the next page.
    let mut guest = Guest::user(|a| a.jmp(u64::from(USER + 0x1ffd)));
    guest.poke(USER + 0x1ffd, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xcd, END]);
    for _ in 0..3 {
        guest.start_user(USER);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), 0x4433_2211);
    }
    guest.poke(USER + 0x2000, &[0x55]);
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 0x4455_2211);
    // Without the second page, the fetch faults there, and nothing has happened.
    let page = (USER + 0x2000) / PAGE_SIZE;
    let second = guest.tables.pages.remove(&page).unwrap();
    guest.vcpu.unmap(lguest_switcher::View::AllUsers, GuestVirt(USER + 0x2000), 1);
    guest.start_user(USER);
    assert_eq!(guest.exception(), page_fault(USER + 0x2000, 4));
    assert_eq!(guest.vcpu.cpu.eip(), USER + 0x1ffd);
    guest.tables.pages.insert(page, second);
    guest.finish();
}

#[test]
fn exceptions_tell_what_the_manual_says() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(Program, Exception, u32); 7] = [
        (|a| a.div(ecx), Exception::DIVIDE, 0),
        (|a| a.ud2(), Exception::INVALID_OPCODE, 0),
        (|a| a.mov(eax, dword_ptr(8)), page_fault(8, 4), 0),
        (|a| a.mov(dword_ptr(8), eax), page_fault(8, 6), 0),
        (|a| a.movaps(xmm0, ptr(DATA + 4)), Exception::protection(0), 0),
        (|a| a.jmp(0x1234_5000), page_fault(0x1234_5000, 4), 0x1234_5000 - USER),
        (|a| a.vaddps(xmm0, xmm0, xmm0), Exception::INVALID_OPCODE, 0),
    ];
    for (program, expected, eip) in cases {
        let mut guest = Guest::user(program);
        assert_eq!(guest.exception(), expected);
        assert_eq!(guest.vcpu.cpu.eip(), USER + eip, "{expected:?}");
        assert_eq!(guest.gpr(Gpr::Esp), STACK);
    }
}

#[test]
fn unmasked_fpu_exceptions_reach_the_guest() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA), 0x1f80 & !0x200)?; // division by zero unmasked
        a.ldmxcsr(ptr(DATA))?;
        a.movss(xmm0, ptr(DATA + 4))?;
        a.xorps(xmm1, xmm1)?;
        a.divss(xmm0, xmm1)
    });
    guest.poke(DATA + 4, &1f32.to_le_bytes());
    assert_eq!(guest.exception(), Exception::plain(19));
    let mut guest = Guest::user(|a| {
        a.mov(word_ptr(DATA), 0x037b)?; // division by zero unmasked
        a.fldcw(word_ptr(DATA))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.nop()?;
        a.fld1()
    });
    assert_eq!(guest.exception(), Exception::plain(16));
    assert_eq!(guest.vcpu.cpu.eip(), USER + 9 + 6 + 2 + 2 + 2 + 1, "the next FPU instruction");
}

#[test]
fn the_fpu_trap_catches_every_kind_of_fpu_instruction() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let programs: [Program; 4] =
        [|a| a.fld1(), |a| a.movq(mm0, mm1), |a| a.addps(xmm0, xmm1), |a| a.fxsave(ptr(DATA))];
    for program in programs {
        let mut guest = Guest::user(program);
        guest.vcpu.cpu.set_fpu_trap(true);
        assert_eq!(guest.exception(), Exception::NO_FPU);
        assert_eq!(guest.vcpu.cpu.eip(), USER);
        guest.vcpu.cpu.set_fpu_trap(false);
        guest.finish();
    }
}

#[test]
fn the_fpu_trap_catches_the_next_round_of_a_loop() {
    // Two loops, one in the other, whose FPU instructions come late, and one behind a way out.
    let mut guest = Guest::user(|a| {
        let (mut outer, mut inner, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        a.fninit()?;
        a.fldz()?;
        a.mov(edx, 400)?;
        a.set_label(&mut outer)?;
        a.mov(ecx, 999)?;
        a.set_label(&mut inner)?;
        a.inc(eax)?;
        a.cmp(ecx, 1000)?;
        a.je(over)?;
        a.fld1()?;
        a.mov(ebx, eax)?;
        a.faddp(st1, st0)?;
        a.fist(dword_ptr(DATA))?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.fld(st0)?;
        a.fstp(st0)?;
        a.dec(edx)?;
        a.jnz(outer)?;
        a.set_label(&mut over)?;
        a.nop()
    });
    let (mut random, mut caught) = (Random(7), 0);
    loop {
        guest.vcpu.set_alarm(Some(Duration::from_micros(random.below(16).into())));
        match guest.run() {
            Exit::Kicked => {}
            exit => break assert_eq!(exit, ENDED),
        }
        let before = guest.peek(DATA);
        guest.vcpu.cpu.set_fpu_trap(true);
        match guest.run() {
            Exit::Exception(exception) => assert_eq!(exception, Exception::NO_FPU),
            exit => assert_eq!(exit, Exit::Kicked),
        }
        let eip = guest.vcpu.cpu.eip();
        assert_eq!(guest.peek(DATA), before, "no FPU instruction at all, up to {eip:#x}");
        guest.vcpu.cpu.set_fpu_trap(false);
        caught += 1;
    }
    assert_eq!((guest.peek(DATA), guest.gpr(Gpr::Eax)), (399_600, 399_600));
    assert!(caught > 10, "{caught}");
}

#[test]
fn a_loop_that_is_entered_behind_its_fpu_instructions_asks_in_its_next_round() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.fld1()?; // 2 bytes
        a.fstp(st0)?; // 2
        a.nop()?; // 1
        a.dec(ecx)?; // 1
        a.jnz(again)
    });
    guest.set_gpr(Gpr::Ecx, 3);
    guest.finish();
    for behind in 4..7 {
        guest.start_user(USER + behind);
        guest.set_gpr(Gpr::Ecx, 3);
        guest.vcpu.cpu.set_eflags(0);
        guest.vcpu.cpu.set_fpu_trap(true);
        assert_eq!(guest.exception(), Exception::NO_FPU);
        assert_eq!(guest.vcpu.cpu.eip(), USER);
    }
}

#[test]
fn a_jump_past_a_loop_s_fpu_instructions_meets_them_in_the_next_round() {
    let mut guest = Guest::user(|a| {
        let (mut again, mut middle) = (a.create_label(), a.create_label());
        a.test(ecx, ecx)?;
        a.jnz(middle)?;
        a.set_label(&mut again)?;
        a.fld1()?;
        a.fstp(st0)?;
        a.set_label(&mut middle)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.set_gpr(Gpr::Ecx, 3);
    guest.vcpu.cpu.set_fpu_trap(true);
    assert_eq!((guest.exception(), guest.vcpu.cpu.eip()), (Exception::NO_FPU, USER + 4));
}

#[test]
fn single_stepping_stops_behind_each_instruction() {
    let mut guest = Guest::user(|a| {
        let mut over = a.create_label();
        a.mov(eax, 1)?; // 5 bytes
        a.push(eax)?; // 1
        a.jmp(over)?; // 2
        a.nop()?; // 1
        a.set_label(&mut over)?;
        a.mov(ebx, ds)?; // 2, emulated
        a.inc(eax)
    });
    guest.vcpu.cpu.set_eflags(0x100);
    let mut stops = Vec::new();
    for _ in 0..5 {
        assert_eq!(guest.run(), Exit::Debug(SINGLE_STEP));
        stops.push(guest.vcpu.cpu.eip() - USER);
        assert_eq!(guest.vcpu.cpu.eflags() & 0x100, 0x100);
    }
    assert_eq!(stops, [5, 6, 9, 11, 12]);
    guest.vcpu.cpu.set_eflags(0);
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ebx)), (2, 0x23));
}

#[test]
fn single_stepping_sees_each_repetition_but_not_what_a_new_stack_segment_holds_back() {
    // SDM volume 3, sections "Single-Step Exception Condition" and "Masking Exceptions and
    // Interrupts When Switching Stacks".
    let mut guest = Guest::user(|a| {
        a.rep().movsb()?; // 2 bytes, nothing to do
        a.mov(ecx, 3)?; // 5
        a.rep().movsb()?; // 2
        a.mov(eax, ss)?; // 2
        a.mov(ss, eax)?; // 2
        a.inc(edx)?; // 1
        a.push(ss)?; // 1
        a.pop(ss)?; // 1
        a.inc(edx)?; // 1
        a.inc(edx) // 1
    });
    guest.set_gpr(Gpr::Esi, DATA);
    guest.set_gpr(Gpr::Edi, DATA + 0x10);
    guest.poke(DATA, b"abc");
    guest.vcpu.cpu.set_eflags(0x100);
    let mut stops = Vec::new();
    while stops.last() != Some(&18) {
        assert_eq!(guest.run(), Exit::Debug(SINGLE_STEP));
        stops.push(guest.vcpu.cpu.eip() - USER);
    }
    assert_eq!(stops, [2, 7, 7, 7, 9, 11, 14, 15, 17, 18]);
    assert_eq!(guest.peek(DATA + 0x10), u32::from_le_bytes(*b"abc\0"));
    guest.vcpu.cpu.set_eflags(0);
    guest.finish();
}

#[test]
fn segments_with_a_base_and_with_a_limit() {
    let mut guest = Guest::user(|a| {
        a.mov(eax, dword_ptr(4).fs())?;
        a.mov(dword_ptr(8).fs(), eax)?;
        a.mov(ebx, dword_ptr(0x10).gs())?;
        a.mov(ecx, dword_ptr(0x1d).gs())
    });
    guest.poke(DATA + 4, &7u32.to_le_bytes());
    guest.poke(DATA + 0x110, &9u32.to_le_bytes());
    let base = Segment { base: DATA, ..Segment::flat_data(0x23) };
    let limited = Segment { base: DATA + 0x100, limit: 0x1f, ..Segment::flat_data(0x23) };
    guest.vcpu.cpu.set_segment(SegmentRegister::Fs, base);
    guest.vcpu.cpu.set_segment(SegmentRegister::Gs, limited);
    assert_eq!(guest.exception(), Exception::protection(0));
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ebx)), (7, 9));
    assert_eq!(guest.peek(DATA + 8), 7);
}

#[test]
fn privileged_instructions_are_the_embedders() {
    let mut guest = Guest::kernel(|a| {
        a.cli()?;
        a.hlt()
    });
    for mnemonic in [iced_x86::Mnemonic::Cli, iced_x86::Mnemonic::Hlt] {
        let Exit::Privileged(instruction) = guest.run() else { panic!("not handed over") };
        assert_eq!(instruction.mnemonic(), mnemonic);
        assert_eq!(instruction.ip32(), guest.vcpu.cpu.eip());
        guest.vcpu.cpu.set_eip(instruction.next_ip32());
    }
    guest.finish();
}

#[test]
fn watched_stores_come_back_while_something_is_pending() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA + 8), 1)?;
        a.mov(dword_ptr(DATA + 4), 0x200)?;
        a.inc(eax)?;
        a.or(byte_ptr(DATA + 5), 2)?;
        a.inc(eax)
    });
    guest.finish();
    guest.vcpu.set_watch(Some((GuestVirt(DATA + 4), 4)));
    guest.start_user(USER);
    guest.set_gpr(Gpr::Eax, 0);
    guest.finish();
    guest.vcpu.set_pending(true);
    guest.start_user(USER);
    guest.set_gpr(Gpr::Eax, 0);
    assert_eq!((guest.run(), guest.gpr(Gpr::Eax)), (Exit::Watched, 0));
    assert_eq!(guest.vcpu.cpu.eip(), USER + 20);
    assert_eq!((guest.run(), guest.gpr(Gpr::Eax)), (Exit::Watched, 1));
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 2);
}

#[test]
fn a_full_cache_is_emptied_and_filled_again() {
    let config = Config { code_cache: 1 << 20, ..Config::default() };
    let mut guest = Guest::with_config(config);
    const PAGES: u32 = 400;
    guest.provide(USER, PAGES, true);
    guest.provide(STACK - PAGE_SIZE, 1, true);
    for page in 0..PAGES {
        let next = USER + (page + 1) % PAGES * PAGE_SIZE;
        guest.assemble(USER + page * PAGE_SIZE, |a| {
            for i in 0..200 {
                a.add(dword_ptr(esp - 4 * (i % 50 + 1)), 1)?;
            }
            a.inc(ecx)?;
            if page + 1 < PAGES { a.jmp(u64::from(next)) } else { a.nop() }
        });
    }
    for _ in 0..3 {
        guest.start_user(USER);
        guest.set_gpr(Gpr::Ecx, 0);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Ecx), PAGES);
    }
    assert_eq!(guest.peek(STACK - 4), 4 * 3 * PAGES);
    assert!(guest.vcpu.statistics().cache_flushes > 1);
}

#[test]
fn the_time_stamp_counter_can_be_kept_from_outer_levels() {
    let mut guest = Guest::user(|a| {
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        a.rdtsc()
    });
    guest.finish();
    assert!(guest.gpr(Gpr::Eax) != guest.gpr(Gpr::Ebx), "it counts");
    for level in [0, 1, 2] {
        guest.vcpu.cpu.set_timestamp_level(level);
        guest.start_user(USER);
        guest.set_gpr(Gpr::Edx, 5);
        assert_eq!(guest.exception(), Exception::protection(0), "at level {level}");
        assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Edx)), (USER, 5));
    }
    let mut kernel = Guest::kernel(|a| a.rdtsc());
    kernel.vcpu.cpu.set_timestamp_level(0);
    kernel.finish();
}
