//! Instances of an instruction form: random bytes around its opcode that decode to it.
//!
//! Bytes are made rather than encoded from operands, so that redundant prefixes, needlessly long
//! addresses and the other encodings no assembler would choose turn up as well.

use crate::random::Random;
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, MandatoryPrefix, Mnemonic, OpCodeInfo,
    OpCodeOperandKind, OpCodeTableKind,
};

/// An instruction and its bytes.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What it was decoded to.
    pub instruction: Instruction,
    /// Its bytes.
    pub bytes: Vec<u8>,
    at: u32,
}

/// Tries until a form counts as impossible.
const TRIES: u32 = 2000;

impl Instance {
    /// An instance of `code` for address `at`; `None` when no random bytes decode to it.
    pub fn of(code: Code, at: u32, random: &mut Random) -> Option<Self> {
        for _ in 0..TRIES {
            let found = Self::decode(&candidate(code.op_code(), random), at);
            if let Some(found) = found.filter(|found| found.instruction.code() == code) {
                return Some(found);
            }
        }
        None
    }

    /// The first instruction in `bytes`; `None` when it isn't one.
    #[must_use]
    pub fn decode(bytes: &[u8], at: u32) -> Option<Self> {
        let mut decoder = Decoder::with_ip(32, bytes, u64::from(at), DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        Some(Self { instruction, bytes: bytes[..instruction.len()].to_vec(), at })
    }

    /// Where its displacement lies among its bytes, if it has one.
    #[must_use]
    pub fn displacement(&self) -> Option<(usize, usize)> {
        let offsets = self.offsets();
        let found = (offsets.displacement_offset(), offsets.displacement_size());
        offsets.has_displacement().then_some(found)
    }

    /// Where its immediate lies among its bytes, if it has one. Branch targets are immediates too.
    #[must_use]
    pub fn immediate(&self) -> Option<(usize, usize)> {
        let offsets = self.offsets();
        let found = (offsets.immediate_offset(), offsets.immediate_size());
        offsets.has_immediate().then_some(found)
    }

    /// Puts the low bytes of `value` in place of `size` bytes at `offset`.
    pub fn patch(&mut self, (offset, size): (usize, usize), value: u32) {
        let size = size.min(4);
        self.bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
        if let Some(patched) = Self::decode(&self.bytes, self.at) {
            self.instruction = patched.instruction;
        }
    }

    fn offsets(&self) -> iced_x86::ConstantOffsets {
        let mut decoder =
            Decoder::with_ip(32, &self.bytes, u64::from(self.at), DecoderOptions::NONE);
        let instruction = decoder.decode();
        decoder.get_constant_offsets(&instruction)
    }
}

/// Bytes that may well be an instance.
fn candidate(info: &OpCodeInfo, random: &mut Random) -> Vec<u8> {
    let mut bytes = prefixes(info, random);
    bytes.extend_from_slice(match info.table() {
        OpCodeTableKind::T0F => &[0x0f],
        OpCodeTableKind::T0F38 => &[0x0f, 0x38],
        OpCodeTableKind::T0F3A => &[0x0f, 0x3a],
        _ => &[],
    });
    let mut opcode = info.op_code();
    if info.op_kinds().iter().any(|&kind| is_in_opcode(kind)) {
        opcode += random.below(8);
    }
    if info.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    bytes.push(opcode as u8);
    let mut tail: [u8; 12] = std::array::from_fn(|_| random.byte());
    let set = |modrm: u8, shift: u32, width: u8, value: i32| match u8::try_from(value) {
        Ok(value) => modrm & !(width << shift) | value << shift,
        Err(_) => modrm,
    };
    tail[0] = set(tail[0], 3, 7, info.group_index());
    tail[0] = set(tail[0], 0, 7, info.rm_group_index());
    bytes.extend(tail);
    bytes
}

/// Kinds whose register is in the low three bits of the opcode.
fn is_in_opcode(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::r8_opcode | K::r16_opcode | K::r32_opcode | K::sti_opcode)
}

/// The prefixes that the form needs, some that it may have, and now and then some that do nothing,
/// in any order.
fn prefixes(info: &OpCodeInfo, random: &mut Random) -> Vec<u8> {
    let mut prefixes = Vec::new();
    let mandatory = info.mandatory_prefix();
    match mandatory {
        MandatoryPrefix::P66 => prefixes.push(0x66),
        MandatoryPrefix::PF3 => prefixes.push(0xf3),
        MandatoryPrefix::PF2 => prefixes.push(0xf2),
        _ => {}
    }
    if info.operand_size() == 16 {
        prefixes.push(0x66);
    }
    match info.address_size() {
        16 => prefixes.push(0x67),
        0 if random.one_in(6) => prefixes.push(0x67),
        _ => {}
    }
    if random.one_in(8) {
        prefixes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]));
    }
    if info.can_use_lock_prefix() && random.one_in(4) {
        prefixes.push(0xf0);
    }
    let repeats = info.can_use_rep_prefix() || info.can_use_repne_prefix();
    // AMD's processors take a rep prefix of `loope` for another condition.
    let repeats_mean_something = matches!(info.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne);
    let free = mandatory == MandatoryPrefix::None && !repeats_mean_something;
    if free && random.one_in(if repeats { 2 } else { 32 }) {
        prefixes.push(random.pick(&[0xf2, 0xf3]));
    }
    for at in (1..prefixes.len()).rev() {
        prefixes.swap(at, random.below(at as u32 + 1) as usize);
    }
    prefixes
}
