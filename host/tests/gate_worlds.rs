//! Behind a gate: whose addresses a program sees, and which segments the kernel has.

mod calling;
mod tiny_guest;

use calling::*;
use iced_x86::code_asm::*;
use lguest_abi::segments::{FLAT_KERNEL_CODE, FLAT_KERNEL_DATA, KERNEL_CS, USER_DS};
use tiny_guest::*;

/// A program that reads the kernel's memory behind its fourth call, when ebx is 5. What the fault's error code is gets noted in
/// slot 12.
fn prying(handler: impl Fn(&mut Code) -> Assembled) -> impl Fn() -> TinyGuest {
    move || {
        calling(8, |c| {
            let mut usual = c.create_label();
            c.int(0x80)?;
            c.push(ebx)?;
            c.cmp(ebx, 5)?;
            c.jne(usual)?;
            c.mov(eax, dword_ptr(virt(RESULTS) + ebp * 1))?;
            c.set_label(&mut usual)?;
            c.nop()
        })
        .with_word(LINEAR_TABLE + (RESULTS >> 12) * 4, RESULTS | 3)
        .handler(14, |c| {
            c.pop(eax)?;
            c.note(12, eax)?;
            c.power_off()
        })
        .gate(SYSCALL, TRAP_GATE, 3, &handler)
        .kernel(|c| c.enter_user())
    }
}

/// In by the gate, out by the Host: the program sees its own addresses again, and none of the kernel's.
#[test]
fn a_program_that_comes_back_the_long_way_is_in_its_own_world() {
    let outcome = both(prying(|c| {
        let mut usual = c.create_label();
        c.cmp(ebx, 5)?;
        c.jne(usual)?;
        c.xor(dword_ptr(esp + 8), 1 << 18)?;
        c.set_label(&mut usual)?;
        c.iretd()
    }));
    assert_eq!((outcome.result(12), outcome.passes), (5, 6), "a page fault of level 3");
}

/// The same by the gate both ways.
#[test]
fn a_program_that_comes_back_by_the_gate_is_in_its_own_world() {
    let outcome = both(prying(|c| {
        c.count(1)?;
        c.iretd()
    }));
    assert_eq!((outcome.result(12), outcome.passes), (5, 7), "a page fault of level 3");
}

/// As kernels for several processors do it: fs and gs are the kernel's own while it runs.
#[test]
fn segments_that_the_kernel_exchanges_pass_with_the_call() {
    let outcome = both(|| {
        let guest = calling(50, |c| {
            c.int(0x80)?;
            c.mov(edx, fs)?;
            c.mov(esi, gs)?;
            c.mov(edi, dword_ptr(USER_DATA).gs())?;
            c.push(edi)
        });
        // The kernel's own: its data, from SCRATCH on.
        let base = u64::from(virt(SCRATCH));
        let based = FLAT_KERNEL_DATA | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
        guest.put(GDT + 27 * 8, &based.to_le_bytes());
        guest.put(USER_FRAMES + 0x1000, &[1, 2, 3, 4]);
        guest
            .gate(SYSCALL, TRAP_GATE, 3, |c| {
                for register in [gs, fs] {
                    c.push(register)?;
                }
                c.mov(edx, 27 * 8 + 1)?;
                c.mov(fs, edx)?;
                c.mov(edx, 27 * 8 + 1)?;
                c.mov(gs, edx)?;
                c.inc(dword_ptr(0).fs())?;
                c.mov(edx, dword_ptr(0).gs())?;
                c.add(dword_ptr(virt(RESULTS)), edx)?;
                c.pop(fs)?;
                c.pop(gs)?;
                c.iretd()
            })
            .kernel(|c| {
                c.mov(eax, u32::from(USER_DS))?;
                c.mov(gs, eax)?;
                c.enter_user()
            })
    });
    assert_eq!((outcome.result(0), outcome.passes), (50 * 51 / 2, 99));
}

/// Notes what cs and esp an `ud2` of the kernel finds, and goes on behind it.
fn telling_cs(guest: TinyGuest) -> TinyGuest {
    guest.handler(6, |c| {
        c.mov(eax, dword_ptr(esp + 4))?;
        c.note(5, eax)?;
        c.note(6, esp)?;
        c.add(dword_ptr(esp), 2)?;
        c.iretd()
    })
}

/// Out by the gate from one code segment of the kernel, in by the gate to another, without Rust between.
#[test]
fn a_kernel_that_returns_from_another_code_segment_is_called_in_its_own() {
    let outcome = both(|| {
        let guest = telling_cs(calling(8, |c| c.int(0x80)));
        guest.put(GDT + 27 * 8, &FLAT_KERNEL_CODE.to_le_bytes());
        guest
            .gate(SYSCALL, TRAP_GATE, 3, |c| {
                let mut next = c.create_label();
                c.ud2()?;
                c.push(27 * 8 + 1)?;
                c.call(next)?;
                c.set_label(&mut next)?;
                c.add(dword_ptr(esp), 5)?; // to what is behind retf
                c.retf()?;
                c.nop()?;
                c.iretd()
            })
            .kernel(|c| c.enter_user())
    });
    assert_eq!((outcome.result(5), outcome.passes), (u32::from(KERNEL_CS), 15));
}

/// The same from level 2: calls go to level 1, and traps there stay on its stack.
#[test]
fn a_kernel_that_returns_from_level_2_is_called_at_its_own() {
    let outcome = both(|| {
        let guest = telling_cs(calling(8, |c| c.int(0x80)));
        for (index, descriptor) in [(27, FLAT_KERNEL_CODE), (28, FLAT_KERNEL_DATA)] {
            let outer = descriptor & !(3 << 45) | 2 << 45;
            guest.put(GDT + index * 8, &outer.to_le_bytes());
        }
        guest
            .gate(SYSCALL, TRAP_GATE, 3, |c| {
                let mut next = c.create_label();
                c.ud2()?;
                c.mov(edx, esp)?;
                c.push(28 * 8 + 2)?;
                c.push(edx)?;
                c.pushfd()?;
                c.push(27 * 8 + 2)?;
                c.call(next)?;
                c.set_label(&mut next)?;
                c.add(dword_ptr(esp), 5)?; // to what is behind iretd
                c.iretd()?;
                c.nop()?;
                c.iretd()
            })
            .kernel(|c| c.enter_user())
    });
    assert_eq!((outcome.result(5), outcome.passes), (u32::from(KERNEL_CS), 15));
}
