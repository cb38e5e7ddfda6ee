//! A guest on a network of its own, with a way to the host and a way from it.

use crate::Skip;
use crate::guest::Guest;
use crate::kernel::Kernel;
use crate::web::{fetch, free_port, serve};
use std::process::Command;

/// Gets an address, by DHCP where the kernel lets programs send such frames.
fn configure(guest: &mut Guest) -> Result<(), Skip> {
    guest.needs("[ -e /sys/class/net/eth0 ]", "the kernel has no virtio network")?;
    let (status, printed) = guest.try_run("udhcpc -i eth0 -s /bin/leased -n -q -f");
    if status != 0 {
        assert!(printed.contains("Address family not supported"), "{printed}");
        guest.run("ifconfig eth0 10.0.2.15 netmask 255.255.255.0; route add default gw 10.0.2.2");
    } else {
        assert_eq!(guest.run("cat /etc/resolv.conf"), "nameserver 10.0.2.3\n");
    }
    let address = guest.run("ifconfig eth0");
    assert!(address.contains("inet addr:10.0.2.15 "), "{address}");
    Ok(())
}

pub(crate) fn out(kernel: &Kernel) -> Result<(), Skip> {
    let mut guest = Guest::boot(kernel, &["--net", "user"]);
    configure(&mut guest)?;
    let pinged = guest.run("ping -c 3 10.0.2.2");
    assert!(pinged.contains("3 packets transmitted, 3 packets received"), "{pinged}");
    let text: String = (1_000_000..1_150_000).map(|number| format!("{number}\n")).collect();
    let port = serve(text.into_bytes());
    let expected = guest.run("seq 1000000 1149999 | md5sum");
    for _ in 0..3 {
        let line = format!("wget -q -O - http://10.0.2.2:{port}/ | md5sum");
        assert_eq!(guest.run(&line), expected);
    }
    guest.power_off();
    Ok(())
}

pub(crate) fn forwarded(kernel: &Kernel) -> Result<(), Skip> {
    let port = free_port();
    let mut guest = Guest::boot(kernel, &["--net", &format!("user,forward=tcp:{port}-:80")]);
    configure(&mut guest)?;
    guest.run("mkdir /tmp/www; seq 1 150000 > /tmp/www/numbers; httpd -h /tmp/www");
    let numbers: String = (1..=150_000).map(|number| format!("{number}\n")).collect();
    for _ in 0..3 {
        assert!(fetch(port, "/numbers").unwrap() == numbers.as_bytes());
    }
    // The client that everybody has.
    let url = format!("http://127.0.0.1:{port}/numbers");
    match Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "120", &url])
        .output()
    {
        Ok(output) => assert!(output.stdout == numbers.as_bytes(), "{output:?}"),
        Err(error) => eprintln!("not by curl as well: {error}"),
    }
    guest.power_off();
    Ok(())
}
