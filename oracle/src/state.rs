//! What goes into a run and what comes out: plain data, the same for the processor and the Switcher.

use std::fmt;

/// Bytes of an FXSAVE image that 32-bit code has a say in: 32 bytes of x87 control words and
/// MXCSR, st0–st7 and xmm0–xmm7 in 16 bytes each (SDM volume 1, section "FXSAVE Area").
pub const FX_BYTES: usize = 288;

/// The selector of a flat 32-bit code segment at level 3 in Linux's GDT.
pub const CODE_SELECTOR: u16 = 0x23;
/// The selector of a flat data segment at level 3 in Linux's GDT.
pub const DATA_SELECTOR: u16 = 0x2b;

/// CF, PF, AF, ZF, SF, DF and OF: what can be compared of the flags register.
pub const ARITHMETIC_FLAGS: u32 = 0x0cd5;
/// TF: stop after one instruction with exception 1.
pub const TRAP_FLAG: u32 = 1 << 8;

/// The registers of one 32-bit processor.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// eax, ecx, edx, ebx, esp, ebp, esi, edi.
    pub gpr: [u32; 8],
    /// The instruction pointer.
    pub eip: u32,
    /// The flags register. Going in, only the arithmetic flags and TF count.
    pub eflags: u32,
    /// The selectors of es, cs, ss, ds, fs, gs.
    pub segments: [u16; 6],
    /// x87, MXCSR, MMX and SSE registers, as FXSAVE lays them out.
    pub fx: FxImage,
}

/// The part of an FXSAVE image that 32-bit code sees.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxImage(pub [u8; FX_BYTES]);

impl FxImage {
    /// Where the x87 status word lies.
    pub const STATUS: usize = 2;
    /// Where the abridged tag byte lies: a bit for each register that isn't empty.
    pub const TAGS: usize = 4;
    /// Where MXCSR lies.
    pub const MXCSR: usize = 24;
    /// Where st0 lies; the next ones follow 16 bytes apart, 10 of them used.
    pub const ST: usize = 32;
    /// Where xmm0 lies; the next ones follow 16 bytes apart.
    pub const XMM: usize = 160;

    /// The two bytes at `at`.
    #[must_use]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from(self.u16(Self::MXCSR)) | u32::from(self.u16(Self::MXCSR + 2)) << 16
    }

    /// TOP: which of the registers is st0.
    #[must_use]
    pub fn top(&self) -> u8 {
        self.0[Self::STATUS + 1] >> 3 & 7
    }

    /// The same registers, with TOP 0: what was in st0 is elsewhere, unless TOP was 0 before.
    #[must_use]
    pub fn with_top_0(mut self) -> Self {
        let top = usize::from(self.top());
        self.0[Self::STATUS + 1] &= !0x38;
        self.0[Self::ST..Self::XMM].rotate_right(16 * top);
        self
    }

    /// What can be compared. The instruction and operand pointers can't (they are the
    /// host's, or zero), nor can MXCSR's mask or the padding behind 10-byte registers.
    #[must_use]
    pub fn comparable(mut self) -> Self {
        self.0[5..24].fill(0);
        self.0[28..32].fill(0);
        for register in 0..8 {
            let at = Self::ST + 16 * register;
            self.0[at + 10..at + 16].fill(0);
        }
        self
    }
}

impl Default for FxImage {
    /// As after FNINIT, with MXCSR's power-on value and everything else zero.
    fn default() -> Self {
        let mut image = [0; FX_BYTES];
        image[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        image[Self::MXCSR..Self::MXCSR + 2].copy_from_slice(&0x1f80_u16.to_le_bytes());
        Self(image)
    }
}

impl Default for State {
    /// All registers zero, flat segments, the FPU as after initialisation.
    fn default() -> Self {
        let (code, data) = (CODE_SELECTOR, DATA_SELECTOR);
        let segments = [data, code, data, data, 0, 0];
        Self { gpr: [0; 8], eip: 0, eflags: 2, segments, fx: FxImage::default() }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
        for (name, value) in NAMES.iter().zip(self.gpr) {
            write!(f, "{name}={value:08x} ")?;
        }
        write!(f, "eip={:08x} eflags={:08x}", self.eip, self.eflags)?;
        const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
        for (name, value) in SEGMENTS.iter().zip(self.segments) {
            write!(f, " {name}={value:04x}")?;
        }
        Ok(())
    }
}

/// One thing to run: a state to start from, and what all of memory holds.
#[derive(Clone)]
pub struct Case {
    /// The registers at the start.
    pub state: State,
    /// The bytes of all regions, one behind the other in the layout's order.
    pub memory: Vec<u8>,
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The code raised an exception.
    Exception {
        /// 0..=31.
        vector: u8,
        /// The error code; 0 for vectors that have none.
        error: u32,
        /// For vector 14 what CR2 holds, otherwise 0.
        address: u32,
    },
    /// The code attempted a system call: nothing else is known of the run.
    SystemCall,
    /// The code hadn't ended when its time was up: nothing else is known of the run.
    Endless,
}

/// How a run ended, and the state it left. Memory is looked at in the oracle itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// The registers then.
    pub state: State,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_top_0_each_register_is_where_it_was() {
        let mut image = FxImage::default();
        image.0[FxImage::STATUS + 1] = 0x47 | 3 << 3;
        let place = |stack: usize| FxImage::ST + 16 * stack;
        for stack in 0..8 {
            image.0[place(stack)] = (3 + stack as u8) % 8;
        }
        assert_eq!(image.top(), 3);
        let image = image.with_top_0();
        assert_eq!((image.top(), image.0[FxImage::STATUS + 1]), (0, 0x47));
        assert!((0..8).all(|stack| usize::from(image.0[place(stack)]) == stack));
    }
}
