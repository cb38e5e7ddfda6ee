//! Privileged instructions, carried out as hardware would.
//!
//! A guest that knows it is one makes hypercalls; but some of its code doesn't know (a driver
//! that pokes at a port, a boot loader's leftovers), and for the kernel at level 1 every instruction
//! works that works at level 0 on a bare PC. User code gets trap 13 where the manual says so.
//!
//! The one thing that is different is the interrupt flag. The real one is never clear in a guest;
//! what the kernel means by `cli`, `sti`, `pushf` and `popf` is bit 9 of `irq_enabled`.
//!
//! The longer groups have files of their own: `control_registers.rs`, `descriptor_tables.rs`,
//! `port_io.rs`, `cpuid.rs`.

use crate::cpuid::cpuid;
use crate::delivery::{allows, offset_on};
use crate::kill::Kill;
use crate::machine::{Machine, Sleep};
use crate::trace::Event;
use iced_x86::{FastFormatter, Instruction, Mnemonic, OpKind, Register};
use lguest_abi::segments::KERNEL_LEVEL;
use lguest_abi::traps::DEBUG;
use lguest_switcher::cpu::{IF, IOPL, RF, TF, VM};
use lguest_switcher::{Exception, Gpr, GuestVirt, PageFault, Segment, SegmentRegister};

/// Why an instruction wasn't carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stumble {
    /// The guest gets a trap, with nothing changed.
    Trap(Exception),
    /// The guest ends.
    Kill(Kill),
}

impl From<Exception> for Stumble {
    fn from(exception: Exception) -> Self {
        Self::Trap(exception)
    }
}

impl From<PageFault> for Stumble {
    fn from(fault: PageFault) -> Self {
        Self::Trap(fault.into())
    }
}

impl From<Kill> for Stumble {
    fn from(kill: Kill) -> Self {
        Self::Kill(kill)
    }
}

/// Trap 13 with error code 0.
pub(crate) const PROTECTION: Stumble = Stumble::Trap(Exception::protection(0));

/// General registers in the order that instructions encode them.
const GPRS: [Gpr; 8] =
    [Gpr::Eax, Gpr::Ecx, Gpr::Edx, Gpr::Ebx, Gpr::Esp, Gpr::Ebp, Gpr::Esi, Gpr::Edi];

impl Machine {
    /// eip is at a privileged instruction: carries it out, or delivers the trap that it raises.
    pub(crate) fn privileged(&mut self, instruction: &Instruction) -> Result<(), Kill> {
        let stepping = self.vcpu.cpu.eflags() & TF != 0;
        let eip = self.vcpu.cpu.eip();
        self.guest.trace(|| Event::Emulated { name: disassembly(instruction), eip });
        let result = self.emulate(instruction);
        self.guest.verdict()?;
        match result {
            Ok(()) if stepping => self.trap(Exception::plain(DEBUG)),
            Ok(()) => Ok(()),
            Err(Stumble::Trap(exception)) => self.trap(exception),
            Err(Stumble::Kill(kill)) => Err(kill),
        }
    }

    /// Carries out one instruction. What changes eip itself returns early; behind all others it moves on.
    fn emulate(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        use Mnemonic as M;
        let mnemonic = instruction.mnemonic();
        let everyone = [
            M::Pushf,
            M::Pushfd,
            M::Popf,
            M::Popfd,
            M::Iret,
            M::Iretd,
            M::Cpuid,
            M::Sgdt,
            M::Sidt,
            M::Sldt,
            M::Str,
            M::Smsw,
            M::Sysenter,
        ];
        if !self.in_kernel() && !everyone.contains(&mnemonic) {
            return Err(PROTECTION);
        }
        match mnemonic {
            M::Cli => self.guest.set_irq_enabled(false),
            M::Sti => {
                let behind = self.vcpu.cpu.eip().wrapping_add(instruction.len() as u32);
                self.interrupt_shadow = (self.guest.irq_enabled() == 0).then_some(behind);
                self.guest.set_irq_enabled(true);
            }
            M::Pushf | M::Pushfd => self.push_flags(mnemonic == M::Pushfd)?,
            M::Popf | M::Popfd => self.pop_flags(mnemonic == M::Popfd)?,
            M::Iretd => return Ok(self.vcpu.iret(&mut self.guest, 4)?),
            M::Iret => return Ok(self.vcpu.iret(&mut self.guest, 2)?),
            M::Hlt => self.sleep = Sleep::Instruction,
            M::Cpuid => self.identify(),
            M::In => self.port_in(instruction),
            M::Out | M::Wbinvd | M::Invd => {}
            M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
                return self.port_string(instruction);
            }
            M::Clts => self.set_task_switched(false),
            M::Mov => self.move_special(instruction)?,
            M::Lmsw => {
                let value = self.read_operand16(instruction)?;
                self.load_machine_status(u32::from(value))?;
            }
            M::Smsw => self.write_operand(instruction, self.guest.control.cr0)?,
            M::Invlpg => {
                let address = self.vcpu.linear_address(instruction, 1, false)?;
                self.invalidate_page(address);
            }
            M::Lgdt | M::Lidt | M::Sgdt | M::Sidt => self.table_register(instruction)?,
            M::Lldt => self.load_ldt(instruction)?,
            M::Ltr => self.load_task(instruction)?,
            M::Sldt => self.write_operand(instruction, u32::from(self.guest.segments.ldt.0))?,
            M::Str => self.write_operand(instruction, u32::from(self.guest.segments.task.0))?,
            M::Rdmsr => self.read_model_specific()?,
            M::Wrmsr => self.write_model_specific()?,
            M::Sysenter => return self.sysenter(),
            M::Sysexit => return self.sysexit(),
            // rdpmc too: there are no counters.
            _ => return Err(PROTECTION),
        }
        self.skip(instruction);
        Ok(())
    }

    /// Moves eip behind the instruction.
    pub(crate) fn skip(&mut self, instruction: &Instruction) {
        let eip = self.vcpu.cpu.eip();
        self.vcpu.cpu.set_eip(eip.wrapping_add(instruction.len() as u32));
    }

    /// `pushf`: at level 1 with the guest's own interrupt flag.
    fn push_flags(&mut self, wide: bool) -> Result<(), Stumble> {
        let cpu = &self.vcpu.cpu;
        let mut flags = cpu.eflags() & !(RF | VM);
        if self.in_kernel() {
            flags = flags & !IF | self.guest.irq_enabled();
        }
        let bytes = flags.to_le_bytes();
        let bytes = if wide { &bytes[..] } else { &bytes[..2] };
        let stack = cpu.segment(SegmentRegister::Ss);
        let esp = moved(&stack, cpu.gpr(Gpr::Esp), 0u32.wrapping_sub(bytes.len() as u32));
        let user = !self.in_kernel();
        let at = on_stack(&stack, esp, bytes.len() as u32)?;
        self.vcpu.write_virt(&mut self.guest, at, bytes, user)?;
        self.vcpu.cpu.set_gpr(Gpr::Esp, esp);
        Ok(())
    }

    /// `popf`: the level in IOPL is 0, so nobody changes it; the kernel changes its own interrupt flag, user code none.
    fn pop_flags(&mut self, wide: bool) -> Result<(), Stumble> {
        let cpu = &self.vcpu.cpu;
        let (stack, esp, before) =
            (cpu.segment(SegmentRegister::Ss), cpu.gpr(Gpr::Esp), cpu.eflags());
        let len = if wide { 4 } else { 2 };
        let mut bytes = [0; 4];
        let user = !self.in_kernel();
        let at = on_stack(&stack, esp, len as u32)?;
        self.vcpu.read_virt(&mut self.guest, at, &mut bytes[..len], user)?;
        let kept = IF | IOPL | VM | if wide { 0 } else { 0xffff_0000 };
        let popped = u32::from_le_bytes(bytes);
        self.vcpu.cpu.set_eflags(popped & !(kept | RF) | before & kept & !RF);
        self.vcpu.cpu.set_gpr(Gpr::Esp, moved(&stack, esp, len as u32));
        if !user {
            self.guest.set_irq_enabled(popped & IF != 0);
        }
        Ok(())
    }

    fn identify(&mut self) {
        let leaf = cpuid(self.vcpu.cpu.gpr(Gpr::Eax));
        let registers = [
            (Gpr::Eax, leaf.eax),
            (Gpr::Ebx, leaf.ebx),
            (Gpr::Ecx, leaf.ecx),
            (Gpr::Edx, leaf.edx),
        ];
        for (register, value) in registers {
            self.vcpu.cpu.set_gpr(register, value);
        }
    }

    /// `mov` to or from a control or debug register.
    fn move_special(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        if from.is_gpr32() {
            let value = self.vcpu.cpu.gpr(general(from));
            if to.is_cr() {
                return self.set_control_register(to.number(), value);
            }
            return Ok(self.guest.control.set_debug(to.number(), value)?);
        }
        let value = if from.is_cr() {
            self.control_register(from.number())?
        } else {
            self.guest.control.debug(from.number())?
        };
        self.vcpu.cpu.set_gpr(general(to), value);
        Ok(())
    }

    fn read_model_specific(&mut self) -> Result<(), Stumble> {
        let value = self.guest.control.model_specific(self.vcpu.cpu.gpr(Gpr::Ecx))?;
        self.vcpu.cpu.set_gpr(Gpr::Eax, value as u32);
        self.vcpu.cpu.set_gpr(Gpr::Edx, (value >> 32) as u32);
        Ok(())
    }

    fn write_model_specific(&mut self) -> Result<(), Stumble> {
        let cpu = &self.vcpu.cpu;
        let value = u64::from(cpu.gpr(Gpr::Edx)) << 32 | u64::from(cpu.gpr(Gpr::Eax));
        Ok(self.guest.control.set_model_specific(cpu.gpr(Gpr::Ecx), value)?)
    }

    /// `sysenter`: into the kernel at level 1, with interrupts off, from wherever.
    fn sysenter(&mut self) -> Result<(), Stumble> {
        let control = &self.guest.control;
        let (cs, esp, eip) =
            (control.sysenter_cs as u16, control.sysenter_esp, control.sysenter_eip);
        if cs & !3 == 0 {
            return Err(PROTECTION);
        }
        self.switch_level(cs & !3 | KERNEL_LEVEL, (cs & !3).wrapping_add(8) | KERNEL_LEVEL);
        self.vcpu.cpu.set_gpr(Gpr::Esp, esp);
        self.vcpu.cpu.set_eip(eip);
        self.guest.set_irq_enabled(false);
        Ok(())
    }

    /// `sysexit`: back to user mode, with ecx and edx as esp and eip.
    fn sysexit(&mut self) -> Result<(), Stumble> {
        let cs = self.guest.control.sysenter_cs as u16;
        if cs & !3 == 0 {
            return Err(PROTECTION);
        }
        self.switch_level(cs.wrapping_add(16) | 3, cs.wrapping_add(24) | 3);
        let (esp, eip) = (self.vcpu.cpu.gpr(Gpr::Ecx), self.vcpu.cpu.gpr(Gpr::Edx));
        self.vcpu.cpu.set_gpr(Gpr::Esp, esp);
        self.vcpu.cpu.set_eip(eip);
        Ok(())
    }

    /// Flat segments of another level, whatever the tables say: as sysenter and sysexit make them.
    fn switch_level(&mut self, cs: u16, ss: u16) {
        let cpu = &mut self.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Ss, Segment::flat_data(ss));
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(cs));
        cpu.set_eflags(cpu.eflags() & !(VM | RF));
    }

    /// The 16-bit operand of `lmsw`, `lldt`, `ltr`.
    pub(crate) fn read_operand16(&mut self, instruction: &Instruction) -> Result<u16, Stumble> {
        if instruction.op0_kind() == OpKind::Register {
            return Ok(self.vcpu.cpu.gpr(general(instruction.op0_register())) as u16);
        }
        let at = self.vcpu.linear_address(instruction, 2, false)?;
        let mut bytes = [0; 2];
        let user = !self.in_kernel();
        self.vcpu.read_virt(&mut self.guest, at, &mut bytes, user)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// The operand of `smsw`, `sldt`, `str`: 16 bits in memory, the register's width in a register.
    fn write_operand(&mut self, instruction: &Instruction, value: u32) -> Result<(), Stumble> {
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            let old = self.vcpu.cpu.gpr(general(register));
            let new = if register.is_gpr16() { old & 0xffff_0000 | value & 0xffff } else { value };
            self.vcpu.cpu.set_gpr(general(register), new);
            return Ok(());
        }
        let at = self.vcpu.linear_address(instruction, 2, true)?;
        let user = !self.in_kernel();
        self.vcpu.write_virt(&mut self.guest, at, &(value as u16).to_le_bytes(), user)?;
        Ok(())
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

/// Where `bytes` at the stack pointer are, if the stack's limit allows them; otherwise trap 12.
fn on_stack(stack: &Segment, esp: u32, bytes: u32) -> Result<GuestVirt, Exception> {
    let offset = offset_on(stack, esp);
    if allows(stack, offset, bytes) {
        Ok(GuestVirt(stack.base.wrapping_add(offset)))
    } else {
        Err(Exception::stack(0))
    }
}

/// The stack pointer moved by `distance`: sp alone on a 16-bit stack.
fn moved(stack: &Segment, esp: u32, distance: u32) -> u32 {
    let sum = esp.wrapping_add(distance);
    if stack.is_32bit() { sum } else { esp & 0xffff_0000 | sum & 0xffff }
}

/// The general register that `register` is, or is a part of.
pub(crate) fn general(register: Register) -> Gpr {
    GPRS[register.full_register32().number() % GPRS.len()]
}

fn disassembly(instruction: &Instruction) -> String {
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    text
}
