//! Kinds of exceptions.

/// Whether exception `vector` is a fault: eip is at the instruction, which is executed once more when the handler
/// returns. So the handler finds RF set in the flags: a breakpoint on that instruction has been looked at (SDM
/// volume 3, sections "Exception Classifications" and "Instruction-Breakpoint Exception Condition"). #DB isn't among them: for
/// a breakpoint on an instruction the handler sets RF itself.
#[must_use]
pub const fn is_fault(vector: u8) -> bool {
    matches!(vector, 0 | 5..=7 | 10..=14 | 16 | 17 | 19)
}
