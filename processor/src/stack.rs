//! Where on a stack something is, and whether the stack reaches so far.

use lguest_switcher::{Exception, GuestVirt, Segment};

/// The stack pointer after `bytes` were pushed: sp alone moves on a 16-bit stack.
#[must_use]
pub fn push(stack: &Segment, esp: u32, bytes: u32) -> u32 {
    moved(stack, esp, 0u32.wrapping_sub(bytes))
}

/// The stack pointer moved by `distance`: sp alone on a 16-bit stack.
#[must_use]
pub fn moved(stack: &Segment, esp: u32, distance: u32) -> u32 {
    let sum = esp.wrapping_add(distance);
    if stack.is_32bit() { sum } else { esp & 0xffff_0000 | sum & 0xffff }
}

/// Where `bytes` (at least 1) at the stack pointer are.
///
/// # Errors
/// #SS(0) when the segment's limit doesn't allow them.
pub fn on_stack(stack: &Segment, esp: u32, bytes: u32) -> Result<GuestVirt, Exception> {
    // Of a 16-bit stack's pointer the upper half means nothing.
    let offset = if stack.is_32bit() { esp } else { esp & 0xffff };
    if allows(stack, offset, bytes) {
        Ok(GuestVirt(stack.base.wrapping_add(offset)))
    } else {
        Err(Exception::stack(0))
    }
}

/// The segment's limit allows `bytes` (at least 1) at `offset`.
fn allows(segment: &Segment, offset: u32, bytes: u32) -> bool {
    let Some(last) = offset.checked_add(bytes - 1) else { return false };
    if segment.is_expand_down() {
        let top = if segment.is_32bit() { u32::MAX } else { 0xffff };
        offset > segment.limit && last <= top
    } else {
        last <= segment.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(segment: &Segment, offset: u32, bytes: u32) -> bool {
        on_stack(segment, offset, bytes).is_ok()
    }

    #[test]
    fn limits_of_stacks() {
        let flat = Segment::flat_data(0x69);
        assert!(fits(&flat, 0, 24));
        assert!(!fits(&flat, u32::MAX - 3, 24));
        let small = Segment { limit: 0xfff, ..flat };
        assert!(fits(&small, 0xfe8, 24));
        assert!(!fits(&small, 0xfec, 24));
        let down = Segment { limit: 0xfff, attributes: flat.attributes | 4, ..flat };
        assert!(!fits(&down, 0xfff, 24));
        assert!(fits(&down, 0x1000, 24));
        let narrow = Segment { attributes: down.attributes & !0x4000, ..down };
        assert!(fits(&narrow, 0xffe8, 24));
        assert!(!fits(&narrow, 0xffec, 24));
    }

    #[test]
    fn a_16_bit_stack_wraps() {
        let flat = Segment::flat_data(0x69);
        assert_eq!(push(&flat, 4, 12), 0xffff_fff8);
        let narrow = Segment { attributes: flat.attributes & !0x4000, ..flat };
        assert_eq!(push(&narrow, 0x1234_0004, 12), 0x1234_fff8);
    }
}
