//! Delivery: entering a handler of the guest.
//!
//! The processor pushes where it was, and goes on at the handler, in the kernel's code segment at
//! level 1. From user mode it changes to the kernel's stack first. The Host does here what the
//! hardware would, word for word, with two additions: the interrupt flag that the guest sees is the word in
//! `LguestData`, and a processor that would double-fault ends the guest with a message instead.

use crate::interrupts_and_traps::Gate;
use crate::kill::Kill;
use crate::machine::Machine;
use crate::trace::Event;
use lguest_abi::segments::{KERNEL_CS, KERNEL_LEVEL};
use lguest_abi::traps::{DEBUG, FIRST_IRQ, PAGE_FAULT, has_error_code};
use lguest_processor::exceptions::is_fault;
use lguest_processor::stack::{on_stack, push};
use lguest_switcher::address::GuestVirt;
use lguest_switcher::cpu::{IF, NT, RF, TF, VM};
use lguest_switcher::environment::Environment;
use lguest_switcher::{Exception, Gpr, Segment, SegmentRegister};

/// Error code bit 1: the index before it is one of the IDT.
const IN_IDT: u32 = 2;

impl Machine {
    /// The guest's code raised an exception.
    pub(crate) fn trap(&mut self, exception: Exception) -> Result<(), Kill> {
        let Exception { vector, error, address } = exception;
        if vector == PAGE_FAULT {
            self.guest.registers.cr2 = address.0;
            if let Some(shared) = &self.guest.shared {
                shared.set_cr2(&self.guest.memory, address.0);
            }
        }
        let error = has_error_code(vector).then_some(error.unwrap_or(0));
        let Some(gate) = self.gate(vector)? else {
            return Err(Kill::NoHandler {
                vector,
                error: error.unwrap_or(0),
                address: GuestVirt(self.guest.registers.cr2),
                eip: self.vcpu.cpu.eip(),
            });
        };
        let (eip, user) = (self.vcpu.cpu.eip(), !self.in_kernel());
        let address = (vector == PAGE_FAULT).then_some(address);
        self.guest.trace(|| Event::Trap { vector, error, address, eip, user });
        if is_fault(vector) {
            let flags = self.vcpu.cpu.eflags();
            self.vcpu.cpu.set_eflags(flags | RF);
        }
        self.enter(vector, gate, error)
    }

    /// Trap 1, for reasons that debug register 6 shows.
    pub(crate) fn debug_trap(&mut self, reasons: u32) -> Result<(), Kill> {
        self.guest.registers.note_debug_exception(reasons);
        self.trap(Exception::plain(DEBUG))
    }

    /// The guest executed `int n`, `int3` or `into`; eip is behind the instruction of `length` bytes.
    ///
    /// From user mode a gate of level 3 is needed. The kernel was written for level 0, where
    /// every gate may be used.
    pub(crate) fn software_interrupt(&mut self, vector: u8, length: u8) -> Result<(), Kill> {
        let user = !self.in_kernel();
        let eip = self.vcpu.cpu.eip();
        match self.gate(vector)? {
            Some(gate) if !user || gate.level >= self.vcpu.cpu.cpl() => {
                self.guest.trace(|| Event::Trap { vector, error: None, address: None, eip, user });
                if user {
                    self.note_system_call(vector);
                }
                self.enter(vector, gate, None)
            }
            _ => {
                self.vcpu.cpu.set_eip(eip.wrapping_sub(length.into()));
                self.trap(Exception::with_error(13, u32::from(vector) * 8 + IN_IDT))
            }
        }
    }

    /// Delivers device interrupt `irq`, which has this gate.
    pub(crate) fn interrupt(&mut self, irq: u8, gate: Gate) -> Result<(), Kill> {
        let (eip, user) = (self.vcpu.cpu.eip(), !self.in_kernel());
        self.guest.interrupts.take(irq);
        self.guest.trace(|| Event::Interrupt { irq, eip, user });
        let protected =
            self.guest.shared.as_ref().and_then(|shared| shared.protected_instruction());
        if !user && protected == Some(eip) {
            self.take_over_iret(FIRST_IRQ + irq, gate)?;
        } else {
            self.enter(FIRST_IRQ + irq, gate, None)?;
        }
        if let Some(shared) = &self.guest.shared {
            shared.tell_time(&self.guest.memory);
        }
        Ok(())
    }

    /// The guest is about to execute an `iret` that must not be interrupted, with interrupts enabled already: the handler
    /// gets the frame that is there, as if it had been interrupted behind the `iret`.
    fn take_over_iret(&mut self, vector: u8, gate: Gate) -> Result<(), Kill> {
        let code = self.kernel_code(vector)?;
        self.start(gate, code);
        Ok(())
    }

    /// The gate for `vector`: as LOAD_IDT_ENTRY set it, or from the table that the guest loaded by `lidt`.
    pub(crate) fn gate(&mut self, vector: u8) -> Result<Option<Gate>, Kill> {
        let Some(place) = self.guest.gates.place(vector, &self.guest.registers.idt) else {
            return Ok(self.guest.gates.get(vector));
        };
        let Some(Ok(bytes)) = place.map(|at| self.guest.read_table::<8>(at)) else {
            self.guest.verdict()?;
            return Ok(None);
        };
        let entry = u64::from_le_bytes(bytes);
        Gate::new(u32::from(vector), entry as u32, (entry >> 32) as u32)
    }

    /// The kernel is running: at level 1, on a stack segment of that level.
    pub(crate) fn in_kernel(&self) -> bool {
        u16::from(self.vcpu.cpu.cpl()) == KERNEL_LEVEL
    }

    /// A handler for `vector` can't be entered.
    fn double_fault(&self, vector: u8, what: &'static str, value: u32) -> Kill {
        Kill::DoubleFault { vector, eip: self.vcpu.cpu.eip(), what, value }
    }

    /// The segment in which handlers run.
    fn kernel_code(&mut self, vector: u8) -> Result<Segment, Kill> {
        let code = self.segment(KERNEL_CS)?;
        if code.is_code() && is_kernel_segment(&code) {
            return Ok(code);
        }
        let what = "the kernel's code segment is unusable";
        Err(self.double_fault(vector, what, u32::from(KERNEL_CS)))
    }

    /// Goes on at the handler of `gate`, on the stack that is there.
    fn start(&mut self, gate: Gate, code: Segment) {
        let cpu = &mut self.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Cs, code);
        cpu.set_eip(gate.handler);
        cpu.set_eflags(cpu.eflags() & !(TF | NT | RF | VM));
        if gate.disables {
            self.guest.set_irq_enabled(false);
        }
    }

    /// Enters the handler of `gate`, with a frame on its stack.
    fn enter(&mut self, vector: u8, gate: Gate, error: Option<u32>) -> Result<(), Kill> {
        let code = self.kernel_code(vector)?;
        let from_user = !self.in_kernel();
        let (stack, top) = if from_user {
            let (selector, esp) = self.trap_stack()?;
            (self.segment(selector)?, esp)
        } else {
            (self.vcpu.cpu.segment(SegmentRegister::Ss), self.vcpu.cpu.gpr(Gpr::Esp))
        };
        if !stack.is_writable() || !is_kernel_segment(&stack) {
            let what = "its stack segment is unusable";
            return Err(self.double_fault(vector, what, u32::from(stack.selector)));
        }
        let frame = self.frame(from_user, error);
        let bytes = frame.bytes().len() as u32;
        let esp = push(&stack, top, bytes);
        let written = on_stack(&stack, esp, bytes)
            .and_then(|at| Ok(self.vcpu.write_virt(&mut self.guest, at, frame.bytes(), false)?));
        if written.is_err() {
            self.guest.verdict()?;
            let bottom = stack.base.wrapping_add(esp);
            return Err(self.double_fault(vector, "its stack can't be written", bottom));
        }
        let cpu = &mut self.vcpu.cpu;
        if from_user {
            cpu.set_segment(SegmentRegister::Ss, stack);
        }
        cpu.set_gpr(Gpr::Esp, esp);
        self.start(gate, code);
        Ok(())
    }

    /// The stack for traps from user mode: SET_STACK's, or else that of the task that `ltr` loaded.
    fn trap_stack(&mut self) -> Result<(u16, u32), Kill> {
        /// Where a task segment has esp0, with ss0 behind it (SDM volume 3, section "Task-State
        /// Segment").
        const ESP0: u32 = 4;
        let stack = self.guest.stack;
        let task = self.guest.registers.task;
        if stack.segment != 0 || task.is_null() {
            return Ok((stack.segment, stack.esp));
        }
        let [e0, e1, e2, e3, s0, s1] =
            self.guest.read_table(task.table.base.wrapping_add(ESP0)).unwrap_or_default();
        self.guest.verdict()?;
        Ok((u16::from_le_bytes([s0, s1]), u32::from_le_bytes([e0, e1, e2, e3])))
    }

    /// The segment that `selector` names, as it is when loaded at level 1; an unusable one when it names none.
    ///
    /// # Errors
    /// The guest's tables are such that the descriptor can't be looked for: that ends the guest, not what
    /// delivery would make of it.
    fn segment(&mut self, selector: u16) -> Result<Segment, Kill> {
        let found = if selector & !3 == 0 { Ok(None) } else { self.guest.descriptor(selector) };
        self.guest.verdict()?;
        let descriptor = found.ok().flatten().unwrap_or(0);
        Ok(Segment::from_descriptor(selector & !3 | KERNEL_LEVEL, descriptor))
    }

    /// What is pushed: from the lowest address up, maybe an error code, eip, cs, eflags, and from user mode esp and ss.
    fn frame(&self, from_user: bool, error: Option<u32>) -> TrapFrame {
        let cpu = &self.vcpu.cpu;
        let mut frame = TrapFrame::default();
        if let Some(error) = error {
            frame.append(error);
        }
        frame.append(cpu.eip());
        frame.append(u32::from(cpu.segment(SegmentRegister::Cs).selector));
        frame.append(cpu.eflags() & !IF | self.guest.irq_enabled());
        if from_user {
            frame.append(cpu.gpr(Gpr::Esp));
            frame.append(u32::from(cpu.segment(SegmentRegister::Ss).selector));
        }
        frame
    }
}

/// Up to six words for the stack.
#[derive(Default)]
struct TrapFrame {
    bytes: [u8; 24],
    used: usize,
}

impl TrapFrame {
    fn append(&mut self, word: u32) {
        if let Some(place) = self.bytes.get_mut(self.used..self.used + 4) {
            place.copy_from_slice(&word.to_le_bytes());
            self.used += 4;
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

/// Present, and of the kernel's level.
fn is_kernel_segment(segment: &Segment) -> bool {
    segment.is_usable() && u16::from(segment.dpl()) == KERNEL_LEVEL
}
