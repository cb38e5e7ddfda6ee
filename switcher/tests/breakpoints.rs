//! Breakpoints on instructions, RF, and single steps (SDM volume 3, section "Debug Exceptions").

mod guest;

use guest::breakpoints::*;
use guest::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::TF;
use lguest_switcher::{Exception, Exit, Gpr, PAGE_SIZE, Segment, SegmentRegister};

/// `ecx` rounds of a loop whose second instruction is at `USER + 2`.
fn looped(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, ecx)?; // 2 bytes
    a.inc(ebx)?; // 1, at USER + 2
    a.dec(ecx)?; // 1
    a.jnz(again)
}

#[test]
fn a_hot_loop_stops_before_the_instruction_each_time() {
    let mut guest = Guest::user(looped);
    for at in [USER, USER + 2, USER + 3, USER + 4] {
        // Translated and chained first.
        guest.vcpu.set_breakpoints([None; 4]);
        guest.start_user(USER);
        guest.set_gpr(Gpr::Ecx, 1000);
        guest.finish();

        set(&mut guest, [execute(at), execute(USER + 0x800)]);
        guest.start_user(USER);
        for (register, value) in [(Gpr::Eax, 0), (Gpr::Ebx, 0), (Gpr::Ecx, 5)] {
            guest.set_gpr(register, value);
        }
        for round in 0..5 {
            assert_eq!(hit(&mut guest, 1), at);
            assert_eq!(guest.gpr(Gpr::Ebx), round + u32::from(at > USER + 2));
            assert_eq!(guest.gpr(Gpr::Ecx), 5 - round - u32::from(at > USER + 3));
            assert!(!has_rf(&guest));
            assert_eq!(hit(&mut guest, 1), at, "nothing has happened, so it is hit again");
            pass(&mut guest);
        }
        guest.finish();
        assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ebx)), (15, 5));
        assert!(!has_rf(&guest));
    }
}

#[test]
fn without_breakpoints_it_is_as_fast_as_before() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(dword_ptr(DATA))?;
        a.mov(eax, dword_ptr(DATA + 4))?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    let work = |guest: &mut Guest, breakpoints| {
        guest.vcpu.set_breakpoints(breakpoints);
        guest.start_user(USER);
        guest.set_gpr(Gpr::Ecx, 1000);
        let before = guest.vcpu.statistics();
        while guest.run() != ENDED {
            pass(guest);
        }
        let after = guest.vcpu.statistics();
        let slow = after.bounced - before.bounced + after.emulated - before.emulated;
        (after.faults - before.faults, slow, after.units - before.units)
    };
    work(&mut guest, [None; 4]);
    assert_eq!(work(&mut guest, [None; 4]), (0, 0, 0));
    // Elsewhere: on other pages, or behind the loop in its own.
    let elsewhere = [
        Some(execute(USER + 0x1000)),
        Some(read_write(DATA + PAGE_SIZE, 4)),
        Some(write(USER, 1)),
        None,
    ];
    work(&mut guest, elsewhere);
    assert_eq!(work(&mut guest, elsewhere), (0, 0, 0));
    let (faults, slow, _) = work(&mut guest, [Some(read_write(DATA + 8, 4)), None, None, None]);
    assert_eq!((faults, slow), (2000, 2000), "each access to the page");
    let (faults, slow, _) = work(&mut guest, [Some(write(DATA + 8, 4)), None, None, None]);
    assert_eq!((faults, slow), (1001, 1000), "each store to it, and one load to map it");
    let (.., units) = work(&mut guest, [Some(execute(USER + 6)), None, None, None]);
    assert!((1..6).contains(&units), "{units}");
    work(&mut guest, [None; 4]);
    assert_eq!(work(&mut guest, [None; 4]), (0, 0, 0));
    assert_eq!(guest.peek(DATA), 9000);
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[test]
fn every_way_to_an_instruction_meets_its_breakpoint() {
    // By falling through, a jump, a conditional jump, a call, a return, an indirect jump within the page and
    // from another.
    let programs: [Program; 6] = [
        |a| a.jmp(u64::from(USER + 0x100)),
        |a| {
            a.xor(edx, edx)?;
            a.jz(u64::from(USER + 0x100))
        },
        |a| a.call(u64::from(USER + 0x100)),
        |a| {
            a.push((USER + 0x100) as i32)?;
            a.ret()
        },
        |a| {
            a.mov(edx, USER + 0x100)?;
            a.jmp(edx)
        },
        |a| {
            a.mov(edx, USER + 0x1000)?;
            a.jmp(edx)
        },
    ];
    for (number, program) in programs.into_iter().enumerate() {
        let mut guest = Guest::user(program);
        guest.assemble(USER + 0x100, |a| a.inc(eax));
        guest.assemble(USER + 0x1000, |a| a.jmp(u64::from(USER + 0x100)));
        for _ in 0..3 {
            guest.vcpu.set_breakpoints([None; 4]);
            guest.start_user(USER);
            guest.finish();
            guest.start_user(USER);
            set(&mut guest, [write(0, 1), execute(USER + 0x100)]);
            assert_eq!(hit(&mut guest, 0b10), USER + 0x100, "program {number}");
            pass(&mut guest);
            guest.finish();
        }
        assert_eq!(guest.gpr(Gpr::Eax), 6);
    }
}

#[test]
fn an_instruction_across_two_pages_has_its_first_byte_in_one() {
    let at = USER + 0xffd;
    let mut guest = Guest::user(|a| a.jmp(u64::from(at)));
    guest.assemble(at, |a| {
        a.mov(eax, 0x1234)?; // 5 bytes
        a.inc(eax)
    });
    guest.finish();
    for (breakpoint, hits) in
        [(at, 1), (at + 3, 0), (at + 5, 1), (at + 1, 0), (at, 1), (USER + 5, 0)]
    {
        set(&mut guest, [execute(breakpoint)]);
        guest.start_user(USER);
        for _ in 0..hits {
            assert_eq!(hit(&mut guest, 1), breakpoint);
            pass(&mut guest);
        }
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), 0x1235);
    }
}

#[test]
fn kernel_and_users_meet_the_same_breakpoints() {
    let mut guest = Guest::user(|a| a.inc(eax));
    guest.provide(KERNEL_STACK - PAGE_SIZE, 1, false);
    let start: [fn(&mut Guest); 2] = [
        |guest| guest.start_user(USER),
        |guest| {
            guest.start_kernel(USER);
        },
    ];
    let other = guest.vcpu.create_space().expect("address space");
    let check = |guest: &mut Guest, breakpoint: bool| {
        for start in start {
            start(guest);
            if breakpoint {
                assert_eq!(hit(guest, 1), USER);
                pass(guest);
            }
            guest.finish();
        }
    };
    check(&mut guest, false);
    set(&mut guest, [execute(USER)]);
    check(&mut guest, true);
    guest.vcpu.switch_space(other);
    check(&mut guest, true);
    guest.vcpu.set_breakpoints([None; 4]);
    check(&mut guest, false);
}

#[test]
fn addresses_are_linear() {
    // A code segment with a base, and the same code at another address.
    let mut guest = Guest::user(|a| {
        a.inc(eax)?;
        a.inc(ebx)
    });
    let page = guest.tables.pages[&(USER / PAGE_SIZE)];
    guest.tables.pages.insert(DATA / PAGE_SIZE, page);
    set(&mut guest, [execute(USER + 1)]);
    guest.start_user(DATA);
    guest.finish();
    let based = Segment { base: USER - 0x1000, ..Segment::flat_code(0x1b) };
    guest.start_user(0x1000);
    guest.vcpu.cpu.set_segment(SegmentRegister::Cs, based);
    assert_eq!(hit(&mut guest, 1), 0x1001);
    pass(&mut guest);
    guest.finish();
    set(&mut guest, [execute(0x1001)]);
    guest.vcpu.cpu.set_eip(0x1000);
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ebx)), (3, 3));

    // Data likewise.
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA), eax)?;
        a.mov(dword_ptr(DATA + PAGE_SIZE), eax)?; // 5 bytes each
        a.mov(dword_ptr(0x10).fs(), eax) // 6
    });
    let page = guest.tables.pages[&(DATA / PAGE_SIZE)];
    guest.tables.pages.insert(DATA / PAGE_SIZE + 1, page);
    let based = Segment { base: DATA + PAGE_SIZE - 0x10, ..Segment::flat_data(0x23) };
    guest.vcpu.cpu.set_segment(SegmentRegister::Fs, based);
    set(&mut guest, [write(DATA + PAGE_SIZE, 4)]);
    assert_eq!(hit(&mut guest, 1), USER + 10);
    assert_eq!(hit(&mut guest, 1), USER + 16);
    guest.finish();
}

#[test]
fn rf_holds_for_one_instruction() {
    let mut guest = Guest::user(|a| {
        a.inc(eax)?;
        a.inc(eax)?;
        a.mov(edx, dword_ptr(0x10))
    });
    set(&mut guest, [execute(USER), execute(USER + 1)]);
    pass(&mut guest);
    assert_eq!(hit(&mut guest, 2), USER + 1);
    assert_eq!(guest.gpr(Gpr::Eax), 1);
    // A fault's frame has RF set, so that the instruction begins again unhindered.
    set(&mut guest, [execute(USER + 2)]);
    assert_eq!(hit(&mut guest, 1), USER + 2);
    pass(&mut guest);
    for _ in 0..2 {
        assert_eq!(guest.exception(), page_fault(0x10, 4));
        assert!(has_rf(&guest));
    }
    guest.provide(0, 1, true);
    guest.finish();
    assert!(!has_rf(&guest));
}

#[test]
fn frames_show_rf_for_faults_and_not_for_traps() {
    let mut guest = Guest::kernel(|a| {
        a.int3()?;
        a.int(0x80)?;
        a.cli()?;
        a.ud2()
    });
    let exits = [
        (Exit::SoftwareInterrupt { vector: 3, length: 1 }, KERNEL + 1),
        (Exit::SoftwareInterrupt { vector: 0x80, length: 2 }, KERNEL + 3),
    ];
    for breakpoints in [false, true] {
        let on = [0, 1, 3, 4].map(|at| breakpoints.then_some(execute(KERNEL + at)));
        guest.vcpu.set_breakpoints(on);
        guest.start_kernel(KERNEL);
        for (exit, behind) in exits {
            pass(&mut guest);
            assert_eq!(guest.run(), exit);
            assert_eq!((eip(&guest), has_rf(&guest)), (behind, false));
        }
        pass(&mut guest);
        assert!(matches!(guest.run(), Exit::Privileged(_)));
        assert!(!has_rf(&guest));
        guest.vcpu.cpu.set_eip(KERNEL + 4);
        if breakpoints {
            hit(&mut guest, 8);
            pass(&mut guest);
        }
        assert_eq!(guest.exception(), Exception::INVALID_OPCODE);
        assert_eq!((eip(&guest), has_rf(&guest)), (KERNEL + 4, true));
    }
}

#[test]
fn a_kick_does_not_lose_rf() {
    let mut guest = Guest::user(|a| a.inc(eax));
    set(&mut guest, [execute(USER)]);
    pass(&mut guest);
    guest.vcpu.kicker().kick();
    assert_eq!(guest.run(), Exit::Kicked);
    assert!(has_rf(&guest));
    guest.finish();
}

#[test]
fn single_steps_and_breakpoints_come_together() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA), eax)?; // 5 bytes
        a.inc(eax)?;
        a.inc(eax)
    });
    set(&mut guest, [execute(USER + 5), write(DATA, 4), write(DATA + 2, 1)]);
    guest.vcpu.cpu.set_eflags(TF);
    assert_eq!(hit(&mut guest, SINGLE_STEP | 0b110), USER + 5);
    assert_eq!(hit(&mut guest, 1), USER + 5);
    pass(&mut guest);
    assert_eq!(hit(&mut guest, SINGLE_STEP), USER + 6);
    guest.vcpu.cpu.set_eflags(0);
    guest.finish();
}

#[test]
fn code_that_changes_keeps_its_breakpoints() {
    // The loop changes the immediate of the instruction with the breakpoint, in its own page.
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(byte_ptr(USER + 6 + 1), cl)?; // 6 bytes
        a.mov(eax, 0)?; // the breakpoint is here
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    set(&mut guest, [execute(USER + 6)]);
    guest.set_gpr(Gpr::Ecx, 20);
    guest.set_gpr(Gpr::Ebx, 0);
    for _ in 0..20 {
        assert_eq!(hit(&mut guest, 1), USER + 6);
        pass(&mut guest);
    }
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 210);
    // And a device's write.
    guest.poke(USER + 6, &[0xb8, 7, 0, 0, 0]);
    guest.start_user(USER + 6);
    hit(&mut guest, 1);
    pass(&mut guest);
    guest.set_gpr(Gpr::Ecx, 1);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 7);
}
