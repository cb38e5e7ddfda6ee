//! Two ends of a socket network, and others who come to one.

use super::guest::{Guest, PATIENCE};
use super::streams::bytes;
use lguest_devices::network::{Network, NetworkConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

fn open(path: &Path) -> Box<dyn Network> {
    NetworkConfig::Socket(path.to_owned()).open().unwrap()
}

fn wait(network: &dyn Network, flags: PollFlags) {
    let soon = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let _ = poll(&mut [PollFd::from_borrowed_fd(network.descriptor(), flags)], Some(&soon));
}

fn receive(network: &mut dyn Network) -> Vec<u8> {
    let mut frame = vec![0; 65550];
    let began = Instant::now();
    loop {
        if let Some(length) = network.receive(&mut frame).unwrap() {
            return frame[..length].to_vec();
        }
        assert!(began.elapsed() < PATIENCE, "no frame comes");
        wait(network, PollFlags::IN);
    }
}

/// Sends until the other has heard, since what is sent to nobody is lost.
fn until_heard(from: &mut dyn Network, to: &mut dyn Network, frame: &[u8]) {
    let mut heard = vec![0; 65550];
    let began = Instant::now();
    loop {
        from.send(frame).unwrap();
        wait(to, PollFlags::IN);
        while let Some(length) = to.receive(&mut heard).unwrap() {
            if heard[..length] == *frame {
                return;
            }
        }
        assert!(began.elapsed() < PATIENCE, "the other doesn't hear");
    }
}

#[test]
fn two_find_each_other_and_again_when_either_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let mut first = open(&path);
    // To nobody.
    assert!(first.send(&[0; 60]).unwrap());
    let mut second = open(&path);
    until_heard(&mut *first, &mut *second, &[1; 60]);
    until_heard(&mut *second, &mut *first, &[2; 1514]);
    // The second goes, and another comes.
    drop(second);
    let mut second = open(&path);
    until_heard(&mut *second, &mut *first, &[3; 60]);
    until_heard(&mut *first, &mut *second, &[4; 60]);
    // The first goes: then the second is the first.
    drop(first);
    let mut third = open(&path);
    until_heard(&mut *third, &mut *second, &[5; 60]);
    until_heard(&mut *second, &mut *third, &[6; 60]);
    drop((second, third));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn frames_of_all_lengths_keep_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let (mut first, mut second) = (open(&path), open(&path));
    until_heard(&mut *first, &mut *second, &[0; 20]);
    until_heard(&mut *second, &mut *first, &[0; 20]);
    let lengths = [14, 60, 1514, 65550, 15, 9000];
    let frames: Vec<Vec<u8>> =
        (0..3000).map(|index| bytes(lengths[index % lengths.len()], index as u32 + 1)).collect();
    let sent = frames.clone();
    let sender = std::thread::spawn(move || {
        for frame in &sent {
            while !first.send(frame).unwrap() {
                wait(&*first, PollFlags::OUT);
            }
        }
        first
    });
    for frame in &frames {
        let mut heard = receive(&mut *second);
        while heard == [0; 20] {
            heard = receive(&mut *second);
        }
        assert!(
            heard == *frame,
            "a frame of {} bytes isn't the one of {}",
            heard.len(),
            frame.len()
        );
    }
    sender.join().unwrap();
}

#[test]
fn who_does_not_listen_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let (mut first, mut second) = (open(&path), open(&path));
    until_heard(&mut *first, &mut *second, &[1; 60]);
    // The system's buffers on the way fill, and then there's no room, for good.
    let mut sent = 0;
    let began = Instant::now();
    let mut refused = None;
    while refused.is_none_or(|when: Instant| when.elapsed().as_millis() < 500) {
        if first.send(&[2; 1514]).unwrap() {
            (sent, refused) = (sent + 1, None);
        } else {
            refused = refused.or(Some(Instant::now()));
            wait(&*first, PollFlags::OUT);
        }
        assert!(sent < 10_000, "somebody keeps them all");
        assert!(began.elapsed() < PATIENCE);
    }
    // None that was taken is lost.
    for _ in 0..sent {
        while receive(&mut *second).len() != 1514 {}
    }
}

/// The other end of somebody else's making: it says what is in `frames`, each with its length before it.
fn says(stream: &mut UnixStream, frames: &[&[u8]]) {
    for frame in frames {
        stream.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(frame).unwrap();
    }
}

#[test]
fn for_who_does_not_listen_little_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let mut network = open(&path);
    let _deaf = UnixStream::connect(&path).unwrap();
    let mut sent = 0;
    loop {
        if network.send(&[1; 1500]).unwrap() {
            sent += 1;
            assert!(sent < 10_000, "they are taken without end");
            continue;
        }
        wait(&*network, PollFlags::OUT);
        if !network.send(&[1; 1500]).unwrap() {
            break;
        }
    }
}

#[test]
fn another_program_may_listen_and_frames_have_its_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let listener = UnixListener::bind(&path).unwrap();
    let mut network = open(&path);
    let mut stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    says(&mut stream, &[&[1; 60], &[2; 1514]]);
    assert_eq!(receive(&mut *network), [1; 60]);
    assert_eq!(receive(&mut *network), [2; 1514]);
    assert!(network.send(&[3; 42]).unwrap());
    let mut heard = [0; 46];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard[..4], [0, 0, 0, 42]);
    assert_eq!(heard[4..], [3; 42]);
}

#[test]
fn who_talks_nonsense_is_shown_the_door() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let mut network = open(&path);
    for nonsense in [[0, 0, 0, 0], [0, 1, 0, 15], [0xff; 4]] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        says(&mut stream, &[&[1; 60]]);
        assert_eq!(receive(&mut *network), [1; 60], "until then it is heard");
        stream.write_all(&nonsense).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed");
    }
    // The next is welcome.
    let mut other = open(&path);
    until_heard(&mut *other, &mut *network, &[2; 60]);
}

#[test]
fn a_third_is_not_let_in_while_two_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let (mut first, mut second) = (open(&path), open(&path));
    until_heard(&mut *first, &mut *second, &[1; 60]);
    // What the third may have said is in nobody's way.
    let mut third = UnixStream::connect(&path).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = third.write_all(&[&[0, 0, 0, 60][..], &[3; 60]].concat());
    let gone = third.read(&mut [0]);
    assert!(
        matches!(&gone, Ok(0)) || gone.is_err_and(|it| it.kind() == ErrorKind::ConnectionReset)
    );
    until_heard(&mut *first, &mut *second, &[1; 60]);
    assert!(second.send(&[2; 60]).unwrap());
    assert_eq!(receive(&mut *first), [2; 60]);
}

#[test]
fn two_guests_talk() {
    let directory = tempfile::tempdir().unwrap();
    let network = format!("socket={}", directory.path().join("net").display());
    let (one, other) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let mut server = Guest::without_address(&network);
    server.set_address(one, 24, one);
    let mut client = Guest::without_address(&network);
    client.set_address(other, 24, other);
    client.set_hardware(2);
    let listening = server.listen(80);
    let serving = std::thread::spawn(move || {
        let heard = server.receive_all(listening);
        server.send(listening, &heard);
        server.tcp(listening).close();
        server.until("the end", |server| (!server.tcp(listening).is_open()).then_some(()));
    });
    let connection = client.connect(SocketAddrV4::new(one, 80));
    let said = bytes(200_000, 10);
    client.send(connection, &said);
    client.tcp(connection).close();
    assert!(client.receive_all(connection) == said);
    client.for_a_while(200);
    serving.join().unwrap();
}
