//! The parent's side: starts workers, feeds them cases, buries them.
//!
//! One worker serves case after case, many thousands in a second. It is replaced when a case made a
//! system call (which kills it) or didn't end in time.
//!
//! **What the unsafe code here rests on**: the child made by `fork` runs nothing but
//! [`inside::run`], and a process id is used only until it has been waited for.

#![allow(unsafe_code)]

use crate::inside::{self, Plan, STEPS};
use crate::layout::Layout;
use crate::shared::Shared;
use crate::state::{CODE_SELECTOR, Case, End, Outcome, State};
use crate::{filter, state};
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// How long a case may run before it counts as endless. Far more than any needs, because the
/// machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often to look whether the worker is still alive.
const GLANCE: Duration = Duration::from_millis(20);

/// Why there is no oracle on this machine.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// No memory to share, or no process.
    #[error("can't make the process that runs test cases on the real processor: {0}")]
    System(#[from] io::Error),
    /// The worker failed to set itself up.
    #[error("the process that runs test cases on the real processor failed at {step}: {error}")]
    SetUp {
        /// What it was doing.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The worker died by a signal where it shouldn't.
    #[error(
        "the process that runs test cases died of signal {0}: can this machine run 32-bit code?"
    )]
    Died(i32),
    /// 32-bit code runs, but not as it should.
    #[error("this machine doesn't run 32-bit code as an x86 does: {0}")]
    Wrong(String),
}

/// The real processor, as something that runs [`Case`]s.
///
/// It stays on the thread that made it: the worker dies with that thread.
pub struct Oracle {
    layout: Layout,
    shared: Shared,
    stack: Vec<u8>,
    filter: Vec<libc::sock_filter>,
    worker: Option<libc::pid_t>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Oracle {
    /// An oracle with this memory. Runs a small case to be sure that the machine runs 32-bit code.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn new(layout: Layout) -> Result<Self, OracleError> {
        let shared = Shared::new(layout.len())?;
        let stack = vec![0; inside::STACK_BYTES];
        let filter = filter::program();
        let _of_this_thread = PhantomData;
        let mut oracle = Self { layout, shared, stack, filter, worker: None, _of_this_thread };
        oracle.try_out()?;
        Ok(oracle)
    }

    /// The pages there are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Runs a case to its end on the processor.
    ///
    /// # Errors
    /// When no worker can be started.
    ///
    /// # Panics
    /// When the case's memory hasn't the layout's size, or its segments are none that 32-bit
    /// code can have: cs the flat code segment, the others null, flat or of the layout's own, ss not null.
    pub fn run(&mut self, case: &Case) -> Result<Outcome, OracleError> {
        self.check_segments(&case.state);
        self.shared.memory_mut().copy_from_slice(&case.memory);
        if self.worker.is_none() {
            self.start()?;
        }
        let mut message = self.shared.message();
        message.state = case.state;
        let mxcsr = state::FxImage::MXCSR;
        // Reserved bits can't be loaded; no 32-bit code can set them either.
        message.state.fx.0[mxcsr + 2..mxcsr + 4].fill(0);
        self.shared.set_message(message);
        self.shared.pass();
        let end = self.wait_for_end()?;
        let message = self.shared.message();
        let end = end.unwrap_or_else(|| {
            let fault = message.trap.vector == 14;
            End::Exception {
                vector: message.trap.vector as u8,
                error: message.trap.error as u32,
                address: if fault { message.trap.address as u32 } else { 0 },
            }
        });
        Ok(Outcome { end, state: message.state })
    }

    /// What memory holds now, in the layout's order.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        self.shared.memory()
    }

    fn check_segments(&self, state: &State) {
        let [es, cs, ss, ds, fs, gs] = state.segments;
        assert_eq!(cs, CODE_SELECTOR, "code runs in the flat segment");
        assert_ne!(ss, 0, "there is no null stack segment");
        for selector in [es, ss, ds, fs, gs] {
            assert!(self.layout.is_data_selector(selector), "selector {selector:#x}");
        }
    }

    /// `None` when the worker came back by itself, and the message says why.
    fn wait_for_end(&mut self) -> Result<Option<End>, OracleError> {
        let start = Instant::now();
        while !self.shared.wait(GLANCE) {
            if let Some(status) = self.reap(libc::WNOHANG) {
                self.shared.take();
                if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS {
                    return Ok(Some(End::SystemCall));
                }
                return Err(OracleError::Died(libc::WTERMSIG(status)));
            }
            if start.elapsed() > PATIENCE {
                self.bury();
                return Ok(Some(End::Endless));
            }
        }
        Ok(None)
    }

    fn start(&mut self) -> Result<(), OracleError> {
        let mut message = self.shared.message();
        message.failure = Default::default();
        self.shared.set_message(message);
        let mut plan = Plan {
            block: self.shared.block(),
            file: self.shared.file(),
            layout: &self.layout,
            filter: &self.filter,
            stack: &mut self.stack,
            // SAFETY: has no effect.
            parent: unsafe { libc::getpid() },
        };
        self.shared.pass();
        // SAFETY: the child calls `inside::run` and nothing else.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            // SAFETY: just forked; the plan's mappings are the child's own copies, or shared.
            0 => unsafe { inside::run(&mut plan) },
            pid => self.worker = Some(pid),
        }
        if let Some(end) = self.wait_for_end()? {
            return Err(OracleError::Wrong(format!("the worker's start ended in {end:?}")));
        }
        let failure = self.shared.message().failure;
        if failure.step != 0 {
            self.bury();
            let step = STEPS[failure.step as usize];
            return Err(OracleError::SetUp {
                step,
                error: io::Error::from_raw_os_error(failure.error),
            });
        }
        Ok(())
    }

    /// Waits for the worker's death; `None` when it is still alive, or there is none.
    fn reap(&mut self, flags: i32) -> Option<i32> {
        let pid = self.worker?;
        let mut status = 0;
        // SAFETY: our own child, not waited for yet.
        if unsafe { libc::waitpid(pid, &raw mut status, flags) } != pid {
            return None;
        }
        self.worker = None;
        Some(status)
    }

    fn bury(&mut self) {
        if let Some(pid) = self.worker {
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            self.reap(0);
        }
        self.shared.take();
    }

    /// `inc eax; int3` at the start of the first region: is this a 32-bit x86?
    fn try_out(&mut self) -> Result<(), OracleError> {
        let mut case = Case { state: State::default(), memory: vec![0xcc; self.layout.len()] };
        let Some(region) = self.layout.regions().first() else {
            return Ok(());
        };
        case.memory[0] = 0x40;
        case.state.eip = region.start;
        case.state.gpr[0] = 41;
        let outcome = self.run(&case)?;
        let right = End::Exception { vector: 3, error: 0, address: 0 };
        if outcome.end != right || outcome.state.gpr[0] != 42 {
            return Err(OracleError::Wrong(format!("`inc eax; int3` gave {outcome:?}")));
        }
        Ok(())
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.bury();
    }
}
