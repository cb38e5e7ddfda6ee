//! Inside the worker: a child process whose whole life is one signal handler.
//!
//! The handler is entered when the code under test raises an exception. It notes the registers
//! that the kernel saved, hands the baton to the parent, waits for the next case, writes *its* registers
//! over the saved ones, and returns: and "returning from the signal" is how the processor gets
//! into 32-bit mode, because the saved code segment is now a 32-bit one. There is no other way in
//! or out, so nothing of the code under test can be mistaken for something of ours: its memory is
//! below 4 GiB, all it can reach, and our code, stack and variables are above.
//!
//! **What the unsafe code here rests on**: between `fork` and the first exception only
//! async-signal-safe functions are called, since the parent may have threads. In the handler
//! nothing uses thread-local storage, because fs may be anything.

#![allow(unsafe_code)]

use crate::layout::Layout;
use crate::shared::{Block, Failure, Message, Trap, hand_back};
use crate::state::{ARITHMETIC_FLAGS, FX_BYTES, FxImage, State, TRAP_FLAG};
use std::arch::asm;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Bytes of the handler's stack: room for the kernel's frame with all of AVX-512, many times over.
pub(crate) const STACK_BYTES: usize = 128 << 10;

/// What [`run`] needs, made before the fork.
pub(crate) struct Plan<'a> {
    pub(crate) block: *const Block,
    pub(crate) file: i32,
    pub(crate) layout: &'a Layout,
    pub(crate) filter: &'a [libc::sock_filter],
    pub(crate) stack: &'a mut [u8],
    pub(crate) parent: libc::pid_t,
}

/// The steps of setting up, as [`Failure::step`] numbers them.
pub(crate) const STEPS: [&str; 8] = [
    "nothing",
    "tying the worker's life to its parent's",
    "mapping a region (the first addresses may be forbidden: see vm.mmap_min_addr)",
    "making a segment in the local descriptor table",
    "setting the signal stack",
    "installing a signal handler",
    "unblocking signals",
    "confining the worker with seccomp",
];

/// The block, for the handler. One worker is one process, so one place is enough.
static BLOCK: AtomicPtr<Block> = AtomicPtr::new(null_mut());

/// The whole life of a worker.
///
/// # Safety
/// Only in a process just forked, which nothing else uses; `plan` must describe mappings that
/// stay.
pub(crate) unsafe fn run(plan: &mut Plan) -> ! {
    BLOCK.store(plan.block.cast_mut(), Ordering::Relaxed);
    // SAFETY: this process is nobody else's.
    if let Err(step) = unsafe { set_up(plan) } {
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        // SAFETY: the worker holds the baton until it hands it back.
        unsafe {
            (*(*plan.block).message.get()).failure = Failure { step, error };
            hand_back(plan.block);
            libc::_exit(1);
        }
    }
    // SAFETY: the invalid instruction enters the handler, which never comes back here: it returns
    // into the code under test.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Everything up to the first exception; the number of the step that failed.
unsafe fn set_up(plan: &mut Plan) -> Result<(), u32> {
    let check = |step: u32, good: bool| if good { Ok(()) } else { Err(step) };
    // SAFETY: plain system calls with valid arguments, in a process of our own; regions are mapped
    // only where nothing is.
    unsafe {
        check(1, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0)?;
        check(1, libc::getppid() == plan.parent)?;
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        check(2, map_regions(plan))?;
        check(3, make_segments(plan.layout))?;
        let stack = libc::stack_t {
            ss_sp: plan.stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: plan.stack.len(),
        };
        check(4, libc::sigaltstack(&raw const stack, null_mut()) == 0)?;
        check(5, install_handlers())?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(6, libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()) == 0)?;
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        check(7, confine(plan.filter))
    }
}

unsafe fn map_regions(plan: &Plan) -> bool {
    let mut offset = 0;
    plan.layout.regions().iter().all(|region| {
        let write = if region.writable { libc::PROT_WRITE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
        let address = region.start as usize as *mut libc::c_void;
        let rights = libc::PROT_READ | libc::PROT_EXEC | write;
        // SAFETY: NOREPLACE: nothing of ours is disturbed.
        let got = unsafe { libc::mmap(address, region.len(), rights, flags, plan.file, offset) };
        offset += region.len() as libc::off_t;
        got == address
    })
}

/// Linux's `struct user_desc` (modify_ldt(2)).
#[repr(C)]
struct UserDescriptor {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

impl UserDescriptor {
    /// The segment that a raw descriptor describes, in the kernel's words.
    fn new(entry: u32, raw: u64) -> Self {
        let (low, high) = (raw as u32, (raw >> 32) as u32);
        let base = low >> 16 | (high & 0xff) << 16 | (high & 0xff00_0000);
        let bit = |at: u32| high >> at & 1;
        let flags = bit(22) // 32 bits
            | (high >> 10 & 3) << 1 // expand-down or conforming; code
            | (1 - bit(9)) << 3 // not writable, or not readable
            | bit(23) << 4 // the limit counts pages
            | (1 - bit(15)) << 5 // not present
            | bit(20) << 6; // the bit that is software's
        Self { entry, base, limit: (low & 0xffff) | (high & 0xf_0000), flags }
    }
}

unsafe fn make_segments(layout: &Layout) -> bool {
    const WRITE: libc::c_long = 0x11;
    layout.segments().iter().enumerate().all(|(entry, &raw)| {
        let descriptor = UserDescriptor::new(entry as u32, raw);
        let (at, size) = (&raw const descriptor, size_of::<UserDescriptor>());
        // SAFETY: the structure lives through the call.
        unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, at, size) as i32 == 0 }
    })
}

unsafe fn install_handlers() -> bool {
    const SIGNALS: [i32; 5] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
    // SAFETY: the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        SIGNALS.iter().all(|&signal| libc::sigaction(signal, &raw const action, null_mut()) == 0)
    }
}

unsafe fn confine(filter: &[libc::sock_filter]) -> bool {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

/// Between two cases. Runs on the alternate stack, with all signals blocked.
unsafe extern "C" fn handler(_: i32, _: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    let block = BLOCK.load(Ordering::Relaxed).cast_const();
    // SAFETY: the kernel gave us the context; the worker holds the baton at first, and again when
    // `hand_back` returns.
    unsafe {
        let message: *mut Message = (*block).message.get();
        save(&*context, &mut *message);
        hand_back(block);
        load(&(*message).state, &mut *context);
    }
}

/// Indices of the general registers, in the order of instruction encoding.
const GPR: [i32; 8] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
];

/// In an FXSAVE image, MXCSR's mask: the kernel's business.
const MASK: std::ops::Range<usize> = 28..32;

/// Notes what the kernel saved, and the segment registers, which it leaves as they are.
unsafe fn save(context: &libc::ucontext_t, message: &mut Message) {
    let registers = &context.uc_mcontext.gregs;
    let state: &mut State = &mut message.state;
    for (value, index) in state.gpr.iter_mut().zip(GPR) {
        *value = registers[index as usize] as u32;
    }
    state.eip = registers[libc::REG_RIP as usize] as u32;
    state.eflags = registers[libc::REG_EFL as usize] as u32;
    let selectors = registers[libc::REG_CSGSFS as usize] as u64;
    let (es, ds, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reading segment registers has no effect.
    unsafe {
        asm!("mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags));
    }
    state.segments = [es, selectors as u16, (selectors >> 48) as u16, ds, fs, gs];
    let image: *const FxImage = context.uc_mcontext.fpregs.cast_const().cast();
    if !image.is_null() {
        // SAFETY: the kernel's frame holds at least a whole FXSAVE image.
        unsafe { state.fx = image.read_unaligned() };
    }
    message.trap = Trap {
        vector: registers[libc::REG_TRAPNO as usize] as u64,
        error: registers[libc::REG_ERR as usize] as u64,
        address: registers[libc::REG_CR2 as usize] as u64,
    };
}

/// The ss in a signal frame is to be taken as it is (Linux's `asm/ucontext.h`).
const STRICT_SS: u64 = 2 | 4;
/// Where the XSAVE header lies behind the FXSAVE image, and its first word: which components aren't in
/// their initial state (SDM volume 1, section "XSAVE Header").
const XSTATE_BV: usize = 512;
/// The x87 and the SSE component.
const X87_AND_SSE: u64 = 3;
/// What the kernel puts at offset 464 of the image when a header follows.
const XSTATE_MAGIC: u32 = 0x4650_5853;

/// Makes the return from the signal start the next case.
unsafe fn load(state: &State, context: &mut libc::ucontext_t) {
    let image: *mut u8 = context.uc_mcontext.fpregs.cast();
    // SAFETY: as in `save`; a header follows where the magic number says so.
    unsafe {
        let new = &state.fx.0;
        image.copy_from_nonoverlapping(new.as_ptr(), MASK.start);
        let rest = FX_BYTES - MASK.end;
        image.add(MASK.end).copy_from_nonoverlapping(new.as_ptr().add(MASK.end), rest);
        if image.add(464).cast::<u32>().read_unaligned() == XSTATE_MAGIC {
            let components = image.add(XSTATE_BV).cast::<u64>();
            components.write_unaligned(components.read_unaligned() | X87_AND_SSE);
        }
    }
    let registers = &mut context.uc_mcontext.gregs;
    for (value, index) in state.gpr.iter().zip(GPR) {
        registers[index as usize] = i64::from(*value);
    }
    registers[libc::REG_RIP as usize] = i64::from(state.eip);
    let flags = state.eflags & (ARITHMETIC_FLAGS | TRAP_FLAG) | 2;
    registers[libc::REG_EFL as usize] = i64::from(flags);
    let [es, cs, ss, ds, fs, gs] = state.segments;
    registers[libc::REG_CSGSFS as usize] = (u64::from(cs) | u64::from(ss) << 48) as i64;
    context.uc_flags |= STRICT_SS;
    // SAFETY: the parent has checked that the selectors can be loaded. 64-bit code ignores es and
    // ds, and nothing here uses fs or gs.
    unsafe {
        asm!("mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            in(reg) es, in(reg) ds, in(reg) fs, in(reg) gs,
            options(nostack, preserves_flags));
    }
}
