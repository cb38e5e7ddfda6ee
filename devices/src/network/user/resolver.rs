//! **Who knows names** on the host: the first `nameserver` of `/etc/resolv.conf` (resolv.conf(5)).
//!
//! The file changes while a guest runs, when a laptop moves from one network to another, so it is looked at again for each
//! conversation, but no more than once a second.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const FILE: &str = "/etc/resolv.conf";
const FRESH: Duration = Duration::from_secs(1);
const PORT: u16 = 53;

pub(super) struct Resolver {
    /// The one to ask, if that was said.
    fixed: Option<SocketAddr>,
    /// What the file said, and when.
    seen: Option<(SocketAddr, Instant)>,
}

impl Resolver {
    pub(super) fn new(fixed: Option<SocketAddr>) -> Resolver {
        Resolver { fixed, seen: None }
    }

    /// Whom to ask now.
    pub(super) fn address(&mut self) -> SocketAddr {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        match self.seen {
            Some((address, when)) if when.elapsed() < FRESH => address,
            _ => {
                let address = first_of(&std::fs::read_to_string(FILE).unwrap_or_default());
                self.seen = Some((address, Instant::now()));
                address
            }
        }
    }
}

/// The first nameserver of a file; the host itself where there's none, as the C library has it.
fn first_of(file: &str) -> SocketAddr {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())
            .and_then(|word| word.parse::<IpAddr>().ok())
    };
    SocketAddr::new(file.lines().find_map(server).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_said_counts_for_a_second() {
        let said = "192.0.2.1:53".parse().unwrap();
        let address = |ago| {
            let when = Instant::now().checked_sub(ago).unwrap();
            Resolver { fixed: None, seen: Some((said, when)) }.address()
        };
        assert_eq!(address(Duration::ZERO), said);
        assert_ne!(address(FRESH), said);
    }

    #[test]
    fn the_first_that_is_an_address_is_asked() {
        let table = [
            ("", "127.0.0.1:53"),
            ("# nameserver 192.0.2.1\nsearch example\n", "127.0.0.1:53"),
            ("search example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n", "192.0.2.1:53"),
            ("nameserver\tfe80::1%eth0\nnameserver 2001:db8::1 # ours\n", "[2001:db8::1]:53"),
        ];
        for (file, address) in table {
            assert_eq!(first_of(file), address.parse().unwrap(), "{file:?}");
        }
    }
}
