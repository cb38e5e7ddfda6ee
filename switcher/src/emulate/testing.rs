//! What the tests of this folder stand on: a processor without an engine, and memory whose pages
//! can be taken away.

use super::registers::GENERAL;
use super::{Bus, Outcome, emulate};
use crate::address::{GuestVirt, PAGE_SIZE};
use crate::cpu::{Cpu, Gpr, Segment, SegmentRegister};
use crate::exit::Exception;
use crate::frame::Frame;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::collections::{BTreeMap, BTreeSet};

/// All 4 GiB of linear memory, zero where nothing was written, and a descriptor table.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Memory {
    bytes: BTreeMap<u32, u8>,
    absent: BTreeSet<u32>,
    read_only: BTreeSet<u32>,
    /// Pages that show another page's frame.
    aliases: BTreeMap<u32, u32>,
    table: Vec<u64>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Takes away the page that holds `at`.
    pub(super) fn remove_page(&mut self, at: u32) {
        self.absent.insert(at / PAGE_SIZE);
    }

    /// Makes the page that holds `at` read-only.
    pub(super) fn protect_page(&mut self, at: u32) {
        self.read_only.insert(at / PAGE_SIZE);
    }

    /// Makes the page that holds `at` show the same bytes as the one that holds `onto`.
    pub(super) fn alias_page(&mut self, at: u32, onto: u32) {
        self.aliases.insert(at / PAGE_SIZE, onto / PAGE_SIZE);
    }

    /// Where the byte at `at` is kept.
    fn place(&self, at: u32) -> u32 {
        let page = at / PAGE_SIZE;
        self.aliases.get(&page).unwrap_or(&page) * PAGE_SIZE + at % PAGE_SIZE
    }

    /// Sets the descriptor that `selector` names.
    pub(super) fn describe(&mut self, selector: u16, descriptor: u64) {
        let index = usize::from(selector / 8);
        if self.table.len() <= index {
            self.table.resize(index + 1, 0);
        }
        self.table[index] = descriptor;
    }

    pub(super) fn store(&mut self, at: u32, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            let place = self.place(at.wrapping_add(index as u32));
            self.bytes.insert(place, byte);
        }
    }

    pub(super) fn byte(&self, at: u32) -> u8 {
        self.bytes.get(&self.place(at)).copied().unwrap_or(0)
    }

    pub(super) fn word(&self, at: u32) -> u16 {
        u16::from_le_bytes([0, 1].map(|index| self.byte(at.wrapping_add(index))))
    }

    pub(super) fn dword(&self, at: u32) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|index| self.byte(at.wrapping_add(index))))
    }

    fn check(&self, at: u32, len: u32, write: bool) -> Result<(), Exception> {
        for address in (0..len).map(|index| at.wrapping_add(index)) {
            let page = address / PAGE_SIZE;
            if self.absent.contains(&page) || (write && self.read_only.contains(&page)) {
                return Err(page_fault(address, write, !self.absent.contains(&page)));
            }
        }
        Ok(())
    }
}

impl Bus for Memory {
    fn read(&mut self, at: GuestVirt, into: &mut [u8]) -> Result<(), Exception> {
        self.check(at.0, into.len() as u32, false)?;
        for (index, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(at.0.wrapping_add(index as u32));
        }
        Ok(())
    }

    fn write(&mut self, at: GuestVirt, from: &[u8]) -> Result<(), Exception> {
        self.check(at.0, from.len() as u32, true)?;
        self.store(at.0, from);
        Ok(())
    }

    fn check_write(&mut self, at: GuestVirt, len: u32) -> Result<(), Exception> {
        self.check(at.0, len, true)
    }

    fn together(&mut self, _: GuestVirt, len: u32) -> u32 {
        len
    }

    fn is_hit(&self) -> bool {
        false
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, Exception> {
        Ok(self.table.get(usize::from(selector / 8)).copied())
    }

    fn is_settled(&self, _: u16) -> bool {
        false
    }

    fn mark_accessed(&mut self, selector: u16) -> Result<(), Exception> {
        if let Some(descriptor) = self.table.get_mut(usize::from(selector / 8)) {
            *descriptor |= 1 << 40;
        }
        Ok(())
    }
}

/// The fault that [`Memory`] raises.
pub(super) fn page_fault(address: u32, write: bool, present: bool) -> Exception {
    let error = u32::from(present) | u32::from(write) << 1;
    Exception { vector: 14, error: Some(error), address: GuestVirt(address) }
}

/// A flat processor at level 0, all registers zero, about to run at 0x1000.
pub(super) fn cpu() -> Cpu {
    let mut cpu = Cpu::new(Box::new(Frame::new()));
    cpu.set_eip(0x1000);
    cpu
}

/// A descriptor: base, raw limit, access byte, and flags (G and D/B as 8 and 4).
pub(super) fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let low = limit & 0xffff | base << 16;
    let high = base >> 16 & 0xff
        | u32::from(access) << 8
        | limit & 0xf_0000
        | u32::from(flags) << 20
        | base & 0xff00_0000;
    u64::from(low) | u64::from(high) << 32
}

/// What the descriptor table of [`memory`] holds, as selectors of level 0.
pub(super) mod selector {
    pub(crate) const CODE_0: u16 = 0x08;
    pub(crate) const DATA_0: u16 = 0x10;
    pub(crate) const CODE_1: u16 = 0x18;
    pub(crate) const DATA_1: u16 = 0x20;
    pub(crate) const CODE_3: u16 = 0x28;
    pub(crate) const DATA_3: u16 = 0x30;
    /// Conforming code of level 1.
    pub(crate) const CONFORMING_1: u16 = 0x38;
    /// Level 3, not present.
    pub(crate) const ABSENT_CODE: u16 = 0x40;
    pub(crate) const ABSENT_DATA: u16 = 0x48;
    /// Data of level 3 that can't be written.
    pub(crate) const CONSTANT: u16 = 0x50;
    /// Code of level 3 that can't be read.
    pub(crate) const EXECUTE_ONLY: u16 = 0x58;
    /// Data of level 3, 64 KiB at 0x20000, with the B bit clear.
    pub(crate) const NARROW_STACK: u16 = 0x60;
    /// Data of level 3, valid from 0x1000 up.
    pub(crate) const EXPAND_DOWN: u16 = 0x68;
    /// A 32-bit call gate of level 3.
    pub(crate) const GATE: u16 = 0x70;
    /// Code of level 0, 4 KiB long.
    pub(crate) const SHORT_CODE: u16 = 0x78;
    /// A busy 32-bit TSS of level 3, 104 bytes.
    pub(crate) const TASK: u16 = 0x80;
    /// Beyond the table.
    pub(crate) const BEYOND: u16 = 0x88;
}

/// Empty memory, with the descriptors of [`selector`].
pub(super) fn memory() -> Memory {
    let flat = |access| descriptor(0, 0xf_ffff, access, 0xc);
    let mut memory = Memory::new();
    for (selector, descriptor) in [
        (selector::CODE_0, flat(0x9b)),
        (selector::DATA_0, flat(0x93)),
        (selector::CODE_1, flat(0xbb)),
        (selector::DATA_1, flat(0xb3)),
        (selector::CODE_3, flat(0xfb)),
        (selector::DATA_3, flat(0xf3)),
        (selector::CONFORMING_1, flat(0xbf)),
        (selector::ABSENT_CODE, flat(0x7b)),
        (selector::ABSENT_DATA, flat(0x73)),
        (selector::CONSTANT, flat(0xf1)),
        (selector::EXECUTE_ONLY, flat(0xf9)),
        (selector::NARROW_STACK, descriptor(0x2_0000, 0xffff, 0xf3, 0)),
        (selector::EXPAND_DOWN, descriptor(0, 0, 0xf7, 0xc)),
        (selector::GATE, descriptor(0, 0x1000, 0xec, 0)),
        (selector::SHORT_CODE, descriptor(0, 0xfff, 0x9b, 4)),
        (selector::TASK, descriptor(0x5000, 103, 0xeb, 0)),
    ] {
        memory.describe(selector, descriptor);
    }
    memory
}

/// A flat processor at privilege level 0, 1 or 3, about to run at 0x1000 with its stack at 0x8000.
pub(super) fn cpu_at(level: u16) -> Cpu {
    let (code, data) = match level {
        0 => (selector::CODE_0, selector::DATA_0),
        1 => (selector::CODE_1, selector::DATA_1),
        _ => (selector::CODE_3, selector::DATA_3),
    };
    let mut cpu = cpu();
    cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(code | level));
    for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
        cpu.set_segment(register, Segment::flat_data(data | level));
    }
    cpu.set_gpr(Gpr::Esp, 0x8000);
    cpu
}

/// Everything of a processor that an instruction of this folder can change.
pub(super) type State = ([u32; 8], u32, u32, [Segment; 6], u8);

pub(super) fn state(cpu: &Cpu) -> State {
    use SegmentRegister as S;
    let segments = [S::Es, S::Cs, S::Ss, S::Ds, S::Fs, S::Gs].map(|register| cpu.segment(register));
    (GENERAL.map(|register| cpu.gpr(register)), cpu.eip(), cpu.eflags(), segments, cpu.cpl())
}

/// Runs `code` and demands that it raises `exception` and changes nothing.
pub(super) fn assert_fault(cpu: &mut Cpu, memory: &mut Memory, code: &[u8], exception: Exception) {
    let before = (state(cpu), memory.clone());
    assert_eq!(run(cpu, memory, code), Err(exception), "{code:02x?}");
    assert_eq!((state(cpu), memory.clone()), before, "{code:02x?}");
}

/// Runs `code` and demands that it succeeds.
pub(super) fn assert_done(cpu: &mut Cpu, memory: &mut Memory, code: &[u8]) {
    assert_eq!(run(cpu, memory, code), Ok(Outcome::Done), "{code:02x?}");
}

/// The instruction in `code`, as if fetched at `eip`.
pub(super) fn decode(eip: u32, code: &[u8]) -> Instruction {
    let instruction = Decoder::with_ip(32, code, eip.into(), DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{code:02x?}");
    assert_eq!(instruction.len(), code.len(), "{code:02x?}");
    instruction
}

/// Emulates the instruction in `code` at the current eip.
pub(super) fn run(cpu: &mut Cpu, memory: &mut Memory, code: &[u8]) -> Result<Outcome, Exception> {
    let instruction = decode(cpu.eip(), code);
    emulate(cpu, memory, &instruction)
}
