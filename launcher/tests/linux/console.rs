//! The console: a keyboard's bytes in, a screen's bytes out, all of them and in order.

use crate::Skip;
use crate::guest::{Guest, command};
use crate::kernel::Kernel;

pub(crate) fn echo(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    assert_eq!(guest.run("uname -sr"), format!("Linux {}\n", kernel.release));
    for number in 0..50 {
        let line = format!("echo {number} is ${{#line}} bytes long");
        assert_eq!(guest.run(&line), format!("{number} is {} bytes long\n", line.len()));
    }
    assert_eq!(guest.try_run("false"), (1, String::new()));
    guest.power_off();
    Ok(())
}

/// A terminal takes at most 4095 bytes as one line.
pub(crate) fn a_long_line(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    for length in [250, 1000, 4000] {
        let text: String = ('a'..='z').cycle().take(length).collect();
        assert_eq!(guest.run(&format!("echo {text}")), format!("{text}\n"));
    }
    guest.power_off();
    Ok(())
}

pub(crate) fn much_output(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    let numbers: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(guest.run("seq 1 20000"), numbers);
    guest.power_off();
    Ok(())
}

/// Everything is typed before the guest is up, and nobody types any more.
pub(crate) fn a_script(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::start(&mut command(kernel, &[]));
    guest.type_text("echo one and $((1 + 1))\nsleep 1\necho $((1 + 2)) and four\npoweroff -f\n");
    guest.hang_up();
    guest.wait_for("one and 2\r\n");
    guest.wait_for("3 and four\r\n");
    assert_eq!(guest.end(), (Some(0), String::new()));
    Ok(())
}
