//! Memory that the parent and the worker share, and the baton that says whose turn it is.
//!
//! Two mappings: a small block for the baton and the registers, and the memory of all regions,
//! which the worker maps a second time below 4 GiB. **What the unsafe code here rests on**: the
//! mappings live as long as the [`Shared`], and whoever doesn't hold the baton touches nothing but
//! the baton itself. The parent holds it except inside [`Shared::pass`], which borrows mutably.

#![allow(unsafe_code)]

use crate::state::{FX_BYTES, FxImage, State};
use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The parent may touch the block.
pub(crate) const PARENT: u32 = 0;
/// The worker may touch it.
pub(crate) const WORKER: u32 = 1;

/// Where a worker that couldn't be set up says at which step it failed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Failure {
    /// 0 when nothing failed.
    pub(crate) step: u32,
    /// The system's error number.
    pub(crate) error: i32,
}

/// How the processor reports an exception (Linux's `sigcontext`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Trap {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) address: u64,
}

/// What the two processes tell each other.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Message {
    /// The registers to start with; afterwards those at the end.
    pub(crate) state: State,
    /// Why it ended.
    pub(crate) trap: Trap,
    pub(crate) failure: Failure,
}

/// The shared block.
#[repr(C, align(64))]
pub(crate) struct Block {
    pub(crate) turn: AtomicU32,
    pub(crate) message: UnsafeCell<Message>,
}

/// Both shared mappings.
pub(crate) struct Shared {
    block: NonNull<Block>,
    memory: NonNull<u8>,
    bytes: usize,
    file: OwnedFd,
}

impl Shared {
    /// Zero-filled memory of `bytes`, a multiple of the page size, and a block that is the parent's.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: the name is a C string; the result is checked.
        let file = unsafe { libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, which nobody else owns.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: an open descriptor.
        if unsafe { libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let memory = map_shared(bytes, libc::MAP_SHARED, file.as_raw_fd())?;
        let anonymous = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let block = map_shared(size_of::<Block>(), anonymous, -1)?.cast::<Block>();
        let message = Message {
            state: State { fx: FxImage([0; FX_BYTES]), ..State::default() },
            trap: Trap { vector: 0, error: 0, address: 0 },
            failure: Failure::default(),
        };
        let fresh = Block { turn: AtomicU32::new(PARENT), message: UnsafeCell::new(message) };
        // SAFETY: a fresh mapping, large enough, page-aligned, and nobody else's yet.
        unsafe { block.write(fresh) };
        Ok(Self { block, memory, bytes, file })
    }

    /// The block, for the worker.
    pub(crate) fn block(&self) -> *const Block {
        self.block.as_ptr()
    }

    /// The file that holds the regions' memory.
    pub(crate) fn file(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The memory of all regions.
    pub(crate) fn memory(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as self, and the worker doesn't run while self is
        // borrowed immutably.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    /// The memory of all regions, to be filled.
    pub(crate) fn memory_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `memory`, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }

    /// What was said last.
    pub(crate) fn message(&self) -> Message {
        // SAFETY: the parent holds the baton.
        unsafe { *self.block.as_ref().message.get() }
    }

    /// Says something.
    pub(crate) fn set_message(&mut self, message: Message) {
        // SAFETY: the parent holds the baton.
        unsafe { *self.block.as_ref().message.get() = message };
    }

    /// Gives the worker the baton.
    pub(crate) fn pass(&mut self) {
        // SAFETY: the block is mapped; the baton is atomic.
        let turn = unsafe { &self.block.as_ref().turn };
        turn.store(WORKER, Ordering::Release);
        // SAFETY: an aligned word that lives on; waking has no other effect.
        unsafe { libc::syscall(libc::SYS_futex, turn.as_ptr(), libc::FUTEX_WAKE, 1) };
    }

    /// Waits at most `patience` for the baton to come back, and says whether it has.
    pub(crate) fn wait(&mut self, patience: Duration) -> bool {
        // SAFETY: as in `pass`.
        let turn = unsafe { &self.block.as_ref().turn };
        if turn.load(Ordering::Acquire) == WORKER {
            let timeout = libc::timespec {
                tv_sec: patience.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(patience.subsec_nanos()),
            };
            let (word, wait) = (turn.as_ptr(), libc::FUTEX_WAIT);
            // SAFETY: the word and the timeout live through the call.
            unsafe { libc::syscall(libc::SYS_futex, word, wait, WORKER, &raw const timeout) };
        }
        turn.load(Ordering::Acquire) == PARENT
    }

    /// Takes the baton from a worker that is no more.
    pub(crate) fn take(&mut self) {
        // SAFETY: as in `pass`.
        unsafe { self.block.as_ref() }.turn.store(PARENT, Ordering::Release);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: these are the mappings made in `new`; nothing borrowed from them outlives self.
        unsafe {
            libc::munmap(self.memory.as_ptr().cast(), self.bytes);
            libc::munmap(self.block.as_ptr().cast(), size_of::<Block>());
        }
    }
}

fn map_shared(bytes: usize, flags: i32, file: i32) -> io::Result<NonNull<u8>> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping at an address the kernel chooses disturbs nobody.
    let base = unsafe { libc::mmap(null_mut(), bytes, rights, flags, file, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Passes the baton from the worker to the parent and waits until it comes back.
///
/// # Safety
/// Only for the worker, with the block of its [`Shared`]. Makes no use of thread-local storage,
/// which the code under test may have taken away by loading fs.
pub(crate) unsafe fn hand_back(block: *const Block) {
    // SAFETY: the block stays mapped as long as the process lives.
    let turn = unsafe { &(*block).turn };
    turn.store(PARENT, Ordering::Release);
    let word = turn.as_ptr();
    // SAFETY: an aligned word that lives on.
    unsafe { futex(word, libc::FUTEX_WAKE, 1) };
    while turn.load(Ordering::Acquire) == PARENT {
        // SAFETY: as above.
        unsafe { futex(word, libc::FUTEX_WAIT, PARENT) };
    }
}

/// The system call, without libc's errno.
unsafe fn futex(word: *mut u32, operation: i32, value: u32) {
    // SAFETY: the caller's word is valid; the system call changes rax, rcx and r11 only.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_futex => _,
            in("rdi") word,
            in("rsi") operation,
            in("rdx") value,
            in("r10") null::<libc::timespec>(),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}
