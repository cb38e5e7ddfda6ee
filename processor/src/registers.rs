//! The registers that only kernels see, and the rules for their values.
//!
//! What a change of one sets off elsewhere is said in `instructions/`.

use lguest_switcher::breakpoints::Breakpoint;
use lguest_switcher::{Exception, GuestVirt};

/// CR0 (SDM volume 3, section "Control Registers").
pub mod cr0 {
    /// Protected mode.
    pub const PE: u32 = 1 << 0;
    /// `wait` looks at TS.
    pub const MP: u32 = 1 << 1;
    /// There is no FPU.
    pub const EM: u32 = 1 << 2;
    /// The task has been switched: FPU instructions raise #NM.
    pub const TS: u32 = 1 << 3;
    /// Extension type, always 1.
    pub const ET: u32 = 1 << 4;
    /// FPU errors are reported by #MF.
    pub const NE: u32 = 1 << 5;
    /// Read-only pages are so for the kernel too.
    pub const WP: u32 = 1 << 16;
    /// Alignment may be checked.
    pub const AM: u32 = 1 << 18;
    /// Not write-through.
    pub const NW: u32 = 1 << 29;
    /// Caches are disabled.
    pub const CD: u32 = 1 << 30;
    /// Paging.
    pub const PG: u32 = 1 << 31;
    /// All bits that can be set.
    pub const ALL: u32 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 (SDM volume 3, section "Control Registers").
pub mod cr4 {
    /// `rdtsc` is for level 0.
    pub const TSD: u32 = 1 << 2;
    /// Debug registers 4 and 5 don't exist; breakpoints may watch ports.
    pub const DE: u32 = 1 << 3;
    /// Pages of 4 MiB.
    pub const PSE: u32 = 1 << 4;
    /// Machine checks are reported.
    pub const MCE: u32 = 1 << 6;
    /// Pages may be global.
    pub const PGE: u32 = 1 << 7;
    /// `rdpmc` is for everyone.
    pub const PCE: u32 = 1 << 8;
    /// The system keeps SSE registers.
    pub const OSFXSR: u32 = 1 << 9;
    /// The system handles #XM.
    pub const OSXMMEXCPT: u32 = 1 << 10;
}

/// DR6: breakpoint conditions (SDM volume 3, section "Debug Status Register (DR6)").
pub mod dr6 {
    /// A debug register was about to be accessed, with DR7's GD set.
    pub const BD: u32 = 1 << 13;
    /// A single step.
    pub const BS: u32 = 1 << 14;
    /// Bits that can be written; the others read as [`ONES`] has them.
    pub const WRITABLE: u32 = 0x0000_e00f;
    /// Bits that always read as 1.
    pub const ONES: u32 = 0xffff_0ff0;
}

/// DR7: breakpoint control (SDM volume 3, section "Debug Control Register (DR7)").
pub mod dr7 {
    /// General detect: the next access to a debug register raises #DB.
    pub const GD: u32 = 1 << 13;
    /// Bits that can be written.
    pub const WRITABLE: u32 = 0xffff_2bff;
    /// Bits that always read as 1.
    pub const ONES: u32 = 0x0000_0400;
}

/// A table register as `lgdt` and `sgdt` have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableRegister {
    /// Where the table starts.
    pub base: GuestVirt,
    /// Offset of its last byte.
    pub limit: u32,
}

impl TableRegister {
    /// Address of the eight bytes of entry `index`, if the table reaches so far.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<GuestVirt> {
        let offset = index.checked_mul(8)?;
        (offset.checked_add(7)? <= self.limit).then(|| self.base.wrapping_add(offset))
    }
}

/// What `lldt` or `ltr` loaded: a selector, and what the processor remembers of its descriptor. A
/// null selector means that there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SystemSegment {
    /// The selector.
    pub selector: u16,
    /// Where it is.
    pub table: TableRegister,
    /// The descriptor's type, 0..16.
    pub kind: u8,
}

impl SystemSegment {
    /// Nothing is loaded.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        self.selector & !3 == 0
    }
}

/// Where `sysenter` goes: the model-specific registers IA32_SYSENTER_CS, _ESP and _EIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FastCall {
    /// Code segment; null means that it isn't set up. Three more follow from it.
    pub cs: u32,
    /// Stack pointer.
    pub esp: u32,
    /// The first instruction.
    pub eip: u32,
}

/// The registers that only kernels see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemRegisters {
    /// CR0.
    pub cr0: u32,
    /// CR2: the address of the last page fault.
    pub cr2: u32,
    /// CR3: where the page tables start, and two bits about caches.
    pub cr3: u32,
    /// CR4.
    pub cr4: u32,
    /// The bits of CR4 that this processor has: setting another raises #GP.
    pub cr4_offered: u32,
    /// DR0–DR3, DR6 and DR7, by their numbers.
    debug: [u32; 8],
    /// GDTR.
    pub gdt: TableRegister,
    /// IDTR.
    pub idt: TableRegister,
    /// LDTR.
    pub ldt: SystemSegment,
    /// TR.
    pub task: SystemSegment,
    /// Where `sysenter` goes.
    pub fast_call: FastCall,
}

impl SystemRegisters {
    /// Registers with this CR0, and without any table.
    #[must_use]
    pub const fn new(cr0: u32, cr4_offered: u32) -> Self {
        const NO_TABLE: TableRegister = TableRegister { base: GuestVirt(0), limit: 0xffff };
        const NO_SEGMENT: SystemSegment = SystemSegment {
            selector: 0,
            table: TableRegister { base: GuestVirt(0), limit: 0 },
            kind: 0,
        };
        Self {
            cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr4_offered,
            debug: [0, 0, 0, 0, 0, 0, dr6::ONES, dr7::ONES],
            gdt: NO_TABLE,
            idt: NO_TABLE,
            ldt: NO_SEGMENT,
            task: NO_SEGMENT,
            fast_call: FastCall { cs: 0, esp: 0, eip: 0 },
        }
    }

    /// Read-only pages are read-only for the kernel too.
    #[must_use]
    pub const fn write_protect(&self) -> bool {
        self.cr0 & cr0::WP != 0
    }

    /// FPU instructions raise #NM.
    #[must_use]
    pub const fn fpu_trap(&self) -> bool {
        self.cr0 & (cr0::TS | cr0::EM) != 0
    }

    /// The outermost level at which `rdtsc` may be executed, for a system whose kernel runs at `kernel_level`.
    #[must_use]
    pub const fn timestamp_level(&self, kernel_level: u8) -> u8 {
        if self.cr4 & cr4::TSD != 0 { kernel_level } else { 3 }
    }

    /// Which debug register number `index` (0..8) stands for: 4 and 5 are other names of 6 and 7, if anything.
    fn debug_index(&self, index: usize) -> Result<usize, Exception> {
        match index {
            4 | 5 if self.cr4 & cr4::DE != 0 => Err(Exception::INVALID_OPCODE),
            4 | 5 => Ok(index + 2),
            _ => Ok(index % 8),
        }
    }

    /// Debug register `index`, 0..8.
    ///
    /// # Errors
    /// #UD for 4 and 5 while CR4.DE is set.
    pub fn debug(&self, index: usize) -> Result<u32, Exception> {
        Ok(self.debug[self.debug_index(index)?])
    }

    /// Sets debug register `index`, 0..8, as far as its bits can be set.
    ///
    /// # Errors
    /// #UD for 4 and 5 while CR4.DE is set.
    pub fn set_debug(&mut self, index: usize, value: u32) -> Result<(), Exception> {
        let index = self.debug_index(index)?;
        self.debug[index] = match index {
            6 => value & dr6::WRITABLE | dr6::ONES,
            7 => value & dr7::WRITABLE | dr7::ONES,
            _ => value,
        };
        Ok(())
    }

    /// The breakpoints on instructions and memory that are enabled.
    #[must_use]
    pub fn breakpoints(&self) -> [Option<Breakpoint>; 4] {
        let [d0, d1, d2, d3, ..] = self.debug;
        Breakpoint::from_registers([d0, d1, d2, d3], self.debug[7])
    }

    /// The enabled breakpoints that watch one of the `bytes` ports (1, 2 or 4) from `port` on, as bits 0 to 3 of DR6. There are
    /// such breakpoints while CR4.DE is set.
    #[must_use]
    pub fn port_breakpoints(&self, port: u16, bytes: u32) -> u32 {
        const PORT: u32 = 2;
        if self.cr4 & cr4::DE == 0 {
            return 0;
        }
        let control = self.debug[7];
        let hit = |slot: &u32| {
            let enabled = control >> (2 * slot) & 3 != 0;
            let condition = control >> (16 + 4 * slot) & 15;
            let last = condition >> 2;
            let start = self.debug[*slot as usize] & !last;
            let apart = u32::from(port) > start + last || start >= u32::from(port) + bytes;
            enabled && condition & 3 == PORT && !apart
        };
        (0..4).filter(hit).map(|slot| 1 << slot).sum()
    }

    /// An access to a debug register is to raise #DB.
    #[must_use]
    pub const fn detects_access(&self) -> bool {
        self.debug[7] & dr7::GD != 0
    }

    /// #DB is about to be delivered, for these reasons: bits of DR6, which are only ever added. GD is cleared, so that the
    /// handler may use the debug registers.
    pub fn note_debug_exception(&mut self, reasons: u32) {
        self.debug[6] |= reasons & dr6::WRITABLE;
        self.debug[7] &= !dr7::GD;
    }
}
