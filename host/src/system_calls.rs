//! System calls, without the Host.
//!
//! Linux's Host let a system call of user code go to the guest's kernel directly: its gate stood in the processor's own IDT.
//! Here, too, the Host is asked once for each kind, and then opens a gate in the Switcher
//! ([`Vcpu::set_call_gate`](lguest_switcher::Vcpu::set_call_gate)) that does what `delivery.rs` does. What that depends on is looked at
//! whenever the guest has been out; when something has changed, the gate is made anew, or shut.
//!
//! It stays shut while somebody traces, who wants to see each trap, and where descriptors, gates or the stack's address lie in
//! memory that the guest can write to. An interrupt that waits, or a queued hypercall, makes a passer-by come out.

use crate::interrupts_and_traps::TrapStack;
use crate::machine::Machine;
use crate::segments::Place;
use lguest_abi::lguest_data::HCALL_DONE;
use lguest_abi::segments::{KERNEL_CS, KERNEL_LEVEL};
use lguest_switcher::{CallGate, GateEnd, GuestPhys, Segment, SegmentRegister};

/// What the Switcher compares the next ring entry's status with.
const _: () = assert!(HCALL_DONE == 0xff);

/// A system call that went the long way, through the Host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SystemCall {
    vector: u8,
    /// Where it came from.
    user: GateEnd,
}

/// All that a gate depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grounds {
    call: SystemCall,
    gates: u32,
    segments: u32,
    stack: TrapStack,
    status: GuestPhys,
    traced: bool,
}

impl Machine {
    /// User code is about to call its kernel by `int vector`, which is allowed.
    pub(crate) fn note_system_call(&mut self, vector: u8) {
        let cpu = &self.vcpu.cpu;
        let [code, stack] = [SegmentRegister::Cs, SegmentRegister::Ss].map(|it| cpu.segment(it));
        self.system_call = Some(SystemCall { vector, user: GateEnd { code, stack } });
    }

    /// Before the guest goes on: the next system call passes by itself, if it is like the last.
    pub(crate) fn refresh_call_gate(&mut self) {
        let (Some(call), Some(shared)) = (self.system_call, &self.guest.shared) else { return };
        let grounds = Some(Grounds {
            call,
            gates: self.guest.gates.changes(),
            segments: self.guest.segments.changes(),
            stack: self.guest.stack,
            status: shared.next_status(),
            traced: self.guest.tracer.is_some(),
        });
        if grounds != self.grounds {
            self.grounds = grounds;
            let gate = self.call_gate(call);
            self.vcpu.set_call_gate(gate);
        }
    }

    /// The gate by which `call` goes, if it can be known beforehand.
    fn call_gate(&self, call: SystemCall) -> Option<CallGate> {
        let guest = &self.guest;
        let shared = guest.shared.as_ref()?;
        if guest.tracer.is_some() || guest.gates.is_in_memory() {
            return None;
        }
        let gate = guest.gates.get(call.vector)?;
        let user = GateEnd {
            code: self.known_segment(call.user.code.selector)?,
            stack: self.known_segment(call.user.stack.selector)?,
        };
        let kernel = GateEnd {
            code: self.known_segment(KERNEL_CS)?,
            stack: self.known_segment(guest.stack.segment & !3 | KERNEL_LEVEL)?,
        };
        let unchanged = user == call.user && gate.level == USER_LEVEL;
        let levels = is_of_level(&kernel, KERNEL_LEVEL) && is_of_level(&user, USER_LEVEL.into());
        (unchanged && levels).then(|| CallGate {
            vector: call.vector,
            handler: gate.handler,
            disables: gate.disables,
            esp: guest.stack.esp,
            kernel,
            user,
            interrupts: shared.interrupt_words(),
            quiet: shared.next_status(),
        })
    }

    /// The segment that `selector` names, if its descriptor isn't the guest's to change without a word.
    fn known_segment(&self, selector: u16) -> Option<Segment> {
        match self.guest.segments.find(selector, &self.guest.registers) {
            Place::Known(descriptor) if selector & !3 != 0 => {
                Some(Segment::from_descriptor(selector, descriptor))
            }
            _ => None,
        }
    }
}

/// User code's.
const USER_LEVEL: u8 = 3;

/// Both segments are present and usable at `level`, without being for others.
fn is_of_level(end: &GateEnd, level: u16) -> bool {
    let both = [end.code, end.stack];
    let fits = |segment: &Segment| {
        segment.is_usable()
            && u16::from(segment.dpl()) == level
            && segment.selector & 3 == level
            && !segment.is_conforming()
    };
    both.iter().all(fits) && end.code.is_code() && end.stack.is_writable()
}
