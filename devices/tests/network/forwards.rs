//! Callers from the host to the guest.

use super::datagrams::{hear, say, udp};
use super::guest::{GATEWAY, Guest, NAMES, PATIENCE};
use super::streams::bytes;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

/// A port of the host's that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A guest with a port forwarded to its own 80. The port may be lost to another test on the way: then another is tried.
fn forwarding(protocol: &str) -> (Guest, u16) {
    for _ in 0..20 {
        let port = free_port();
        let network = format!("user,forward={protocol}:{port}-:80");
        if let Ok(guest) = std::panic::catch_unwind(|| Guest::on(&network)) {
            return (guest, port);
        }
    }
    panic!("no port is free");
}

fn call(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_caller_reaches_the_guest() {
    let (mut guest, port) = forwarding("tcp");
    let listening = guest.listen(80);
    let caller = std::thread::spawn(move || {
        let mut stream = call(port);
        stream.write_all(&bytes(10 << 20, 8)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        (stream.local_addr().unwrap().port(), heard)
    });
    let heard = guest.receive_all(listening);
    assert!(heard == bytes(10 << 20, 8));
    let seen = guest.tcp(listening).remote_endpoint().unwrap();
    guest.send(listening, &bytes(10 << 20, 9));
    guest.tcp(listening).close();
    guest.until("the caller's end", |_| caller.is_finished().then_some(()));
    let (port, heard) = caller.join().unwrap();
    assert!(heard == bytes(10 << 20, 9));
    assert_eq!(
        seen,
        SocketAddrV4::new(GATEWAY, port).into(),
        "the guest sees the caller as the gateway, at its own port"
    );
}

#[test]
fn a_guest_that_refuses_refuses_the_caller() {
    let (mut guest, port) = forwarding("tcp");
    // It says hello to the gateway once, so that its hardware address is known.
    let nobody = guest.call(SocketAddrV4::new(NAMES, 80));
    guest.until("a refusal", |guest| (guest.tcp(nobody).state() == State::Closed).then_some(()));
    let caller = std::thread::spawn(move || call(port).read(&mut [0]));
    guest.until("the caller's end", |_| caller.is_finished().then_some(()));
    assert!(caller.join().unwrap().is_err(), "reset, not the end of an empty stream");
}

#[test]
fn a_caller_waits_for_a_guest_that_is_not_up_yet() {
    let (mut guest, port) = forwarding("tcp");
    let caller = std::thread::spawn(move || {
        let mut heard = Vec::new();
        call(port).read_to_end(&mut heard).unwrap();
        heard
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    let listening = guest.listen(80);
    guest.until("the caller", |guest| guest.tcp(listening).may_send().then_some(()));
    guest.send(listening, b"good morning");
    guest.tcp(listening).close();
    guest.until("the caller's end", |_| caller.is_finished().then_some(()));
    assert_eq!(caller.join().unwrap(), b"good morning");
}

#[test]
fn datagrams_reach_the_guest_and_its_answers_each_caller() {
    let (mut guest, port) = forwarding("udp");
    let there = SocketAddr::from(([127, 0, 0, 1], port));
    let listening = udp(&mut guest, 80);
    let callers: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    // It is kept until the guest has said where it is.
    callers[0].send_to(b"hello?", there).unwrap();
    assert_eq!(hear(&mut guest, listening).0, b"hello?");
    for round in 0..5u8 {
        for (index, caller) in callers.iter().enumerate() {
            caller.set_read_timeout(Some(PATIENCE)).unwrap();
            let question = [round, index as u8];
            caller.send_to(&question, there).unwrap();
            let (heard, from) = hear(&mut guest, listening);
            assert_eq!(heard, question);
            let smoltcp::wire::IpAddress::Ipv4(address) = from.addr;
            say(
                &mut guest,
                listening,
                &[question[0], question[1], 1],
                SocketAddrV4::new(address, from.port),
            );
            guest.for_a_while(1);
            let mut answer = [0; 10];
            let (length, from) = caller.recv_from(&mut answer).unwrap();
            assert_eq!((&answer[..length], from), (&[question[0], question[1], 1][..], there));
        }
    }
}

#[test]
fn a_port_is_free_again_when_the_network_has_gone() {
    let (guest, port) = forwarding("tcp");
    drop(guest);
    drop(Guest::on(&format!("user,forward=tcp:{port}-:80")));
}
