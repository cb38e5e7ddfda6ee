//! Host faults in translated code, and what they mean to the guest.
//!
//! Most are page faults in a window: the page isn't mapped yet (then it is, and the instruction
//! starts again), or the guest has no right to it (then the guest gets its own #PF). The others are
//! the guest's arithmetic (#DE, #MF, #XM), its alignment, or a sign that an instruction must be
//! reached by another [`Route`].

use super::Vcpu;
use super::run::Resume;
use crate::address::{GuestVirt, PAGE_SIZE};
use crate::cpu::{Gpr, SegmentRegister};
use crate::emulate::linear_address;
use crate::environment::{Access, Environment, Mapping};
use crate::execute::host_map::Place;
use crate::execute::windows::Slot;
use crate::exit::{Exception, Exit};
use crate::translate::Route;
use iced_x86::{OpKind, Register};
use std::time::Instant;

/// Times the same access may fault in a row, in one run, before Rust takes it over.
const PATIENCE: u32 = 4;

/// Trap numbers, as the host's kernel reports them: the processor's vectors.
mod trap {
    pub(super) const DIVIDE: u64 = 0;
    pub(super) const INVALID_OPCODE: u64 = 6;
    pub(super) const STACK: u64 = 12;
    pub(super) const PROTECTION: u64 = 13;
    pub(super) const PAGE: u64 = 14;
    pub(super) const X87: u64 = 16;
    pub(super) const SSE: u64 = 19;
}

/// Bytes of the longest operand, `fxsave`'s.
const LONGEST_OPERAND: u32 = 512;

/// Bit of the host's page-fault error code: it was a write.
const WRITE: u64 = 1 << 1;

/// One access that faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    eip: u32,
    address: u32,
    write: bool,
}

impl Vcpu {
    /// A signal has made translated code leave.
    #[cold]
    pub(super) fn host_fault(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        self.statistics.faults += 1;
        let frame = &mut self.cpu.frame;
        let at = frame.detail;
        let Some(place) = self.code.map.find(at).copied() else { return self.lost(env) };
        frame.eip = place.eip;
        let esp = &mut frame.gpr[Gpr::Esp as usize];
        *esp = esp.wrapping_add_signed(place.moved.into());
        let (number, error, address) = (frame.fault_trap, frame.fault_error, frame.fault_address);
        let bounced = self.bounce.take().is_some();
        let exception = match number {
            trap::DIVIDE => Exception::DIVIDE,
            trap::X87 => Exception::plain(16),
            trap::SSE => Exception::plain(19),
            trap::INVALID_OPCODE => Exception::INVALID_OPCODE,
            trap::PROTECTION | trap::STACK if bounced => Exception::protection(0),
            trap::PROTECTION | trap::STACK => return self.protection_fault(env),
            trap::PAGE => return self.page_fault(env, place, address, error & WRITE != 0),
            _ => return self.lost(env),
        };
        Err(Exit::Exception(exception))
    }

    /// A page fault somewhere in the process, at host address `address`.
    fn page_fault(
        &mut self,
        env: &mut dyn Environment,
        point: Place,
        address: u64,
        write: bool,
    ) -> Result<Resume, Exit> {
        let (user, at) = (self.assumptions.user, GuestVirt(address as u32));
        let base = address & !u64::from(u32::MAX);
        let hit = [self.spaces.running(user), self.spaces.current()]
            .into_iter()
            .find(|&slot| self.spaces.windows.base(slot) == base);
        let Some(hit) = hit else { return self.reroute(env, Route::Bounced) };
        if !self.alone && self.spaces.breakpoints.watches(at.page_number(), write) {
            return Ok(self.go_alone());
        }
        let fault = Fault { eip: self.cpu.eip(), address: at.0, write };
        self.repeats = if self.last_fault == Some(fault) { self.repeats + 1 } else { 0 };
        self.last_fault = Some(fault);
        if self.repeats > PATIENCE {
            return self.reroute(env, Route::Bounced);
        }
        if at.0 > u32::MAX - LONGEST_OPERAND {
            // Perhaps it crosses the end of the address space, which is judged before pages are. Rust does so.
            return self.reroute(env, Route::Bounced);
        }
        let record = self.spaces.windows.get(hit, at.page_number());
        if write && record.is_protected() {
            return self.store_into_code(env, record.frame());
        }
        if user || at.0 >= self.spaces.kernel_start() {
            if hit != self.spaces.shower(user, at.0) {
                return self.reroute(env, Route::Bounced);
            }
            return self.map_and_retry(env, hit, at, write, point);
        }
        self.kernel_touches_low(env, hit, at, write, point)
    }

    /// Maps what the environment says is at `at`, and starts the instruction again.
    fn map_and_retry(
        &mut self,
        env: &mut dyn Environment,
        slot: Slot,
        at: GuestVirt,
        write: bool,
        point: Place,
    ) -> Result<Resume, Exit> {
        let mapping = self.ask(env, at, write, self.assumptions.user)?;
        self.show_and_retry(env, slot, &mapping, point)
    }

    fn show_and_retry(
        &mut self,
        env: &mut dyn Environment,
        slot: Slot,
        mapping: &Mapping,
        point: Place,
    ) -> Result<Resume, Exit> {
        self.statistics.mappings += 1;
        self.forget_changed_code(slot, mapping);
        if !self.spaces.map(slot, mapping, &mut self.statistics.windows_dropped) {
            return self.reroute(env, Route::Bounced);
        }
        // The code at `point` may rely on what the unit did before, so it isn't always an entry;
        // but that was done, and holds.
        Ok(if point.inlined { Resume::Eip } else { Resume::At(point.host, point.moved) })
    }

    fn ask(
        &mut self,
        env: &mut dyn Environment,
        at: GuestVirt,
        write: bool,
        user: bool,
    ) -> Result<Mapping, Exit> {
        let access = if write { Access::Write } else { Access::Read };
        env.translate(at, access, user).map_err(|fault| Exit::Exception(fault.into()))
    }

    /// Kernel code has touched an address below the kernel's part: the user's memory, as a rule. Then
    /// it is reached through the user's window, where what the kernel may do beyond the user's
    /// rights isn't shown.
    fn kernel_touches_low(
        &mut self,
        env: &mut dyn Environment,
        hit: Slot,
        at: GuestVirt,
        write: bool,
        point: Place,
    ) -> Result<Resume, Exit> {
        let mapping = self.ask(env, at, write, false)?;
        let as_user = if mapping.user { self.ask(env, at, write, true).ok() } else { None };
        let Some(mapping) = as_user else { return self.reroute(env, Route::Bounced) };
        let current = self.spaces.current();
        let resume = self.show_and_retry(env, current, &mapping, point)?;
        if hit == current {
            return Ok(resume);
        }
        let frame = self.fetch(env, self.linear_eip())?;
        if self.learn(frame, Route::Picked, false) {
            return Ok(Resume::Eip);
        }
        // Its operand is picked already. What else was out of reach is the stack, which never is.
        self.reroute(env, Route::Bounced)
    }

    /// A store into a frame that holds translated code. Usually the code is dropped, and the store
    /// repeated. It goes through Rust from now on where that would happen all the time, and where
    /// the store itself lies in that frame: translating it again would protect the frame again.
    fn store_into_code(&mut self, env: &mut dyn Environment, frame: u32) -> Result<Resume, Exit> {
        let instruction = self.instruction(env)?;
        let linear = self.linear_eip();
        let own = self.fetch(env, linear)?;
        let last = self.fetch(env, linear.wrapping_add(instruction.len() as u32 - 1))?;
        let now = Instant::now();
        self.routes.note_write(frame, now);
        let often = self.routes.is_written_often(frame, now);
        if own == frame || last == frame || often && !instruction.is_string_instruction() {
            self.learn(own, Route::Bounced, true);
        } else {
            self.drop_frame(frame);
        }
        Ok(Resume::Eip)
    }

    /// #GP or #SS in the host: a segment that isn't flat, whose window is poisoned, or the guest's own
    /// fault, such as an operand that isn't aligned.
    fn protection_fault(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        let instruction = self.instruction(env)?;
        let explicit = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        let segment = if explicit { register(instruction.memory_segment()) } else { None };
        let poisoned = match segment {
            Some(segment) => !self.cpu.segment(segment).is_unlimited(),
            None => !self.assumptions.flat,
        };
        if poisoned {
            return self.reroute(env, Route::Bounced);
        }
        if explicit {
            let len = instruction.memory_size().size() as u32;
            linear_address(&self.cpu, &instruction, len, false).map_err(Exit::Exception)?;
        }
        Err(Exit::Exception(Exception::protection(0)))
    }

    /// From now on the instruction at eip is reached by `route`.
    fn reroute(&mut self, env: &mut dyn Environment, route: Route) -> Result<Resume, Exit> {
        let frame = self.fetch(env, self.linear_eip())?;
        if self.learn(frame, route, false) {
            return Ok(Resume::Eip);
        }
        // It is reached that way already, and still faults: an access that Rust can't help with.
        self.lost(env)
    }

    /// Teaches the instruction at eip, in `frame`, its route. Says whether that is news.
    fn learn(&mut self, frame: u32, route: Route, from_code: bool) -> bool {
        let news = self.routes.learn(frame, self.cpu.eip(), route, from_code);
        self.drop_page(self.linear_eip() / PAGE_SIZE, frame);
        news
    }

    /// Nothing that translated code does should lead here: the guest ends, with the
    /// instruction named.
    fn lost(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        Err(Exit::Unsupported(self.instruction(env)?))
    }

    /// A mapping may show other frames than code was fetched from: what was known of those pages is
    /// forgotten.
    pub(super) fn forget_changed_code(&mut self, slot: Slot, mapping: &Mapping) {
        let Some(world) = self.spaces.world_mut(slot) else { return };
        let (first, frame) = (mapping.virt.page_number(), mapping.phys.page_number());
        for page in world.fetches.known_among(first, mapping.pages) {
            if world.fetches.frame(page) != Some(frame + (page - first)) {
                world.forget_fetch(page);
            }
        }
    }
}

/// The segment register of that name.
fn register(register: Register) -> Option<SegmentRegister> {
    Some(match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}
