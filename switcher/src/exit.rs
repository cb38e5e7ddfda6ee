//! Why the processor stopped running guest code.

use crate::address::GuestVirt;
use iced_x86::Instruction;

/// A processor exception that guest code raised.
///
/// For a fault, eip is at the instruction and nothing of it has happened; for a trap (#DB) eip is
/// behind it (SDM volume 3, section "Exception Classifications"). RF is as the handler shall find it in its
/// frame. The only #DB among them is that of `int1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector 0..=31.
    pub vector: u8,
    /// The error code, for the vectors that have one.
    pub error: Option<u32>,
    /// For #PF the address that faulted, otherwise 0.
    pub address: GuestVirt,
}

impl Exception {
    /// An exception without error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, address: GuestVirt(0) }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: GuestVirt(0) }
    }

    /// #DE, divide error.
    pub const DIVIDE: Self = Self::plain(0);
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Self = Self::plain(6);
    /// #NM, device not available.
    pub const NO_FPU: Self = Self::plain(7);

    /// #NP, segment not present.
    #[must_use]
    pub const fn not_present(selector: u16) -> Self {
        Self::with_error(11, (selector & !3) as u32)
    }

    /// #SS, stack fault.
    #[must_use]
    pub const fn stack(selector: u16) -> Self {
        Self::with_error(12, (selector & !3) as u32)
    }

    /// #GP, general protection.
    #[must_use]
    pub const fn protection(selector: u16) -> Self {
        Self::with_error(13, (selector & !3) as u32)
    }
}

impl From<crate::environment::PageFault> for Exception {
    fn from(fault: crate::environment::PageFault) -> Self {
        Self { vector: 14, error: Some(fault.error), address: fault.address }
    }
}

/// Why [`Vcpu::run`](crate::Vcpu::run) came back. The guest's state is exact in every case.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Exit {
    /// `int n`; `int3`, with vector 3; or `into` with OF set, with vector 4. eip is behind the
    /// instruction, which is `length` bytes long, 1 to 15: a gate that doesn't allow it faults at its start.
    SoftwareInterrupt {
        /// Vector 0..=255.
        vector: u8,
        /// Bytes of the instruction.
        length: u8,
    },
    /// Guest code raised an exception.
    Exception(Exception),
    /// #DB for the reasons that these bits name, as DR6 has them: 0 to 3, the breakpoints hit (see
    /// [`Vcpu::set_breakpoints`](crate::Vcpu::set_breakpoints)); [`SINGLE_STEP`](crate::breakpoints::SINGLE_STEP),
    /// TF is set. For a breakpoint on an instruction eip is at that, otherwise it is a trap.
    Debug(u32),
    /// An instruction whose meaning is the embedder's business: cli, sti, pushf, popf, iret, in, out, ins, outs,
    /// hlt, cpuid, lgdt, sgdt and kin, lldt, ltr, str, sldt, lmsw, smsw, clts, mov to and from control and debug registers,
    /// rdmsr, wrmsr, rdpmc, invlpg, wbinvd, invd, sysenter, sysexit. eip is *at* the instruction; the embedder moves it.
    Privileged(Instruction),
    /// Somebody called [`Kicker::kick`](crate::Kicker::kick), or the alarm rang.
    Kicked,
    /// A store to the watched range was made while something was pending; eip is behind it.
    Watched,
    /// An instruction that this version can't run (16-bit code, say), or whose host fault nothing explains.
    /// eip is at it.
    Unsupported(Instruction),
}
