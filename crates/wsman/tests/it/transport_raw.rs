//! What our answering half says to clients that send odd framing, half requests, and lies.

use std::io::Write;
use std::net::Shutdown;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wsman::auth::Initiator;
use wsman::server::Caller;
use wsman::transport::Line;

use crate::transport_hand::{
    Hand, Random, SEALED, framed, framed_with, initiator, open, sealed_type,
};
use crate::transport_stage::{SOAP, Stage, administrator, post, server_options};

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

#[test]
fn who_dawdles_or_says_nothing_is_left() {
    let mut options = server_options();
    options.idle_timeout = Duration::from_millis(300);
    options.request_timeout = Duration::from_millis(300);
    let stage = Stage::new(options);
    // Nothing at all; half a head; logged in and then nothing; half a body.
    let mut silent = Hand::connect(stage.port());
    let mut head = Hand::connect(stage.port());
    head.write(b"POST /wsman HTTP/1.1\r\nHos");
    let mut idle = Hand::connect(stage.port());
    idle.log_in();
    let mut body = Hand::connect(stage.port());
    body.write(b"POST /wsman HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf");
    let start = Instant::now();
    for hand in [&mut silent, &mut head, &mut idle, &mut body] {
        if let Some(answer) = hand.read() {
            assert_eq!(answer.status(), 408, "{answer:?}");
            assert!(hand.read().is_none());
        }
    }
    assert!(start.elapsed() < Duration::from_secs(15), "each was closed");
}

#[test]
fn connections_beyond_the_limit_are_closed_and_places_come_back() {
    let mut options = server_options();
    options.connections_max = NonZeroUsize::MIN;
    let stage = Stage::new(options);
    let mut first = Hand::connect(stage.port());
    first.log_in();
    assert!(Hand::connect(stage.port()).read().is_none(), "no place");
    let mut seal = first.log_in();
    let answer = first.request(&sealed_type(), &framed(&mut *seal, b"<q/>"));
    assert_eq!(answer.status(), 200, "the first one goes on");
    drop(first);
    let start = Instant::now();
    let client = stage.client(Line::Plain, administrator());
    while let Err(error) = post(&client, "<q/>") {
        assert!(start.elapsed() < Duration::from_secs(15), "{error}");
        std::thread::yield_now();
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
