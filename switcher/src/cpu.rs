//! The processor's state as Rust sees it: registers, segments, and the flags that are virtual.
//!
//! The flags register is split. The arithmetic flags and DF live in the host's own flags while
//! guest code runs; TF, IF, IOPL, NT, RF, VM, AC and ID are only a word in the frame, because translated code must never
//! change the host's. [`Cpu::eflags`] puts the two halves together.

use crate::call_gate::CallGate;
use crate::execute::gates;
use crate::frame::{FS, Frame, NO_RELOAD, POISON, SegmentSlot, WorldSlot};
use crate::translate::{Assumptions, Pace};

/// CF, PF, AF, ZF, SF, DF and OF: the flags that translated code changes by itself.
pub const LIVE_FLAGS: u32 = 0x0cd5;
/// TF, single step.
pub const TF: u32 = 1 << 8;
/// IF, interrupts enabled.
pub const IF: u32 = 1 << 9;
/// IOPL, two bits.
pub const IOPL: u32 = 3 << 12;
/// NT, nested task.
pub const NT: u32 = 1 << 14;
/// RF, resume.
pub const RF: u32 = 1 << 16;
/// VM, virtual-8086 mode.
pub const VM: u32 = 1 << 17;
/// AC, alignment check.
pub const AC: u32 = 1 << 18;
/// ID, CPUID is there.
pub const ID: u32 = 1 << 21;
/// All flags that are kept virtually.
pub const VIRTUAL_FLAGS: u32 = TF | IF | IOPL | NT | RF | VM | AC | ID;

/// The general registers, numbered as instructions encode them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Gpr {
    Eax,
    Ecx,
    Edx,
    Ebx,
    Esp,
    Ebp,
    Esi,
    Edi,
}

/// The segment registers, numbered as instructions encode them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A loaded segment: the selector and what the processor remembered of its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The selector, level in its low two bits.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u32,
    /// Last valid offset (for expand-down segments, last *invalid* one), granularity applied.
    pub limit: u32,
    /// Access byte (bits 0–7: type, S, DPL, P) and flags (bits 12–15: AVL, L, D/B, G) as a
    /// descriptor's second word has them, shifted right by 8. 0 for a null selector: not usable.
    pub attributes: u16,
}

impl Segment {
    /// The segment that `descriptor` describes (SDM volume 3, section "Segment Descriptors").
    #[must_use]
    pub const fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let (low, high) = (descriptor as u32, (descriptor >> 32) as u32);
        let raw = (low & 0xffff) | (high & 0x000f_0000);
        let limit = if high & 1 << 23 != 0 { raw << 12 | 0xfff } else { raw };
        let base = low >> 16 | (high & 0xff) << 16 | (high & 0xff00_0000);
        Self { selector, base, limit, attributes: (high >> 8) as u16 & 0xf0ff }
    }

    /// A flat 4 GiB code segment at the level that `selector` names.
    #[must_use]
    pub const fn flat_code(selector: u16) -> Self {
        let attributes = 0xc09b | (selector & 3) << 5;
        Self { selector, base: 0, limit: u32::MAX, attributes }
    }

    /// A flat 4 GiB writable data segment at the level that `selector` names.
    #[must_use]
    pub const fn flat_data(selector: u16) -> Self {
        let attributes = 0xc093 | (selector & 3) << 5;
        Self { selector, base: 0, limit: u32::MAX, attributes }
    }

    /// Present code or data, so that it can be used at all.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.attributes & 0x90 == 0x90
    }

    /// A code segment.
    #[must_use]
    pub const fn is_code(&self) -> bool {
        self.attributes & 0x18 == 0x18
    }

    /// A data segment that may be written.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.attributes & 0x1a == 0x12
    }

    /// May be read: data, or readable code.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        self.attributes & 0x18 == 0x10 || self.attributes & 0x1a == 0x1a
    }

    /// A data segment whose valid offsets lie above the limit.
    #[must_use]
    pub const fn is_expand_down(&self) -> bool {
        self.attributes & 0x1c == 0x14
    }

    /// 32-bit code, or a stack that uses esp (the D/B bit).
    #[must_use]
    pub const fn is_32bit(&self) -> bool {
        self.attributes & 0x4000 != 0
    }

    /// The descriptor's privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// A data segment register that holds it is emptied by a return to `level`, an outer one (SDM volume 2, "IRET").
    pub(crate) const fn is_emptied_at(&self, level: u8) -> bool {
        self.dpl() < level && !self.is_conforming()
    }

    /// A code segment that inner levels' code may go to without becoming theirs.
    #[must_use]
    pub const fn is_conforming(&self) -> bool {
        self.attributes & 0x1c == 0x1c
    }

    /// It starts at 0 and reaches to 4 GiB, for all that `register` is used for.
    pub(crate) fn is_flat(&self, register: SegmentRegister) -> bool {
        let whole = if register == SegmentRegister::Cs {
            self.is_usable() && self.is_code() && self.is_readable() && self.limit == u32::MAX
        } else {
            self.is_unlimited()
        };
        whole && self.base == 0 && self.is_32bit()
    }

    /// All 4 GiB may be read and written through it (wherever they start).
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.is_usable() && self.is_writable() && !self.is_expand_down() && self.limit == u32::MAX
    }
}

/// es, cs, ss and ds: the segments that instructions use without being asked to.
const NEEDED_FLAT: u8 = 0b1111;

/// One virtual processor's architectural state.
///
/// The x87, MMX and SSE registers aren't here: between runs they are in the host's own registers
/// (x87, MMX) or in the frame (SSE).
pub struct Cpu {
    pub(crate) frame: Box<Frame>,
    segments: [Segment; 6],
    cpl: u8,
    /// The outermost level that may read the time stamp counter.
    timestamp_level: u8,
    /// Which of them are flat, a bit each: those that [`NEEDED_FLAT`] names decide whether
    /// translated code can ignore segments.
    flat: u8,
    /// What fs and gs held before: see [`Frame::others`].
    others: [Segment; 2],
    /// The inner level, 0 to 2, that they were kept for.
    inner_level: u8,
    /// The gate by which translated code goes from level to level.
    gate: Option<CallGate>,
    /// How often gates had been passed when that was last looked at.
    seen_passes: u64,
}

impl Cpu {
    pub(crate) fn new(frame: Box<Frame>) -> Self {
        let segments = [Segment::default(); 6];
        let mut cpu = Self {
            frame,
            segments,
            cpl: 0,
            timestamp_level: 3,
            flat: 0,
            others: [Segment::default(); 2],
            inner_level: 0,
            gate: None,
            seen_passes: 0,
        };
        cpu.open_gates();
        for register in [SegmentRegister::Es, SegmentRegister::Ss, SegmentRegister::Ds] {
            cpu.set_segment(register, Segment::flat_data(0x10));
        }
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(0x08));
        cpu
    }

    /// A general register.
    #[must_use]
    pub fn gpr(&self, register: Gpr) -> u32 {
        self.frame.gpr[register as usize]
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, register: Gpr, value: u32) {
        self.frame.gpr[register as usize] = value;
    }

    /// The instruction pointer.
    #[must_use]
    pub fn eip(&self) -> u32 {
        self.frame.eip
    }

    /// Sets the instruction pointer.
    pub fn set_eip(&mut self, eip: u32) {
        self.frame.eip = eip;
    }

    /// The whole flags register, bit 1 set as always.
    #[must_use]
    pub fn eflags(&self) -> u32 {
        self.frame.flags & LIVE_FLAGS | self.frame.virtual_flags | 2
    }

    /// Sets all flags that exist; who may change which is the caller's business.
    pub fn set_eflags(&mut self, eflags: u32) {
        self.frame.flags = eflags & LIVE_FLAGS;
        self.frame.virtual_flags = eflags & VIRTUAL_FLAGS;
    }

    /// The current privilege level, 0..=3.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.cpl
    }

    /// A segment register.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }

    /// Sets a segment register as told, without any check. The current privilege level follows
    /// the level of the stack segment's selector when `Ss` is set, and of the code segment's
    /// selector when `Cs` is.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let replaced = std::mem::replace(&mut self.segments[register as usize], segment);
        if matches!(register, SegmentRegister::Cs | SegmentRegister::Ss) {
            self.cpl = (segment.selector & 3) as u8;
            if self.cpl < 3 && self.cpl != self.inner_level {
                self.inner_level = self.cpl;
                self.forget_others();
                self.open_gates();
            }
            self.frame.user = u32::from(self.cpl == 3);
            self.refresh_timestamp_trap();
        }
        let index = register as usize;
        let bit = 1 << index;
        let flat = segment.is_flat(register);
        self.flat = if flat { self.flat | bit } else { self.flat & !bit };
        // No table has a say in a null selector.
        let settled = segment.selector & !3 == 0;
        let before = std::mem::replace(
            &mut self.frame.segments[index],
            slot(register, &segment, settled, &self.frame.worlds),
        );
        if let Some(other) = index.checked_sub(FS)
            && before.reload != NO_RELOAD
            && before.selector != u32::from(segment.selector)
        {
            self.others[other] = replaced;
            self.frame.others[other] = before;
        }
    }

    /// Loading the same selector into `register` again would change nothing, whatever the current level: translated code may
    /// leave it out until somebody changes what the selector names.
    pub(crate) fn settle(&mut self, register: SegmentRegister) {
        let selector = self.segments[register as usize].selector;
        self.frame.segments[register as usize].reload = u32::from(selector).wrapping_neg();
    }

    /// Entries of the tables have changed, those with these indexes: what was loaded from them counts as before, but a load
    /// looks them up again.
    pub(crate) fn unsettle(&mut self, entries: std::ops::Range<u16>) {
        let Frame { segments, others, .. } = &mut *self.frame;
        for slot in segments.iter_mut().chain(others) {
            let selector = slot.selector as u16;
            if selector & !3 != 0 && entries.contains(&(selector >> 3)) {
                slot.reload = NO_RELOAD;
            }
        }
    }

    /// Brings what translated code knows of the segments up to date after a change of the current windows.
    pub(crate) fn refresh_slots(&mut self) {
        let worlds = self.frame.worlds;
        let Frame { segments, others, .. } = &mut *self.frame;
        let all = self.segments.iter().zip(segments);
        for (segment, slot) in all.chain(self.others.iter().zip(others)) {
            slot.windows = windows(segment, &worlds);
        }
    }

    /// Code of another inner level may not be allowed what was kept for the one before.
    fn forget_others(&mut self) {
        for other in &mut self.frame.others {
            other.reload = NO_RELOAD;
        }
    }

    /// Catches up with translated code that has exchanged what fs or gs hold for what they held before.
    pub(crate) fn follow_exchanges(&mut self) {
        for other in 0..self.others.len() {
            if std::mem::take(&mut self.frame.exchanged[other]) != 0 {
                let register = &mut self.segments[FS + other];
                std::mem::swap(register, &mut self.others[other]);
                self.flat &= !(1 << (FS + other));
            }
        }
    }

    /// What translated code may take for granted as things stand.
    pub(crate) fn assumptions(&self) -> Assumptions {
        let flat = self.flat & NEEDED_FLAT == NEEDED_FLAT;
        let pace = if self.frame.virtual_flags & TF == 0 { Pace::Free } else { Pace::Step };
        Assumptions { user: self.cpl == 3, flat, pace }
    }

    /// CR0.TS or CR0.EM: while set, FPU instructions raise #NM.
    pub fn set_fpu_trap(&mut self, on: bool) {
        self.frame.fpu_trap = u32::from(on);
    }

    /// The outermost level, 0 to 3, at which `rdtsc` may be executed; 3 at first. Elsewhere it raises #GP(0): what CR4.TSD asks
    /// for.
    pub fn set_timestamp_level(&mut self, level: u8) {
        self.timestamp_level = level;
        self.refresh_timestamp_trap();
        self.open_gates();
    }

    fn refresh_timestamp_trap(&mut self) {
        self.frame.timestamp_trap = u32::from(self.cpl > self.timestamp_level);
    }

    /// Opens a gate, which the frame describes already, or shuts the one there is.
    pub(crate) fn set_gate(&mut self, gate: Option<CallGate>) {
        self.gate = gate;
        self.open_gates();
    }

    /// The gate that is there, open or not.
    pub(crate) fn gate(&self) -> Option<CallGate> {
        self.gate
    }

    /// Where `rdtsc` depends on the level, no gate is passed: it would have to see to that. Nor is one from level 0, whose `iretd` changes
    /// more flags than others'.
    fn open_gates(&mut self) {
        let open = self.gate.is_some() && self.timestamp_level == 3 && self.inner_level != 0;
        [self.frame.gates.call, self.frame.gates.back] = gates::addresses(open);
    }

    /// Catches up with translated code that has passed gates. Says whether it has.
    ///
    /// The level may be the same as before, and the segments others: out of the kernel from one, and in again to the gate's.
    pub(crate) fn follow_gates(&mut self) -> bool {
        let passes = self.frame.gates.passes;
        if std::mem::replace(&mut self.seen_passes, passes) == passes {
            return false;
        }
        if let Some(gate) = self.gate {
            let end = if self.frame.user != 0 { gate.user } else { gate.kernel };
            self.set_segment(SegmentRegister::Cs, end.code);
            self.set_segment(SegmentRegister::Ss, end.stack);
        }
        true
    }

    /// Whether FPU instructions raise #NM.
    #[must_use]
    pub fn fpu_trap(&self) -> bool {
        self.frame.fpu_trap != 0
    }
}

/// What translated code sees of a segment register.
fn slot(
    register: SegmentRegister,
    segment: &Segment,
    settled: bool,
    worlds: &[WorldSlot; 2],
) -> SegmentSlot {
    let selector = u32::from(segment.selector);
    let is_data = !matches!(register, SegmentRegister::Cs | SegmentRegister::Ss);
    let inner = is_data && segment.is_emptied_at(3) && *segment != Segment::default();
    SegmentSlot {
        base: segment.base,
        selector,
        reload: if settled { selector.wrapping_neg() } else { NO_RELOAD },
        inner: inner.into(),
        windows: windows(segment, worlds),
    }
}

/// The windows through which a segment is used.
fn windows(segment: &Segment, worlds: &[WorldSlot; 2]) -> [u64; 2] {
    if segment.is_unlimited() { worlds.map(|world| world.window) } else { [POISON; 2] }
}
