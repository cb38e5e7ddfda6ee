//! Kicks and alarms come at any moment, and change nothing but where the guest stops.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Exit, Gpr, PAGE_SIZE};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Hashes memory in every way the engine has: plain loops, calls, strings, the FPU, SSE, emulated and
/// bounced instructions, stores into code.
fn checksum(rounds: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    move |a| {
        let (mut again, mut inner, mut function, mut over) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, rounds)?;
        a.mov(eax, 1)?;
        a.fninit()?;
        a.fld1()?;
        a.set_label(&mut again)?;
        a.mov(edi, DATA)?;
        a.mov(ecx, PAGE_SIZE / 4)?;
        a.cld()?;
        a.rep().stosd()?;
        a.mov(esi, DATA)?;
        a.mov(edi, DATA + 0x1003)?;
        a.mov(ecx, PAGE_SIZE)?;
        a.rep().movsb()?;
        a.std()?;
        a.mov(esi, DATA + 0xffc)?;
        a.mov(ecx, 100)?;
        a.xor(edx, edx)?;
        a.set_label(&mut inner)?;
        a.lodsd()?;
        a.imul_3(eax, eax, 0x0100_0193)?;
        a.adc(eax, edx)?;
        a.rcl(edx, 3)?;
        a.xor(edx, dword_ptr(DATA + ecx * 4 + 0x1000))?;
        a.call(function)?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.cld()?;
        a.mov(dword_ptr(USER + 0x1f01), edx)?; // into code
        a.mov(ebx, USER + 0x1f00)?;
        a.call(ebx)?;
        a.mov(bx, ds)?; // emulated
        a.add(eax, ebx)?;
        a.pushad()?;
        a.popad()?;
        a.fnstenv(ptr(DATA + 0x3000))?; // bounced
        a.fldenv(ptr(DATA + 0x3000))?;
        a.fadd_2(st0, st0)?;
        a.fsub(dword_ptr(DATA + 0x2ff0))?;
        a.fist(dword_ptr(DATA + 0x3100))?;
        a.movd(xmm0, eax)?;
        a.paddd(xmm1, xmm0)?;
        a.movd(eax, xmm1)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(eax)?;
        a.mul(edx)?;
        a.add(edx, eax)?;
        a.pop(eax)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    }
}

fn guest(rounds: u32) -> Guest {
    let mut guest = Guest::user(checksum(rounds));
    guest.assemble(USER + 0x1f00, |a| {
        a.add(eax, 0x0112_3456)?;
        a.ret()
    });
    guest
}

/// Registers and memory at the end, in one number each.
fn outcome(guest: &Guest) -> (Vec<u32>, u64) {
    use Gpr::{Eax, Ebp, Ebx, Ecx, Edi, Edx, Esi, Esp};
    let registers = [Eax, Ecx, Edx, Ebx, Esp, Ebp, Esi, Edi].map(|register| guest.gpr(register));
    let memory = (0..4 * PAGE_SIZE / 4).fold(0u64, |hash, i| {
        hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(guest.peek(DATA + 4 * i))
    });
    (registers.to_vec(), memory)
}

/// Runs to the end, and counts the kicks on the way.
fn run_through(guest: &mut Guest) -> u32 {
    let mut kicks = 0;
    loop {
        match guest.run() {
            Exit::Kicked => kicks += 1,
            Exit::SoftwareInterrupt { vector: END, .. } => return kicks,
            other => panic!("{other:?} at {:#x} after {kicks} kicks", guest.vcpu.cpu.eip()),
        }
        assert_eq!(guest.vcpu.cpu.eflags() & 0x100, 0, "TF is the guest's own");
    }
}

/// Kicks wanted before the sum is believed. A machine with much else to do gives few of them to a run, so there
/// are as many runs as it takes.
const ENOUGH: u32 = 100;

#[test]
fn kicks_at_a_high_rate_change_nothing() {
    const ROUNDS: u32 = 3000;
    let mut quiet = guest(ROUNDS);
    assert_eq!(run_through(&mut quiet), 0);
    let mut kicks = 0;
    while kicks <= ENOUGH {
        let mut guest = guest(ROUNDS);
        let kicker = guest.vcpu.kicker();
        let done = Arc::new(AtomicBool::new(false));
        let until = done.clone();
        let other = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                kicker.kick();
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        kicks += run_through(&mut guest);
        done.store(true, Ordering::Relaxed);
        other.join().unwrap();
        assert_eq!(outcome(&guest), outcome(&quiet));
    }
}

#[test]
fn alarms_at_a_high_rate_change_nothing() {
    const ROUNDS: u32 = 500;
    let mut quiet = guest(ROUNDS);
    run_through(&mut quiet);
    let mut guest = guest(ROUNDS);
    let (mut kicks, mut nanoseconds) = (0u32, 0u64);
    loop {
        // Every length of time up to 30 microseconds, so that they ring everywhere.
        nanoseconds = (nanoseconds + 7919) % 30_000;
        guest.vcpu.set_alarm(Some(Duration::from_nanos(nanoseconds)));
        match guest.run() {
            Exit::Kicked => kicks += 1,
            exit => {
                assert_eq!(exit, Exit::SoftwareInterrupt { vector: END, length: 2 });
                break;
            }
        }
    }
    assert!(kicks > ENOUGH, "{kicks}");
    assert_eq!(outcome(&guest), outcome(&quiet));
}

#[test]
fn a_loop_without_end_is_left_promptly() {
    for body in
        [(|a| a.nop()) as fn(&mut CodeAssembler) -> _, |a| a.mov(eax, ds), |a| a.fnstenv(ptr(DATA))]
    {
        let mut guest = Guest::user(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            body(a)?;
            a.jmp(again)
        });
        let start = Instant::now();
        guest.vcpu.set_alarm(Some(Duration::from_millis(5)));
        assert_eq!(guest.run(), Exit::Kicked);
        assert!(start.elapsed() < Duration::from_secs(2));
        guest.vcpu.kicker().kick();
        assert_eq!(guest.run(), Exit::Kicked);
        let kicker = guest.vcpu.kicker();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            kicker.kick();
        });
        assert_eq!(guest.run(), Exit::Kicked);
        other.join().unwrap();
    }
}

#[test]
fn waiting_ends_with_a_kick_an_alarm_or_the_time() {
    let mut guest = Guest::user(|a| a.nop());
    let start = Instant::now();
    guest.vcpu.wait(Some(Duration::from_millis(3)));
    guest.vcpu.set_alarm(Some(Duration::from_millis(3)));
    guest.vcpu.wait(None);
    guest.vcpu.kicker().kick();
    guest.vcpu.wait(None);
    assert!(start.elapsed() < Duration::from_secs(5));
    // Each sleep has answered the kick that ended it.
    guest.finish();
}

#[test]
fn a_kicker_may_outlive_its_processor() {
    let guest = Guest::bare();
    let kicker = guest.vcpu.kicker();
    drop(guest);
    kicker.kick();
    kicker.clone().kick();
}

/// A handler of somebody else's may be running on top of translated code when the kick comes.
#[test]
fn a_kick_is_noticed_though_another_signal_was_quicker() {
    extern "C" fn slow(_: libc::c_int) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(200) {}
    }
    // SAFETY: the handler only looks at the clock, and nobody else uses this signal.
    let thread = unsafe {
        libc::signal(libc::SIGUSR2, slow as *const () as libc::sighandler_t);
        libc::pthread_self()
    };
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    });
    for round in 0..50 {
        let kicker = guest.vcpu.kicker();
        let (answered, other_sees) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let until = answered.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(300));
            // SAFETY: the thread waits for this one.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
            std::thread::sleep(Duration::from_micros(10));
            kicker.kick();
            while !until.load(Ordering::SeqCst) && other_sees.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_micros(50));
            }
            if !until.load(Ordering::SeqCst) {
                eprintln!("kick {round} is lost");
                std::process::abort();
            }
        });
        assert_eq!(guest.run(), Exit::Kicked);
        answered.store(true, Ordering::SeqCst);
        other.join().unwrap();
    }
}

#[test]
fn a_new_stack_segment_holds_interrupts_for_one_instruction() {
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(eax, ss)?;
        a.set_label(&mut again)?;
        a.mov(ss, eax)?;
        a.mov(ecx, ecx)?;
        a.inc(edx)?;
        a.jmp(again)
    });
    // Behind two bytes of `mov eax, ss` and two of `mov ss, eax`.
    const BEHIND: u32 = USER + 4;
    let mut seen = [0, 0];
    for nanoseconds in (0..40_000).step_by(20) {
        guest.vcpu.set_alarm(Some(Duration::from_nanos(nanoseconds)));
        assert_eq!(guest.run(), Exit::Kicked);
        let held = guest.vcpu.holds_interrupts();
        assert_eq!(held, guest.vcpu.cpu.eip() == BEHIND, "at {:#x}", guest.vcpu.cpu.eip());
        seen[usize::from(held)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
