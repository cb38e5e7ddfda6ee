//! What a string of bytes means.

use super::world::{self, PAGES, Page};
use crate::code::{self, Code};
use arbitrary::{Arbitrary, Result, Unstructured};
use lguest_switcher::SegmentRegister;
use lguest_switcher::cpu::{AC, ID, IF, IOPL, LIVE_FLAGS, NT, RF};

/// Flags that an embedder may set as it likes.
pub(super) const FLAGS: u32 = LIVE_FLAGS | IF | IOPL | NT | RF | AC | ID;
/// The segment registers that a case names selectors for.
pub(super) const SELECTORS: [SegmentRegister; 5] = [
    SegmentRegister::Es,
    SegmentRegister::Ds,
    SegmentRegister::Ss,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];
/// The most that happens on the way.
const STEPS: usize = 24;

/// A whole case.
#[derive(Clone, Debug)]
pub struct Case {
    pub(super) start: Start,
    /// What all of memory is filled with.
    pub(super) fill: u8,
    /// Pages that aren't as they are in most cases.
    pub(super) pages: Vec<(usize, Page)>,
    /// Descriptors behind the flat ones.
    pub(super) descriptors: Vec<u64>,
    /// What is where, by virtual address.
    pub(super) code: Vec<(u32, Code)>,
    pub(super) disturbance: Disturbance,
    /// What happens behind each exit, as long as there are bytes.
    pub(super) steps: Vec<Step>,
}

/// The processor's state at the beginning.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) level: u16,
    pub(super) kernel_start: u32,
    pub(super) eip: u32,
    pub(super) gpr: [u32; 8],
    pub(super) flags: u32,
    pub(super) fpu_trap: bool,
    /// For each of [`SELECTORS`], and for cs.
    pub(super) selectors: [u16; 5],
    pub(super) code: u16,
    /// A watched range, with something pending.
    pub(super) watch: Option<(u32, u32)>,
}

/// What makes no difference to the guest.
#[derive(Clone, Debug)]
pub(super) struct Disturbance {
    /// How many questions of the Switcher there are from kick to kick; no kicks, if 0.
    pub(super) kick: u32,
    /// An alarm after so many microseconds; none, if 0.
    pub(super) alarm: u32,
    /// Answers show more pages than asked for.
    pub(super) ahead: bool,
    /// All that was shown is taken back when kicked.
    pub(super) forget: bool,
    /// Each instruction runs alone, by TF.
    pub(super) step: bool,
}

/// Something that the embedder does before it runs the guest again.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Nothing,
    Jump(u32),
    Level(u16),
    Register(usize, u32),
    Flags(u32),
    FpuTrap(bool),
    Load(SegmentRegister, u16),
    CodeSegment(u16),
    /// A page table entry, and the Switcher is told.
    Page(usize, Page),
    /// Memory written as a device would.
    Store(u32, Code),
    /// Memory written as the guest would, at level 3 if told so.
    Write(u32, Code, bool),
    /// A page shown ahead of need.
    Show(usize),
    ForgetAll,
    /// A fresh address space for users; the one before is given back.
    NewSpace,
    Kick,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut start = start(u)?;
        let fill = *u.choose(&[0xcc, 0, 0x90, 0xff, 0x40, 0xa4])?;
        let code = several(u, 0..=3, |u| Ok((place(u)?, code::code(u, word)?)))?;
        let pages = several(u, 0..=7, |u| Ok((u.choose_index(PAGES.len())?, page(u)?)))?;
        let descriptors = several(u, 0..=7, descriptor)?;
        if let Some((at, _)) = code.first() {
            start.eip = *at;
        }
        let disturbance = disturbance(u)?;
        if disturbance.step {
            // Behind a single step nobody asks what else there was.
            start.watch = None;
        }
        let mut steps = Vec::new();
        while !u.is_empty() && steps.len() < STEPS {
            steps.push(step(u)?);
        }
        Ok(Self { start, fill, pages, descriptors, code, disturbance, steps })
    }
}

impl Case {
    /// Everything that the case itself puts into memory.
    pub(super) fn all_bytes(&self) -> impl Iterator<Item = &[u8]> {
        let stored = self.steps.iter().filter_map(|step| match step {
            Step::Store(_, bytes) | Step::Write(_, bytes, _) => Some(bytes.0.as_slice()),
            _ => None,
        });
        self.code.iter().map(|(_, bytes)| bytes.0.as_slice()).chain(stored)
    }
}

fn several<'a, T>(
    u: &mut Unstructured<'a>,
    how_many: std::ops::RangeInclusive<usize>,
    one: impl Fn(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(how_many)?).map(|_| one(u)).collect()
}

fn start(u: &mut Unstructured<'_>) -> Result<Start> {
    let mut start = Start {
        level: *u.choose(&[3, 0, 1])?,
        kernel_start: *u.choose(&[0xc000_0000, 0])?,
        eip: place(u)?,
        gpr: [0; 8],
        flags: u.arbitrary()?,
        fpu_trap: one_in(u, 16)?,
        selectors: [0; 5],
        code: 0,
        watch: None,
    };
    for register in &mut start.gpr {
        *register = word(u)?;
    }
    let flat = world::flat_code(start.level) + 8;
    for to in &mut start.selectors {
        *to = if one_in(u, 4)? { selector(u)? } else { flat };
    }
    if one_in(u, 8)? {
        start.code = selector(u)?;
    }
    if one_in(u, 8)? {
        start.watch = Some((place(u)?, u.int_in_range(1..=64)?));
    }
    Ok(start)
}

fn disturbance(u: &mut Unstructured<'_>) -> Result<Disturbance> {
    Ok(Disturbance {
        kick: u.int_in_range(0..=7)?,
        alarm: u.int_in_range(0..=255)?,
        ahead: u.arbitrary()?,
        forget: u.arbitrary()?,
        step: u.arbitrary()?,
    })
}

fn step(u: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match u.int_in_range(0..=15)? {
        0 => Step::Nothing,
        1 | 2 => Step::Jump(place(u)?),
        3 => Step::Level(*u.choose(&[3, 0, 1])?),
        4 => Step::Register(u.int_in_range(0..=7)?, word(u)?),
        5 => Step::Flags(u.arbitrary()?),
        6 => Step::FpuTrap(u.arbitrary()?),
        7 => Step::Load(*u.choose(&SELECTORS)?, selector(u)?),
        8 => Step::CodeSegment(selector(u)?),
        9 | 10 => Step::Page(u.choose_index(PAGES.len())?, page(u)?),
        11 => Step::Store(place(u)?, code::code(u, word)?),
        12 => Step::Write(place(u)?, code::code(u, word)?, u.arbitrary()?),
        13 => Step::Show(u.choose_index(PAGES.len())?),
        14 => {
            if u.arbitrary()? {
                Step::ForgetAll
            } else {
                Step::NewSpace
            }
        }
        _ => Step::Kick,
    })
}

/// A virtual address where there may be a page.
fn place(u: &mut Unstructured<'_>) -> Result<u32> {
    let page = *u.choose(&PAGES)?;
    let offset = match u.int_in_range(0..=3)? {
        0 => 0,
        1 => u.int_in_range(0xff0..=0xfff)?,
        2 => u.int_in_range(0..=0xff)?,
        _ => u.int_in_range(0..=0xfff)?,
    };
    Ok(page * 0x1000 + offset)
}

/// A word that may mean something: a number, an address, a selector, an edge.
fn word(u: &mut Unstructured<'_>) -> Result<u32> {
    const EDGES: [u32; 8] =
        [0x7fff_ffff, 0x8000_0000, 0xffff, 0x1_0000, 0xfffe, 0x7fff, 0x8000, 0xff];
    Ok(match u.int_in_range(0..=6)? {
        0 => u.int_in_range(0..=39)?,
        1 | 2 => place(u)?,
        3 => selector(u)?.into(),
        4 => *u.choose(&EDGES)?,
        5 => i32::from(u.arbitrary::<i8>()?) as u32,
        _ => u.arbitrary()?,
    })
}

/// True once in `times`, and not where bytes have ended.
fn one_in(u: &mut Unstructured<'_>, times: u8) -> Result<bool> {
    Ok(u.int_in_range(1..=times)? == times)
}

fn selector(u: &mut Unstructured<'_>) -> Result<u16> {
    u.int_in_range(0..=16 * 8 - 1)
}

fn page(u: &mut Unstructured<'_>) -> Result<Page> {
    let rights: u8 = u.arbitrary()?;
    Ok(Page {
        present: rights & 3 != 3,
        writable: rights & 4 == 0,
        user: rights & 8 == 0,
        clean: rights & 0x30 == 0x30,
        frame: u.int_in_range(0..=world::FRAMES + 1)?,
    })
}

fn descriptor(u: &mut Unstructured<'_>) -> Result<u64> {
    const LIKELY: [u8; 10] = [0x93, 0xf3, 0x97, 0xf7, 0x9b, 0xfb, 0x9f, 0xff, 0xb3, 0x91];
    let base = u64::from(word(u)?);
    let limit: u64 = if u.arbitrary()? { 0xf_ffff } else { u.int_in_range(0..=0xf_ffff)? };
    let access: u8 = if one_in(u, 4)? { u.arbitrary()? } else { *u.choose(&LIKELY)? };
    let flags: u64 = *u.choose(&[0xc, 0x4, 0x8, 0])?;
    let low = limit & 0xffff | (base & 0xffff) << 16;
    let high = base >> 16 & 0xff
        | u64::from(access) << 8
        | (limit >> 16) << 16
        | flags << 20
        | (base >> 24) << 24;
    Ok(low | high << 32)
}
