//! What the command line says, and what is said about it.

use lguest_devices::network::{NetworkConfig, OpenError};
use proptest::prelude::*;

#[test]
fn what_is_understood_is_said_again_in_full() {
    let table = [
        ("user", "user"),
        ("user,forward=tcp:8080-:80", "user,forward=tcp:127.0.0.1:8080-10.0.2.15:80"),
        (
            "user,forward=udp:0.0.0.0:53-10.0.2.20:5353",
            "user,forward=udp:0.0.0.0:53-10.0.2.20:5353",
        ),
        ("user,forward=tcp:[::1]:8080-:80", "user,forward=tcp:[::1]:8080-10.0.2.15:80"),
        (
            "user,forward=tcp:1-:2,forward=udp:3-:4",
            "user,forward=tcp:127.0.0.1:1-10.0.2.15:2,forward=udp:127.0.0.1:3-10.0.2.15:4",
        ),
        ("user,resolver=9.9.9.9", "user,resolver=9.9.9.9:53"),
        ("user,resolver=2620:fe::fe", "user,resolver=[2620:fe::fe]:53"),
        (
            "user,resolver=127.0.0.1:5353,forward=tcp:1-:2",
            "user,resolver=127.0.0.1:5353,forward=tcp:127.0.0.1:1-10.0.2.15:2",
        ),
        ("tap=tap0", "tap=tap0"),
        ("socket=/tmp/with, comma", "socket=/tmp/with, comma"),
    ];
    for (text, full) in table {
        let config: NetworkConfig = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(config.to_string(), full);
        assert_eq!(full.parse(), Ok(config));
    }
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    const FORWARD: &str = "; right would be `tcp:8080-:80`, or `udp:127.0.0.1:5353-10.0.2.15:53`";
    let table = [
        ("", "network \"\": there are `user`, `tap=NAME` and `socket=PATH`".to_owned()),
        ("bridge=br0", "network \"bridge=br0\": there are `user`, `tap=NAME` and `socket=PATH`".to_owned()),
        ("users,forward=tcp:1-:1", "network \"users,forward=tcp:1-:1\": there are `user`, `tap=NAME` and `socket=PATH`".to_owned()),
        ("user,", "network user: option \"\": there are `forward=tcp:8080-:80` and `resolver=ADDRESS`".to_owned()),
        ("user,dns=1.1.1.1", "network user: option \"dns=1.1.1.1\": there are `forward=tcp:8080-:80` and `resolver=ADDRESS`".to_owned()),
        ("user,forward=8080", format!("forward \"8080\": it doesn't say `tcp:` or `udp:` first{FORWARD}")),
        ("user,forward=sctp:1-:1", format!("forward \"sctp:1-:1\": protocol \"sctp\" is neither `tcp` nor `udp`{FORWARD}")),
        ("user,forward=tcp:8080", format!("forward \"tcp:8080\": no dash parts the host's end from the guest's{FORWARD}")),
        ("user,forward=tcp:8080-80", format!("forward \"tcp:8080-80\": the guest's end \"80\" lacks the colon before its port{FORWARD}")),
        ("user,forward=tcp:0-:80", format!("forward \"tcp:0-:80\": \"0\" is no port, which is from 1 to 65535{FORWARD}")),
        ("user,forward=tcp:1.2.3.4:0-:80", format!("forward \"tcp:1.2.3.4:0-:80\": 0 is no port{FORWARD}")),
        ("user,forward=tcp:-:80", format!("forward \"tcp:-:80\": \"\" is no port, which is from 1 to 65535{FORWARD}")),
        ("user,forward=tcp:1-:65536", format!("forward \"tcp:1-:65536\": \"65536\" is no port, which is from 1 to 65535{FORWARD}")),
        ("user,forward=tcp:here:1-:1", format!("forward \"tcp:here:1-:1\": \"here:1\" is no address and port of the host's{FORWARD}")),
        ("user,forward=tcp:1-there:1", format!("forward \"tcp:1-there:1\": \"there\" is no address of the guest's{FORWARD}")),
        (
            "user,forward=tcp:1-10.0.2.2:1",
            format!("forward \"tcp:1-10.0.2.2:1\": 10.0.2.2 is not among the guest's addresses, 10.0.2.4 to 10.0.2.254{FORWARD}"),
        ),
        (
            "user,resolver=example.org",
            "resolver \"example.org\": it is an address, with a port if that isn't 53: `9.9.9.9`, `127.0.0.1:5353` or `[::1]:53`"
                .to_owned(),
        ),
        ("tap=", "tap \"\": an interface's name has 1 to 15 bytes, and no blank or slash among them: `tap0`".to_owned()),
        (
            "tap=sixteen-letters-",
            "tap \"sixteen-letters-\": an interface's name has 1 to 15 bytes, and no blank or slash among them: `tap0`".to_owned(),
        ),
        ("tap=a/b", "tap \"a/b\": an interface's name has 1 to 15 bytes, and no blank or slash among them: `tap0`".to_owned()),
        ("socket=", "socket \"\": the path of a socket has 1 to 107 bytes".to_owned()),
    ];
    for (text, message) in table {
        assert_eq!(text.parse::<NetworkConfig>().unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn a_path_has_the_length_the_system_has_room_for() {
    let longest = format!("socket=/{}", "x".repeat(106));
    assert!(longest.parse::<NetworkConfig>().is_ok());
    assert!(format!("{longest}x").parse::<NetworkConfig>().is_err());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap();
    let config: NetworkConfig = format!("user,forward=tcp:{host}-:80").parse().unwrap();
    let error = config.open().err().unwrap();
    assert!(matches!(error, OpenError::Forward { .. }));
    let wanted = format!(
        "can't listen on {host} to forward it to the guest's 10.0.2.15:80: Address already in use"
    );
    assert!(error.to_string().starts_with(&wanted), "{error}");
}

proptest! {
    #[test]
    fn whatever_is_said_is_judged(text in "(user,|tap=|socket=)?(forward=|resolver=)?(tcp:|udp:)?[-0-9a-f:.\\[\\],=]{0,40}") {
        if let Ok(config) = text.parse::<NetworkConfig>() {
            prop_assert_eq!(config.to_string().parse(), Ok(config));
        }
    }
}
