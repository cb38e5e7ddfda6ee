//! How a guest ends: by its last words.

use super::Lguest;
use super::hypercalls::hcall;
use crate::memory::phys_of;
use crate::power::Power;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use lguest_abi::Hypercall;
use lguest_abi::hypercall::{CRASH_MESSAGE_KEPT, CRASH_MESSAGE_READ, POWER_OFF_MESSAGE};

/// Where the Host reads the message. It starts as NULs, and the last one stays.
static MESSAGE: [AtomicU8; CRASH_MESSAGE_READ] = [const { AtomicU8::new(0) }; CRASH_MESSAGE_READ];

/// Writes into [`MESSAGE`], as much as fits.
struct Cursor {
    at: usize,
}

impl Write for Cursor {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let places = MESSAGE.iter().take(CRASH_MESSAGE_KEPT).skip(self.at);
        for (place, byte) in places.zip(text.bytes()) {
            place.store(byte, Ordering::Relaxed);
            self.at += 1;
        }
        Ok(())
    }
}

impl Power for Lguest {
    fn power_off(&self) -> ! {
        self.crash(format_args!("{POWER_OFF_MESSAGE}"))
    }

    fn crash(&self, message: fmt::Arguments<'_>) -> ! {
        crate::interrupts::disable();
        // A message that fails to format is cut short. There is nobody left to tell.
        let _ = (Cursor { at: 0 }).write_fmt(message);
        loop {
            hcall(Hypercall::Crash { message: phys_of(&MESSAGE) });
        }
    }
}
