//! The proof-reader: emitted code, read back with a foreign eye and judged instruction by
//! instruction.
//!
//! That a guest can't reach outside its window rests on a few shapes of operands and a few
//! registers that are never written. This file knows nothing of how code is emitted; it decodes
//! the bytes and checks just that. Debug builds ask it about every unit, tests about every
//! input they can think of.

use super::Unit;
use crate::frame::Frame;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

/// Stops the program if `unit` could let its guest out.
///
/// # Panics
/// If so: it is a bug in the translator.
pub(super) fn assert_confined(unit: &Unit) {
    for code in [&unit.hot, &unit.cold] {
        if let Err(reason) = check(code) {
            panic!("{reason}\nin {unit:?}");
        }
    }
}

/// Judges a piece of host code.
///
/// # Errors
/// The first instruction that breaks a rule, and which one.
pub(super) fn check(code: &[u8]) -> Result<(), String> {
    let mut factory = InstructionInfoFactory::new();
    let mut before = Instruction::default();
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut strings = Strings::default();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let verdict = decodes(&instruction)
            .and_then(|()| strings.follow(&instruction))
            .and_then(|()| operands_stay_inside(&instruction))
            .and_then(|()| goes_nowhere_else(&instruction, &before))
            .and_then(|()| writes_no_reserved_register(&instruction, &mut factory));
        if let Err(rule) = verdict {
            return Err(format!("{rule}: {:?} at {:#x}", instruction, instruction.ip()));
        }
        before = instruction;
    }
    strings.at_end()
}

type Verdict = Result<(), &'static str>;

fn decodes(instruction: &Instruction) -> Verdict {
    if instruction.is_invalid() { Err("not an instruction") } else { Ok(()) }
}

/// Between `lea rdi, [r14+rdi]` and `mov edi, edi` edi is a host address: only one string
/// instruction, which uses it, may stand there. The same holds for a masked store, and nothing that
/// repeats, between `lea rdi, [r15+BOUNCE]` and `mov edi, r13d`.
#[derive(Default)]
struct Strings {
    /// esi and edi hold host addresses.
    rebased: [bool; 2],
    /// edi holds the bounce buffer's.
    in_buffer: bool,
    /// The string instruction has been met.
    done: bool,
}

impl Strings {
    fn follow(&mut self, instruction: &Instruction) -> Verdict {
        let pointers = [Register::RSI, Register::RDI];
        let halves = [Register::ESI, Register::EDI];
        if let Some(at) = pointers.iter().position(|&pointer| is_rebase(instruction, pointer)) {
            self.rebased[at] = true;
            self.in_buffer |= is_buffer(instruction);
            return if self.done { Err("rebased behind the string instruction") } else { Ok(()) };
        }
        if is_string(instruction) {
            let names = |kinds: &[OpKind]| instruction.op_kinds().any(|kind| kinds.contains(&kind));
            let used = [
                names(&[OpKind::MemorySegRSI]),
                names(&[OpKind::MemoryESRDI, OpKind::MemorySegRDI]),
            ];
            let once = !std::mem::replace(&mut self.done, true);
            let fits = !self.in_buffer || is_masked_store(instruction);
            return if once && fits && used == self.rebased {
                Ok(())
            } else {
                Err("a pointer isn't rebased")
            };
        }
        if !self.done && self.rebased == [false; 2] {
            return Ok(());
        }
        let cut = |half: Register| {
            instruction.code() == Code::Mov_rm32_r32
                && instruction.op0_register() == half
                && (instruction.op1_register() == half
                    || half == Register::EDI && instruction.op1_register() == Register::R13D)
        };
        let Some(at) = halves.iter().position(|&half| cut(half)) else {
            return Err("a pointer is a host address here");
        };
        let was = std::mem::replace(&mut self.rebased[at], false);
        self.done = self.rebased != [false; 2];
        self.in_buffer &= self.done;
        if was { Ok(()) } else { Err("cut without need") }
    }

    fn at_end(&self) -> Result<(), String> {
        if self.rebased == [false; 2] { Ok(()) } else { Err("a pointer is never cut".into()) }
    }
}

/// `lea pointer, [r14+pointer]`, or `lea rdi, [r15+BOUNCE]`
fn is_rebase(instruction: &Instruction, pointer: Register) -> bool {
    instruction.code() == Code::Lea_r64_m
        && instruction.op0_register() == pointer
        && (is_sum_of(instruction, Register::R14, pointer)
            || pointer == Register::RDI && is_buffer(instruction))
}

/// `[r15+BOUNCE]`
fn is_buffer(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::R15
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == crate::frame::offset::BOUNCE as u64
}

fn is_masked_store(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu)
}

fn is_string(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI)
    })
}

/// `[base+index]`: no displacement, no factor, no segment.
fn is_sum_of(instruction: &Instruction, base: Register, index: Register) -> bool {
    instruction.memory_base() == base
        && instruction.memory_index() == index
        && instruction.memory_index_scale() == 1
        && instruction.memory_displacement64() == 0
        && instruction.segment_prefix() == Register::None
}

/// Every operand in memory has one of the shapes that can't leave the window or the frame.
fn operands_stay_inside(instruction: &Instruction) -> Verdict {
    if matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return Ok(());
    }
    for kind in instruction.op_kinds() {
        let inside = match kind {
            OpKind::Memory => memory_stays_inside(instruction),
            OpKind::MemorySegEDI => instruction.segment_prefix() == Register::GS,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI => {
                instruction.segment_prefix() == Register::None
            }
            OpKind::MemorySegSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegESI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI => false,
            _ => true,
        };
        if !inside {
            return Err("an operand can leave the window");
        }
    }
    Ok(())
}

fn memory_stays_inside(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let bounded = bit_number_is_bounded(instruction);
    if instruction.segment_prefix() == Register::GS {
        let narrow = match (base, index) {
            (Register::None, Register::None) => instruction.memory_displ_size() == 4,
            (Register::None, index) => index.is_gpr32(),
            // xlat's index is al.
            (base, _) => base.is_gpr32(),
        };
        return narrow && bounded && base != Register::R15D && base != Register::R14D;
    }
    match base {
        Register::R15 if index == Register::R10 => is_pick(instruction),
        Register::R15 => {
            let first = instruction.memory_displacement64();
            let size = instruction.memory_size().size() as u64;
            let fits = first.checked_add(size).is_some_and(|end| end <= size_of::<Frame>() as u64);
            index == Register::None && fits && instruction.segment_prefix() == Register::None
        }
        Register::R14 => {
            let plain = index == Register::R9 || guest_register(index);
            plain && bounded && is_sum_of(instruction, base, index)
        }
        Register::R10 => bounded && is_sum_of(instruction, base, Register::R9),
        Register::R11 => is_table_look_up(instruction),
        _ => false,
    }
}

/// `mov r10, [r15+r10*8+PICK]`
fn is_pick(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r64_rm64
        && instruction.op0_register() == Register::R10
        && instruction.memory_index_scale() == 8
        && instruction.memory_displacement64() == crate::frame::offset::PICK as u64
        && instruction.segment_prefix() == Register::None
}

/// `mov r9d, [r11+r13*4]`
fn is_table_look_up(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r32_rm32
        && instruction.op0_register() == Register::R9D
        && instruction.memory_index() == Register::R13
        && instruction.memory_index_scale() == 4
        && instruction.memory_displacement64() == 0
        && instruction.segment_prefix() == Register::None
}

/// A bit string's number is in r13, cut before, or in r9, which Rust fills; never in a guest's
/// register.
fn bit_number_is_bounded(instruction: &Instruction) -> bool {
    let bit = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    let number = instruction.op1_register();
    !bit || number == Register::None || number.full_register() == Register::R13
}

/// A 64-bit register that holds guest state.
fn guest_register(register: Register) -> bool {
    use Register as R;
    matches!(register, R::RAX | R::RCX | R::RDX | R::RBX | R::R12 | R::RBP | R::RSI | R::RDI)
}

/// Control leaves by direct jumps, by a jump to what was just looked up, and not at all
/// through the stack or the kernel.
fn goes_nowhere_else(instruction: &Instruction, before: &Instruction) -> Verdict {
    let allowed = match instruction.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
            !instruction.is_stack_instruction() && !instruction.is_privileged()
        }
        FlowControl::IndirectBranch => {
            let computed = before.code() == Code::Lea_r64_m
                && before.op0_register() == Register::R9
                && is_sum_of(before, Register::R9, Register::R8);
            instruction.code() == Code::Jmp_rm64
                && instruction.op0_register() == Register::R9
                && computed
        }
        _ => false,
    };
    if allowed { Ok(()) } else { Err("control can get away") }
}

/// The pillars stay, and guest registers keep their upper halves zero.
fn writes_no_reserved_register(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
) -> Verdict {
    use Register as R;
    let info = factory.info(instruction);
    for used in info.used_registers() {
        if matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess) {
            continue;
        }
        let whole = used.register().full_register();
        if matches!(whole, R::R14 | R::R15 | R::R11 | R::R8 | R::RSP) {
            return Err("a reserved register is written");
        }
    }
    let to_guest = (0..instruction.op_count()).any(|operand| {
        guest_register(instruction.op_register(operand))
            && !matches!(info.op_access(operand), OpAccess::Read | OpAccess::None)
    });
    let rebases = [R::RSI, R::RDI].iter().any(|&pointer| is_rebase(instruction, pointer));
    if to_guest && !rebases || is_wide(instruction) && !is_plain_move(instruction) {
        return Err("all 64 bits of a guest register may be written");
    }
    Ok(())
}

/// Works on 64 bits, perhaps of registers that no operand names. (Jumps do, by nature.)
fn is_wide(instruction: &Instruction) -> bool {
    instruction.code().op_code().operand_size() == 64
        && instruction.flow_control() == FlowControl::Next
}

/// Writes its first operand and nothing else.
fn is_plain_move(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Lea_r64_m)
}

#[cfg(test)]
mod tests {
    use super::{Unit, assert_confined, check};

    fn verdict(code: &[u8]) -> String {
        check(code).err().unwrap_or_default()
    }

    #[test]
    fn ways_out_of_the_window_are_found() {
        let rule = "an operand can leave the window";
        for code in [
            &[0x8b, 0x01][..],                        // mov eax, [rcx]
            &[0x67, 0x8b, 0x01],                      // mov eax, [ecx]
            &[0x65, 0x8b, 0x01],                      // mov eax, gs:[rcx]
            &[0x65, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80], // mov eax, gs:[-0x80000000]
            &[0x64, 0x67, 0x8b, 0x01],                // mov eax, fs:[ecx]
            &[0x65, 0x67, 0x8b, 0x05, 0, 0, 0, 0],    // mov eax, gs:[eip]
            &[0x41, 0x8b, 0x44, 0x0e, 0x04],          // mov eax, [r14+rcx+4]
            &[0x41, 0x8b, 0x04, 0x4e],                // mov eax, [r14+rcx*2]
            &[0x43, 0x8b, 0x04, 0x2e],                // mov eax, [r14+r13]
            &[0x41, 0x8b, 0x06],                      // mov eax, [r14]
            &[0x41, 0x8b, 0x04, 0x0a],                // mov eax, [r10+rcx]
            &[0x43, 0x8b, 0x44, 0x0a, 0x04],          // mov eax, [r10+r9+4]
            &[0x41, 0x8b, 0x87, 0, 0, 1, 0],          // mov eax, [r15+0x10000]
            &[0x41, 0x8b, 0x47, 0xfc],                // mov eax, [r15-4]
            &[0x41, 0x8b, 0x04, 0x0f],                // mov eax, [r15+rcx]
            &[0x43, 0x8b, 0x04, 0xab],                // mov eax, [r11+r13*4]
            &[0x43, 0x0f, 0xab, 0x04, 0x0e],          // bts [r14+r9], eax
            &[0x65, 0x67, 0x0f, 0xab, 0x01],          // bts gs:[ecx], eax
            &[0x8b, 0x04, 0x24],                      // mov eax, [rsp]
            &[0xa1, 0, 0, 0, 0, 0, 0, 0, 0],          // mov eax, [0]
            &[0x67, 0x0f, 0xf7, 0xc1],                // maskmovq [edi]
            &[0x67, 0xa4],                            // movsb [edi], [esi]
            &[0x67, 0xaa],                            // stosb [edi]
        ] {
            assert!(verdict(code).starts_with(rule), "{code:02x?}: {:?}", verdict(code));
        }
    }

    #[test]
    fn each_table_is_read_in_one_way() {
        let rule = "an operand can leave the window";
        let pick = crate::frame::offset::PICK as u32;
        let at = |code: &[u8], displacement: u32| [code, &displacement.to_le_bytes()].concat();
        assert_eq!(verdict(&at(&[0x4f, 0x8b, 0x94, 0xd7], pick)), "");
        assert_eq!(verdict(&[0x47, 0x8b, 0x0c, 0xab]), "");
        for code in [
            at(&[0x4f, 0x8b, 0x94, 0xd7], pick + 8), // mov r10, [r15+r10*8+PICK+8]
            at(&[0x4f, 0x8b, 0x94, 0x97], pick),     // mov r10, [r15+r10*4+PICK]
            at(&[0x4f, 0x8b, 0x94, 0xcf], pick),     // mov r10, [r15+r9*8+PICK]
            at(&[0x4f, 0x8b, 0x8c, 0xd7], pick),     // mov r9, [r15+r10*8+PICK]
            at(&[0x47, 0x8b, 0x94, 0xd7], pick),     // mov r10d, [r15+r10*8+PICK]
            at(&[0x4f, 0x89, 0x94, 0xd7], pick),     // mov [r15+r10*8+PICK], r10
            at(&[0x64, 0x4f, 0x8b, 0x94, 0xd7], pick), // mov r10, fs:[r15+r10*8+PICK]
            vec![0x47, 0x8b, 0x4c, 0xab, 4],         // mov r9d, [r11+r13*4+4]
            vec![0x47, 0x8b, 0x0c, 0xeb],            // mov r9d, [r11+r13*8]
            vec![0x47, 0x8b, 0x0c, 0xa3],            // mov r9d, [r11+r12*4]
            vec![0x47, 0x8b, 0x14, 0xab],            // mov r10d, [r11+r13*4]
            vec![0x4f, 0x8b, 0x0c, 0xab],            // mov r9, [r11+r13*4]
            vec![0x47, 0x89, 0x0c, 0xab],            // mov [r11+r13*4], r9d
            vec![0x64, 0x47, 0x8b, 0x0c, 0xab],      // mov r9d, fs:[r11+r13*4]
        ] {
            assert!(verdict(&code).starts_with(rule), "{code:02x?}: {:?}", verdict(&code));
        }
    }

    const REBASE_RSI: [u8; 4] = [0x49, 0x8d, 0x34, 0x36];
    const REBASE_RDI: [u8; 4] = [0x49, 0x8d, 0x3c, 0x3e];
    const CUT_RSI: [u8; 2] = [0x89, 0xf6];
    const CUT_RDI: [u8; 2] = [0x89, 0xff];

    #[test]
    fn pointers_of_strings_must_be_host_addresses_for_one_instruction() {
        let movsb = [0xa4];
        let nop = [0x90];
        let good: [&[u8]; 5] = [&REBASE_RSI, &REBASE_RDI, &movsb, &CUT_RSI, &CUT_RDI];
        assert_eq!(verdict(&good.concat()), "");
        let bad: [&[&[u8]]; 9] = [
            &[&movsb],
            &[&CUT_RSI, &CUT_RDI, &movsb],
            &[&REBASE_RSI, &movsb, &CUT_RSI],
            &[&REBASE_RSI, &REBASE_RDI, &movsb, &CUT_RSI],
            &[&REBASE_RSI, &REBASE_RDI, &movsb, &nop, &CUT_RSI, &CUT_RDI],
            &[&REBASE_RSI, &nop, &REBASE_RDI, &movsb, &CUT_RSI, &CUT_RDI],
            &[&REBASE_RSI, &REBASE_RDI, &movsb, &movsb, &CUT_RSI, &CUT_RDI],
            &[&REBASE_RSI, &REBASE_RDI, &[0x67, 0xa4], &CUT_RSI, &CUT_RDI],
            &[&REBASE_RSI, &REBASE_RDI, &[0x64, 0xa4], &CUT_RSI, &CUT_RDI],
        ];
        for code in bad {
            assert_ne!(verdict(&code.concat()), "", "{code:02x?}");
        }
    }

    #[test]
    fn a_host_address_is_cut_by_nothing_else() {
        let lodsb = [0xac];
        let after = |cut: &[u8]| verdict(&[&REBASE_RSI[..], &lodsb, cut].concat());
        assert_eq!(after(&CUT_RSI), "");
        for cut in [
            &[0x89, 0xf0][..],   // mov eax, esi
            &[0x89, 0xc6],       // mov esi, eax
            &[0x44, 0x89, 0xee], // mov esi, r13d: edi alone is kept there
            &[0x66, 0x89, 0xf6], // mov si, si
            &[0x31, 0xf6],       // xor esi, esi
            &CUT_RDI,
        ] {
            assert_ne!(after(cut), "", "{cut:02x?}");
        }
    }

    #[test]
    fn only_a_masked_store_finds_edi_in_the_bounce_buffer() {
        const MASKMOVQ: &[u8] = &[0x0f, 0xf7, 0xc1];
        const RESTORE_EDI: &[u8] = &[0x44, 0x89, 0xef];
        let bounce = crate::frame::offset::BOUNCE as u32;
        let at = |lea: &[u8], displacement: u32, inside: &[u8]| {
            [lea, &displacement.to_le_bytes(), inside, RESTORE_EDI].concat()
        };
        let lea = [0x49, 0x8d, 0xbf]; // lea rdi, [r15+...]
        let good = at(&lea, bounce, MASKMOVQ);
        let string_behind = [&good[..], &REBASE_RDI, &[0xf3, 0xaa], &CUT_RDI].concat();
        assert_eq!(verdict(&string_behind), "");
        for code in [
            at(&lea, bounce + 16, MASKMOVQ),
            at(&[0x49, 0x8d, 0xbe], bounce, MASKMOVQ), // lea rdi, [r14+...]
            at(&[0x49, 0x8d, 0xb7], bounce, MASKMOVQ), // lea rsi, [r15+...]
            at(&[0x49, 0x8b, 0xbf], bounce, MASKMOVQ), // mov rdi, [r15+...]
            at(&[0x49, 0x8d, 0xbc, 0x0f], bounce, MASKMOVQ), // lea rdi, [r15+rcx+...]
            at(&lea, bounce, &[0xf3, 0xaa]),           // rep stosb
            at(&lea, bounce, &[&REBASE_RSI[..], &[0xf3, 0xa4], &CUT_RSI].concat()), // rep movsb
        ] {
            assert_ne!(verdict(&code), "", "{code:02x?}");
        }
    }

    #[test]
    fn ways_for_control_to_get_away_are_found() {
        for code in [
            &[0xc3][..],         // ret
            &[0x50],             // push rax
            &[0xff, 0xe0],       // jmp rax
            &[0x41, 0xff, 0xe1], // jmp r9, with nothing before it
            &[0xe8, 0, 0, 0, 0], // call
            &[0x0f, 0x05],       // syscall
            &[0xcd, 0x80],       // int 0x80
            &[0x0f, 0x34],       // sysenter
            &[0xfa],             // cli
            &[0xf4],             // hlt
            &[0xec],             // in al, dx
            &[0xc5, 0xf8],       // half an instruction
        ] {
            assert_ne!(verdict(code), "", "{code:02x?}");
        }
    }

    #[test]
    fn a_computed_jump_leads_into_the_cache() {
        const INTO_CACHE: [u8; 4] = [0x4f, 0x8d, 0x0c, 0x01]; // lea r9, [r9+r8]
        const JMP_R9: [u8; 3] = [0x41, 0xff, 0xe1];
        assert_eq!(verdict(&[&INTO_CACHE[..], &JMP_R9].concat()), "");
        for (before, jump) in [
            (&[0x4f, 0x8d, 0x0c, 0x11][..], JMP_R9), // lea r9, [r9+r10]
            (&[0x4f, 0x8d, 0x4c, 0x01, 4], JMP_R9),  // lea r9, [r9+r8+4]
            (&[0x4f, 0x8d, 0x14, 0x01], JMP_R9),     // lea r10, [r9+r8]
            (&[0x47, 0x8d, 0x0c, 0x01], JMP_R9),     // lea r9d, [r9+r8]
            (&INTO_CACHE, [0x41, 0xff, 0xe2]),       // jmp r10
            (&[&INTO_CACHE[..], &[0x90]].concat(), JMP_R9), // nop
        ] {
            let verdict = verdict(&[before, &jump].concat());
            assert!(verdict.starts_with("control can get away"), "{before:02x?}: {verdict:?}");
        }
    }

    #[test]
    fn writes_to_reserved_registers_are_found() {
        for code in [
            &[0x49, 0x89, 0xc6][..],   // mov r14, rax
            &[0x41, 0xbf, 0, 0, 0, 0], // mov r15d, 0
            &[0x45, 0x31, 0xdb],       // xor r11d, r11d
            &[0x41, 0xb0, 1],          // mov r8b, 1
            &[0x48, 0x83, 0xc4, 8],    // add rsp, 8
            &[0x89, 0xc4],             // mov esp, eax
            &[0x48, 0x89, 0xc1],       // mov rcx, rax
            &[0x4c, 0x87, 0xe0],       // xchg rax, r12
            &[0x48, 0x8d, 0x34, 0x0e], // lea rsi, [rsi+rcx]
            &[0x48, 0x98],             // cdqe
            &[0x48, 0xf7, 0xe1],       // mul rcx
        ] {
            assert_ne!(verdict(code), "", "{code:02x?}");
        }
    }

    #[test]
    #[should_panic = "control can get away"]
    fn a_guest_is_stopped_before_it_gets_out_of_cold_code() {
        let (hot, cold) = (vec![0x90], vec![0xc3]);
        assert_confined(&Unit {
            hot,
            cold,
            points: Vec::new(),
            guest_len: 1,
            elsewhere: Vec::new(),
        });
    }
}
