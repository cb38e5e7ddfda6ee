//! The kernel's own words on the console.

use core::fmt::{Arguments, Write};
use lguest_drivers::console::CONSOLE;

/// Bytes that are gathered before they are sent: a line, mostly.
const LINE: usize = 160;

/// Gathers what is printed, so that a line is one call into the Host and not one for each piece.
struct Gathered {
    bytes: [u8; LINE],
    length: usize,
}

impl Gathered {
    fn send(&mut self) {
        CONSOLE.write(self.bytes.get(..self.length).unwrap_or_default());
        self.length = 0;
    }
}

impl Write for Gathered {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if self.length == LINE {
                self.send();
            }
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

/// What `println!` does.
pub(crate) fn print(text: Arguments<'_>) {
    let mut gathered = Gathered { bytes: [0; LINE], length: 0 };
    // Gathering doesn't fail.
    let _ = gathered.write_fmt(text);
    gathered.send();
}

/// Prints a line on the console.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
pub(crate) use println;
