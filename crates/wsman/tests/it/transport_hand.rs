//! HTTP spoken by hand, for tests that want other bytes than any library sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wsman::auth::negotiate::NegotiateInitiator;
use wsman::auth::ntlm::NtlmClientOptions;
use wsman::auth::{Initiator, NtHash, Seal, Secret};

use crate::transport_stage::{Dice, PASSWORD, SOAP};

pub(crate) const SEALED: &str = "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";boundary=\"Encrypted Boundary\"";

/// One end of a connection that speaks HTTP by hand.
pub(crate) struct Hand {
    pub(crate) stream: BufReader<TcpStream>,
}

/// The head of a message in lower case, and its body.
#[derive(Debug)]
pub(crate) struct Message {
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1).expect("a status line");
        status.parse().expect("a status")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn token(&self, header: &str) -> Option<Vec<u8>> {
        let (_, token) = self.header(header)?.split_once(' ')?;
        STANDARD.decode(token).ok()
    }
}

impl Hand {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens"))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("it reads");
    }

    /// The next message; none at the end of the connection.
    pub(crate) fn read(&mut self) -> Option<Message> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut message = Message {
            head,
            body: Vec::new(),
        };
        let length = message.header("content-length").map(|it| it.parse());
        let length = length.and_then(Result::ok).unwrap_or(0);
        message.body = vec![0; length];
        self.stream.read_exact(&mut message.body).ok()?;
        Some(message)
    }

    pub(crate) fn request(&mut self, headers: &str, body: &[u8]) -> Message {
        let head = format!(
            "POST /wsman HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.write(&[head.as_bytes(), body].concat());
        self.read().expect("an answer")
    }

    pub(crate) fn log_in(&mut self) -> Box<dyn Seal> {
        let mut initiator: Box<dyn Initiator> = Box::new(initiator());
        let mut token = None;
        for _ in 0..3 {
            let next = initiator.step(token.as_deref()).expect("a token");
            let header = format!("Authorization: Negotiate {}\r\n", STANDARD.encode(next));
            let answer = self.request(&header, b"");
            token = answer.token("www-authenticate");
            assert_eq!(answer.body, b"");
            if answer.status() == 200 {
                return initiator.finish(token.as_deref()).expect("keys");
            }
            assert_eq!(answer.status(), 401);
        }
        panic!("a login without end")
    }
}

pub(crate) fn initiator() -> NegotiateInitiator {
    let options = NtlmClientOptions {
        login: wsman::auth::account::LoginName::parse("Administrator"),
        hash: NtHash::of(&Secret::new(PASSWORD)),
        target: "HTTP/localhost".to_owned(),
        binding: None,
    };
    NegotiateInitiator::ntlm(options, Dice::new(3))
}

/// Exactly as Windows frames.
pub(crate) fn framed(seal: &mut dyn Seal, plain: &[u8]) -> Vec<u8> {
    framed_with(seal, plain, "--Encrypted Boundary", "\t", "")
}

pub(crate) fn framed_with(
    seal: &mut dyn Seal,
    plain: &[u8],
    boundary: &str,
    tab: &str,
    gap: &str,
) -> Vec<u8> {
    let sealed = seal.seal(plain).expect("sealed");
    let head = format!(
        "{boundary}\r\n{tab}Content-Type: application/HTTP-SPNEGO-session-encrypted\r\n\
         {tab}OriginalContent: type={SOAP};Length={}\r\n{boundary}\r\n\
         {tab}Content-Type: application/octet-stream\r\n{gap}",
        plain.len()
    );
    let mut out = head.into_bytes();
    out.extend_from_slice(
        &u32::try_from(sealed.header.len())
            .expect("short")
            .to_le_bytes(),
    );
    out.extend_from_slice(&sealed.header);
    out.extend_from_slice(&sealed.data);
    out.extend_from_slice(format!("{gap}{boundary}--\r\n").as_bytes());
    out
}

pub(crate) fn sealed_type() -> String {
    format!("Content-Type: {SEALED}\r\n")
}

pub(crate) fn open(seal: &mut dyn Seal, answer: &Message) -> Vec<u8> {
    let marker = b"application/octet-stream\r\n";
    let at = answer
        .body
        .windows(marker.len())
        .position(|it| it == marker)
        .expect("framed");
    let rest = &answer.body[at + marker.len() + 4..];
    let (header, rest) = rest.split_at(16);
    let data = rest
        .strip_suffix(b"--Encrypted Boundary--\r\n")
        .expect("ended");
    seal.open(header, data.to_vec()).expect("sealed right")
}

/// Numbers that follow from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound.max(1)
    }

    /// Cuts, doubles, strikes or changes a piece.
    pub(crate) fn mangle(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = (at + self.below(24)).min(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                2 => {
                    bytes.drain(at..end);
                }
                3 => {
                    let digits = [b'9'; 12];
                    bytes.splice(at..at, digits);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = u8::try_from(self.below(256)).expect("a byte");
                    }
                }
            }
        }
    }
}
