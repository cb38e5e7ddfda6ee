//! Control and debug registers.

use super::operands::general;
use super::{PROTECTION, Processor};
use crate::registers::{cr0, cr4, dr6};
use crate::system::PagingChange;
use iced_x86::Instruction;
use lguest_switcher::Exception;

/// Bits of CR0 that have a say in what page tables allow.
const PAGING_RULES_0: u32 = cr0::PE | cr0::WP | cr0::PG;
/// Bits of CR4 that have a say in what page tables mean.
const PAGING_RULES_4: u32 = cr4::PSE | cr4::PGE;

impl Processor<'_> {
    /// `mov` to or from a control or debug register. Test registers are long gone.
    pub(super) fn move_special(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        if to.is_tr() || from.is_tr() {
            return Err(Exception::INVALID_OPCODE);
        }
        if to.is_dr() || from.is_dr() {
            self.detect_access()?;
        }
        if from.is_gpr32() {
            let value = self.vcpu.cpu.gpr(general(from));
            if to.is_cr() {
                return self.set_control_register(to.number(), value);
            }
            self.system.registers_mut().set_debug(to.number(), value)?;
            self.vcpu.set_breakpoints(self.system.registers().breakpoints());
            return Ok(());
        }
        let registers = self.system.registers();
        let value = match from.number() {
            index if from.is_dr() => registers.debug(index)?,
            0 => registers.cr0,
            2 => registers.cr2,
            3 => registers.cr3,
            4 => registers.cr4,
            _ => return Err(Exception::INVALID_OPCODE),
        };
        self.vcpu.cpu.set_gpr(general(to), value);
        Ok(())
    }

    /// An access to a debug register is about to be made.
    ///
    /// # Errors
    /// #DB while DR7.GD is set, which DR6 tells of already (SDM volume 3, section "General-Detect Exception Condition").
    fn detect_access(&mut self) -> Result<(), Exception> {
        const DEBUG: u8 = 1;
        let registers = self.system.registers_mut();
        if !registers.detects_access() {
            return Ok(());
        }
        registers.note_debug_exception(dr6::BD);
        Err(Exception::plain(DEBUG))
    }

    fn set_control_register(&mut self, index: usize, value: u32) -> Result<(), Exception> {
        match index {
            0 => self.set_cr0(value),
            2 => {
                self.system.registers_mut().cr2 = value;
                Ok(())
            }
            3 => {
                self.system.registers_mut().cr3 = value;
                self.system.paging_changed(self.vcpu, PagingChange::Root);
                Ok(())
            }
            4 => self.set_cr4(value),
            _ => Err(Exception::INVALID_OPCODE),
        }
    }

    /// # Errors
    /// #GP(0) for paging without protection, and for NW without CD.
    fn set_cr0(&mut self, value: u32) -> Result<(), Exception> {
        let value = value & cr0::ALL | cr0::ET;
        let paging_alone = value & (cr0::PG | cr0::PE) == cr0::PG;
        let writes_around_a_cache = value & (cr0::NW | cr0::CD) == cr0::NW;
        if paging_alone || writes_around_a_cache {
            return Err(PROTECTION);
        }
        let usual = cr0::PE | cr0::PG;
        if value & usual != usual && !self.system.allows_mode(&self.vcpu.cpu, value) {
            return Err(PROTECTION);
        }
        let before = std::mem::replace(&mut self.system.registers_mut().cr0, value);
        self.vcpu.cpu.set_fpu_trap(self.system.registers().fpu_trap());
        if (before ^ value) & PAGING_RULES_0 != 0 {
            self.system.paging_changed(self.vcpu, PagingChange::Rules);
        }
        Ok(())
    }

    /// # Errors
    /// #GP(0) for a bit that isn't offered.
    fn set_cr4(&mut self, value: u32) -> Result<(), Exception> {
        let registers = self.system.registers_mut();
        if value & !registers.cr4_offered != 0 {
            return Err(PROTECTION);
        }
        let before = std::mem::replace(&mut registers.cr4, value);
        let level = self.system.registers().timestamp_level(self.system.kernel_level());
        self.vcpu.cpu.set_timestamp_level(level);
        if (before ^ value) & PAGING_RULES_4 != 0 {
            self.system.paging_changed(self.vcpu, PagingChange::Rules);
        }
        Ok(())
    }

    /// `lmsw`: the low four bits of CR0; PE can be set by it, not cleared.
    pub(super) fn load_machine_status(
        &mut self,
        instruction: &Instruction,
    ) -> Result<(), Exception> {
        const STATUS: u32 = cr0::MP | cr0::EM | cr0::TS;
        let value = u32::from(self.read_operand16(instruction)?);
        let before = self.system.registers().cr0;
        self.set_cr0(before & !STATUS | value & (STATUS | cr0::PE))
    }

    pub(super) fn clear_task_switched(&mut self) {
        self.system.registers_mut().cr0 &= !cr0::TS;
        self.vcpu.cpu.set_fpu_trap(self.system.registers().fpu_trap());
    }

    /// `invlpg`: no access is made, and no limit matters.
    pub(super) fn invalidate_page(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let address = self.vcpu.linear_address(instruction, 1, false)?;
        self.system.paging_changed(self.vcpu, PagingChange::Page(address.page()));
        Ok(())
    }
}
