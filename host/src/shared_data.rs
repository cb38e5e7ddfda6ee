//! The Host's hold on `LguestData`, the structure in guest memory that both sides use.
//!
//! The guest says where it is by LGUEST_INIT, once; from then on its fields are read and written
//! in place, at `lguest_abi::lguest_data::offset`. That it lies in memory is found out at the
//! start, and memory never shrinks: so a failed access afterwards can't be, and reads as 0.

use crate::kill::Kill;
use lguest_abi::LguestData;
use lguest_abi::lguest_data::{HCALL_DONE, HCALL_RING_SIZE, IRQ_ENABLED, RESERVE_MEM, offset};
use lguest_switcher::GuestMemory;
use lguest_switcher::address::GuestPhys;
use std::ops::Range;

/// Bytes at the start of the structure that say whether interrupts may come: `irq_enabled` and
/// `blocked_interrupts`.
pub(crate) const INTERRUPT_BYTES: u32 = offset::BLOCKED_INTERRUPTS + 4 - offset::IRQ_ENABLED;

/// Where the structure is, and how far the Host has come with its ring.
#[derive(Clone, Debug)]
pub(crate) struct SharedData {
    at: GuestPhys,
    noirq: Range<u32>,
    cursor: u32,
}

impl SharedData {
    /// LGUEST_INIT: reads what the guest prepared, and writes what it waits for.
    pub(crate) fn start(
        memory: &GuestMemory,
        at: GuestPhys,
        id: u16,
        tsc_khz: u32,
    ) -> Result<Self, Kill> {
        let size = LguestData::SIZE as u32;
        if !memory.contains(at, size) {
            return Err(Kill::BadAddress { what: "LguestData", start: at, bytes: u64::from(size) });
        }
        let mut shared = Self { at, noirq: 0..0, cursor: 0 };
        shared.noirq =
            shared.word(memory, offset::NOIRQ_START)..shared.word(memory, offset::NOIRQ_END);
        shared.set_word(memory, offset::RESERVE_MEM, RESERVE_MEM);
        shared.set_word(memory, offset::TSC_KHZ, tsc_khz);
        shared.set(memory, offset::GUESTID, &id.to_le_bytes());
        Ok(shared)
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

    /// The ring entry that comes next, if it is pending: its four words.
    pub(crate) fn next_queued(&self, memory: &GuestMemory) -> Option<[u32; 4]> {
        let status =
            memory.read_u8(self.field(offset::HCALL_STATUS + self.cursor)).unwrap_or(HCALL_DONE);
        if status == HCALL_DONE {
            return None;
        }
        let entry = offset::HCALLS + self.cursor * 16;
        Some([0, 4, 8, 12].map(|word| self.word(memory, entry + word)))
    }

    /// Marks that entry done, and goes on to the one after it.
    pub(crate) fn finish_queued(&mut self, memory: &GuestMemory) {
        self.set(memory, offset::HCALL_STATUS + self.cursor, &[HCALL_DONE]);
        self.cursor = (self.cursor + 1) % HCALL_RING_SIZE as u32;
    }
}
