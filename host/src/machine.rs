//! One guest, whole: its processor, and everything the Host knows about it.
//!
//! [`Machine::run`] is the centre of the Host. It lets the guest run until the processor leaves
//! for a reason, serves the guest's ring of queued hypercalls, and then does what the reason asks:
//!
//! - `int $0x1f` is a hypercall (`hypercalls.rs`);
//! - another `int`, or an exception, goes to the guest's own handler (`delivery.rs`), system calls by a gate that needs no Host
//!   (`system_calls.rs`);
//! - a privileged instruction is carried out as hardware would (`privileged.rs`);
//! - a kick says that time has passed, or that a device wants something.
//!
//! Before the guest goes on, a pending interrupt is delivered if it can be; if not, the Host makes sure
//! to notice when it can.

use crate::clock::RECHECK;
use crate::devices::{Bus, DeviceIo, Devices, Stop};
use crate::guest::Guest;
use crate::interrupts_and_traps::{Gate, InterruptLines};
use crate::kill::Kill;
use crate::page_tables::{Levels, Rules, adopt_linear_map};
use crate::privileged::first_registers;
use crate::shadow::Shadow;
use crate::system_calls::{Grounds, SystemCall};
use crate::trace::Tracer;
use lguest_abi::segments::{INITIAL_EFLAGS, KERNEL_CS, KERNEL_DS};
use lguest_abi::traps::FIRST_IRQ;
use lguest_abi::{Generation, hypercall};
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::TF;
use lguest_switcher::{
    Config, Exception, Exit, GuestMemory, GuestPhys, GuestVirt, Kicker, Segment, SegmentRegister,
    SetupError, Statistics, Vcpu, View,
};
use std::sync::Arc;

/// What a guest is made of. The launcher has laid out its memory already.
pub struct MachineConfig {
    /// The guest's memory and devices.
    pub memory: Arc<GuestMemory>,
    /// Which state of the interface its kernel speaks.
    pub generation: Generation,
    /// What the kernel's linear map adds to a physical address; a multiple of 16 MiB.
    pub page_offset: u32,
    /// The first instruction, a virtual address.
    pub entry: u32,
    /// The launcher's page directory, with the linear map: for a generation that
    /// [starts with page tables](Generation::starts_with_page_tables).
    pub page_directory: GuestPhys,
    /// The guest's number, unique on its host.
    pub guest_id: u16,
    /// Where devices that have threads of their own raise their interrupts.
    pub lines: InterruptLines,
    /// What is behind ports and beyond memory.
    pub bus: Box<dyn Bus>,
}

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It switched itself off.
    PowerOff,
    /// It wants to be started again.
    Restart,
    /// It gave up, with its own message.
    Crashed(String),
    /// The Host ended it.
    Killed(Kill),
    /// The launcher's devices asked for it.
    Stopped(Stop),
}

impl From<Kill> for End {
    fn from(kill: Kill) -> Self {
        Self::Killed(kill)
    }
}

/// What a guest that isn't running waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleep {
    /// It doesn't sleep.
    Awake,
    /// HALT: any interrupt that isn't masked. It enables them itself.
    Hypercall,
    /// `hlt`: an interrupt that isn't masked, if interrupts are enabled.
    Instruction,
}

/// One guest. It belongs to the thread that made it.
pub struct Machine {
    pub(crate) vcpu: Vcpu,
    pub(crate) guest: Guest,
    pub(crate) sleep: Sleep,
    /// `sti` keeps interrupts away for one more instruction: the one at this address.
    pub(crate) interrupt_shadow: Option<u32>,
    /// The Switcher was told that an interrupt waits to be enabled.
    watching: bool,
    /// The last system call that the Host saw.
    pub(crate) system_call: Option<SystemCall>,
    /// What the Switcher's gate for system calls was made from.
    pub(crate) grounds: Option<Grounds>,
}

impl Machine {
    /// A guest at its first instruction.
    ///
    /// # Errors
    /// What this machine lacks to run one, and what would help.
    pub fn new(config: MachineConfig) -> Result<Self, SetupError> {
        let memory = &config.memory;
        let rules = Rules::new(config.generation);
        let root = config.page_directory.page();
        let kernel_start = GuestVirt(config.page_offset);
        let mut vcpu = Vcpu::new(Arc::clone(memory), Config { kernel_start, ..Config::default() })?;
        for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Ss] {
            vcpu.cpu.set_segment(register, Segment::flat_data(KERNEL_DS));
        }
        for register in [SegmentRegister::Fs, SegmentRegister::Gs] {
            vcpu.cpu.set_segment(register, Segment::default());
        }
        vcpu.cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(KERNEL_CS));
        vcpu.cpu.set_eflags(INITIAL_EFLAGS);
        vcpu.cpu.set_eip(config.entry);
        if rules.levels != Levels::None {
            for run in adopt_linear_map(memory, rules, root, config.page_offset) {
                vcpu.map(View::Kernel, run);
            }
        }
        config.lines.attach(vcpu.kicker());
        let shadow = Shadow::new(&vcpu, rules, root, kernel_start);
        let guest = Guest::new(config, first_registers(root), shadow);
        let (sleep, interrupt_shadow, watching) = (Sleep::Awake, None, false);
        let (system_call, grounds) = (None, None);
        Ok(Self { vcpu, guest, sleep, interrupt_shadow, watching, system_call, grounds })
    }

    /// A handle by which any thread can make the guest come out, so that
    /// [`Devices::poll`] is called.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        self.vcpu.kicker()
    }

    /// From now on shows every event to `tracer`; `None` ends that. Gives the one before.
    pub fn set_tracer(&mut self, tracer: Option<Tracer>) -> Option<Tracer> {
        std::mem::replace(&mut self.guest.tracer, tracer)
    }

    /// What the processor has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.vcpu.statistics()
    }

    /// Runs the guest to its end.
    pub fn run(&mut self, devices: &mut dyn Devices) -> End {
        loop {
            if let Err(end) = self.turn(devices) {
                return end;
            }
        }
    }

    /// Lets the guest run until it leaves once, and does what it left for.
    fn turn(&mut self, devices: &mut dyn Devices) -> Result<(), End> {
        if self.sleep != Sleep::Awake {
            self.sleep(devices)?;
        }
        let step = self.guest.interrupts.any() && self.deliver_interrupt()?;
        if let Some(alarm) = self.guest.clock.alarm() {
            self.vcpu.set_alarm(Some(alarm));
        }
        self.refresh_call_gate();
        let exit = if step { self.step() } else { self.vcpu.run(&mut self.guest) };
        if exit != Exit::Kicked {
            self.interrupt_shadow = None;
        }
        self.guest.verdict()?;
        self.serve_ring(devices)?;
        match exit {
            Exit::SoftwareInterrupt { vector: hypercall::VECTOR, .. } if self.in_kernel() => {
                self.direct_hypercall(devices)
            }
            Exit::Exception(Exception::INVALID_OPCODE) if self.patch_vmcall() => Ok(()),
            Exit::SoftwareInterrupt { vector, length } => {
                Ok(self.software_interrupt(vector, length)?)
            }
            Exit::Exception(exception) => Ok(self.trap(exception)?),
            Exit::Debug(reasons) => Ok(self.debug_trap(reasons)?),
            Exit::Privileged(instruction) => Ok(self.privileged(&instruction)?),
            Exit::Kicked => self.attend(devices),
            Exit::Watched => Ok(()),
            Exit::Unsupported(instruction) => Err(self.unsupported(&instruction).into()),
        }
    }

    /// After a kick: the clock, and the devices.
    pub(crate) fn attend(&mut self, devices: &mut dyn Devices) -> Result<(), End> {
        if let Some(irq) = self.guest.clock.tick() {
            self.guest.interrupts.raise(irq);
        }
        let raised = self.guest.lines.take();
        self.guest.interrupts.raise_all(raised);
        let stop = devices.poll(&mut DeviceIo::new(&mut self.guest));
        self.guest.verdict()?;
        stop.map_or(Ok(()), |stop| Err(End::Stopped(stop)))
    }

    /// The interrupt that can be delivered now: pending, not masked, enabled (or `enabled` says so), outside the
    /// noirq range, and with a handler.
    pub(crate) fn deliverable(&mut self, enabled: bool) -> Result<Option<(u8, Gate)>, Kill> {
        let Some(shared) = &self.guest.shared else { return Ok(None) };
        let memory = &self.guest.memory;
        let Some(irq) = self.guest.interrupts.first(shared.blocked_interrupts(memory)) else {
            return Ok(None);
        };
        let held = shared.is_noirq(self.vcpu.cpu.eip()) && shared.protected_instruction().is_none();
        if !enabled && shared.irq_enabled(memory) == 0 || held {
            return Ok(None);
        }
        Ok(self.gate(FIRST_IRQ + irq)?.map(|gate| (irq, gate)))
    }

    /// Something is pending: delivers it, or sees to it that the moment when it can be isn't
    /// missed. Says that it can be after one more instruction.
    ///
    /// Enabling interrupts is a plain store, which nobody traps. The Switcher watches for the
    /// usual form of it; for other forms the alarm rings, a little later.
    fn deliver_interrupt(&mut self) -> Result<bool, Kill> {
        let now = self.deliverable(false)?;
        let shadowed =
            self.interrupt_shadow == Some(self.vcpu.cpu.eip()) || self.vcpu.holds_interrupts();
        if let Some((irq, gate)) = now
            && !shadowed
        {
            self.interrupt(irq, gate)?;
        }
        self.note_pending();
        let waiting = self.guest.shared.is_some() && self.guest.interrupt_can_come();
        if waiting != self.watching {
            self.watching = waiting;
            self.vcpu.set_pending(waiting);
        }
        if waiting {
            self.guest.clock.recheck_after(RECHECK);
        } else {
            self.guest.clock.no_recheck();
        }
        Ok(now.is_some() && shadowed)
    }

    /// Later guests ask for interrupts that waited, once they have enabled them: if they are told that one waits for nothing
    /// else.
    fn note_pending(&self) {
        let Guest { shared, memory, interrupts, gates, .. } = &self.guest;
        let Some(shared) = shared else { return };
        let open = interrupts.first(shared.blocked_interrupts(memory));
        let waits = open.is_some_and(|irq| gates.may_have(FIRST_IRQ + irq));
        shared.set_irq_pending(memory, waits && shared.irq_enabled(memory) == 0);
    }

    /// Lets the guest run one instruction, the one behind `sti`.
    fn step(&mut self) -> Exit {
        let flags = self.vcpu.cpu.eflags();
        self.vcpu.cpu.set_eflags(flags | TF);
        let exit = self.vcpu.run(&mut self.guest);
        if flags & TF != 0 {
            return exit;
        }
        self.vcpu.cpu.set_eflags(self.vcpu.cpu.eflags() & !TF);
        match exit {
            Exit::Debug(SINGLE_STEP) => Exit::Watched,
            Exit::Debug(reasons) => Exit::Debug(reasons & !SINGLE_STEP),
            exit => exit,
        }
    }
}
