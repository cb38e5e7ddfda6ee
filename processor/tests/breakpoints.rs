//! Breakpoints that privileged instructions hit, by what they do to memory and ports (SDM volume 3, section "Debug
//! Exception (#DB)").

use lguest_processor::bare::{Bare, Board, Event, Left, Source};
use lguest_switcher::{Gpr, GuestMemory, GuestPhys};
use std::sync::Arc;

const CODE: u32 = 0x1000;
const STACK: u32 = 0x8000;

struct Empty;

impl Board for Empty {}

/// A processor at `code`, with breakpoint 2 of this condition (R/W in bits 0 and 1, LEN in 2 and 3) at `address`.
fn bare(code: &[u8], address: u32, condition: u32) -> Bare<Empty> {
    let memory = Arc::new(GuestMemory::new(1 << 16).expect("memory"));
    memory.write(GuestPhys(CODE), code).expect("within memory");
    let mut bare = Bare::new(memory, Empty).expect("a processor");
    bare.vcpu.cpu.set_eip(CODE);
    bare.vcpu.cpu.set_gpr(Gpr::Esp, STACK);
    bare.vcpu.cpu.set_gpr(Gpr::Edx, 0x60);
    let registers = &mut bare.system.registers;
    registers.cr4 |= 8; // DE
    registers.set_debug(2, address).expect("a register");
    registers.set_debug(7, 1 << 4 | condition << 24).expect("a register");
    bare.vcpu.set_breakpoints(registers.breakpoints());
    bare
}

/// Whether one instruction runs into the breakpoint.
fn hits(code: &[u8], address: u32, condition: u32) -> bool {
    let mut bare = bare(code, address, condition);
    let left = bare.execute();
    assert_eq!(bare.vcpu.cpu.eip(), CODE + code.len() as u32, "it is a trap");
    match left {
        Left::Going => false,
        Left::Raised(Event { vector: 1, source: Source::Debug { reasons: 4 }, .. }) => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory() {
    const WRITE: u32 = 0b1101;
    const ACCESS: u32 = 0b1111;
    let (pushfd, popfd, sgdt) = (&[0x9c][..], &[0x9d][..], &[0x0f, 0x01, 0x05, 0, 0x70, 0, 0][..]);
    for (code, address, condition, hit) in [
        (pushfd, STACK - 4, WRITE, true),
        (pushfd, STACK, ACCESS, false),
        (popfd, STACK, ACCESS, true),
        (popfd, STACK, WRITE, false),
        (popfd, STACK + 4, ACCESS, false),
        (sgdt, 0x7000, WRITE, true),
        (sgdt, 0x7004, WRITE, true),
        (sgdt, 0x7008, WRITE, false),
    ] {
        assert_eq!(hits(code, address, condition), hit, "{code:x?} {address:#x} {condition:#b}");
    }
}

#[test]
fn ports() {
    const PORT: u32 = 2;
    let (in_al_imm, out_dx_eax, outsb) = (&[0xe4, 0x61][..], &[0xef][..], &[0x6e][..]);
    for (code, address, length, hit) in [
        (in_al_imm, 0x61, 0, true),
        (in_al_imm, 0x60, 0, false),
        (in_al_imm, 0x60, 1, true),
        (out_dx_eax, 0x63, 0, true),
        (out_dx_eax, 0x64, 0, false),
        (outsb, 0x60, 0, true),
    ] {
        assert_eq!(hits(code, address, PORT | length << 2), hit, "{code:x?} {address:#x} {length}");
    }
}

#[test]
fn without_de_there_are_none_on_ports() {
    let mut bare = bare(&[0xee], 0x60, 2);
    bare.system.registers.cr4 = 0;
    assert_eq!(bare.execute(), Left::Going);
}

#[test]
fn a_repeated_outs_stops_behind_the_element_that_hit() {
    let mut bare = bare(&[0xf3, 0x6e], 0x60, 2);
    bare.vcpu.cpu.set_gpr(Gpr::Ecx, 5);
    assert!(matches!(bare.execute(), Left::Raised(_)));
    assert_eq!((bare.vcpu.cpu.gpr(Gpr::Ecx), bare.vcpu.cpu.eip()), (4, CODE));
}

#[test]
fn moving_to_a_debug_register_sets_the_breakpoint() {
    // mov dr7, eax; nop
    let mut bare = bare(&[0x0f, 0x23, 0xf8, 0x90], CODE + 3, 0);
    bare.system.registers.set_debug(7, 0).expect("a register");
    bare.vcpu.set_breakpoints(bare.system.registers.breakpoints());
    bare.vcpu.cpu.set_gpr(Gpr::Eax, 1 << 4);
    assert_eq!(bare.execute(), Left::Going);
    let left = bare.execute();
    assert!(matches!(left, Left::Raised(Event { vector: 1, .. })), "{left:?}");
    assert_eq!(bare.vcpu.cpu.eip(), CODE + 3, "before the instruction");
}
