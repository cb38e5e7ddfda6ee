//! Who may use which port: SDM volume 1, chapter "Input/Output", section "Protected-Mode I/O".

use lguest_system_oracle::OurMachine;
use lguest_system_oracle::manual::{Case, Then, check, nothing};
use lguest_system_oracle::state::{State, gpr};
use lguest_system_oracle::world::{DATA, TSS, TSS_BITMAP};

/// `out 0x43, al`, `out 0x43, ax` and `out 0x43, eax`.
const OUT_1: &[u8] = &[0xe6, 0x43];
const OUT_2: &[u8] = &[0x66, 0xe7, 0x43];
const OUT_4: &[u8] = &[0xe7, 0x43];
/// `out dx, al`.
const OUT_DX: &[u8] = &[0xee];
const REFUSED: Then = Then::Raises(13, Some(0));
const ALLOWED: Then = Then::Next(nothing);

/// The bit map leaves these ports open.
fn open(state: &mut State, ports: std::ops::Range<u32>) {
    for port in ports {
        let at = (TSS + u32::from(TSS_BITMAP) + port / 8) as usize;
        state.memory[at] &= !(1 << (port % 8));
    }
}

const BY_LEVEL: &[Case] = &[
    Case { says: "level 0 may", level: 0, code: OUT_4, given: nothing, then: ALLOWED },
    Case {
        says: "a level that IOPL names may",
        level: 2,
        code: OUT_4,
        given: |s| s.eflags |= 0x2000,
        then: ALLOWED,
    },
    Case {
        says: "another may not, by itself",
        level: 3,
        code: OUT_1,
        given: |s| s.eflags |= 0x2000,
        then: REFUSED,
    },
    Case { says: "in as well", level: 3, code: &[0xe4, 0x43], given: nothing, then: REFUSED },
    Case {
        says: "outs as well",
        level: 3,
        code: &[0x6e],
        given: |s| s.gpr[gpr::ESI] = DATA,
        then: REFUSED,
    },
    Case {
        says: "ins as well",
        level: 1,
        code: &[0x6c],
        given: |s| s.gpr[gpr::EDI] = DATA,
        then: REFUSED,
    },
];

#[test]
fn by_level() {
    check(&mut OurMachine::new(), BY_LEVEL);
}

const BY_MAP: &[Case] = &[
    Case {
        says: "a port whose bit is clear",
        level: 3,
        code: OUT_1,
        given: |s| open(s, 0x43..0x44),
        then: ALLOWED,
    },
    Case {
        says: "not its neighbours",
        level: 3,
        code: OUT_1,
        given: |s| {
            open(s, 0x40..0x43);
            open(s, 0x44..0x48);
        },
        then: REFUSED,
    },
    Case {
        says: "two ports, both clear",
        level: 3,
        code: OUT_2,
        given: |s| open(s, 0x43..0x45),
        then: ALLOWED,
    },
    Case {
        says: "two ports, one clear",
        level: 3,
        code: OUT_2,
        given: |s| open(s, 0x43..0x44),
        then: REFUSED,
    },
    Case {
        says: "four ports",
        level: 3,
        code: OUT_4,
        given: |s| open(s, 0x43..0x47),
        then: ALLOWED,
    },
    Case {
        says: "four ports but the last",
        level: 3,
        code: OUT_4,
        given: |s| open(s, 0x43..0x46),
        then: REFUSED,
    },
    Case {
        says: "four ports whose bits are in two bytes",
        level: 3,
        code: &[0xef],
        given: |s| {
            s.gpr[gpr::EDX] = 0x66;
            open(s, 0x66..0x6a);
        },
        then: ALLOWED,
    },
    Case {
        says: "and the same, but one in the second",
        level: 3,
        code: &[0xef],
        given: |s| {
            s.gpr[gpr::EDX] = 0x66;
            open(s, 0x66..0x69);
        },
        then: REFUSED,
    },
    Case {
        says: "the map's last port, whose second byte is the closing one",
        level: 3,
        code: OUT_DX,
        given: |s| {
            s.gpr[gpr::EDX] = 0x3ff;
            open(s, 0x3ff..0x400);
        },
        then: ALLOWED,
    },
    Case {
        says: "a port beyond the TSS's limit",
        level: 3,
        code: OUT_DX,
        given: |s| {
            s.gpr[gpr::EDX] = 0x408;
            open(s, 0x400..0x418);
        },
        then: REFUSED,
    },
    Case {
        says: "two bytes are read, and both must be there",
        level: 3,
        code: OUT_1,
        given: |s| {
            open(s, 0..0x100);
            s.tr.limit = u32::from(TSS_BITMAP) + 0x43 / 8;
        },
        then: REFUSED,
    },
    Case {
        says: "a map that begins beyond the limit",
        level: 3,
        code: OUT_1,
        given: |s| {
            open(s, 0..0x100);
            s.store_dword(TSS + 0x64, 0x1000_0000);
        },
        then: REFUSED,
    },
];

#[test]
fn by_map() {
    check(&mut OurMachine::new(), BY_MAP);
}
