//! Paging with 32 bits: SDM volume 3, chapter "Paging"; named are its sections.

use lguest_system_oracle::manual::{Case, Then, check};
use lguest_system_oracle::state::{PAGE, State, gpr, sreg};
use lguest_system_oracle::world::{self, BIG, DATA, DIRECTORY, HIGH, IDENTITY, OPEN, data};
use lguest_system_oracle::{Machine, OurMachine, Outcome};

const PRESENT: u32 = 1;
const WRITABLE: u32 = 2;
const USER: u32 = 4;
const ACCESSED: u32 = 0x20;
const DIRTY: u32 = 0x40;
const WP: u32 = 1 << 16;
const PSE: u32 = 1 << 4;
/// `mov eax, [DATA]` and `mov [DATA], eax`.
const READ: &[u8] = &[0xa1, 0, 0x80, 2, 0];
const WRITE: &[u8] = &[0xa3, 0, 0x80, 2, 0];
/// The same of the page of 4 MiB.
const READ_BIG: &[u8] = &[0xa1, 0, 0x80, 0x42, 0];
const WRITE_BIG: &[u8] = &[0xa3, 0, 0x80, 0x42, 0];
const BIG_ENTRY: u32 = DIRECTORY + (BIG >> 20);
/// Where the page of data has its entry.
const ENTRY: u32 = IDENTITY + DATA / PAGE * 4;
const VALUE: u32 = 0x1234_5678;

/// The page of data has these flags.
fn flags(state: &mut State, flags: u32) {
    state.store_dword(ENTRY, DATA | flags);
    state.store_dword(DATA, VALUE);
}

/// The page of 4 MiB has these flags.
fn big(state: &mut State, flags: u32) {
    state.store_dword(BIG_ENTRY, 0x80 | flags);
    state.store_dword(DATA, VALUE);
    state.cr4 |= PSE;
}

/// The table that has the page of data has these flags.
fn table_flags(state: &mut State, flags: u32) {
    state.store_dword(DIRECTORY, IDENTITY | flags);
    state.store_dword(DATA, VALUE);
}

fn read(state: &mut State) {
    state.gpr[gpr::EAX] = VALUE;
}

const RIGHTS: &[Case] = &[
    Case {
        says: "4.7: a page that isn't there, read by a kernel",
        level: 0,
        code: READ,
        given: |s| flags(s, OPEN & !PRESENT),
        then: Then::PageFault(0, DATA),
    },
    Case {
        says: "4.7: written by a kernel",
        level: 2,
        code: WRITE,
        given: |s| flags(s, OPEN & !PRESENT),
        then: Then::PageFault(2, DATA),
    },
    Case {
        says: "4.7: read by a user",
        level: 3,
        code: READ,
        given: |s| flags(s, OPEN & !PRESENT),
        then: Then::PageFault(4, DATA),
    },
    Case {
        says: "4.7: written by a user",
        level: 3,
        code: WRITE,
        given: |s| flags(s, OPEN & !PRESENT),
        then: Then::PageFault(6, DATA),
    },
    Case {
        says: "4.6: a kernel's page, read by a user",
        level: 3,
        code: READ,
        given: |s| flags(s, OPEN & !USER),
        then: Then::PageFault(5, DATA),
    },
    Case {
        says: "4.6: levels 1 and 2 are kernels too",
        level: 2,
        code: READ,
        given: |s| flags(s, OPEN & !USER),
        then: Then::Next(read),
    },
    Case {
        says: "4.6: a page that can't be written, written by a user",
        level: 3,
        code: WRITE,
        given: |s| flags(s, OPEN & !WRITABLE),
        then: Then::PageFault(7, DATA),
    },
    Case {
        says: "4.6: but a kernel may, without CR0.WP",
        level: 0,
        code: WRITE,
        given: |s| flags(s, OPEN & !WRITABLE),
        then: Then::Next(|s| s.store_dword(DATA, 0)),
    },
    Case {
        says: "4.6: and may not with it",
        level: 0,
        code: WRITE,
        given: |s| {
            flags(s, OPEN & !WRITABLE);
            s.cr0 |= WP;
        },
        then: Then::PageFault(3, DATA),
    },
    Case {
        says: "4.6: the table's entry restricts as the page's does",
        level: 3,
        code: READ,
        given: |s| {
            // The code is mapped elsewhere, since the table that has it is for kernels.
            table_flags(s, OPEN & !USER);
            s.eip += HIGH;
        },
        then: Then::PageFault(5, DATA),
    },
    Case {
        says: "4.6: and for writing, too",
        level: 0,
        code: WRITE,
        given: |s| {
            table_flags(s, OPEN & !WRITABLE);
            s.cr0 |= WP;
        },
        then: Then::PageFault(3, DATA),
    },
    Case {
        says: "4.7: a table that isn't there",
        level: 3,
        code: &[0xa1, 0, 0, 0x80, 0],
        given: |_| {},
        then: Then::PageFault(4, 0x0080_0000),
    },
    Case {
        says: "4.6: descriptor tables are read as by a kernel",
        level: 3,
        code: &[0x8e, 0xd8],
        given: |s| {
            s.gpr[gpr::EAX] = data(3).into();
            s.store_dword(
                IDENTITY + 4 * (world::GDT / PAGE),
                world::GDT | OPEN & !USER & !WRITABLE,
            );
            s.cr0 |= WP;
        },
        then: Then::Next(|s| s.segments[sreg::DS] = world::loaded(s, data(3))),
    },
    Case {
        says: "4.7: what lies in two pages faults at the first byte that can't be touched, and before anything is changed",
        level: 3,
        code: &[0xa3, 0xfe, 0x7f, 2, 0],
        given: |s| flags(s, OPEN & !WRITABLE),
        then: Then::PageFault(7, DATA),
    },
];

#[test]
fn rights() {
    check(&mut OurMachine::new(), RIGHTS);
}

const MARKS: &[Case] = &[
    Case {
        says: "4.8: a read marks page and table as accessed",
        level: 3,
        code: READ,
        given: |s| {
            flags(s, OPEN & !ACCESSED & !DIRTY);
        },
        then: Then::Next(|s| {
            read(s);
            s.store_dword(ENTRY, DATA | OPEN & !DIRTY);
        }),
    },
    Case {
        says: "4.8: a write marks the page as dirty",
        level: 3,
        code: WRITE,
        given: |s| flags(s, OPEN & !ACCESSED & !DIRTY),
        then: Then::Next(|s| {
            s.store_dword(DATA, 0);
            s.store_dword(ENTRY, DATA | OPEN);
        }),
    },
    Case {
        says: "4.8: the table that leads to it is accessed, never dirty",
        level: 0,
        code: &[0xa3, 0, 0x80, 2, 0xc0],
        given: |s| {
            s.store_dword(DIRECTORY + (HIGH >> 20), world::HIGH_TABLE | OPEN & !ACCESSED & !DIRTY)
        },
        then: Then::Next(|s| {
            s.store_dword(DATA, 0);
            s.store_dword(DIRECTORY + (HIGH >> 20), world::HIGH_TABLE | OPEN & !DIRTY);
        }),
    },
    Case {
        says: "4.8: the bits of a big page are in the directory",
        level: 3,
        code: WRITE_BIG,
        given: |s| big(s, OPEN & !ACCESSED & !DIRTY),
        then: Then::Next(|s| {
            s.store_dword(DATA, 0);
            s.store_dword(BIG_ENTRY, 0x80 | OPEN);
        }),
    },
];

#[test]
fn marks() {
    check(&mut OurMachine::new(), MARKS);
}

const BIG_PAGES: &[Case] = &[
    Case {
        says: "4.3: a page of 4 MiB",
        level: 3,
        code: READ_BIG,
        given: |s| big(s, OPEN),
        then: Then::Next(read),
    },
    Case {
        says: "4.3: without CR4.PSE the same entry is a table's",
        level: 3,
        code: READ_BIG,
        given: |s| {
            big(s, OPEN);
            s.cr4 &= !PSE;
        },
        then: Then::PageFault(4, BIG + DATA),
    },
    Case {
        says: "4.6: its rights",
        level: 3,
        code: WRITE_BIG,
        given: |s| big(s, OPEN & !WRITABLE),
        then: Then::PageFault(7, BIG + DATA),
    },
    Case {
        says: "4.7: a reserved bit",
        level: 0,
        code: READ_BIG,
        given: |s| big(s, OPEN | 1 << 21),
        then: Then::PageFault(9, BIG + DATA),
    },
];

#[test]
fn big_pages() {
    check(&mut OurMachine::new(), BIG_PAGES);
}

const CR2: &[Case] = &[
    Case {
        says: "Page-Fault Exception: a fetch at level 3 of a kernel's page",
        level: 3,
        code: &[0x90],
        given: |s| {
            s.eip = DATA;
            flags(s, OPEN & !USER);
        },
        then: Then::PageFault(5, DATA),
    },
    Case {
        says: "Page-Fault Exception: cr2 has the linear address, not the offset",
        level: 0,
        code: READ,
        given: |s| {
            s.segments[sreg::DS].base = 0x1000_0000;
            s.segments[sreg::DS].limit = 0x0fff_ffff;
        },
        then: Then::PageFault(0, DATA + 0x1000_0000),
    },
];

#[test]
fn cr2() {
    check(&mut OurMachine::new(), CR2);
}

/// Runs an instruction after another.
fn run(machine: &mut OurMachine, state: &State, steps: usize) -> State {
    machine.load(state);
    for _ in 0..steps {
        assert_eq!(machine.step(), Outcome::Done);
    }
    machine.save()
}

/// "4.10.4 Invalidation of TLBs and Paging-Structure Caches": after a table was changed, `invlpg` and a load of cr3 make the
/// change seen; a load of cr3 leaves out global pages.
#[test]
fn changes_are_seen() {
    const ELSEWHERE: u32 = DATA + 3 * PAGE;
    // mov dword [ENTRY], the new entry
    let (entry, value) = (ENTRY.to_le_bytes(), (ELSEWHERE | OPEN).to_le_bytes());
    let change = [&[0xc7, 0x05], &entry[..], &value].concat();
    let invlpg = [0x0f, 0x01, 0x3d, 0, 0x80, 2, 0];
    let reload_cr3 = [0x0f, 0x22, 0xda];
    for forget in [&invlpg[..], &reload_cr3] {
        let mut state = world::at_level(0);
        state.gpr[gpr::EDX] = DIRECTORY;
        state.store_dword(DATA, VALUE);
        state.store_dword(ELSEWHERE, !VALUE);
        let code: Vec<u8> = [READ, &change, forget, READ].concat();
        state.store(world::CODE, &code);
        let seen = run(&mut OurMachine::new(), &state, 1).gpr[gpr::EAX];
        assert_eq!(seen, VALUE);
        assert_eq!(run(&mut OurMachine::new(), &state, 4).gpr[gpr::EAX], !VALUE, "{forget:x?}");
    }
}

/// "2.5 Control Registers": turning paging off and WP on counts at once.
#[test]
fn control_registers_count_at_once() {
    let mov_cr0_edx = [0x0f, 0x22, 0xc2];
    let mut state = world::at_level(0);
    state.store(world::CODE, &[&mov_cr0_edx[..], WRITE].concat());
    flags(&mut state, OPEN & !WRITABLE);
    state.gpr[gpr::EDX] = state.cr0;
    assert_eq!(run(&mut OurMachine::new(), &state, 2).dword(DATA), 0);

    state.gpr[gpr::EDX] = state.cr0 | WP;
    let mut machine = OurMachine::new();
    assert_eq!(run(&mut machine, &state, 1).dword(DATA), VALUE);
    assert_eq!(machine.step(), Outcome::fault(14, 3));

    state.gpr[gpr::EDX] = 0x11;
    flags(&mut state, 0);
    assert_eq!(run(&mut OurMachine::new(), &state, 2).dword(DATA), 0);
}
