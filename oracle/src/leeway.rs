//! Where the manual gives a processor leeway, so that a difference isn't a mistake.

use crate::machine::Stop;
use crate::state::End;
use iced_x86::{Instruction, Mnemonic};

/// Whether how it ended and what memory holds is one of several things that the manual allows: both
/// faulted, in an instruction of many accesses, whose order is the processor's own business, as is
/// what it leaves half done below the stack pointer or in an area it was to fill; or there were
/// two reasons, an operand that isn't aligned and one that lies outside its segment.
pub(crate) fn is_open(single: &Instruction, processor: End, switcher: Stop) -> bool {
    use Mnemonic as M;
    let fault = |end: End| match end {
        End::Exception { vector, .. } if (10..=14).contains(&vector) => Some(vector),
        _ => None,
    };
    let Stop::End(switcher) = switcher else { return false };
    let (Some(theirs), Some(ours)) = (fault(processor), fault(switcher)) else { return false };
    let many = matches!(
        single.mnemonic(),
        M::Enter
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Pusha
            | M::Pushad
            | M::Popa
            | M::Popad
            | M::Retf
            | M::Les
            | M::Lds
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Fxsave
            | M::Fxrstor
            | M::Fnsave
            | M::Frstor
            | M::Fnstenv
            | M::Fldenv
    );
    // A far call has pushed cs when the second push faults. (A masked store is in the list because AMD's
    // processors look at eight bytes at a time, as if 16-bit addresses didn't wrap, and then store
    // each where it belongs.)
    let many = many || single.is_call_far() || single.is_call_far_indirect();
    let aligned = single.memory_size().size() == 16;
    many || aligned && (theirs, ours) == (13, 12)
}

/// Whether a difference counts though the way an instruction faults [is open](is_open): the
/// registers should still be what they were. AMD's processors have loaded some when `popa` faults,
/// and have made the x87 registers MMX's when `maskmovq` does; beginning again mends either.
pub(crate) fn must_be_same(instruction: &Instruction, difference: &str) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Popa | M::Popad | M::Maskmovq => {
            difference.starts_with("eip:") || difference.starts_with("esp:")
        }
        _ => !difference.starts_with("end:") && !difference.starts_with("byte at "),
    }
}
