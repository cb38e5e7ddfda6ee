//! A stack for signal handlers, one for each thread that runs a virtual CPU.
//!
//! While translated code runs, rsp is a good host stack, so our own handlers need no other. But
//! the handlers that were there before, such as Rust's for stack overflow, do, and with large vector
//! registers the context that the kernel stores is larger than the usual stacks were made for.
//! The kernel says how large it gets (AT_MINSIGSTKSZ).

use super::SetupError;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::mem::zeroed;
use std::ptr::{null, null_mut};

/// What handlers may use beyond the context the kernel stores.
const ROOM: usize = 64 << 10;
/// `AT_MINSIGSTKSZ` (Linux, `asm/auxvec.h`).
const AT_MINSIGSTKSZ: u64 = 51;

thread_local! {
    /// The stack installed by [`install`], given back when the thread ends.
    static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
}

struct Stack {
    start: *mut c_void,
    bytes: usize,
}

/// Sees to it that this thread has a signal stack that is large enough.
pub(crate) fn install() -> Result<(), SetupError> {
    STACK.with_borrow_mut(|stack| {
        if stack.is_none() {
            *stack = make().map_err(SetupError::Signals)?;
        }
        Ok(())
    })
}

/// A new stack, installed; `None` when the one there will do.
fn make() -> io::Result<Option<Stack>> {
    // SAFETY: getauxval has no preconditions.
    let context = unsafe { libc::getauxval(AT_MINSIGSTKSZ) } as usize;
    let bytes = (context.max(libc::MINSIGSTKSZ) + ROOM).next_multiple_of(4096);
    // SAFETY: all zeros is a valid `stack_t`; only asks what is there.
    let there = unsafe {
        let mut there: libc::stack_t = zeroed();
        libc::sigaltstack(null(), &raw mut there);
        there
    };
    if there.ss_flags & libc::SS_DISABLE == 0 && there.ss_size >= bytes {
        return Ok(None);
    }
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping at an address the kernel chooses disturbs nobody.
    let start = unsafe { mmap_anonymous(null_mut(), bytes, rights, MapFlags::PRIVATE)? };
    let stack = Stack { start, bytes };
    let new = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: bytes };
    // SAFETY: the memory stays until the thread ends or the stack is taken back.
    match unsafe { libc::sigaltstack(&raw const new, null_mut()) } {
        0 => Ok(Some(stack)),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: all zeros is a valid `stack_t`. The stack is taken back if it is still the one,
        // before its memory goes.
        unsafe {
            let mut there: libc::stack_t = zeroed();
            libc::sigaltstack(null(), &raw mut there);
            if there.ss_sp == self.start {
                let none =
                    libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                libc::sigaltstack(&raw const none, null_mut());
            }
            let _ = munmap(self.start, self.bytes);
        }
    }
}
