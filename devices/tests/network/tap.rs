//! A TAP device, where one can be had: it takes /dev/net/tun, and a network namespace of the test's own, where it disturbs
//! nobody's interfaces and may make some.

use lguest_devices::network::{Network, NetworkConfig};
use std::process::Command;

fn open(name: &str) -> Result<Box<dyn Network>, String> {
    format!("tap={name}")
        .parse::<NetworkConfig>()
        .unwrap()
        .open()
        .map_err(|error| error.to_string())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn ip(arguments: &str) -> bool {
    succeeds(Command::new("ip").args(arguments.split(' ')))
}

/// Whether the test goes on in this process, because the process is in a namespace of its own. Otherwise it has been run in
/// another that is, or can't be.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "LGUEST_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        eprintln!("skipped: /dev/net/tun can't be used here");
        return false;
    }
    // With root's rights in it, from whoever may give those.
    for how in ["--net", "--net --map-root-user"] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(how.split(' '));
            command
        };
        if succeeds(unshare().args(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"])) {
            let me = std::env::current_exe().unwrap();
            let output =
                unshare().arg(me).args(["--exact", test]).env(ALONE, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return false;
        }
    }
    eprintln!("skipped: no interface can be made here");
    false
}

#[test]
fn an_interface_that_is_not_there_is_not_made() {
    let error = open("lgnosuch0").err().unwrap();
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        assert!(error.starts_with("tap lgnosuch0: ") && error.contains("/dev/net/tun"), "{error}");
        return;
    }
    assert_eq!(
        error,
        "tap lgnosuch0: there is no such interface: `sudo ip tuntap add dev lgnosuch0 mode tap user $USER && \
         sudo ip link set lgnosuch0 up` would make it"
    );
    assert!(!ip("link show lgnosuch0"));
}

#[test]
fn an_interface_of_another_kind_is_none() {
    if !is_alone("tap::an_interface_of_another_kind_is_none") {
        return;
    }
    assert!(ip("tuntap add dev tun0 mode tun"));
    for name in ["lo", "tun0"] {
        let error = open(name).err().unwrap();
        assert_eq!(
            error,
            format!(
                "tap {name}: that interface is no TAP device; `ip tuntap list` shows which are"
            )
        );
    }
}

#[test]
fn frames_go_in_and_out() {
    if !is_alone("tap::frames_go_in_and_out") {
        return;
    }
    assert!(ip("tuntap add dev tap0 mode tap"));
    let mut tap = open("tap0").unwrap();
    assert_eq!(open("tap0").err().unwrap(), "tap tap0: another program is using it");
    let mut frame = vec![0; 65550];
    assert_eq!(tap.receive(&mut frame).unwrap(), None);
    assert!(
        tap.send(&[0xff; 60]).unwrap(),
        "down, it loses what is sent, as a cable does that isn't plugged in"
    );
    assert!(ip("address add 192.0.2.1/24 dev tap0"));
    assert!(ip("link set tap0 up"));
    // The host asks who 192.0.2.2 is, since somebody wants to talk to it.
    std::net::UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.2:9").unwrap();
    let question =
        until(&mut *tap, |frame| frame[12..14] == [8, 6] && frame[38..42] == [192, 0, 2, 2]);
    assert!(tap.send(&[]).unwrap(), "no frame at all, and no error");
    // It is here; so the datagram comes.
    let mut answer = question.clone();
    answer[..6].copy_from_slice(&question[6..12]);
    answer[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    answer[21] = 2;
    answer[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    answer[28..32].copy_from_slice(&question[38..42]);
    answer[32..42].copy_from_slice(&question[22..32]);
    assert!(tap.send(&answer).unwrap());
    until(&mut *tap, |frame| frame[12..14] == [8, 0] && frame.ends_with(b"x"));
}

/// The next frame of that kind. There are others: a host that has an interface talks about it.
fn until(tap: &mut dyn Network, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut frame = vec![0; 65550];
    let began = std::time::Instant::now();
    loop {
        match tap.receive(&mut frame).unwrap() {
            Some(length) if length >= 42 && wanted(&frame[..length]) => {
                return frame[..length].to_vec();
            }
            Some(_) => {}
            None => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
        assert!(began.elapsed().as_secs() < 20, "it doesn't come");
    }
}
