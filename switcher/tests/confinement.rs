//! The guest can't get out: every address it forms wraps at 4 GiB and meets its own page tables, and
//! user code finds no kernel.
//!
//! Each test puts canaries where an escape would land: the windows have inaccessible guards, so an access outside
//! ends as a fault that isn't the guest's (`Exit::Unsupported`), or as a crash of the test.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Exit, Gpr, PAGE_SIZE};
use proptest::prelude::*;

/// First address of the last page.
const TOP: u32 = 0xffff_f000;

/// A user program with memory in the first page and the last one too.
fn at_both_ends(
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Guest {
    let mut guest = Guest::user(program);
    guest.provide(0, 1, true);
    guest.provide(TOP, 1, true);
    guest
}

#[test]
fn a_push_at_the_bottom_goes_to_the_top() {
    let mut guest = at_both_ends(|a| {
        a.mov(esp, 0)?;
        a.push(0x1234_5678)?;
        a.mov(eax, esp)?;
        a.mov(esp, 2)?;
        a.mov(cx, 0x3344)?;
        a.push(cx)?;
        a.mov(ebx, esp)?;
        a.mov(esp, 0)?;
        a.call(u64::from(USER + 0x1000))
    });
    guest.assemble(USER + 0x1000, |a| {
        a.mov(ecx, dword_ptr(0xffff_fffc_u32))?;
        a.pop(edx)?;
        a.mov(esi, esp)
    });
    guest.finish();
    assert_eq!((guest.gpr(Gpr::Eax), guest.gpr(Gpr::Ebx)), (0xffff_fffc, 0));
    assert_eq!((guest.peek(0), guest.peek(TOP + 0xff8)), (0x3344, 0), "nothing beyond");
    assert_eq!(guest.gpr(Gpr::Ecx), guest.gpr(Gpr::Edx), "the return address");
    assert_eq!(guest.peek(TOP + 0xffc), guest.gpr(Gpr::Edx));
    assert_eq!(guest.gpr(Gpr::Esi), 0);
}

#[test]
fn without_a_page_at_the_top_such_a_push_faults_there() {
    let mut guest = Guest::user(|a| a.push(eax));
    guest.set_gpr(Gpr::Esp, 0);
    assert_eq!(guest.exception(), page_fault(0xffff_fffc, 6));
    assert_eq!((guest.gpr(Gpr::Esp), guest.vcpu.cpu.eip()), (0, USER));
}

#[test]
fn one_operand_does_not_cross_the_top() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let programs: [(Program, Exception); 4] = [
        (|a| a.push(eax), Exception::stack(0)),
        (|a| a.mov(dword_ptr(ebx), eax), Exception::protection(0)),
        (|a| a.mov(eax, dword_ptr(ebx)), Exception::protection(0)),
        (|a| a.movups(xmm0, ptr(ebx)), Exception::protection(0)),
    ];
    for (program, expected) in programs {
        let mut guest = at_both_ends(program);
        guest.set_gpr(Gpr::Esp, 2);
        guest.set_gpr(Gpr::Ebx, 0xffff_fffe);
        for _ in 0..2 {
            assert_eq!(guest.exception(), expected);
            assert_eq!((guest.gpr(Gpr::Esp), guest.vcpu.cpu.eip()), (2, USER));
        }
    }
}

#[test]
fn bit_strings_reach_half_a_gigabyte_around_themselves_and_no_farther() {
    // The bit is 2^31 bits below (256 MiB) and just under that above; from either end it wraps.
    for (base, index) in
        [(0u32, i32::MIN), (0, -8), (0xffff_fffc, i32::MAX), (0xffff_fffc, 64), (DATA, 77)]
    {
        let target = base.wrapping_add((index >> 5 << 2) as u32);
        let mut guest = Guest::user(|a| {
            a.bts(dword_ptr(ebx), ecx)?;
            a.setc(al)?;
            a.bt(dword_ptr(ebx), ecx)?;
            a.setc(ah)
        });
        guest.set_gpr(Gpr::Ebx, base);
        guest.set_gpr(Gpr::Ecx, index as u32);
        guest.set_gpr(Gpr::Eax, 0);
        if base != DATA {
            assert_eq!(guest.exception(), page_fault(target, 6), "{base:#x} {index}");
            guest.provide(target & !(PAGE_SIZE - 1), 1, true);
        }
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), 0x100);
        assert_eq!(guest.peek(target), 1 << (index & 31));
    }
}

#[test]
fn strings_run_across_both_ends_in_both_directions() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let store: [(Program, u32); 3] =
        [(|a| a.rep().stosb(), 1), (|a| a.rep().stosw(), 2), (|a| a.rep().stosd(), 4)];
    for (program, size) in store {
        for (down, start) in [(false, 0xffff_fff0), (true, 0x10)] {
            let mut guest = at_both_ends(program);
            guest.vcpu.cpu.set_eflags(if down { 0x400 } else { 0 });
            guest.set_gpr(Gpr::Eax, 0xabab_abab);
            guest.set_gpr(Gpr::Ecx, 32 / size);
            guest.set_gpr(Gpr::Edi, start);
            guest.finish();
            let end = if down { start.wrapping_sub(32) } else { start.wrapping_add(32) };
            assert_eq!((guest.gpr(Gpr::Edi), guest.gpr(Gpr::Ecx)), (end, 0), "{size} {down}");
            let first = if down { start.wrapping_sub(32).wrapping_add(size) } else { start };
            let byte = |at: u32| guest.memory.read_u8(guest.phys(at)).unwrap();
            let written = (0..32).all(|i| byte(first.wrapping_add(i)) == 0xab);
            assert!(written, "{size} {down} {start:#x}");
            assert_eq!([byte(first.wrapping_sub(1)), byte(first.wrapping_add(32))], [0, 0]);
        }
    }
    // A copy whose source and destination both wrap.
    let mut guest = at_both_ends(|a| {
        a.rep().movsd()?;
        a.std()?;
        a.mov(ecx, 4)?;
        a.sub(esi, 4)?;
        a.sub(edi, 4)?;
        a.repe().cmpsd()?;
        a.cld()
    });
    guest.set_gpr(Gpr::Esi, 0xffff_fff0);
    guest.set_gpr(Gpr::Edi, 0xffff_fff8);
    guest.set_gpr(Gpr::Ecx, 6);
    guest.poke(TOP + 0xff0, &[7; 16]);
    guest.finish();
    assert_eq!(guest.peek(0xc), 0x0707_0707);
    assert_eq!((guest.gpr(Gpr::Edi), guest.gpr(Gpr::Ecx)), (0xffff_fffc, 0));
}

#[test]
fn operands_wrap_from_the_top_to_the_bottom() {
    let mut guest = at_both_ends(|a| {
        a.mov(ebx, 0xffff_fffc_u32)?;
        a.mov(dword_ptr(ebx), 0x4433_2211)?;
        a.mov(dword_ptr(ebx + 4), 0x8877_6655_u32)?;
        a.mov(eax, dword_ptr(ebx))?;
        a.mov(ecx, 0x8000_0000_u32)?;
        a.mov(edx, 0x8000_0004_u32)?;
        a.add(dword_ptr(ecx + edx * 1 + 4), 5)?;
        a.mov(esi, dword_ptr(ecx + ecx * 2 - 0x7fff_fff8))?;
        a.movups(xmm0, ptr(ebx - 12))
    });
    guest.poke(8, &37u32.to_le_bytes());
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 0x4433_2211);
    assert_eq!(guest.peek(8), 42);
    assert_eq!(guest.gpr(Gpr::Esi), 42);
    assert_eq!(guest.peek(0), 0x8877_6655);
}

#[test]
fn user_code_finds_no_kernel_to_read_write_jump_or_return_to() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let accesses: [(Program, u32); 6] = [
        (|a| a.mov(eax, dword_ptr(KERNEL)), 5),
        (|a| a.mov(dword_ptr(KERNEL), eax), 7),
        (|a| a.jmp(u64::from(KERNEL)), 5),
        (
            |a| {
                a.mov(eax, KERNEL)?;
                a.call(eax)
            },
            5,
        ),
        (
            |a| {
                a.push(KERNEL)?;
                a.ret()
            },
            5,
        ),
        (
            |a| {
                a.mov(dword_ptr(DATA), KERNEL)?;
                a.jmp(dword_ptr(DATA))
            },
            5,
        ),
    ];
    for (program, error) in accesses {
        let mut guest = Guest::kernel(|a| {
            // Makes the kernel's code and data well known: mapped, translated, in its jump table.
            a.mov(ebx, dword_ptr(KERNEL))?;
            a.mov(edx, KERNEL + 0x1000)?;
            a.call(edx)?;
            a.call(edx)
        });
        guest.assemble(KERNEL + 0x1000, |a| a.ret());
        guest.finish();
        guest.set_gpr(Gpr::Ebx, 0);
        guest.start_kernel(KERNEL);
        guest.finish();
        guest.provide(USER, 2, true);
        guest.provide(STACK - PAGE_SIZE, 1, true);
        guest.assemble(USER, program);
        for _ in 0..3 {
            guest.start_user(USER);
            assert_eq!(guest.exception(), page_fault(KERNEL, error));
        }
    }
}

#[test]
fn code_both_may_run_has_each_ones_own_rights() {
    // The same page, seen by the kernel and by the user; the kernel runs it first.
    let mut guest = Guest::kernel(|a| a.jmp(u64::from(KERNEL + 0x2000)));
    guest.provide(STACK - PAGE_SIZE, 1, true);
    let shared = (KERNEL + 0x2000) / PAGE_SIZE;
    if let Some(page) = guest.tables.pages.get_mut(&shared) {
        page.user = true;
    }
    guest.assemble(KERNEL + 0x2000, |a| {
        a.mov(eax, dword_ptr(KERNEL_DATA))?;
        a.mov(ecx, cs)
    });
    guest.finish();
    guest.start_user(KERNEL + 0x2000);
    assert_eq!(guest.exception(), page_fault(KERNEL_DATA, 5));
    guest.start_kernel(KERNEL);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Ecx), 8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any addressing form with any registers touches exactly the page that 32-bit arithmetic
    /// says, or faults there.
    #[test]
    fn any_operand_lands_where_32_bits_say(
        base in any::<u32>(), index in any::<u32>(), scale in 0u32..4, displacement in any::<i32>(),
        form in 0usize..6,
    ) {
        let factor = 1 << scale;
        let address = base.wrapping_add(index.wrapping_mul(factor)).wrapping_add(displacement as u32);
        prop_assume!(address % PAGE_SIZE <= PAGE_SIZE - 4);
        let page = address / PAGE_SIZE;
        prop_assume!(![USER, DATA, STACK - PAGE_SIZE].contains(&(page * PAGE_SIZE)));
        let mut guest = Guest::user(|a| {
            let operand = ebx + esi * factor + displacement;
            match form {
                0 => a.mov(dword_ptr(operand), eax),
                1 => a.add(dword_ptr(operand), eax),
                2 => a.xchg(dword_ptr(operand), eax),
                3 => a.push(dword_ptr(operand)),
                4 => a.movd(xmm0, dword_ptr(operand)),
                _ => a.cmpxchg(dword_ptr(operand), ecx),
            }
        });
        guest.set_gpr(Gpr::Ebx, base);
        guest.set_gpr(Gpr::Esi, index);
        let Exit::Exception(exception) = guest.run() else { panic!("mapped by nobody") };
        prop_assert_eq!((exception.vector, exception.address.0), (14, address));
        guest.provide(page * PAGE_SIZE, 1, true);
        prop_assert_eq!(guest.run(), Exit::SoftwareInterrupt { vector: END, length: 2 });
    }
}
