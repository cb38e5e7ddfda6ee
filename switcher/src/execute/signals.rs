//! Signals: how faults and kicks reach a thread that runs translated code.
//!
//! Translated code has no way to ask "am I wanted?", and it faults on purpose: that is how pages are
//! mapped on demand. Both arrive as signals. The handlers here do as little as possible: they note
//! what happened in the frame and change the interrupted context so that translated code *leaves*, as
//! if it had come to an exit by itself. All the rest happens in ordinary Rust.
//!
//! A **kick** may find the thread
//! - in translated code, exactly between two guest instructions, or in a repeated string
//!   instruction: it leaves at once;
//! - in translated code, inside an instruction: it single-steps (TF) to the next boundary;
//! - in the committed stretch of the entry: the entry bails out;
//! - in a gate: it goes the long way, to Rust;
//! - anywhere else in Rust: [`Frame::kicked`] is set, and the next entry sees it. But it may
//!   not be the Switcher's Rust: perhaps another signal's handler is running *on top of* translated code, which
//!   will go on behind it. The two look the same, so the kick comes again a little later.
//!
//! TF is only ever set in a context where the processor is about to return to translated code, and
//! cleared by the trap it causes or by the fault that comes first. So neither the guest nor Rust sees it.
//!
//! The handlers are async-signal-safe: they allocate nothing, take no lock, and find their virtual
//! CPU through a thread-local pointer that needs no initialisation. A signal that isn't ours goes to the handler
//! that was there before: a bug in Rust still crashes the way it always did.

use super::SetupError;
use super::alarm::Retry;
use super::crossing;
use super::gates::{self, Interrupted};
use super::host_map::HostMap;
use super::kick::Kick;
use crate::frame::{Frame, Reason};
use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::cell::Cell;
use std::io;
use std::mem::zeroed;
use std::ops::Range;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

/// The flag that makes the processor trap after one instruction.
const TF: i64 = 1 << 8;

/// Signals that faults in translated code raise.
const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// What a handler must know of the virtual CPU that runs on its thread.
pub(crate) struct Running {
    frame: *mut Frame,
    /// Host addresses of the code cache, as run.
    code: Range<u64>,
    map: *const HostMap,
    retry: Retry,
    /// Single-stepping to a boundary.
    stepping: Cell<bool>,
    /// Kicks that came at a bad moment.
    retries: Cell<u32>,
}

thread_local! {
    /// The virtual CPU inside `Vcpu::run` on this thread. Initialised at compile time and without
    /// destructor, so a signal handler may look at it.
    static RUNNING: Cell<*const Running> = const { Cell::new(null()) };
}

impl Running {
    /// # Safety
    /// `frame` and `map` stay where they are, and valid, for as long as a [`Current`] made with the result
    /// exists; `map` isn't changed while translated code runs.
    pub(crate) unsafe fn new(
        frame: *mut Frame,
        code: Range<u64>,
        map: *const HostMap,
        retry: Retry,
    ) -> Self {
        Self { frame, code, map, retry, stepping: Cell::new(false), retries: Cell::new(0) }
    }
}

/// While it lives, signals on this thread belong to one virtual CPU.
pub(crate) struct Current {
    before: *const Running,
}

impl Current {
    /// Makes `running` the one. The caller keeps it in place until the result is dropped.
    pub(crate) fn new(running: &Running) -> Self {
        Self { before: RUNNING.replace(running) }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}

/// What the process does about signals, decided once.
struct Installed {
    /// The real-time signal that kicks.
    kick: c_int,
    /// What was there before, for [`FAULTS`] and then SIGTRAP.
    before: [libc::sigaction; FAULTS.len() + 1],
}

// SAFETY: `sigaction` holds addresses of functions and flags; it is never changed.
unsafe impl Send for Installed {}
// SAFETY: as above.
unsafe impl Sync for Installed {}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Installs the handlers, unless that has been done.
pub(crate) fn install() -> Result<(), SetupError> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if INSTALLED.get().is_none() {
        let installed = install_handlers().map_err(SetupError::Signals)?;
        let _ = INSTALLED.set(installed);
    }
    Ok(())
}

fn install_handlers() -> io::Result<Installed> {
    let kick = free_real_time_signal()?;
    // SAFETY: all zeros is a valid `sigaction`.
    let mut before = [unsafe { zeroed::<libc::sigaction>() }; FAULTS.len() + 1];
    let faults = FAULTS.into_iter().map(|signal| (signal, on_fault as Handler));
    let all = faults.chain([(libc::SIGTRAP, on_trap as Handler)]);
    for ((signal, handler), before) in all.zip(&mut before) {
        *before = set_handler(signal, handler, kick)?;
    }
    set_handler(kick, on_kick, kick)?;
    Ok(Installed { kick, before })
}

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn set_handler(signal: c_int, handler: Handler, kick: c_int) -> io::Result<libc::sigaction> {
    // SAFETY: all zeros is a valid `sigaction`; the set is initialised before use; the handler has the type that
    // SA_SIGINFO asks for. A kick waits until another of ours is
    // done; a fault may come while a kick is handled, if somebody sends one, and is then passed on.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        for blocked in [libc::SIGTRAP, kick] {
            libc::sigaddset(&raw mut action.sa_mask, blocked);
        }
        let mut before: libc::sigaction = zeroed();
        match libc::sigaction(signal, &raw const action, &raw mut before) {
            0 => Ok(before),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A real-time signal that nobody handles, from the top.
fn free_real_time_signal() -> io::Result<c_int> {
    let is_free = |signal: &c_int| {
        // SAFETY: only asks what is there.
        unsafe {
            let mut there: libc::sigaction = zeroed();
            libc::sigaction(*signal, null(), &raw mut there) == 0
                && there.sa_sigaction == libc::SIG_DFL
        }
    };
    let mut signals = (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev();
    signals.find(is_free).ok_or_else(|| io::Error::other("no real-time signal is free"))
}

/// The signal that kicks, once the handlers are installed.
pub(crate) fn kick_signal() -> Option<c_int> {
    INSTALLED.get().map(|installed| installed.kick)
}

/// The calling thread's number.
pub(crate) fn this_thread() -> i32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends the kick signal to a thread of this process, if it exists. Safe in a signal handler.
pub(crate) fn interrupt_thread(thread: i32) {
    if let (Some(signal), true) = (kick_signal(), thread > 0) {
        // SAFETY: a system call. Should the number belong to another thread by now, its handler
        // finds nothing running.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    }
}

/// A fault: in translated code it leaves with [`Reason::Fault`].
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid context; nobody else refers to it.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    if !leave_with_fault(info, context) {
        forward(signal, info, context);
    }
}

fn leave_with_fault(info: *mut siginfo_t, context: &mut ucontext_t) -> bool {
    // SAFETY: `Current` guarantees that the pointer is valid or null.
    let Some(running) = (unsafe { RUNNING.get().as_ref() }) else { return false };
    // SAFETY: the kernel passes a valid siginfo.
    let is_sent = unsafe { (*info).si_code } <= 0;
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as u64;
    // What `kill` sends may find translated code running, but isn't its fault.
    if is_sent {
        return false;
    }
    if let Some(Interrupted::At(long_way)) = gates::interrupted(rip) {
        stop_stepping(running, registers);
        registers[libc::REG_RIP as usize] = long_way as i64;
        return true;
    }
    if !running.code.contains(&rip) {
        return false;
    }
    // SAFETY: the thread was in translated code, so no Rust refers to the frame; the kernel passes
    // a valid siginfo.
    unsafe {
        (*running.frame).fault_address = (*info).si_addr().addr() as u64;
        (*running.frame).fault_error = registers[libc::REG_ERR as usize] as u64;
        (*running.frame).fault_trap = registers[libc::REG_TRAPNO as usize] as u64;
        (*running.frame).fault_rip = rip;
        (*running.frame).detail = (rip - running.code.start) as u32;
        (*running.frame).reason = Reason::Fault as u32;
    }
    stop_stepping(running, registers);
    registers[libc::REG_RIP as usize] = crossing::leave_address() as i64;
    true
}

/// The end of a single step, or a trap that isn't ours.
extern "C" fn on_trap(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as in `on_fault`.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    // SAFETY: as in `leave_with_fault`.
    match unsafe { RUNNING.get().as_ref() } {
        Some(running) if running.stepping.get() => preempt(running, context),
        _ => forward(signal, info, context),
    }
}

/// Somebody wants a virtual CPU of this thread back.
extern "C" fn on_kick(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as in `on_fault`.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    // SAFETY: the kernel passes a valid siginfo. A timer's value is null, or the address of a `Kick` that
    // lives until the timer is gone and its last signal taken: see `super::alarm`.
    unsafe {
        if (*info).si_code == libc::SI_TIMER
            && let Some(kick) = (*info).si_value().sival_ptr.cast::<Kick>().as_ref()
        {
            kick.note();
        }
    }
    // SAFETY: as in `leave_with_fault`.
    if let Some(running) = unsafe { RUNNING.get().as_ref() } {
        // SAFETY: the frame is valid, and the field atomic.
        unsafe { (*running.frame).kicked.store(1, Ordering::Relaxed) };
        preempt(running, context);
    }
}

// ANCHOR: preempt
/// Makes translated code leave at the next boundary.
fn preempt(running: &Running, context: &mut ucontext_t) {
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as u64;
    if crossing::committed().contains(&rip) {
        registers[libc::REG_RIP as usize] = crossing::bail_out_address() as i64;
        return;
    }
    if let Some(Interrupted::At(long_way)) = gates::interrupted(rip) {
        stop_stepping(running, registers);
        registers[libc::REG_RIP as usize] = long_way as i64;
        return;
    }
    if !running.code.contains(&rip) {
        if registers[libc::REG_EFL as usize] & TF != 0 {
            stop_stepping(running, registers);
        } else if !running.stepping.get() {
            let before = running.retries.get();
            running.retries.set(before.saturating_add(1));
            running.retry.soon(before);
        }
        return;
    }
    // SAFETY: valid by the promise of `Running::new`, and not being changed, since translated code
    // was running.
    let boundary = unsafe { &*running.map }.leave_at((rip - running.code.start) as u32);
    let Some(boundary) = boundary else {
        running.stepping.set(true);
        registers[libc::REG_EFL as usize] |= TF;
        return;
    };
    // SAFETY: the thread was in translated code, so no Rust refers to the frame.
    unsafe {
        (*running.frame).eip = boundary.eip;
        (*running.frame).reason = Reason::Kicked as u32;
    }
    let esp = &mut registers[libc::REG_R12 as usize];
    *esp = i64::from((*esp as u32).wrapping_add_signed(boundary.moved.into()));
    stop_stepping(running, registers);
    registers[libc::REG_RIP as usize] = crossing::leave_address() as i64;
}
// ANCHOR_END: preempt

fn stop_stepping(running: &Running, registers: &mut [i64; 23]) {
    if running.stepping.replace(false) {
        registers[libc::REG_EFL as usize] &= !TF;
    }
}

/// Hands a signal that isn't ours to whoever handled it before.
fn forward(signal: c_int, info: *mut siginfo_t, context: &mut ucontext_t) {
    let Some(installed) = INSTALLED.get() else { return };
    let index = FAULTS.iter().position(|&fault| fault == signal).unwrap_or(FAULTS.len());
    let before = &installed.before[index];
    // SAFETY: the previous handler is called as the kernel would have, or the previous disposition
    // put back, with which the faulting instruction, run again, has its effect.
    unsafe {
        match before.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, before, null_mut());
                if signal == libc::SIGTRAP {
                    libc::raise(signal); // A trap isn't repeated by itself.
                }
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: Handler = std::mem::transmute(handler);
                handler(signal, info, (&raw mut *context).cast());
            }
            handler => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
