//! Which instruction forms there are, and what is expected of each: from iced's own table of all
//! of x86, so that none can be forgotten.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic};

/// What is to be done with an instruction form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Held against the processor.
    Tested,
    /// The embedder's business: the Switcher must hand it over, untouched.
    Embedders,
    /// Not offered by the Switcher's processor: #UD.
    NotOffered,
    /// Left out, for a reason.
    Excluded(&'static str),
}

/// The features that the Switcher's processor has, as iced names them.
const OFFERED: [CpuidFeature; 27] = {
    use CpuidFeature as F;
    [
        F::INTEL8086,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
        F::CPUID,
        F::MSR,
        F::RDPMC,
        F::FPU,
        F::FPU287,
        F::FPU387,
        F::TSC,
        F::SEP,
        F::CX8,
        F::CMOV,
        F::MULTIBYTENOP,
        F::PAUSE,
        F::MMX,
        F::FXSR,
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::POPCNT,
        F::AES,
    ]
};

/// Every form that 32-bit code can hold, in iced's order.
pub fn all() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        info.is_instruction() && info.mode32()
    })
}

/// What is expected of a form.
#[must_use]
pub fn classify(code: Code) -> Class {
    let info = code.op_code();
    let offered = |feature: &CpuidFeature| OFFERED.contains(feature);
    if info.fwait() {
        return Class::Excluded("two instructions: fwait, and a form that is tested");
    }
    if info.encoding() != EncodingKind::Legacy {
        return Class::Excluded(
            "VEX, EVEX, XOP and 3DNow! encodings: not offered, tested by prefix",
        );
    }
    if let Some(reason) = exclusion(code) {
        return Class::Excluded(reason);
    }
    if !code.cpuid_features().iter().all(offered) {
        return Class::NotOffered;
    }
    if is_embedders(code) { Class::Embedders } else { Class::Tested }
}

/// Why a form isn't run at all.
fn exclusion(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let has = |feature| code.cpuid_features().contains(&feature);
    match code.mnemonic() {
        M::Rdtsc => Some("reads a clock"),
        M::Int1 => Some("a debugging aid that the virtual machine below may take for itself"),
        M::Lzcnt | M::Tzcnt | M::Wbnoinvd => {
            Some("not offered: its older meaning is another form's")
        }
        M::Ud0 if code.op_code().op_count() == 0 => {
            Some("ud0 without a modrm byte: old processors")
        }
        _ if is_prefetch_space(code) => Some("a hint, and not offered: may do nothing or be #UD"),
        _ if is_hint_space(code) && !has(CpuidFeature::MULTIBYTENOP) && !has(CpuidFeature::SSE) => {
            Some("not offered, in the hint-nop space: its older meaning is nop")
        }
        _ => None,
    }
}

/// 0F 0D: prefetches.
fn is_prefetch_space(code: Code) -> bool {
    let info = code.op_code();
    info.table() == iced_x86::OpCodeTableKind::T0F && info.op_code() == 0x0d
}

/// 0F 18 to 0F 1F: what isn't defined there does nothing.
fn is_hint_space(code: Code) -> bool {
    let info = code.op_code();
    let second = if info.op_code_len() == 2 { info.op_code() >> 8 } else { info.op_code() };
    info.table() == iced_x86::OpCodeTableKind::T0F && (0x18..=0x1f).contains(&second)
}

/// The list in [`lguest_switcher::Exit::Privileged`].
fn is_embedders(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    let special = |kind| {
        use iced_x86::OpCodeOperandKind as K;
        matches!(kind, K::cr_reg | K::dr_reg | K::tr_reg)
    };
    if code.mnemonic() == M::Mov && info.op_kinds().iter().any(|&kind| special(kind)) {
        return true;
    }
    #[rustfmt::skip]
    let listed = matches!(
        code.mnemonic(),
        M::Cli | M::Sti | M::Pushf | M::Pushfd | M::Popf | M::Popfd | M::Iret | M::Iretd
            | M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
            | M::Hlt | M::Cpuid | M::Lgdt | M::Sgdt | M::Lidt | M::Sidt | M::Lldt | M::Sldt
            | M::Ltr | M::Str | M::Lmsw | M::Smsw | M::Clts | M::Rdmsr | M::Wrmsr | M::Rdpmc
            | M::Invlpg | M::Wbinvd | M::Invd | M::Sysenter | M::Sysexit
    );
    listed
}
