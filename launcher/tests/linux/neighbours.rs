//! Guests on one network, whose socket's path is all that they know of each other.

use crate::Skip;
use crate::block::{assert_whole, image, mount_new, needs_disks, numbers};
use crate::guest::Guest;
use crate::kernel::Kernel;
use lguest::Generation;
use std::thread::sleep;
use std::time::Duration;
use tempfile::{TempDir, tempdir};

/// A network, and the guests that were ever on it.
struct Network {
    directory: TempDir,
    guests: u8,
}

impl Network {
    fn new() -> Self {
        Self { directory: tempdir().unwrap(), guests: 0 }
    }

    /// Boots another guest on it, and gives its address.
    fn boot(&mut self, kernel: &Kernel, options: &[&str]) -> Result<(Guest, String), Skip> {
        let network = format!("socket={}", self.directory.path().join("socket").display());
        let mut guest = Guest::boot(kernel, &[&["--net", &network], options].concat());
        guest.needs("[ -e /sys/class/net/eth0 ]", "the kernel has no virtio network")?;
        self.guests += 1;
        let address = format!("10.0.0.{}", self.guests);
        guest.run(&configure(&address));
        guest.run("mkdir /tmp/www; httpd -h /tmp/www");
        Ok((guest, address))
    }
}

/// The line that gives a guest its address.
fn configure(address: &str) -> String {
    format!("ifconfig eth0 {address} netmask 255.255.255.0")
}

/// Has `guest` see that somebody is at `address`.
fn ping(guest: &mut Guest, address: &str) {
    let printed = guest.run(&format!("ping -c 3 {address}"));
    assert!(printed.contains("3 packets transmitted, 3 packets received"), "{printed}");
}

/// The line that fetches a file, and prints its checksum.
fn fetch(address: &str) -> String {
    format!("wget -q -O - http://{address}/all | md5sum")
}

pub(crate) fn two_guests(kernel: &Kernel) -> Result<(), Skip> {
    let mut network = Network::new();
    let (mut one, first) = network.boot(kernel, &[])?;
    let (mut other, second) = network.boot(kernel, &[])?;
    ping(&mut one, &second);
    ping(&mut other, &first);
    let sent = one.run("seq 1 170000 > /tmp/www/all; md5sum < /tmp/www/all");
    assert_eq!(other.run(&fetch(&first)), sent);
    let sent = other.run("seq 200000 360000 > /tmp/www/all; md5sum < /tmp/www/all");
    assert_eq!(one.run(&fetch(&second)), sent);
    one.power_off();
    other.power_off();
    Ok(())
}

pub(crate) fn much_traffic(kernel: &Kernel) -> Result<(), Skip> {
    let mut network = Network::new();
    let (mut one, first) = network.boot(kernel, &["--memory", "256M"])?;
    let (mut other, second) = network.boot(kernel, &["--memory", "256M"])?;
    let make = |guest: &mut Guest, start: u32| {
        guest.be_patient(5);
        guest.run(&format!("seq {start}00000 {start}99999 > /tmp/part"));
        // 700,000 bytes, 150 times, no two alike.
        guest.run(
            "for n in $(seq 150); do echo $n; cat /tmp/part; done > /tmp/www/all; rm /tmp/part",
        );
        guest.run("md5sum < /tmp/www/all")
    };
    let (ones, others) = (make(&mut one, 1), make(&mut other, 2));
    one.begin(&fetch(&second));
    other.begin(&fetch(&first));
    assert_eq!(one.finish(), (0, others));
    assert_eq!(other.finish(), (0, ones));
    one.power_off();
    other.power_off();
    Ok(())
}

/// In the middle of traffic, whichever of the two was there first.
pub(crate) fn one_is_killed(kernel: &Kernel) -> Result<(), Skip> {
    for first_dies in [true, false] {
        let images = [image(32 << 20), image(32 << 20)];
        let mut network = Network::new();
        let mut guests = Vec::new();
        for image in &images {
            let (mut guest, address) =
                network.boot(kernel, &["--disk", image.to_str().unwrap()])?;
            needs_disks(&mut guest)?;
            mount_new(&mut guest)?;
            guest.run("seq 1 100000 > /mnt/before; sync");
            guest.run("seq 1 1000000 > /tmp/www/all");
            guests.push((guest, address));
        }
        let last = guests.pop().unwrap();
        let first = guests.pop().unwrap();
        let ((mut dies, _), (mut stays, address)) =
            if first_dies { (first, last) } else { (last, first) };
        dies.begin(&format!("while :; do {}; done", fetch(&address)));
        dies.wait_for("  -\r\n");
        sleep(Duration::from_millis(200));
        dies.kill();

        stays.run("seq 1 150000 > /mnt/after; umount /mnt");
        // The driver of 2.6.24 is deaf for good if a frame comes before its card is up: nobody may call the dead until the
        // third one's is.
        let deaf = kernel.generation == Generation::V2_6_24;
        if deaf {
            stays.run("ifconfig eth0 0.0.0.0");
        }
        let (mut third, _) = network.boot(kernel, &[])?;
        if deaf {
            stays.run(&configure(&address));
        }
        ping(&mut third, &address);
        let sent = stays.run("md5sum < /tmp/www/all");
        assert_eq!(third.run(&fetch(&address)), sent);
        third.power_off();
        stays.power_off();
        for image in &images {
            assert_whole(image, "before", &numbers(100_000));
        }
        let stayed = &images[usize::from(first_dies)];
        assert_whole(stayed, "after", &numbers(150_000));
    }
    Ok(())
}
