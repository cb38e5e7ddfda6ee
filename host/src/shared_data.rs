//! The Host's hold on `LguestData`, the structure in guest memory that both sides use.
//!
//! The guest says where it is by LGUEST_INIT, once; from then on its fields are read and written
//! in place, where its generation's `lguest_abi::lguest_data::Layout` has them. That it lies in memory is found out at the
//! start, and memory never shrinks: so a failed access afterwards can't be, and reads as 0.

use crate::kill::Kill;
use lguest_abi::Generation;
use lguest_abi::generation::CALL_WORDS;
use lguest_abi::lguest_data::{HCALL_DONE, HCALL_RING_SIZE, IRQ_ENABLED, Layout, NoIrq, offset};
use lguest_switcher::GuestMemory;
use lguest_switcher::address::GuestPhys;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes at the start of the structure that say whether interrupts may come: `irq_enabled` and
/// `blocked_interrupts`.
pub(crate) const INTERRUPT_BYTES: u32 = offset::BLOCKED_INTERRUPTS + 4 - offset::IRQ_ENABLED;

/// Where the structure is, and how far the Host has come with its ring.
#[derive(Clone, Debug)]
pub(crate) struct SharedData {
    at: GuestPhys,
    layout: &'static Layout,
    noirq: Range<u32>,
    cursor: u32,
}

/// What the Host has to say at LGUEST_INIT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) guest_id: u16,
    pub(crate) tsc_khz: u32,
    pub(crate) page_directory: GuestPhys,
    /// Bytes at the top of virtual addresses that are the Host's.
    pub(crate) reserve_mem: u32,
}

impl SharedData {
    /// LGUEST_INIT: reads what the guest prepared, and writes what it waits for.
    pub(crate) fn start(
        memory: &GuestMemory,
        at: GuestPhys,
        generation: Generation,
        kernel_address: u32,
        facts: Facts,
    ) -> Result<Self, Kill> {
        let layouts = generation.layouts();
        let size = layouts.iter().map(|layout| layout.size).min().unwrap_or(0);
        if !memory.contains(at, size) {
            return Err(Kill::BadAddress { what: "LguestData", start: at, bytes: u64::from(size) });
        }
        let with = |layout| Self { at, layout, noirq: 0..0, cursor: 0 };
        // ANCHOR: confirming_generation
        let fits = |shared: &Self| {
            memory.contains(at, shared.layout.size)
                && match shared.layout.kernel_address {
                    Some(field) => shared.word(memory, field) == kernel_address,
                    None => true,
                }
        };
        let found = layouts.iter().map(with).find(fits);
        let mut shared = found.ok_or(Kill::OtherGeneration {
            data: at,
            generation,
            expected: kernel_address,
        })?;
        // ANCHOR_END: confirming_generation
        shared.noirq = match shared.layout.noirq {
            NoIrq::Range(start, end) => shared.word(memory, start)..shared.word(memory, end),
            NoIrq::At(field) => {
                let instruction = shared.word(memory, field);
                instruction..instruction.saturating_add(1)
            }
        };
        shared.set_word(memory, shared.layout.tsc_khz, facts.tsc_khz);
        shared.set_reserve_mem(memory, facts.reserve_mem);
        if let Some(field) = shared.layout.guestid {
            shared.set(memory, field, &facts.guest_id.to_le_bytes());
        }
        if let Some(field) = shared.layout.pgdir {
            shared.set_word(memory, field, facts.page_directory.0);
        }
        shared.tell_time(memory);
        Ok(shared)
    }

    /// Says how many bytes at the top of virtual addresses are the Host's.
    pub(crate) fn set_reserve_mem(&self, memory: &GuestMemory, bytes: u32) {
        self.set_word(memory, self.layout.reserve_mem, bytes);
    }

    /// Tells the time of day, to guests that don't ask.
    pub(crate) fn tell_time(&self, memory: &GuestMemory) {
        if let Some(field) = self.layout.time {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&(now.as_secs() as u32).to_le_bytes());
            bytes[4..].copy_from_slice(&now.subsec_nanos().to_le_bytes());
            self.set(memory, field, &bytes);
        }
    }

    /// The vector that the guest wants for system calls, if it says so.
    pub(crate) fn system_call_vector(&self, memory: &GuestMemory) -> Option<u32> {
        self.layout.syscall_vec.map(|field| self.word(memory, field))
    }

    /// Says whether an interrupt waits only to be enabled, to guests that look.
    pub(crate) fn set_irq_pending(&self, memory: &GuestMemory, pending: bool) {
        let Some(field) = self.layout.irq_pending else { return };
        let value = if pending { IRQ_ENABLED } else { 0 };
        if self.word(memory, field) != value {
            self.set_word(memory, field, value);
        }
    }

    /// The one instruction that must not be interrupted, if that is what the guest has said.
    pub(crate) fn protected_instruction(&self) -> Option<u32> {
        matches!(self.layout.noirq, NoIrq::At(_)).then_some(self.noirq.start)
    }

    fn field(&self, offset: u32) -> GuestPhys {
        self.at.wrapping_add(offset)
    }

    fn word(&self, memory: &GuestMemory, offset: u32) -> u32 {
        memory.read_u32(self.field(offset)).unwrap_or(0)
    }

    fn set(&self, memory: &GuestMemory, offset: u32, bytes: &[u8]) {
        let written = memory.write(self.field(offset), bytes);
        debug_assert!(written.is_ok(), "LguestData was found to lie in memory");
    }

    fn set_word(&self, memory: &GuestMemory, offset: u32, value: u32) {
        let written = memory.write_u32(self.field(offset), value);
        debug_assert!(written.is_ok(), "LguestData was found to lie in memory");
    }

    /// First byte of the [`INTERRUPT_BYTES`].
    pub(crate) fn interrupt_words(&self) -> GuestPhys {
        self.field(offset::IRQ_ENABLED)
    }

    /// Bit 9, where eflags has IF, if interrupts are enabled; otherwise 0.
    pub(crate) fn irq_enabled(&self, memory: &GuestMemory) -> u32 {
        self.word(memory, offset::IRQ_ENABLED) & IRQ_ENABLED
    }

    /// Enables or disables interrupts, as the guest itself would.
    pub(crate) fn set_irq_enabled(&self, memory: &GuestMemory, on: bool) {
        self.set_word(memory, offset::IRQ_ENABLED, if on { IRQ_ENABLED } else { 0 });
    }

    /// The interrupts that are masked, a bit for each.
    pub(crate) fn blocked_interrupts(&self, memory: &GuestMemory) -> u32 {
        self.word(memory, offset::BLOCKED_INTERRUPTS)
    }

    /// Tells where the last page fault was.
    pub(crate) fn set_cr2(&self, memory: &GuestMemory, address: u32) {
        self.set_word(memory, offset::CR2, address);
    }

    /// The guest is where it must not be interrupted.
    pub(crate) fn is_noirq(&self, eip: u32) -> bool {
        self.noirq.contains(&eip)
    }

    /// Where the ring entry that comes next says whether it is pending: a byte that is [`HCALL_DONE`] if it isn't.
    pub(crate) fn next_status(&self) -> GuestPhys {
        self.field(self.layout.hcall_status + self.cursor)
    }

    /// The ring entry that comes next, if it is pending: its words.
    pub(crate) fn next_queued(&self, memory: &GuestMemory) -> Option<[u32; CALL_WORDS]> {
        if memory.read_u8(self.next_status()).unwrap_or(HCALL_DONE) == HCALL_DONE {
            return None;
        }
        let words = self.layout.entry_words;
        let entry = self.layout.hcalls + self.cursor * words * 4;
        let mut call = [0; CALL_WORDS];
        for (index, word) in (0..words).zip(&mut call) {
            *word = self.word(memory, entry + index * 4);
        }
        if self.layout.first_argument_last {
            call[1..words as usize].rotate_right(1);
        }
        Some(call)
    }

    /// Marks that entry done, and goes on to the one after it.
    pub(crate) fn finish_queued(&mut self, memory: &GuestMemory) {
        self.set(memory, self.layout.hcall_status + self.cursor, &[HCALL_DONE]);
        self.cursor = (self.cursor + 1) % HCALL_RING_SIZE as u32;
    }
}
