//! The ways out of translated code, and the runtime at the start of the code cache that they share.
//!
//! Code that leaves loads the eip to report into r13d and the detail into r9d (both are
//! scratch) and jumps to the *tail* for its reason; the tail fills in the frame and jumps to
//! the exit stub, which is assembly and lies elsewhere. So an exit costs 11 or 17 bytes where
//! it happens.
//!
//! Offset 0 is the tail for [`Reason::Indirect`], because that is where an empty entry of an
//! indirect-jump table leads: r13d holds the eip that was looked up.

use super::assembler::{Assembler, OpenJump, Place, Reg, Width};
use crate::frame::{Reason, offset};

/// Bytes from one tail to the next.
const TAIL_BYTES: u32 = 32;

/// The tails in the order in which they lie in the cache.
const TAILS: [Reason; 9] = [
    Reason::Indirect,
    Reason::Chain,
    Reason::Interrupt,
    Reason::Exception,
    Reason::Sensitive,
    Reason::Bounce,
    Reason::BounceDone,
    Reason::Watched,
    Reason::Stop,
];

/// Cache offset of the tail for `reason`, which is one that translated code gives.
fn tail(reason: Reason) -> u32 {
    let position = TAILS.iter().position(|&tail| tail == reason);
    debug_assert!(position.is_some(), "{reason:?} is the signal handler's");
    position.unwrap_or(0) as u32 * TAIL_BYTES
}

/// The reason whose tail lies at cache offset `at`.
#[cfg(test)]
pub(super) fn reason_at(at: u32) -> Option<Reason> {
    TAILS.into_iter().find(|&reason| tail(reason) == at)
}

/// The code at offset 0 of every code cache, padded to a multiple of 64 bytes.
pub(crate) fn runtime() -> Vec<u8> {
    let mut out = Assembler::new(0, 512);
    for reason in TAILS {
        debug_assert_eq!(out.here(), tail(reason));
        out.store(Width::Dword, Place::Frame(offset::EIP), Reg::R13);
        out.store(Width::Dword, Place::Frame(offset::DETAIL), Reg::R9);
        out.store_constant(Width::Dword, Place::Frame(offset::REASON), reason as u32);
        jump_to_exit_stub(&mut out);
        out.align(TAIL_BYTES);
    }
    out.align(64);
    out.finish()
}

/// `jmp [r15+EXIT]`
fn jump_to_exit_stub(out: &mut Assembler) {
    out.raw(&[0x41, 0xff, 0xa7]);
    out.raw(&offset::EXIT.to_le_bytes());
}

/// Leaves for `reason` with `eip`.
pub(super) fn exit(out: &mut Assembler, reason: Reason, eip: u32) {
    out.constant(Reg::R13, eip);
    exit_to_r13(out, reason);
}

/// Leaves for `reason` with `eip` and `detail`.
pub(super) fn exit_with(out: &mut Assembler, reason: Reason, eip: u32, detail: u32) {
    out.constant(Reg::R9, detail);
    exit(out, reason, eip);
}

/// Leaves for `reason` with the eip that is in r13d.
pub(super) fn exit_to_r13(out: &mut Assembler, reason: Reason) {
    let jump = out.jump();
    out.close(jump, tail(reason));
}

/// Raises the exception that `detail` describes (see [`Reason::Exception`]) when `jump` is taken; `eip` as its
/// kind asks for.
pub(super) fn exception_stub(
    hot: &mut Assembler,
    cold: &mut Assembler,
    jump: OpenJump,
    detail: u32,
    eip: u32,
) {
    hot.close(jump, cold.here());
    exit_with(cold, Reason::Exception, eip, detail);
}

/// Bytes that [`exit_with`] emits: what follows it is that much further on.
pub(super) const EXIT_WITH_BYTES: u32 = 17;

// ANCHOR: jump_through_table
/// Looks up the guest address in r13d in the world's table and goes there, without touching
/// flags. An address that isn't in the table leads to offset 0 of the cache.
pub(super) fn jump_through_table(out: &mut Assembler) {
    out.raw(&[0x47, 0x8b, 0x0c, 0xab]); // mov r9d, [r11+r13*4]
    out.lea(Width::Qword, Reg::R9, super::assembler::Sum::of(Reg::R9, Reg::CODE, 0));
    out.raw(&[0x41, 0xff, 0xe1]); // jmp r9
}
// ANCHOR_END: jump_through_table
