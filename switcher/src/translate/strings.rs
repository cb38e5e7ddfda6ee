//! movs, cmps, stos, lods and scas.
//!
//! Their destination takes no segment prefix, so esi and edi are turned into host addresses for
//! the one instruction and cut back to 32 bits behind it. The window begins at a multiple of 4
//! GiB, so the cut is right wherever a repetition stops. One that runs over an end of the
//! window meets a guard page, and Rust goes on.

use super::assembler::{Reg, Sum, Width};
use super::unit::Translator;
use super::{Point, Route};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

impl Translator<'_> {
    pub(super) fn string(&mut self, instruction: &Instruction, route: Route) {
        let based = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        let flat = self.request.assumptions.flat && !based;
        let uses = |kind: OpKind| instruction.op_kinds().any(|operand| operand == kind);
        let (source, destination) = (uses(OpKind::MemorySegESI), uses(OpKind::MemoryESEDI));
        // While single-stepping, each repetition is a step.
        let steps = self.request.assumptions.is_single() && is_repeated(instruction);
        if !flat || steps || route != Route::Window || !source && !destination {
            return self.emulated(instruction);
        }
        for (used, register) in [(source, Reg::ESI), (destination, Reg::EDI)] {
            if used {
                self.hot.lea(Width::Qword, register, Sum::of(Reg::WINDOW, register, 0));
            }
        }
        self.raw_string(instruction);
        if is_repeated(instruction) {
            self.point(Point {
                host: self.hot.here(),
                eip: instruction.next_ip32(),
                len: 0,
                entry: false,
                rep: false,
                moved: 0,
                inlined: false,
            });
        }
        for (used, register) in [(source, Reg::ESI), (destination, Reg::EDI)] {
            if used {
                self.hot.copy(Width::Dword, register, register);
            }
        }
    }

    /// The instruction itself: in 64-bit mode its addresses have 64 bits.
    fn raw_string(&mut self, instruction: &Instruction) {
        if instruction.has_repne_prefix() {
            self.hot.raw(&[0xf2]);
        } else if instruction.has_rep_prefix() {
            self.hot.raw(&[0xf3]);
        }
        let (opcode, bytes) = opcode(instruction.mnemonic());
        match bytes {
            1 => self.hot.raw(&[opcode]),
            2 => self.hot.raw(&[0x66, opcode | 1]),
            _ => self.hot.raw(&[opcode | 1]),
        }
    }
}

/// The opcode of the byte form (SDM volume 2, the opcode maps), and the bytes in a step.
fn opcode(mnemonic: Mnemonic) -> (u8, u8) {
    use Mnemonic as M;
    match mnemonic {
        M::Movsb => (0xa4, 1),
        M::Movsw => (0xa4, 2),
        M::Movsd => (0xa4, 4),
        M::Cmpsb => (0xa6, 1),
        M::Cmpsw => (0xa6, 2),
        M::Cmpsd => (0xa6, 4),
        M::Stosb => (0xaa, 1),
        M::Stosw => (0xaa, 2),
        M::Stosd => (0xaa, 4),
        M::Lodsb => (0xac, 1),
        M::Lodsw => (0xac, 2),
        M::Lodsd => (0xac, 4),
        M::Scasb => (0xae, 1),
        M::Scasw => (0xae, 2),
        _ => (0xae, 4),
    }
}

/// Whether a string instruction repeats. (Either prefix repeats those that compare nothing.)
pub(super) fn is_repeated(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}
