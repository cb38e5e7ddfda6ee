//! Ports: there are none.
//!
//! A guest of the first generation has no hardware behind ports. Reading gives all ones, as from
//! an empty bus; what is written is lost. The string forms still move memory, with all the
//! faults that can bring.

use crate::machine::Machine;
use crate::privileged::{Stumble, general};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lguest_switcher::{Gpr, GuestVirt};

/// Elements that one turn of a `rep` moves before somebody else may have a turn.
const AT_ONCE: u32 = 1024;
/// eflags: strings run downwards.
const DIRECTION: u32 = 1 << 10;

impl Machine {
    /// `in`: all ones in the part of eax that is read.
    pub(crate) fn port_in(&mut self, instruction: &Instruction) {
        let ones = match instruction.op0_register() {
            Register::AL => 0xff,
            Register::AX => 0xffff,
            _ => u32::MAX,
        };
        let eax = self.vcpu.cpu.gpr(Gpr::Eax);
        self.vcpu.cpu.set_gpr(Gpr::Eax, eax | ones);
    }

    /// `ins` and `outs`, with or without `rep`. A long one is left unfinished, eip still at it, so that
    /// interrupts get their turn; a fault leaves the registers as after the last whole element.
    pub(crate) fn port_string(&mut self, instruction: &Instruction) -> Result<(), Stumble> {
        let input =
            matches!(instruction.mnemonic(), Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd);
        let size = match instruction.mnemonic() {
            Mnemonic::Insb | Mnemonic::Outsb => 1,
            Mnemonic::Insw | Mnemonic::Outsw => 2,
            _ => 4,
        };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let kind = if input { instruction.op0_kind() } else { instruction.op1_kind() };
        let narrow = matches!(kind, OpKind::MemoryESDI | OpKind::MemorySegSI);
        let mask = if narrow { 0xffff } else { u32::MAX };
        let index = general(if input { Register::EDI } else { Register::ESI });
        let step =
            if self.vcpu.cpu.eflags() & DIRECTION != 0 { 0u32.wrapping_sub(size) } else { size };
        for _ in 0..AT_ONCE {
            let count = self.vcpu.cpu.gpr(Gpr::Ecx);
            if repeated && count & mask == 0 {
                self.skip(instruction);
                return Ok(());
            }
            let at = self.vcpu.linear_address(instruction, size, input)?;
            self.touch(at, size as usize, input)?;
            self.advance(index, step, mask);
            if !repeated {
                self.skip(instruction);
                return Ok(());
            }
            self.advance(Gpr::Ecx, u32::MAX, mask);
        }
        Ok(())
    }

    /// One element: ones to memory, or memory to nowhere.
    fn touch(&mut self, at: GuestVirt, size: usize, input: bool) -> Result<(), Stumble> {
        let mut element = [0xff; 4];
        if input {
            self.vcpu.write_virt(&mut self.guest, at, &element[..size], false)?;
        } else {
            self.vcpu.read_virt(&mut self.guest, at, &mut element[..size], false)?;
        }
        Ok(())
    }

    /// Adds to the part of a register that `mask` covers.
    fn advance(&mut self, register: Gpr, step: u32, mask: u32) {
        let old = self.vcpu.cpu.gpr(register);
        self.vcpu.cpu.set_gpr(register, old & !mask | old.wrapping_add(step) & mask);
    }
}
