//! Everything about a guest but its processor.
//!
//! The Switcher runs the processor and asks, whenever translated code needs to know: where is this
//! page, what is that descriptor? [`Guest`] answers, from the guest's own tables in its memory
//! (`page_tables.rs`, `segments.rs`). It can't refuse to answer, though: if what it finds there breaks
//! the rules, it *condemns* the guest, gives the processor a fault, and the run loop in
//! `machine.rs` ends the guest before anything else happens.

use crate::clock::Clock;
use crate::devices::Bus;
use crate::dma::BoundArrays;
use crate::interrupts_and_traps::{Gates, InterruptLines, Interrupts, TrapStack};
use crate::kill::Kill;
use crate::machine::MachineConfig;
use crate::page_tables::{Refused, Walk};
use crate::segments::{Place, Segments, raise};
use crate::shadow::Shadow;
use crate::shared_data::SharedData;
use crate::trace::{Event, Tracer};
use lguest_abi::Generation;
use lguest_abi::traps::FIRST_IRQ;
use lguest_processor::SystemRegisters;
use lguest_switcher::GuestMemory;
use lguest_switcher::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use lguest_switcher::environment::{Access, Environment, Mapping, PageFault};
use std::sync::Arc;

/// What the Host knows of one guest.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    /// Which state of the interface it speaks.
    pub(crate) generation: Generation,
    /// What the kernel's linear map adds to a physical address.
    pub(crate) page_offset: u32,
    /// Told to the guest, which makes its network address from it.
    pub(crate) id: u16,
    /// `None` before LGUEST_INIT.
    pub(crate) shared: Option<SharedData>,
    pub(crate) registers: SystemRegisters,
    pub(crate) shadow: Shadow,
    /// It has loaded page tables that it made itself.
    pub(crate) has_own_tables: bool,
    pub(crate) segments: Segments,
    pub(crate) gates: Gates,
    pub(crate) stack: TrapStack,
    pub(crate) interrupts: Interrupts,
    /// Where other threads raise them.
    pub(crate) lines: InterruptLines,
    /// What is behind ports, and beyond memory.
    pub(crate) bus: Box<dyn Bus>,
    pub(crate) clock: Clock,
    pub(crate) dma: BoundArrays,
    pub(crate) tracer: Option<Tracer>,
    condemned: Option<Kill>,
}

impl Guest {
    /// A guest at its first instruction.
    pub(crate) fn new(config: MachineConfig, registers: SystemRegisters, shadow: Shadow) -> Self {
        let MachineConfig { memory, generation, page_offset, guest_id, lines, bus, .. } = config;
        Self {
            memory,
            generation,
            page_offset,
            id: guest_id,
            shared: None,
            registers,
            shadow,
            has_own_tables: false,
            segments: Segments::new(),
            gates: Gates::new(),
            stack: TrapStack::default(),
            interrupts: Interrupts::default(),
            lines,
            bus,
            clock: Clock::default(),
            dma: BoundArrays::default(),
            tracer: None,
            condemned: None,
        }
    }

    /// Marks the guest as ended, for this reason unless there was one before.
    pub(crate) fn condemn(&mut self, kill: Kill) {
        self.condemned.get_or_insert(kill);
    }

    /// Whether the guest may go on.
    pub(crate) fn verdict(&mut self) -> Result<(), Kill> {
        self.condemned.take().map_or(Ok(()), Err)
    }

    /// Shows an event to the tracer, if there is one; only then is it put together.
    pub(crate) fn trace(&mut self, event: impl FnOnce() -> Event) {
        if let Some(tracer) = &mut self.tracer {
            tracer(&event());
        }
    }

    /// The current page tables.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk {
            memory: &self.memory,
            rules: self.shadow.rules(),
            root: self.root(),
            write_protect: self.registers.write_protect(),
            kernel_start: self.page_offset,
        }
    }

    /// Interrupts are enabled: bit 9 if so, as eflags has IF. Before LGUEST_INIT they count as enabled.
    pub(crate) fn irq_enabled(&self) -> u32 {
        match &self.shared {
            Some(shared) => shared.irq_enabled(&self.memory),
            None => lguest_switcher::cpu::IF,
        }
    }

    /// Enables or disables interrupts.
    pub(crate) fn set_irq_enabled(&mut self, on: bool) {
        if let Some(shared) = &self.shared {
            shared.set_irq_enabled(&self.memory, on);
        }
    }

    /// Some pending interrupt has a handler, so that it comes once the guest lets it.
    pub(crate) fn interrupt_can_come(&self) -> bool {
        self.interrupts.iter().any(|irq| self.gates.may_have(FIRST_IRQ + irq))
    }

    /// Checks a range of physical addresses that the guest named.
    pub(crate) fn check_range(
        &self,
        what: &'static str,
        start: GuestPhys,
        bytes: u32,
    ) -> Result<(), Kill> {
        if self.memory.contains(start, bytes) {
            return Ok(());
        }
        Err(Kill::BadAddress { what, start, bytes: u64::from(bytes) })
    }

    /// Reads physical memory that the guest named.
    pub(crate) fn read(
        &self,
        what: &'static str,
        start: GuestPhys,
        into: &mut [u8],
    ) -> Result<(), Kill> {
        let bytes = into.len() as u64;
        self.memory.read(start, into).map_err(|_| Kill::BadAddress { what, start, bytes })
    }

    /// Reads `N` bytes at a virtual address, as the processor reads its own tables: at level 0, whatever the current one.
    pub(crate) fn read_table<const N: usize>(
        &mut self,
        at: GuestVirt,
    ) -> Result<[u8; N], PageFault> {
        let mut bytes = [0; N];
        let mut done = 0;
        while done < N {
            let at = at.wrapping_add(done as u32);
            let now = (N - done).min((PAGE_SIZE - at.offset()) as usize);
            let mapping = self.translate(at, Access::Read, false)?;
            let phys = mapping.phys.wrapping_add(at.0.wrapping_sub(mapping.virt.0));
            if self.memory.read(phys, &mut bytes[done..done + now]).is_err() {
                return Err(PageFault { address: at, error: 0 });
            }
            done += now;
        }
        Ok(bytes)
    }
}

impl Guest {
    /// Sets the accessed bit of the descriptor at `at`.
    fn mark_in_table(&mut self, at: GuestVirt) -> Result<(), PageFault> {
        const ACCESS_BYTE: u32 = 5;
        let at = at.wrapping_add(ACCESS_BYTE);
        let mapping = self.translate(at, Access::Write, false)?;
        let phys = mapping.phys.wrapping_add(at.0.wrapping_sub(mapping.virt.0));
        let mut access = [0];
        if self.memory.read(phys, &mut access).is_ok() {
            let _ = self.memory.write(phys, &[access[0] | 1]);
        }
        Ok(())
    }
}

impl Environment for Guest {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        self.walk().access(address, access, user).map_err(|refused| match refused {
            Refused::Fault(fault) => fault,
            Refused::Kill(kill) => {
                self.condemn(kill);
                PageFault { address, error: 0 }
            }
        })
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        Ok(match self.segments.find(selector, &self.registers) {
            Place::Known(descriptor) => Some(descriptor),
            Place::Memory(at) => Some(raise(u64::from_le_bytes(self.read_table(at)?))),
            Place::Nowhere => None,
        })
    }

    fn mark_accessed(&mut self, selector: u16) -> Result<(), PageFault> {
        match self.segments.find(selector, &self.registers) {
            Place::Memory(at) => self.mark_in_table(at),
            Place::Known(_) | Place::Nowhere => Ok(()),
        }
    }

    fn is_settled(&self, selector: u16) -> bool {
        matches!(self.segments.find(selector, &self.registers), Place::Known(_))
    }

    fn read_device(&mut self, at: GuestPhys, into: &mut [u8]) {
        self.bus.read(at, into);
    }

    fn write_device(&mut self, at: GuestPhys, from: &[u8]) {
        self.bus.write(at, from);
    }
}
