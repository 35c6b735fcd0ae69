//! What our asking half says to servers that answer oddly, wrongly, or not at all.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wsman::auth::negotiate::NegotiateAcceptor;
use wsman::auth::ntlm::CbtHardening;
use wsman::auth::{Accepted, Acceptor, Seal};
use wsman::server::Caller;
use wsman::transport::{HttpTransport, Line, TransportRuntime};
use wsman::{CancelToken, ErrorKind};

use crate::transport_hand::{Hand, Random, SEALED, framed, open};
use crate::transport_stage::{
    Dice, SOAP, account, accounts, administrator, client, client_options, listener,
    negotiate_options, post, post_within, text,
};

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
