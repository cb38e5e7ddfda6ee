//! A kernel of a few instructions, from its first one to user mode and back: everything together, as the
//! manual's "Initialization Overview" has it (SDM volume 3).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lguest_processor::bare::{Bare, Board, Stop};
use lguest_switcher::{GuestMemory, GuestPhys};
use std::sync::Arc;

/// Where things are in memory.
const GDT: u32 = 0x1000;
const IDT: u32 = 0x2000;
const TASK: u32 = 0x3000;
const DIRECTORY: u32 = 0x4000;
const CODE: u32 = 0x1_0000;
const HANDLER: u32 = 0x1_1000;
const STACK: u32 = 0x2_0000;
const TRAP_STACK: u32 = 0x2_1000;
const USER_STACK: u32 = 0x2_2000;
/// A page of 4 MiB beside the first one, which shows the same memory.
const ALIAS: u32 = 0x40_0000;

const KERNEL_CODE: u32 = 0x08;
const KERNEL_DATA: u32 = 0x10;
const USER_CODE: u32 = 0x1b;
const USER_DATA: u32 = 0x23;
const TASK_SELECTOR: u32 = 0x28;
const SYSTEM_CALL: u32 = 0x80;
const TIMER: u8 = 0x20;
const PORT: u32 = 0xe9;

/// A board that keeps what is written to its port, and interrupts once afterwards.
#[derive(Default)]
struct Line {
    written: Vec<u8>,
    interrupts: bool,
}

impl Board for Line {
    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        assert_eq!((u32::from(port), bytes), (PORT, 1));
        self.written.push(value as u8);
        self.interrupts = true;
    }

    fn is_interrupting(&self) -> bool {
        self.interrupts
    }

    fn interrupt(&mut self) -> Option<u8> {
        std::mem::take(&mut self.interrupts).then_some(TIMER)
    }
}

fn store(memory: &GuestMemory, at: u32, bytes: &[u8]) {
    memory.write(GuestPhys(at), bytes).expect("within memory");
}

fn assemble(
    memory: &GuestMemory,
    at: u32,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut assembler = CodeAssembler::new(32).expect("32 bits are known");
    program(&mut assembler).expect("valid instructions");
    store(memory, at, &assembler.assemble(at.into()).expect("a valid program"));
}

/// A 32-bit gate to `handler`, of a level and a type.
fn gate(handler: u32, level: u32, kind: u32) -> u64 {
    let (low, high) = (KERNEL_CODE << 16 | handler & 0xffff, handler & 0xffff_0000);
    u64::from(high | 0x8000 | level << 13 | kind << 8) << 32 | u64::from(low)
}

fn tables(memory: &GuestMemory) {
    let task = 0x0000_8900_0000_0067 | u64::from(TASK) << 16;
    let descriptors = [
        0,
        0x00cf_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00cf_fa00_0000_ffff,
        0x00cf_f200_0000_ffff,
        task,
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        store(memory, GDT + index * 8, &descriptor.to_le_bytes());
    }
    for (vector, level, kind) in [(14, 0, 0xe), (u32::from(TIMER), 0, 0xe), (SYSTEM_CALL, 3, 0xf)] {
        let gate = gate(HANDLER + vector * 16, level, kind);
        store(memory, IDT + vector * 8, &gate.to_le_bytes());
    }
    store(memory, TASK + 4, &TRAP_STACK.to_le_bytes());
    store(memory, TASK + 8, &KERNEL_DATA.to_le_bytes());
    // Both entries: present, writable, for users, 4 MiB, at 0.
    store(memory, DIRECTORY, &0x87u32.to_le_bytes());
    store(memory, DIRECTORY + 4, &0x87u32.to_le_bytes());
    // What lgdt and lidt read.
    store(memory, 0x500, &[0x2f, 0, 0, 0x10, 0, 0, 0xff, 7, 0, 0x20, 0, 0]);
}

fn code(memory: &GuestMemory) {
    assemble(memory, CODE, |a| {
        a.lgdt(ptr(0x500))?;
        a.lidt(ptr(0x506))?;
        a.mov(eax, TASK_SELECTOR)?;
        a.ltr(ax)?;
        a.mov(eax, 0x10)?; // PSE
        a.mov(cr4, eax)?;
        a.mov(eax, DIRECTORY)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8001_0000u32)?; // PG, WP
        a.mov(cr0, eax)?;
        for word in [USER_DATA, USER_STACK, 0x202, USER_CODE] {
            a.push(word)?;
        }
        a.push(CODE + 0x800)?;
        a.iretd()
    });
    // User mode: loads of segments, a system call, a fault.
    assemble(memory, CODE + 0x800, |a| {
        a.mov(eax, USER_DATA)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ebx, dword_ptr(ALIAS + GDT + 8))?;
        a.int(SYSTEM_CALL)?;
        a.mov(esi, dword_ptr(0x8000_0000u32))
    });
    assemble(memory, HANDLER + SYSTEM_CALL * 16, |a| {
        a.mov(edx, PORT)?;
        a.out(dx, al)?;
        a.iretd()
    });
    assemble(memory, HANDLER + u32::from(TIMER) * 16, |a| {
        a.inc(edi)?;
        a.iretd()
    });
    assemble(memory, HANDLER + 14 * 16, |a| {
        a.pop(ecx)?;
        a.mov(eax, cr2)?;
        a.hlt()
    });
}

#[test]
fn a_kernel_starts_runs_a_program_and_stops() {
    use lguest_switcher::Gpr::{Eax, Ebx, Ecx, Edi, Esp};
    let memory = Arc::new(GuestMemory::new(4 << 20).expect("memory"));
    tables(&memory);
    code(&memory);
    let mut bare = Bare::new(Arc::clone(&memory), Line::default()).expect("a processor");
    bare.vcpu.cpu.set_eip(CODE);
    bare.vcpu.cpu.set_gpr(Esp, STACK);
    assert_eq!(bare.run(), Stop::Halted);

    let cpu = &bare.vcpu.cpu;
    assert_eq!(bare.system.board.written, [USER_DATA as u8], "the system call had its argument");
    assert_eq!(cpu.gpr(Edi), 1, "one interrupt, when the system call had returned or before");
    assert_eq!((cpu.gpr(Ecx), cpu.gpr(Eax)), (4, 0x8000_0000), "a read at level 3, nothing there");
    assert_eq!((cpu.cpl(), cpu.gpr(Esp)), (0, TRAP_STACK - 20));
    assert_eq!(cpu.gpr(Ebx), 0x0000_ffff, "the other 4 MiB page shows the same");
    // What was used is marked: segments accessed, the task busy, pages accessed, and dirty where written.
    let entry = |at| memory.read_u32(GuestPhys(at)).expect("within memory");
    for (selector, access) in [(0x0c, 0x9b), (0x14, 0x93), (0x1c, 0xfb), (0x24, 0xf3), (0x2c, 0x8b)]
    {
        assert_eq!(entry(GDT + selector) >> 8 & 0xff, access, "descriptor at {selector:#x}");
    }
    assert_eq!((entry(DIRECTORY), entry(DIRECTORY + 4)), (0xe7, 0xa7));
}

#[test]
fn without_handlers_a_fault_is_a_shutdown() {
    let memory = Arc::new(GuestMemory::new(1 << 20).expect("memory"));
    assemble(&memory, CODE, |a| {
        a.xor(esp, esp)?;
        a.ud2()
    });
    let mut bare = Bare::new(memory, Line::default()).expect("a processor");
    bare.system.registers.idt.limit = 0;
    bare.vcpu.cpu.set_eip(CODE);
    let stop = bare.run();
    assert!(matches!(stop, Stop::Shutdown { exception } if exception.vector == 13), "{stop:?}");
}
