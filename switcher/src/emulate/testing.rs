//! What the tests of this folder stand on: a processor without an engine, and memory whose pages
//! can be taken away.

use super::{Bus, Outcome, emulate};
use crate::address::{GuestVirt, PAGE_SIZE};
use crate::cpu::Cpu;
use crate::exit::Exception;
use crate::frame::{BOUNCE_BYTES, Frame, SegmentSlot};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU32;

/// All 4 GiB of linear memory, zero where nothing was written, and a descriptor table.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Memory {
    bytes: BTreeMap<u32, u8>,
    absent: BTreeSet<u32>,
    read_only: BTreeSet<u32>,
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
            self.bytes.insert(at.wrapping_add(index as u32), byte);
        }
    }

    pub(super) fn byte(&self, at: u32) -> u8 {
        self.bytes.get(&at).copied().unwrap_or(0)
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

    fn descriptor(&mut self, selector: u16) -> Option<u64> {
        self.table.get(usize::from(selector / 8)).copied()
    }
}

/// The fault that [`Memory`] raises.
pub(super) fn page_fault(address: u32, write: bool, present: bool) -> Exception {
    let error = u32::from(present) | u32::from(write) << 1;
    Exception {
        vector: 14,
        error: Some(error),
        address: GuestVirt(address),
    }
}

/// A flat processor at level 0, all registers zero, about to run at 0x1000.
pub(super) fn cpu() -> Cpu {
    let mut cpu = Cpu::new(Box::new(frame()));
    cpu.set_eip(0x1000);
    cpu
}

/// A frame that no engine runs on.
fn frame() -> Frame {
    Frame {
        gpr: [0; 8],
        eip: 0,
        flags: 0,
        reason: 0,
        detail: 0,
        fpu_trap: 0,
        pending: 0,
        kicked: AtomicU32::new(0),
        mxcsr: 0x1f80,
        window: 0,
        table: 0,
        code: 0,
        host_rsp: 0,
        exit: 0,
        bounce_bit: 0,
        padding: 0,
        segments: [SegmentSlot {
            base: 0,
            padding: 0,
            window: 0,
        }; 6],
        pick: [0; 256],
        xmm: [[0; 16]; 8],
        bounce: [0; BOUNCE_BYTES],
        fault_address: 0,
        fault_error: 0,
        fault_trap: 0,
        fault_rip: 0,
    }
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
