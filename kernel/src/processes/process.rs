//! What the kernel knows of one process.

use super::fpu::FpuState;
use super::kernel_stack::KernelStack;
use crate::files::open::OpenFiles;
use crate::memory::address_space::{AddressSpace, Fault};
use alloc::boxed::Box;
use alloc::string::String;
use lguest_abi::segments::TLS_ENTRIES;
use lguest_guest::segments::Descriptor;
use lguest_system_calls::Errno;
use lguest_system_calls::private::{NAME_BYTES, ProcessRecord, State};

/// A process's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Pid(pub(crate) u32);

impl Pid {
    /// Who starts the shell.
    pub(crate) const NOBODY: Self = Self(0);
    /// The shell: the first process, and the parent of those whose own has ended.
    pub(crate) const SHELL: Self = Self(1);
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// By itself, with a status.
    Status(u8),
    /// By what Linux would call a signal.
    Signal(u8),
}

impl Ending {
    /// By ^C.
    pub(crate) const INTERRUPTED: Self = Self::Signal(2);
    /// By the kernel or another process.
    pub(crate) const KILLED: Self = Self::Signal(9);
    /// By touching what it may not, or another mistake of its own that has no signal for itself.
    pub(crate) const FAULT: Self = Self::Signal(11);
    /// By an instruction that there isn't.
    pub(crate) const INVALID_INSTRUCTION: Self = Self::Signal(4);
    /// By a trap for a debugger, where there is none.
    pub(crate) const TRAPPED: Self = Self::Signal(5);
    /// By an access that must be aligned.
    pub(crate) const UNALIGNED: Self = Self::Signal(7);
    /// By a computation without a result.
    pub(crate) const NO_RESULT: Self = Self::Signal(8);

    /// As `wait` tells it.
    pub(crate) const fn word(self) -> u32 {
        match self {
            Self::Status(status) => (status as u32) << 8,
            Self::Signal(signal) => signal as u32 & 0x7f,
        }
    }
}

/// What a process waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Something typed.
    Input,
    /// A child's end.
    Child,
    /// A moment.
    Until(u64),
}

/// Thread-local storage descriptors.
pub(crate) type Tls = [Descriptor; TLS_ENTRIES as usize];

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    /// What ^C ends as a whole: the number of its first process.
    pub(crate) job: Pid,
    name: [u8; NAME_BYTES],
    /// None once it has ended.
    pub(crate) space: Option<AddressSpace>,
    pub(crate) files: OpenFiles,
    pub(super) stack: KernelStack,
    pub(crate) tls: Tls,
    /// fs and gs, while another process runs.
    pub(super) segments: (u16, u16),
    /// The FPU's registers, while another process uses it; None before its first use.
    pub(super) fpu: Option<Box<FpuState>>,
    /// What it waits for, if it does.
    pub(crate) wait: Option<Wait>,
    /// That it is to end, and how; or how it ended.
    pub(crate) ending: Option<Ending>,
    /// It has ended, and its parent hasn't asked yet.
    pub(super) ended: bool,
    /// Nanoseconds it has run.
    pub(super) ran: u64,
}

impl Process {
    /// A process that hasn't run yet. Its number comes when it gets its place.
    pub(super) fn new(name: &[u8], space: AddressSpace, stack: KernelStack) -> Self {
        let mut short = [0; NAME_BYTES];
        for (place, byte) in short.iter_mut().zip(name) {
            *place = *byte;
        }
        Self {
            pid: Pid::NOBODY,
            parent: Pid::NOBODY,
            job: Pid::NOBODY,
            name: short,
            space: Some(space),
            files: OpenFiles::on_console(),
            stack,
            tls: Tls::default(),
            segments: (0, 0),
            fpu: None,
            wait: None,
            ending: None,
            ended: false,
            ran: 0,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        let name = String::from_utf8_lossy(&self.name);
        name.trim_end_matches('\0').into()
    }

    /// Its address space.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn space(&mut self) -> Result<&mut AddressSpace, Errno> {
        self.space.as_mut().ok_or(Errno::ESRCH)
    }

    /// Deals with a page fault at a user address.
    pub(crate) fn fault(&mut self, address: u32, write: bool) -> Fault {
        self.space.as_mut().map_or(Fault::Forbidden, |space| space.fault(address, write))
    }

    /// Whether it could run.
    pub(super) fn is_runnable(&self) -> bool {
        self.wait.is_none() && !self.ended
    }

    /// For `ps`.
    pub(super) fn record(&self) -> ProcessRecord {
        let state = match (self.ended, self.wait) {
            (true, _) => State::Ended,
            (false, Some(_)) => State::Waiting,
            (false, None) => State::Running,
        };
        ProcessRecord {
            pid: self.pid.0,
            parent: self.parent.0,
            state,
            cpu_ms: (self.ran / 1_000_000) as u32,
            pages: self.space.as_ref().map_or(0, AddressSpace::pages),
            name: self.name,
        }
    }
}
