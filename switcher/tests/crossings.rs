//! What Rust does between two pieces of guest code, the guest doesn't see: not in its FPU, not in its
//! SSE registers, not in its flags. And the guest's rounding and traps never reach Rust.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Exit, Gpr, PAGE_SIZE, ParkedVcpu, Segment, SegmentRegister};
use std::hint::black_box;

type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

/// Every kind of way into Rust and back, as a piece of a program.
const CROSSINGS: [(&str, Program); 10] = [
    ("an interrupt", |a| a.int(0x1f)),
    ("an emulated instruction", |a| a.mov(esi, ds)),
    ("a bounced instruction", |a| a.fnstenv(ptr(DATA + 0x100))),
    ("a page fault", |a| a.inc(dword_ptr(DATA + 0x2000))),
    ("a fault the guest sees", |a| a.ud2()),
    ("an indirect jump that misses", |a| {
        a.mov(esi, USER + 0x1000)?;
        a.call(esi)
    }),
    ("a branch that isn't linked yet", |a| {
        let mut over = a.create_label();
        a.jmp(over)?;
        a.nops_with_size(200)?;
        a.set_label(&mut over)?;
        a.nop()
    }),
    ("a store into code", |a| a.mov(byte_ptr(USER + 0x1001), 7)),
    ("a segment with a limit", |a| a.mov(esi, dword_ptr(0).fs())),
    ("a privileged instruction", |a| a.cli()),
];

/// Computes with floats and doubles, as Rust does, in its own rounding and with its exceptions masked.
fn rust_computes() {
    assert!((black_box(1f64) / black_box(0f64)).is_infinite());
    assert!(black_box(1f32) / black_box(3f32) * 3.0 == 1.0);
    let bytes: Vec<u8> = (0..black_box(1000u32)).map(|i| i as u8).collect();
    assert_eq!(bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>(), black_box(124_716));
}

#[test]
fn the_fpu_and_sse_state_survives_every_kind_of_crossing() {
    for (name, crossing) in CROSSINGS {
        let mut guest = Guest::user(|a| {
            a.mov(dword_ptr(DATA), 0x7f80 & !0x200)?; // towards zero; division by zero unmasked
            a.ldmxcsr(ptr(DATA))?;
            a.mov(dword_ptr(DATA), 0x0f7f)?;
            a.fldcw(word_ptr(DATA))?;
            a.fldpi()?;
            for (i, register) in
                [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7].into_iter().enumerate()
            {
                a.mov(eax, 0x1111_1111 * (i as u32 + 1))?;
                a.movd(register, eax)?;
                a.pshufd(register, register, 0x44)?;
            }
            a.xor(eax, eax)?;
            a.cmp(eax, 1)?; // CF, SF, AF, PF
            a.std()?;
            crossing(a)?;
            a.pushfd()?; // privileged: the test looks
            a.cld()?;
            for (i, register) in
                [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7].into_iter().enumerate()
            {
                a.movups(ptr(DATA + 0x800 + 16 * i as u32), register)?;
            }
            a.stmxcsr(ptr(DATA + 0x900))?;
            a.fnstcw(word_ptr(DATA + 0x904))?;
            a.fstp(qword_ptr(DATA + 0x908))
        });
        guest.assemble(USER + 0x1000, |a| {
            a.mov(edx, 0)?;
            a.ret()
        });
        let limited = Segment { base: DATA, limit: 0xff, ..Segment::flat_data(0x23) };
        guest.vcpu.cpu.set_segment(SegmentRegister::Fs, limited);
        loop {
            let exit = guest.run();
            rust_computes();
            let skip = match exit {
                Exit::SoftwareInterrupt { vector: END, .. } => break,
                Exit::SoftwareInterrupt { .. } => 0,
                Exit::Exception(exception) if exception.vector == 6 => 2,
                Exit::Privileged(instruction) => {
                    if instruction.mnemonic() == iced_x86::Mnemonic::Pushfd {
                        let flags = guest.vcpu.cpu.eflags();
                        if name != "a page fault" {
                            assert_eq!(flags & 0xcd5, 0x495, "{name}: flags {flags:#x}");
                        }
                    }
                    instruction.len() as u32
                }
                other => panic!("{name}: {other:?}"),
            };
            let eip = guest.vcpu.cpu.eip();
            guest.vcpu.cpu.set_eip(eip + skip);
        }
        for i in 0..8 {
            let value = 0x1111_1111 * (i + 1);
            let at = DATA + 0x800 + 16 * i;
            let stored = [0, 4, 8, 12].map(|offset| guest.peek(at + offset));
            assert_eq!(stored, [value, 0, value, 0], "{name}: xmm{i}");
        }
        assert_eq!(guest.peek(DATA + 0x900) & 0xffc0, 0x7d80, "{name}: mxcsr");
        assert_eq!(guest.peek(DATA + 0x904) & 0xffff, 0x0f7f, "{name}: control word");
        let pi = u64::from(guest.peek(DATA + 0x908)) | u64::from(guest.peek(DATA + 0x90c)) << 32;
        assert_eq!(pi, std::f64::consts::PI.to_bits(), "{name}: st0 (pi towards zero is the same)");
    }
}

#[test]
fn an_fxsave_area_shows_the_guest_and_nothing_of_the_host() {
    let mut guest = Guest::user(|a| {
        a.fninit()?;
        a.fld1()?;
        a.fstp(dword_ptr(DATA))?;
        a.fldpi()?;
        a.movd(xmm7, esp)?;
        a.fxsave(ptr(DATA + 0x200))?;
        a.fninit()?;
        a.xorps(xmm7, xmm7)?;
        a.fxrstor(ptr(DATA + 0x200))?;
        a.fxsave(ptr(DATA + 0x400))?;
        a.fnsave(ptr(DATA + 0x600))?;
        a.fldz()?;
        a.fnstenv(ptr(DATA + 0x700))
    });
    guest.poke(DATA + 0x200, &[0xee; 512]);
    guest.poke(DATA + 0x400, &[0xee; 512]);
    guest.finish();
    for area in [DATA + 0x200, DATA + 0x400] {
        assert_eq!([8, 12, 16, 20].map(|offset| guest.peek(area + offset)), [0; 4], "pointers");
        assert_eq!(guest.peek(area + 24), 0x1f80);
        assert_eq!(guest.peek(area + 160 + 7 * 16), STACK, "xmm7");
        for offset in (288..512).step_by(4) {
            assert_eq!(guest.peek(area + offset), 0xeeee_eeee, "left alone: {offset}");
        }
    }
    assert_eq!(guest.peek(DATA + 0x600 + 28 + 4), 0xc90f_daa2, "st0 in the saved state");
    for at in [DATA + 0x60c, DATA + 0x614, DATA + 0x70c, DATA + 0x714] {
        assert_eq!(guest.peek(at), 0, "no pointers at {at:#x}");
    }
}

#[test]
fn several_processors_share_a_thread() {
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 50)?;
        a.fldz()?;
        a.set_label(&mut again)?;
        a.fadd(dword_ptr(DATA))?;
        a.addps(xmm0, ptr(DATA))?;
        a.int(0x1f)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.fistp(dword_ptr(DATA + 0x20))?;
        a.movups(ptr(DATA + 0x30), xmm0)
    };
    let mut guests: Vec<Guest> = (0..3).map(|_| Guest::user(program)).collect();
    for (i, guest) in guests.iter_mut().enumerate() {
        guest.poke(DATA, &(i as f32 + 1.0).to_le_bytes());
    }
    for _ in 0..50 {
        for guest in &mut guests {
            assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: 0x1f, length: 2 });
        }
    }
    for (i, guest) in guests.iter_mut().enumerate() {
        guest.finish();
        assert_eq!(guest.peek(DATA + 0x20), 50 * (i as u32 + 1));
        assert_eq!(f32::from_bits(guest.peek(DATA + 0x30)), 50.0 * (i as f32 + 1.0));
    }
}

#[test]
fn a_parked_processor_goes_on_in_another_thread() {
    let Guest { memory, vcpu, mut tables, .. } = {
        let mut guest = Guest::user(|a| {
            a.fldpi()?;
            a.mov(eax, 5)?;
            a.int(0x1f)?;
            a.fstp(qword_ptr(DATA))?;
            a.inc(eax)
        });
        assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: 0x1f, length: 2 });
        guest
    };
    let kicker = vcpu.kicker();
    let parked: ParkedVcpu = vcpu.park();
    let frame = tables.pages[&(DATA / PAGE_SIZE)].frame;
    let other = std::thread::spawn(move || {
        let mut vcpu = parked.unpark().unwrap();
        kicker.kick();
        assert_eq!(vcpu.run(&mut tables), Exit::Kicked);
        vcpu.set_alarm(Some(std::time::Duration::from_micros(1)));
        vcpu.wait(None);
        assert_eq!(vcpu.run(&mut tables), Exit::SoftwareInterrupt { vector: END, length: 2 });
        vcpu.cpu.gpr(Gpr::Eax)
    });
    assert_eq!(other.join().unwrap(), 6);
    let mut bytes = [0; 8];
    memory.read(lguest_switcher::GuestPhys(frame * PAGE_SIZE), &mut bytes).unwrap();
    assert_eq!(f64::from_le_bytes(bytes), std::f64::consts::PI);
}
