//! The emitter: bytes in a row, and the few instruction forms that the translator writes itself.
//!
//! Most guest instructions are encoded by `iced-x86`; the sequences *around* them (stack, table
//! look-ups, exits) use so few forms that they are written here, each named by what it does. What
//! comes out is judged by [`super::confinement`], which reads it back with a foreign eye.

use iced_x86::Register;

/// A host general register by its number in the instruction encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reg(pub(super) u8);

impl Reg {
    pub(super) const ECX: Self = Self(1);
    pub(super) const EBP: Self = Self(5);
    pub(super) const ESI: Self = Self(6);
    pub(super) const EDI: Self = Self(7);
    /// Start of the code cache.
    pub(super) const CODE: Self = Self(8);
    /// First scratch register: an address, or what rcx held.
    pub(super) const R9: Self = Self(9);
    /// Second scratch register: where [`Reg::R9`] counts from.
    pub(super) const R10: Self = Self(10);
    /// The guest's esp.
    pub(super) const STACK: Self = Self(12);
    /// Third scratch register: a value on its way, or a jump's target.
    pub(super) const R13: Self = Self(13);
    /// The window.
    pub(super) const WINDOW: Self = Self(14);
    /// The frame.
    pub(super) const FRAME: Self = Self(15);

    /// The name that `iced` has for all of it.
    pub(super) fn as_iced(self) -> Register {
        Register::RAX + u32::from(self.0)
    }

    /// The name that `iced` has for its low 32 bits.
    pub(super) fn as_iced_dword(self) -> Register {
        Register::EAX + u32::from(self.0)
    }

    /// The name that `iced` has for its low 16 bits.
    pub(super) fn as_iced_word(self) -> Register {
        Register::AX + u32::from(self.0)
    }

    /// The three bits that ModRM, SIB and opcodes have for a register.
    const fn low(self) -> u8 {
        self.0 & 7
    }

    /// The fourth bit, which goes into a REX or VEX prefix.
    const fn high(self) -> u8 {
        self.0 >> 3
    }
}

/// An operand in memory, in the only shapes that the translator's own sequences use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// `gs:[r12d+n]`: the guest's stack, with an address that wraps at 32 bits.
    Stack(i8),
    /// `[r14+reg]`: the guest address that is in a register, whose upper half is zero.
    Window(Reg),
    /// `[r15+n]`: a field of the frame.
    Frame(i32),
}

/// What `lea` adds up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sum {
    pub(super) base: Option<Reg>,
    pub(super) index: Option<Reg>,
    /// Logarithm of the index's factor, 0..=3.
    pub(super) shift: u8,
    pub(super) displacement: i32,
}

impl Sum {
    /// A register and a constant.
    pub(super) const fn plus(base: Reg, displacement: i32) -> Self {
        Self { base: Some(base), index: None, shift: 0, displacement }
    }

    /// Two registers, the second one shifted left by `shift` bits.
    pub(super) const fn of(base: Reg, index: Reg, shift: u8) -> Self {
        Self { base: Some(base), index: Some(index), shift, displacement: 0 }
    }
}

/// Whether an instruction of ours works on 16, 32 or 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Width {
    Word,
    Dword,
    Qword,
}

/// A jump without a target yet: give it to [`Assembler::close`].
#[derive(Debug)]
#[must_use = "a jump without a target would run into nowhere"]
pub(super) struct OpenJump {
    /// Cache offset of the rel32.
    site: u32,
}

impl OpenJump {
    /// Cache offset of the jump's rel32 field: what a patcher of finished code needs.
    pub(super) const fn site(&self) -> u32 {
        self.site
    }
}

/// A piece of host code in the making, which knows where in the code cache it will lie.
pub(super) struct Assembler {
    bytes: Vec<u8>,
    origin: u32,
    open: u32,
}

impl Assembler {
    /// An empty piece that will lie at cache offset `origin`.
    pub(super) fn new(origin: u32, capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), origin, open: 0 }
    }

    /// Cache offset of the next byte.
    pub(super) fn here(&self) -> u32 {
        self.origin.wrapping_add(self.bytes.len() as u32)
    }

    /// The finished piece. No jump may be open any more.
    pub(super) fn finish(self) -> Vec<u8> {
        debug_assert_eq!(self.open, 0, "a jump was never closed");
        self.bytes
    }

    /// Raw bytes.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A one-byte no-op.
    pub(super) fn nop(&mut self) {
        self.byte(0x90);
    }

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn dword(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Nops up to the next multiple of `boundary`, a power of two.
    pub(super) fn align(&mut self, boundary: u32) {
        /// The recommended nops of one to nine bytes (SDM volume 2, "NOP").
        const NOPS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
            &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        ];
        let mut missing = (self.here().wrapping_neg() & (boundary - 1)) as usize;
        while missing > 0 {
            let nop = NOPS[missing.min(NOPS.len()) - 1];
            self.raw(nop);
            missing -= nop.len();
        }
    }

    /// `reg = place`.
    pub(super) fn load(&mut self, width: Width, reg: Reg, place: Place) {
        self.form(width, 0x8b, reg, place);
    }

    /// `place = reg`.
    pub(super) fn store(&mut self, width: Width, place: Place, reg: Reg) {
        self.form(width, 0x89, reg, place);
    }

    /// `place = value`, of 16 or 32 bits.
    pub(super) fn store_constant(&mut self, width: Width, place: Place, value: u32) {
        self.form(width, 0xc7, Reg(0), place);
        match width {
            Width::Word => self.raw(&(value as u16).to_le_bytes()),
            Width::Dword | Width::Qword => self.dword(value),
        }
    }

    /// `place = !place`, 32 bits, without touching flags.
    pub(super) fn invert(&mut self, place: Place) {
        self.form(Width::Dword, 0xf7, Reg(2), place);
    }

    /// `to = the host address of cache offset target`.
    pub(super) fn address(&mut self, to: Reg, target: u32) {
        self.prefixes(Width::Qword, to.high() << 2);
        self.raw(&[0x8d, 0x05 | to.low() << 3]);
        self.dword(target.wrapping_sub(self.here().wrapping_add(4)));
    }

    /// `to = from`.
    pub(super) fn copy(&mut self, width: Width, to: Reg, from: Reg) {
        self.prefixes(width, from.high() << 2 | to.high());
        self.raw(&[0x89, 0xc0 | from.low() << 3 | to.low()]);
    }

    /// `to = from`'s low 16 bits, zero-extended.
    pub(super) fn zero_extend_word(&mut self, to: Reg, from: Reg) {
        self.prefixes(Width::Dword, to.high() << 2 | from.high());
        self.raw(&[0x0f, 0xb7, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// `to = from`'s low 16 bits, sign-extended to 32.
    pub(super) fn sign_extend_word(&mut self, to: Reg, from: Reg) {
        self.prefixes(Width::Dword, to.high() << 2 | from.high());
        self.raw(&[0x0f, 0xbf, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// `to = from`'s low 8 bits, zero-extended. `from` is a register from r8 on.
    pub(super) fn zero_extend_byte(&mut self, to: Reg, from: Reg) {
        debug_assert_eq!(from.high(), 1, "without a REX prefix this might name ah");
        self.prefixes(Width::Dword, to.high() << 2 | from.high());
        self.raw(&[0x0f, 0xb6, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// `to = value`, without touching flags.
    pub(super) fn constant(&mut self, to: Reg, value: u32) {
        self.prefixes(Width::Dword, to.high());
        self.byte(0xb8 | to.low());
        self.dword(value);
    }

    /// `to = value`, in 16 bits: the upper half stays.
    pub(super) fn constant_word(&mut self, to: Reg, value: u16) {
        self.prefixes(Width::Word, to.high());
        self.byte(0xb8 | to.low());
        self.raw(&value.to_le_bytes());
    }

    /// `to = sum`, at this width.
    pub(super) fn lea(&mut self, width: Width, to: Reg, sum: Sum) {
        let (base, index) = (sum.base.map_or(0, Reg::high), sum.index.map_or(0, Reg::high));
        self.prefixes(width, to.high() << 2 | index << 1 | base);
        self.byte(0x8d);
        let reg = to.low() << 3;
        let index = sum.index.map_or(4, Reg::low) << 3 | sum.shift << 6;
        let Some(base) = sum.base else {
            self.raw(&[reg | 4, index | 5]);
            self.dword(sum.displacement as u32);
            return;
        };
        let small = i8::try_from(sum.displacement);
        let mode = match small {
            Ok(0) if base.low() != 5 => 0x00,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if sum.index.is_some() || base.low() == 4 {
            self.raw(&[mode | reg | 4, index | base.low()]);
        } else {
            self.byte(mode | reg | base.low());
        }
        match (mode, small) {
            (0x00, _) => {}
            (_, Ok(small)) => self.byte(small as u8),
            (_, Err(_)) => self.dword(sum.displacement as u32),
        }
    }

    /// `to = from` rotated right by `bits`, without touching flags (BMI2).
    pub(super) fn rotate_right(&mut self, to: Reg, from: Reg, bits: u8) {
        let rex = !(to.high() << 7 | from.high() << 5) & 0xe0;
        self.raw(&[0xc4, rex | 3, 0x7b, 0xf0, 0xc0 | to.low() << 3 | from.low(), bits]);
    }

    /// `to = from >> count`, arithmetically, without touching flags (BMI2).
    pub(super) fn shift_right_signed(&mut self, to: Reg, from: Reg, count: Reg) {
        let rex = !(to.high() << 7 | from.high() << 5) & 0xe0;
        self.raw(&[0xc4, rex | 2, (!count.0 & 15) << 3 | 2, 0xf7]);
        self.byte(0xc0 | to.low() << 3 | from.low());
    }

    /// `to = from`'s bits that `mask` selects, packed, without touching flags (BMI2).
    pub(super) fn extract_bits(&mut self, to: Reg, from: Reg, mask: Reg) {
        let rex = !(to.high() << 7 | mask.high() << 5) & 0xe0;
        self.raw(&[0xc4, rex | 2, (!from.0 & 15) << 3 | 2, 0xf5]);
        self.byte(0xc0 | to.low() << 3 | mask.low());
    }

    /// `to = table[index]`: 8 bytes at `[r15 + n + index*8]`.
    pub(super) fn load_indexed(&mut self, to: Reg, table: i32, index: Reg) {
        self.prefixes(Width::Qword, to.high() << 2 | index.high() << 1 | Reg::FRAME.high());
        self.raw(&[0x8b, 0x84 | to.low() << 3, 0xc0 | index.low() << 3 | Reg::FRAME.low()]);
        self.dword(table as u32);
    }

    /// `jmp` to a place not known yet.
    pub(super) fn jump(&mut self) -> OpenJump {
        self.byte(0xe9);
        self.open_here()
    }

    /// `jcc` to a place not known yet; `condition` as the opcode's low four bits have it.
    pub(super) fn jump_if(&mut self, condition: u8) -> OpenJump {
        self.raw(&[0x0f, 0x80 | condition]);
        self.open_here()
    }

    /// `jrcxz` over the next `bytes` bytes.
    pub(super) fn skip_if_rcx_is_zero(&mut self, bytes: u8) {
        self.raw(&[0xe3, bytes]);
    }

    fn open_here(&mut self) -> OpenJump {
        let site = self.here();
        self.dword(0);
        self.open += 1;
        OpenJump { site }
    }

    /// Lets `jump`, which this assembler emitted, go to cache offset `target`.
    pub(super) fn close(&mut self, jump: OpenJump, target: u32) {
        let at = jump.site.wrapping_sub(self.origin) as usize;
        let relative = target.wrapping_sub(jump.site.wrapping_add(4));
        self.bytes[at..at + 4].copy_from_slice(&relative.to_le_bytes());
        self.open -= 1;
    }

    /// Operand-size and REX prefixes; `extension` has the bits R, X and B.
    fn prefixes(&mut self, width: Width, extension: u8) {
        let wide = match width {
            Width::Word => {
                self.byte(0x66);
                0
            }
            Width::Dword => 0,
            Width::Qword => 8,
        };
        if extension | wide != 0 {
            self.byte(0x40 | wide | extension);
        }
    }

    /// One opcode byte with a register (or opcode extension) and a place.
    fn form(&mut self, width: Width, opcode: u8, reg: Reg, place: Place) {
        let field = reg.low() << 3;
        let (gs, index, base) = match place {
            Place::Stack(_) => (true, 0, Reg::STACK),
            Place::Window(index) => (false, index.high() << 1, Reg::WINDOW),
            Place::Frame(_) => (false, 0, Reg::FRAME),
        };
        if gs {
            self.raw(&[0x65, 0x67]);
        }
        self.prefixes(width, reg.high() << 2 | index | base.high());
        self.byte(opcode);
        match place {
            Place::Stack(at) => self.raw(&[0x44 | field, 0x24, at as u8]),
            Place::Window(index) => self.raw(&[0x04 | field, index.low() << 3 | base.low()]),
            Place::Frame(at) => match i8::try_from(at) {
                Ok(small) => self.raw(&[0x40 | field | base.low(), small as u8]),
                Err(_) => {
                    self.byte(0x80 | field | base.low());
                    self.dword(at as u32);
                }
            },
        }
    }
}
