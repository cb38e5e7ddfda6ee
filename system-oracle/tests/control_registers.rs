//! Control registers: SDM volume 3, section "Control Registers", and volume 2, "MOV—Move to/from Control Registers", "LMSW",
//! "SMSW", "CLTS"; and what else only a kernel may do.

use lguest_system_oracle::OurMachine;
use lguest_system_oracle::manual::{Case, Then, check, nothing};
use lguest_system_oracle::state::gpr;
use lguest_system_oracle::world::{DATA, DIRECTORY};

const MOV_CR0_EDX: &[u8] = &[0x0f, 0x22, 0xc2];
const MOV_CR3_EDX: &[u8] = &[0x0f, 0x22, 0xda];
const MOV_CR4_EDX: &[u8] = &[0x0f, 0x22, 0xe2];
const LMSW_DX: &[u8] = &[0x0f, 0x01, 0xf2];
const REFUSED: Then = Then::Raises(13, Some(0));

const VALUES: &[Case] = &[
    Case {
        says: "MOV: what cr0 has",
        level: 0,
        code: &[0x0f, 0x20, 0xc2],
        given: |s| s.cr0 |= 0x0005_002a,
        then: Then::Next(|s| s.gpr[gpr::EDX] = 0x8005_003b),
    },
    Case {
        says: "MOV: cr0",
        level: 0,
        code: MOV_CR0_EDX,
        given: |s| s.gpr[gpr::EDX] = 0x8005_002b,
        then: Then::Next(|s| s.cr0 = 0x8005_003b),
    },
    Case {
        says: "2.5: ET is always 1",
        level: 0,
        code: MOV_CR0_EDX,
        given: |s| s.gpr[gpr::EDX] = 0x8000_0001,
        then: Then::Next(nothing),
    },
    Case {
        says: "MOV: no paging without protection",
        level: 0,
        code: MOV_CR0_EDX,
        given: |s| s.gpr[gpr::EDX] = 0x8000_0010,
        then: REFUSED,
    },
    Case {
        says: "MOV: no NW without CD",
        level: 0,
        code: MOV_CR0_EDX,
        given: |s| s.gpr[gpr::EDX] = 0xa000_0011,
        then: REFUSED,
    },
    Case {
        says: "MOV: both of them",
        level: 0,
        code: MOV_CR0_EDX,
        given: |s| s.gpr[gpr::EDX] = 0xe000_0011,
        then: Then::Next(|s| s.cr0 = 0xe000_0011),
    },
    Case {
        says: "MOV: cr2, which is only a number",
        level: 0,
        code: &[0x0f, 0x22, 0xd2],
        given: |s| s.gpr[gpr::EDX] = 0x1234_5678,
        then: Then::Next(|s| s.cr2 = 0x1234_5678),
    },
    Case {
        says: "2.5: cr3 with PWT and PCD",
        level: 0,
        code: MOV_CR3_EDX,
        given: |s| s.gpr[gpr::EDX] = DIRECTORY | 0x18,
        then: Then::Next(|s| s.cr3 = DIRECTORY | 0x18),
    },
    Case {
        says: "2.5: cr4",
        level: 0,
        code: MOV_CR4_EDX,
        given: |s| s.gpr[gpr::EDX] = 0x0000_0798,
        then: Then::Next(|s| s.cr4 = 0x0000_0798),
    },
    Case {
        says: "MOV: not a bit of cr4 that there isn't",
        level: 0,
        code: MOV_CR4_EDX,
        given: |s| s.gpr[gpr::EDX] = 0x8000_0000,
        then: REFUSED,
    },
    Case {
        says: "MOV: there is no cr1",
        level: 0,
        code: &[0x0f, 0x22, 0xca],
        given: nothing,
        then: Then::Raises(6, None),
    },
    Case {
        says: "MOV: there is no cr7",
        level: 0,
        code: &[0x0f, 0x20, 0xfa],
        given: nothing,
        then: Then::Raises(6, None),
    },
    Case {
        says: "MOV: the mod field doesn't matter",
        level: 0,
        code: &[0x0f, 0x20, 0x1a],
        given: nothing,
        then: Then::Next(|s| s.gpr[gpr::EDX] = DIRECTORY),
    },
    Case {
        says: "LMSW: four bits",
        level: 0,
        code: LMSW_DX,
        given: |s| s.gpr[gpr::EDX] = 0xffff_fffe,
        then: Then::Next(|s| s.cr0 |= 0xe),
    },
    Case {
        says: "LMSW: PE stays, the others can be cleared",
        level: 0,
        code: LMSW_DX,
        given: |s| s.cr0 |= 0xe,
        then: Then::Next(|s| s.cr0 &= !0xe),
    },
    Case {
        says: "SMSW: at any level; the lower half of cr0",
        level: 3,
        code: &[0x66, 0x0f, 0x01, 0xe2],
        given: |s| (s.cr0, s.gpr[gpr::EDX]) = (s.cr0 | 0x0005_0020, u32::MAX),
        then: Then::Next(|s| s.gpr[gpr::EDX] = 0xffff_0031),
    },
    Case {
        says: "SMSW: memory gets 16 bits",
        level: 3,
        code: &[0x0f, 0x01, 0x25, 0, 0x80, 2, 0],
        given: |s| s.store_dword(DATA, u32::MAX),
        then: Then::Next(|s| s.store_dword(DATA, 0xffff_0011)),
    },
    Case {
        says: "CLTS",
        level: 0,
        code: &[0x0f, 0x06],
        given: |s| s.cr0 |= 8,
        then: Then::Next(|s| s.cr0 &= !8),
    },
];

#[test]
fn values() {
    check(&mut OurMachine::new(), VALUES);
}

const LEVELS: &[Case] = &[
    Case {
        says: "MOV to cr0: only at level 0",
        level: 1,
        code: MOV_CR0_EDX,
        given: nothing,
        then: REFUSED,
    },
    Case {
        says: "MOV from cr3: only at level 0",
        level: 3,
        code: &[0x0f, 0x20, 0xda],
        given: nothing,
        then: REFUSED,
    },
    Case { says: "LMSW: only at level 0", level: 2, code: LMSW_DX, given: nothing, then: REFUSED },
    Case {
        says: "CLTS: only at level 0",
        level: 3,
        code: &[0x0f, 0x06],
        given: nothing,
        then: REFUSED,
    },
    Case { says: "HLT: only at level 0", level: 1, code: &[0xf4], given: nothing, then: REFUSED },
    Case {
        says: "HLT: eip is behind it",
        level: 0,
        code: &[0xf4],
        given: nothing,
        then: Then::Next(nothing),
    },
    Case {
        says: "INVLPG: only at level 0",
        level: 1,
        code: &[0x0f, 0x01, 0x38],
        given: nothing,
        then: REFUSED,
    },
    Case {
        says: "INVLPG: its operand is memory",
        level: 0,
        code: &[0x0f, 0x01, 0xff],
        given: nothing,
        then: Then::Raises(6, None),
    },
    Case {
        says: "INVLPG: its operand isn't accessed",
        level: 0,
        code: &[0x0f, 0x01, 0x3d, 0, 0, 0x80, 0],
        given: nothing,
        then: Then::Next(nothing),
    },
    Case {
        says: "WBINVD: only at level 0",
        level: 3,
        code: &[0x0f, 0x09],
        given: nothing,
        then: REFUSED,
    },
    Case {
        says: "WBINVD",
        level: 0,
        code: &[0x0f, 0x09],
        given: nothing,
        then: Then::Next(nothing),
    },
    Case {
        says: "INVD: only at level 0",
        level: 3,
        code: &[0x0f, 0x08],
        given: nothing,
        then: REFUSED,
    },
    Case {
        says: "RDMSR: only at level 0",
        level: 3,
        code: &[0x0f, 0x32],
        given: |s| s.gpr[gpr::ECX] = 0x174,
        then: REFUSED,
    },
    Case {
        says: "WRMSR: only at level 0",
        level: 1,
        code: &[0x0f, 0x30],
        given: |s| s.gpr[gpr::ECX] = 0x174,
        then: REFUSED,
    },
    Case {
        says: "WRMSR: no such register",
        level: 0,
        code: &[0x0f, 0x30],
        given: |s| s.gpr[gpr::ECX] = 0x1234_5678,
        then: REFUSED,
    },
];

#[test]
fn levels() {
    check(&mut OurMachine::new(), LEVELS);
}

const FPU: &[Case] = &[
    Case {
        says: "2.5: TS",
        level: 3,
        code: &[0xd9, 0xd0],
        given: |s| s.cr0 |= 8,
        then: Then::Raises(7, None),
    },
    Case {
        says: "2.5: EM",
        level: 3,
        code: &[0xd9, 0xd0],
        given: |s| s.cr0 |= 4,
        then: Then::Raises(7, None),
    },
    Case {
        says: "2.5: wait with TS alone",
        level: 3,
        code: &[0x9b],
        given: |s| s.cr0 |= 8,
        then: Then::Next(nothing),
    },
    Case {
        says: "2.5: wait with TS and MP",
        level: 3,
        code: &[0x9b],
        given: |s| s.cr0 |= 10,
        then: Then::Raises(7, None),
    },
    Case {
        says: "2.5: SSE with TS",
        level: 3,
        code: &[0x0f, 0x28, 0xc1],
        given: |s| (s.cr0, s.cr4) = (s.cr0 | 8, 0x200),
        then: Then::Raises(7, None),
    },
    Case {
        says: "2.5: SSE with EM",
        level: 3,
        code: &[0x0f, 0x28, 0xc1],
        given: |s| (s.cr0, s.cr4) = (s.cr0 | 4, 0x200),
        then: Then::Raises(6, None),
    },
    Case {
        says: "2.5: EM doesn't concern wait",
        level: 3,
        code: &[0x9b],
        given: |s| s.cr0 |= 6,
        then: Then::Next(nothing),
    },
    Case {
        says: "2.5: MMX with EM",
        level: 3,
        code: &[0x0f, 0x77],
        given: |s| s.cr0 |= 4,
        then: Then::Raises(6, None),
    },
];

#[test]
fn fpu_and_sse() {
    check(&mut OurMachine::new(), FPU);
}
