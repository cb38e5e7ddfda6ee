//! The terminal comes back even when the process dies without running its destructors.
//!
//! A fault inside the launcher itself, `abort` and a panic during a panic all end in a signal. This
//! is the launcher's only unsafe room: a handler for those signals that puts the
//! remembered terminal mode back and then lets the signal do what it would have done. SIGKILL can't be
//! handled by anybody; `stty sane` helps then.
//!
//! Handlers are the process's own, not a library's: so a program must ask for them by
//! [`on_crash`], before it builds its first guest. The Switcher, which lives by such signals, puts its
//! handlers in front and passes on what isn't a guest's.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The signals that a process sends itself by going wrong.
const FATAL: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// A terminal and the mode to put back.
struct Remembered {
    fd: RawFd,
    mode: libc::termios,
}

/// What the handler restores; null when no terminal is raw. A handler may read it at any time, so what was
/// published here is never freed: a few bytes each time a terminal is made raw.
static REMEMBERED: AtomicPtr<Remembered> = AtomicPtr::new(null_mut());

/// What was there before, in the order of [`FATAL`].
static BEFORE: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

/// From now on, a crash of the process gives a raw terminal back first.
pub fn on_crash() {
    BEFORE.get_or_init(|| FATAL.map(install));
}

/// Puts back the mode of the terminal that is raw now, if one is: for a program that is about to exit
/// without returning from [`Vm::run`](crate::Vm::run).
pub fn restore_now() {
    // SAFETY: what the pointer shows was published whole and is never freed.
    if let Some(remembered) = unsafe { REMEMBERED.load(Ordering::Acquire).as_ref() } {
        // SAFETY: an open descriptor's number (or a closed one's, which fails) and a valid mode.
        unsafe { libc::tcsetattr(remembered.fd, libc::TCSANOW, &raw const remembered.mode) };
    }
}

/// Notes the mode `terminal` is in, to be put back if the process dies before [`forget`].
pub(crate) fn remember(terminal: &impl AsRawFd) {
    let fd = terminal.as_raw_fd();
    let mut mode = MaybeUninit::uninit();
    // SAFETY: an open descriptor, and room for the answer.
    if unsafe { libc::tcgetattr(fd, mode.as_mut_ptr()) } == 0 {
        // SAFETY: tcgetattr succeeded, so it has filled the mode in.
        let mode = unsafe { mode.assume_init() };
        REMEMBERED.store(Box::leak(Box::new(Remembered { fd, mode })), Ordering::Release);
    }
}

/// The terminal is as it was: nothing is left to be put back.
pub(crate) fn forget() {
    REMEMBERED.store(null_mut(), Ordering::Release);
}

/// Puts our handler in front of what handled `signal`, and gives that.
fn install(signal: libc::c_int) -> libc::sigaction {
    let mut before = MaybeUninit::zeroed();
    // SAFETY: all zeros is a valid sigaction (default action, empty mask, no flags).
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    ours.sa_sigaction = rescue as *const () as libc::sighandler_t;
    ours.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
    // SAFETY: the handler is of the type that SA_SIGINFO asks for, and calls only what is safe inside a
    // handler; `before` has room. It can't fail: these signals may be handled.
    unsafe {
        libc::sigaction(signal, &raw const ours, before.as_mut_ptr());
        before.assume_init()
    }
}

/// The handler. It calls `tcsetattr`, `sigaction`, `signal` and `raise`, which POSIX allows in a handler, and
/// allocates nothing.
extern "C" fn rescue(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore_now();
    let before = FATAL.iter().position(|&fatal| fatal == signal).zip(BEFORE.get());
    // SAFETY: the system passes a valid siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    // SAFETY: the earlier action was given by the system.
    unsafe {
        match before {
            // A fault: the instruction runs again and faults again, and whoever was there before us sees
            // everything as it was. (Rust's own handler tells a stack overflow by it.)
            Some((at, all)) if !sent => {
                libc::sigaction(signal, &raw const all[at], null_mut());
            }
            // Sent by `abort` or another process: it wouldn't come again by itself. Delivered when this
            // handler returns.
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}
