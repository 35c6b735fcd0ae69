//! Bytes on bare sockets: odd framing, half requests, resets, and lies, at both halves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wsman::auth::negotiate::{NegotiateAcceptor, NegotiateInitiator};
use wsman::auth::ntlm::{CbtHardening, NtlmClientOptions};
use wsman::auth::{Accepted, Acceptor, Initiator, NtHash, Seal, Secret};
use wsman::server::Caller;
use wsman::transport::{HttpTransport, Line, TransportRuntime};
use wsman::{CancelToken, ErrorKind};

use crate::transport_stage::{
    Dice, PASSWORD, SOAP, Stage, account, accounts, administrator, client, client_options,
    listener, negotiate_options, post, post_within, server_options, text,
};

const SEALED: &str = "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";boundary=\"Encrypted Boundary\"";

/// One end of a connection that speaks HTTP by hand.
struct Hand {
    stream: BufReader<TcpStream>,
}

/// The head of a message in lower case, and its body.
#[derive(Debug)]
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1).expect("a status line");
        status.parse().expect("a status")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn token(&self, header: &str) -> Option<Vec<u8>> {
        let (_, token) = self.header(header)?.split_once(' ')?;
        STANDARD.decode(token).ok()
    }
}

impl Hand {
    fn new(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens"))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("it reads");
    }

    /// The next message; none at the end of the connection.
    fn read(&mut self) -> Option<Message> {
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

    fn request(&mut self, headers: &str, body: &[u8]) -> Message {
        let head = format!(
            "POST /wsman HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.write(&[head.as_bytes(), body].concat());
        self.read().expect("an answer")
    }

    fn log_in(&mut self) -> Box<dyn Seal> {
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

fn initiator() -> NegotiateInitiator {
    let options = NtlmClientOptions {
        login: wsman::auth::account::LoginName::parse("Administrator"),
        hash: NtHash::of(&Secret::new(PASSWORD)),
        target: "HTTP/localhost".to_owned(),
        binding: None,
    };
    NegotiateInitiator::ntlm(options, Dice::new(3))
}

/// Exactly as Windows frames.
fn framed(seal: &mut dyn Seal, plain: &[u8]) -> Vec<u8> {
    framed_with(seal, plain, "--Encrypted Boundary", "\t", "")
}

fn framed_with(seal: &mut dyn Seal, plain: &[u8], boundary: &str, tab: &str, gap: &str) -> Vec<u8> {
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

fn sealed_type() -> String {
    format!("Content-Type: {SEALED}\r\n")
}

#[test]
fn a_sealed_answer_is_framed_byte_for_byte_as_windows_does() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let mut seal = hand.log_in();
    let answer = hand.request(&sealed_type(), &framed(&mut *seal, b"<q/>"));
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), Some(SEALED));
    let start = format!(
        "--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\
         \tOriginalContent: type={SOAP};Length=17\r\n--Encrypted Boundary\r\n\
         \tContent-Type: application/octet-stream\r\n\u{10}\0\0\0"
    );
    let rest = answer
        .body
        .strip_prefix(start.as_bytes())
        .expect("framed so");
    let (header, rest) = rest.split_at(16);
    let data = rest
        .strip_suffix(b"--Encrypted Boundary--\r\n")
        .expect("ended so");
    let plain = seal.open(header, data.to_vec()).expect("sealed right");
    assert_eq!(plain, b"<echo><q/></echo>");
}

#[test]
fn the_server_reads_odd_framing_and_split_writes() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let mut seal = hand.log_in();
    let variants = [
        ("--Encrypted Boundary", "", ""),
        ("-- Encrypted Boundary", "\t", ""),
        ("--Encrypted Boundary", " ", "\r\n"),
    ];
    for (boundary, tab, gap) in variants {
        let body = framed_with(&mut *seal, b"<q/>", boundary, tab, gap);
        let answer = hand.request(&sealed_type(), &body);
        assert_eq!(answer.status(), 200, "{boundary:?} {tab:?} {gap:?}");
        open(&mut *seal, &answer);
    }
    let body = framed(&mut *seal, b"<split/>");
    let mut chunked = format!(
        "POST /WSMAN HTTP/1.1\r\nHost: x\r\n{}Transfer-Encoding: chunked\r\n\r\n",
        sealed_type()
    )
    .into_bytes();
    for piece in body.chunks(11) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    for piece in chunked.chunks(5) {
        hand.write(piece);
    }
    let answer = hand.read().expect("an answer");
    assert_eq!(open(&mut *seal, &answer), b"<echo><split/></echo>");
}

fn open(seal: &mut dyn Seal, answer: &Message) -> Vec<u8> {
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

#[test]
fn who_is_not_logged_in_gets_401_and_keeps_the_connection() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    for authorization in [
        "",
        "Authorization: Basic dTpw\r\n",
        "Authorization: Bearer x\r\n",
        "Authorization: Negotiate\r\n",
        "Authorization: Negotiate !!!\r\n",
        "Authorization: Negotiate AAAA\r\n",
        "Authorization: Kerberos AAAA\r\n",
        "Authorization: ü\r\n",
    ] {
        let answer = hand.request(authorization, b"<q/>");
        assert_eq!(answer.status(), 401, "{authorization}");
        assert_eq!(answer.header("www-authenticate"), Some("Negotiate"));
        assert_eq!(answer.body, b"");
    }
    hand.log_in();
    assert_eq!(stage.service.asked(), []);
}

#[test]
fn identify_is_answered_to_nobody_and_nothing_else_is() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let headers = format!("WSMANIDENTIFY: unauthenticated\r\nContent-Type: {SOAP}\r\n");
    let answer = hand.request(&headers, b"<identify/>");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.body, b"<echo><identify/></echo>");
    let asked = stage.service.asked();
    assert_eq!(
        asked.first().map(|it| it.caller.clone()),
        Some(Caller::Anonymous)
    );
    assert_eq!(hand.request("", b"<q/>").status(), 401);
}

#[test]
fn a_login_may_begin_again_on_the_same_connection() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let mut half = initiator();
    let token = STANDARD.encode(half.step(None).expect("a token"));
    let header = format!("Authorization: Negotiate {token}\r\n");
    assert_eq!(hand.request(&header, b"").status(), 401);
    for _ in 0..2 {
        let mut seal = hand.log_in();
        let answer = hand.request(&sealed_type(), &framed(&mut *seal, b"<q/>"));
        assert_eq!(open(&mut *seal, &answer), b"<echo><q/></echo>");
    }
}

#[test]
fn a_forged_body_gets_400_and_ends_the_connection() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let mut seal = hand.log_in();
    let mut body = framed(&mut *seal, b"<q/>");
    let at = body.len() - 30;
    body[at] ^= 1;
    let answer = hand.request(&sealed_type(), &body);
    assert_eq!(answer.status(), 400);
    assert!(hand.read().is_none(), "closed");
    let mut hand = Hand::connect(stage.port());
    let mut seal = hand.log_in();
    let body = framed(&mut *seal, b"<once/>");
    assert_eq!(hand.request(&sealed_type(), &body).status(), 200);
    assert_eq!(
        hand.request(&sealed_type(), &body).status(),
        400,
        "replayed"
    );
    assert_eq!(stage.service.bodies(), ["<once/>"]);
}

#[test]
fn who_waits_to_be_told_to_continue_is_told() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    let mut seal = hand.log_in();
    let body = framed(&mut *seal, b"<q/>");
    let head = format!(
        "POST /wsman HTTP/1.1\r\nHost: x\r\n{}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        sealed_type(),
        body.len()
    );
    hand.write(head.as_bytes());
    assert_eq!(hand.read().expect("an interim answer").status(), 100);
    hand.write(&body);
    let answer = hand.read().expect("an answer");
    assert_eq!(open(&mut *seal, &answer), b"<echo><q/></echo>");
}

/// NEGOTIATE with these flags alone, as clients send it that want a login and no keys.
fn bare_negotiate(flags: u32) -> Vec<u8> {
    [
        b"NTLMSSP\0\x01\0\0\0".as_slice(),
        &flags.to_le_bytes(),
        &[0; 16],
    ]
    .concat()
}

#[test]
fn clients_that_want_no_keys_are_challenged_too() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    // Unicode; a code page.
    for (flags, name) in [(0x8205_u32, "C\0O\0R\0P\0"), (0x0202, "CORP")] {
        let token = STANDARD.encode(bare_negotiate(flags));
        let answer = hand.request(&format!("Authorization: Negotiate {token}\r\n"), b"");
        assert_eq!(answer.status(), 401);
        let challenge = answer.token("www-authenticate").expect("a challenge");
        assert_eq!(&challenge[..9], b"NTLMSSP\0\x02");
        assert_eq!(&challenge[56..56 + name.len()], name.as_bytes());
        assert_eq!(
            challenge[20] & 0x03,
            u8::try_from(flags & 0x03).expect("a byte")
        );
    }
}

#[test]
fn only_posts_to_wsman_are_taken() {
    let stage = Stage::new(server_options());
    let mut hand = Hand::connect(stage.port());
    hand.write(b"GET /wsman HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(hand.read().expect("an answer").status(), 405);
    hand.write(b"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(hand.read().expect("an answer").status(), 404);
}

#[test]
fn what_is_no_http_costs_its_own_connection() {
    let stage = Stage::new(server_options());
    let long = format!("POST /wsman HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300_000));
    for garbage in [
        b"\x16\x03\x01\x02garbage\r\n\r\n".as_slice(),
        long.as_bytes(),
    ] {
        let mut hand = Hand::connect(stage.port());
        // The server may close before it has read all of it.
        let _ = hand.stream.get_mut().write_all(garbage);
        if let Some(answer) = hand.read() {
            assert!((400..500).contains(&answer.status()), "{answer:?}");
        }
    }
    let mut hand = Hand::connect(stage.port());
    hand.write(b"POST /wsman HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf");
    hand.stream
        .get_ref()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    assert!(hand.read().is_none(), "half a request is not answered");
    post(&stage.client(Line::Plain, administrator()), "<q/>").expect("others go on");
}

/// What a server by hand does once a client has logged in: gets each sealed request, opened, and its connection.
type Turn = Box<dyn FnMut(&mut Hand, &mut dyn Seal, usize) -> Next + Send>;

#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Close,
}

/// A server by hand: NTLM by the book, then whatever `turn` does.
fn by_hand(turn: Turn) -> u16 {
    let listener = listener();
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || serve_by_hand(&listener, turn));
    port
}

fn serve_by_hand(listener: &TcpListener, mut turn: Turn) {
    let accounts = Arc::new(accounts());
    for stream in listener.incoming() {
        let mut hand = Hand::new(stream.expect("a client"));
        let mut acceptor = NegotiateAcceptor::new(
            negotiate_options(CbtHardening::Relaxed),
            None,
            accounts.clone(),
            Dice::new(5),
        );
        let mut seal: Option<Box<dyn Seal>> = None;
        let mut count = 0;
        while let Some(request) = hand.read() {
            if let Some(seal) = &mut seal {
                open(&mut **seal, &request);
                count += 1;
                if turn(&mut hand, &mut **seal, count) == Next::Close {
                    break;
                }
                continue;
            }
            let token = request.token("authorization").expect("a token");
            let (status, token) = match acceptor.step(&token).expect("by the book") {
                Accepted::Continue(token) => ("401 Unauthorized", token),
                Accepted::Done(proof) => {
                    assert_eq!(
                        Caller::Account(proof.account),
                        account("HV01\\Administrator")
                    );
                    seal = proof.seal;
                    ("200 OK", proof.token.expect("the list is signed"))
                }
            };
            let token = STANDARD.encode(token);
            let answer = format!(
                "HTTP/1.1 {status}\r\nwww-authenticate: nEGOTIATE {token}\r\nContent-Length: 0\r\n\r\n"
            );
            hand.write(answer.as_bytes());
        }
    }
}

fn answer_head(status: &str, content_type: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n")
        .into_bytes()
}

fn sealed_answer(seal: &mut dyn Seal, plain: &[u8]) -> Vec<u8> {
    let body = framed(seal, plain);
    let mut answer = answer_head("200 OK", SEALED, body.len());
    answer.extend_from_slice(&body);
    answer
}

fn asked(runtime: &TransportRuntime, turn: Turn) -> HttpTransport {
    client(runtime, by_hand(turn), Line::Plain, administrator())
}

#[test]
fn the_client_takes_answers_byte_by_byte_and_on_many_connections() {
    let runtime = TransportRuntime::new().expect("threads");
    let transport = asked(
        &runtime,
        Box::new(|hand, seal, count| {
            for byte in sealed_answer(seal, format!("<a n='{count}'/>").as_bytes()).chunks(1) {
                hand.write(byte);
            }
            Next::GoOn
        }),
    );
    for count in 1..4 {
        let answer = post(&transport, "<q/>").expect("an answer");
        assert_eq!(text(&answer), format!("<a n='{count}'/>"));
    }
}

#[test]
fn a_connection_that_was_closed_at_rest_is_replaced_unnoticed() {
    let runtime = TransportRuntime::new().expect("threads");
    let transport = asked(
        &runtime,
        Box::new(|hand, seal, _| {
            let body = framed(seal, b"<a/>");
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {SEALED}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            hand.write(head.as_bytes());
            hand.write(&body);
            Next::Close
        }),
    );
    for _ in 0..3 {
        assert_eq!(
            post(&transport, "<q/>").map(|it| text(&it)).ok().as_deref(),
            Some("<a/>")
        );
    }
}

/// Answers every request with these bytes.
fn saying(bytes: Vec<u8>) -> Turn {
    Box::new(move |hand, _, _| {
        // Who has had enough closes before the end.
        let _ = hand.stream.get_mut().write_all(&bytes);
        Next::Close
    })
}

#[test]
fn answers_without_an_envelope_are_typed_errors() {
    let runtime = TransportRuntime::new().expect("threads");
    let endless_head = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    let moved = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n";
    let cases = [
        (Vec::new(), ErrorKind::Io),
        (
            b"\x00\x01\x02\x03garbage\r\n\r\n".to_vec(),
            ErrorKind::Malformed,
        ),
        (endless_head, ErrorKind::Malformed),
        (moved.to_vec(), ErrorKind::Malformed),
        (
            answer_head("500 Internal Server Error", SOAP, 0),
            ErrorKind::Malformed,
        ),
        (
            answer_head("503 Service Unavailable", "text/html", 0),
            ErrorKind::Busy,
        ),
        (
            answer_head("403 Forbidden", "text/html", 0),
            ErrorKind::AccessDenied,
        ),
        (
            answer_head("404 Not Found", "text/html", 0),
            ErrorKind::NotFound,
        ),
    ];
    for (bytes, kind) in cases {
        let start = String::from_utf8_lossy(&bytes)
            .chars()
            .take(40)
            .collect::<String>();
        let error = post(&asked(&runtime, saying(bytes)), "<q/>").expect_err("no envelope");
        assert_eq!(error.kind(), kind, "{start:?}: {error}");
    }
}

#[test]
fn sealed_answers_that_are_broken_are_typed_errors() {
    let runtime = TransportRuntime::new().expect("threads");
    let cut: Turn = Box::new(|hand, seal, _| {
        let answer = sealed_answer(seal, b"<a/>");
        hand.write(&answer[..answer.len() - 9]);
        Next::Close
    });
    let endless: Turn = Box::new(|hand, _, _| {
        hand.write(&answer_head("200 OK", SEALED, usize::MAX >> 8));
        let piece = vec![b'x'; 1 << 16];
        while hand.stream.get_mut().write_all(&piece).is_ok() {}
        Next::Close
    });
    let lying: Turn = Box::new(|hand, seal, _| {
        let body = String::from_utf8_lossy(&framed(seal, b"")).into_owned();
        let body = body.replace("Length=0", "Length=99999999999");
        hand.write(&answer_head("200 OK", SEALED, body.len()));
        hand.write(body.as_bytes());
        Next::GoOn
    });
    let cases = [
        ("cut short", ErrorKind::Io, cut),
        ("endless", ErrorKind::Limit, endless),
        ("a length that lies", ErrorKind::Malformed, lying),
    ];
    for (name, kind, turn) in cases {
        let error = post(&asked(&runtime, turn), "<q/>").expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
}

#[test]
fn silence_inside_an_answer_is_a_time_out_long_before_the_whole_is() {
    let runtime = TransportRuntime::new().expect("threads");
    let port = by_hand(Box::new(|hand, seal, _| {
        let answer = sealed_answer(seal, b"<a/>");
        hand.write(&answer[..answer.len() - 9]);
        Next::GoOn
    }));
    let mut options = client_options(port, Line::Plain, administrator());
    options.read_timeout = Duration::from_millis(200);
    let transport = HttpTransport::new(options, runtime).expect("sound");
    let start = Instant::now();
    let error = post_within(
        &transport,
        "<q/>",
        Duration::from_secs(60),
        &CancelToken::new(),
    );
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::TimedOut));
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_login_that_never_ends_or_makes_no_sense_is_given_up() {
    let runtime = TransportRuntime::new().expect("threads");
    let heads = [
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\n",
            ErrorKind::Unauthorized,
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Kerberos\r\n",
            ErrorKind::Unauthorized,
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate AAAA\r\n",
            ErrorKind::Malformed,
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate ???\r\n",
            ErrorKind::Malformed,
        ),
        ("HTTP/1.1 200 OK\r\n", ErrorKind::Malformed),
        ("HTTP/1.1 404 Not Found\r\n", ErrorKind::Malformed),
    ];
    for (head, kind) in heads {
        let listener = listener();
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut hand = Hand::new(stream.expect("a client"));
                while hand.read().is_some() {
                    hand.write(format!("{head}Content-Length: 0\r\n\r\n").as_bytes());
                }
            }
        });
        let error = post(
            &client(&runtime, port, Line::Plain, administrator()),
            "<q/>",
        );
        assert_eq!(error.map_err(|it| it.kind()), Err(kind), "{head}");
    }
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound.max(1)
    }

    /// Cuts, doubles, strikes or changes a piece.
    fn mangle(&mut self, bytes: &mut Vec<u8>) {
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

#[test]
fn mangled_bodies_never_reach_the_service_as_something_else() {
    let stage = Stage::new(server_options());
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut hand = Hand::connect(stage.port());
        let mut seal = hand.log_in();
        let mut body = framed(&mut *seal, b"<the-question/>");
        random.mangle(&mut body);
        let answer = hand.request(&sealed_type(), &body);
        assert!(
            matches!(answer.status(), 200 | 400),
            "seed {seed}: {answer:?}"
        );
    }
    let bodies = stage.service.bodies();
    assert!(
        bodies.iter().all(|it| it == "<the-question/>"),
        "{bodies:?}"
    );
    assert!(bodies.len() < 200, "most were refused");
}

#[test]
fn mangled_answers_are_the_answer_or_a_typed_error() {
    let runtime = TransportRuntime::new().expect("threads");
    let mut random = Random(77);
    let port = by_hand(Box::new(move |hand, seal, _| {
        let mut answer = sealed_answer(seal, b"<the-answer/>");
        random.mangle(&mut answer);
        // The client may be gone already.
        let _ = hand.stream.get_mut().write_all(&answer);
        Next::Close
    }));
    let transport = client(&runtime, port, Line::Plain, administrator());
    let mut good = 0;
    for case in 0..300 {
        match post(&transport, "<q/>") {
            Ok(answer) => {
                assert_eq!(text(&answer), "<the-answer/>", "case {case}");
                good += 1;
            }
            Err(error) => {
                let kinds = [
                    ErrorKind::Io,
                    ErrorKind::Malformed,
                    ErrorKind::Refused,
                    ErrorKind::Limit,
                    ErrorKind::Unauthorized,
                    ErrorKind::AccessDenied,
                    ErrorKind::NotFound,
                    ErrorKind::Busy,
                ];
                assert!(kinds.contains(&error.kind()), "case {case}: {error}");
            }
        }
    }
    assert!(good < 200, "most were refused");
}
