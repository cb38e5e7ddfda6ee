//! The translator against everything that can be an instruction.
//!
//! Nothing is run here: each unit is read back. That it is confined is asserted by `translate`
//! itself in debug builds; these tests say so again, so that they hold in any build.

use super::classify::{Way, classify};
use super::confinement::check;
use super::operands::host_form;
use super::plan::decoder;
use super::{Assumptions, NeedsMore, Pace, Request, Route, Unit, runtime, translate};
use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
    Register, UsedMemory,
};

const FLAT: Assumptions = Assumptions { user: true, flat: true, pace: Pace::Free };
const SEGMENTED: Assumptions = Assumptions { user: true, flat: false, pace: Pace::Free };
const EIP: u32 = 0x0804_8100;

fn translate_at(
    eip: u32,
    bytes: &[u8],
    assumptions: Assumptions,
    route: Route,
) -> Result<Unit, NeedsMore> {
    translate_learned(eip, bytes, assumptions, &|_| route)
}

fn translate_learned(
    eip: u32,
    bytes: &[u8],
    assumptions: Assumptions,
    learned: &dyn Fn(u32) -> Route,
) -> Result<Unit, NeedsMore> {
    translate(&Request {
        eip,
        bytes,
        straddles: false,
        longest: 256,
        assumptions,
        hot: 0x1000,
        cold: 0x2000,
        known: &|_| None,
        nearby: &|at, into| super::golden::copy_code(bytes, eip, at, into),
        learned,
        breakpoints: &[],
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
    const ROUTES: [Route; 3] = [Route::Window, Route::Picked, Route::Bounced];
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

#[test]
fn an_instruction_alone_touches_no_memory_but_the_frame() {
    let alone = [FLAT, SEGMENTED].map(|flat| Assumptions { pace: Pace::Alone, ..flat });
    let mut factory = InstructionInfoFactory::new();
    every_opcode(|bytes, random| {
        let unit = translate_at(EIP, bytes, random.of(&alone), Route::Window).unwrap();
        for host in host_code(&unit.hot).into_iter().chain(host_code(&unit.cold)) {
            let masked = matches!(host.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu);
            let inside =
                |memory: &UsedMemory| memory.base() == Register::R15 || masked && is_edi(memory);
            let all = factory.info(&host).used_memory().iter().all(inside);
            assert!(all, "{bytes:02x?}: {host}");
        }
    });
}

/// Where a masked store goes: it has been made to point into the frame.
fn is_edi(memory: &UsedMemory) -> bool {
    memory.base() == Register::RDI
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
        if super::operands::is_prefetch(&guest) {
            return; // Outside the window it becomes nothing.
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
fn a_conditional_branch_keeps_its_condition() {
    let short = (0x70..=0x7f).map(|opcode| vec![opcode, 0x10]);
    let long = (0x80..=0x8f).map(|opcode| vec![0x0f, opcode, 0x10, 0, 0, 0]);
    let counted = (0xe0..=0xe3).map(|opcode| vec![opcode, 0x10]);
    for bytes in short.chain(long).chain(counted) {
        let guest = decoder(&bytes, EIP).decode();
        let unit = translate_at(EIP, &bytes, FLAT, Route::Window).unwrap();
        let host = host_code(&unit.hot)[0];
        assert_eq!(host.mnemonic(), guest.mnemonic());
        assert_eq!(chains(&unit)[0].1, guest.near_branch32());
    }
}

/// The exits of a unit that can be replaced by a jump: its site, and the target.
fn chains(unit: &Unit) -> Vec<(u32, u32)> {
    const CHAIN_TAIL: u64 = 32;
    let cold: Vec<_> =
        Decoder::with_ip(64, &unit.cold, 0x2000, DecoderOptions::NONE).into_iter().collect();
    let exits = cold.windows(3).filter(|exit| exit[2].near_branch_target() == CHAIN_TAIL);
    exits.map(|exit| (exit[0].immediate32(), exit[1].immediate32())).collect()
}

/// The guest's flags live in the host's: nothing but the guest's own instruction may touch them.
#[test]
fn only_the_guests_own_instruction_touches_flags() {
    const ROUTES: [Route; 3] = [Route::Window, Route::Picked, Route::Bounced];
    every_opcode(|bytes, random| {
        let mut decoder = decoder(bytes, EIP);
        let guest = decoder.decode();
        if decoder.last_error() != DecoderError::None {
            return;
        }
        let assumptions = random.of(&[FLAT, SEGMENTED]);
        let unit = translate_at(EIP, &bytes[..guest.len()], assumptions, random.of(&ROUTES));
        let code = unit.unwrap().hot;
        let touching: Vec<_> =
            host_code(&code).into_iter().filter(|host| host.rflags_modified() != 0).collect();
        let own = usize::from(guest.rflags_modified() != 0);
        assert!(touching.len() <= own, "{guest:?} {bytes:02x?}: {touching:?}");
        for host in touching {
            assert_eq!(host.mnemonic(), guest.mnemonic(), "{guest:?} {bytes:02x?}");
        }
    });
}

/// Every jump and every point is at the start of a host instruction, and every chain is a jump
/// to the exit that asks for its patching.
#[test]
fn tables_and_jumps_agree_with_the_code() {
    let starts = |code: &[u8], origin: u64| -> Vec<u64> {
        let decoder = Decoder::with_ip(64, code, origin, DecoderOptions::NONE);
        decoder.into_iter().map(|host| host.ip()).collect()
    };
    let tails = starts(&runtime(), 0);
    let mut random = Random(0xfeed_5eed_0123_4567);
    for _ in 0..4000 {
        let mut bytes: Vec<u8> = (0..300).map(|_| short_branches(&mut random)).collect();
        for call in [0, 40, 80, 120] {
            bytes[call..call + 5].copy_from_slice(&[0xe8, random.byte() % 100, 0, 0, 0]);
        }
        let unit = translate_at(EIP, &bytes, random.of(&[FLAT, SEGMENTED]), Route::Window).unwrap();
        let mut places = starts(&unit.hot, 0x1000);
        assert!(unit.points.is_sorted_by(|a, b| a.host < b.host));
        assert!(unit.points.iter().all(|point| places.contains(&u64::from(point.host))));
        places.extend(starts(&unit.cold, 0x2000));
        places.extend(&tails);
        let hot = Decoder::with_ip(64, &unit.hot, 0x1000, DecoderOptions::NONE).into_iter();
        let cold = Decoder::with_ip(64, &unit.cold, 0x2000, DecoderOptions::NONE).into_iter();
        for host in hot.chain(cold).filter(|host| host.near_branch_target() != 0) {
            assert!(places.contains(&host.near_branch_target()), "{host:?} in {unit:?}");
        }
        for (site, target) in chains(&unit).into_iter().filter(|(site, _)| *site != 0) {
            let at = (site - 0x1000) as usize;
            let relative = u32::from_le_bytes(unit.hot[at..at + 4].try_into().unwrap());
            let stub = site.wrapping_add(4).wrapping_add(relative) - 0x2000;
            let stub = host_code(&unit.cold[stub as usize..]);
            assert_eq!(stub[0].immediate32(), site);
            assert_eq!(stub[1].immediate32(), target);
        }
    }
}

/// Whoever stops in a leaf shows its eip, and esp where the call has left it.
#[test]
fn points_in_a_leaf_count_from_before_the_call() {
    let bytes = [
        0x50, // push eax
        0xe8, 0x04, 0x00, 0x00, 0x00, // call +4
        0x01, 0xc7, // add edi, eax
        0x90, 0xc3, // nop; ret
        0x83, 0xf8, 0x01, // cmp eax, 1
        0x74, 0x03, // je +3
        0x52, 0x5a, 0xc3, // push edx; pop edx; ret
        0x8b, 0x44, 0x24, 0x04, // mov eax, [esp+4]
        0xc2, 0x04, 0x00, // ret 4
    ];
    let unit = translate_at(EIP, &bytes, FLAT, Route::Window).unwrap();
    let seen: Vec<_> = unit.points.iter().map(|point| (point.eip - EIP, point.moved)).collect();
    let [row, leaf] = [[(0, 0), (1, -4)], [(10, -8), (13, -8)]];
    let rest = [(18, -8), (6, 0), (8, 0), (9, 0), (15, -8)];
    assert_eq!(seen, [&row[..], &leaf, &rest].concat());
    let inlined: Vec<_> = unit.points.iter().filter(|point| point.inlined).collect();
    assert!(inlined.len() == 4 && inlined.iter().all(|point| !point.entry), "{inlined:?}");
    let elsewhere: Vec<_> = unit.elsewhere.iter().map(|&(eip, len)| (eip - EIP, len)).collect();
    assert_eq!(elsewhere, [(10, 3), (13, 2), (18, 4), (22, 3)]);
}

/// Whether a function takes the place of a call in front of it.
fn is_leaf(function: &[u8], learned: &dyn Fn(u32) -> Route) -> bool {
    let bytes = [&[0xe8, 1, 0, 0, 0, 0xc3][..], function].concat();
    !translate_learned(EIP, &bytes, FLAT, learned).unwrap().elsewhere.is_empty()
}

#[test]
fn short_functions_that_change_registers_only_are_leaves() {
    let functions: [&[u8]; 5] = [
        &[0xc3],                                    // ret
        &[0xc2, 0x20, 0x00],                        // ret 32
        &[0x8b, 0x04, 0x24, 0xc3],                  // mov eax, [esp]
        &[0x74, 0x01, 0xc3, 0x0f, 0x0b],            // je +1; ret; ud2
        &[[0x40; 11].as_slice(), &[0xc3]].concat(), // eleven times inc eax
    ];
    for function in functions {
        assert!(is_leaf(function, &|_| Route::Window), "{function:02x?}");
    }
}

#[test]
fn what_stores_or_names_esp_or_does_more_is_no_leaf() {
    let functions: [&[u8]; 14] = [
        &[0x89, 0x01, 0xc3],                        // mov [ecx], eax
        &[0xff, 0x01, 0xc3],                        // inc dword [ecx]
        &[0x87, 0x01, 0xc3],                        // xchg [ecx], eax
        &[0x50, 0x58, 0xc3],                        // push eax; pop eax
        &[0x89, 0xe0, 0xc3],                        // mov eax, esp
        &[0x66, 0x89, 0xe0, 0xc3],                  // mov ax, sp
        &[0x83, 0xc4, 0x04, 0xc3],                  // add esp, 4
        &[0x8d, 0x64, 0x24, 0x04, 0xc3],            // lea esp, [esp+4]
        &[0xd9, 0xe8, 0xc3],                        // fld1
        &[0xc2, 0x24, 0x00],                        // ret 36
        &[0x66, 0xc3],                              // ret, of 16 bits
        &[0xeb, 0x00, 0xc3],                        // jmp +0
        &[0x0f, 0xa2, 0xc3],                        // cpuid
        &[[0x40; 12].as_slice(), &[0xc3]].concat(), // one more than there is room for
    ];
    for function in functions {
        assert!(!is_leaf(function, &|_| Route::Window), "{function:02x?}");
    }
}

#[test]
fn what_reaches_memory_another_way_is_no_leaf() {
    let load = [0x8b, 0x01, 0xc3]; // mov eax, [ecx]; ret
    for (route, expected) in
        [(Route::Window, true), (Route::Picked, false), (Route::Bounced, false)]
    {
        let learned = |eip| if eip == EIP + 6 { route } else { Route::Window };
        assert_eq!(is_leaf(&load, &learned), expected, "{route:?}");
    }
}

/// Half-way through any other instruction, its own eip would do that half again.
#[test]
fn only_a_repetition_may_be_left_in_its_middle() {
    let cases: [(&[u8], bool); 6] = [
        (&[0xf3, 0xa4], true),              // rep movsb
        (&[0xf2, 0xae], true),              // repne scasb
        (&[0xa4], false),                   // movsb
        (&[0x50], false),                   // push eax
        (&[0xf3, 0xc3], false),             // rep ret
        (&[0xf3, 0x0f, 0xb8, 0xc1], false), // popcnt eax, ecx
    ];
    for (bytes, expected) in cases {
        let unit = translate_at(EIP, bytes, FLAT, Route::Window).unwrap();
        assert_eq!(unit.points[0].rep, expected, "{bytes:02x?}");
        assert!(unit.points[1..].iter().all(|point| !point.rep), "{bytes:02x?}");
    }
}

/// Bytes of which many are short jumps nearby.
fn short_branches(random: &mut Random) -> u8 {
    match random.byte() {
        0..80 => 0x70 | random.byte() & 0xf,
        80..160 => random.byte() & 0x1f,
        160..200 => 0x40 | random.byte() & 7,
        _ => random.byte(),
    }
}

#[test]
fn the_runtime_begins_with_the_way_out_for_unknown_targets() {
    let runtime = runtime();
    assert!(runtime.len().is_multiple_of(64));
    let first = host_code(&runtime[..20]);
    assert_eq!(first[0].op1_register(), Register::R13D);
}
