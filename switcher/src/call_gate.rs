//! A gate for system calls: what an `int` of user code comes to, said beforehand.
//!
//! A system call that leaves translated code, for `int` and for `iretd`, costs six times as much as one that doesn't. So the
//! embedder may describe the usual one ([`Vcpu::set_call_gate`](crate::Vcpu::set_call_gate)), and it passes without anybody
//! being asked. Whatever is unusual about one still is an [`Exit`](crate::Exit).

use crate::address::GuestPhys;
use crate::cpu::Segment;

/// What a system call comes to, as long as nothing unusual is about it.
///
/// `int vector` at level 3 pushes ss, esp, eflags, cs and eip on the kernel's stack and goes on at the handler (SDM volume 3,
/// section "Exception- or Interrupt-Handler Procedures"); `iretd` at the kernel's level goes back to the user's segments (volume 2,
/// "IRET/IRETD").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallGate {
    /// The vector, which level 3 may use.
    pub vector: u8,
    /// The first instruction of its handler.
    pub handler: u32,
    /// Interrupts are disabled on the way in.
    pub disables: bool,
    /// The top of the kernel's stack.
    pub esp: u32,
    /// The kernel's segments, of level 1: what fs and gs held at another inner level may be used there, too.
    pub kernel: GateEnd,
    /// The user's segments, of level 3. Loading them again gives the same.
    pub user: GateEnd,
    /// The 32-bit word in memory whose bit 9 stands for the kernel's IF. The real one is always set.
    pub interrupts: GuestPhys,
    /// A byte in memory. While it isn't 0xff, the embedder is asked each time, as it is while something is
    /// [pending](crate::Vcpu::set_pending).
    pub quiet: GuestPhys,
}

/// The segments at one end of a gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GateEnd {
    /// cs
    pub code: Segment,
    /// ss
    pub stack: Segment,
}
