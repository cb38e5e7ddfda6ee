//! Translation: bytes of 32-bit guest code in, 64-bit host code and a few tables out.
//!
//! This folder is pure: it touches no memory but its arguments, knows no addresses of the process,
//! and contains no `unsafe`. What it emits runs elsewhere; what keeps the guest in is decided here.
//!
//! # The scheme
//!
//! Most instructions are the same in both modes, so they are decoded, adjusted, and encoded
//! again: esp becomes r12d, and a memory operand is turned into one that stays inside the
//! *window* (4 GiB of host address space that mirror the guest's). The table of registers is in
//! [`crate::frame`]. Three rules hold everywhere:
//!
//! - **The upper halves of the registers that hold guest state are zero** at every boundary
//!   between guest instructions, so `[r14+reg]` is an address in the window.
//! - **What is added between guest instructions leaves the flags alone**: `mov`, `lea`, `movzx`,
//!   `jrcxz` and the BMI2 shifts do; `add` and `cmp` don't.
//! - **A fault comes before any effect**: where one guest instruction becomes several, those
//!   that can fault come first, or start again from the beginning without harm.
//!
//! # The story, in order
//!
//! - [`classify`]: which way each instruction goes;
//! - [`plan`]: how far a run of guest code, a *unit*, reaches; [`peel`]: loops whose first round differs;
//! - [`mod@unit`]: the unit's host code, instruction by instruction;
//! - [`operands`], [`high_bytes`], [`bit_strings`]: instructions re-encoded, and where their
//!   operand lies;
//! - [`stack`], [`strings`], [`branches`], [`segments`], [`fpu`]: instructions with sequences of
//!   their own; [`leaf`]: short functions in place of their calls;
//! - [`assembler`], [`stubs`]: emitting, and leaving;
//! - [`confinement`]: the emitted code, read back and judged.

#![forbid(unsafe_code)]

mod assembler;
mod bit_strings;
mod branches;
mod classify;
#[cfg(any(test, debug_assertions))]
mod confinement;
mod fpu;
#[cfg(test)]
mod golden;
mod high_bytes;
mod leaf;
mod operands;
mod peel;
mod plan;
mod segments;
mod stack;
mod strings;
mod stubs;
#[cfg(test)]
mod tests;
mod unit;

pub(crate) use plan::decoder;
pub(crate) use stubs::runtime;
pub(crate) use unit::translate;

/// What a piece of translated code takes for granted about the processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Assumptions {
    /// Level 3. It keeps the worlds apart, and decides which gates there are.
    pub(crate) user: bool,
    /// cs, ss, ds and es all start at 0 and reach to 4 GiB: they needn't be looked at.
    pub(crate) flat: bool,
    pub(crate) pace: Pace,
}

impl Assumptions {
    /// One instruction, and no more.
    pub(crate) fn is_single(self) -> bool {
        self.pace != Pace::Free
    }
}

/// How far translated code goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Pace {
    /// As far as it can.
    Free,
    /// It stops after one instruction.
    Step,
    /// It stops after one instruction, and memory is Rust's to touch.
    Alone,
}

/// How an instruction's memory operand is reached; learned from its faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Route {
    /// In the current window.
    Window,
    /// In the window that [`Frame::pick`](crate::frame::Frame) names for its address.
    Picked,
    /// In the bounce buffer: Rust copies it in before and out after. What uses the stack, and
    /// strings, Rust carries out as a whole.
    Bounced,
}

/// A piece of guest code to translate.
pub(crate) struct Request<'a> {
    /// Address of the first instruction.
    pub(crate) eip: u32,
    /// The code from `eip` to the end of its page; for a straddler, on into the next page as
    /// far as it can be read (15 bytes in all matter).
    pub(crate) bytes: &'a [u8],
    /// The first instruction runs over the end of its page: translate it alone.
    pub(crate) straddles: bool,
    /// Instructions to translate at most, at least 1.
    pub(crate) longest: usize,
    pub(crate) assumptions: Assumptions,
    /// Cache offset where [`Unit::hot`] will be placed.
    pub(crate) hot: u32,
    /// Cache offset where [`Unit::cold`] will be placed.
    pub(crate) cold: u32,
    /// Cache offset of an instruction in the same page that can be jumped to.
    pub(crate) known: &'a dyn Fn(u32) -> Option<u32>,
    /// Copies the code at an address in the same page, as far as that page and the buffer reach, and says how far that is.
    pub(crate) nearby: &'a dyn Fn(u32, &mut [u8]) -> usize,
    /// The route of the instruction at an address.
    pub(crate) learned: &'a dyn Fn(u32) -> Route,
    /// Instructions with a breakpoint: units end before them.
    pub(crate) breakpoints: &'a [u32],
    /// Start and end of the addresses whose stores are watched.
    pub(crate) watch: Option<(u32, u32)>,
}

/// Host code for a run of guest instructions.
#[derive(Debug)]
pub(crate) struct Unit {
    /// The code itself. It may begin with padding: its entry is the first point.
    pub(crate) hot: Vec<u8>,
    /// Exits that are seldom taken.
    pub(crate) cold: Vec<u8>,
    /// Where each guest instruction begins, in ascending order of host offset.
    pub(crate) points: Vec<Point>,
    /// Bytes of guest code from [`Request::eip`] on that the unit depends on.
    pub(crate) guest_len: u32,
    /// Other instructions in its page that it depends on: where, and how many bytes.
    pub(crate) elsewhere: Vec<(u32, u8)>,
}

/// A boundary between guest instructions.
///
/// In front of it all state is canonical, but for two kinds:
/// - behind a `rep` string instruction there is a second point with the next instruction's address and `len` 0, where only the
///   upper halves of rsi and rdi may still be set (so who leaves there stores 32 bits of them,
///   and must not enter there);
/// - in a row of pushes and pops the guest's esp is `moved` bytes from what r12 holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Point {
    /// Cache offset.
    pub(crate) host: u32,
    /// The guest instruction that begins here.
    pub(crate) eip: u32,
    /// Its length.
    pub(crate) len: u8,
    /// Can be jumped to from anywhere. Otherwise what runs here relies on what ran before.
    pub(crate) entry: bool,
    /// Belongs to a leaf in place of its call: relies on the return address that was pushed, until it comes to the end.
    pub(crate) inlined: bool,
    /// A repeated string instruction: whoever interrupts it anywhere before the next point may
    /// leave with this point's eip.
    pub(crate) rep: bool,
    /// What to add to r12d for the guest's esp. Not 0 only where `entry` is false.
    pub(crate) moved: i8,
}

/// The first instruction runs over the end of the bytes given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NeedsMore;
