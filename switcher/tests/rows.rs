//! Rows of pushes and pops, where r12 doesn't follow esp at each step: wherever a guest stops, it has the state that
//! it has when it goes step by step, where there are no rows.

mod guest;

use guest::breakpoints::ENDED;
use guest::steps::stops_show_what_steps_show;
use guest::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Exit, Gpr, GuestVirt, PAGE_SIZE};

/// Where esp is at the start of each round: a little above the end of a page, so that rows cross it.
const TOP: u32 = STACK - PAGE_SIZE + 0x18;

/// Rounds of a program.
const ROUNDS: u32 = 12;

/// One instruction of a row, or one that may stand in it, or one that ends it. It spoils these registers, and what is on the stack if
/// it may.
fn instruction(
    a: &mut CodeAssembler,
    random: &mut Random,
    spoiled: &[AsmRegister32],
    writes: bool,
) -> Result<(), IcedError> {
    let register = spoiled[random.below(spoiled.len() as u32) as usize];
    let depth = random.below(16) * 4;
    match random.below(if writes { 26 } else { 22 }) {
        0..5 => a.push(register),
        5 => a.push(random.below(1 << 20)),
        6..10 => a.pop(register),
        10 => a.mov(register, dword_ptr(esp + depth)),
        11 => a.lea(register, dword_ptr(esp + register * 4 + depth)),
        12 => a.cmp(register, dword_ptr(esp + depth)),
        13 => a.lea(register, dword_ptr(esp + depth)),
        14 => a.add(register, ebx),
        15 => a.nop(),
        16 => a.push(esp),
        17 => a.push(dword_ptr(esp + depth)),
        18 => a.push(cx),
        19 => a.push(ds),
        20 => a.mov(register, esp),
        21 => a.daa(),
        22 => a.mov(dword_ptr(esp + depth), register),
        23 => a.xadd(dword_ptr(esp + depth), register),
        24 => a.pop(dword_ptr(esp + depth)),
        _ => a.pop(dx),
    }
}

/// A loop with rows around a call, and in what it calls.
fn program(seed: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut random = Random(seed);
        let (mut again, mut function) = (a.create_label(), a.create_label());
        let mut over = a.create_label();
        a.mov(ebx, ROUNDS)?;
        a.set_label(&mut again)?;
        for _ in 0..12 {
            instruction(a, &mut random, &[eax, ecx, edx, ebp, esi, edi], true)?;
        }
        a.call(function)?;
        for _ in 0..6 {
            instruction(a, &mut random, &[eax, ecx, edx, ebp, esi, edi], true)?;
        }
        a.mov(esp, TOP)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(ebp)?;
        a.mov(ebp, esp)?;
        for _ in 0..6 {
            instruction(a, &mut random, &[eax, ecx, edx, esi, edi], false)?;
        }
        a.leave()?;
        a.ret_1(4 * random.below(3))?;
        a.set_label(&mut over)?;
        a.nop()
    }
}

fn start(seed: u32) -> Guest {
    let mut guest = Guest::user(program(seed));
    guest.provide(STACK - 2 * PAGE_SIZE, 1, true);
    guest.set_gpr(Gpr::Esp, TOP);
    guest
}

#[test]
fn a_stop_anywhere_shows_what_single_steps_show() {
    let (mut kicks, mut programs) = (0, 0);
    for seed in 0..30 {
        let pages = [TOP, TOP - PAGE_SIZE];
        let run =
            stops_show_what_steps_show(seed, || start(seed), &pages, TOP - 0x400..TOP + 0x400);
        kicks += run.kicks;
        programs += u32::from(run.exit == ENDED);
    }
    assert!(kicks > 20 && programs > 15, "{kicks} kicks, {programs} came to their end");
}

#[test]
fn what_rust_carries_out_in_a_row_finds_esp_where_it_is() {
    // A store through cs, and an operand of ten bytes at a 16-bit address, go through Rust.
    let mut guest = Guest::user(|a| {
        a.push(edx)?;
        a.db(&[0x2e, 0x89, 0x2b])?; // mov cs:[ebx], ebp
        a.push(eax)
    });
    guest.set_gpr(Gpr::Ebx, DATA);
    assert_eq!(guest.exception(), Exception::protection(0));
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (USER + 1, STACK - 4));

    let mut guest = Guest::user(|a| {
        a.fldz()?;
        a.fnop()?;
        a.push(edx)?;
        a.db(&[0x67, 0xdb, 0x38])?; // fstp tword [bx+si]
        a.push(eax)
    });
    guest.provide(0x3000, 1, true);
    guest.set_gpr(Gpr::Ebx, 0x3100);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Esp), STACK - 8);
}

#[test]
fn what_leaves_from_a_row_leaves_esp_where_it_is() {
    // The FPU isn't there.
    let mut guest = Guest::user(|a| {
        a.push(edx)?;
        a.fld1()?;
        a.push(eax)
    });
    guest.vcpu.cpu.set_fpu_trap(true);
    assert_eq!(guest.exception(), Exception::NO_FPU);
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (USER + 1, STACK - 4));

    // A store is watched.
    let mut guest = Guest::user(|a| {
        a.push(edx)?;
        a.mov(dword_ptr(DATA), 5)?; // 10 bytes
        a.push(eax)
    });
    guest.vcpu.set_watch(Some((GuestVirt(DATA), 4)));
    guest.vcpu.set_pending(true);
    assert_eq!(guest.run(), Exit::Watched);
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (USER + 11, STACK - 4));
    assert_eq!(guest.peek(DATA), 5);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Esp), STACK - 8);
}

#[test]
fn a_row_may_be_as_long_as_it_likes() {
    let mut guest = Guest::user(|a| {
        for number in 0..100 {
            a.push(number)?;
        }
        a.mov(eax, dword_ptr(esp))?;
        for _ in 0..100 {
            a.pop(edx)?;
        }
        a.mov(ecx, dword_ptr(esp - 100 * 4))
    });
    guest.finish();
    let seen = [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Esp].map(|register| guest.gpr(register));
    assert_eq!(seen, [99, 99, 0, STACK]);
}
