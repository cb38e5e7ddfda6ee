//! Golden files: guest code beside the host code it becomes, to be read by people.
//!
//! Each file in `switcher/tests/golden/` is a list of cases:
//!
//! ```text
//! # Why this case is worth reading.
//! == 89 54 24 08 ; picked
//! mov [esp+8],edx                | lea r9d,[r12+8]
//!                                | …
//! ```
//!
//! Behind `==` come the guest's bytes and, behind a semicolon, options: a route, `kernel`, `segmented`,
//! `step`, `alone`, `straddles`, `at=address`, `break=address`, `watch=start-end`. The listing below is what the
//! translator made of them; the test fails when that changes. `BLESS=1 cargo test -p
//! lguest-switcher golden` writes the listings anew: read the difference before committing it.

use super::plan::decoder;
use super::stubs::{Tail, runtime, tail_at};
use super::{Assumptions, Pace, Point, Request, Route, Unit, translate};
use crate::frame::{FS, offset};
use iced_x86::{
    Decoder, DecoderOptions, Formatter, FormatterOptions, Instruction, NasmFormatter, Register,
    SymbolResolver, SymbolResult,
};
use std::path::Path;

/// Width of the guest's column.
const GUEST_COLUMN: usize = 34;

/// Where the pieces of each case are placed.
const HOT: u32 = 0x1000;
const COLD: u32 = 0x2000;

#[test]
fn golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("BLESS").is_some();
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the folder is part of the source") {
        let path = entry.expect("a readable folder").path();
        let before = std::fs::read_to_string(&path).expect("a readable file");
        let after = relisted(&before);
        if before != after && bless {
            std::fs::write(&path, &after).expect("a writable file");
        } else if before != after {
            stale.push(format!("{}:\n{}", path.display(), first_difference(&before, &after)));
        }
    }
    assert!(
        stale.is_empty(),
        "emitted code has changed (BLESS=1 accepts it):\n{}",
        stale.join("\n")
    );
}

#[test]
fn the_runtime_reads_well() {
    let code = runtime();
    let listing = host_lines(&code, 0).join("\n");
    assert!(listing.starts_with("mov [r15+EIP],r13d\nmov [r15+DETAIL],r9d\n"), "{listing}");
    assert!(listing.contains("jmp qword [r15+EXIT]"), "{listing}");
}

/// The file with every listing made anew.
fn relisted(file: &str) -> String {
    let mut out = String::new();
    for line in file.lines().filter(|line| line.starts_with("==") || line.starts_with('#')) {
        if line.starts_with('#') {
            out += &format!("{line}\n");
        } else {
            out += &format!("{line}\n{}\n", listing(line));
        }
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

fn first_difference(before: &str, after: &str) -> String {
    let mut lines = before.lines().zip(after.lines());
    match lines.find(|(before, after)| before != after) {
        Some((before, after)) => format!("- {before}\n+ {after}"),
        None => "one is longer".to_owned(),
    }
}

/// A case's options.
struct Options {
    eip: u32,
    route: Route,
    straddles: bool,
    assumptions: Assumptions,
    breakpoints: Vec<u32>,
    watch: Option<(u32, u32)>,
}

fn options(words: &str) -> Options {
    let mut options = Options {
        eip: 0x0804_8100,
        route: Route::Window,
        straddles: false,
        assumptions: Assumptions { user: true, flat: true, pace: Pace::Free },
        breakpoints: Vec::new(),
        watch: None,
    };
    let hex = |text: &str| u32::from_str_radix(text, 16).expect("an address");
    for word in words.split_whitespace() {
        match word.split_once('=') {
            Some(("at", at)) => options.eip = hex(at),
            Some(("break", at)) => options.breakpoints.push(hex(at)),
            Some(("watch", range)) => {
                options.watch = range.split_once('-').map(|(start, end)| (hex(start), hex(end)));
            }
            _ => match word {
                "picked" => options.route = Route::Picked,
                "bounced" => options.route = Route::Bounced,
                "kernel" => options.assumptions.user = false,
                "segmented" => options.assumptions.flat = false,
                "step" => options.assumptions.pace = Pace::Step,
                "alone" => options.assumptions.pace = Pace::Alone,
                "straddles" => options.straddles = true,
                _ => panic!("unknown option {word}"),
            },
        }
    }
    options
}

/// The two columns for one case.
fn listing(header: &str) -> String {
    let (code, words) = header[2..].split_once(';').unwrap_or((&header[2..], ""));
    let byte = |text| u8::from_str_radix(text, 16).expect("a byte");
    let bytes: Vec<u8> = code.split_whitespace().map(byte).collect();
    let options = options(words);
    let unit = translate(&Request {
        eip: options.eip,
        bytes: &bytes,
        straddles: options.straddles,
        longest: 256,
        assumptions: options.assumptions,
        hot: HOT,
        cold: COLD,
        known: &|_| None,
        nearby: &|at, into| copy_code(&bytes, options.eip, at, into),
        learned: &|_| options.route,
        breakpoints: &options.breakpoints,
        watch: options.watch,
    });
    match unit {
        Ok(unit) => columns(&bytes, options.eip, &unit),
        Err(_) => "needs more bytes\n".to_owned(),
    }
}

/// The code at `at`, if it is among `bytes`, which are at `eip`.
pub(super) fn copy_code(bytes: &[u8], eip: u32, at: u32, into: &mut [u8]) -> usize {
    let rest = bytes.get(at.wrapping_sub(eip) as usize..).unwrap_or_default();
    let length = rest.len().min(into.len());
    into[..length].copy_from_slice(&rest[..length]);
    length
}

fn columns(bytes: &[u8], eip: u32, unit: &Unit) -> String {
    let mut out = String::new();
    for (at, point) in unit.points.iter().enumerate() {
        let guest = match point.len {
            0 if point.inlined => "(way out)".to_owned(),
            0 => "(done)".to_owned(),
            _ => guest_text(&bytes[point.eip.wrapping_sub(eip) as usize..], point),
        };
        let end = unit.points.get(at + 1).map_or(HOT + unit.hot.len() as u32, |next| next.host);
        let code = &unit.hot[(point.host - HOT) as usize..(end - HOT) as usize];
        side_by_side(&mut out, &guest, &host_lines(code, point.host));
    }
    if !unit.cold.is_empty() {
        side_by_side(&mut out, "cold:", &host_lines(&unit.cold, COLD));
    }
    out
}

fn guest_text(bytes: &[u8], point: &Point) -> String {
    let instruction = decoder(bytes, point.eip).decode();
    let text = text(&instruction, NasmFormatter::new());
    if point.entry { text } else { format!("({text})") }
}

fn side_by_side(out: &mut String, guest: &str, host: &[String]) {
    for (at, line) in host.iter().enumerate() {
        let guest = if at == 0 { guest } else { "" };
        *out += &format!("{guest:GUEST_COLUMN$}| {line}\n");
    }
}

/// Host code as text, with a line's address where something jumps to it.
fn host_lines(code: &[u8], origin: u32) -> Vec<String> {
    let decoder = Decoder::with_ip(64, code, u64::from(origin), DecoderOptions::NONE);
    let named =
        |instruction| text(&instruction, NasmFormatter::with_options(Some(Box::new(Names)), None));
    decoder.into_iter().map(named).collect()
}

fn text(instruction: &Instruction, mut formatter: NasmFormatter) -> String {
    let options: &mut FormatterOptions = formatter.options_mut();
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    let mut out = String::new();
    formatter.format(instruction, &mut out);
    out
}

/// Gives names to the frame's fields and to the ways out.
struct Names;

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let name = if instruction.memory_base() == Register::R15 {
            field(i32::try_from(address).ok()?)?
        } else if instruction.is_jmp_short_or_near() {
            match tail_at(u32::try_from(address).ok()?)? {
                Tail::Exit(reason) => format!("exit_{reason:?}"),
                Tail::CallGate => "call_gate".to_owned(),
                Tail::ReturnGate => "return_gate".to_owned(),
                Tail::ExchangeFs => "exchange_fs".to_owned(),
                Tail::ExchangeGs => "exchange_gs".to_owned(),
            }
        } else {
            return None;
        };
        Some(SymbolResult::with_string(address, name))
    }
}

/// The name of the frame's field at an offset.
fn field(at: i32) -> Option<String> {
    let name = match at {
        offset::EIP => "EIP",
        offset::REASON => "REASON",
        offset::DETAIL => "DETAIL",
        offset::FPU_TRAP => "FPU_TRAP",
        offset::TIMESTAMP_TRAP => "TIMESTAMP_TRAP",
        offset::PENDING => "PENDING",
        offset::EXIT => "EXIT",
        offset::CALL_GATE => "CALL_GATE",
        offset::RETURN_GATE => "RETURN_GATE",
        offset::BOUNCE_BIT => "BOUNCE_BIT",
        offset::PICK => "PICK",
        offset::BOUNCE => "BOUNCE",
        _ => {
            return ["ES", "CS", "SS", "DS", "FS", "GS"].iter().enumerate().find_map(
                |(index, name)| {
                    let base = at == offset::segment_base(index);
                    let window =
                        [false, true].map(|user| offset::segment_window(index, user)).contains(&at);
                    let selector = at == offset::segment_selector(index);
                    let kinds = [
                        (base, "BASE"),
                        (window, "WINDOW"),
                        (selector, "SELECTOR"),
                        (at == offset::reload(index), "RELOAD"),
                        (index >= FS && at == offset::other_reload(index.max(FS)), "OTHER_RELOAD"),
                    ];
                    let kind = kinds.iter().find(|(is_it, _)| *is_it);
                    kind.map(|(_, kind)| format!("{name}_{kind}"))
                },
            );
        }
    };
    Some(name.to_owned())
}
