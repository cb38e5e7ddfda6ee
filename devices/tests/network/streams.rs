//! The guest's TCP connections to the host.

use super::guest::{GATEWAY, Guest, NAMES, PATIENCE};
use rustix::net::{AddressFamily, SocketType};
use smoltcp::socket::tcp::State;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::thread::JoinHandle;

const MEGABYTES: usize = 10 << 20;

/// Bytes that aren't the same anywhere else.
pub(crate) fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Serves one caller, in a thread.
pub(crate) fn serve<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddrV4, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        serve(stream)
    });
    (SocketAddrV4::new(GATEWAY, port), server)
}

/// Closes so that the other side hears "reset".
pub(crate) fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn ten_megabytes_go_each_way_at_once_unharmed() {
    let (there, server) = serve(|mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes(MEGABYTES, 2)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        writing.join().unwrap();
        heard
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    let ours = bytes(MEGABYTES, 1);
    let (mut sent, mut heard) = (0, Vec::new());
    guest.until("both ways to be done", |guest| {
        let socket = guest.tcp(connection);
        if sent < ours.len() {
            sent += socket.send_slice(&ours[sent..]).unwrap();
            if sent == ours.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            heard.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
        }
        (sent == ours.len() && !socket.may_recv()).then_some(())
    });
    assert!(heard == bytes(MEGABYTES, 2), "what the guest heard isn't what was said");
    guest.until("the server's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == ours, "what the server heard isn't what was said");
}

#[test]
fn who_is_refused_hears_it() {
    // A port that is taken, so that nobody else does, and where nobody listens.
    let silent = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&silent, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = SocketAddrV4::try_from(rustix::net::getsockname(&silent).unwrap()).unwrap().port();
    let mut guest = Guest::on("user");
    // A port of the host's, the guest's own loopback, and no port of the resolver's.
    for (address, port) in [(GATEWAY, port), (Ipv4Addr::LOCALHOST, 80), (NAMES, 80)] {
        let connection = guest.call(SocketAddrV4::new(address, port));
        guest.until("a refusal", |guest| {
            (guest.tcp(connection).state() == State::Closed).then_some(())
        });
    }
}

#[test]
fn a_guest_that_has_finished_still_hears() {
    let (there, server) = serve(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&bytes(1 << 20, 3)).unwrap();
        question
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    guest.send(connection, b"everything?");
    guest.tcp(connection).close();
    let heard = guest.receive_all(connection);
    assert!(heard == bytes(1 << 20, 3));
    assert_eq!(server.join().unwrap(), b"everything?");
}

#[test]
fn a_server_that_has_finished_still_hears() {
    let (there, server) = serve(|mut stream| {
        stream.write_all(b"tell me everything").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    assert_eq!(guest.receive_all(connection), b"tell me everything");
    let everything = bytes(1 << 20, 4);
    guest.send(connection, &everything);
    guest.tcp(connection).close();
    guest.until("the server's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == everything);
}

#[test]
fn what_breaks_on_the_hosts_side_is_broken_for_the_guest() {
    let (there, server) = serve(|mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        reset(stream);
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    guest.send(connection, b"x");
    guest.until("a reset", |guest| (guest.tcp(connection).state() == State::Closed).then_some(()));
    server.join().unwrap();
}

#[test]
fn what_the_guest_breaks_is_broken_for_the_host() {
    let (there, server) = serve(|mut stream| {
        stream.write_all(b"x").unwrap();
        stream.read(&mut [0]).unwrap_err().kind()
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    guest.until("a byte", |guest| guest.tcp(connection).can_recv().then_some(()));
    guest.tcp(connection).abort();
    guest.until("the server's end", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), ErrorKind::ConnectionReset);
}

/// Who doesn't listen isn't sent more than a few buffers full; and hears everything once it does.
#[test]
fn a_server_that_does_not_listen_is_waited_for() {
    let (say, hear) = std::sync::mpsc::channel::<()>();
    let (there, server) = serve(move |mut stream| {
        hear.recv().unwrap();
        // Slower than the guest speaks, so that it has finished long before.
        let (mut heard, mut piece) = (Vec::new(), vec![0; 0x1_0000]);
        loop {
            match stream.read(&mut piece).unwrap() {
                0 => return heard,
                length => heard.extend_from_slice(&piece[..length]),
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    let everything = bytes(4 * MEGABYTES, 5);
    let mut sent = 0;
    let mut quiet = std::time::Instant::now();
    guest.until("the guest to be stopped", |guest| {
        let now = guest.tcp(connection).send_slice(&everything[sent..]).unwrap();
        sent += now;
        if now > 0 {
            quiet = std::time::Instant::now();
        }
        (quiet.elapsed().as_millis() > 500).then_some(())
    });
    assert!(sent < everything.len(), "all of it went, to nobody");
    say.send(()).unwrap();
    guest.send(connection, &everything[sent..]);
    guest.tcp(connection).close();
    guest.until("the server's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == everything);
}

#[test]
fn a_guest_that_does_not_listen_is_waited_for() {
    let (there, server) = serve(|mut stream| {
        stream.set_nonblocking(true).unwrap();
        let everything = bytes(4 * MEGABYTES, 6);
        let (mut written, mut quiet) = (0, std::time::Instant::now());
        while quiet.elapsed().as_millis() < 500 {
            match stream.write(&everything[written..]) {
                Ok(now) => (written, quiet) = (written + now, std::time::Instant::now()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(written < everything.len(), "all of it went, to nobody");
        stream.set_nonblocking(false).unwrap();
        stream.write_all(&everything[written..]).unwrap();
    });
    let mut guest = Guest::on("user");
    let connection = guest.connect(there);
    // Its window fills, and then it doesn't even look at its cable.
    guest.for_a_while(100);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let heard = guest.receive_all(connection);
    assert!(heard == bytes(4 * MEGABYTES, 6));
    server.join().unwrap();
}

#[test]
fn many_short_connections_leave_nothing_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    // More than there may be at a time. Each is closed by the server first, then by the guest.
    const COUNT: usize = 600;
    let server = std::thread::spawn(move || {
        for _ in 0..COUNT {
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
        }
    });
    let mut guest = Guest::on("user");
    for _ in 0..COUNT {
        let connection = guest.connect(there);
        assert_eq!(guest.receive_all(connection), b"hello");
        guest.tcp(connection).close();
        guest.until("the last goodbye", |guest| (!guest.tcp(connection).is_open()).then_some(()));
        guest.sockets.remove(connection);
    }
    server.join().unwrap();
}

/// Both sides' are this process's, here.
fn allow_many_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn when_there_are_too_many_connections_the_old_ones_go_on() {
    const AT_A_TIME: usize = 256;
    allow_many_descriptors();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let mut streams: Vec<TcpStream> =
            (0..AT_A_TIME).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut streams {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
        drop(streams);
        listener.accept().unwrap().0.write_all(b"late").unwrap();
    });
    let mut guest = Guest::on("user");
    let connections: Vec<_> = (0..AT_A_TIME).map(|_| guest.connect(there)).collect();
    let one_more = guest.call(there);
    guest.for_a_while(200);
    assert_eq!(guest.tcp(one_more).state(), State::SynSent, "nobody answers");
    for (index, connection) in connections.iter().enumerate() {
        guest.send(*connection, &[index as u8]);
        guest.until("an answer", |guest| guest.tcp(*connection).can_recv().then_some(()));
        assert_eq!(
            guest.tcp(*connection).recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap(),
            [index as u8]
        );
        guest.tcp(*connection).close();
    }
    // It calls again by itself, and now there's room.
    assert_eq!(guest.receive_all(one_more), b"late");
    server.join().unwrap();
}
