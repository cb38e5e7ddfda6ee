//! The host's side of the web: just enough of HTTP for a guest to fetch something, and to be asked for something.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

/// Answers whoever asks for anything with `content`, as long as the process lives, and gives the port it does that on.
pub(crate) fn serve(content: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            // A guest that leaves early fails its check itself.
            let _ = client.and_then(|client| answer(client, &content));
        }
    });
    port
}

fn answer(mut client: TcpStream, content: &[u8]) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut asked = Vec::new();
    let mut byte = [0];
    while !asked.ends_with(b"\r\n\r\n") && client.read(&mut byte)? > 0 {
        asked.push(byte[0]);
    }
    let length = content.len();
    write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
    client.write_all(content)
}

/// What the server at this port of the host's says to a request for `path`, without the header.
pub(crate) fn fetch(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    server.set_read_timeout(Some(PATIENCE))?;
    write!(server, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let header = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap_or_else(|| {
        panic!("no header: {}", String::from_utf8_lossy(&answer));
    });
    Ok(answer.split_off(header + 4))
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
