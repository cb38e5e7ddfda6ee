//! Crossings, faults and preemption on a few host instructions placed by hand, without a translator.

use super::*;
use crate::execute::signals;
use crate::frame::{POISON, offset};
use crate::translate::Point;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

struct Machine {
    frame: Box<Frame>,
    cache: CodeCache,
    map: HostMap,
    kick: Arc<Kick>,
    alarm: Alarm,
}

impl Machine {
    /// A machine whose cache holds `hot` at offset 0.
    fn new(hot: &[u8]) -> Self {
        signals::install().unwrap();
        let cache = CodeCache::new(0x4000, hot).unwrap();
        let mut frame = Box::new(Frame::new());
        (frame.code, frame.exit) = (cache.base(), crossing::leave_address());
        (frame.window, frame.reason) = (0x1000, Reason::Stop as u32);
        let kick = Arc::new(Kick::default());
        kick.belongs_to(signals::this_thread());
        let alarm = Alarm::new(kick.clone()).unwrap();
        Self { frame, cache, map: HostMap::default(), kick, alarm }
    }

    fn run(&mut self, at: u32) -> Reason {
        let start = Start { at, moved: 0, undisturbed: false };
        run(&mut self.frame, &mut self.cache, &self.map, &self.kick, &self.alarm, start)
    }

    fn points(&mut self, points: &[(u32, u32)]) {
        let point = |&(host, eip)| Point {
            host,
            eip,
            len: 1,
            entry: true,
            rep: false,
            moved: 0,
            inlined: false,
        };
        self.map.append(&points.iter().map(point).collect::<Vec<_>>(), 0);
    }
}

/// `jmp [r15+EXIT]`
fn leave() -> Vec<u8> {
    [&[0x41, 0xff, 0xa7][..], &offset::EXIT.to_le_bytes()].concat()
}

#[test]
fn registers_and_flags_cross_both_ways_by_either_entry() {
    // inc eax; inc r12d; lea edi,[rdi+rsi]; leave
    let code = [&[0xff, 0xc0, 0x41, 0xff, 0xc4, 0x8d, 0x3c, 0x37][..], &leave()].concat();
    let mut machine = Machine::new(&code);
    machine.frame.gpr = [0x7fff_ffff, 1, 2, 3, 0xffff_ffff, 5, 6, 7];
    machine.frame.flags = 0x401; // CF and DF
    for round in 0..3 {
        machine.frame.gpr[0] = 0x7fff_ffff;
        assert_eq!(machine.run(0), Reason::Stop);
        let [eax, ecx, edx, ebx, esp, ebp, esi, edi] = machine.frame.gpr;
        assert_eq!((eax, ecx, edx, ebx), (0x8000_0000, 1, 2, 3));
        assert_eq!((esp, ebp, esi, edi), (round, 5, 6, 7 + 6 * (round + 1)));
        assert_eq!(machine.frame.flags & 0x401, 0x401, "inc leaves CF, nothing touches DF");
    }
}

#[test]
fn the_guests_xmm_registers_and_mxcsr_stay_the_guests() {
    // addps xmm0, xmm7; leave
    let code = [&[0x0f, 0x58, 0xc7][..], &leave()].concat();
    let mut machine = Machine::new(&code);
    let ones = 1f32.to_le_bytes().repeat(4);
    machine.frame.xmm.0[7].copy_from_slice(&ones);
    machine.frame.xmm.0[3] = [0x5a; 16];
    machine.frame.mxcsr = 0x0f80 | 0x6000; // Division by zero unmasked, rounding towards zero.
    machine.frame.mxcsr &= !0x200;
    let guest = machine.frame.mxcsr;
    for _ in 0..100 {
        assert_eq!(machine.run(0), Reason::Stop);
        // Would raise SIGFPE with the guest's MXCSR, and round differently.
        let quotient = std::hint::black_box(1f64) / std::hint::black_box(0f64);
        assert!(quotient.is_infinite());
        assert!(std::hint::black_box(1f64) / std::hint::black_box(3f64) * 3.0 == 1.0);
        assert_eq!(machine.frame.mxcsr & 0xffc0, guest & 0xffc0);
    }
    assert_eq!(machine.frame.xmm.0[0][..], 100f32.to_le_bytes().repeat(4)[..]);
    assert_eq!(machine.frame.xmm.0[3], [0x5a; 16]);
}

#[test]
fn a_fault_leaves_with_the_address_and_the_registers_as_they_were() {
    // inc ecx; mov eax,[r14+rbx] | mov eax,[r11+rbx]
    let code = [0xff, 0xc1, 0x41, 0x8b, 0x04, 0x1e, 0x41, 0x8b, 0x04, 0x1b];
    let mut machine = Machine::new(&code);
    machine.frame.gpr[3] = 0x234;
    assert_eq!(machine.run(0), Reason::Fault);
    let frame = &machine.frame;
    assert_eq!((frame.detail, frame.fault_trap, frame.fault_address), (2, 14, 0x1234));
    assert_eq!((frame.fault_error & 2, frame.gpr[1], frame.gpr[3]), (0, 1, 0x234));
    machine.frame.table = POISON;
    assert_eq!(machine.run(6), Reason::Fault);
    assert_eq!((machine.frame.fault_trap, machine.frame.gpr[1]), (13, 1));
}

#[test]
fn divide_errors_and_invalid_opcodes_are_faults_too() {
    // div ecx | ud2
    let mut machine = Machine::new(&[0xf7, 0xf1, 0x0f, 0x0b]);
    assert_eq!((machine.run(0), machine.frame.fault_trap), (Reason::Fault, 0));
    assert_eq!((machine.run(2), machine.frame.fault_trap), (Reason::Fault, 6));
}

#[test]
fn a_waiting_kick_is_answered_before_anything_runs() {
    let mut machine = Machine::new(&leave());
    machine.kick.note();
    assert_eq!(machine.run(0), Reason::Kicked);
    assert!(machine.kick.take());
    assert_eq!(machine.run(0), Reason::Stop);
}

/// How many kicks a test sees at least, however busy the machine is, and how long it goes on at least.
const KICKS: u32 = 100;
const A_WHILE: Duration = Duration::from_millis(300);

/// Runs `code`, an endless loop, under kicks at random moments for a while; after each, `check`
/// looks at the frame.
fn under_kicks(code: &[u8], points: &[(u32, u32)], check: impl Fn(&Frame)) {
    let mut machine = Machine::new(code);
    machine.points(points);
    let host = |eip| points.iter().find(|point| point.1 == eip).unwrap().0;
    machine.frame.eip = points[0].1;
    let kick = machine.kick.clone();
    let done = Arc::new(AtomicBool::new(false));
    let until = done.clone();
    let other = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            kick.kick();
            std::hint::spin_loop();
        }
    });
    let (start, mut kicks) = (Instant::now(), 0);
    while kicks < KICKS || start.elapsed() < A_WHILE {
        let at = host(machine.frame.eip);
        assert_eq!(machine.run(at), Reason::Kicked);
        machine.kick.take();
        assert_eq!(machine.frame.flags & 0x100, 0, "TF is gone");
        check(&machine.frame);
        kicks += 1;
    }
    done.store(true, Ordering::Relaxed);
    other.join().unwrap();
}

#[test]
fn kicks_stop_only_at_boundaries() {
    // One instruction of three parts (eax, ecx, edx grow together), then one of one part (ebx).
    // 0: inc eax; inc ecx; inc edx   6: inc ebx   8: jmp 0
    let code = [0xff, 0xc0, 0xff, 0xc1, 0xff, 0xc2, 0xff, 0xc3, 0xeb, 0xf6];
    under_kicks(&code, &[(0, 10), (6, 20), (8, 30)], |frame| {
        let [eax, ecx, edx, ebx, ..] = frame.gpr;
        assert_eq!((eax, eax), (ecx, edx));
        assert_eq!(eax.wrapping_sub(ebx), u32::from(frame.eip == 20));
    });
}

#[test]
fn many_entries_and_kicks_lose_nothing() {
    // The same in a tight loop that leaves by itself each time round, so that kicks land in the entry.
    let code = [&[0xff, 0xc0][..], &leave()].concat();
    let mut machine = Machine::new(&code);
    machine.points(&[(0, 10)]);
    let kick = machine.kick.clone();
    let done = Arc::new(AtomicBool::new(false));
    let until = done.clone();
    let other = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            kick.kick();
            std::thread::sleep(Duration::from_micros(5));
        }
    });
    let (start, mut stops, mut kicks) = (Instant::now(), 0u32, 0);
    while kicks < KICKS || stops < 1000 || start.elapsed() < A_WHILE {
        machine.frame.reason = Reason::Stop as u32;
        match machine.run(0) {
            Reason::Stop => stops += 1,
            Reason::Kicked => {
                machine.kick.take();
                kicks += 1;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(machine.frame.gpr[0], stops);
        assert_eq!(machine.frame.flags & 0x100, 0);
    }
    done.store(true, Ordering::Relaxed);
    other.join().unwrap();
}
