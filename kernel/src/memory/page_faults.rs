//! Page faults: memory that is promised but not there yet, and memory that isn't.
//!
//! The address is in cr2, which the next fault overwrites: it is read before interrupts may come.

use super::address_space::Fault;
use crate::console::println;
use crate::processes::{self, Ending};
use crate::traps::fixups;
use crate::traps::frame::TrapFrame;
use lguest_abi::paging::fault;
use lguest_guest::{interrupts, machine};
use lguest_kernel_logic::areas::HIGHEST;

/// Handles trap 14.
pub(crate) fn handle(frame: &mut TrapFrame) {
    let address = machine().read_cr2();
    if frame.had_interrupts() {
        interrupts::enable();
    }
    let write = frame.error & fault::WRITE != 0;
    let outcome = if address < HIGHEST {
        processes::with_current(|process| process.fault(address, write)).unwrap_or(Fault::Forbidden)
    } else {
        Fault::Forbidden
    };
    match outcome {
        Fault::Mended => {}
        // The instruction is tried again, once there is room: before that, whoever is to end has its turn.
        Fault::OutOfMemory if frame.is_from_user() && processes::make_room() => {}
        // The same in the middle of a system call, unless it's this process that is to end.
        Fault::OutOfMemory if !processes::is_ending() && processes::make_room() => {
            processes::schedule();
        }
        Fault::OutOfMemory if frame.is_from_user() => {
            println!("{}: killed, memory has run out", processes::current_name());
            processes::exit(Ending::KILLED);
        }
        Fault::Forbidden if frame.is_from_user() => {
            let verb = if write { "write to" } else { "read" };
            println!(
                "{}: killed, it may not {verb} {address:#010x} (eip {:#010x})",
                processes::current_name(),
                frame.eip
            );
            processes::exit(Ending::FAULT);
        }
        Fault::OutOfMemory | Fault::Forbidden if fixups::apply(frame) => {}
        Fault::OutOfMemory | Fault::Forbidden => {
            panic!(
                "the kernel touched {address:#010x} at {:#010x} (error {:#x})",
                frame.eip, frame.error
            )
        }
    }
}
