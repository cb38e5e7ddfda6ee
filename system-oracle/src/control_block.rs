//! The control block of a virtual machine (AMD's manual, volume 2, appendix "Layout of VMCB"), as far as it is needed to
//! have an interrupt delivered in a given state.

use crate::state::{Segment, State, gpr, sreg};

const PAGE: usize = 0x1000;
/// An event that is valid, and an external interrupt (type 0).
const EVENT_VALID: u32 = 1 << 31;

mod at {
    pub(super) const EVENT: usize = 0xa8;
    pub(super) const ES: usize = 0x400;
    pub(super) const CS: usize = 0x410;
    pub(super) const SS: usize = 0x420;
    pub(super) const DS: usize = 0x430;
    pub(super) const GDTR: usize = 0x460;
    pub(super) const IDTR: usize = 0x480;
    pub(super) const CPL: usize = 0x4cb;
    pub(super) const CR4: usize = 0x548;
    pub(super) const CR3: usize = 0x550;
    pub(super) const CR0: usize = 0x558;
    pub(super) const DR7: usize = 0x560;
    pub(super) const DR6: usize = 0x568;
    pub(super) const EFLAGS: usize = 0x570;
    pub(super) const EIP: usize = 0x578;
    pub(super) const ESP: usize = 0x5d8;
    pub(super) const EAX: usize = 0x5f8;
    pub(super) const CR2: usize = 0x640;
}

/// The block that enters `state`, and delivers interrupt `vector` first.
pub(crate) fn with_interrupt(state: &State, vector: u8) -> Vec<u8> {
    let mut block = vec![0; PAGE];
    let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(at::EVENT, EVENT_VALID | u32::from(vector));
    for (at, number) in
        [(at::ES, sreg::ES), (at::CS, sreg::CS), (at::SS, sreg::SS), (at::DS, sreg::DS)]
    {
        let Segment { selector, base, limit, attributes } = state.segments[number];
        let packed = u32::from(attributes & 0xff | attributes >> 4 & 0xf00);
        put(at, u32::from(selector) | packed << 16);
        put(at + 4, limit);
        put(at + 8, base);
    }
    for (at, table) in [(at::GDTR, state.gdtr), (at::IDTR, state.idtr)] {
        put(at + 4, table.limit.into());
        put(at + 8, table.base);
    }
    for (at, value) in [
        (at::CR0, state.cr0),
        (at::CR2, state.cr2),
        (at::CR3, state.cr3),
        (at::CR4, state.cr4),
        (at::DR6, state.dr[4]),
        (at::DR7, state.dr[5]),
        (at::EFLAGS, state.eflags),
        (at::EIP, state.eip),
        (at::ESP, state.gpr[gpr::ESP]),
        (at::EAX, state.gpr[gpr::EAX]),
    ] {
        put(at, value);
    }
    block[at::CPL] = state.cpl();
    block
}
