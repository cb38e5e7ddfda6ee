//! Faults and preemption (being written).
pub(crate) fn interrupt_thread(_thread: i32) {}
