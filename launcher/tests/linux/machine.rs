//! What is in the machine besides: memory, all of it, and entropy.

use crate::Skip;
use crate::guest::Guest;
use crate::kernel::Kernel;

pub(crate) fn entropy(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &[]);
    // It has had two names.
    let device = guest.run("[ -c /dev/hwrng ] && echo /dev/hwrng || echo /dev/hw_random");
    let source = "grep -q virtio /sys/class/misc/hw_random/rng_current";
    guest.needs(source, "the kernel takes no entropy from virtio")?;
    let device = device.trim();
    let mut read = || {
        guest
            .run(&format!("dd if={device} bs=32 count=2 2>/dev/null | hexdump -v -e '/1 \"%02x\"'"))
    };
    let (first, second) = (read(), read());
    assert_eq!((first.len(), second.len()), (128, 128), "{first}, {second}");
    assert_ne!(first, second);
    let digits = |text: &str| ('0'..='f').filter(|&digit| text.contains(digit)).count();
    assert!(digits(&first) > 8, "{first}");
    guest.power_off();
    Ok(())
}

pub(crate) fn memory_64m(kernel: &Kernel) -> Result<(), Skip> {
    memory(kernel, 64)
}

pub(crate) fn memory_512m(kernel: &Kernel) -> Result<(), Skip> {
    memory(kernel, 512)
}

/// So many parts are written at most. Kernels give a file the memory first that they don't keep mapped.
const PARTS: usize = 8;

/// More than a kernel can keep mapped.
pub(crate) fn memory_1g(kernel: &Kernel) -> Result<(), Skip> {
    memory(kernel, 1024)
}

/// The guest sees its memory, and as much of it holds what it is given as a busy machine has time for.
fn memory(kernel: &Kernel, mebibytes: usize) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &["--memory", &format!("{mebibytes}M")]);
    let total: usize =
        guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo").trim().parse().unwrap();
    assert!(
        (mebibytes * 3 / 4..mebibytes).contains(&(total >> 10)),
        "{total} KiB of {mebibytes} MiB"
    );
    // Four mebibytes, again and again behind a number, so that no two pages are alike.
    guest.run("seq 1000000 1524287 > /tmp/part; wc -c < /tmp/part");
    let parts = (mebibytes / 16).min(PARTS);
    guest.run(&format!("all() {{ for n in $(seq {parts}); do echo $n; cat /tmp/part; done; }}"));
    let sent = guest.run("all | md5sum");
    assert_eq!(guest.run("all > /tmp/all; md5sum < /tmp/all"), sent);
    guest.power_off();
    Ok(())
}
