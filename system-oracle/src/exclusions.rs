//! Where unicorn doesn't do what the manual says, or the manual doesn't say, or our machine doesn't offer it.
//!
//! A *detail* is put right on unicorn's side, and everything else about the case is still compared; a case that is *excluded*
//! isn't. Both are counted, and printed at the end of a run. The list is as narrow as it can be: it is asked only about
//! cases in which the machines differ.
//!
//! What no case is about, since unicorn has nothing to be compared with, is said at
//! [`instructions`](crate::instructions). Section names are those of SDM volume 3, instructions those of volume 2.

use crate::contest::Result;
use crate::instructions::{Action, Case};
use crate::machine::{Origin, Outcome};
use crate::state::{PAGE, State, flag, sreg};
use crate::world::{GDT, GDT_ENTRIES, IDENTITY, IDT, LDT, LDT_ENTRIES};

const OSFXSR: u32 = 1 << 9;
const EM: u32 = 1 << 2;
const TS: u32 = 1 << 3;
/// The page has been used.
const ACCESSED: u8 = 0x20;
/// The page has been written to.
const DIRTY: u8 = 0x40;

/// Puts a detail right. `true` if there was something to be put right.
type Detail = fn(&Case, &Result, &mut Result) -> bool;
/// Whether a case is to be excluded.
type Exclusion = fn(&Case, &Result, &Result) -> bool;

const DETAILS: &[(&str, Detail)] = &[
    ("Error Code: unicorn never sets EXT", set_external),
    (
        "Segment Descriptors: unicorn doesn't mark all code and stacks that it enters as accessed",
        mark_accessed,
    ),
    ("Debug Registers: unicorn keeps reserved bits", clear_reserved_debug),
    ("Debug Status Register: a debug exception may clear bits 0 to 3", clear_conditions),
    ("LAR: bits 16 to 19 are undefined", hide_undefined_rights),
    ("RET, IRET: unicorn leaves fs and gs alone if they were null already", null_selectors),
    ("INT n: a 16-bit gate has an offset of 16 bits, in unicorn 32", cut_offset),
    (
        "Page-Fault Exception: which byte of a descriptor is marked as accessed isn't said",
        byte_of_descriptor,
    ),
    (
        "RET, IRET: a stack's descriptor is read before levels are compared, in unicorn afterwards",
        read_descriptors,
    ),
    (
        "IRET, RET, INT n: a stack that isn't present raises #SS, in unicorn #NP or #TS",
        absent_stack,
    ),
];

const EXCLUSIONS: &[(&str, Exclusion)] = &[
    (
        "Emulation of the MMX Instruction Set: with CR0.EM, MMX and SSE raise #UD; in unicorn #NM, if TS is set too",
        |case, ours, theirs| {
            let both = case.state.cr0 & (EM | TS) == EM | TS;
            case.name.starts_with("fpu")
                && both
                && raised(ours) == Some(6)
                && raised(theirs) == Some(7)
        },
    ),
    ("Control Registers: SSE is there without CR4.OSFXSR, too", |case, _, _| {
        case.code.starts_with(&[0x0f, 0x28]) && case.state.cr4 & OSFXSR == 0
    }),
    ("MOV: whether cr1 or the level is judged first isn't said", |case, ours, _| {
        case.name.ends_with(" cr") && case.state.cpl() != 0 && raised(ours) == Some(6)
    }),
    ("IRET: the return from a task isn't offered", |case, _, _| {
        case.name == "iret" && case.state.eflags & flag::NT != 0
    }),
    ("JMP, CALL: call gates, task gates and tasks aren't offered", |case, ours, _| {
        let far = matches!(case.name, "jmp far" | "call far");
        far && raised(ours) == Some(13)
            && error(ours).is_some_and(|error| names_system(&case.state, error))
    }),
    (
        "INT n: task gates aren't offered",
        |case, _, _| matches!(case.action, Action::Interrupt(vector, _) if gate_kind(&case.state, vector) == 5),
    ),
    (
        "LTR: the TSS is marked as busy before it is loaded, in unicorn afterwards",
        |case, ours, theirs| {
            case.name == "ltr" && raised(ours) == Some(14) && ours.outcome == theirs.outcome
        },
    ),
    (
        "Page-Fault Exception: what reads and writes counts as a write, in unicorn as a read first",
        |case, ours, theirs| {
            let both = matches!(case.name, "add m, r" | "arpl");
            both && error(ours).is_some_and(|error| error & 2 != 0) && raised(theirs) == Some(14)
        },
    ),
    ("ARPL: unicorn writes the selector even if it doesn't change", |case, ours, _| {
        let changed = ours.state.eflags & 0x40 != 0;
        case.name == "arpl" && case.code[1] < 0xc0 && !changed
    }),
    ("LTR: unicorn takes a null selector", |case, ours, _| {
        case.name == "ltr" && ours.outcome == Outcome::fault(13, 0) && case.state.cpl() == 0
    }),
    ("SYSEXIT: unicorn takes a null selector of level 1 to 3", |case, ours, _| {
        case.name == "sysexit"
            && ours.outcome == Outcome::fault(13, 0)
            && matches!(case.state.sysenter[0], 1..=3)
    }),
    (
        "JMP, CALL, RET, IRET, INT n: unicorn ignores the limit of the code that it enters, or looks too late",
        |_, ours, theirs| {
            let entered = theirs.outcome == Outcome::Done
                || theirs.outcome == Outcome::Exception { vector: 1, error: None };
            let beyond = !entered || theirs.state.eip > theirs.state.segments[sreg::CS].limit;
            raised(ours) == Some(13) && error(ours).is_some_and(|error| error < 2) && beyond
        },
    ),
    ("INT n: to unicorn every interrupt is external, and may use every gate", |case, ours, _| {
        let Action::Interrupt(vector, Origin::Software) = case.action else { return false };
        ours.outcome == Outcome::fault(13, 8 * u32::from(vector) + 2)
            && gate_level(&case.state, vector) < case.state.cpl()
    }),
    ("INT n: unicorn ignores the limits of stacks", |case, ours, _| {
        case.action != Action::Step && raised(ours) == Some(12)
    }),
    (
        "CALL, INT n: a page fault comes before anything is pushed, in unicorn in between",
        |case, ours, theirs| {
            let pushes = case.name == "call far" || case.action != Action::Step;
            pushes && raised(ours) == Some(14) && ours.outcome == theirs.outcome
        },
    ),
    (
        "RET, IRET: a stack's descriptor is read before the levels are compared, in unicorn afterwards",
        |case, ours, theirs| {
            let returns = matches!(case.name, "retf" | "iret");
            returns
                && raised(ours) == Some(14)
                && is_in_table(ours.state.cr2)
                && raised(theirs) == Some(13)
        },
    ),
    ("Segment Descriptors: what unicorn doesn't mark as accessed can't fault", |case, ours, _| {
        is_transfer(case) && raised(ours) == Some(14) && is_access_byte(ours.state.cr2)
    }),
    (
        "Access Rights: unicorn accesses the stacks of transfers at level 3 as a kernel does",
        |case, ours, _| {
            let user_fault =
                raised(ours) == Some(14) && error(ours).is_some_and(|error| error & 4 != 0);
            case.state.cpl() == 3 && is_transfer(case) && user_fault
        },
    ),
    ("Single-Step Exception: unicorn stops at hlt before it steps", |case, _, _| {
        case.name == "hlt" && case.state.eflags & flag::TF != 0
    }),
    (
        "SGDT, SIDT: a page fault comes before anything is written, in unicorn in between",
        |case, ours, theirs| {
            case.name == "sgdt, sidt" && raised(ours) == Some(14) && ours.outcome == theirs.outcome
        },
    ),
];

/// Puts details of `theirs` right, and says which.
pub(crate) fn forgive(case: &Case, ours: &Result, theirs: &mut Result) -> Vec<&'static str> {
    let mut done = Vec::new();
    for (what, put_right) in DETAILS {
        if put_right(case, ours, theirs) {
            done.push(*what);
        }
    }
    done
}

/// Why a difference in this case doesn't count, if it doesn't.
pub(crate) fn reason(case: &Case, ours: &Result, theirs: &Result) -> Option<&'static str> {
    EXCLUSIONS.iter().find(|(_, applies)| applies(case, ours, theirs)).map(|(reason, _)| *reason)
}

fn raised(result: &Result) -> Option<u8> {
    match result.outcome {
        Outcome::Exception { vector, .. } => Some(vector),
        _ => None,
    }
}

fn error(result: &Result) -> Option<u32> {
    match result.outcome {
        Outcome::Exception { error, .. } => error,
        _ => None,
    }
}

/// Whether the case goes elsewhere.
fn is_transfer(case: &Case) -> bool {
    matches!(case.name, "jmp far" | "call far" | "retf" | "iret") || case.action != Action::Step
}

/// Whether `selector` names a system descriptor.
fn names_system(state: &State, selector: u32) -> bool {
    let (table, entries) = if selector & 4 == 0 { (GDT, GDT_ENTRIES) } else { (LDT, LDT_ENTRIES) };
    let index = selector >> 3;
    index < entries && state.memory[(table + 8 * index + 5) as usize] & 0x10 == 0
}

/// Whether an address is one of the GDT or LDT.
fn is_in_table(address: u32) -> bool {
    let within = |table, entries| (table..table + 8 * entries).contains(&address);
    within(GDT, GDT_ENTRIES) || within(LDT, LDT_ENTRIES)
}

/// Whether an address is that of a descriptor's access byte.
fn is_access_byte(address: u32) -> bool {
    address & 7 == 5 && is_in_table(address)
}

/// The type of the gate for a vector.
fn gate_kind(state: &State, vector: u8) -> u8 {
    state.memory[(IDT + 8 * u32::from(vector) + 5) as usize] & 0x1f
}

/// The level from which the gate for a vector may be used.
fn gate_level(state: &State, vector: u8) -> u8 {
    state.memory[(IDT + 8 * u32::from(vector) + 5) as usize] >> 5 & 3
}

fn set_external(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    let Outcome::Exception { vector: 10..=13, error: Some(error) } = &mut theirs.outcome else {
        return false;
    };
    let external = matches!(case.action, Action::Interrupt(_, Origin::External));
    let missing = external && raised(ours) != Some(14) && *error & 1 == 0;
    *error |= u32::from(missing);
    missing
}

fn mark_accessed(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    if !is_transfer(case) {
        return false;
    }
    let mut changed = false;
    for (table, entries) in [(GDT, GDT_ENTRIES), (LDT, LDT_ENTRIES)] {
        for index in 0..entries {
            let at = (table + 8 * index + 5) as usize;
            let (ours, theirs) = (ours.state.memory[at], &mut theirs.state.memory[at]);
            changed |= ours == *theirs | 1 && ours != *theirs;
            *theirs |= u8::from(ours == *theirs | 1);
        }
    }
    for register in [sreg::CS, sreg::SS] {
        let segment = &mut theirs.state.segments[register];
        changed |= segment.attributes & 1 == 0;
        segment.attributes |= 1;
    }
    // What wasn't marked didn't make its page dirty.
    for table in [GDT, LDT] {
        let entry = (IDENTITY + 4 * (table / PAGE)) as usize;
        let (ours, theirs) = (ours.state.memory[entry], &mut theirs.state.memory[entry]);
        *theirs = if ours == *theirs | DIRTY { ours } else { *theirs };
    }
    changed
}

fn clear_reserved_debug(case: &Case, _: &Result, theirs: &mut Result) -> bool {
    let before = theirs.state.dr;
    let [.., status, control] = &mut theirs.state.dr;
    *status = *status & 0xe00f | 0xffff_0ff0;
    *control = *control & 0xffff_2bff | 0x400;
    case.name == "mov dr" && theirs.state.dr != before
}

fn clear_conditions(_: &Case, ours: &Result, theirs: &mut Result) -> bool {
    let (status, conditions) = (&mut theirs.state.dr[4], ours.state.dr[4] & 0xf);
    let cleared = raised(ours) == Some(1) && *status & 0xf == 0 && conditions != 0;
    *status |= if cleared { conditions } else { 0 };
    cleared
}

fn hide_undefined_rights(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    const UNDEFINED: u32 = 0x000f_0000;
    let is_lar = case.code.starts_with(&[0x0f, 0x02]);
    let before = theirs.state.gpr;
    if is_lar {
        for (theirs, ours) in theirs.state.gpr.iter_mut().zip(ours.state.gpr) {
            *theirs = if (*theirs ^ ours) & !UNDEFINED == 0 { ours } else { *theirs };
        }
    }
    theirs.state.gpr != before
}

fn null_selectors(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    let mut changed = false;
    if matches!(case.name, "iret" | "retf") {
        for register in [sreg::FS, sreg::GS] {
            let (ours, theirs) =
                (ours.state.segments[register], &mut theirs.state.segments[register]);
            changed |= ours.selector == 0 && matches!(theirs.selector, 1..=3);
            *theirs = if matches!(theirs.selector, 1..=3) { ours } else { *theirs };
        }
    }
    changed
}

fn cut_offset(case: &Case, _: &Result, theirs: &mut Result) -> bool {
    let Action::Interrupt(vector, _) = case.action else { return false };
    let cut = matches!(gate_kind(&case.state, vector), 6 | 7) && theirs.outcome == Outcome::Done;
    theirs.state.eip &= if cut { 0xffff } else { u32::MAX };
    cut
}

fn absent_stack(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    let absent =
        is_transfer(case) && raised(ours) == Some(12) && matches!(raised(theirs), Some(10 | 11));
    if absent && error(ours) == error(theirs) {
        theirs.outcome = ours.outcome;
        return true;
    }
    false
}

fn byte_of_descriptor(_: &Case, ours: &Result, theirs: &mut Result) -> bool {
    const ACCESS: u32 = 5;
    let (at, there) = (ours.state.cr2, theirs.state.cr2);
    let same = at == (there & !7) + ACCESS && there & 7 == 4 && raised(ours) == Some(14);
    theirs.state.cr2 = if same { at } else { there };
    same
}

fn read_descriptors(case: &Case, ours: &Result, theirs: &mut Result) -> bool {
    let mut read = false;
    if matches!(case.name, "iret" | "retf") && raised(theirs) == Some(13) {
        for table in [GDT, LDT] {
            let entry = (IDENTITY + 4 * (table / PAGE)) as usize;
            let (ours, theirs) = (ours.state.memory[entry], &mut theirs.state.memory[entry]);
            read |= ours != *theirs && ours == *theirs | ACCESSED;
            *theirs = if ours == *theirs | ACCESSED { ours } else { *theirs };
        }
    }
    read
}
