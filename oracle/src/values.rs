//! Values that are more interesting than random bits: edges of integers, odd numbers of floating
//! point, and FPU states full of them.

use crate::layout::PAGE;
use crate::random::Random;
use crate::state::{FX_BYTES, FxImage};
use crate::world::CODE;

/// A 32-bit value, likely one where something happens.
pub fn any_word(random: &mut Random) -> u32 {
    match random.below(8) {
        0 => random.pick(&[0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff]),
        1 => random.pick(&[0x8000_0000, u32::MAX, u32::MAX - 1, 0xffff_8000, 0xffff_ff80]),
        2 => random.below(64),
        3 => random.below(64).wrapping_neg(),
        4 => 1 << random.below(32),
        5 => CODE + random.below(2 * PAGE),
        _ => random.word(),
    }
}

/// Numbers that floating point cares about, in 32 bits.
pub fn any_float(random: &mut Random) -> u32 {
    match random.below(6) {
        0 => random.pick(&[0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f80_0001]),
        1 => random.below(0x0080_0000),
        2 => (random.below(2000) as f32 - 1000.0).to_bits(),
        3 => (random.word() & 0x807f_ffff) | (127 - 8 + random.below(40)) << 23,
        _ => random.word(),
    }
}

/// x87 and SSE registers, with odd values, control words and pending exceptions.
pub fn any_fx(random: &mut Random) -> FxImage {
    let mut image = FxImage::default();
    let control = if random.one_in(2) { 0x037f } else { random.word() as u16 & 0x0f3f | 0x40 };
    let masked = if random.one_in(6) { control } else { control | 0x3f };
    image.0[0..2].copy_from_slice(&masked.to_le_bytes());
    let status = if random.one_in(2) { 0 } else { random.word() as u16 & 0x7f7f };
    let status = if random.one_in(6) { status } else { status & !0x3f };
    // ES and B say whether an exception is pending: what else an image says there, a processor
    // may or may not correct.
    let pending = status & !masked & 0x3f != 0;
    let status = if pending { status | 0x8080 } else { status & 0x7f7f };
    image.0[FxImage::STATUS..FxImage::STATUS + 2].copy_from_slice(&status.to_le_bytes());
    let tags = random.byte();
    image.0[FxImage::TAGS] = random.pick(&[0, 0xff, 0xff, tags]);
    let mxcsr = random.word() as u16;
    let mxcsr = if random.one_in(8) { mxcsr } else { mxcsr | 0x1f80 };
    let mxcsr = if random.one_in(2) { 0x1f80 } else { mxcsr };
    image.0[FxImage::MXCSR..FxImage::MXCSR + 2].copy_from_slice(&mxcsr.to_le_bytes());
    for register in 0..8 {
        let at = FxImage::ST + 16 * register;
        image.0[at..at + 10].copy_from_slice(&any_extended(random));
    }
    for at in (FxImage::XMM..FX_BYTES).step_by(4) {
        image.0[at..at + 4].copy_from_slice(&any_float(random).to_le_bytes());
    }
    if random.one_in(3) {
        for at in (FxImage::XMM..FX_BYTES).step_by(8) {
            let double = f64::from(f32::from_bits(any_float(random)));
            image.0[at..at + 8].copy_from_slice(&double.to_le_bytes());
        }
    }
    image
}

/// An 80-bit number, sometimes of a kind that the processor calls unsupported.
pub fn any_extended(random: &mut Random) -> [u8; 10] {
    let (mut mantissa, mut exponent) = (random.bits(), random.word() as u16);
    match random.below(8) {
        0 => (mantissa, exponent) = (0, exponent & 0x8000),
        1 => (mantissa, exponent) = (1 << 63, exponent | 0x7fff),
        2 => exponent |= 0x7fff,
        3 => exponent &= 0x8000,
        4 => {}
        _ => {
            mantissa |= 1 << 63;
            exponent = exponent & 0x8000 | (0x3fff - 20 + random.below(60) as u16);
        }
    }
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&exponent.to_le_bytes());
    bytes
}
