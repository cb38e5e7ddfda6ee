//! Breakpoints on data: every access counts, and the trap comes behind the instruction (SDM volume 3, section
//! "Debug Exceptions").

mod guest;

use guest::breakpoints::*;
use guest::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::TF;
use lguest_switcher::{Breakpoint, Exception, Exit, Gpr, GuestVirt};
use std::time::Duration;

/// Where the watched bytes are in these tests.
const WATCHED: u32 = DATA + 0x400;

/// An instruction, and what it does with the four bytes at [`WATCHED`].
type Case = (&'static str, fn(&mut CodeAssembler) -> Result<(), IcedError>, Touch);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Touch {
    Not,
    Read,
    Write,
}

/// Runs one instruction between two others, with esp, ebp, esi, edi and ebx at [`WATCHED`].
fn one_instruction(
    guest: &mut Guest,
    (name, instruction, touch): Case,
    breakpoint: Breakpoint,
    hits: bool,
) {
    let mut len = 0;
    guest.assemble(USER, |a| {
        instruction(a)?;
        let mut alone = CodeAssembler::new(32)?;
        instruction(&mut alone)?;
        len = alone.assemble(USER.into())?.len() as u32;
        a.nop()
    });
    guest.start_user(USER);
    for register in [Gpr::Ebx, Gpr::Ebp, Gpr::Esi, Gpr::Edi, Gpr::Esp] {
        guest.set_gpr(register, WATCHED);
    }
    guest.set_gpr(Gpr::Ecx, 1);
    guest.set_gpr(Gpr::Eax, 0);
    // A place to return and jump to, between zeros.
    guest.poke(WATCHED - 0x200, &[0; 0x400]);
    guest.poke(WATCHED, &(USER + len).to_le_bytes());
    set(guest, [breakpoint]);
    let before = guest.vcpu.statistics();
    if hits {
        assert_eq!(guest.run(), Exit::Debug(1), "{name}: {touch:?}, {breakpoint:?}");
        assert_eq!(eip(guest), USER + len, "{name}");
        assert!(!has_rf(guest), "{name}");
    }
    assert_eq!(guest.run(), ENDED, "{name}: {touch:?}, {breakpoint:?}");
    let after = guest.vcpu.statistics();
    assert!(after.faults - before.faults < 8, "{name}");
}

/// What is a read and what a write where the manual leaves it open, a real processor (of AMD's) has told.
#[test]
fn every_kind_of_access_counts() {
    use Touch::{Not, Read, Write};
    let cases: [Case; _] = [
        ("load", |a| a.mov(eax, dword_ptr(ebx)), Read),
        ("load across its end", |a| a.mov(eax, dword_ptr(ebx + 3)), Read),
        ("load across its start", |a| a.mov(ax, word_ptr(ebx - 1)), Read),
        ("load behind", |a| a.mov(eax, dword_ptr(ebx + 4)), Not),
        ("load before", |a| a.mov(eax, dword_ptr(ebx - 4)), Not),
        ("load of a byte", |a| a.movzx(eax, byte_ptr(ebx + 3)), Read),
        ("store", |a| a.mov(dword_ptr(ebx), ecx), Write),
        ("store across its start", |a| a.mov(dword_ptr(ebx - 3), ecx), Write),
        ("store across its end", |a| a.mov(word_ptr(ebx + 3), cx), Write),
        ("store before", |a| a.mov(byte_ptr(ebx - 1), cl), Not),
        ("store behind", |a| a.mov(byte_ptr(ebx + 4), cl), Not),
        ("lea", |a| a.lea(eax, dword_ptr(ebx)), Not),
        ("prefetch", |a| a.prefetcht0(byte_ptr(ebx)), Not),
        ("a long nop", |a| a.nop_1(dword_ptr(ebx)), Not),
        ("add to memory", |a| a.add(dword_ptr(ebx), ecx), Write),
        ("compare", |a| a.cmp(dword_ptr(ebx), ecx), Read),
        ("test", |a| a.test(byte_ptr(ebx + 2), cl), Read),
        ("xchg", |a| a.xchg(dword_ptr(ebx), ecx), Write),
        ("cmpxchg that fails", |a| a.lock().cmpxchg(dword_ptr(ebx), ecx), Write),
        ("cmpxchg8b that fails", |a| a.cmpxchg8b(qword_ptr(ebx)), Write),
        ("set a bit", |a| a.bts(dword_ptr(ebx), ecx), Write),
        ("test a bit far away", |a| a.bt(dword_ptr(ebx + 4), eax), Not),
        ("shift by nothing", |a| a.db(&[0x91, 0xd3, 0x23]), Write),
        ("setcc", |a| a.setz(byte_ptr(ebx)), Write),
        ("push", |a| a.push(ecx), Not),
        ("push below", |a| a.push(dword_ptr(ebx)), Read),
        ("pop", |a| a.pop(ecx), Read),
        ("pop to memory", |a| a.pop(dword_ptr(ebx + 64)), Read),
        ("popad", |a| a.popad(), Read),
        ("popad, past esp", |a| a.db(&[0x83, 0xec, 12, 0x61]), Read),
        ("enter's look at its new top", |a| a.db(&[0x83, 0xc4, 12, 0xc8, 8, 0, 0]), Not),
        ("leave", |a| a.leave(), Read),
        ("return", |a| a.ret(), Read),
        ("jump through memory", |a| a.jmp(dword_ptr(ebx)), Read),
        ("xlat", |a| a.xlatb(), Read),
        ("string load", |a| a.lodsd(), Read),
        ("string store", |a| a.stosb(), Write),
        ("string copy", |a| a.movsd(), Write),
        ("string compare", |a| a.cmpsw(), Read),
        ("string scan", |a| a.rep().scasb(), Read),
        ("repeated, no step", |a| a.db(&[0x91, 0xf3, 0xa5, 0x91]), Not),
        ("x87 load", |a| a.fld(dword_ptr(ebx)), Read),
        ("x87 store", |a| a.fnstcw(word_ptr(ebx + 2)), Write),
        ("x87 state", |a| a.fnsave(dword_ptr(ebx - 64)), Write),
        ("fxsave", |a| a.fxsave(dword_ptr(ebx - 0x100)), Write),
        ("fxsave's last bytes", |a| a.fxsave(dword_ptr(ebx - 0x110)), Write),
        ("fxsave's reserved part", |a| a.fxsave(dword_ptr(ebx - 0x120)), Not),
        ("SSE load", |a| a.movups(xmm0, xmmword_ptr(ebx - 15)), Read),
        ("SSE store", |a| a.movups(xmmword_ptr(ebx - 12), xmm0), Write),
        ("masked store", |a| a.maskmovdqu(xmm0, xmm0), Write),
        ("far pointer", |a| a.les(eax, fword_ptr(ebx)), Read),
        ("far pointer before", |a| a.les(eax, fword_ptr(ebx - 6)), Not),
        ("second bound", |a| a.bound(eax, dword_ptr(ebx - 4)), Read),
        ("bounds behind", |a| a.bound(eax, dword_ptr(ebx + 4)), Not),
        ("arpl of what is high enough", |a| a.db(&[0x31, 0xc9, 0x63, 0x0b]), Read),
        ("verr", |a| a.verr(word_ptr(ebx)), Read),
        ("store of a segment", |a| a.mov(word_ptr(ebx), ds), Write),
    ];
    let mut guest = Guest::user(|a| a.nop());
    for case in cases {
        let touch = case.2;
        one_instruction(&mut guest, case, read_write(WATCHED, 4), touch != Not);
        one_instruction(&mut guest, case, write(WATCHED, 4), touch == Write);
    }
}

#[test]
fn pushes_of_every_kind_count() {
    let cases: [Case; _] = [
        ("push", |a| a.push(ecx), Touch::Write),
        ("push of memory", |a| a.push(dword_ptr(ebx + 64)), Touch::Write),
        ("push of a segment", |a| a.push(ds), Touch::Write),
        ("pushad", |a| a.pushad(), Touch::Write),
        ("enter", |a| a.enter(16, 0), Touch::Write),
        ("call", |a| a.call(u64::from(USER + 5)), Touch::Write),
        ("far call", |a| a.db(&[0x9a, 7, 0, 0x40, 0, 0x1b, 0]), Touch::Write),
    ];
    let mut guest = Guest::user(|a| a.nop());
    for case in cases {
        // What is pushed lies below.
        one_instruction(&mut guest, case, write(WATCHED - 4, 4), true);
        one_instruction(&mut guest, case, read_write(WATCHED - 1, 1), true);
        one_instruction(&mut guest, case, write(WATCHED, 4), false);
    }
}

#[test]
fn repetitions_stop_behind_the_step() {
    // Copies of 64 bytes, each way, over the watched ones as source or destination.
    for (size, down) in [(1, false), (4, false), (1, true), (4, true)] {
        for watched in [WATCHED, WATCHED + 0x800] {
            let mut guest = Guest::user(|a| {
                if down {
                    a.std()?; // 1 byte
                } else {
                    a.cld()?;
                }
                if size == 1 { a.rep().movsb() } else { a.rep().movsd() } // 2 bytes
            });
            let pattern: Vec<u8> = (0..64).collect();
            guest.poke(WATCHED - 0x20, &pattern);
            let start = if down { WATCHED + 0x20 - size } else { WATCHED - 0x20 };
            guest.set_gpr(Gpr::Esi, start);
            guest.set_gpr(Gpr::Edi, start + 0x800);
            guest.set_gpr(Gpr::Ecx, 64 / size);
            set(&mut guest, [read_write(watched, 2), write(watched, 4)]);
            let writes = watched != WATCHED;
            let last = if writes { 4 / size } else { (2 / size).max(1) };
            for step in 0..last {
                let index = if down && size == 1 { last - 1 - step } else { step };
                let bits = u32::from(index * size < 2) | u32::from(writes) << 1;
                assert_eq!(hit(&mut guest, bits), USER + 1);
                assert!(has_rf(&guest), "in the middle of the instruction");
                let (source, done) = (guest.gpr(Gpr::Esi), 64 / size - guest.gpr(Gpr::Ecx));
                let moved = done * size;
                assert_eq!(source, if down { start.wrapping_sub(moved) } else { start + moved });
                assert_eq!(guest.gpr(Gpr::Edi), source + 0x800);
                let at = WATCHED + index * size;
                assert_eq!(source, if down { at - size } else { at + size });
                assert_eq!(guest.peek(at + 0x800) as u8, 0x20 + (index * size) as u8);
            }
            guest.finish();
            for i in (0..64).step_by(4) {
                assert_eq!(guest.peek(WATCHED + 0x7e0 + i), guest.peek(WATCHED - 0x20 + i));
            }
        }
    }
}

#[test]
fn the_last_step_ends_the_instruction() {
    let mut guest = Guest::user(|a| a.rep().stosd()); // 2 bytes
    set(&mut guest, [write(WATCHED, 4)]);
    guest.set_gpr(Gpr::Edi, WATCHED - 12);
    guest.set_gpr(Gpr::Ecx, 4);
    assert_eq!(hit(&mut guest, 1), USER + 2);
    assert!(!has_rf(&guest));
    guest.finish();
}

#[test]
fn a_repetition_with_a_breakpoint_is_one_instruction() {
    let mut guest = Guest::user(|a| a.rep().stosd());
    set(&mut guest, [execute(USER), write(DATA + 0x40, 4)]);
    guest.set_gpr(Gpr::Edi, DATA);
    guest.set_gpr(Gpr::Ecx, 4096); // More steps than Rust makes at a time.
    assert_eq!(hit(&mut guest, 1), USER);
    pass(&mut guest);
    assert_eq!(hit(&mut guest, 2), USER);
    assert!(has_rf(&guest));
    assert_eq!(guest.gpr(Gpr::Edi), DATA + 0x44);
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Edi), guest.gpr(Gpr::Ecx)), (DATA + 0x4000, 0));
}

#[test]
fn the_kernel_is_watched_in_its_users_memory() {
    let mut guest = Guest::kernel(|a| {
        a.mov(dword_ptr(WATCHED), eax)?; // 5 bytes
        a.mov(esi, KERNEL_DATA)?; // 5
        a.mov(edi, WATCHED - 0x100)?; // 5
        a.mov(ecx, 0x100)?; // 5
        a.rep().movsd()?; // 2
        a.mov(eax, dword_ptr(WATCHED)) // 5
    });
    for _ in 0..3 {
        guest.vcpu.set_breakpoints([None; 4]);
        guest.start_kernel(KERNEL);
        guest.finish();
        set(&mut guest, [write(WATCHED, 4), read_write(WATCHED, 2)]);
        guest.start_kernel(KERNEL);
        assert_eq!(hit(&mut guest, 0b11), KERNEL + 5);
        assert_eq!(hit(&mut guest, 0b11), KERNEL + 20);
        assert_eq!(guest.gpr(Gpr::Edi), WATCHED + 4);
        assert_eq!(hit(&mut guest, 0b10), KERNEL + 27);
        guest.finish();
    }
}

#[test]
fn faults_win() {
    let mut guest = Guest::user(|a| {
        a.div(dword_ptr(WATCHED))?; // #DE
        a.push(dword_ptr(WATCHED))?; // a read that hits, then a store that can't be made
        a.nop()
    });
    set(&mut guest, [read_write(WATCHED, 4)]);
    assert_eq!(guest.exception(), Exception::DIVIDE);
    assert_eq!(eip(&guest), USER);
    guest.vcpu.cpu.set_eip(USER + 6);
    guest.set_gpr(Gpr::Esp, 0x10);
    assert_eq!(guest.exception(), page_fault(0xc, 6));
    assert_eq!((eip(&guest), guest.gpr(Gpr::Esp)), (USER + 6, 0x10));
    guest.vcpu.cpu.set_eip(USER + 12);
    guest.finish();
    // A page that isn't there is still not there.
    set(&mut guest, [read_write(0x20, 4)]);
    guest.assemble(USER, |a| a.mov(eax, dword_ptr(0x20)));
    guest.start_user(USER);
    assert_eq!(guest.exception(), page_fault(0x20, 4));
    guest.provide(0, 1, true);
    assert_eq!(hit(&mut guest, 1), USER + 5);
}

#[test]
fn a_new_stack_holds_traps_back() {
    let mut guest = Guest::user(|a| {
        a.mov(ss, word_ptr(WATCHED))?; // 6 bytes
        a.mov(esp, STACK - 16)?; // 5
        a.inc(eax)
    });
    guest.poke(WATCHED, &[0x23, 0]);
    set(&mut guest, [read_write(WATCHED, 2), execute(USER + 6), execute(USER + 11)]);
    assert_eq!(hit(&mut guest, 1), USER + 11);
    assert_eq!(guest.gpr(Gpr::Esp), STACK - 16);
    assert_eq!(hit(&mut guest, 0b100), USER + 11);
    pass(&mut guest);
    guest.finish();
    guest.start_user(USER);
    guest.vcpu.cpu.set_eflags(TF);
    assert_eq!(hit(&mut guest, SINGLE_STEP | 1), USER + 11);
    // A fault of the next instruction ends it.
    guest.start_user(USER);
    guest.vcpu.cpu.set_eflags(0);
    guest.poke(USER + 6, &[0xa1, 0x10, 0, 0, 0]); // mov eax, [0x10]
    assert_eq!(guest.exception(), page_fault(0x10, 4));
    guest.vcpu.cpu.set_eip(USER + 11);
    guest.vcpu.cpu.set_eflags(0);
    assert_eq!(hit(&mut guest, 0b100), USER + 11);
    pass(&mut guest);
    guest.finish();
}

#[test]
fn pages_shown_in_runs_are_watched_too() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA), eax)?; // 5 bytes each
        a.mov(dword_ptr(DATA + 0x1000), eax)?;
        a.mov(dword_ptr(DATA + 0x2000), eax)?;
        a.mov(eax, dword_ptr(DATA + 0x2000))?;
        a.mov(dword_ptr(DATA + 0x3000), eax)?;
        a.mov(eax, dword_ptr(DATA + 0x1ffe)) // across two
    });
    guest.tables.run = 4;
    for reads in [true, false] {
        let kind = if reads { read_write } else { write };
        for watched in [DATA + 0x1000, DATA + 0x2000] {
            set(&mut guest, [kind(watched, 4), kind(DATA + 0x3ffc, 4)]);
            let (first, second) = (watched == DATA + 0x1000, watched == DATA + 0x2000);
            for _ in 0..2 {
                guest.start_user(USER);
                if first {
                    assert_eq!(hit(&mut guest, 1), USER + 10);
                }
                if second {
                    assert_eq!(hit(&mut guest, 1), USER + 15);
                }
                if second && reads {
                    assert_eq!(hit(&mut guest, 1), USER + 20);
                    assert_eq!(hit(&mut guest, 1), USER + 30);
                }
                guest.finish();
            }
        }
    }
}

#[test]
fn watched_bytes_may_be_code() {
    // A store into its own page, watched; the code there has a breakpoint as well.
    let mut guest = Guest::user(|a| {
        a.mov(byte_ptr(USER + 6 + 1), cl)?; // 6 bytes
        a.mov(eax, 0) // 5
    });
    set(&mut guest, [write(USER + 4, 4), execute(USER + 6)]);
    guest.set_gpr(Gpr::Ecx, 9);
    for _ in 0..3 {
        guest.start_user(USER);
        assert_eq!(hit(&mut guest, 1), USER + 6);
        assert_eq!(hit(&mut guest, 2), USER + 6);
        pass(&mut guest);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), 9);
    }
}

#[test]
fn a_page_stays_watched_when_its_code_is_gone() {
    let mut guest = Guest::user(|a| {
        a.mov(eax, dword_ptr(USER + 0x1800))?; // 5 bytes: shows the page
        a.mov(edx, USER + 0x1000)?; // 5
        a.call(edx)?; // 2
        a.int(0x80)?; // 2
        a.mov(dword_ptr(USER + 0x1800), eax) // 5
    });
    guest.assemble(USER + 0x1000, |a| a.ret());
    set(&mut guest, [write(USER + 0x1800, 4)]);
    assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: 0x80, length: 2 });
    guest.poke(USER + 0x1000, &[0x90]);
    assert_eq!(hit(&mut guest, 1), USER + 19);
    guest.finish();
}

#[test]
fn the_embedder_may_ask_for_its_own_accesses() {
    let mut guest = Guest::user(|a| a.mov(eax, dword_ptr(WATCHED)));
    set(&mut guest, [write(WATCHED, 4), read_write(WATCHED + 2, 2)]);
    assert_eq!(guest.vcpu.breakpoints_touched(GuestVirt(WATCHED - 4), 8, true), 0b11);
    assert_eq!(guest.vcpu.breakpoints_touched(GuestVirt(WATCHED), 4, false), 0b10);
    // What it reads and writes by itself hits nothing.
    let mut bytes = [0; 4];
    let at = GuestVirt(WATCHED);
    guest.vcpu.read_virt(&mut guest.tables, at, &mut bytes, true).expect("a page");
    guest.vcpu.write_virt(&mut guest.tables, at, &[1; 4], true).expect("a page");
    assert_eq!(hit(&mut guest, 0b10), USER + 5);
    guest.finish();
}

#[test]
fn breakpoints_move_to_another_thread() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(WATCHED), eax)?;
        a.inc(eax)
    });
    set(&mut guest, [write(WATCHED, 4), execute(USER + 5)]);
    let Guest { vcpu, mut tables, .. } = guest;
    let parked = vcpu.park();
    let thread = std::thread::spawn(move || {
        let mut vcpu = parked.unpark().expect("a thread like any other");
        [(); 2].map(|()| vcpu.run(&mut tables))
    });
    assert_eq!(thread.join().expect("no panic"), [Exit::Debug(1), Exit::Debug(2)]);
}

#[test]
fn a_program_comes_to_the_same_end_whatever_is_watched() {
    let mut guest = Guest::user(|a| {
        let (mut again, mut mix) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.push(ecx)?;
        a.lea(esi, dword_ptr(DATA + ecx * 4))?;
        a.lea(edi, dword_ptr(DATA + 0xff0))?;
        a.mov(ecx, 32)?;
        a.rep().movsb()?;
        a.pop(ecx)?;
        a.call(mix)?;
        a.xchg(dword_ptr(DATA + ecx * 8), eax)?;
        a.add(dword_ptr(DATA + 0xffe), eax)?;
        a.fild(dword_ptr(DATA + 0xff4))?;
        a.fistp(qword_ptr(DATA + ecx * 4 + 0x800))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.int(u32::from(END))?;
        a.set_label(&mut mix)?;
        a.add(eax, dword_ptr(DATA + ecx * 4 + 0x800))?;
        a.rol(eax, 5)?;
        a.adc(eax, dword_ptr(esp))?;
        a.ret()
    });
    let mut end = |watch: bool| {
        let seed: Vec<u8> = (0..0x2000_u32).map(|i| (i * 77) as u8).collect();
        guest.poke(DATA, &seed);
        guest.start_user(USER);
        guest.set_gpr(Gpr::Eax, 0);
        guest.set_gpr(Gpr::Ecx, 200);
        let (mut random, mut hits) = (1_u32, 0);
        let mut next = move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 12
        };
        loop {
            if watch {
                let slots = [(); 4].map(|()| match next() % 4 {
                    0 => Some(execute(USER + next() % 96)),
                    1 => Some(read_write(DATA + next() % 0x1004, 4)),
                    2 => Some(write(DATA + next() % 0x1004, 1 << (next() % 3))),
                    _ => Some(read_write(STACK - 12 + next() % 12, 1)),
                });
                guest.vcpu.set_breakpoints(slots);
                guest.vcpu.set_alarm(Some(Duration::from_micros(u64::from(next() % 100))));
            }
            match guest.run() {
                Exit::Debug(_) => {
                    hits += 1;
                    pass(&mut guest);
                }
                Exit::Kicked => {}
                exit => break assert_eq!(exit, ENDED),
            }
        }
        let memory: Vec<u32> = (0..0x1100).step_by(4).map(|i| guest.peek(DATA + i)).collect();
        (guest.gpr(Gpr::Eax), memory, hits)
    };
    let (sum, memory, _) = end(false);
    let (watched_sum, watched_memory, hits) = end(true);
    assert_eq!((watched_sum, watched_memory), (sum, memory));
    assert!(hits > 10, "{hits}");
}
