//! Delivery: entering a handler (SDM volume 3, section "Exception and Interrupt Handling"; volume 2, the
//! "Operation" of INT n).
//!
//! The processor finds the gate, checks the handler's code segment, changes to an inner stack if the handler's
//! level is an inner one, pushes where it was, and goes on at the handler. What goes wrong on the way is an exception
//! itself; and if that goes wrong too, a double fault; and if that does, the processor shuts down.

use super::gates::Gate;
use super::{Bare, Board};
use crate::exceptions::is_fault;
use crate::registers::SystemSegment;
use crate::stack::{moved, on_stack};
use lguest_switcher::cpu::{IF, NT, RF, TF, VM};
use lguest_switcher::{Environment, Exception, Gpr, GuestVirt, Segment, SegmentRegister};

const DEBUG: u8 = 1;
const DOUBLE_FAULT: u8 = 8;
const INVALID_TASK: u8 = 10;
const NOT_PRESENT: u8 = 11;
const STACK: u8 = 12;
const PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// What is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// 0 to 255.
    pub vector: u8,
    /// What is pushed last, for the exceptions that have it.
    pub error: Option<u32>,
    /// Where it comes from.
    pub source: Source,
}

/// Where an event comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A device.
    External,
    /// The instruction at eip, or (for a trap) the one before.
    Exception {
        /// What CR2 becomes, for #PF.
        address: GuestVirt,
    },
    /// #DB, whose handler finds these bits in DR6. (That of `int1` is like any other exception.)
    Debug {
        /// Bits of DR6.
        reasons: u32,
    },
    /// `int n`, `int3` or `into`, of so many bytes. eip is behind it.
    Software {
        /// The instruction's length.
        length: u8,
    },
}

impl From<Exception> for Event {
    fn from(exception: Exception) -> Self {
        let Exception { vector, error, address } = exception;
        Self { vector, error, source: Source::Exception { address } }
    }
}

impl Event {
    /// #DB for these reasons, bits of DR6.
    pub(super) fn debug(reasons: u32) -> Self {
        Self { vector: DEBUG, error: None, source: Source::Debug { reasons } }
    }

    /// Bit 0 of the error code of what goes wrong on the way: the program didn't ask for this itself.
    pub(super) fn external(&self) -> u32 {
        u32::from(!matches!(self.source, Source::Software { .. }))
    }

    fn is_fault(&self) -> bool {
        matches!(self.source, Source::Exception { .. }) && is_fault(self.vector)
    }

    /// What is delivered when `exception` meets it on the way; `None` for shutdown (SDM volume 3, section "Interrupt
    /// 8—Double Fault Exception (#DF)").
    fn met(&self, exception: Exception) -> Option<Self> {
        let contributory = |vector| matches!(vector, 0 | INVALID_TASK..=PROTECTION);
        let first = match self.source {
            Source::Exception { .. } => self.vector,
            _ => return Some(exception.into()),
        };
        if first == DOUBLE_FAULT {
            return None;
        }
        let second = exception.vector;
        let double = contributory(first) && contributory(second)
            || first == PAGE_FAULT && (contributory(second) || second == PAGE_FAULT);
        let next = if double { Exception::with_error(DOUBLE_FAULT, 0) } else { exception };
        Some(next.into())
    }
}

/// Where a handler's frame goes, everything about the segment checked.
struct Target {
    code: Segment,
    level: u8,
    stack: Segment,
    esp: u32,
    /// The stack is another one.
    inner: bool,
}

impl<B: Board> Bare<B> {
    /// Delivers `event`, or what comes of it.
    ///
    /// # Errors
    /// Shutdown, for this last exception.
    pub(super) fn deliver(&mut self, event: Event) -> Result<(), Exception> {
        let mut event = event;
        loop {
            self.note(&event);
            let Err(exception) = self.enter(&event) else { return Ok(()) };
            if let Source::Software { length } = event.source {
                let eip = self.vcpu.cpu.eip();
                self.vcpu.cpu.set_eip(eip.wrapping_sub(length.into()));
            }
            event = event.met(exception).ok_or(exception)?;
        }
    }

    /// Notes what the handler finds in control and debug registers.
    pub fn note(&mut self, event: &Event) {
        match event.source {
            Source::Exception { address } if event.vector == PAGE_FAULT => {
                self.system.registers.cr2 = address.0;
            }
            Source::Debug { reasons } => self.system.registers.note_debug_exception(reasons),
            _ => {}
        }
    }

    /// Goes to the handler.
    ///
    /// # Errors
    /// The exception that this raises, which isn't delivered; nothing has changed then.
    pub fn enter(&mut self, event: &Event) -> Result<(), Exception> {
        let gate = self.gate(event)?;
        let target = self.target(&gate, event.external())?;
        let frame = self.frame(event, target.inner);
        let places = self.places(&target, gate.size, frame.len(), event.external())?;
        if gate.offset > target.code.limit {
            return Err(Exception::with_error(PROTECTION, event.external()));
        }
        // Nothing can be wrong any more but the tables' own pages.
        let code = self.used(target.code)?;
        let stack = if target.inner { self.used(target.stack)? } else { target.stack };
        self.push(&places, gate.size, &frame, target.level == 3)?;
        let cpu = &mut self.vcpu.cpu;
        let esp = moved(&stack, target.esp, 0u32.wrapping_sub(gate.size * frame.len() as u32));
        if target.inner {
            cpu.set_segment(SegmentRegister::Ss, stack);
        }
        cpu.set_segment(SegmentRegister::Cs, code);
        cpu.set_gpr(Gpr::Esp, esp);
        cpu.set_eip(gate.offset);
        let cleared = TF | NT | RF | VM | if gate.disables { IF } else { 0 };
        cpu.set_eflags(cpu.eflags() & !cleared);
        Ok(())
    }

    /// The handler's segments.
    fn target(&mut self, gate: &Gate, external: u32) -> Result<Target, Exception> {
        let error = |vector, selector: u16| {
            Exception::with_error(vector, u32::from(selector & !3) | external)
        };
        let selector = gate.selector;
        let code = self.segment(selector)?.ok_or(error(PROTECTION, selector))?;
        let current = self.vcpu.cpu.cpl();
        if !code.is_code() || code.dpl() > current {
            return Err(error(PROTECTION, selector));
        }
        if code.attributes & 0x80 == 0 {
            return Err(error(NOT_PRESENT, selector));
        }
        let conforming = code.attributes & 0x04 != 0;
        let level = if conforming { current } else { code.dpl() };
        let inner = level < current;
        let (stack, esp) = if inner {
            self.inner_stack(level, external)?
        } else {
            (self.vcpu.cpu.segment(SegmentRegister::Ss), self.vcpu.cpu.gpr(Gpr::Esp))
        };
        let code = Segment { selector: selector & !3 | u16::from(level), ..code };
        Ok(Target { code, level, stack, esp, inner })
    }

    /// The segment that `selector` names; `None` for a null selector and beyond its table.
    fn segment(&mut self, selector: u16) -> Result<Option<Segment>, Exception> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let descriptor = self.system.descriptor(selector)?;
        Ok(descriptor.map(|descriptor| Segment::from_descriptor(selector, descriptor)))
    }

    /// The stack for `level`, 0 to 2, that the current task has.
    fn inner_stack(&mut self, level: u8, external: u32) -> Result<(Segment, u32), Exception> {
        const TASK_16: u8 = 0x08;
        let SystemSegment { selector: task, table, kind } = self.system.registers.task;
        let error = |vector, selector: u16| {
            Exception::with_error(vector, u32::from(selector & !3) | external)
        };
        // A 32-bit task has esp0, ss0, esp1... from offset 4 on; a 16-bit one sp0, ss0, sp1... from 2 on.
        let level = u32::from(level);
        let wide = kind & TASK_16 != 0;
        let (offset, bytes) = if wide { (level * 8 + 4, 6) } else { (level * 4 + 2, 4) };
        if kind == 0 || offset + bytes - 1 > table.limit {
            return Err(error(INVALID_TASK, task));
        }
        let place = table.base.wrapping_add(offset);
        let (esp, selector) = if wide {
            let [e0, e1, e2, e3, s0, s1] = self.system.read_table(place)?;
            (u32::from_le_bytes([e0, e1, e2, e3]), u16::from_le_bytes([s0, s1]))
        } else {
            let [e0, e1, s0, s1] = self.system.read_table(place)?;
            (u16::from_le_bytes([e0, e1]).into(), u16::from_le_bytes([s0, s1]))
        };
        if u32::from(selector & 3) != level {
            return Err(error(INVALID_TASK, selector));
        }
        let stack = self.segment(selector)?.ok_or(error(INVALID_TASK, selector))?;
        if u32::from(stack.dpl()) != level || !stack.is_writable() {
            return Err(error(INVALID_TASK, selector));
        }
        if stack.attributes & 0x80 == 0 {
            return Err(error(STACK, selector));
        }
        Ok((stack, esp))
    }

    /// The segment, marked as accessed here and in its table.
    fn used(&mut self, segment: Segment) -> Result<Segment, Exception> {
        if segment.attributes & 1 == 0 {
            self.system.mark_accessed(segment.selector)?;
        }
        Ok(Segment { attributes: segment.attributes | 1, ..segment })
    }

    /// What is pushed, first things first: from an outer level ss and esp; then eflags, cs, eip, and maybe an error code.
    fn frame(&self, event: &Event, inner: bool) -> Vec<u32> {
        let cpu = &self.vcpu.cpu;
        let resume = if event.is_fault() { RF } else { 0 };
        let mut frame = Vec::with_capacity(6);
        if inner {
            frame.push(cpu.segment(SegmentRegister::Ss).selector.into());
            frame.push(cpu.gpr(Gpr::Esp));
        }
        frame.push(cpu.eflags() | resume);
        frame.push(cpu.segment(SegmentRegister::Cs).selector.into());
        frame.push(cpu.eip());
        frame.extend(event.error);
        frame
    }

    /// Where `count` words of `size` bytes go that are pushed, the first one first. All can be written.
    fn places(
        &mut self,
        target: &Target,
        size: u32,
        count: usize,
        external: u32,
    ) -> Result<Vec<GuestVirt>, Exception> {
        let selector = if target.inner { target.stack.selector & !3 } else { 0 };
        let no_room = Exception::with_error(STACK, u32::from(selector) | external);
        let mut esp = target.esp;
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            esp = moved(&target.stack, esp, 0u32.wrapping_sub(size));
            places.push(on_stack(&target.stack, esp, size).map_err(|_| no_room)?);
        }
        for &place in &places {
            self.vcpu.check_write(&mut self.system, place, size, target.level == 3)?;
        }
        Ok(places)
    }

    /// Writes the words of `frame`, `size` bytes of each, to their places.
    fn push(
        &mut self,
        places: &[GuestVirt],
        size: u32,
        frame: &[u32],
        user: bool,
    ) -> Result<(), Exception> {
        for (&place, word) in places.iter().zip(frame) {
            let bytes = &word.to_le_bytes()[..size as usize];
            self.vcpu.write_virt(&mut self.system, place, bytes, user)?;
        }
        Ok(())
    }
}
