//! The instructions that load and show the descriptor tables' registers.
//!
//! A first-generation guest hands its tables over by hypercall. A kernel that executes `lgdt`,
//! `lidt`, `lldt` or `ltr` instead gets what a bare PC would give it: the tables stay in
//! its memory, and are read when they are needed.

use crate::machine::Machine;
use crate::privileged::Stumble;
use crate::segments::TableRegister;
use iced_x86::{Code, Instruction, Mnemonic};
use lguest_switcher::{Environment, Exception, GuestVirt, Segment};

/// Access byte of a descriptor: present, and a system descriptor's type.
const PRESENT: u16 = 0x80;
const SYSTEM_TYPE: u16 = 0x1f;
const LDT: u16 = 0x02;
const AVAILABLE_TASK: u16 = 0x09;
const BUSY_TASK: u16 = 0x0b;

impl Machine {
    /// `lgdt`, `lidt`, `sgdt`, `sidt`: a limit of 16 bits and a base of 32 in memory.
    pub(crate) fn table_register(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        let mnemonic = instruction.mnemonic();
        let store = matches!(mnemonic, Mnemonic::Sgdt | Mnemonic::Sidt);
        let at = self.vcpu.linear_address(instruction, 6, store)?;
        let user = !self.in_kernel();
        let mut bytes = [0; 6];
        if store {
            let gdt = mnemonic == Mnemonic::Sgdt;
            let TableRegister { base, limit } =
                if gdt { self.guest.segments.gdt_register } else { self.guest.gates.register };
            let [l0, l1, ..] = limit.to_le_bytes();
            let [b0, b1, b2, b3] = base.0.to_le_bytes();
            self.vcpu.write_virt(&mut self.guest, at, &[l0, l1, b0, b1, b2, b3], user)?;
            return Ok(());
        }
        self.vcpu.read_virt(&mut self.guest, at, &mut bytes, user)?;
        let [l0, l1, b0, b1, b2, mut b3] = bytes;
        if matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
            // With a 16-bit operand the base has 24 bits.
            b3 = 0;
        }
        let table = TableRegister {
            base: GuestVirt(u32::from_le_bytes([b0, b1, b2, b3])),
            limit: u32::from(u16::from_le_bytes([l0, l1])),
        };
        match mnemonic {
            Mnemonic::Lgdt => self.guest.segments.use_table_in_memory(table),
            _ => self.guest.gates.use_table_in_memory(table),
        }
        Ok(())
    }

    /// `lldt`: a null selector means no table.
    pub(crate) fn load_ldt(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        let selector = self.read_operand16(instruction)?;
        let table = if selector & !3 == 0 {
            TableRegister::default()
        } else {
            self.system_segment(selector, &[LDT])?
        };
        self.guest.segments.ldt = (selector, table);
        Ok(())
    }

    /// `ltr`: where the stack for traps is, for a kernel that never says SET_STACK.
    pub(crate) fn load_task(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        let selector = self.read_operand16(instruction)?;
        if selector & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let table = self.system_segment(selector, &[AVAILABLE_TASK])?;
        self.mark_busy(selector)?;
        self.guest.segments.task = (selector, table);
        Ok(())
    }

    /// A present system descriptor of the GDT, of one of these types.
    fn system_segment(&mut self, selector: u16, types: &[u16]) -> Result<TableRegister, Stumble> {
        const IN_LDT: u16 = 4;
        let descriptor =
            if selector & IN_LDT == 0 { self.guest.descriptor(selector) } else { None };
        let segment = descriptor.map(|descriptor| Segment::from_descriptor(selector, descriptor));
        match segment {
            Some(segment) if !types.contains(&(segment.attributes & SYSTEM_TYPE)) => {
                Err(Exception::protection(selector).into())
            }
            Some(segment) if segment.attributes & PRESENT == 0 => {
                Err(Exception::not_present(selector).into())
            }
            Some(segment) => {
                Ok(TableRegister { base: GuestVirt(segment.base), limit: segment.limit })
            }
            None => Err(Exception::protection(selector).into()),
        }
    }

    /// A loaded task segment is busy: in memory, if that is where the table is.
    fn mark_busy(&mut self, selector: u16) -> Result<(), Stumble> {
        const ACCESS_BYTE: u32 = 5;
        let Some(entry) = self.guest.segments.in_memory_entry(selector) else { return Ok(()) };
        let at = entry.wrapping_add(ACCESS_BYTE);
        let [access] = self.guest.read_table::<1>(at)?;
        let busy = access | (BUSY_TASK ^ AVAILABLE_TASK) as u8;
        self.vcpu.write_virt(&mut self.guest, at, &[busy], false)?;
        Ok(())
    }
}
