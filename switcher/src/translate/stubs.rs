//! The ways out of translated code, and the runtime at the start of the code cache that they share.
//!
//! Code that leaves loads the eip to report into r13d and the detail into r9d (both are
//! scratch) and jumps to the *tail* for its reason; the tail fills in the frame and jumps to
//! the exit stub, which is assembly and lies elsewhere. So an exit costs 11 or 17 bytes where
//! it happens.
//!
//! Two tails lead to the gates (`execute/gates.rs`), which need not leave: they are for `int` in user code and `iret` in the
//! kernel's.
//!
//! Offset 0 is the tail for [`Reason::Indirect`], because that is where an empty entry of an
//! indirect-jump table leads: r13d holds the eip that was looked up.

use super::assembler::{Assembler, OpenJump, Place, Reg, Width};
use crate::frame::{FS, Reason, SegmentSlot, offset};

/// Bytes from one tail to the next.
const TAIL_BYTES: u32 = 32;
/// The same behind the first of those that exchange.
const EXCHANGE_BYTES: u32 = 128;

/// A tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// Leaves.
    Exit(Reason),
    /// Goes to the gate for calls, with what [`Reason::Interrupt`] wants.
    CallGate,
    /// Goes to the gate for returns, with what [`Reason::Sensitive`] wants.
    ReturnGate,
    /// Exchanges what fs holds for what it held before, and goes to the host address in r10. r9 and r13 change, and no flags.
    ExchangeFs,
    /// The same for gs.
    ExchangeGs,
}

/// The tails in the order in which they lie in the cache.
const TAILS: [Tail; 13] = [
    Tail::Exit(Reason::Indirect),
    Tail::Exit(Reason::Chain),
    Tail::Exit(Reason::Interrupt),
    Tail::Exit(Reason::Exception),
    Tail::Exit(Reason::Sensitive),
    Tail::Exit(Reason::Bounce),
    Tail::Exit(Reason::BounceDone),
    Tail::Exit(Reason::Watched),
    Tail::Exit(Reason::Stop),
    Tail::CallGate,
    Tail::ReturnGate,
    Tail::ExchangeFs,
    Tail::ExchangeGs,
];

/// Cache offset of a tail, which is one that translated code uses.
fn offset_of(tail: Tail) -> u32 {
    let position = TAILS.iter().position(|&there| there == tail);
    debug_assert!(position.is_some(), "{tail:?} is the signal handler's");
    let position = position.unwrap_or(0) as u32;
    let exchanges = TAILS.len() as u32 - 2;
    position.min(exchanges) * TAIL_BYTES + position.saturating_sub(exchanges) * EXCHANGE_BYTES
}

/// The tail that lies at cache offset `at`.
#[cfg(test)]
pub(super) fn tail_at(at: u32) -> Option<Tail> {
    TAILS.into_iter().find(|&tail| offset_of(tail) == at)
}

/// The code at offset 0 of every code cache, padded to a multiple of 64 bytes.
pub(crate) fn runtime() -> Vec<u8> {
    let mut out = Assembler::new(0, 512);
    for tail in TAILS {
        debug_assert_eq!(out.here(), offset_of(tail));
        match tail {
            Tail::Exit(reason) => {
                out.store(Width::Dword, Place::Frame(offset::EIP), Reg::R13);
                out.store(Width::Dword, Place::Frame(offset::DETAIL), Reg::R9);
                out.store_constant(Width::Dword, Place::Frame(offset::REASON), reason as u32);
                jump_to_address_in(&mut out, offset::EXIT);
            }
            Tail::CallGate => jump_to_address_in(&mut out, offset::CALL_GATE),
            Tail::ReturnGate => jump_to_address_in(&mut out, offset::RETURN_GATE),
            Tail::ExchangeFs => exchange(&mut out, FS),
            Tail::ExchangeGs => exchange(&mut out, FS + 1),
        }
        out.align(TAIL_BYTES);
    }
    out.align(64);
    out.finish()
}

/// Exchanges what segment register `index` holds for its other, and goes to r10.
fn exchange(out: &mut Assembler, index: usize) {
    let quarters = size_of::<SegmentSlot>() as i32 / 8;
    for at in (0..quarters).map(|quarter| quarter * 8) {
        let here = Place::Frame(offset::segment_base(index) + at);
        let other = Place::Frame(offset::other(index) + at);
        out.load(Width::Qword, Reg::R9, here);
        out.load(Width::Qword, Reg::R13, other);
        out.store(Width::Qword, here, Reg::R13);
        out.store(Width::Qword, other, Reg::R9);
    }
    out.invert(Place::Frame(offset::exchanged(index)));
    out.raw(&[0x41, 0xff, 0xe2]); // jmp r10
}

/// `jmp [r15+field]`
fn jump_to_address_in(out: &mut Assembler, field: i32) {
    out.raw(&[0x41, 0xff, 0xa7]);
    out.raw(&field.to_le_bytes());
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
    go_to_tail(out, Tail::Exit(reason));
}

/// Goes to a tail with what it wants in registers.
pub(super) fn go_to_tail(out: &mut Assembler, tail: Tail) {
    let jump = out.jump();
    out.close(jump, offset_of(tail));
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
