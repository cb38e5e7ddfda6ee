//! Short functions in place of the calls that lead to them: nobody can tell.

mod guest;

use guest::breakpoints::{ENDED, execute, hit, pass, set};
use guest::steps::stops_show_what_steps_show;
use guest::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Gpr, GuestVirt, PAGE_SIZE, View};

/// Rounds of a program.
const ROUNDS: u32 = 12;

/// One instruction of a leaf, as a rule.
fn instruction(
    a: &mut CodeAssembler,
    random: &mut Random,
    registers: &[AsmRegister32],
) -> Result<(), IcedError> {
    let register = registers[random.below(registers.len() as u32) as usize];
    let depth = random.below(5) * 4;
    match random.below(16) {
        0 => a.mov(register, dword_ptr(esp)),
        1..4 => a.mov(register, dword_ptr(esp + depth)),
        4 => a.add(register, dword_ptr(esp + depth)),
        5 => a.lea(register, dword_ptr(esp + register * 2 + depth)),
        6 => a.mov(register, dword_ptr(DATA + depth)),
        7 => a.xor(register, dword_ptr(ebp + depth)),
        8 => a.movzx(register, byte_ptr(ebp + random.below(64))),
        9 => a.add(register, random.below(1 << 20)),
        10 => a.rol(register, 3),
        11 => a.adc(register, ebx),
        12 => a.nop(),
        13 => a.cmove(register, ebx),
        14 => a.imul_2(register, ebp),
        _ => a.mov(ah, dl),
    }
}

/// A leaf that branches: to a `ret`, or to a function that is none.
fn function(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let registers = [eax, ecx, edx, esi, edi];
    let mut elsewhere = a.create_label();
    for _ in 0..random.below(5) {
        instruction(a, random, &registers)?;
    }
    for _ in 0..random.below(3) {
        a.test(eax, 1 << random.below(20))?;
        if random.below(2) == 0 {
            a.jz(elsewhere)?
        } else {
            a.jnz(elsewhere)?
        }
        instruction(a, random, &registers)?;
    }
    let (calls, dropped) = (random.below(2) == 0, random.below(3) * 4);
    if calls {
        a.push(edx)?;
        instruction(a, random, &registers)?;
        a.pop(ecx)?;
    }
    a.ret_1(dropped)?;
    a.set_label(&mut elsewhere)?;
    for _ in 0..random.below(5) {
        instruction(a, random, &registers)?;
    }
    if random.below(2) == 0 {
        a.push(eax)?;
        a.pop(edx)?;
    }
    a.ret_1(dropped)
}

/// A loop that calls three functions, some with arguments.
fn program(seed: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut random = Random(seed);
        let mut functions = [a.create_label(), a.create_label(), a.create_label()];
        let (mut again, mut over) = (a.create_label(), a.create_label());
        a.mov(ebx, ROUNDS)?;
        a.mov(ebp, DATA + 0x40)?;
        a.set_label(&mut again)?;
        for at in 0..6 {
            for _ in 0..random.below(3) {
                a.push(eax)?;
            }
            a.add(eax, ebx)?;
            a.inc(ebp)?; // so that no two calls show the same
            a.call(functions[at % 3])?;
            a.mov(dword_ptr(DATA + 0x80 + at as u32 * 4), eax)?;
        }
        a.mov(esp, STACK - 0x40)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.jmp(over)?;
        for label in &mut functions {
            a.set_label(label)?;
            function(a, &mut random)?;
        }
        a.set_label(&mut over)?;
        a.nop()
    }
}

#[test]
fn a_stop_anywhere_shows_what_single_steps_show() {
    let (mut kicks, mut programs) = (0, 0);
    for seed in 0..40 {
        let start = || {
            let mut guest = Guest::user(program(seed));
            guest.set_gpr(Gpr::Esp, STACK - 0x40);
            guest.poke(DATA, &[1, 2, 3, 4, 5, 6, 7, 8].repeat(16));
            guest
        };
        let pages = [DATA, STACK - PAGE_SIZE];
        let run = stops_show_what_steps_show(seed, start, &pages, STACK - 0x200..STACK);
        kicks += run.kicks;
        programs += u32::from(run.exit == ENDED);
    }
    assert!(kicks > 20 && programs > 30, "{kicks} kicks, {programs} came to their end");
}

/// A program that calls a leaf once, at [`LEAF`].
fn calling(
    leaf: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    |a| {
        let (mut there, mut over) = (a.create_label(), a.create_label());
        a.call(there)?; // 5 bytes
        a.jmp(over)?; // 2 bytes
        a.set_label(&mut there)?;
        leaf(a)?;
        a.set_label(&mut over)?;
        a.nop()
    }
}

const LEAF: u32 = USER + 7;

/// A leaf that reads the last of the user's pages of data, and what is behind it.
fn reader(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(DATA + 3 * PAGE_SIZE))?; // 5 bytes
    a.ret()?;
    a.mov(eax, 7) // never meant to be reached
}

#[test]
fn a_fault_in_a_leaf_is_a_fault_in_a_function() {
    let mut guest = Guest::user(calling(reader));
    let page = guest.tables.pages.remove(&(DATA / PAGE_SIZE + 3)).expect("a page of data");
    assert_eq!(guest.exception(), page_fault(DATA + 3 * PAGE_SIZE, 4));
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (LEAF, STACK - 4));
    assert_eq!(guest.peek(STACK - 4), USER + 5);
    guest.tables.pages.insert(DATA / PAGE_SIZE + 3, page);
    guest.finish();

    let mut guest = Guest::user(calling(|a| {
        a.div(ecx)?;
        a.ret()
    }));
    guest.set_gpr(Gpr::Ecx, 0);
    assert_eq!(guest.exception(), Exception::DIVIDE);
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (LEAF, STACK - 4));
}

#[test]
fn without_fpu_a_leaf_that_uses_it_doesnt_run() {
    let mut guest = Guest::user(calling(|a| {
        a.inc(eax)?;
        a.fld1()?;
        a.ret()
    }));
    guest.vcpu.cpu.set_fpu_trap(true);
    assert_eq!(guest.exception(), Exception::NO_FPU);
    assert_eq!((guest.vcpu.cpu.eip(), guest.gpr(Gpr::Esp)), (LEAF + 1, STACK - 4));
}

#[test]
fn a_return_address_that_a_device_changes_counts() {
    let mut guest = Guest::user(calling(reader));
    let (memory, slot) = (guest.memory.clone(), guest.phys(STACK - 4));
    guest.tables.meanwhile = Some(Box::new(move |address| {
        if address == GuestVirt(DATA + 3 * PAGE_SIZE) {
            memory.write(slot, &(LEAF + 6).to_le_bytes()).expect("within memory");
        }
    }));
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 7);
}

/// Where the program is that calls a leaf at [`USER`]: behind it, so that its own unit doesn't reach as far.
const CALLER: u32 = USER + 0x200;

/// A program that adds up, in ebx, what a leaf gives in three rounds.
fn adding(value: u32) -> Guest {
    let mut guest = Guest::user(constant(value));
    guest.assemble(CALLER, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 3)?;
        a.set_label(&mut again)?;
        a.call(u64::from(USER))?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.start_user(CALLER);
    guest.set_gpr(Gpr::Ebx, 0);
    guest.finish();
    guest
}

fn constant(value: u32) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        a.mov(eax, value)?; // 5 bytes
        a.ret()
    }
}

#[test]
fn a_leaf_that_a_device_writes_to_is_new_for_its_callers() {
    let mut guest = adding(5);
    guest.assemble(USER, constant(7));
    guest.start_user(CALLER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 3 * 5 + 3 * 7);
}

#[test]
fn so_is_one_that_becomes_longer_than_a_leaf() {
    let mut guest = adding(5);
    guest.assemble(USER, |a| {
        for _ in 0..100 {
            a.lea(eax, dword_ptr(eax + 1))?;
        }
        a.ret()
    });
    guest.set_gpr(Gpr::Eax, 0);
    guest.start_user(CALLER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 3 * 5 + 100 + 200 + 300);
}

#[test]
fn a_breakpoint_in_a_leaf_is_met() {
    let mut guest = adding(5);
    for at in [USER, USER + 5] {
        set(&mut guest, [execute(at)]);
        guest.start_user(CALLER);
        for _ in 0..3 {
            assert_eq!((hit(&mut guest, 1), guest.gpr(Gpr::Esp)), (at, STACK - 4));
            pass(&mut guest);
        }
        guest.finish();
    }
}

#[test]
fn kernel_code_reaches_the_users_memory_from_a_leaf() {
    let mut guest = Guest::kernel(|a| {
        let (mut leaf, mut again, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 3)?;
        a.set_label(&mut again)?;
        a.call(leaf)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.jmp(over)?;
        a.set_label(&mut leaf)?;
        a.add(ebx, dword_ptr(DATA))?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    });
    guest.poke(DATA, &5_u32.to_le_bytes());
    guest.set_gpr(Gpr::Ebx, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 15);
    guest.vcpu.unmap(View::AllUsers, GuestVirt(DATA), 1);
    guest.start_kernel(KERNEL);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ebx), 30);
}

#[test]
fn a_leaf_may_drop_as_much_as_it_likes() {
    for dropped in [0, 4, 32, 36, 124, 128, 200, 255, 256, 0x7ffc] {
        let mut guest = Guest::user(calling(|a| a.ret_1(dropped)));
        guest.set_gpr(Gpr::Esp, STACK - 0x800);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Esp), STACK - 0x800 + dropped);
    }
}

#[test]
fn a_leaf_that_goes_on_in_the_next_page_is_none() {
    let mut guest = Guest::user(|a| {
        a.add(eax, 1000)?;
        a.ret()
    });
    guest.assemble(USER + 0x100, |a| a.call(u64::from(USER + 0xff0)));
    guest.assemble(USER + 0xff0, |a| {
        for _ in 0..5 {
            a.lea(eax, dword_ptr(eax + 1))?;
        }
        a.inc(eax)?;
        a.add(eax, 100)?; // in the next page
        a.ret()
    });
    guest.start_user(USER + 0x100);
    guest.set_gpr(Gpr::Eax, 0);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 106);
}
