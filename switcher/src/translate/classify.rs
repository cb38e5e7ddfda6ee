//! Which way each instruction goes: the table of the instruction set.
//!
//! The processor that guests see is an old one on purpose: what its CPUID doesn't offer doesn't
//! exist here, however able the host is. So the table is made of what is known to be right;
//! anything else is an undefined opcode.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};
use std::sync::LazyLock;

/// How an instruction is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Encoded again with its operands adjusted.
    Native,
    /// Does nothing.
    Nothing,
    /// `lea`: an address that is never used as one.
    Lea,
    /// `bt`, `bts`, `btr`, `btc` with the bit's number in a register, which reach far beyond
    /// their operand.
    BitString,
    /// Stores or loads host state along with the guest's: always through the bounce buffer.
    Environment,
    /// `maskmovq`, `maskmovdqu`: memory at edi that no operand names.
    MaskedStore,
    /// `mov` from a segment register.
    SegmentRead,
    /// `mov` and `pop` to a segment register other than cs and ss.
    SegmentLoad,
    /// `rdtsc`.
    Timestamp,
    /// `xlat`.
    TableLookup,
    Push,
    Pop,
    Leave,
    Call,
    Jump,
    Return,
    /// `jcc`.
    Conditional,
    /// `loop`, `loope`, `loopne`, `jecxz`.
    Counted,
    /// movs, cmps, stos, lods, scas.
    String,
    /// Rust's business; the next instruction follows.
    Emulated,
    /// Rust's business, and it goes elsewhere.
    EmulatedTransfer,
    /// `iretd`.
    InterruptReturn,
    /// `int3`.
    Breakpoint,
    /// `int n`.
    Interrupt,
    /// #UD.
    Undefined,
}

impl Way {
    /// Whether the instruction behind it belongs to the same run: it is reached by falling
    /// through, or by the return from a call, before long.
    pub(super) const fn falls_through(self) -> bool {
        !matches!(
            self,
            Self::Jump
                | Self::Return
                | Self::EmulatedTransfer
                | Self::InterruptReturn
                | Self::Breakpoint
                | Self::Undefined
        )
    }

    /// Whether it is one straight piece of code: no way out of it but faults, no way into its
    /// middle.
    pub(super) const fn is_straight(self) -> bool {
        matches!(
            self,
            Self::Native
                | Self::Nothing
                | Self::Lea
                | Self::BitString
                | Self::Push
                | Self::Pop
                | Self::Leave
        )
    }
}

/// What the translator knows about an instruction from its opcode alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class {
    pub(super) way: Way,
    /// Raises #NM while CR0.TS or CR0.EM is set.
    pub(super) fpu: bool,
}

/// The class of an opcode.
pub(super) fn classify(code: Code) -> Class {
    static TABLE: LazyLock<Vec<Class>> = LazyLock::new(|| Code::values().map(judge).collect());
    TABLE.get(code as usize).copied().unwrap_or(Class { way: Way::Undefined, fpu: false })
}

fn judge(code: Code) -> Class {
    let way = way(code);
    Class { way, fpu: !matches!(way, Way::Undefined | Way::Nothing) && uses_fpu(code) }
}

fn way(code: Code) -> Way {
    let opcode = code.op_code();
    if opcode.encoding() != EncodingKind::Legacy || !opcode.mode32() {
        return Way::Undefined;
    }
    if is_privileged(code.mnemonic()) {
        return transfer_or(code.mnemonic(), Way::Emulated);
    }
    if is_hint(code) {
        return Way::Nothing;
    }
    if !code.cpuid_features().iter().all(|&feature| is_offered(feature)) {
        return Way::Undefined;
    }
    way_by_code(code).or_else(|| way_by_mnemonic(code)).unwrap_or(Way::Native)
}

/// The codes whose mnemonic doesn't tell them apart.
fn way_by_code(code: Code) -> Option<Way> {
    use Code as C;
    Some(match code {
        C::Mov_rm16_Sreg | C::Mov_r32m16_Sreg => Way::SegmentRead,
        C::Pushw_ES | C::Pushw_CS | C::Pushw_SS | C::Pushw_DS | C::Pushw_FS | C::Pushw_GS => {
            Way::Push
        }
        C::Pushd_ES | C::Pushd_CS | C::Pushd_SS | C::Pushd_DS | C::Pushd_FS | C::Pushd_GS => {
            Way::Push
        }
        C::Mov_Sreg_rm16 | C::Mov_Sreg_r32m16 => Way::SegmentLoad,
        C::Popw_ES | C::Popw_DS | C::Popw_FS | C::Popw_GS => Way::SegmentLoad,
        C::Popd_ES | C::Popd_DS | C::Popd_FS | C::Popd_GS => Way::SegmentLoad,
        _ if names_special_register(code) => Way::Emulated,
        C::Call_rel32_32 | C::Call_rm32 => Way::Call,
        C::Jmp_rel8_32 | C::Jmp_rel32_32 | C::Jmp_rm32 => Way::Jump,
        C::Retnd | C::Retnd_imm16 => Way::Return,
        C::Loop_rel8_32_ECX | C::Loope_rel8_32_ECX | C::Loopne_rel8_32_ECX => Way::Counted,
        C::Jecxz_rel8_32 => Way::Counted,
        C::Leaved | C::Leavew => Way::Leave,
        C::Movsb_m8_m8 | C::Movsw_m16_m16 | C::Movsd_m32_m32 => Way::String,
        C::Cmpsb_m8_m8 | C::Cmpsw_m16_m16 | C::Cmpsd_m32_m32 => Way::String,
        C::Stosb_m8_AL | C::Stosw_m16_AX | C::Stosd_m32_EAX => Way::String,
        C::Lodsb_AL_m8 | C::Lodsw_AX_m16 | C::Lodsd_EAX_m32 => Way::String,
        C::Scasb_AL_m8 | C::Scasw_AX_m16 | C::Scasd_EAX_m32 => Way::String,
        C::Bt_rm16_r16 | C::Bt_rm32_r32 | C::Bts_rm16_r16 | C::Bts_rm32_r32 => Way::BitString,
        C::Btr_rm16_r16 | C::Btr_rm32_r32 | C::Btc_rm16_r16 | C::Btc_rm32_r32 => Way::BitString,
        _ if code.is_jcc_short_or_near() => match code.op_code().op0_kind() {
            OpCodeOperandKind::br32_1 | OpCodeOperandKind::br32_4 => Way::Conditional,
            _ => Way::Emulated,
        },
        _ => return None,
    })
}

fn way_by_mnemonic(code: Code) -> Option<Way> {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    Some(match mnemonic {
        M::INVALID | M::Ud0 | M::Ud1 | M::Ud2 => Way::Undefined,
        M::Nop | M::Pause => Way::Nothing,
        M::Rdtsc => Way::Timestamp,
        M::Lea => Way::Lea,
        M::Push => Way::Push,
        M::Pop => Way::Pop,
        M::Xlatb => Way::TableLookup,
        M::Int3 => Way::Breakpoint,
        M::Int => Way::Interrupt,
        M::Maskmovq | M::Maskmovdqu => Way::MaskedStore,
        M::Fxsave | M::Fxrstor | M::Fnsave | M::Frstor | M::Fnstenv | M::Fldenv => Way::Environment,
        // What is left of these takes 16-bit operands or addresses, or another code segment.
        M::Call | M::Jmp | M::Ret | M::Retf => Way::EmulatedTransfer,
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz => Way::Emulated,
        M::Pusha | M::Pushad | M::Popa | M::Popad | M::Enter => Way::Emulated,
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs => Way::Emulated,
        M::Aaa | M::Aas | M::Aam | M::Aad | M::Daa | M::Das | M::Salc => Way::Emulated,
        M::Bound | M::Arpl | M::Into | M::Int1 => Way::Emulated,
        M::Lar | M::Lsl | M::Verr | M::Verw => Way::Emulated,
        _ => return None,
    })
}

/// The embedder's instructions, as [`Exit::Privileged`](crate::exit::Exit::Privileged) lists them;
/// those that are told by an operand are in [`names_special_register`].
fn is_privileged(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cli
            | M::Sti
            | M::Pushf
            | M::Pushfd
            | M::Popf
            | M::Popfd
            | M::Iret
            | M::Iretd
            | M::In
            | M::Out
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
            | M::Hlt
            | M::Cpuid
            | M::Lgdt
            | M::Sgdt
            | M::Lidt
            | M::Sidt
            | M::Lldt
            | M::Sldt
            | M::Ltr
            | M::Str
            | M::Lmsw
            | M::Smsw
            | M::Clts
            | M::Rdmsr
            | M::Wrmsr
            | M::Rdpmc
            | M::Invlpg
            | M::Wbinvd
            | M::Invd
            | M::Sysenter
            | M::Sysexit
    )
}

fn transfer_or(mnemonic: Mnemonic, otherwise: Way) -> Way {
    match mnemonic {
        Mnemonic::Iretd => Way::InterruptReturn,
        Mnemonic::Iret | Mnemonic::Sysenter | Mnemonic::Sysexit => Way::EmulatedTransfer,
        _ => otherwise,
    }
}

/// Segment, control and debug registers as operands: not found in the host's, hence Rust's
/// business, but for reads of segment registers.
fn names_special_register(code: Code) -> bool {
    use OpCodeOperandKind as K;
    code.op_code().op_kinds().iter().any(|kind| {
        matches!(
            kind,
            K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs | K::cr_reg | K::dr_reg
        )
    })
}

/// Opcodes that were set aside for hints (0F 0D, 0F 18–1F): no-ops on a processor that doesn't
/// know them. The SSE prefetches are known.
fn is_hint(code: Code) -> bool {
    use CpuidFeature as F;
    let hint = |feature: &CpuidFeature| {
        matches!(
            feature,
            F::CET_IBT | F::CLDEMOTE | F::PREFETCHW | F::PREFETCHWT1 | F::MULTIBYTENOP
        )
    };
    let shadow_stack = matches!(code, Code::Rdsspd_r32);
    shadow_stack || code.cpuid_features().iter().any(hint)
}

/// What CPUID offers to guests: everything up to the first P6, and MMX to SSE4.2, POPCNT and AES.
fn is_offered(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::CPUID
            | F::MSR
            | F::RDPMC
            | F::PAUSE
            | F::TSC
            | F::SEP
            | F::CX8
            | F::CMOV
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::FXSR
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::POPCNT
            | F::AES
    )
}

/// Works on x87, MMX or SSE registers (SDM volume 2, the #NM entries).
fn uses_fpu(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let unit = |feature: &CpuidFeature| {
        matches!(
            feature,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::FXSR
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
        )
    };
    let integer = matches!(
        code.mnemonic(),
        M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Sfence
            | M::Lfence
            | M::Mfence
            | M::Movnti
            | M::Crc32
    );
    // fwait only while CR0.MP is set too: which every system does that uses TS.
    let waits = code.mnemonic() == M::Wait;
    waits || !integer && code.cpuid_features().iter().any(unit)
}
