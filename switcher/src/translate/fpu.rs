//! #NM: FPU instructions look at the virtual CR0.TS.
//!
//! The host's own CR0.TS is never set, so translated code must ask. The question leaves the
//! flags alone: `jrcxz` jumps without looking at them, and rcx waits in r9 meanwhile.

use super::assembler::{Assembler, OpenJump, Place, Reg, Width};
use super::stubs::exception_stub;
use super::unit::Translator;
use crate::frame::offset;
use iced_x86::Instruction;

/// #NM, device not available.
const NO_FPU: u32 = 7;

impl Translator<'_> {
    /// Raises #NM at `instruction` if the FPU is off.
    pub(super) fn check_fpu(&mut self, instruction: &Instruction) {
        let leave = self.leave_if(offset::FPU_TRAP);
        exception_stub(&mut self.hot, &mut self.cold, leave, NO_FPU, instruction.ip32());
    }

    /// A jump that is taken if the frame's 32-bit field at `field` isn't 0. Nothing changes but r9.
    pub(super) fn leave_if(&mut self, field: i32) -> OpenJump {
        leave_unless_zero(&mut self.hot, |hot| {
            hot.load(Width::Dword, Reg::ECX, Place::Frame(field))
        })
    }
}

/// A jump that is taken unless ecx is 0 after `compute`, which changes nothing else. Nothing changes but r9.
pub(super) fn leave_unless_zero(
    out: &mut Assembler,
    compute: impl FnOnce(&mut Assembler),
) -> OpenJump {
    /// Bytes of the second `mov` and the `jmp`.
    const WAY_OUT: u8 = 8;
    out.copy(Width::Qword, Reg::R9, Reg::ECX);
    compute(out);
    out.skip_if_rcx_is_zero(WAY_OUT);
    out.copy(Width::Dword, Reg::ECX, Reg::R9);
    let leave = out.jump();
    out.copy(Width::Dword, Reg::ECX, Reg::R9);
    leave
}
