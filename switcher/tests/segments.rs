//! Segments on the running engine: bases, limits, types and levels, and that a refused access has
//! changed nothing.

mod machine;

use iced_x86::Mnemonic;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Exit, Gpr, Segment, SegmentRegister, cpu};
use machine::*;

/// 64 KiB at 0x40000.
const BASED: u16 = 0x28;
/// 4 GiB from 0x40000.
const MOVED: u16 = 0x30;
/// Flat, but can't be written.
const CONSTANT: u16 = 0x38;
/// From 0x1000 up to 4 GiB.
const EXPAND_DOWN: u16 = 0x40;
/// 64 KiB at 0x40000, with a 16-bit stack pointer.
const NARROW: u16 = 0x48;
/// Not present.
const ABSENT: u16 = 0x50;
/// 4 GiB of code from 0x40000.
const MOVED_CODE: u16 = 0x58;
/// Behind the table's end.
const BEYOND: u16 = 0x60;

/// A machine about to run a program, with those segments in its table.
fn machine(
    level: u16,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Machine {
    let mut machine = Machine::new(level, program);
    machine.world.descriptors.extend([
        0x0040_f304_0000_ffff,
        0x00cf_f304_0000_ffff,
        0x00cf_f100_0000_ffff,
        0x00c0_f700_0000_0000,
        0x0000_f304_0000_ffff,
        0x00cf_7300_0000_ffff,
        0x00cf_fb04_0000_ffff,
    ]);
    machine
}

/// Loads a data segment register from an immediate, through ax.
fn load(
    a: &mut CodeAssembler,
    register: AsmRegisterSegment,
    selector: u16,
) -> Result<(), IcedError> {
    a.mov(ax, u32::from(selector))?;
    a.mov(register, ax)
}

#[test]
fn a_base_is_added() {
    let mut machine = machine(3, |a| {
        load(a, fs, MOVED)?;
        load(a, gs, BASED)?;
        a.mov(ebx, 0x20)?;
        a.mov(eax, dword_ptr(ebx).fs())?;
        a.add(dword_ptr(ebx + 4).gs(), eax)?;
        a.inc(word_ptr(0x28).gs())
    });
    machine.store(0x4_0020, &[4, 3, 2, 1, 1, 0, 0, 0, 0xff, 0xff, 7]);
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Eax), 0x0102_0304);
    assert_eq!(machine.dword(0x4_0024), 0x0102_0305);
    assert_eq!(machine.dword(0x4_0028), 0x0007_0000);
}

#[test]
fn addresses_wrap_behind_the_base() {
    let mut machine = machine(3, |a| {
        load(a, fs, MOVED)?;
        a.mov(ebx, 0xfffc_0010_u32)?;
        a.mov(eax, dword_ptr(ebx).fs())
    });
    machine.store(0x10, &[0xdd, 0xcc, 0xbb, 0xaa]);
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Eax), 0xaabb_ccdd);
}

/// Runs a program that ends in an instruction which is refused: memory, flags and esp must be as
/// before it.
fn assert_refused(
    exception: Exception,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut machine = machine(3, |a| {
        program(a)?;
        // Not reached.
        a.mov(dword_ptr(0x5_0000), 1)
    });
    machine.store(0x4_fff8, &[0x55; 16]);
    machine.vcpu.cpu.set_eflags(cpu::LIVE_FLAGS & !0x400);
    assert_eq!(machine.run(), Exit::Exception(exception));
    assert_eq!(machine.dword(0x5_0000), 0x5555_5555);
    assert_eq!(machine.dword(0x4_fffc), 0x5555_5555);
    assert_eq!(machine.vcpu.cpu.eflags() & cpu::LIVE_FLAGS, cpu::LIVE_FLAGS & !0x400);
    assert_eq!(machine.gpr(Gpr::Esp), STACK);
    // It is refused again, at the same place.
    let eip = machine.vcpu.cpu.eip();
    assert_eq!(machine.run(), Exit::Exception(exception));
    assert_eq!(machine.vcpu.cpu.eip(), eip);
}

#[test]
fn limits_are_checked() {
    let refused = Exception::protection(0);
    assert_refused(refused, |a| {
        load(a, gs, BASED)?;
        a.mov(ecx, dword_ptr(0xfffc).gs())?; // the last that fits
        a.add(dword_ptr(0xfffd).gs(), ecx)
    });
    assert_refused(refused, |a| {
        load(a, gs, BASED)?;
        a.mov(ebx, 0x1_0000)?;
        a.mov(byte_ptr(ebx).gs(), 1)
    });
    assert_refused(refused, |a| {
        load(a, fs, EXPAND_DOWN)?;
        a.mov(ecx, dword_ptr(0x4_fffc).fs())?;
        a.mov(dword_ptr(0xfff).fs(), ecx)
    });
    // A bit string's index counts as an address.
    assert_refused(refused, |a| {
        load(a, gs, BASED)?;
        a.mov(ebx, 0x8_0000)?;
        a.bts(dword_ptr(0).gs(), ebx)
    });
}

#[test]
fn types_are_checked() {
    let refused = Exception::protection(0);
    assert_refused(refused, |a| {
        load(a, fs, CONSTANT)?;
        a.mov(ecx, dword_ptr(0x4_fffc).fs())?;
        a.mov(dword_ptr(0x4_fffc).fs(), ecx)
    });
    assert_refused(refused, |a| a.mov(dword_ptr(0x4_fffc).gs(), 1)); // null
    assert_refused(refused, |a| {
        load(a, ds, 0)?;
        a.xor(ecx, dword_ptr(0x4_fffc))
    });
}

#[test]
fn selectors_are_checked() {
    for (selector, exception) in [
        (DATA_0, Exception::protection(DATA_0)),
        (CODE_0, Exception::protection(CODE_0)),
        (BEYOND, Exception::protection(BEYOND)),
        (ABSENT, Exception::not_present(ABSENT)),
    ] {
        assert_refused(exception, |a| load(a, ds, selector));
    }
    assert_refused(Exception::protection(0), |a| load(a, ss, 3));
    assert_refused(Exception::stack(ABSENT), |a| load(a, ss, ABSENT | 3));
    assert_refused(Exception::protection(DATA_3), |a| load(a, ss, DATA_3));
}

#[test]
fn selectors_read_back() {
    let mut machine = machine(3, |a| {
        load(a, gs, BASED)?;
        a.mov(eax, gs)?;
        a.push(ds)?;
        a.pop(ebx)?;
        a.push(MOVED as i32)?;
        a.pop(es)?;
        a.mov(word_ptr(0x3000), es)?;
        a.mov(ecx, cs)
    });
    machine.finish();
    assert_eq!(machine.gpr(Gpr::Eax), BASED.into());
    assert_eq!(machine.gpr(Gpr::Ebx), (DATA_3 | 3).into());
    assert_eq!(machine.dword(0x3000), MOVED.into());
    assert_eq!(machine.gpr(Gpr::Ecx), (CODE_3 | 3).into());
    assert_eq!(machine.gpr(Gpr::Esp), STACK);
}

/// A program of all sorts: loops, calls, strings, read-modify-write, bit strings, high bytes.
fn all_sorts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut over, mut again) =
        (a.create_label(), a.create_label(), a.create_label());
    a.jmp(over)?;
    a.set_label(&mut function)?;
    a.push(ebp)?;
    a.mov(ebp, esp)?;
    a.mov(edx, dword_ptr(ebp + 8))?;
    a.imul_3(edx, edx, 37)?;
    a.xor(dl, dh)?;
    a.leave()?;
    a.ret_1(4)?;
    a.set_label(&mut over)?;
    a.mov(ecx, 100)?;
    a.mov(edi, 0x2000)?;
    a.set_label(&mut again)?;
    a.push(ecx)?;
    a.call(function)?;
    a.mov(dword_ptr(edi), edx)?;
    a.bts(dword_ptr(0x3000), edx)?;
    a.adc(byte_ptr(edi + 3), ah)?;
    a.add(edi, 4)?;
    a.loop_(again)?;
    a.mov(esi, 0x2000)?;
    a.mov(edi, 0x2801)?;
    a.mov(ecx, 90)?;
    a.rep().movsd()?;
    a.mov(esi, 0x2000)?;
    a.mov(edi, 0x2801)?;
    a.mov(ecx, 4000)?;
    a.repe().cmpsb()?;
    a.mov(ebp, 0x6100)?;
    a.pushad()?;
    a.enter(16, 2)?;
    a.pop(dword_ptr(esp + 4))?;
    a.leave()?;
    a.popad()?;
    a.cmp(word_ptr(0x2002), 77)?;
    a.setb(byte_ptr(0x2001))?;
    a.mov(ebx, 0x2000)?;
    a.mov(eax, 5)?;
    a.xlatb()
}

/// Memory that [`all_sorts`] works on and its registers, with data, stack and code in those
/// segments.
fn outcome(data: Segment, code: Segment) -> (Vec<u8>, [u32; 8], u32) {
    let mut machine = machine(3, all_sorts);
    let cpu = &mut machine.vcpu.cpu;
    for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
        cpu.set_segment(register, data);
    }
    cpu.set_segment(SegmentRegister::Cs, code);
    cpu.set_eip(START.wrapping_sub(code.base));
    machine.set_gpr(Gpr::Esp, 0x6000);
    machine.finish();
    let mut bytes = vec![0; 0x8000];
    let start = lguest_switcher::GuestPhys(data.base);
    machine.memory.read(start, &mut bytes).expect("within memory");
    use Gpr::*;
    let registers = [Eax, Ecx, Edx, Ebx, Esp, Ebp, Esi, Edi].map(|register| machine.gpr(register));
    (bytes, registers, machine.vcpu.cpu.eflags())
}

#[test]
fn the_same_program_in_other_segments() {
    let flat = Segment::flat_data(DATA_3 | 3);
    let code = Segment::flat_code(CODE_3 | 3);
    let based = Segment { base: 0x4_0000, ..flat };
    let small = Segment { limit: 0xffff, ..based };
    let narrow = Segment { attributes: flat.attributes & !0x4000, ..small };
    let (bytes, registers, flags) = outcome(flat, code);
    let moved_code = Segment { base: 0x4_0000, ..code };
    for (data, code) in
        [(based, code), (small, code), (narrow, code), (flat, moved_code), (small, moved_code)]
    {
        let (other, other_registers, other_flags) = outcome(data, code);
        assert_eq!(registers, other_registers, "{data:?} {code:?}");
        assert_eq!(flags, other_flags, "{data:?} {code:?}");
        let first = bytes.iter().zip(&other).position(|(a, b)| a != b);
        // The return addresses left behind on the stack differ when the code has moved.
        if code.base == 0 {
            assert_eq!(first, None, "{data:?}");
        } else {
            assert!(first.is_none_or(|at| at >= 0x5000), "{first:x?}");
        }
    }
}

#[test]
fn far_calls_return() {
    let mut machine = machine(3, |a| {
        let (mut function, mut over) = (a.create_label(), a.create_label());
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.inc(ebx)?;
        a.retf()?;
        a.set_label(&mut over)?;
        a.mov(dword_ptr(0x3000), START as i32 + 2)?;
        a.mov(word_ptr(0x3004), i32::from(CODE_3))?;
        a.call(fword_ptr(0x3000))?;
        a.call(fword_ptr(0x3000))
    });
    machine.finish();
    assert_eq!((machine.gpr(Gpr::Ebx), machine.gpr(Gpr::Esp)), (2, STACK));
    assert_eq!(machine.vcpu.cpu.segment(SegmentRegister::Cs).selector, CODE_3 | 3);
}

#[test]
fn a_far_jump_into_code_that_starts_elsewhere() {
    let mut machine = machine(3, |a| {
        a.db(&[0xea])?;
        a.dd(&[0x100])?;
        a.dw(&[MOVED_CODE])
    });
    machine.store(0x4_0100, &[0x43, 0xcd, END]); // inc ebx
    machine.finish();
    assert_eq!((machine.gpr(Gpr::Ebx), machine.vcpu.cpu.eip()), (1, 0x103));
}

#[test]
fn a_far_return_to_user_mode_and_what_it_may_do_there() {
    let mut machine = machine(0, |a| {
        a.push(i32::from(DATA_3 | 3))?;
        a.push(0x7_0000)?;
        a.push(i32::from(CODE_3 | 3))?;
        a.push(0x2_0000)?;
        a.retf()
    });
    machine.store(0x2_0000, &[0x6a, 7, 0xf4]); // push 7; hlt
    let Exit::Privileged(instruction) = machine.run() else { panic!("hlt is privileged") };
    assert_eq!(instruction.mnemonic(), Mnemonic::Hlt);
    assert_eq!(machine.vcpu.cpu.cpl(), 3);
    assert_eq!((machine.gpr(Gpr::Esp), machine.dword(0x6_fffc)), (0x6_fffc, 7));
    // The segments of level 0 are gone.
    assert_eq!(machine.vcpu.cpu.segment(SegmentRegister::Ds), Segment::default());
}

#[test]
fn iret_between_levels() {
    let mut machine = machine(0, |a| {
        a.push(i32::from(DATA_3 | 3))?;
        a.push(0x7_0000)?;
        a.push(0x3202)?;
        a.push(i32::from(CODE_3 | 3))?;
        a.push(0x2_0000)?;
        a.iret()
    });
    machine.store(0x2_0000, &[0xcd, END]);
    let Exit::Privileged(_) = machine.run() else { panic!("iret is privileged") };
    machine.vcpu.iret(&mut machine.world, 4).expect("a good frame");
    machine.finish();
    assert_eq!((machine.vcpu.cpu.cpl(), machine.gpr(Gpr::Esp)), (3, 0x7_0000));
    assert_eq!(machine.vcpu.cpu.eflags(), 0x3202);
}

#[test]
fn a_narrow_stack_moves_sp_alone() {
    let mut machine = machine(3, |a| {
        a.mov(esp, 0xabcd_0004_u32)?;
        load(a, ss, NARROW | 3)?;
        a.push(0x1111)?;
        a.push(0x2222)?;
        a.pop(ebx)
    });
    machine.finish();
    assert_eq!((machine.gpr(Gpr::Esp), machine.gpr(Gpr::Ebx)), (0xabcd_0000, 0x2222));
    assert_eq!((machine.dword(0x4_0000), machine.dword(0x4_fffc)), (0x1111, 0x2222));
}
