//! Guests of a few instructions.
//!
//! A kernel with a prompt shows that everything works together; a guest of ten instructions shows
//! what one thing does. These are assembled in the test that runs them.

use crate::elf_file::{PAGE_OFFSET, Segment, elf};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, ax, eax, ebx, ecx, edx, esp, ptr, word_ptr};
use lguest_abi::address::Phys;
use lguest_abi::boot::SIGNATURE;
use lguest_abi::device::irq_of;
use lguest_abi::dma::offset;
use lguest_abi::hypercall::{Hypercall, POWER_OFF_MESSAGE, VECTOR};
use lguest_abi::lguest_data::offset::HCALL_STATUS;
use lguest_abi::lguest_data::{HCALL_DONE, HCALL_RING_SIZE};
use lguest_abi::segments::KERNEL_CS;
use lguest_abi::traps::FIRST_IRQ;

/// Where their code begins.
pub(crate) const CODE: u32 = 0x10_0000;

/// Where the handler of the console's interrupt begins, if there is one.
const HANDLER: u32 = 0x18_0000;

/// Where their text and other constants lie.
pub(crate) const DATA: u32 = 0x20_0000;

/// Free memory: the page shared with the Host, the stack's top, buffers, and what describes them.
const LGUEST_DATA: u32 = 0x3000;
const STACK: u32 = 0x5000;
const INPUT: u32 = 0x6000;
const INPUT_DMA: u32 = 0x7000;
const OUTPUT_DMA: u32 = 0x7100;
const INPUT_BYTES: u32 = 256;

type Assembled = Result<(), IcedError>;

/// The ELF file of a guest that runs `code` and finds `data` at [`DATA`].
pub(crate) fn guest(data: &[u8], code: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Vec<u8> {
    elf(&[entry(code), Segment::at(DATA, data)])
}

/// The segment that a guest begins in.
fn entry(code: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Segment {
    let code = assembled(CODE + SIGNATURE.len() as u32, code);
    Segment::at(CODE, &[&SIGNATURE[..], &code].concat())
}

fn assembled(phys: u32, code: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).unwrap();
    code(&mut assembler).unwrap();
    assembler.assemble(u64::from(PAGE_OFFSET + phys)).unwrap()
}

/// Makes one hypercall.
pub(crate) fn call(a: &mut CodeAssembler, call: Hypercall) -> Assembled {
    let [number, first, second, third, _] = call.encode();
    a.mov(eax, number)?;
    a.mov(edx, first)?;
    a.mov(ebx, second)?;
    a.mov(ecx, third)?;
    a.int(i32::from(VECTOR))
}

/// The first call of every guest. Its ring of calls is empty.
pub(crate) fn init(a: &mut CodeAssembler) -> Assembled {
    let done = u32::from_le_bytes([HCALL_DONE; 4]);
    for slots in (0..HCALL_RING_SIZE as u32).step_by(4) {
        a.mov(eax, done)?;
        a.mov(ptr(PAGE_OFFSET + LGUEST_DATA + HCALL_STATUS + slots), eax)?;
    }
    call(a, Hypercall::LguestInit { data: Phys(LGUEST_DATA) })
}

/// Ends the guest with the message at [`DATA`].
pub(crate) fn crash(a: &mut CodeAssembler) -> Assembled {
    call(a, Hypercall::Crash { message: Phys(DATA) })
}

/// A guest that gives up with this message.
pub(crate) fn crashing(message: &str) -> Vec<u8> {
    guest(&[message.as_bytes(), b"\0"].concat(), |a| {
        init(a)?;
        crash(a)
    })
}

/// A guest that powers off at once.
pub(crate) fn power_off() -> Vec<u8> {
    crashing(POWER_OFF_MESSAGE)
}

/// A guest that computes and never ends.
pub(crate) fn spinning() -> Vec<u8> {
    guest(b"", |a| {
        init(a)?;
        say_ready(a)?;
        let mut again: CodeLabel = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    })
}

/// A guest that sleeps and is never woken.
pub(crate) fn sleeping() -> Vec<u8> {
    guest(b"", |a| {
        init(a)?;
        say_ready(a)?;
        sleep(a)
    })
}

/// A guest that fills its screen for ever.
pub(crate) fn chattering() -> Vec<u8> {
    guest(b"", |a| {
        init(a)?;
        let mut again: CodeLabel = a.create_label();
        a.set_label(&mut again)?;
        say_ready(a)?;
        a.jmp(again)
    })
}

/// What [`say_ready`] says.
pub(crate) const READY: &[u8] = b"ready\n";

/// Prints [`READY`], so that a test knows how far the guest is.
fn say_ready(a: &mut CodeAssembler) -> Assembled {
    for (at, &byte) in (INPUT..).zip(READY) {
        a.mov(eax, u32::from(byte))?;
        a.mov(ptr(PAGE_OFFSET + at), eax)?;
    }
    describe(a, OUTPUT_DMA, INPUT, READY.len() as u32)?;
    call(a, Hypercall::SendDma { key: Phys(0), dma: Phys(OUTPUT_DMA) })
}

/// A guest that prints what it reads, and powers off at the end of its input.
pub(crate) fn echoing() -> Vec<u8> {
    let code = entry(|a| {
        a.mov(esp, PAGE_OFFSET + STACK)?;
        init(a)?;
        let irq = irq_of(0);
        let handler = PAGE_OFFSET + HANDLER;
        let vector = u32::from(FIRST_IRQ + irq);
        let low = u32::from(KERNEL_CS) << 16 | handler & 0xffff;
        let high = handler & 0xffff_0000 | 0x8e00;
        call(a, Hypercall::LoadIdtEntry { vector, low, high })?;
        describe(a, INPUT_DMA, INPUT, INPUT_BYTES)?;
        let array = Phys(INPUT_DMA);
        call(a, Hypercall::BindDma { key: Phys(0), array, count: 1, irq })?;
        sleep(a)
    });
    let handler = assembled(HANDLER, |a| {
        let mut end = a.create_label();
        let used = PAGE_OFFSET + INPUT_DMA + offset::USED_LEN;
        describe(a, OUTPUT_DMA, INPUT, 0)?;
        a.mov(eax, ptr(used))?;
        a.test(eax, eax)?;
        a.jz(end)?;
        a.mov(word_ptr(PAGE_OFFSET + OUTPUT_DMA + offset::LEN), ax)?;
        call(a, Hypercall::SendDma { key: Phys(0), dma: Phys(OUTPUT_DMA) })?;
        a.xor(eax, eax)?;
        a.mov(ptr(used), eax)?;
        // Nobody goes back to what was interrupted, which was asleep.
        a.mov(esp, PAGE_OFFSET + STACK)?;
        sleep(a)?;
        a.set_label(&mut end)?;
        crash(a)
    });
    let goodbye = [POWER_OFF_MESSAGE.as_bytes(), b"\0"].concat();
    elf(&[code, Segment::at(HANDLER, &handler), Segment::at(DATA, &goodbye)])
}

/// Writes a Dma with one section.
fn describe(a: &mut CodeAssembler, dma: u32, start: u32, len: u32) -> Assembled {
    for (field, value) in [(offset::USED_LEN, 0), (offset::ADDR, start), (offset::LEN, len)] {
        a.mov(eax, value)?;
        a.mov(ptr(PAGE_OFFSET + dma + field), eax)?;
    }
    Ok(())
}

/// Waits for interrupts, for ever.
pub(crate) fn sleep(a: &mut CodeAssembler) -> Assembled {
    let mut again: CodeLabel = a.create_label();
    a.set_label(&mut again)?;
    call(a, Hypercall::Halt)?;
    a.jmp(again)
}
