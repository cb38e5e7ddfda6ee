//! Privileged instructions.
//!
//! A guest that knows it is one makes hypercalls; but some of its code doesn't know (a driver
//! that pokes at a port, a boot loader's leftovers), and for the kernel at level 1 every instruction
//! works that works at level 0 on a bare PC. User code gets trap 13 where the manual says so. What
//! the instructions do is in the processor's own crate; here is what is special about this processor:
//!
//! - its kernel runs at level 1;
//! - the real interrupt flag is never clear; what the kernel means by `cli`, `sti`, `pushf` and
//!   `popf` is bit 9 of `irq_enabled`;
//! - a table that the kernel loads itself counts from then on, instead of what it said by hypercall;
//! - what is behind ports, the launcher says: nothing for most guests, so that reading gives all ones;
//! - it never leaves protected mode, nor switches paging off: that ends the guest.

use crate::guest::Guest;
use crate::kill::Kill;
use crate::machine::{Machine, Sleep};
use crate::trace::Event;
use iced_x86::{FastFormatter, Instruction, Mnemonic};
use lguest_abi::segments::KERNEL_LEVEL;
use lguest_processor::cpuid::cpuid;
use lguest_processor::registers::{cr0, cr4};
use lguest_processor::{Done, Effect, PagingChange, System, SystemRegisters, Table, execute};
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::{IF, TF};
use lguest_switcher::{Cpu, GuestPhys, GuestVirt, SegmentRegister, Vcpu};
use std::arch::x86_64::CpuidResult;

/// The bits of CR4 that go with what `cpuid` offers.
const CR4_OFFERED: u32 = cr4::TSD | cr4::DE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;

/// The registers at the guest's first instruction: paging is on, and the FPU is ready.
pub(crate) fn first_registers(root: GuestPhys) -> SystemRegisters {
    let cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    let mut registers = SystemRegisters::new(cr0, CR4_OFFERED);
    registers.cr3 = root.0;
    registers
}

impl Machine {
    /// eip is at a privileged instruction: carries it out, or delivers the trap that it raises.
    pub(crate) fn privileged(&mut self, instruction: &Instruction) -> Result<(), Kill> {
        let stepping = self.vcpu.cpu.eflags() & TF != 0;
        let eip = self.vcpu.cpu.eip();
        self.guest.trace(|| Event::Emulated { name: disassembly(instruction), eip });
        if instruction.mnemonic() == Mnemonic::Cli
            && self.guest.generation.skips_cli()
            && self.in_kernel()
        {
            self.vcpu.cpu.set_eip(eip.wrapping_add(instruction.len() as u32));
            return if stepping { self.debug_trap(SINGLE_STEP) } else { Ok(()) };
        }
        let result = execute(&mut self.vcpu, &mut self.guest, instruction);
        self.guest.verdict()?;
        if instruction.mnemonic() == Mnemonic::Lgdt {
            self.vcpu.descriptors_changed(0..u16::MAX);
        }
        let Done { effect, hits } = match result {
            Ok(done) => done,
            Err(exception) => return self.trap(exception),
        };
        match effect {
            Effect::None => {}
            Effect::Halt => self.sleep = Sleep::Instruction,
            Effect::Shadow => self.interrupt_shadow = Some(self.vcpu.cpu.eip()),
        }
        let reasons = hits | if stepping { SINGLE_STEP } else { 0 };
        if reasons == 0 { Ok(()) } else { self.debug_trap(reasons) }
    }

    /// The TS hypercall: whether FPU use raises trap 7.
    pub(crate) fn set_task_switched(&mut self, set: bool) {
        let registers = &mut self.guest.registers;
        registers.cr0 = registers.cr0 & !cr0::TS | if set { cr0::TS } else { 0 };
        self.vcpu.cpu.set_fpu_trap(registers.fpu_trap());
    }

    /// The end of a guest that met an instruction which can't be run yet.
    pub(crate) fn unsupported(&mut self, instruction: &Instruction) -> Kill {
        let eip = self.vcpu.cpu.eip();
        let mut bytes = vec![0; instruction.len()];
        let at = GuestVirt(self.vcpu.cpu.segment(SegmentRegister::Cs).base.wrapping_add(eip));
        let user = !self.in_kernel();
        let read = self.vcpu.read_virt(&mut self.guest, at, &mut bytes, user);
        let bytes = match read {
            Ok(()) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
            Err(_) => "unreadable".to_owned(),
        };
        Kill::Unsupported { eip, text: disassembly(instruction), bytes }
    }
}

impl System for Guest {
    fn registers(&self) -> &SystemRegisters {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut SystemRegisters {
        &mut self.registers
    }

    fn kernel_level(&self) -> u8 {
        KERNEL_LEVEL as u8
    }

    fn interrupts_enabled(&self, cpu: &Cpu) -> bool {
        let in_kernel = u16::from(cpu.cpl()) == KERNEL_LEVEL;
        let flag = if in_kernel { self.irq_enabled() } else { cpu.eflags() };
        flag & IF != 0
    }

    fn enable_interrupts(&mut self, _cpu: &mut Cpu, on: bool) {
        self.set_irq_enabled(on);
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
    }

    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        self.bus.port_in(port, bytes)
    }

    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        self.bus.port_out(port, bytes, value);
    }

    fn paging_changed(&mut self, vcpu: &mut Vcpu, change: PagingChange) {
        let result = match change {
            PagingChange::Root => self.load_root(vcpu, GuestPhys(self.registers.cr3)),
            // What the kernel wrote to without the right may be shown as writable.
            PagingChange::Rules => self.flush_all(vcpu),
            PagingChange::Page(address) => {
                self.shadow.flush_page(vcpu, &self.memory, address);
                Ok(())
            }
        };
        if let Err(kill) = result {
            self.condemn(kill);
        }
    }

    fn allows_mode(&mut self, cpu: &Cpu, value: u32) -> bool {
        self.condemn(Kill::ModeChange { register: "cr0", value, eip: cpu.eip() });
        false
    }

    fn table_loaded(&mut self, table: Table) {
        match table {
            Table::Gdt => self.segments.use_table_in_memory(),
            Table::Idt => self.gates.use_table_in_memory(),
        }
    }

    fn gdt_entry(&self, selector: u16) -> Option<GuestVirt> {
        let entry = self.registers.gdt.entry(u32::from(selector >> 3));
        entry.filter(|_| self.segments.is_in_memory())
    }
}

fn disassembly(instruction: &Instruction) -> String {
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    text
}
