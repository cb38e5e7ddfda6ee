//! What a system decides for itself.

use crate::registers::SystemRegisters;
use lguest_switcher::cpu::IF;
use lguest_switcher::{Cpu, Environment, GuestVirt, Vcpu};
use std::arch::x86_64::CpuidResult;

/// What an instruction changed about the meaning of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingChange {
    /// CR3 was loaded (it may hold the same value as before): all that isn't global is to be forgotten.
    Root,
    /// A bit of CR0 or CR4 changed that has a say in what page tables mean or allow: everything is to be
    /// forgotten.
    Rules,
    /// `invlpg`: the page of this linear address.
    Page(GuestVirt),
}

/// A table whose register was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// By `lgdt`.
    Gdt,
    /// By `lidt`.
    Idt,
}

/// The system that a processor is part of. What a method does when it isn't written is what the manual
/// says.
pub trait System: Environment {
    /// The registers that only kernels see.
    fn registers(&self) -> &SystemRegisters;

    /// The same, to be changed.
    fn registers_mut(&mut self) -> &mut SystemRegisters;

    /// The outermost level, 0 or 1, at which the instructions work that the manual keeps for level 0.
    fn kernel_level(&self) -> u8 {
        0
    }

    /// Interrupts are enabled, as the code that runs now is to see it.
    fn interrupts_enabled(&self, cpu: &Cpu) -> bool {
        cpu.eflags() & IF != 0
    }

    /// Enables or disables interrupts.
    fn enable_interrupts(&mut self, cpu: &mut Cpu, on: bool) {
        let others = cpu.eflags() & !IF;
        cpu.set_eflags(others | if on { IF } else { 0 });
    }

    /// What `cpuid` answers for eax = `leaf`, ecx = `subleaf`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;

    /// `in` of `bytes` (1, 2 or 4) from `port`. An empty bus gives ones.
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        let _ = (port, bytes);
        u32::MAX
    }

    /// `out` of `bytes` (1, 2 or 4) to `port`.
    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        let _ = (port, bytes, value);
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

    /// The meaning of addresses changed; the registers hold the new values.
    fn paging_changed(&mut self, vcpu: &mut Vcpu, change: PagingChange);

    /// CR0 is to become `value`, whose protection or paging bit is clear: `true` if this system has such a mode.
    /// Otherwise the instruction is given up, with nothing changed, and ends as `false` wants it: by #GP(0), unless the
    /// system ends altogether.
    fn allows_mode(&mut self, cpu: &Cpu, value: u32) -> bool;

    /// A table's register was loaded.
    fn table_loaded(&mut self, table: Table) {
        let _ = table;
    }

    /// Where the GDT's entry for `selector` is in memory, when that is where the table is.
    fn gdt_entry(&self, selector: u16) -> Option<GuestVirt> {
        self.registers().gdt.entry(u32::from(selector >> 3))
    }
}
