//! Privileged instructions, carried out as hardware would.
//!
//! The Switcher leaves with one of them ([`Exit::Privileged`](lguest_switcher::Exit::Privileged)), eip at it. [`execute`]
//! checks who may execute it, does it, and moves eip on; or nothing has changed and there is an
//! exception to deliver.
//!
//! Everything follows the "Operation" and "Protected Mode Exceptions" of each instruction in SDM volume 2.

mod control;
mod descriptor_tables;
mod fast_calls;
mod flags;
mod model_specific;
mod operands;
mod ports;

use crate::stack::on_stack;
use crate::system::System;
use iced_x86::{Instruction, Mnemonic};
use lguest_switcher::cpu::IOPL;
use lguest_switcher::{Exception, Gpr, GuestVirt, PageFault, SegmentRegister, Vcpu};

/// #GP(0).
const PROTECTION: Exception = Exception::protection(0);

/// What an instruction asks of whoever runs the processor, beyond going on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// `hlt`: wait for an interrupt.
    Halt,
    /// `sti` enabled interrupts that were disabled: none is recognised before the next instruction has been executed.
    Shadow,
}

/// How an instruction ended that raised no exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// What it asks for.
    pub effect: Effect,
    /// The breakpoints that its accesses have hit, as bits 0 to 3 of DR6: if there are any, #DB follows.
    pub hits: u32,
}

/// Carries out the privileged `instruction`, which eip is at.
///
/// # Errors
/// The exception that it raises. Nothing has changed then, but for the whole steps of a repeated `ins` or `outs`.
pub fn execute(
    vcpu: &mut Vcpu,
    system: &mut dyn System,
    instruction: &Instruction,
) -> Result<Done, Exception> {
    let mut processor = Processor { vcpu, system, hits: 0 };
    let effect = processor.execute(instruction)?;
    Ok(Done { effect, hits: processor.hits })
}

/// The processor, both halves.
struct Processor<'a> {
    vcpu: &'a mut Vcpu,
    system: &'a mut dyn System,
    /// Breakpoints hit, as in [`Done::hits`].
    hits: u32,
}

impl Processor<'_> {
    /// Carries out one instruction. What changes eip itself returns early; behind all others it moves on.
    fn execute(&mut self, instruction: &Instruction) -> Result<Effect, Exception> {
        use Mnemonic as M;
        let mnemonic = instruction.mnemonic();
        if self.keeps_for_kernel(mnemonic) && !self.in_kernel() {
            return Err(PROTECTION);
        }
        let mut effect = Effect::None;
        match mnemonic {
            M::Cli => self.disable_interrupts()?,
            M::Sti => effect = self.enable_interrupts()?,
            M::Pushf | M::Pushfd => self.push_flags(mnemonic == M::Pushfd)?,
            M::Popf | M::Popfd => self.pop_flags(mnemonic == M::Popfd)?,
            M::Iretd => return self.interrupt_return(4),
            M::Iret => return self.interrupt_return(2),
            M::Hlt => effect = Effect::Halt,
            M::Cpuid => self.identify(),
            M::In => self.port_in(instruction)?,
            M::Out => self.port_out(instruction)?,
            M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
                return self.port_string(instruction);
            }
            // Caches are the host's: there is nothing to write back.
            M::Wbinvd | M::Invd => {}
            M::Clts => self.clear_task_switched(),
            M::Mov => self.move_special(instruction)?,
            M::Lmsw => self.load_machine_status(instruction)?,
            M::Smsw => self.write_operand(instruction, self.system.registers().cr0)?,
            M::Invlpg => self.invalidate_page(instruction)?,
            M::Lgdt | M::Lidt => self.load_table(instruction)?,
            M::Sgdt | M::Sidt => self.store_table(instruction)?,
            M::Lldt => self.load_ldt(instruction)?,
            M::Ltr => self.load_task(instruction)?,
            M::Sldt => {
                let selector = self.system.registers().ldt.selector;
                self.write_operand(instruction, selector.into())?;
            }
            M::Str => {
                let selector = self.system.registers().task.selector;
                self.write_operand(instruction, selector.into())?;
            }
            M::Rdmsr => self.read_model_specific()?,
            M::Wrmsr => self.write_model_specific()?,
            M::Sysenter => return self.sysenter(),
            M::Sysexit => return self.sysexit(),
            // rdpmc too: there are no counters.
            _ => return Err(PROTECTION),
        }
        self.skip(instruction);
        Ok(effect)
    }

    /// The manual wants level 0 for it, whatever its operands.
    fn keeps_for_kernel(&self, mnemonic: Mnemonic) -> bool {
        use Mnemonic as M;
        matches!(
            mnemonic,
            M::Hlt
                | M::Wbinvd
                | M::Invd
                | M::Clts
                | M::Mov
                | M::Lmsw
                | M::Invlpg
                | M::Lgdt
                | M::Lidt
                | M::Lldt
                | M::Ltr
                | M::Rdmsr
                | M::Wrmsr
                | M::Sysexit
        )
    }

    /// At a level that may do everything.
    fn in_kernel(&self) -> bool {
        self.vcpu.cpu.cpl() <= self.system.kernel_level()
    }

    /// Accesses that the instruction makes count as a user's.
    fn user(&self) -> bool {
        self.vcpu.cpu.cpl() == 3
    }

    /// The current level may touch the interrupt flag, and ports: IOPL says which levels may.
    fn has_io_privilege(&self) -> bool {
        let iopl = (self.vcpu.cpu.eflags() & IOPL) >> IOPL.trailing_zeros();
        self.in_kernel() || u32::from(self.vcpu.cpu.cpl()) <= iopl
    }

    /// Moves eip behind the instruction.
    fn skip(&mut self, instruction: &Instruction) {
        let eip = self.vcpu.cpu.eip();
        self.vcpu.cpu.set_eip(eip.wrapping_add(instruction.len() as u32));
    }

    /// `iret` with operands of `size` bytes.
    fn interrupt_return(&mut self, size: u32) -> Result<Effect, Exception> {
        let cpu = &self.vcpu.cpu;
        let (stack, level) = (cpu.segment(SegmentRegister::Ss), cpu.cpl());
        let frame = on_stack(&stack, cpu.gpr(Gpr::Esp), size);
        self.vcpu.iret(self.system, size)?;
        // eip, cs and eflags; to an outer level esp and ss as well.
        let words = if self.vcpu.cpu.cpl() == level { 3 } else { 5 };
        if let Ok(frame) = frame {
            self.touch(frame, words * size, false);
        }
        Ok(Effect::None)
    }

    fn identify(&mut self) {
        let cpu = &mut self.vcpu.cpu;
        let answer = self.system.cpuid(cpu.gpr(Gpr::Eax), cpu.gpr(Gpr::Ecx));
        cpu.set_gpr(Gpr::Eax, answer.eax);
        cpu.set_gpr(Gpr::Ebx, answer.ebx);
        cpu.set_gpr(Gpr::Ecx, answer.ecx);
        cpu.set_gpr(Gpr::Edx, answer.edx);
    }

    /// Reads memory with the rights of the current level.
    fn read<const N: usize>(&mut self, at: GuestVirt) -> Result<[u8; N], PageFault> {
        let mut bytes = [0; N];
        let user = self.user();
        self.vcpu.read_virt(self.system, at, &mut bytes, user)?;
        self.touch(at, N as u32, false);
        Ok(bytes)
    }

    /// Writes memory with the rights of the current level.
    fn write(&mut self, at: GuestVirt, bytes: &[u8]) -> Result<(), PageFault> {
        let user = self.user();
        self.vcpu.write_virt(self.system, at, bytes, user)?;
        self.touch(at, bytes.len() as u32, true);
        Ok(())
    }

    /// Memory was accessed: notes the breakpoints there.
    fn touch(&mut self, at: GuestVirt, bytes: u32, write: bool) {
        self.hits |= self.vcpu.breakpoints_touched(at, bytes, write);
    }

    /// Reads a table of the processor's own: as level 0 does, whatever the current one.
    fn read_table<const N: usize>(&mut self, at: GuestVirt) -> Result<[u8; N], PageFault> {
        let mut bytes = [0; N];
        self.vcpu.read_virt(self.system, at, &mut bytes, false)?;
        Ok(bytes)
    }
}
