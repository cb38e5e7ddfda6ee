//! **The guest's kernel**: small, whole, and aware that it's a guest.
//!
//! It has what makes a kernel one: memory of its own and for others ([`memory`]), a way in and out
//! ([`traps`]), processes that take turns ([`processes`]), and calls that they make ([`system_calls`]).
//! Whatever a bare processor would refuse it, it asks of its machine ([`lguest_guest`]).
//!
//! The story begins in [`kernel_main`], where the Host's jump into the image leads in the end.

#![no_std]
#![no_main]

extern crate alloc;

mod clock;
mod console;
mod files;
mod interrupt_lock;
mod keyboard;
mod memory;
mod processes;
mod random;
mod system_calls;
mod traps;

use console::println;
use core::arch::global_asm;
use lguest_drivers::Devices;
use lguest_drivers::console::CONSOLE;
use lguest_guest::boot::BootParams;
use lguest_guest::{interrupts, machine, patching, power};
use lguest_system_calls::SHELL;
use memory::{frames, heap, kernel_map, layout};
use processes::{Pid, start};

// The stack for booting, which later is the one for having nothing to do.
global_asm!(
    ".pushsection .bss.boot_stack, \"aw\", @nobits",
    ".balign 4096",
    ".skip 16384",
    ".globl kernel_boot_stack_top",
    "kernel_boot_stack_top:",
    ".popsection",
);

/// The kernel's first function: brings everything up, starts the shell, and is what runs when nobody else does.
// SAFETY: the name is what `lguest-guest` looks for, and nothing else has it.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(boot: &'static BootParams) -> ! {
    assert!(layout::is_enough(boot), "{} KiB of memory are too little", boot.memory_end().0 / 1024);
    // SAFETY: `layout` keeps the parts apart; nobody else uses any of them.
    unsafe {
        heap::init(layout::heap(boot));
        layout::free(boot).for_each(|range| frames::add(range));
    }
    traps::gates::init();
    kernel_map::init(boot);
    // SAFETY: the launcher's page tables aren't used any more. They lie in the linear map.
    unsafe { frames::add(layout::launcher_page_tables(boot)) };
    let file_count = files::init(boot);

    if let Some(devices) = Devices::map(&kernel_map::DEVICE_WINDOW, boot) {
        devices.bring_up(&[&CONSOLE]);
    }
    let has_keyboard = keyboard::init();
    say_hello(boot, file_count, has_keyboard);

    clock::init();
    interrupts::enable();
    if let Err(error) = start::start(SHELL, &[b"shell".to_vec()], Pid::NOBODY, true) {
        panic!("the shell can't be started: {error}");
    }
    processes::idle()
}

/// The first lines: what this is, and what it found.
fn say_hello(boot: &BootParams, file_count: Option<usize>, has_keyboard: bool) {
    let machine = machine();
    let (total, _) = frames::usage();
    let patched = patching::patched();
    println!(
        "lguest kernel {} on {}: {} KiB of memory, {} KiB free",
        env!("CARGO_PKG_VERSION"),
        machine.name(),
        boot.memory_end().0 / 1024,
        total * 4,
    );
    println!(
        "{} of {} interrupt call sites patched, clock: {}",
        patched.patched,
        patched.sites,
        machine.clock_source()
    );
    if !boot.command_line().is_empty() {
        println!("arguments: {}", boot.command_line());
    }
    match file_count {
        Some(count) => {
            println!("{count} files in the initrd");
            if let Some(damage) = files::archive().damage() {
                println!("the initrd can't be read to its end: {damage}");
            }
        }
        None if boot.initrd().is_some() => {
            println!(
                "the initrd lies beyond the {} KiB this kernel reaches",
                layout::linear_end(boot).0 / 1024
            )
        }
        None => println!("no initrd"),
    }
    println!(
        "{}",
        if has_keyboard { "type help for what there is" } else { "no console to read from" }
    );
}

/// A panic ends the guest, with what it was about.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    power::panic(info)
}
