//! Control, debug and model-specific registers: values, and what a change of them sets off.
//!
//! A first-generation guest needs only CR0.TS, by hypercall. A kernel that moves to or from these
//! registers itself gets what a bare PC would give it, as far as the processor it was offered has
//! them. Debug registers hold what is written to them; no breakpoint of theirs is hit, for the Switcher has none.

use crate::kill::Kill;
use crate::machine::Machine;
use crate::privileged::Stumble;
use lguest_abi::Phys;
use lguest_switcher::Exception;
use lguest_switcher::address::GuestVirt;

/// CR0: protected mode.
const PE: u32 = 1 << 0;
/// CR0: FPU instructions raise #NM (with TS); what `wait` does depends on it.
const MP: u32 = 1 << 1;
/// CR0: there is no FPU.
const EM: u32 = 1 << 2;
/// CR0: the task has been switched.
const TS: u32 = 1 << 3;
/// CR0: extension type, always 1.
const ET: u32 = 1 << 4;
/// CR0: FPU errors are reported by trap 16.
const NE: u32 = 1 << 5;
/// CR0: read-only pages are so for the kernel too.
const WP: u32 = 1 << 16;
/// CR0: alignment is checked.
const AM: u32 = 1 << 18;
/// CR0: caches, of no consequence.
const NW_CD: u32 = 3 << 29;
/// CR0: paging.
const PG: u32 = 1 << 31;
/// CR4: what the offered features allow: TSD, DE, PGE, PCE, OSFXSR, OSXMMEXCPT.
const CR4_ALLOWED: u32 = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10;
/// CR4: debug registers 4 and 5 don't exist.
const DE: u32 = 1 << 3;
/// DR6 and DR7: bits that always read as 1.
const DR6_ONES: u32 = 0xffff_0ff0;
const DR7_ONES: u32 = 0x0000_0400;
/// DR6: a single step.
const SINGLE_STEP: u32 = 1 << 14;

/// Model-specific registers (SDM volume 4).
mod msr {
    pub(super) const TIME_STAMP: u32 = 0x10;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
}

/// The registers that only kernels see.
#[derive(Clone, Debug)]
pub(crate) struct ControlRegisters {
    pub(crate) cr0: u32,
    /// The address of the last page fault.
    pub(crate) cr2: u32,
    pub(crate) cr4: u32,
    debug: [u32; 8],
    /// Code segment for `sysenter`; 0 means that it isn't set up.
    pub(crate) sysenter_cs: u32,
    pub(crate) sysenter_esp: u32,
    pub(crate) sysenter_eip: u32,
}

impl ControlRegisters {
    /// As at the guest's first instruction: paging is on, and the FPU is ready.
    pub(crate) fn new() -> Self {
        let mut debug = [0; 8];
        (debug[6], debug[7]) = (DR6_ONES, DR7_ONES);
        Self {
            cr0: PE | MP | ET | NE | WP | AM | PG,
            cr2: 0,
            cr4: 0,
            debug,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
        }
    }

    /// Read-only pages are read-only for the kernel too.
    pub(crate) fn write_protect(&self) -> bool {
        self.cr0 & WP != 0
    }

    /// Trap 1 is about to be delivered, because of TF.
    pub(crate) fn note_single_step(&mut self) {
        self.debug[6] |= SINGLE_STEP;
    }

    /// Which debug register number `index` stands for: 4 and 5 are other names of 6 and 7, if anything.
    fn debug_index(&self, index: usize) -> Result<usize, Exception> {
        match index {
            4 | 5 if self.cr4 & DE != 0 => Err(Exception::INVALID_OPCODE),
            4 | 5 => Ok(index + 2),
            _ => Ok(index % 8),
        }
    }

    /// Reads debug register `index`.
    pub(crate) fn debug(&self, index: usize) -> Result<u32, Exception> {
        Ok(self.debug[self.debug_index(index)?])
    }

    /// Writes debug register `index`.
    pub(crate) fn set_debug(&mut self, index: usize, value: u32) -> Result<(), Exception> {
        let index = self.debug_index(index)?;
        self.debug[index] = match index {
            6 => value & 0x0000_e00f | DR6_ONES,
            7 => value & 0xffff_2bff | DR7_ONES,
            _ => value,
        };
        Ok(())
    }

    /// Reads a model-specific register.
    pub(crate) fn model_specific(&self, index: u32) -> Result<u64, Exception> {
        match index {
            msr::TIME_STAMP => Ok(lguest_switcher::timestamp()),
            msr::SYSENTER_CS => Ok(u64::from(self.sysenter_cs)),
            msr::SYSENTER_ESP => Ok(u64::from(self.sysenter_esp)),
            msr::SYSENTER_EIP => Ok(u64::from(self.sysenter_eip)),
            _ => Err(Exception::protection(0)),
        }
    }

    /// Writes a model-specific register. The time stamp counter is the host's own and can't be set.
    pub(crate) fn set_model_specific(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        let low = value as u32;
        match index {
            msr::SYSENTER_CS => self.sysenter_cs = low & 0xffff,
            msr::SYSENTER_ESP => self.sysenter_esp = low,
            msr::SYSENTER_EIP => self.sysenter_eip = low,
            _ => return Err(Exception::protection(0)),
        }
        Ok(())
    }
}

impl Machine {
    /// The TS hypercall, and `clts`: whether FPU use raises trap 7.
    pub(crate) fn set_task_switched(&mut self, set: bool) {
        let cr0 = self.guest.control.cr0 & !TS | if set { TS } else { 0 };
        self.keep_cr0(cr0);
    }

    fn keep_cr0(&mut self, cr0: u32) {
        self.guest.control.cr0 = cr0;
        self.vcpu.cpu.set_fpu_trap(cr0 & (TS | EM) != 0);
    }

    /// Reads control register `index`.
    pub(crate) fn control_register(&self, index: usize) -> Result<u32, Exception> {
        let control = &self.guest.control;
        match index {
            0 => Ok(control.cr0),
            2 => Ok(control.cr2),
            3 => Ok(self.guest.root.0),
            4 => Ok(control.cr4),
            _ => Err(Exception::INVALID_OPCODE),
        }
    }

    /// Writes control register `index`.
    pub(crate) fn set_control_register(&mut self, index: usize, value: u32) -> Result<(), Stumble> {
        match index {
            0 => self.set_cr0(value)?,
            2 => self.guest.control.cr2 = value,
            3 => {
                self.new_page_table(Phys(value))?;
                self.flush_all()?;
            }
            4 if value & !CR4_ALLOWED != 0 => return Err(Exception::protection(0).into()),
            4 => self.guest.control.cr4 = value,
            _ => return Err(Exception::INVALID_OPCODE.into()),
        }
        Ok(())
    }

    /// `lmsw`: the low four bits of CR0; PE can be set by it, not cleared.
    pub(crate) fn load_machine_status(&mut self, value: u32) -> Result<(), Kill> {
        let cr0 = self.guest.control.cr0;
        self.set_cr0(cr0 & !(MP | EM | TS) | value & (MP | EM | TS) | cr0 & PE)
    }

    fn set_cr0(&mut self, value: u32) -> Result<(), Kill> {
        if value & (PE | PG) != PE | PG {
            let eip = self.vcpu.cpu.eip();
            return Err(Kill::ModeChange { register: "cr0", value, eip });
        }
        let protected_before = self.guest.control.write_protect();
        self.keep_cr0(value & (PE | MP | EM | TS | NE | WP | AM | NW_CD | PG) | ET);
        if self.guest.control.write_protect() && !protected_before {
            // What the kernel wrote to without the right may be shown as writable.
            self.shadow.flush_all(&mut self.vcpu, &self.guest.memory);
        }
        Ok(())
    }

    /// `invlpg`.
    pub(crate) fn invalidate_page(&mut self, address: GuestVirt) {
        self.shadow.flush_page(&mut self.vcpu, &self.guest.memory, address);
    }
}
