//! FPU instructions while the FPU isn't to be used.
//!
//! The Switcher leaves with #NM at any instruction for x87, MMX or SSE while CR0.TS or CR0.EM is set. What the
//! manual wants depends on which of the two it is, and on the instruction (SDM volume 3, sections "Configuring the x87 FPU
//! Environment" and "Emulation of the MMX Instruction Set").

use super::{Bare, Board, Left};
use crate::registers::cr0;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use lguest_switcher::{Exception, PAGE_SIZE};

/// Bytes of an instruction at most.
const LONGEST: usize = 15;

impl<B: Board> Bare<B> {
    /// eip is at an FPU instruction, and the FPU isn't to be used.
    pub(super) fn without_fpu(&mut self) -> Left {
        let control = self.system.registers.cr0;
        let is_set = |bits: u32| control & bits == bits;
        let instruction = self.instruction();
        if instruction.mnemonic() == Mnemonic::Wait {
            let trapped = is_set(cr0::TS | cr0::MP);
            return if trapped { Exception::NO_FPU.into() } else { self.execute_with_fpu() };
        }
        let emulated = is_set(cr0::EM) && uses_vectors(&instruction);
        if emulated { Exception::INVALID_OPCODE.into() } else { Exception::NO_FPU.into() }
    }

    /// Executes one instruction as if the FPU could be used.
    fn execute_with_fpu(&mut self) -> Left {
        self.vcpu.cpu.set_fpu_trap(false);
        let left = self.leave(true);
        self.vcpu.cpu.set_fpu_trap(self.system.registers.fpu_trap());
        left
    }

    /// The instruction at eip, whose beginning could be fetched a moment ago.
    fn instruction(&mut self) -> Instruction {
        let (at, user) = (self.linear_eip(), self.vcpu.cpu.cpl() == 3);
        let mut bytes = [0; LONGEST];
        let here = LONGEST.min((PAGE_SIZE - at.offset()) as usize);
        let (first, second) = bytes.split_at_mut(here);
        let next = at.wrapping_add(here as u32);
        // What can't be read isn't part of it.
        let _ = self.vcpu.read_virt(&mut self.system, at, first, user);
        let _ = self.vcpu.read_virt(&mut self.system, next, second, user);
        Decoder::with_ip(32, &bytes, 0, DecoderOptions::NONE).decode()
    }
}

/// Whether it is one of MMX or SSE, for which there is no emulation.
fn uses_vectors(instruction: &Instruction) -> bool {
    let is_vector = |register: Register| register.is_mm() || register.is_xmm();
    let operands = 0..instruction.op_count();
    let other =
        matches!(instruction.mnemonic(), Mnemonic::Emms | Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr);
    other || operands.into_iter().any(|operand| is_vector(instruction.op_register(operand)))
}
