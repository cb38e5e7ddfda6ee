//! The habits of the processor at hand.
//!
//! Here and there the manual lets a processor do one thing or another, and their makers have chosen
//! differently. The Switcher has chosen what AMD's processors do. What another one does is as good:
//! it is found out by trying, not by the name of its maker, so that only a processor that has a
//! habit is forgiven it. `leeway` goes on with what each comes to.

use crate::machine::Machine;
use crate::placing::AT;
use crate::state::{ARITHMETIC_FLAGS, Case, End, FxImage, Outcome, State, TRAP_FLAG};
use crate::world::{BREAKPOINT, DATA, FIXED, STACK, World};
use crate::{Oracle, OracleError};
use iced_x86::{Code, Mnemonic};
use std::fmt;

/// Something that a processor may do, and the Switcher doesn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Habit {
    /// A 32-bit `push` or `pop` of a segment register touches only the lower 16 bits of its slot, so
    /// that a `push` leaves the upper half as it was, and neither faults because of it (SDM
    /// volume 3, section "Selector Pushes and Pops": "the upper two bytes of the write are not
    /// modified", of all but the Pentium). A `retf` pops cs the same way.
    HalfSelector,
    /// An operand across offset 4 GiB of a segment of 4 GiB goes on at offset 0 (SDM volume 3,
    /// section "Limit Checking": "accesses may or may not cause the indicated exceptions").
    WrapAround,
    /// A repeated `cmps` or `scas` that stops on its way has the flags from before it (SDM volume 2,
    /// "REP/REPE/REPZ/REPNE/REPNZ", of faults; a single step stops at the same place).
    FlagsAtTheEnd,
    /// A store of an MMX register has set TOP to 0 when it faults. All MMX instructions set it
    /// (SDM volume 3, section "The MMX State and MMX Register Aliasing"); of those that fault the
    /// manual says nothing, and beginning again mends it.
    TopBeforeFault,
    /// An x87 store that raises an unmasked exception stores nothing, and so doesn't look whether
    /// it could. Which comes first is the processor's own business (SDM volume 3, section
    /// "Priority Among Simultaneous Exceptions and Interrupts": both are of the lowest priority,
    /// "faults on executing an instruction").
    NoStoreNoFault,
    /// A store of more than eight bytes across the edge of a page leaves its first part when the second
    /// faults (SDM volume 3, section "Guaranteed Atomic Operations": "the effects of the
    /// completed accesses may be visible to software").
    StoreInParts,
    /// `repe cmpsb` looks at edi before esi, as all other comparisons do. Where both fault it reports
    /// that one (the same section on priorities: within a class it is the processor's choice).
    EdiFirst,
    /// `bound` compares with the lower bound, and raises #BR, before it looks at the upper one (the
    /// same section: #BR and #PF are in one class).
    BoundInParts,
    /// `aaa` and its kin leave other values in the flags that the manual leaves undefined.
    DecimalFlags,
}

impl fmt::Display for Habit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HalfSelector => {
                "pushes and pops 16 bits of a segment register (left out of programs)"
            }
            Self::WrapAround => "goes on at offset 0 behind offset 4 GiB",
            Self::FlagsAtTheEnd => "repeated comparisons set the flags at their very end",
            Self::TopBeforeFault => "MMX stores that fault have set TOP to 0",
            Self::NoStoreNoFault => "x87 stores that raise an exception don't look at memory",
            Self::StoreInParts => "long stores that fault leave what they could",
            Self::EdiFirst => "repe cmpsb looks at edi first",
            Self::BoundInParts => "bound looks at the lower bound first",
            Self::DecimalFlags => {
                "decimal adjustments have other undefined flags (left out of programs)"
            }
        })
    }
}

/// The habits that a processor has.
#[derive(Clone, Debug, Default)]
pub struct Habits(Vec<Habit>);

impl Habits {
    /// Those of the processor that `oracle` asks.
    ///
    /// # Errors
    /// When the processor can't be asked.
    pub fn of(
        oracle: &mut Oracle,
        machine: &mut Machine,
        world: &World,
    ) -> Result<Self, OracleError> {
        let mut found = Vec::new();
        for (habit, case, shows) in attempts(world) {
            let outcome = oracle.run(&case)?;
            if shows(&outcome, &Memory { world, before: &case.memory, after: oracle.memory() }) {
                found.push(habit);
            }
        }
        if has_decimal_flags(oracle, machine, world)? {
            found.push(Habit::DecimalFlags);
        }
        Ok(found.into())
    }

    /// Whether `habit` is among them.
    #[must_use]
    pub fn has(&self, habit: Habit) -> bool {
        self.0.contains(&habit)
    }

    /// Whether an instruction had better not be part of a program, because what it leaves may
    /// decide what comes after.
    #[must_use]
    pub fn forbid_in_programs(&self, code: Code) -> bool {
        use Mnemonic as M;
        let is_decimal =
            matches!(code.mnemonic(), M::Aaa | M::Aas | M::Aad | M::Aam | M::Daa | M::Das);
        self.has(Habit::DecimalFlags) && is_decimal
            || self.has(Habit::HalfSelector) && is_long_selector(code)
    }
}

/// Whether it pushes or pops a segment register, of which 32 bits are a slot.
pub(crate) fn is_long_selector(code: Code) -> bool {
    use Code as C;
    #[rustfmt::skip]
    let found = matches!(
        code,
        C::Pushd_ES | C::Pushd_CS | C::Pushd_SS | C::Pushd_DS | C::Pushd_FS | C::Pushd_GS
            | C::Popd_ES | C::Popd_SS | C::Popd_DS | C::Popd_FS | C::Popd_GS
    );
    found
}

impl From<Vec<Habit>> for Habits {
    fn from(habits: Vec<Habit>) -> Self {
        Self(habits)
    }
}

impl fmt::Display for Habits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("this processor has no habits that the Switcher hasn't");
        }
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "this processor's habits: {}", all.join("; "))
    }
}

/// What memory held before and after an attempt.
struct Memory<'a> {
    world: &'a World,
    before: &'a [u8],
    after: &'a [u8],
}

impl Memory<'_> {
    /// Whether the byte at `address` is another one now.
    fn changed(&self, address: u32) -> bool {
        let found = self.world.layout.locate(address);
        found.is_some_and(|(_, offset)| self.before[offset] != self.after[offset])
    }
}

type Shows = fn(&Outcome, &Memory) -> bool;

const ABSENT: u32 = FIXED + crate::layout::PAGE;

/// What shows each habit.
fn attempts(world: &World) -> [(Habit, Case, Shows); 8] {
    let with = |opcode: &[u8], address: u32| [opcode, &address.to_le_bytes()].concat();
    let mut push = attempt(world, &[0x1e]); // push ds
    put(&mut push, world, STACK + 0x7fc, &[0x5a; 4]);
    let wrap = attempt(world, &with(&[0xa1], u32::MAX - 1)); // mov eax, [0xfffffffe]
    let mut scan = attempt(world, &[0xf2, 0xae]); // repne scasb
    put(&mut scan, world, DATA, &[1; 8]);
    (scan.state.gpr[1], scan.state.gpr[7]) = (8, DATA);
    scan.state.eflags |= TRAP_FLAG;
    let mut mmx = attempt(world, &with(&[0x0f, 0x7f, 0x05], ABSENT)); // movq [ABSENT], mm0
    mmx.state.fx.0[FxImage::STATUS + 1] = 0x20;
    let mut invalid = attempt(world, &with(&[0xdb, 0x1d], ABSENT)); // fistp dword [ABSENT]
    invalid.state.fx.0[0] &= !1;
    let mut long = attempt(world, &with(&[0xdb, 0x3d], FIXED - 8)); // fstp tword [FIXED-8]
    long.state.fx.0[FxImage::TAGS] = 1;
    put(&mut long, world, FIXED - 8, &[0x5a; 8]);
    let mut compare = attempt(world, &[0xf3, 0xa6]); // repe cmpsb
    (compare.state.gpr[1], compare.state.gpr[6], compare.state.gpr[7]) = (8, ABSENT, ABSENT + 16);
    let mut bound = attempt(world, &with(&[0x62, 0x05], ABSENT - 4)); // bound eax, [ABSENT-4]
    put(&mut bound, world, ABSENT - 4, &[0; 4]);
    bound.state.gpr[0] = u32::MAX;
    [
        (Habit::HalfSelector, push, |_, memory| !memory.changed(STACK + 0x7fe)),
        (Habit::WrapAround, wrap, |outcome, _| vector(outcome) == 14),
        (Habit::FlagsAtTheEnd, scan, |outcome, _| outcome.state.eflags & ARITHMETIC_FLAGS == 0),
        (Habit::TopBeforeFault, mmx, |outcome, _| outcome.state.fx.top() == 0),
        (Habit::NoStoreNoFault, invalid, |outcome, _| vector(outcome) == 3),
        (Habit::StoreInParts, long, |_, memory| memory.changed(FIXED - 8)),
        (Habit::EdiFirst, compare, |outcome, _| is_page_fault_at(outcome, ABSENT + 16)),
        (Habit::BoundInParts, bound, |outcome, _| vector(outcome) == 5),
    ]
}

/// The exception that ended an attempt.
fn vector(outcome: &Outcome) -> u8 {
    match outcome.end {
        End::Exception { vector, .. } => vector,
        End::SystemCall | End::Endless => u8::MAX,
    }
}

fn is_page_fault_at(outcome: &Outcome, wanted: u32) -> bool {
    matches!(outcome.end, End::Exception { vector: 14, address, .. } if address == wanted)
}

/// A case of this code, with a stack.
fn attempt(world: &World, code: &[u8]) -> Case {
    let mut state = State { eip: AT, ..State::default() };
    state.gpr[4] = STACK + 0x800;
    let mut case = Case { state, memory: world.memory.clone() };
    put(&mut case, world, AT, code);
    put(&mut case, world, AT + code.len() as u32, &[BREAKPOINT]);
    case
}

fn put(case: &mut Case, world: &World, address: u32, bytes: &[u8]) {
    if let Some((_, offset)) = world.layout.locate(address) {
        case.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether any decimal adjustment of any of some values leaves flags that the Switcher doesn't.
fn has_decimal_flags(
    oracle: &mut Oracle,
    machine: &mut Machine,
    world: &World,
) -> Result<bool, OracleError> {
    // aaa, aas, aad, aam, daa, das
    const DECIMAL: [&[u8]; 6] = [&[0x37], &[0x3f], &[0xd5, 10], &[0xd4, 10], &[0x27], &[0x2f]];
    for code in DECIMAL {
        let mut case = attempt(world, code);
        for value in (0..=u16::MAX).step_by(0x0e3b) {
            case.state.gpr[0] = value.into();
            for eflags in [0, ARITHMETIC_FLAGS] {
                case.state.eflags = eflags;
                let (_, ours) = machine.run(&case);
                let theirs = oracle.run(&case)?.state;
                if (ours.eflags ^ theirs.eflags) & ARITHMETIC_FLAGS != 0 {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
