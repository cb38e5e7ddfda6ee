//! The instructions that load and show the descriptor tables' registers. The tables stay in the
//! guest's memory, and are read when they are needed.

use super::{PROTECTION, Processor};
use crate::registers::{SystemSegment, TableRegister};
use crate::system::Table;
use iced_x86::{Code, Instruction, Mnemonic};
use lguest_switcher::{Exception, GuestVirt, Segment};

/// Access byte of a descriptor: present, and a system descriptor's type.
const PRESENT: u16 = 0x80;
const SYSTEM_TYPE: u16 = 0x1f;
const LDT: u16 = 0x02;
const AVAILABLE_TASK_16: u16 = 0x01;
const AVAILABLE_TASK: u16 = 0x09;
/// What is set in the type of a task segment that is in use.
const BUSY: u8 = 0x02;

impl Processor<'_> {
    /// `sgdt`, `sidt`: a limit of 16 bits and a base of 32 in memory.
    pub(super) fn store_table(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let at = self.vcpu.linear_address(instruction, 6, true)?;
        let registers = self.system.registers();
        let gdt = instruction.mnemonic() == Mnemonic::Sgdt;
        let TableRegister { base, limit } = if gdt { registers.gdt } else { registers.idt };
        let [l0, l1, ..] = limit.to_le_bytes();
        let [b0, b1, b2, b3] = base.0.to_le_bytes();
        Ok(self.write(at, &[l0, l1, b0, b1, b2, b3])?)
    }

    /// `lgdt`, `lidt`. With a 16-bit operand the base has 24 bits.
    pub(super) fn load_table(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let at = self.vcpu.linear_address(instruction, 6, false)?;
        let [l0, l1, b0, b1, b2, b3] = self.read(at)?;
        let narrow = matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
        let b3 = if narrow { 0 } else { b3 };
        let table = TableRegister {
            base: GuestVirt(u32::from_le_bytes([b0, b1, b2, b3])),
            limit: u32::from(u16::from_le_bytes([l0, l1])),
        };
        let registers = self.system.registers_mut();
        if instruction.mnemonic() == Mnemonic::Lgdt {
            registers.gdt = table;
            self.system.table_loaded(Table::Gdt);
        } else {
            registers.idt = table;
            self.system.table_loaded(Table::Idt);
        }
        Ok(())
    }

    /// `lldt`: a null selector means no table.
    pub(super) fn load_ldt(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let selector = self.read_operand16(instruction)?;
        let ldt = if selector & !3 == 0 {
            SystemSegment { selector, ..SystemSegment::default() }
        } else {
            self.system_segment(selector, &[LDT])?
        };
        self.system.registers_mut().ldt = ldt;
        Ok(())
    }

    /// `ltr`: the task segment, which is busy from now on.
    pub(super) fn load_task(&mut self, instruction: &Instruction) -> Result<(), Exception> {
        let selector = self.read_operand16(instruction)?;
        if selector & !3 == 0 {
            return Err(PROTECTION);
        }
        let mut task = self.system_segment(selector, &[AVAILABLE_TASK, AVAILABLE_TASK_16])?;
        task.kind |= BUSY;
        self.mark_busy(selector)?;
        self.system.registers_mut().task = task;
        Ok(())
    }

    /// A present system descriptor of the GDT, of one of these types.
    fn system_segment(&mut self, selector: u16, types: &[u16]) -> Result<SystemSegment, Exception> {
        const IN_LDT: u16 = 4;
        let descriptor =
            if selector & IN_LDT == 0 { self.system.descriptor(selector)? } else { None };
        let Some(descriptor) = descriptor else { return Err(Exception::protection(selector)) };
        let segment = Segment::from_descriptor(selector, descriptor);
        if !types.contains(&(segment.attributes & SYSTEM_TYPE)) {
            return Err(Exception::protection(selector));
        }
        if segment.attributes & PRESENT == 0 {
            return Err(Exception::not_present(selector));
        }
        let table = TableRegister { base: GuestVirt(segment.base), limit: segment.limit };
        Ok(SystemSegment { selector, table, kind: (segment.attributes & 0xf) as u8 })
    }

    /// Sets the busy bit in the table.
    fn mark_busy(&mut self, selector: u16) -> Result<(), Exception> {
        const ACCESS_BYTE: u32 = 5;
        let Some(entry) = self.system.gdt_entry(selector) else { return Ok(()) };
        let at = entry.wrapping_add(ACCESS_BYTE);
        let [access] = self.read_table(at)?;
        Ok(self.vcpu.write_virt(self.system, at, &[access | BUSY], false)?)
    }
}
