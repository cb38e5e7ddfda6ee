//! Instructions that Rust saw not long ago.
//!
//! A kernel's entry and exit have a handful of instructions that leave translated code each time. Decoding one takes longer
//! than carrying it out, so the last ones are kept. They came from translated code, whose frames are watched: as long as no code
//! was dropped, they are what they were.

use iced_x86::Instruction;

/// How many are kept: a power of two.
const ENTRIES: usize = 256;

/// Where an instruction was found, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    pub(super) eip: u32,
    /// The linear address.
    pub(super) linear: u32,
    pub(super) frame: u32,
    /// How often code had been dropped.
    pub(super) drops: u64,
}

/// A small table by linear address, in which a newcomer replaces whoever was there.
pub(super) struct DecodedCache {
    entries: Vec<(Found, Instruction)>,
}

impl DecodedCache {
    pub(super) fn new() -> Self {
        // Nothing is found where no instruction fits: at the very end of the addresses, in no frame.
        let nowhere = Found { eip: u32::MAX, linear: u32::MAX, frame: u32::MAX, drops: u64::MAX };
        Self { entries: vec![(nowhere, Instruction::default()); ENTRIES] }
    }

    pub(super) fn get(&self, place: Found) -> Option<Instruction> {
        let (found, instruction) = &self.entries[slot(place.linear)];
        (*found == place).then_some(*instruction)
    }

    pub(super) fn put(&mut self, place: Found, instruction: Instruction) {
        self.entries[slot(place.linear)] = (place, instruction);
    }
}

fn slot(linear: u32) -> usize {
    (linear ^ linear >> 8) as usize % ENTRIES
}
