//! Each process's stack in the kernel: where traps from it begin, and where it waits its turn.
//!
//! This is a room where unsafe code lives: a stack's memory, and its first contents.

use crate::traps::frame::TrapFrame;
use alloc::boxed::Box;
use core::mem::size_of;
use lguest_abi::Virt;
use lguest_abi::paging::PAGE_SIZE;

/// Pages of a stack: the most the Host takes.
pub(super) const PAGES: u32 = 2;
const BYTES: usize = (PAGES * PAGE_SIZE) as usize;

/// What is at the end that a stack must not grow to.
const MARK: u32 = 0x4b63_6174;

/// Left free at the top, so that the address of the stack's top is in the stack's own page.
const TOP_GAP: usize = 16;

#[repr(C, align(4096))]
#[derive(Debug)]
struct Memory([u8; BYTES]);

/// What [`switch`](super::switch) leaves on a stack below where it will go on: four registers.
const SAVED_REGISTERS: usize = 4;

/// A stack.
#[derive(Debug)]
pub(crate) struct KernelStack {
    memory: Box<Memory>,
    /// The stack pointer, while another process runs.
    pub(super) saved: u32,
}

impl KernelStack {
    /// A stack from which a process enters user mode with the registers of `frame`.
    pub(super) fn entering(frame: &TrapFrame) -> Self {
        // SAFETY: zeros are good bytes.
        let mut memory = unsafe { Box::<Memory>::new_zeroed().assume_init() };
        memory.0[..4].copy_from_slice(&MARK.to_le_bytes());

        let frame_at = BYTES - TOP_GAP - size_of::<TrapFrame>();
        let base = memory.0.as_mut_ptr();
        // SAFETY: it lies within the memory, whose alignment and the gap make it aligned.
        unsafe { base.add(frame_at).cast::<TrapFrame>().write(frame.clone()) };

        // Where the first switch to it "returns" to.
        let return_at = frame_at - size_of::<u32>();
        let leave = crate::traps::leave_address().0;
        memory.0[return_at..frame_at].copy_from_slice(&leave.to_le_bytes());
        let saved_at = return_at - SAVED_REGISTERS * size_of::<u32>();
        let saved = memory.0[saved_at..].as_ptr().expose_provenance() as u32;
        Self { memory, saved }
    }

    /// Its end, where traps push first.
    pub(super) fn top(&self) -> Virt {
        Virt(self.memory.0[BYTES - TOP_GAP..].as_ptr().expose_provenance() as u32)
    }

    /// Whether it never was too small.
    pub(super) fn is_intact(&self) -> bool {
        self.memory.0[..4] == MARK.to_le_bytes()
    }
}

const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(4));
