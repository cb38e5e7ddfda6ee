//! The end: power-off, and panic.

use core::fmt;

/// The operations that end it all.
pub trait Power {
    /// Turns the machine off.
    fn power_off(&self) -> !;

    /// Ends everything with a message, for a panic. Of a guest's message the Host shows 127 bytes.
    fn crash(&self, message: fmt::Arguments<'_>) -> !;
}

/// What a kernel's `#[panic_handler]` calls: ends the machine with the panic's message and place.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let machine = crate::machine();
    match info.location() {
        Some(place) => machine.crash(format_args!(
            "panic: {} ({}:{})",
            info.message(),
            place.file(),
            place.line()
        )),
        None => machine.crash(format_args!("panic: {}", info.message())),
    }
}
