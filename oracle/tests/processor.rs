//! The oracle itself: that the processor's side reports what an x86 does.

use lguest_oracle::{Case, End, Layout, Oracle, Outcome, Region, State};

const CODE: u32 = 0x1000_0000;
const DATA: u32 = 0x1000_4000;
const FIXED: u32 = 0x1000_8000;
const TOP: u32 = 0xffff_f000;

fn oracle() -> Oracle {
    let region = |start, writable| Region { start, pages: 1, writable };
    let regions = [region(CODE, true), region(DATA, true), region(FIXED, false), region(TOP, true)];
    let layout = Layout::new(&regions).expect("a valid layout");
    // Data, 32-bit, writable, level 3, base 0x10004000, limit 0xff.
    let layout = layout.with_segments(&[0x1040_f300_4000_00ff]);
    Oracle::new(layout).expect("this machine must run 32-bit code")
}

fn case(oracle: &Oracle, code: &[u8]) -> Case {
    let mut memory = vec![0xcc; oracle.layout().len()];
    memory[..code.len()].copy_from_slice(code);
    let mut state = State { eip: CODE, ..State::default() };
    state.gpr[4] = DATA + 0x800;
    Case { state, memory }
}

fn run(code: &[u8]) -> (Outcome, Vec<u8>) {
    let mut oracle = oracle();
    let case = case(&oracle, code);
    let outcome = oracle.run(&case).expect("a worker");
    (outcome, oracle.memory().to_vec())
}

fn exception(vector: u8, error: u32, address: u32) -> End {
    End::Exception { vector, error, address }
}

#[test]
fn plain_code_runs_and_changes_registers_and_memory() {
    // mov eax, 0x12345678; push eax; int3
    let (outcome, memory) = run(&[0xb8, 0x78, 0x56, 0x34, 0x12, 0x50]);
    assert_eq!(outcome.end, exception(3, 0, 0));
    assert_eq!(outcome.state.eip, CODE + 7);
    assert_eq!(outcome.state.gpr[0], 0x1234_5678);
    assert_eq!(outcome.state.gpr[4], DATA + 0x7fc);
    assert_eq!(memory[0x17fc..0x1800], [0x78, 0x56, 0x34, 0x12]);
}

#[test]
fn faults_come_with_vector_error_and_address() {
    // mov [FIXED+8], eax: the page is read-only.
    let (outcome, _) = run(&[0xa3, 0x08, 0x80, 0x00, 0x10]);
    assert_eq!(outcome.end, exception(14, 7, FIXED + 8));
    assert_eq!(outcome.state.eip, CODE);
    // mov eax, [0x20000000]: nothing is there.
    let (outcome, _) = run(&[0xa1, 0, 0, 0, 0x20]);
    assert_eq!(outcome.end, exception(14, 4, 0x2000_0000));
    // div eax, with eax = edx = 0.
    assert_eq!(run(&[0xf7, 0xf0]).0.end, exception(0, 0, 0));
    // hlt; ud2; bound's, into's and int's exceptions.
    assert_eq!(run(&[0xf4]).0.end, exception(13, 0, 0));
    assert_eq!(run(&[0x0f, 0x0b]).0.end, exception(6, 0, 0));
    assert_eq!(run(&[0xcd, 0x21]).0.end, exception(13, 0x21 * 8 + 2, 0));
}

#[test]
fn system_calls_and_endless_loops_end_the_worker_and_not_the_oracle() {
    let mut oracle = oracle();
    let exit = case(&oracle, &[0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    assert_eq!(oracle.run(&exit).expect("a worker").end, End::SystemCall);
    let endless = case(&oracle, &[0xeb, 0xfe]);
    assert_eq!(oracle.run(&endless).expect("a worker").end, End::Endless);
    let plain = case(&oracle, &[]);
    assert_eq!(oracle.run(&plain).expect("a worker").end, exception(3, 0, 0));
}

#[test]
fn the_trap_flag_stops_after_one_instruction() {
    let mut oracle = oracle();
    let mut case = case(&oracle, &[0x40, 0x40]);
    case.state.eflags |= 1 << 8;
    let outcome = oracle.run(&case).expect("a worker");
    assert_eq!((outcome.end, outcome.state.eip), (exception(1, 0, 0), CODE + 1));
}

#[test]
fn x87_and_sse_registers_go_in_and_come_out() {
    let mut oracle = oracle();
    // fld st0; addps xmm0, xmm1
    let mut case = case(&oracle, &[0xd9, 0xc0, 0x0f, 0x58, 0xc1]);
    let fx = &mut case.state.fx.0;
    fx[4] = 0x01; // st0 is there
    fx[32..42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]); // 1.0
    fx[160..164].copy_from_slice(&1.5_f32.to_le_bytes());
    fx[176..180].copy_from_slice(&2.0_f32.to_le_bytes());
    let outcome = oracle.run(&case).expect("a worker");
    let fx = outcome.state.fx;
    assert_eq!(fx.0[160..164], 3.5_f32.to_le_bytes());
    assert_eq!(fx.0[48..58], fx.0[32..42]);
    assert_eq!((fx.u16(2) >> 11 & 7, fx.0[4]), (7, 0x81));
    assert_eq!(fx.mxcsr(), 0x1f80);
}

#[test]
fn segments_have_bases_and_limits() {
    let mut oracle = oracle();
    // mov eax, fs:[0x10]
    let mut case = case(&oracle, &[0x64, 0xa1, 0x10, 0, 0, 0]);
    case.state.segments[4] = Layout::selector(0);
    case.memory[0x1010..0x1014].copy_from_slice(&[1, 2, 3, 4]);
    let outcome = oracle.run(&case).expect("a worker");
    assert_eq!((outcome.end, outcome.state.gpr[0]), (exception(3, 0, 0), 0x0403_0201));
    assert_eq!(outcome.state.segments[4], Layout::selector(0));
    case.memory[2..4].copy_from_slice(&[0xfd, 0]);
    assert_eq!(oracle.run(&case).expect("a worker").end, exception(13, 0, 0));
}

#[test]
fn thousands_of_cases_a_second() {
    let mut oracle = oracle();
    let case = case(&oracle, &[0x40]);
    let (count, start) = (5000, std::time::Instant::now());
    for _ in 0..count {
        assert_eq!(oracle.run(&case).expect("a worker").state.gpr[0], 1);
    }
    println!("{:.1} µs a case", start.elapsed().as_secs_f64() / f64::from(count) * 1e6);
}
