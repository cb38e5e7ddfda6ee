//! The translator against everything that can be an instruction.
//!
//! Nothing is run here: each unit is read back. That it is confined is asserted by `translate` itself in
//! debug builds; these tests say so again, so that they hold in any build.

use super::classify::{Way, classify};
use super::confinement::check;
use super::operands::host_form;
use super::plan::decoder;
use super::{Assumptions, NeedsMore, Request, Route, Unit, runtime, translate};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

const FLAT: Assumptions = Assumptions { user: true, flat: true, step: false };
const SEGMENTED: Assumptions = Assumptions { user: true, flat: false, step: false };
const EIP: u32 = 0x0804_8100;

fn translate_at(
    eip: u32,
    bytes: &[u8],
    assumptions: Assumptions,
    route: Route,
) -> Result<Unit, NeedsMore> {
    translate(&Request {
        eip,
        bytes,
        straddles: false,
        assumptions,
        hot: 0x1000,
        cold: 0x2000,
        known: &|_| None,
        learned: &|_| route,
        watch: None,
    })
}

/// A small generator of test inputs (xorshift64), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }
}

/// Every opcode of the four maps, with prefixes, all ModRM shapes, and random rest.
fn every_opcode(mut each: impl FnMut(&[u8; 16], &mut Random)) {
    const PREFIXES: [&[u8]; 14] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0x67],
        &[0x64],
        &[0x2e],
        &[0xf0],
        &[0x66, 0xf2],
        &[0x66, 0xf3],
        &[0x66, 0x67],
        &[0x65, 0x66],
        &[0xf0, 0x66],
        &[0xf2, 0xf0],
    ];
    const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut random = Random(0x1234_5678_9abc_def1);
    for prefix in PREFIXES {
        for map in MAPS {
            for opcode in 0..=255 {
                for shape in 0..32 {
                    let mut bytes = [0; 16];
                    bytes.iter_mut().for_each(|byte| *byte = random.byte());
                    let mode_and_reg = (shape << 3) as u8;
                    let rm = random.byte() & 7;
                    let head = [prefix, map, &[opcode, mode_and_reg | rm]].concat();
                    bytes[..head.len()].copy_from_slice(&head);
                    each(&bytes, &mut random);
                }
            }
        }
    }
}

#[test]
fn every_opcode_by_every_route_is_confined() {
    const ROUTES: [Route; 4] = [Route::Window, Route::Picked, Route::Bounced, Route::Emulated];
    every_opcode(|bytes, random| {
        let assumptions = random.of(&[FLAT, FLAT, SEGMENTED]);
        let route = random.of(&ROUTES);
        let unit = translate_at(EIP, bytes, assumptions, route).unwrap();
        for code in [&unit.hot, &unit.cold] {
            if let Err(reason) = check(code) {
                panic!("{bytes:02x?} {assumptions:?} {route:?}: {reason}");
            }
        }
    });
}

/// The operand of the host's that stands for the guest's.
fn same_register(guest: Register, host: Register) -> bool {
    match guest {
        Register::ESP => host == Register::R12D,
        Register::SP => host == Register::R12W,
        Register::AH | Register::CH | Register::DH | Register::BH => {
            host == guest || host == Register::R13L
        }
        _ => host == guest,
    }
}

fn same_instruction(guest: &Instruction, host: &Instruction) -> bool {
    guest.mnemonic() == host.mnemonic()
        && guest.op_count() == host.op_count()
        && guest.has_lock_prefix() == host.has_lock_prefix()
        && guest.memory_size() == host.memory_size()
        && (0..guest.op_count()).all(|operand| match guest.op_kind(operand) {
            OpKind::Register => {
                same_register(guest.op_register(operand), host.op_register(operand))
            }
            OpKind::Memory => host.op_kind(operand) == OpKind::Memory,
            kind => {
                kind == host.op_kind(operand) && guest.immediate(operand) == host.immediate(operand)
            }
        })
}

fn host_code(bytes: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).into_iter().collect()
}

#[test]
fn a_native_instruction_is_the_same_in_the_host() {
    every_opcode(|bytes, random| {
        let mut decoder = decoder(bytes, EIP);
        let guest = decoder.decode();
        if decoder.last_error() != DecoderError::None || classify(guest.code()).way != Way::Native {
            return;
        }
        let route = random.of(&[Route::Window, Route::Picked, Route::Bounced]);
        let unit = translate_at(EIP, bytes, FLAT, route).unwrap();
        let guest = host_form(&guest);
        let host = host_code(&unit.hot);
        assert!(
            host.iter().any(|host| same_instruction(&guest, host)),
            "{guest:?} {bytes:02x?} became {host:?}"
        );
    });
}

#[test]
fn the_runtime_begins_with_the_way_out_for_unknown_targets() {
    let runtime = runtime();
    assert!(runtime.len().is_multiple_of(64));
    let first = host_code(&runtime[..20]);
    assert_eq!(first[0].op1_register(), Register::R13D);
}
