//! How fast the user network is: `cargo run --release -p lguest-devices --example network_speed [MEGABYTES]`
//!
//! The guest is smoltcp, in this process; the host's side is a socket on the loopback. Both sides' work is in the figures.

#[path = "../tests/network/guest.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod guest;

use guest::{GATEWAY, Guest};
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::time::Instant;

fn main() {
    let megabytes =
        std::env::args().nth(1).map_or(500, |text| text.parse().expect("a number of megabytes"));
    let bytes = megabytes * 1_000_000;
    let rate = |began: Instant| megabytes as f64 / began.elapsed().as_secs_f64();
    println!("guest to host: {:.0} MB/s", rate(guest_to_host(bytes)));
    println!("host to guest: {:.0} MB/s", rate(host_to_guest(bytes)));
    println!("a byte there and back: {:.1} µs", round_trips(10_000));
}

fn guest_to_host(bytes: usize) -> Instant {
    let (listener, there) = listener();
    let server = std::thread::spawn(move || {
        io::copy(&mut listener.accept().unwrap().0, &mut io::sink()).unwrap()
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    let began = Instant::now();
    let chunk = vec![0x5a; 64 << 10];
    let mut left = bytes;
    guest.until("all to be sent", |guest| {
        while left > 0 && guest.tcp(connection).can_send() {
            left -= guest.tcp(connection).send_slice(&chunk[..chunk.len().min(left)]).unwrap();
        }
        (left == 0).then_some(())
    });
    guest.tcp(connection).close();
    guest.until("all to be heard", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), bytes as u64);
    began
}

fn host_to_guest(bytes: usize) -> Instant {
    let (listener, there) = listener();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let chunk = vec![0x5a; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let now = chunk.len().min(left);
            stream.write_all(&chunk[..now]).unwrap();
            left -= now;
        }
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    let began = Instant::now();
    let mut heard = 0;
    guest.until("all to be heard", |guest| {
        let socket = guest.tcp(connection);
        while socket.can_recv() {
            heard += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        (heard == bytes).then_some(())
    });
    server.join().unwrap();
    began
}

fn round_trips(count: u32) -> f64 {
    let (listener, there) = listener();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 {
            stream.write_all(&byte).unwrap();
        }
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    let began = Instant::now();
    for _ in 0..count {
        guest.tcp(connection).send_slice(&[1]).unwrap();
        guest.until("the byte's return", |guest| {
            guest
                .tcp(connection)
                .can_recv()
                .then(|| guest.tcp(connection).recv(|bytes| (bytes.len(), ())).unwrap())
        });
    }
    let taken = began.elapsed();
    drop(guest);
    server.join().unwrap();
    taken.as_secs_f64() * 1e6 / f64::from(count)
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddrV4::new(GATEWAY, port))
}
