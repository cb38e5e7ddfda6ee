//! What the guest's processor does when something happens: the way into a handler.
//!
//! Traps come from what the guest's own code did; interrupts from devices, and only while the
//! guest lets them. Both end in the same motion, in `delivery.rs`. This file keeps what the guest said
//! beforehand: a gate for each vector, and the stack to use when user code is interrupted; and
//! what devices said: which interrupts are pending.

use crate::kill::Kill;
use lguest_abi::traps::{FIRST_IRQ, GATE_INTERRUPT, GATE_TRAP, IRQS, SYSCALL, is_settable};
use lguest_processor::TableRegister;
use lguest_switcher::Kicker;
use lguest_switcher::address::GuestVirt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Vectors with a place of their own: the traps and the interrupts.
const LOW_VECTORS: usize = (FIRST_IRQ + IRQS) as usize;

/// What is kept of an IDT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gate {
    /// Where the handler starts.
    pub(crate) handler: u32,
    /// Who may come here by `int`: this level and below it.
    pub(crate) level: u8,
    /// Interrupts are disabled on the way in.
    pub(crate) disables: bool,
}

impl Gate {
    /// The gate that the two words of an IDT entry describe (SDM volume 3, section "IDT
    /// Descriptors"); `None` when it isn't present.
    ///
    /// # Errors
    /// It is present, and neither an interrupt nor a trap gate.
    pub(crate) fn new(vector: u32, low: u32, high: u32) -> Result<Option<Self>, Kill> {
        const PRESENT: u32 = 1 << 15;
        if high & PRESENT == 0 {
            return Ok(None);
        }
        let disables = match (high >> 8 & 0xf) as u8 {
            GATE_INTERRUPT => true,
            GATE_TRAP => false,
            _ => return Err(Kill::BadGate { vector, low, high }),
        };
        let handler = high & 0xffff_0000 | low & 0xffff;
        Ok(Some(Self { handler, level: (high >> 13 & 3) as u8, disables }))
    }
}

/// The guest's IDT, as far as it counts.
#[derive(Clone, Debug)]
pub(crate) struct Gates {
    low: [Option<Gate>; LOW_VECTORS],
    system_call: Option<Gate>,
    /// Which vector that is for.
    system_call_vector: u8,
    /// The table in memory counts, since the guest loaded it by `lidt`.
    in_memory: bool,
    changes: u32,
}

impl Gates {
    /// No handlers yet.
    pub(crate) fn new() -> Self {
        Self {
            low: [None; LOW_VECTORS],
            system_call: None,
            system_call_vector: SYSCALL,
            in_memory: false,
            changes: 0,
        }
    }

    /// LOAD_IDT_ENTRY. What the guest sets for a vector that isn't its own is ignored, whatever it is.
    pub(crate) fn load(&mut self, vector: u32, low: u32, high: u32) -> Result<(), Kill> {
        let is_system_call = vector == u32::from(self.system_call_vector);
        if !is_system_call && (!is_settable(vector) || vector == u32::from(SYSCALL)) {
            return Ok(());
        }
        let gate = Gate::new(vector, low, high)?;
        self.changes = self.changes.wrapping_add(1);
        self.in_memory = false;
        if is_system_call {
            self.system_call = gate;
        } else if let Some(slot) = self.low.get_mut(vector as usize) {
            *slot = gate;
        }
        Ok(())
    }

    /// System calls come by this vector, rather than 0x80.
    pub(crate) fn set_system_call_vector(&mut self, vector: u8) {
        self.changes = self.changes.wrapping_add(1);
        self.system_call_vector = vector;
    }

    /// `lidt`: from now on the table in memory counts.
    pub(crate) fn use_table_in_memory(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.in_memory = true;
    }

    /// Counts what the guest has said: while it stays, so does each gate, unless the table is in memory.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// Where the entry for `vector` is in memory, when that is what counts.
    pub(crate) fn place(&self, vector: u8, table: &TableRegister) -> Option<Option<GuestVirt>> {
        self.in_memory.then(|| table.entry(u32::from(vector)))
    }

    /// The table in memory is what counts.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// There is a handler for `vector`, or (in memory) there may be one.
    pub(crate) fn may_have(&self, vector: u8) -> bool {
        self.in_memory || self.get(vector).is_some()
    }

    /// The gate that LOAD_IDT_ENTRY set for `vector`.
    pub(crate) fn get(&self, vector: u8) -> Option<Gate> {
        if vector == self.system_call_vector {
            self.system_call
        } else {
            self.low.get(usize::from(vector)).copied().flatten()
        }
    }
}

/// The stack for traps from user mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TrapStack {
    /// Its segment's selector, of level 1; 0 until the guest sets one.
    pub(crate) segment: u16,
    /// Its top.
    pub(crate) esp: u32,
    /// Pages of it to keep writable, 0..=2: the one that holds esp, and the one below.
    pub(crate) pages: u32,
}

/// The 32 device interrupts that are pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Interrupts {
    pending: u32,
}

impl Interrupts {
    /// Interrupt `irq` happens; there is none beyond 31.
    pub(crate) fn raise(&mut self, irq: u8) {
        if irq < IRQS {
            self.pending |= 1 << irq;
        }
    }

    /// Several happen, a bit for each.
    pub(crate) fn raise_all(&mut self, irqs: u32) {
        self.pending |= irqs;
    }

    /// `irq` is being delivered.
    pub(crate) fn take(&mut self, irq: u8) {
        self.pending &= !(1 << irq);
    }

    /// Some interrupt is pending.
    pub(crate) fn any(self) -> bool {
        self.pending != 0
    }

    /// All that are pending.
    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..IRQS).filter(move |irq| self.pending & 1 << irq != 0)
    }

    /// The one whose turn it is, with these masked: the lowest.
    pub(crate) fn first(self, blocked: u32) -> Option<u8> {
        let open = self.pending & !blocked;
        (open != 0).then(|| open.trailing_zeros() as u8)
    }
}

/// The guest's 32 interrupt lines, for threads beside the vCPU's own: raising one makes it look up. Clones are the same
/// lines.
#[derive(Clone, Default)]
pub struct InterruptLines {
    shared: Arc<Lines>,
}

#[derive(Default)]
struct Lines {
    raised: AtomicU32,
    kicker: OnceLock<Kicker>,
}

impl InterruptLines {
    // ANCHOR: raise_line
    /// Raises interrupt `irq`, 0..32, once; a higher one is ignored. It stays raised until it is delivered.
    pub fn raise(&self, irq: u8) {
        if irq >= IRQS {
            return;
        }
        let before = self.shared.raised.fetch_or(1 << irq, Ordering::AcqRel);
        if before & 1 << irq == 0
            && let Some(kicker) = self.shared.kicker.get()
        {
            kicker.kick();
        }
    }
    // ANCHOR_END: raise_line

    /// Who is to look up: at once, since something may have been raised already.
    pub(crate) fn attach(&self, kicker: Kicker) {
        self.shared.kicker.get_or_init(|| kicker).kick();
    }

    /// Those that have been raised since the last time, a bit for each.
    pub(crate) fn take(&self) -> u32 {
        self.shared.raised.swap(0, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_keeps_handler_level_and_type() {
        let gate = Gate::new(128, 0x0060_5678, 0x1234_ef00);
        assert_eq!(gate, Ok(Some(Gate { handler: 0x1234_5678, level: 3, disables: false })));
        let gate = Gate::new(14, 0x0060_5678, 0x1234_8e00);
        assert_eq!(gate, Ok(Some(Gate { handler: 0x1234_5678, level: 0, disables: true })));
    }

    #[test]
    fn a_present_task_gate_is_refused() {
        assert_eq!(Gate::new(3, 1, 0x8500), Err(Kill::BadGate { vector: 3, low: 1, high: 0x8500 }));
        assert_eq!(Gate::new(3, 1, 0x0500), Ok(None));
    }

    #[test]
    fn reserved_vectors_are_ignored_whatever_they_hold() {
        let mut gates = Gates::new();
        for vector in [2, 8, 15, 31, 64, 127, 129, 255, 256, u32::MAX] {
            assert_eq!(gates.load(vector, 0, 0x8500), Ok(()));
            assert_eq!(gates.load(vector, 0, 0x8e00), Ok(()));
            assert_eq!(gates.get(vector as u8).filter(|_| vector < 256), None);
        }
    }

    #[test]
    fn the_lowest_open_interrupt_is_first() {
        let mut interrupts = Interrupts::default();
        for irq in [9, 3, 31, 32, 255] {
            interrupts.raise(irq);
        }
        assert_eq!(interrupts.first(0), Some(3));
        assert_eq!(interrupts.first(1 << 3), Some(9));
        assert_eq!(interrupts.first(!0), None);
        interrupts.take(3);
        assert_eq!(interrupts.first(0), Some(9));
    }
}
