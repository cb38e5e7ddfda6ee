//! What must be the same afterwards, and what to print when it isn't.

use crate::layout::Layout;
use crate::machine::Stop;
use crate::state::{ARITHMETIC_FLAGS, Case, End, FxImage, Outcome, State};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, RflagsBits};
use std::fmt::Write;

/// The flags that the manual leaves undefined after an instruction, as bits of eflags.
#[must_use]
pub fn undefined_flags(instruction: &Instruction) -> u32 {
    const BITS: [(u32, u32); 6] = [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
    ];
    let undefined = instruction.rflags_undefined();
    BITS.iter().filter(|(bit, _)| undefined & bit != 0).map(|(_, flag)| flag).sum()
}

/// Everything that one side saw.
pub struct Seen<'a> {
    /// How it stopped.
    pub stop: Stop,
    /// The registers then.
    pub state: State,
    /// All of memory then.
    pub memory: &'a [u8],
}

impl<'a> Seen<'a> {
    /// What the processor saw.
    #[must_use]
    pub fn by_processor(outcome: &Outcome, memory: &'a [u8]) -> Self {
        let mut end = outcome.end;
        if let End::Exception { vector: 14, error, .. } = &mut end {
            // The guest has no NX bit, so it isn't told of fetches.
            *error &= !0x10;
        }
        Self { stop: Stop::End(end), state: outcome.state, memory }
    }
}

/// The differences, one a line; empty when there are none. Flags in `ignored` don't count.
#[must_use]
pub fn differences(
    processor: &Seen,
    switcher: &Seen,
    layout: &Layout,
    ignored: u32,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            found.push(format!("{what}: processor {theirs}, Switcher {ours}"));
        }
    };
    note("end", format!("{:x?}", switcher.stop), format!("{:x?}", processor.stop));
    let (ours, theirs) = (&switcher.state, &processor.state);
    const NAMES: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
    for (index, name) in NAMES.iter().enumerate() {
        note(name, hex(ours.gpr[index]), hex(theirs.gpr[index]));
    }
    note("eip", hex(ours.eip), hex(theirs.eip));
    let flags = |state: &State| format!("{:03x}", state.eflags & ARITHMETIC_FLAGS & !ignored);
    note("flags", flags(ours), flags(theirs));
    let segments = |state: &State| format!("{:x?}", state.segments.map(without_level_of_null));
    note("segments", segments(ours), segments(theirs));
    fx_differences(&ours.fx, &theirs.fx, &mut note);
    let all = processor.memory.iter().zip(switcher.memory).enumerate();
    for (offset, (theirs, ours)) in all.filter(|(_, (theirs, ours))| theirs != ours).take(16) {
        let address = layout.address_of(offset).unwrap_or(0);
        note(&format!("byte at {address:08x}"), format!("{ours:02x}"), format!("{theirs:02x}"));
    }
    found
}

fn fx_differences(ours: &FxImage, theirs: &FxImage, note: &mut impl FnMut(&str, String, String)) {
    let (ours, theirs) = (ours.comparable(), theirs.comparable());
    let mut part = |name: String, at: usize, len: usize| {
        let text = |image: &FxImage| {
            image.0[at..at + len].iter().rev().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        note(&name, text(&ours), text(&theirs));
    };
    part("fcw".into(), 0, 2);
    part("fsw".into(), FxImage::STATUS, 2);
    part("tags".into(), FxImage::TAGS, 1);
    part("mxcsr".into(), FxImage::MXCSR, 4);
    for register in 0..8 {
        part(format!("st{register}"), FxImage::ST + 16 * register, 10);
        part(format!("xmm{register}"), FxImage::XMM + 16 * register, 16);
    }
}

/// A null selector, which a signal's frame loses the level of.
fn without_level_of_null(selector: u16) -> u16 {
    if selector < 4 { 0 } else { selector }
}

fn hex(value: u32) -> String {
    format!("{value:08x}")
}

/// All one needs to repeat a case by hand: code, registers, the FPU's, and what differed.
#[must_use]
pub fn report(case: &Case, layout: &Layout, length: usize, differences: &[String]) -> String {
    let mut text = String::new();
    text += &listing(case, layout, length);
    let _ = writeln!(text, "  before: {:?}", case.state);
    let fx = &case.state.fx;
    let _ = writeln!(
        text,
        "          fcw={:04x} fsw={:04x} tags={:02x} mxcsr={:04x}",
        fx.u16(0),
        fx.u16(FxImage::STATUS),
        fx.0[FxImage::TAGS],
        fx.mxcsr()
    );
    for difference in differences {
        let _ = writeln!(text, "  {difference}");
    }
    text
}

/// The instructions in the first `length` bytes from eip on.
fn listing(case: &Case, layout: &Layout, length: usize) -> String {
    let mut text = String::new();
    let Some((_, offset)) = layout.locate(case.state.eip) else { return text };
    let code = &case.memory[offset..(offset + length).min(case.memory.len())];
    let ip = u64::from(case.state.eip);
    let mut formatter = NasmFormatter::new();
    for instruction in Decoder::with_ip(32, code, ip, DecoderOptions::NONE).iter() {
        let at = (instruction.ip() - ip) as usize;
        let bytes = &code[at..at + instruction.len()];
        let mut assembly = String::new();
        formatter.format(&instruction, &mut assembly);
        let _ = write!(text, "  {:08x}  ", instruction.ip());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = writeln!(text, "  {assembly}");
    }
    text
}
