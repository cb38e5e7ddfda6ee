//! Awkward instructions on the running engine: those that 64-bit mode dropped, strings that wrap,
//! fault or are interrupted, and accesses at the edges of pages and of the address space.

mod machine;

use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Exit, Gpr, GuestVirt};
use machine::*;
use std::time::Duration;

/// A page fault of level 3.
fn page_fault(address: u32, write: bool) -> Exit {
    let error = 4 | u32::from(write) << 1;
    Exit::Exception(Exception { vector: 14, error: Some(error), address: GuestVirt(address) })
}

#[test]
fn what_64_bit_mode_dropped() {
    let mut machine = Machine::new(3, |a| {
        a.mov(eax, 0x0109)?;
        a.add(al, 7)?;
        a.aaa()?;
        a.mov(dword_ptr(0x3000), eax)?;
        a.mov(al, 0x79)?;
        a.add(al, 0x35)?;
        a.daa()?;
        a.mov(byte_ptr(0x3004), al)?;
        a.db(&[0xd6])?; // salc
        a.mov(byte_ptr(0x3005), al)?;
        a.mov(eax, 63)?;
        a.aam(10)?;
        a.mov(word_ptr(0x3008), ax)?;
        a.aad(10)?;
        a.mov(word_ptr(0x300a), ax)?;
        a.pushad()?;
        a.xor(eax, eax)?;
        a.xor(edi, edi)?;
        a.popad()?;
        a.mov(ecx, 0x30)?;
        a.mov(edx, 3)?;
        a.arpl(cx, dx)?;
        a.bound(edx, dword_ptr(0x3010))?;
        a.clc()?;
        a.into()
    });
    machine.store(0x3010, &[0, 0, 0, 0, 3, 0, 0, 0]);
    machine.finish();
    assert_eq!(machine.dword(0x3000), 0x0206);
    assert_eq!(machine.dword(0x3004), 0xff14);
    assert_eq!(machine.dword(0x3008), 0x003f_0603);
    assert_eq!(machine.gpr(Gpr::Eax), 63);
    assert_eq!((machine.gpr(Gpr::Ecx), machine.gpr(Gpr::Esp)), (0x33, STACK));
}

#[test]
fn bounds_fault_and_overflow_interrupts() {
    let mut machine = Machine::new(3, |a| {
        a.mov(al, 0x7f)?;
        a.inc(al)?;
        a.into()?;
        a.mov(edx, 4)?;
        a.bound(edx, dword_ptr(0x3010))
    });
    machine.store(0x3010, &[0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(machine.run(), Exit::SoftwareInterrupt { vector: 4, length: 1 });
    assert_eq!(machine.vcpu.cpu.eip(), START + 5);
    assert_eq!(machine.run(), Exit::Exception(Exception::plain(5)));
    assert_eq!(machine.vcpu.cpu.eip(), START + 10);
}

#[test]
fn the_top_of_memory_is_next_to_its_bottom() {
    let mut machine = Machine::new(3, |a| {
        a.mov(esp, 0x10)?;
        a.mov(eax, 0x1234_5678)?;
        a.pushad()?;
        a.pop(edi)?;
        a.call(dword_ptr(0x3000))?;
        a.mov(esi, 0xffff_fff8_u32)?;
        a.mov(edi, 0x5000)?;
        a.mov(ecx, 4)?;
        a.rep().movsd()?;
        a.mov(esi, 0xffff_fffd_u32)?;
        a.mov(ecx, 5)?;
        a.rep().movsb()
    });
    machine.store(0x3000, &[0x00, 0x20, 0, 0]);
    machine.store(0x2000, &[0xc2, 0x1c, 0]); // ret 28
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Esp), 0x10);
    assert_eq!((machine.gpr(Gpr::Esi), machine.gpr(Gpr::Edi)), (2, 0x5015));
    let top =
        [machine.dword(0xf_fff8), machine.dword(0xf_fffc), machine.dword(0), machine.dword(4)];
    assert_eq!([0x5000, 0x5004, 0x5008, 0x500c].map(|at| machine.dword(at)), top);
    assert_eq!(machine.dword(0x5010), top[1] >> 8 | top[2] << 24);
    assert_eq!(machine.dword(0xc), 0x1234_5678);
}

#[test]
fn nothing_crosses_the_top_of_memory() {
    let (data, stack) = (Exception::protection(0), Exception::stack(0));
    for (program, exception) in [
        ((|a| a.mov(eax, dword_ptr(0xffff_fffe_u32))) as fn(&mut CodeAssembler) -> _, data),
        (|a| a.add(word_ptr(ebx), 1), data),
        (|a| a.movups(xmm0, xmmword_ptr(ebx)), data),
        (|a| a.push(1), stack),
        (|a| a.rep().lodsd(), data),
    ] {
        let mut machine = Machine::new(3, program);
        machine.set_gpr(Gpr::Ebx, u32::MAX);
        machine.set_gpr(Gpr::Esp, 2);
        machine.set_gpr(Gpr::Esi, 0xffff_fff9);
        machine.set_gpr(Gpr::Ecx, 2);
        assert_eq!(machine.run(), Exit::Exception(exception));
        assert_eq!((machine.vcpu.cpu.eip(), machine.gpr(Gpr::Esp)), (START, 2));
        let steps = 2 - machine.gpr(Gpr::Ecx);
        assert_eq!(machine.gpr(Gpr::Esi), 0xffff_fff9 + 4 * steps);
    }
}

#[test]
fn the_pieces_of_an_operand_wrap_one_by_one() {
    /// A program, the offset of its operand, and what memory holds afterwards.
    type Case =
        (fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>, u32, &'static [(u32, u32)]);
    // 16-bit addresses are in bytes: the assembler would take [bx] for a mistake.
    let cases: [Case; 9] = [
        // fstp tbyte [bx]: 8 bytes, then sign and exponent.
        (|a| a.db(&[0xd9, 0xe8, 0x67, 0xdb, 0x3f]), 0xfff8, &[(0xfffc, 1 << 31), (0, 0x3fff)]),
        (|a| a.db(&[0xd9, 0xe8, 0xdb, 0x3b]), 0xffff_fff8, &[(0xf_fffc, 1 << 31), (0, 0x3fff)]),
        // les ecx, [bx]; mov [0x3000], ecx
        (|a| a.db(&[0x67, 0xc4, 0x0f, 0x89, 0x0d, 0, 0x30, 0, 0]), 0xfffc, &[(0x3000, 0)]),
        // bound eax, [bx]: only 0 lies between these two.
        (|a| a.db(&[0x67, 0x62, 0x07]), 0xfffc, &[]),
        // fnstenv [bx]: seven dwords.
        (|a| a.db(&[0x67, 0xd9, 0x37]), 0xfff4, &[(0xfff4, 0xffff_037f), (0xc, 0xffff_0000)]),
        // fld1; fnsave [bx]; frstor [bx]; fst qword [0x3000]
        (
            |a| a.db(&[0xd9, 0xe8, 0x67, 0xdd, 0x37, 0x67, 0xdd, 0x27, 0xdd, 0x15, 0, 0x30, 0, 0]),
            0xffe4,
            &[(4, 1 << 31), (8, 0x3fff), (0x3004, 0x3ff0_0000)],
        ),
        // fstp tbyte [0xfff8]
        (|a| a.db(&[0xd9, 0xe8, 0x67, 0xdb, 0x3e, 0xf8, 0xff]), 0, &[(0, 0x3fff)]),
        // fxsave [bx]: MXCSR is at 24.
        (|a| a.db(&[0x67, 0x0f, 0xae, 0x07]), 0xfff0, &[(8, 0x1f80)]),
        // mov edi, ebx; pcmpeqb mm0, mm0; maskmovq mm0, mm0 (by di): byte by byte.
        (
            |a| a.db(&[0x89, 0xdf, 0x0f, 0x74, 0xc0, 0x67, 0x0f, 0xf7, 0xc0]),
            0xfffd,
            &[(0xfffc, 0xffff_ff00), (0, u32::MAX), (4, 0xff)],
        ),
    ];
    for (index, (program, operand, expected)) in cases.into_iter().enumerate() {
        let mut machine = Machine::new(3, program);
        machine.set_gpr(Gpr::Ebx, operand);
        if index == 2 {
            machine.store(0, &(DATA_3 | 3).to_le_bytes());
        }
        let code = machine.dword(START);
        machine.finish();
        for &(at, value) in expected {
            assert_eq!(machine.dword(at), value, "program {index}, at {at:#x}");
        }
        assert_eq!(machine.dword(START), code, "program {index}");
    }
}

#[test]
fn strings_stand_at_the_fault_and_go_on() {
    let mut machine = Machine::new(3, |a| {
        a.mov(esi, 0x3000)?;
        a.mov(edi, 0x5ff6)?;
        a.mov(ecx, 600)?;
        a.rep().movsd()
    });
    let bytes: Vec<u8> = (0..2400_u32).map(|index| ((index * 7) >> 2) as u8).collect();
    machine.store(0x3000, &bytes);
    machine.world.absent.insert(6);
    assert_eq!(machine.run(), page_fault(0x6000, true));
    let at = (machine.gpr(Gpr::Esi), machine.gpr(Gpr::Edi), machine.gpr(Gpr::Ecx));
    assert_eq!(at, (0x3008, 0x5ffe, 598));
    assert_eq!(machine.vcpu.cpu.eip(), START + 15);
    machine.world.absent.clear();
    machine.finish();
    let mut copy = vec![0; bytes.len()];
    machine.memory.read(lguest_switcher::GuestPhys(0x5ff6), &mut copy).expect("within memory");
    assert!(copy == bytes);
    assert_eq!((machine.gpr(Gpr::Edi), machine.gpr(Gpr::Ecx)), (0x5ff6 + 2400, 0));
}

#[test]
fn backward_strings_reach_below_zero() {
    let mut machine = Machine::new(3, |a| {
        a.std()?;
        a.mov(edi, 4)?;
        a.mov(ecx, 3)?;
        a.mov(eax, 0x4433_2211)?;
        a.rep().stosd()?;
        a.cld()
    });
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Edi), 0xffff_fff8);
    assert_eq!((machine.dword(0), machine.dword(4)), (0x4433_2211, 0x4433_2211));
    assert_eq!(machine.dword(0xf_fffc), 0x4433_2211);
}

#[test]
fn narrow_addresses() {
    let mut machine = Machine::new(3, |a| {
        a.mov(ebx, 0x7_fff0)?;
        a.mov(esi, 0x20)?;
        a.db(&[0x67, 0x8b, 0x00])?; // mov eax, [bx+si]
        a.mov(edi, 0xabcd_fffe_u32)?;
        a.mov(ecx, 0xabcd_0004_u32)?;
        a.db(&[0xf3, 0x67, 0xaa])?; // rep stosb by di and cx
        a.mov(ebp, 0x8_0001)?; // a bit 64 KiB away, and one
        a.db(&[0x67, 0x0f, 0xab, 0x2e, 0x00, 0x30])?; // bts [0x3000], ebp
        a.db(&[0x67, 0xe3, 2])?; // jcxz over what follows
        a.db(&[0x0f, 0x0b])
    });
    machine.store(0x10, &[0x78, 0x56, 0x34, 0x12]);
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Eax), 0x1234_5678);
    assert_eq!((machine.gpr(Gpr::Edi), machine.gpr(Gpr::Ecx)), (0xabcd_0002, 0xabcd_0000));
    assert_eq!((machine.dword(0xfffe) & 0xffff, machine.dword(0)), (0x7878, 0x7878));
    assert_eq!((machine.dword(0x3000), machine.dword(0x1_3000)), (2, 0));
}

#[test]
fn narrow_branches_cut_eip() {
    let mut machine = Machine::new(3, |a| {
        a.db(&[0x66, 0xe8, 0xfc, 0x1f])?; // call word: START is at 0x10000, so 0x12000 cut to 0x2000
        a.nop()
    });
    machine.store(0x2000, &[0x43, 0x66, 0x83, 0x04, 0x24, 0x10, 0x66, 0xc3]);
    machine.store(0x14, &[0xcd, END]);
    machine.finish();
    assert_eq!((machine.gpr(Gpr::Ebx), machine.vcpu.cpu.eip()), (1, 0x16));
    assert_eq!(machine.gpr(Gpr::Esp), STACK);
}

#[test]
fn accesses_across_pages_are_all_or_nothing() {
    for (program, address, write) in [
        ((|a| a.add(dword_ptr(0x4ffe), 1)) as fn(&mut CodeAssembler) -> _, 0x5000, true),
        (|a| a.mov(dword_ptr(0x4ffe), eax), 0x5000, true),
        (|a| a.mov(eax, dword_ptr(0x4ffe)), 0x5000, false),
        (|a| a.pop(dword_ptr(0x4ffe)), 0x5000, true),
        (|a| a.fstp(tbyte_ptr(0x4ffc)), 0x5000, true),
        (|a| a.movups(xmmword_ptr(0x4ff1), xmm3), 0x5000, true),
        (|a| a.cmpxchg8b(qword_ptr(0x4ffc)), 0x5000, true),
    ] {
        let mut machine = Machine::new(3, program);
        machine.store(0x4ff0, &[0xaa; 16]);
        machine.world.absent.insert(5);
        for _ in 0..2 {
            assert_eq!(machine.run(), page_fault(address, write));
            assert_eq!(machine.vcpu.cpu.eip(), START);
            assert_eq!(machine.gpr(Gpr::Esp), STACK);
            assert_eq!(machine.dword(0x4ffc), 0xaaaa_aaaa);
        }
        machine.world.absent.clear();
        machine.finish();
    }
}

#[test]
fn stack_frames_across_a_missing_page() {
    for program in [
        (|a| a.pushad()) as fn(&mut CodeAssembler) -> _,
        |a| a.enter(32, 3),
        |a| a.db(&[0x9a, 0, 0, 1, 0, 0x1b, 0]), // call far
    ] {
        let mut machine = Machine::new(3, program);
        machine.set_gpr(Gpr::Esp, 0x6004);
        machine.set_gpr(Gpr::Ebp, 0x7000);
        machine.store(0x6000, &[0xaa; 4]);
        machine.world.absent.insert(5);
        assert_eq!(machine.run(), page_fault(0x5ffc, true));
        assert_eq!((machine.gpr(Gpr::Esp), machine.gpr(Gpr::Ebp)), (0x6004, 0x7000));
        assert_eq!(machine.dword(0x6000), 0xaaaa_aaaa);
    }
}

#[test]
fn a_kick_interrupts_a_long_repetition() {
    // In the processor, and (with a segment that has a base) in Rust.
    for prefix in [0x3e, 0x64] {
        let mut machine = Machine::new(3, |a| {
            a.mov(ax, 0x28)?;
            a.mov(fs, ax)?;
            a.db(&[0xf3, prefix, 0xac]) // rep lodsb
        });
        machine.world.descriptors.push(0x00cf_f304_0000_ffff);
        let count = 0xffff_fff0;
        machine.set_gpr(Gpr::Ecx, count);
        let mut left = count;
        let mut interruptions = 0;
        while interruptions < 3 {
            machine.vcpu.set_alarm(Some(Duration::from_millis(3)));
            assert_eq!(machine.run(), Exit::Kicked);
            // On a busy machine the alarm may ring before anything has run.
            if machine.vcpu.cpu.eip() == START + 7 {
                interruptions += u32::from(machine.gpr(Gpr::Ecx) < left);
                left = machine.gpr(Gpr::Ecx);
                assert_eq!(machine.gpr(Gpr::Esi), count - left);
            }
        }
        machine.set_gpr(Gpr::Ecx, 1);
        machine.finish();
        assert_eq!(machine.gpr(Gpr::Esi), count - left + 1);
    }
}
