//! The tables in memory, as the processor reads them.

use crate::cpuid::cpuid;
use crate::paging::Walk;
use crate::registers::{SystemRegisters, cr0, cr4};
use crate::system::{PagingChange, System};
use lguest_switcher::{
    Access, Cpu, Environment, GuestMemory, GuestPhys, GuestVirt, Mapping, PAGE_SIZE, PageFault,
    Vcpu, View,
};
use std::arch::x86_64::CpuidResult;
use std::sync::Arc;

/// The bits of CR4 that go with what `cpuid` offers.
pub(super) const CR4_OFFERED: u32 =
    cr4::TSD | cr4::DE | cr4::PSE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// Leaf 1, edx: DE, PSE, MSR, PGE.
const SYSTEM_FEATURES: u32 = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 13;
/// Pages that an entry of a page directory leads to.
const LARGE_PAGES: u32 = 1024;
/// Selector bit 2: the LDT.
const TABLE_INDICATOR: u16 = 4;
/// Where a descriptor has its access byte.
const ACCESS_BYTE: u32 = 5;

/// What is around a processor. What a method does when it isn't written is an empty board.
pub trait Board {
    /// `in` of `bytes` (1, 2 or 4) from `port`.
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        let _ = (port, bytes);
        u32::MAX
    }

    /// `out` of `bytes` (1, 2 or 4) to `port`.
    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        let _ = (port, bytes, value);
    }

    /// What `cpuid` answers.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let _ = subleaf;
        let features = if leaf == 1 { SYSTEM_FEATURES } else { 0 };
        let offered = cpuid(leaf, subleaf);
        CpuidResult { edx: offered.edx | features, ..offered }
    }

    /// Reads a model-specific register that the processor itself hasn't; `None` raises #GP.
    fn read_model_specific(&mut self, index: u32) -> Option<u64> {
        let _ = index;
        None
    }

    /// Writes one; `None` raises #GP.
    fn write_model_specific(&mut self, index: u32, value: u64) -> Option<()> {
        let _ = (index, value);
        None
    }

    /// An interrupt is asked for.
    fn is_interrupting(&self) -> bool {
        false
    }

    /// The vector of the interrupt that is asked for, which is delivered now.
    fn interrupt(&mut self) -> Option<u8> {
        None
    }
}

/// The half of a processor that only kernels use.
pub struct BareSystem<B> {
    /// All memory there is, from physical address 0 on; no address line is masked.
    pub memory: Arc<GuestMemory>,
    /// Registers.
    pub registers: SystemRegisters,
    /// What is around the processor.
    pub board: B,
}

impl<B> BareSystem<B> {
    fn walk(&self) -> Walk<'_> {
        Walk {
            memory: &self.memory,
            root: GuestPhys(self.registers.cr3),
            write_protect: self.registers.write_protect(),
            large_pages: self.registers.cr4 & cr4::PSE != 0,
        }
    }

    /// Where a byte of a table is, for the processor itself, which reads and writes at level 0.
    fn locate(&self, at: GuestVirt, access: Access) -> Result<GuestPhys, PageFault> {
        let mapping = self.mapping(at, access, false)?;
        Ok(mapping.phys.wrapping_add(at.0.wrapping_sub(mapping.virt.0)))
    }

    fn mapping(&self, at: GuestVirt, access: Access, user: bool) -> Result<Mapping, PageFault> {
        if self.registers.cr0 & cr0::PG != 0 {
            return self.walk().access(at, access, user);
        }
        let (virt, phys) = (at.page(), GuestPhys(at.page().0));
        Ok(Mapping { virt, phys, pages: 1, writable: true, user: true })
    }

    /// Reads `N` bytes of a table. Where there is no memory they are ones.
    pub(super) fn read_table<const N: usize>(&self, at: GuestVirt) -> Result<[u8; N], PageFault> {
        let mut bytes = [0xff; N];
        let mut done = 0;
        while done < N {
            let at = at.wrapping_add(done as u32);
            let now = (N - done).min((PAGE_SIZE - at.offset()) as usize);
            let phys = self.locate(at, Access::Read)?;
            let piece = &mut bytes[done..done + now];
            if self.memory.read(phys, piece).is_err() {
                piece.fill(0xff);
            }
            done += now;
        }
        Ok(bytes)
    }

    /// Where the descriptor that `selector` names is, if its table reaches so far.
    fn entry(&self, selector: u16) -> Option<GuestVirt> {
        let index = u32::from(selector >> 3);
        if selector & TABLE_INDICATOR == 0 {
            return self.registers.gdt.entry(index);
        }
        let ldt = &self.registers.ldt;
        if ldt.is_null() { None } else { ldt.table.entry(index) }
    }
}

impl<B: Board> Environment for BareSystem<B> {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        self.mapping(address, access, user)
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        self.entry(selector).map(|at| Ok(u64::from_le_bytes(self.read_table(at)?))).transpose()
    }

    fn mark_accessed(&mut self, selector: u16) -> Result<(), PageFault> {
        let Some(entry) = self.entry(selector) else { return Ok(()) };
        let phys = self.locate(entry.wrapping_add(ACCESS_BYTE), Access::Write)?;
        let mut access = [0];
        if self.memory.read(phys, &mut access).is_ok() {
            let _ = self.memory.write(phys, &[access[0] | 1]);
        }
        Ok(())
    }
}

impl<B: Board> System for BareSystem<B> {
    fn registers(&self) -> &SystemRegisters {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut SystemRegisters {
        &mut self.registers
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.board.cpuid(leaf, subleaf)
    }

    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        self.board.port_in(port, bytes)
    }

    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        self.board.port_out(port, bytes, value);
    }

    fn read_model_specific(&mut self, index: u32) -> Option<u64> {
        self.board.read_model_specific(index)
    }

    fn write_model_specific(&mut self, index: u32, value: u64) -> Option<()> {
        self.board.write_model_specific(index, value)
    }

    /// Forgets more than it must: global pages too, which a processor may do at any time.
    fn paging_changed(&mut self, vcpu: &mut Vcpu, change: PagingChange) {
        for view in [View::Kernel, View::AllUsers] {
            match change {
                PagingChange::Root | PagingChange::Rules => vcpu.unmap_all(view),
                PagingChange::Page(page) if self.registers.cr4 & cr4::PSE != 0 => {
                    // It may be a part of a large one, which is forgotten whole.
                    let start = GuestVirt(page.0 & !(LARGE_PAGES * PAGE_SIZE - 1));
                    vcpu.unmap(view, start, LARGE_PAGES);
                }
                PagingChange::Page(page) => vcpu.unmap(view, page, 1),
            }
        }
    }

    /// Paging may be switched off; there is no real mode.
    fn allows_mode(&mut self, _cpu: &Cpu, value: u32) -> bool {
        value & cr0::PE != 0
    }
}
