//! Guests whose programs call their kernel over and over, and a judge: each runs watched by a tracer, so that every system call goes
//! through the Host, and unwatched, so that it may pass by the gate. What it leaves in memory must be the same.

#![allow(unreachable_pub, reason = "shared by several test programs")]
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

use crate::tiny_guest::*;
use iced_x86::code_asm::*;
use lguest_host::{Generation, GuestPhys};

pub const SYSCALL: u32 = 0x80;
pub const TRAP_GATE: u32 = 0xf;
pub const INTERRUPT_GATE: u32 = 0xe;

/// Runs it both ways. Gives what the unwatched one left.
#[track_caller]
pub fn both(guest: impl Fn() -> TinyGuest) -> Outcome {
    let (watched, unwatched) = (guest().run(), guest().run_unwatched());
    assert_eq!(
        (watched.end.clone(), watched.passes),
        (unwatched.end.clone(), 0),
        "{:#?}",
        watched.trace
    );
    let [before, after] = [&watched, &unwatched].map(|outcome| {
        let mut bytes = vec![0; MEMORY as usize];
        outcome.guest.memory.read(GuestPhys(0), &mut bytes).expect("all of its memory");
        if let Some(time) = outcome.guest.layout.time {
            bytes[(DATA + time) as usize..][..8].fill(0);
        }
        bytes
    });
    let different = before.iter().zip(&after).position(|(before, after)| before != after);
    assert_eq!(different, None, "the first byte that isn't the same");
    unwatched
}

/// User code that calls `calls` times, and then divides by zero, which ends the guest. ebx counts down.
pub fn calling(calls: u32, write: impl FnOnce(&mut Code) -> Assembled) -> TinyGuest {
    calling_of(Generation::First, calls, write)
}

pub fn calling_of(
    generation: Generation,
    calls: u32,
    write: impl FnOnce(&mut Code) -> Assembled,
) -> TinyGuest {
    TinyGuest::of(generation).handler(0, |c| c.power_off()).user(|c| {
        for register in [ecx, edx, ebp, esi, edi] {
            c.xor(register, register)?;
        }
        c.mov(ebx, calls)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        write(c)?;
        c.dec(ebx)?;
        c.jne(again)?;
        c.xor(ecx, ecx)?;
        c.div(ecx)
    })
}

/// Adds what is on the stack to a checksum in slot 0: the frame, and the registers that a handler got.
pub fn sum_up(c: &mut Code) -> Assembled {
    c.push(eax)?;
    for place in 1..6 {
        c.mov(eax, dword_ptr(esp + place * 4))?;
        c.rol(dword_ptr(virt(RESULTS)), 5)?;
        c.add(dword_ptr(virt(RESULTS)), eax)?;
    }
    for register in [ecx, edx, ebx, ebp, esi, edi] {
        c.rol(dword_ptr(virt(RESULTS)), 5)?;
        c.add(dword_ptr(virt(RESULTS)), register)?;
    }
    c.mov(eax, cs)?;
    c.add(dword_ptr(virt(RESULTS)), eax)?;
    c.mov(eax, ss)?;
    c.add(dword_ptr(virt(RESULTS)), eax)?;
    c.pop(eax)
}
