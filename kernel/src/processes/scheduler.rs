//! Whose turn it is.
//!
//! Processes that can run stand in a queue. The first one runs until it waits, ends, or the clock
//! ticks; then it goes to the end of the queue. Somebody who waited for a key goes to the front.

use super::fpu::FpuState;
use super::kernel_stack;
use super::process::{Ending, Pid, Process, Tls, Wait};
use super::switch::{self, Switch};
use crate::memory::address_space::AddressSpace;
use crate::memory::{heap, kernel_map};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use lguest_guest::lazy::{Lazy, LazyMode};
use lguest_guest::machine;
use lguest_guest::processor::CR0_TS;
use lguest_system_calls::Errno;
use lguest_system_calls::private::ProcessRecord;

/// How many processes there can be.
const MAX_PROCESSES: usize = 64;

/// What a process can make the kernel keep on its heap at most, in bytes: its stack, its areas, arguments.
const HEAP_SHARE: usize = 48 << 10;

/// All processes, and whose turn it is.
pub(super) struct Scheduler {
    processes: Vec<Process>,
    /// Those that can run, but for the current one.
    queue: VecDeque<Pid>,
    current: Option<Pid>,
    /// Whose address space, TLS, fs and gs the processor has; the last one's still while nobody runs.
    loaded: Option<Pid>,
    loaded_tls: Tls,
    /// Whose registers are in the FPU.
    fpu_owner: Option<Pid>,
    /// The stack pointer of the boot's stack, while a process runs.
    idle_stack: u32,
    next_pid: Pid,
    /// When the current turn began.
    since: u64,
    /// The current process is to make way before it goes on.
    pub(super) turn_is_over: bool,
}

impl Scheduler {
    pub(super) const fn new() -> Self {
        Self {
            processes: Vec::new(),
            queue: VecDeque::new(),
            current: None,
            loaded: None,
            loaded_tls: [lguest_guest::segments::Descriptor(0); 3],
            fpu_owner: None,
            idle_stack: 0,
            next_pid: Pid::SHELL,
            since: 0,
            turn_is_over: false,
        }
    }

    fn find(&mut self, pid: Pid) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.pid == pid)
    }

    /// The current process.
    pub(super) fn current(&mut self) -> Option<&mut Process> {
        self.find(self.current?)
    }

    /// Whether nobody can run.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes a new process in. `own_job` makes it the first of a job; otherwise it belongs to its parent's.
    pub(super) fn add(
        &mut self,
        mut process: Process,
        parent: Pid,
        own_job: bool,
    ) -> Result<Pid, Errno> {
        let (heap_bytes, _) = heap::usage();
        if self.processes.len() >= MAX_PROCESSES.min(heap_bytes / HEAP_SHARE) {
            return Err(Errno::EAGAIN);
        }
        let pid = self.next_pid;
        self.next_pid.0 += 1;
        let parents_job = self.find(parent).map_or(pid, |parent| parent.job);
        process.pid = pid;
        process.parent = parent;
        process.job = if own_job { pid } else { parents_job };
        self.processes.push(process);
        self.queue.push_back(pid);
        Ok(pid)
    }

    /// Decides who runs next, and makes the processor his but for the stack. None if that is who runs now.
    pub(super) fn next(&mut self) -> Option<Switch> {
        let old = self.current;
        if let Some(process) = self.current()
            && process.is_runnable()
        {
            let pid = process.pid;
            self.queue.push_back(pid);
        }
        let next = self.queue.pop_front();
        self.turn_is_over = false;
        if next == old {
            return None;
        }
        self.account();
        self.current = next;
        if next.is_some() && next != self.loaded {
            self.load(next);
        }
        let save = match old.and_then(|old| self.find(old)) {
            Some(process) => {
                assert!(
                    process.stack.is_intact(),
                    "the kernel stack of {} was too small",
                    process.name()
                );
                &raw mut process.stack.saved
            }
            None => &raw mut self.idle_stack,
        };
        let idle_stack = self.idle_stack;
        let load = self.current().map_or(idle_stack, |process| process.stack.saved);
        Some(Switch { save, load })
    }

    /// Counts the time of the turn that ends.
    fn account(&mut self) {
        let now = machine().now();
        let since = core::mem::replace(&mut self.since, now);
        if let Some(process) = self.current() {
            process.ran += now.saturating_sub(since);
        }
    }

    /// Makes the processor a process's: address space, TLS, trap stack, whether the FPU is his.
    fn load(&mut self, next: Option<Pid>) {
        if let Some(old) = self.loaded.and_then(|old| self.find(old)) {
            old.segments = switch::read_segments();
        }
        let (loaded_tls, owns_fpu) = (self.loaded_tls, self.fpu_owner == next);
        let Some(process) = next.and_then(|next| self.find(next)) else {
            return;
        };
        let Some(directory) = process.space.as_mut().map(|space| space.directory()) else {
            return;
        };
        {
            let _lazy = Lazy::enter(LazyMode::Cpu);
            let machine = machine();
            // SAFETY: each directory has the kernel's half, and the stack is this process's for traps.
            unsafe {
                machine.write_cr3(directory);
                machine.load_esp0(process.stack.top(), kernel_stack::PAGES);
            }
            if process.tls != loaded_tls {
                machine.load_tls(&process.tls);
            }
            let trapping = machine.read_cr0() & CR0_TS != 0;
            match (owns_fpu, trapping) {
                (true, true) => machine.clts(),
                (false, false) => machine.write_cr0(machine.read_cr0() | CR0_TS),
                _ => {}
            }
        }
        let (segments, tls) = (process.segments, process.tls);
        if switch::read_segments() != segments {
            switch::load_segments(segments);
        }
        self.loaded_tls = tls;
        self.loaded = next;
    }

    /// The current process changed its TLS: makes that count. Its fs and gs stay what they are.
    pub(super) fn reload_tls(&mut self) {
        let Some(tls) = self.current().map(|process| process.tls) else {
            return;
        };
        let segments = switch::read_segments();
        machine().load_tls(&tls);
        switch::load_segments(segments);
        self.loaded_tls = tls;
    }

    /// Gives the FPU's registers to the current process. TS is clear.
    pub(super) fn pass_fpu(&mut self) {
        if self.fpu_owner == self.current {
            return;
        }
        if let Some(owner) = self.fpu_owner.and_then(|owner| self.find(owner)) {
            owner.fpu.get_or_insert_with(|| Box::new(FpuState::initial())).save();
        }
        if let Some(process) = self.current() {
            process.fpu.get_or_insert_with(|| Box::new(FpuState::initial())).restore();
        }
        self.fpu_owner = self.current;
    }

    /// The clock's tick: sleepers wake, and the current process has had its turn.
    pub(super) fn tick(&mut self, now: u64) {
        self.wake(|wait| matches!(wait, Wait::Until(until) if until <= now));
        if !self.queue.is_empty() {
            self.turn_is_over = true;
        }
    }

    /// Wakes all that wait for something `met` is true of. They are next.
    pub(super) fn wake(&mut self, met: impl Fn(Wait) -> bool) {
        let current = self.current;
        for process in &mut self.processes {
            if process.ended || !process.wait.is_some_and(&met) {
                continue;
            }
            process.wait = None;
            // The current one is about to look again by itself.
            if Some(process.pid) != current {
                self.queue.push_front(process.pid);
                self.turn_is_over = true;
            }
        }
    }

    /// Whether there is such a process, be it one that has ended already.
    pub(super) fn is_there(&self, which: impl Fn(&Process) -> bool) -> bool {
        self.processes.iter().any(which)
    }

    /// Marks processes as to be ended, and wakes them. False when there is none.
    pub(super) fn end(&mut self, which: impl Fn(&Process) -> bool, ending: Ending) -> bool {
        let mut found = false;
        let current = self.current;
        for process in self.processes.iter_mut().filter(|process| !process.ended && which(process))
        {
            found = true;
            process.ending.get_or_insert(ending);
            if process.wait.take().is_some() && Some(process.pid) != current {
                self.queue.push_front(process.pid);
            }
        }
        self.turn_is_over |= found;
        found
    }

    /// Ends the process that has most pages, to get them back; not the shell. When one is on its way to its end, it is
    /// enough to let it go on. None when there is no such process.
    pub(super) fn end_largest(&mut self) -> Option<Largest> {
        if self.processes.iter().any(|process| process.ending.is_some() && !process.ended) {
            self.turn_is_over = true;
            return Some(Largest::IsEnding);
        }
        let candidates = self.processes.iter().filter(|process| !process.ended);
        let largest = candidates
            .filter(|process| process.pid != Pid::SHELL)
            .max_by_key(|process| process.space.as_ref().map_or(0, AddressSpace::pages))?;
        let (pid, name) = (largest.pid, largest.name());
        self.end(|process| process.pid == pid, Ending::KILLED);
        Some(Largest::Ends(pid, name))
    }

    /// The current process has ended: gives back what it had, but for the stack it still stands on.
    pub(super) fn exit(&mut self, ending: Ending) -> Option<Remains> {
        let current = self.current?;
        self.account();
        // SAFETY: the kernel's half is the same.
        unsafe { machine().write_cr3(kernel_map::directory()) };
        self.loaded = None;
        if self.fpu_owner == Some(current) {
            self.fpu_owner = None;
        }
        let process = self.current()?;
        process.ended = true;
        process.wait = None;
        process.ending = Some(ending);
        process.fpu = None;
        process.space = None;
        let parent = process.parent;
        for orphan in self.processes.iter_mut().filter(|process| process.parent == current) {
            orphan.parent = Pid::SHELL;
        }
        self.wake_waiting_parent(parent);
        self.wake_waiting_parent(Pid::SHELL);
        Some(Remains { pid: current })
    }

    fn wake_waiting_parent(&mut self, parent: Pid) {
        if let Some(process) = self.find(parent)
            && process.wait == Some(Wait::Child)
        {
            process.wait = None;
            self.queue.push_front(parent);
        }
    }

    /// Removes a child of the current process that has ended. None when there is none yet.
    pub(super) fn reap(&mut self, pid: Option<Pid>) -> Result<Option<(Pid, Ending)>, Errno> {
        let parent = self.current.ok_or(Errno::ESRCH)?;
        let mut has_children = false;
        for at in 0..self.processes.len() {
            let process = &self.processes[at];
            if process.parent != parent || pid.is_some_and(|pid| process.pid != pid) {
                continue;
            }
            has_children = true;
            if process.ended {
                let process = self.processes.swap_remove(at);
                return Ok(Some((process.pid, process.ending.unwrap_or(Ending::KILLED))));
            }
        }
        if has_children { Ok(None) } else { Err(Errno::ECHILD) }
    }

    /// Nanoseconds the current process has run.
    pub(super) fn processor_time(&mut self) -> u64 {
        self.account();
        self.current().map_or(0, |process| process.ran)
    }

    /// All processes, for `ps`.
    pub(super) fn list(&mut self) -> Vec<ProcessRecord> {
        self.account();
        let mut list: Vec<_> = self.processes.iter().map(|process| process.record()).collect();
        list.sort_by_key(|record| record.pid);
        list
    }
}

/// What [`Scheduler::end_largest`] came to.
pub(super) enum Largest {
    /// This one is to end.
    Ends(Pid, String),
    /// One was to end already.
    IsEnding,
}

/// What is left of a process that has ended.
pub(super) struct Remains {
    pub(super) pid: Pid,
}
