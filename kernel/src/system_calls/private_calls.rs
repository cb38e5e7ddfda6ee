//! Calls of our own: what the shell needs.

use super::{Answer, file_calls};
use crate::keyboard;
use crate::memory::{frames, heap, user_memory};
use crate::processes::{self, of_current, start};
use alloc::string::String;
use alloc::vec::Vec;
use lguest_abi::lguest_data::HCALL_RING_SIZE;
use lguest_guest::lazy::{self, Lazy, LazyMode};
use lguest_guest::processor::CR0_TS;
use lguest_guest::{interrupts, machine};
use lguest_kernel_logic::areas::PAGE;
use lguest_system_calls::Errno;
use lguest_system_calls::private::{MemoryRecord, measure as what, spawn as flag};

/// How much all arguments may be together, in bytes.
const ARGUMENTS_MAX: usize = 16 << 10;
/// How many arguments there may be.
const ARGUMENT_COUNT_MAX: usize = 1024;

/// The longest reason for a panic, in bytes.
const REASON_MAX: usize = 256;

pub(super) fn spawn(path: u32, arguments: u32, flags: u32) -> Answer {
    let path = file_calls::path(path)?;
    let arguments = read_arguments(arguments)?;
    let parent = of_current(|process| Ok(process.pid))?;
    let own_job = flags & flag::NEW_JOB != 0;
    let pid = start::start(&path, &arguments, parent, own_job)?;
    if own_job && flags & flag::BACKGROUND == 0 {
        keyboard::give_to(pid);
    }
    Ok(pid.0)
}

/// Strings from an array of pointers that ends in 0.
fn read_arguments(mut at: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let mut arguments = Vec::new();
    let mut total = 0;
    loop {
        let pointer = user_memory::read_u32(at)?;
        if pointer == 0 {
            return Ok(arguments);
        }
        let argument = user_memory::read_string(pointer, ARGUMENTS_MAX, Errno::E2BIG)?;
        total += argument.len() + 1;
        if total > ARGUMENTS_MAX || arguments.len() == ARGUMENT_COUNT_MAX {
            return Err(Errno::E2BIG);
        }
        arguments.push(argument);
        at = at.wrapping_add(4);
    }
}

pub(super) fn processes(buffer: u32, room: u32) -> Answer {
    let list = processes::list();
    let mut at = buffer;
    for record in list.iter().take(room as usize) {
        let bytes = record.to_bytes();
        user_memory::write(at, &bytes)?;
        at = at.wrapping_add(bytes.len() as u32);
    }
    Ok(list.len() as u32)
}

pub(super) fn memory(at: u32) -> Answer {
    const KIB: u32 = 1024;
    let (total, free) = frames::usage();
    let (heap, heap_used) = heap::usage();
    let record = MemoryRecord {
        total: total * (PAGE / KIB),
        free: free * (PAGE / KIB),
        heap: heap as u32 / KIB,
        heap_used: heap_used as u32 / KIB,
    };
    user_memory::write(at, &record.to_bytes())?;
    Ok(0)
}

pub(super) fn panic(reason: u32) -> Answer {
    let reason = user_memory::read_string(reason, REASON_MAX, Errno::E2BIG)?;
    panic!("{}", String::from_utf8_lossy(&reason))
}

pub(super) fn measure(which: u32, times: u32, at: u32) -> Answer {
    let machine = machine();
    let before = machine.now();
    match which {
        what::HYPERCALL => (0..times).for_each(|_| lazy::flush()),
        what::ASYNC_HYPERCALL => queue_calls(times),
        _ => return Err(Errno::EINVAL),
    }
    let took = machine.now() - before;
    user_memory::write(at, &took.to_le_bytes())?;
    Ok(0)
}

/// Forbids and allows the FPU in turn: each is a call that can wait. A ring's worth at a time is carried out
/// together, as when page tables change. In the end all is as before.
fn queue_calls(times: u32) {
    let mut left = times;
    while left > 0 {
        let together = left.min(HCALL_RING_SIZE as u32);
        interrupts::without(|| {
            let before = machine().read_cr0();
            let _lazy = Lazy::enter(LazyMode::Cpu);
            (0..together).for_each(|_| machine().write_cr0(machine().read_cr0() ^ CR0_TS));
            machine().write_cr0(before);
        });
        left -= together;
    }
}
