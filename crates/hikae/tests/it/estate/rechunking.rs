//! A proxy that passes bytes on as they are, and answers in chunks: small ones first, cut anywhere.
//!
//! ```text
//!   client ═══ requests ═══════════════════════════════════════► server
//!          ◄═ Transfer-Encoding: chunked, 1, 2, 3, … bytes ═ answers with a length
//! ```
//!
//! A connection is a connection: logins that belong to one stay good.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// A proxy that listens until the process ends.
pub struct Rechunking {
    address: SocketAddr,
}

impl Rechunking {
    /// In front of a server.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(server) else {
                    return;
                };
                join(client, server);
            }
        });
        Self { address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn join(client: TcpStream, server: TcpStream) {
    for side in [&client, &server] {
        side.set_nodelay(true).expect("a socket");
    }
    let (mut from, mut to) = (
        client.try_clone().expect("a handle"),
        server.try_clone().expect("a handle"),
    );
    std::thread::spawn(move || {
        let copied = std::io::copy(&mut from, &mut to);
        // Either side may hang up whenever it likes.
        drop(copied.and_then(|_| to.shutdown(std::net::Shutdown::Write)));
    });
    std::thread::spawn(move || {
        let mut server = BufReader::new(server);
        while matches!(pass_answer(&mut server, &client), Ok(true)) {}
        drop(client.shutdown(std::net::Shutdown::Both));
    });
}

/// Passes one answer on; `false` when there are no more.
fn pass_answer(server: &mut BufReader<TcpStream>, mut client: &TcpStream) -> std::io::Result<bool> {
    let mut head = String::new();
    let mut length = None;
    loop {
        let start = head.len();
        if server.read_line(&mut head)? == 0 {
            return Ok(false);
        }
        let line = head[start..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
            head.truncate(start);
            head.push_str("Transfer-Encoding: chunked\r\n");
        }
        if line == "\r\n" {
            break;
        }
    }
    client.write_all(head.as_bytes())?;
    let mut body = vec![0; length.unwrap_or_default()];
    server.read_exact(&mut body)?;
    if length.is_none() {
        return Ok(true);
    }
    let (mut rest, mut size) = (body.as_slice(), 1);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        let mut chunk = format!("{:x};odd=\"yes\"\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        client.write_all(&chunk)?;
        rest = after;
        size = (size * 3).min(4096);
    }
    client.write_all(b"0\r\n\r\n")?;
    Ok(true)
}
