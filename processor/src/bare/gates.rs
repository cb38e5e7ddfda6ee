//! The interrupt descriptor table: a gate for each vector (SDM volume 3, section "IDT Descriptors").

use super::delivery::{Event, Source};
use super::{Bare, Board};
use lguest_switcher::Exception;

/// Error code bit 1: the index is one of the IDT.
const IN_IDT: u32 = 2;

/// An interrupt or trap gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gate {
    /// Code segment of the handler.
    pub(super) selector: u16,
    /// Where in it the handler starts.
    pub(super) offset: u32,
    /// Bytes of each word that is pushed: 2 or 4.
    pub(super) size: u32,
    /// Interrupts are disabled on the way in.
    pub(super) disables: bool,
}

impl<B: Board> Bare<B> {
    /// The gate that `event` goes through, if it may.
    ///
    /// # Errors
    /// #GP beyond the table, for a descriptor that is no such gate, and for a software interrupt from too far outside; #NP;
    /// #PF where the table can't be read.
    pub(super) fn gate(&self, event: &Event) -> Result<Gate, Exception> {
        let index = (u32::from(event.vector) * 8) | IN_IDT | event.external();
        let protection = Exception::with_error(13, index);
        let place = self.system.registers.idt.entry(event.vector.into()).ok_or(protection)?;
        let [o0, o1, s0, s1, _, access, o2, o3] = self.system.read_table(place)?;
        // A task gate (5) would switch tasks, which this processor doesn't.
        let (size, disables) = match access & 0x1f {
            0x06 => (2, true),
            0x07 => (2, false),
            0x0e => (4, true),
            0x0f => (4, false),
            _ => return Err(protection),
        };
        let software = matches!(event.source, Source::Software { .. });
        if software && access >> 5 & 3 < self.vcpu.cpu.cpl() {
            return Err(protection);
        }
        if access & 0x80 == 0 {
            return Err(Exception::with_error(11, index));
        }
        let offset = u32::from_le_bytes([o0, o1, o2, o3]);
        let offset = if size == 2 { offset & 0xffff } else { offset };
        Ok(Gate { selector: u16::from_le_bytes([s0, s1]), offset, size, disables })
    }
}
