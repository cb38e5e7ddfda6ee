//! Instructions, nearly: an opcode of any kind, and an operand that has a chance.

use arbitrary::{Result, Unstructured};
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use std::fmt;

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/// Segments, tables, returns, strings, flags: what Rust does itself.
const RARE: [&[u8]; 25] = [
    &[0x8e],
    &[0x8c],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0xcf],
    &[0xcb],
    &[0xca],
    &[0x9a],
    &[0xea],
    &[0xff],
    &[0xa4],
    &[0xab],
    &[0x9c],
    &[0x9d],
    &[0xc8],
    &[0x60],
    &[0x61],
    &[0x0f, 0xae],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0xb2],
    &[0xc4],
    &[0x62],
    &[0x17],
    &[0x07],
];

/// Bytes that are meant to be run; shown as the instructions they are if they are run from the first on.
#[derive(Clone)]
pub(crate) struct Code(pub(crate) Vec<u8>);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut formatter = FastFormatter::new();
        let mut lines = f.debug_list();
        for instruction in &mut Decoder::new(32, &self.0, DecoderOptions::NONE) {
            let at = instruction.ip() as usize;
            let mut line: String = self.0[at..at + instruction.len()]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            line.push(' ');
            formatter.format(&instruction, &mut line);
            lines.entry(&format_args!("{line}"));
        }
        lines.finish()
    }
}

/// A number that may mean something where the code is to run.
pub(crate) type Word = fn(&mut Unstructured<'_>) -> Result<u32>;

/// From one to 24 pieces.
pub(crate) fn code(u: &mut Unstructured<'_>, word: Word) -> Result<Code> {
    let mut code = Vec::new();
    for _ in 0..u.int_in_range(1..=24)? {
        piece(u, word, &mut code)?;
    }
    Ok(Code(code))
}

/// One instruction with its prefixes; or bytes as they come.
fn piece(u: &mut Unstructured<'_>, word: Word, code: &mut Vec<u8>) -> Result<()> {
    let kind = u.int_in_range(0..=7)?;
    if kind == 0 {
        return bytes(u, code);
    }
    for _ in 0..u.int_in_range(0..=2)? {
        code.push(*u.choose(&PREFIXES)?);
    }
    match kind {
        1 | 2 => code.push(u.arbitrary()?),
        3 | 4 => code.extend([0x0f, u.arbitrary()?]),
        5 => code.extend([0x0f, 0x38, u.arbitrary()?]),
        6 => code.push(0xd8 | u.arbitrary::<u8>()? & 7),
        _ => code.extend_from_slice(u.choose::<&[u8]>(&RARE)?),
    }
    code.push(u.arbitrary()?);
    if u.arbitrary()? {
        code.extend(word(u)?.to_le_bytes());
    }
    Ok(())
}

/// From one to 64 bytes.
fn bytes(u: &mut Unstructured<'_>, into: &mut Vec<u8>) -> Result<()> {
    for _ in 0..u.int_in_range(1..=64)? {
        into.push(u.arbitrary()?);
    }
    Ok(())
}
