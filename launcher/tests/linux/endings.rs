//! How guests end, and what the command makes of it.

use crate::Skip;
use crate::block::image;
use crate::guest::Guest;
use crate::kernel::Kernel;
use lguest::Generation;
use rustix::process::{Pid, Signal, kill_process};

/// The same process, with the same devices, and everything from the start.
pub(crate) fn restart(kernel: &Kernel) -> Result<(), Skip> {
    if kernel.generation == Generation::V2_6_24 {
        return Err(Skip("guests can ask for a restart since Linux 2.6.25".to_owned()));
    }
    let disk = image(1 << 20);
    let mut guest = Guest::boot(kernel, &["--disk", disk.to_str().unwrap()]);
    let process = guest.process();
    for times in 1..=3 {
        if guest.can("[ -b /dev/vda ]") {
            guest.run(&format!(
                "echo start {times} | dd of=/dev/vda bs=512 seek={times} conv=sync,fsync"
            ));
        }
        guest.run("touch /tmp/gone");
        guest.type_text("reboot -f\n");
        guest.wait_until_up();
        assert!(!guest.can("[ -e /tmp/gone ]"));
        if guest.can("[ -b /dev/vda ]") {
            let read =
                format!("dd if=/dev/vda bs=512 skip={times} count=1 2>/dev/null | head -n 1");
            assert_eq!(guest.run(&read), format!("start {times}\n"));
        }
    }
    assert_eq!(guest.process(), process);
    guest.power_off();
    Ok(())
}

pub(crate) fn init_exits(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    guest.type_text("exit 3\n");
    let (status, said) = guest.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("lguest: the guest crashed: Attempted to kill init!"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    Ok(())
}

/// What only some kernels do, and only when asked in this way.
pub(crate) fn crash_by_request(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    guest.needs("[ -e /proc/sysrq-trigger ]", "the kernel has no MAGIC_SYSRQ")?;
    guest.type_text("echo c > /proc/sysrq-trigger; echo still $((1 + 1)) here\n");
    // Early kernels can only boot another kernel at this.
    if guest.ends_rather_than("still 2 here") {
        let (status, said) = guest.end();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.starts_with("lguest: the guest crashed: "), "{said}");
        Ok(())
    } else {
        Err(Skip("the kernel doesn't crash by request".to_owned()))
    }
}

pub(crate) fn terminated(kernel: &Kernel) -> Result<(), Skip> {
    for busy in [false, true] {
        let mut guest = Guest::boot(kernel, &[]);
        if busy {
            guest.begin("while :; do :; done");
        }
        let process = Pid::from_raw(guest.process() as i32).unwrap();
        kill_process(process, Signal::TERM).unwrap();
        assert_eq!(guest.end(), (Some(143), String::new()), "busy: {busy}");
    }
    Ok(())
}
