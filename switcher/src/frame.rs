//! What translated code sees of the virtual CPU: one plain structure, reached through r15.
//!
//! Translated code, the assembly in `execute/crossing.rs` and `execute/gates.rs` and the signal handler all read and write these
//! fields by their offsets, so the layout is `repr(C)` and the offsets are taken from it, never
//! typed in. The rest of the processor (segments' attributes, the level) is in
//! [`crate::cpu`], which Rust alone looks at.
//!
//! # Registers while guest code runs
//!
// ANCHOR: registers
//! | host register | holds |
//! |---|---|
//! | eax ecx edx ebx ebp esi edi | the guest's registers of the same names, upper halves zero |
//! | r12d | the guest's esp, upper half zero; in a row of pushes and pops what it was at the row's beginning |
//! | r14, GS base | the window: where guest address 0 lies |
//! | r15 | this structure |
//! | r11 | the indirect-jump table of the current world, 4 bytes for each guest address |
//! | r8 | start of the executable code cache |
//! | r9, r10, r13 | scratch: dead at every guest-instruction boundary |
//! | rsp | a real host stack: Rust's own, below `host_rsp` |
//! | flags | the guest's arithmetic flags and DF |
//! | x87, mm0–7, xmm0–7, MXCSR | the guest's |
// ANCHOR_END: registers
//!
//! **The rule everything rests on**: at every guest-instruction boundary the upper halves of
//! rax, rcx, rdx, rbx, rbp, rsi, rdi and r12 are zero.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

/// Why translated code left: the value of [`Frame::reason`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Reason {
    /// A direct branch to `eip` that isn't chained yet; `detail` is the branch's rel32 site (its
    /// offset in the code cache), or 0 when it must not be chained.
    Chain = 0,
    /// An indirect branch to `eip` that its table doesn't know.
    Indirect = 1,
    /// `int n`: `detail` is n, `eip` is behind it.
    Interrupt = 2,
    /// An exception decided at translation time: `detail` is vector | has_error << 8 | error << 16;
    /// `eip` is what the exception's kind asks for.
    Exception = 3,
    /// `eip` is at an instruction that Rust emulates or hands to the embedder; `detail` is unused.
    Sensitive = 4,
    /// `eip` is at an instruction whose memory operand goes through [`Frame::bounce`]; `detail` is
    /// the cache offset of its body, to be entered when the operand has been copied in.
    Bounce = 5,
    /// The body has run: copy the operand out. `eip` is the instruction *itself* still.
    BounceDone = 6,
    /// A watched store was made while [`Frame::pending`] was set; `eip` is behind it.
    Watched = 7,
    /// The block was translated to stop here: after single-stepping, or for `straddle` units. `eip` is next.
    Stop = 8,
    /// The signal handler: a host fault at cache offset `detail`; see the fault_* fields.
    Fault = 9,
    /// The signal handler: preempted at a guest-instruction boundary, `eip` is that instruction.
    Kicked = 10,
}

/// A segment register as translated code sees it: to be read, and to be used when it isn't known to
/// be flat.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SegmentSlot {
    /// Added to the offset, in 32 bits.
    pub(crate) base: u32,
    /// What reading the register gives: 16 bits.
    pub(crate) selector: u32,
    /// 0 minus the selector whose load would change nothing; [`NO_RELOAD`] when there is none.
    pub(crate) reload: u32,
    /// 1 if a return to level 3 would change the register.
    pub(crate) inner: u32,
    /// The window to use, for the kernel and for user code: theirs when the segment has no limit worth checking, otherwise
    /// [`POISON`], which makes every access fault and so reach Rust.
    pub(crate) windows: [u64; 2],
}

impl SegmentSlot {
    /// Nothing that could be used.
    pub(crate) const NOTHING: Self =
        Self { base: 0, selector: 0, reload: NO_RELOAD, inner: 0, windows: [POISON; 2] };
}

/// Where one of the two worlds between which a gate leads is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct WorldSlot {
    /// Base of its window.
    pub(crate) window: u64,
    /// Base of its indirect-jump table.
    pub(crate) table: u64,
}

/// What the gates of [`crate::execute::gates`] know: who calls, who is called, and what must be so that nobody else has to be
/// asked.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct GateSlots {
    /// Where translated user code jumps to call: the gate, or a way to Rust.
    pub(crate) call: u64,
    /// Where translated kernel code jumps to return: likewise.
    pub(crate) back: u64,
    /// Host address of the word whose bit 9 stands for IF.
    pub(crate) interrupts: u64,
    /// Host address of a byte; while it isn't 0xff, Rust has something to do.
    pub(crate) quiet: u64,
    /// Times a gate was passed.
    pub(crate) passes: u64,
    /// The host's flags register at the gate, while the gate needs its own.
    pub(crate) flags: u64,
    /// The vector that calls.
    pub(crate) vector: u32,
    /// The first instruction of its handler.
    pub(crate) handler: u32,
    /// Where the handler finds what was pushed: the top of its stack less [`GATE_FRAME`].
    pub(crate) esp: u32,
    /// 1 if interrupts are disabled on the way in.
    pub(crate) disables: u32,
    /// cs and ss, of the kernel and of user code.
    pub(crate) code: [u32; 2],
    pub(crate) stack: [u32; 2],
}

/// Bytes that a call through a gate pushes: eip, cs, eflags, esp and ss.
pub(crate) const GATE_FRAME: u32 = 20;

/// xmm0–xmm7, where `movaps` takes them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct XmmRegisters(pub(crate) [[u8; 16]; 8]);

/// Not canonical, whatever 32 bits are added: an access through it raises #GP in the host.
pub(crate) const POISON: u64 = 0x4000_0000_0000_0000;

/// Not 0 minus any selector.
pub(crate) const NO_RELOAD: u32 = 1 << 31;

/// Number of the first of the two segment registers that programs and kernels use differently: fs, and then gs.
pub(crate) const FS: usize = 4;

/// Bytes of the bounce buffer: fxsave's 512, and room for an operand that starts unaligned.
pub(crate) const BOUNCE_BYTES: usize = 640;

/// The part of a virtual CPU that translated code knows.
#[repr(C, align(64))]
pub(crate) struct Frame {
    /// eax, ecx, edx, ebx, esp, ebp, esi, edi: the order of the instruction encoding.
    pub(crate) gpr: [u32; 8],
    /// The guest's eip, valid whenever Rust runs.
    pub(crate) eip: u32,
    /// Arithmetic flags and DF, as the host's flags register has them. Everything else that is kept in the
    /// guest's eflags is virtual.
    pub(crate) flags: u32,
    /// A [`Reason`].
    pub(crate) reason: u32,
    /// More about the reason.
    pub(crate) detail: u32,
    /// 1 while CR0.TS or EM asks for #NM: FPU instructions look at it.
    pub(crate) fpu_trap: u32,
    /// 1 while a watched store shall leave: the embedder's "something is pending".
    pub(crate) pending: u32,
    /// 1 when somebody wants the vCPU back; set by other threads and the signal handler, looked at by the entry
    /// assembly just before it jumps.
    pub(crate) kicked: AtomicU32,
    /// MXCSR of the guest while Rust runs.
    pub(crate) mxcsr: u32,
    /// The flags that are virtual.
    pub(crate) virtual_flags: u32,
    /// 1 at level 3, otherwise 0. A gate may change it.
    pub(crate) user: u32,
    /// Base of the current window.
    pub(crate) window: u64,
    /// Base of the current world's indirect-jump table.
    pub(crate) table: u64,
    /// Base of the executable view of the code cache.
    pub(crate) code: u64,
    /// Rust's stack pointer while guest code runs.
    pub(crate) host_rsp: u64,
    /// Address of the exit stub, for `jmp [r15+EXIT]`.
    pub(crate) exit: u64,
    /// Bit number of the bounced bit-string instruction, within its operand.
    pub(crate) bounce_bit: u32,
    /// What r12d is on the way in: the guest's esp, but in the middle of a row of pushes and pops.
    pub(crate) entry_esp: u32,
    /// 1 while `rdtsc` raises #GP at the current level.
    pub(crate) timestamp_trap: u32,
    /// es, cs, ss, ds, fs, gs.
    pub(crate) segments: [SegmentSlot; 6],
    /// For kernel code that touches user memory: the window for each 16 MiB of addresses.
    pub(crate) pick: [u64; 256],
    /// xmm0–xmm7 while Rust runs.
    pub(crate) xmm: XmmRegisters,
    /// The operand of an instruction that can't touch guest memory directly.
    pub(crate) bounce: [u8; BOUNCE_BYTES],
    /// From the signal handler: the host's si_addr, error code, trap number and rip.
    pub(crate) fault_address: u64,
    pub(crate) fault_error: u64,
    pub(crate) fault_trap: u64,
    pub(crate) fault_rip: u64,
    /// What fs and gs held before, if it is worth keeping for code of inner levels: a load of that selector exchanges the two.
    pub(crate) others: [SegmentSlot; 2],
    /// Changed from 0 to −1 or back by each such exchange.
    pub(crate) exchanged: [u32; 2],
    /// The kernel's world and the current user's.
    pub(crate) worlds: [WorldSlot; 2],
    pub(crate) gates: GateSlots,
}

impl GateSlots {
    /// No gate. Where `call` and `back` lead is for [`crate::execute::gates`] to say.
    pub(crate) const SHUT: Self = Self {
        call: 0,
        back: 0,
        interrupts: 0,
        quiet: 0,
        passes: 0,
        flags: 0,
        vector: 0,
        handler: 0,
        esp: 0,
        disables: 0,
        code: [0; 2],
        stack: [0; 2],
    };
}

/// MXCSR after reset: all exceptions masked (SDM volume 1, section "MXCSR Control and Status Register").
const MXCSR_RESET: u32 = 0x1f80;

impl Frame {
    /// Registers and flags all zero, and no window, table or code yet.
    pub(crate) fn new() -> Self {
        Self {
            gpr: [0; 8],
            eip: 0,
            flags: 0,
            reason: 0,
            detail: 0,
            fpu_trap: 0,
            pending: 0,
            kicked: AtomicU32::new(0),
            mxcsr: MXCSR_RESET,
            virtual_flags: 0,
            user: 0,
            window: POISON,
            table: 0,
            code: 0,
            host_rsp: 0,
            exit: 0,
            bounce_bit: 0,
            entry_esp: 0,
            timestamp_trap: 0,
            segments: [SegmentSlot::NOTHING; 6],
            pick: [POISON; 256],
            xmm: XmmRegisters([[0; 16]; 8]),
            bounce: [0; BOUNCE_BYTES],
            fault_address: 0,
            fault_error: 0,
            fault_trap: 0,
            fault_rip: 0,
            others: [SegmentSlot::NOTHING; 2],
            exchanged: [0; 2],
            worlds: [WorldSlot { window: POISON, table: 0 }; 2],
            gates: GateSlots::SHUT,
        }
    }
}

/// Offsets of the fields, for the emitter.
pub(crate) mod offset {
    use super::{FS, Frame, GateSlots, SegmentSlot, offset_of};

    pub(crate) const EIP: i32 = offset_of!(Frame, eip) as i32;
    pub(crate) const REASON: i32 = offset_of!(Frame, reason) as i32;
    pub(crate) const DETAIL: i32 = offset_of!(Frame, detail) as i32;
    pub(crate) const FPU_TRAP: i32 = offset_of!(Frame, fpu_trap) as i32;
    pub(crate) const TIMESTAMP_TRAP: i32 = offset_of!(Frame, timestamp_trap) as i32;
    pub(crate) const PENDING: i32 = offset_of!(Frame, pending) as i32;
    pub(crate) const EXIT: i32 = offset_of!(Frame, exit) as i32;
    pub(crate) const CALL_GATE: i32 = GATES + offset_of!(GateSlots, call) as i32;
    pub(crate) const RETURN_GATE: i32 = GATES + offset_of!(GateSlots, back) as i32;
    const GATES: i32 = offset_of!(Frame, gates) as i32;
    pub(crate) const BOUNCE_BIT: i32 = offset_of!(Frame, bounce_bit) as i32;
    pub(crate) const PICK: i32 = offset_of!(Frame, pick) as i32;
    pub(crate) const BOUNCE: i32 = offset_of!(Frame, bounce) as i32;

    /// Where segment `index` (es, cs, ss, ds, fs, gs) keeps its base.
    pub(crate) const fn segment_base(index: usize) -> i32 {
        (offset_of!(Frame, segments) + index * size_of::<SegmentSlot>()) as i32
    }

    /// Where the frame has what to add to a selector to see that loading it into segment `index` changes nothing.
    pub(crate) const fn reload(index: usize) -> i32 {
        segment_base(index) + offset_of!(SegmentSlot, reload) as i32
    }

    /// Where it keeps the other segment of fs (4) or gs (5).
    pub(crate) const fn other(index: usize) -> i32 {
        (offset_of!(Frame, others) + (index - FS) * size_of::<SegmentSlot>()) as i32
    }

    /// The same as [`reload`] for that one.
    pub(crate) const fn other_reload(index: usize) -> i32 {
        other(index) + offset_of!(SegmentSlot, reload) as i32
    }

    /// Where it notes exchanges of the two.
    pub(crate) const fn exchanged(index: usize) -> i32 {
        (offset_of!(Frame, exchanged) + (index - FS) * size_of::<u32>()) as i32
    }

    /// Where segment `index` keeps its selector.
    pub(crate) const fn segment_selector(index: usize) -> i32 {
        segment_base(index) + offset_of!(SegmentSlot, selector) as i32
    }

    /// Where segment `index` keeps its window, for code at level 3 if `user`.
    pub(crate) const fn segment_window(index: usize, user: bool) -> i32 {
        segment_base(index)
            + offset_of!(SegmentSlot, windows) as i32
            + user as i32 * size_of::<u64>() as i32
    }
}
