//! Gates for system calls, put up and taken down. How they are passed is `execute::gates`.

use super::Vcpu;
use crate::call_gate::CallGate;
use crate::cpu::SegmentRegister;
use crate::execute::gs_base;
use crate::frame::{GATE_FRAME, GateSlots};

impl Vcpu {
    /// From now on system calls pass by `gate`, or by none. What isn't as usual still comes out of [`run`](Self::run): other
    /// segments, flags that trap, a stack that isn't mapped. A gate that can't be passed (its segments aren't flat, or of other
    /// levels, its addresses aren't memory, or this host's kernel forbids `wrgsbase`, as Linux before 5.9 does) counts as none.
    ///
    /// It holds until it is replaced: when a descriptor, the handler or the stack changes, the embedder says so here.
    pub fn set_call_gate(&mut self, gate: Option<CallGate>) {
        let gate = gate.filter(|gate| self.prepare_gate(gate).is_some());
        self.cpu.set_gate(gate);
    }

    /// Puts what `gate` says into the frame, if it can be passed.
    fn prepare_gate(&mut self, gate: &CallGate) -> Option<()> {
        let ends = [gate.kernel, gate.user];
        let flat = ends.iter().all(|end| {
            end.code.is_flat(SegmentRegister::Cs) && end.stack.is_flat(SegmentRegister::Ss)
        });
        let [kernel, user] = ends.map(|end| {
            let [code, stack] = [end.code, end.stack].map(|segment| segment.selector & 3);
            (code == stack).then_some(code)
        });
        let levels = kernel == Some(1) && user == Some(3);
        let into_code = gate.disables && self.spaces.windows.is_code(gate.interrupts.page_number());
        if !flat || !levels || into_code || !gs_base::has_instruction() {
            return None;
        }
        self.cpu.frame.gates = GateSlots {
            vector: gate.vector.into(),
            handler: gate.handler,
            esp: gate.esp.checked_sub(GATE_FRAME)?,
            disables: gate.disables.into(),
            interrupts: self.memory.host_address(gate.interrupts, 4)?,
            quiet: self.memory.host_address(gate.quiet, 1)?,
            code: ends.map(|end| end.code.selector.into()),
            stack: ends.map(|end| end.stack.selector.into()),
            ..self.cpu.frame.gates
        };
        Some(())
    }

    /// `frame` is about to hold translated code: a gate that writes to it would do so unnoticed.
    pub(super) fn keep_gates_out_of(&mut self, frame: u32) {
        let writes = |gate: &CallGate| gate.disables && gate.interrupts.page_number() == frame;
        if self.cpu.gate().is_some_and(|gate| writes(&gate)) {
            self.set_call_gate(None);
        }
    }

    /// Catches up with translated code that has passed gates, or exchanged segments.
    pub(super) fn follow(&mut self) {
        self.cpu.follow_exchanges();
        if self.cpu.follow_gates() {
            self.enter_world();
        }
    }
}
