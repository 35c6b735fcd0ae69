//! Our asking half against our answering half: every way to log in, what is refused, pools, limits, time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use wsman::auth::Secret;
use wsman::auth::negotiate::NegotiateOptions;
use wsman::auth::ntlm::CbtHardening;
use wsman::server::{Caller, Reply, SoapService};
use wsman::transport::{
    BasicOffer, CertificateHash, Credentials, HttpServer, HttpServerOptions, HttpTransport, Line,
    OpenBodies, Post, StopReport, TlsServerOptions, Transport, TransportRuntime, Trust, WireFault,
    WireFaults,
};
use wsman::{CancelToken, ErrorKind};

use crate::transport_stage::{
    Certified, PASSWORD, Stage, account, accounts, administrator, client, client_options, listener,
    negotiate_options, post, post_within, server_options, text,
};

fn over_tls(certified: &Certified, hardening: CbtHardening) -> HttpServerOptions {
    let mut options = server_options();
    options.negotiate = Some(negotiate_options(hardening));
    options.tls = Some(TlsServerOptions {
        identity: certified.identity(),
        client_authorities: None,
    });
    options
}

fn pinned(certified: &Certified) -> Line {
    Line::Tls(Trust::Pinned(CertificateHash::of(&certified.der)))
}

fn basic(password: &str) -> Credentials {
    Credentials::Basic {
        user: "Administrator".to_owned(),
        password: Secret::new(password),
    }
}

#[test]
fn a_sealed_conversation_over_http_goes_on_for_many_requests() {
    let stage = Stage::new(server_options());
    let client = stage.client(Line::Plain, administrator());
    for round in 0..20 {
        let sent = format!("<q n='{round}'>{}</q>", "ü".repeat(round * 997));
        let answer = post(&client, &sent).expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.charset.as_deref(), Some("utf-8"));
        assert_eq!(text(&answer), format!("<echo>{sent}</echo>"));
    }
    let asked = stage.service.asked();
    assert_eq!(asked.len(), 20);
    assert!(
        asked
            .iter()
            .all(|it| it.caller == account("HV01\\Administrator"))
    );
}

#[test]
fn a_fault_comes_back_with_its_status() {
    let stage = Stage::new(server_options());
    let client = stage.client(Line::Plain, administrator());
    let answer = post(&client, "<fault/>").expect("an answer");
    assert_eq!(
        (answer.status, text(&answer).as_str()),
        (500, "<echo><fault/></echo>")
    );
}

#[test]
fn names_are_found_however_they_are_written() {
    let stage = Stage::new(server_options());
    let names = [
        ("administrator", "HV01\\Administrator"),
        ("hv01\\ADMINISTRATOR", "HV01\\Administrator"),
        (".\\Administrator", "HV01\\Administrator"),
        ("corp\\Backup", "CORP\\backup"),
        ("Backup@corp.example", "CORP\\backup"),
    ];
    for (written, found) in names {
        let credentials = Credentials::ntlm(written, &Secret::new(PASSWORD));
        let client = stage.client(Line::Plain, credentials);
        post(&client, "<q/>").unwrap_or_else(|error| panic!("{written}: {error}"));
        let asked = stage.service.asked();
        assert_eq!(
            asked.last().map(|it| it.caller.clone()),
            Some(account(found))
        );
    }
}

#[test]
fn a_wrong_password_and_an_unknown_name_are_unauthorized() {
    let stage = Stage::new(server_options());
    for (name, password) in [("Administrator", "wrong"), ("Nobody", PASSWORD), ("", "")] {
        let credentials = Credentials::ntlm(name, &Secret::new(password));
        let client = stage.client(Line::Plain, credentials);
        let error = post(&client, "<q/>").expect_err("a login that fails");
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{name}: {error}");
    }
    assert_eq!(stage.service.asked(), []);
}

#[test]
fn what_would_go_in_clear_is_refused_before_anything_is_connected() {
    let runtime = TransportRuntime::new().expect("threads");
    let identity = Certified::localhost().identity();
    for credentials in [basic(PASSWORD), Credentials::Certificate(identity)] {
        let options = client_options(9, Line::Plain, credentials);
        let error = HttpTransport::new(options, runtime.clone()).err();
        assert_eq!(error.map(|it| it.kind()), Some(ErrorKind::Refused));
    }
}

#[test]
fn logins_over_https_are_bound_to_the_channel() {
    let certified = Certified::localhost();
    for hardening in [
        CbtHardening::None,
        CbtHardening::Relaxed,
        CbtHardening::Strict,
    ] {
        let stage = Stage::new(over_tls(&certified, hardening));
        let client = stage.client(pinned(&certified), administrator());
        let answer = post(&client, "<q/>").expect("an answer");
        assert_eq!(text(&answer), "<echo><q/></echo>", "{hardening:?}");
    }
}

#[test]
fn a_login_that_is_relayed_to_another_channel_is_refused() {
    // The server believes that it shows another certificate than the one the client saw: so it is when somebody
    // between them ends TLS.
    let (shown, own) = (Certified::localhost(), Certified::localhost());
    for hardening in [CbtHardening::Relaxed, CbtHardening::Strict] {
        let stage = Stage::new(over_tls(&own, hardening));
        let relay = Relay::start(&shown, &own, stage.port());
        let client = client(&stage.runtime, relay.port, pinned(&shown), administrator());
        let error = post(&client, "<q/>").expect_err("a relayed login");
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert_eq!(stage.service.asked(), []);
    }
}

/// Ends TLS with its own certificate and begins it again to the server.
struct Relay {
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    fn start(shown: &Certified, own: &Certified, to: u16) -> Self {
        let accepting = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(shown.der.clone())],
                PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).expect("a key"),
            )
            .expect("an identity");
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from(own.der.clone()))
            .expect("a root");
        let connecting = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads");
        let listener = listener();
        let port = listener.local_addr().expect("bound").port();
        listener.set_nonblocking(true).expect("a socket");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let accepting = tokio_rustls::TlsAcceptor::from(Arc::new(accepting));
            let connecting = tokio_rustls::TlsConnector::from(Arc::new(connecting));
            while let Ok((stream, _)) = listener.accept().await {
                let mut near = accepting.accept(stream).await.expect("the client's TLS");
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", to)).await;
                let name = ServerName::try_from("localhost").expect("a name");
                let far = connecting.connect(name, stream.expect("the server")).await;
                let mut far = far.expect("the server's TLS");
                let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        Self {
            port,
            _runtime: runtime,
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[test]
fn certificates_are_believed_for_a_reason_only() {
    let (certified, other) = (Certified::localhost(), Certified::localhost());
    let stage = Stage::new(over_tls(&certified, CbtHardening::Relaxed));
    let authority = Line::Tls(Trust::Authorities(certified.pem.clone().into_bytes()));
    post(&stage.client(authority, administrator()), "<q/>").expect("vouched for");
    let strangers = [
        Line::Tls(Trust::Authorities(other.pem.clone().into_bytes())),
        pinned(&other),
    ];
    for line in strangers {
        let error = post(&stage.client(line, administrator()), "<q/>").expect_err("a stranger");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
}

#[test]
fn basic_is_taken_where_it_is_offered_and_for_local_accounts() {
    let certified = Certified::localhost();
    let mut options = over_tls(&certified, CbtHardening::Relaxed);
    let without = Stage::new(options.clone());
    let error = post(&without.client(pinned(&certified), basic(PASSWORD)), "<q/>");
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Unauthorized));
    options.basic = BasicOffer::Offered;
    let stage = Stage::new(options);
    let answer = post(&stage.client(pinned(&certified), basic(PASSWORD)), "<q/>");
    assert_eq!(answer.map(|it| it.status).ok(), Some(200));
    let error = post(&stage.client(pinned(&certified), basic("wrong")), "<q/>");
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Unauthorized));
    let domain = Credentials::Basic {
        user: "CORP\\backup".to_owned(),
        password: Secret::new(PASSWORD),
    };
    let error = post(&stage.client(pinned(&certified), domain), "<q/>");
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Unauthorized));
    assert_eq!(stage.service.asked().len(), 1);
}

#[test]
fn a_client_certificate_stands_for_a_local_account() {
    let (certified, known, unknown) = (
        Certified::localhost(),
        Certified::localhost(),
        Certified::localhost(),
    );
    let mut options = over_tls(&certified, CbtHardening::Relaxed);
    let authorities = format!("{}{}", known.pem, unknown.pem);
    options.tls = Some(TlsServerOptions {
        identity: certified.identity(),
        client_authorities: Some(authorities.into_bytes()),
    });
    let Caller::Account(name) = account("HV01\\Administrator") else {
        unreachable!("an account is one");
    };
    let table = accounts().with_certificate(known.der.clone(), name);
    let stage = Stage::with_accounts(options, table);
    let credentials = Credentials::Certificate(known.identity());
    post(&stage.client(pinned(&certified), credentials), "<q/>").expect("a known certificate");
    let asked = stage.service.asked();
    assert_eq!(
        asked.last().map(|it| it.caller.clone()),
        Some(account("HV01\\Administrator"))
    );
    let credentials = Credentials::Certificate(unknown.identity());
    let error = post(&stage.client(pinned(&certified), credentials), "<q/>");
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Unauthorized));
}

struct Faulty {
    fault: WireFault,
    left: AtomicUsize,
    after: AtomicUsize,
}

impl Faulty {
    fn new(fault: WireFault, after: usize, count: usize) -> Arc<Self> {
        Arc::new(Self {
            fault,
            left: AtomicUsize::new(count),
            after: AtomicUsize::new(after),
        })
    }
}

impl WireFaults for Faulty {
    fn next(&self) -> Option<WireFault> {
        let down = |it: &AtomicUsize| {
            it.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok()
        };
        if down(&self.after) {
            return None;
        }
        down(&self.left).then_some(self.fault)
    }
}

#[test]
fn a_login_that_expired_is_made_again_and_the_request_arrives_once() {
    let mut options = server_options();
    options.faults = Some(Faulty::new(WireFault::Unauthorized, 2, 1));
    let stage = Stage::new(options);
    let client = stage.client(Line::Plain, administrator());
    for body in ["<a/>", "<b/>", "<c/>", "<d/>"] {
        post(&client, body).expect("an answer");
    }
    assert_eq!(stage.service.bodies(), ["<a/>", "<b/>", "<c/>", "<d/>"]);
}

#[test]
fn a_server_that_always_says_401_is_not_asked_for_ever() {
    let mut options = server_options();
    options.faults = Some(Faulty::new(WireFault::Unauthorized, 1, usize::MAX));
    let stage = Stage::new(options);
    let client = stage.client(Line::Plain, administrator());
    post(&client, "<a/>").expect("an answer");
    let error = post(&client, "<b/>").expect_err("refused twice");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(stage.service.bodies(), ["<a/>"]);
}

#[test]
fn a_request_whose_answer_was_lost_is_not_sent_again() {
    for fault in [WireFault::CloseBefore, WireFault::CloseAfter] {
        let mut options = server_options();
        options.faults = Some(Faulty::new(fault, 1, 1));
        let stage = Stage::new(options);
        let client = stage.client(Line::Plain, administrator());
        post(&client, "<a/>").expect("an answer");
        let error = post(&client, "<b/>").expect_err("the answer was lost");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        post(&client, "<c/>").expect("the next one gets a new connection");
        let expected: &[&str] = match fault {
            WireFault::CloseAfter => &["<a/>", "<b/>", "<c/>"],
            _ => &["<a/>", "<c/>"],
        };
        assert_eq!(stage.service.bodies(), expected, "{fault:?}");
    }
}

/// Answers when told, and counts how many wait at once.
#[derive(Default)]
struct Slow {
    waiting: AtomicUsize,
    most: AtomicUsize,
    go: CancelToken,
}

impl SoapService for Slow {
    fn serve(&self, _caller: &Caller, _charset: Option<&str>, _request: &[u8]) -> Reply {
        let now = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.go.wait(Duration::from_secs(30));
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Reply {
            status: 200,
            content_type: "application/soap+xml".to_owned(),
            body: b"<late/>".to_vec(),
        }
    }
}

fn slow_stage() -> (Arc<Slow>, HttpServer, HttpTransport) {
    let runtime = TransportRuntime::new().expect("threads");
    let slow = Arc::new(Slow::default());
    let server = HttpServer::start(
        listener(),
        server_options(),
        Arc::new(accounts()),
        slow.clone(),
        runtime.clone(),
    )
    .expect("the server starts");
    let client = client(
        &runtime,
        server.address().port(),
        Line::Plain,
        administrator(),
    );
    (slow, server, client)
}

#[test]
fn no_more_connections_are_used_at_once_than_were_allowed() {
    let (slow, _server, client) = slow_stage();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| post(&client, "<q/>").expect("an answer"));
        }
        while slow.waiting.load(Ordering::SeqCst) < 5 {
            std::thread::yield_now();
        }
        slow.go.cancel();
    });
    assert_eq!(slow.most.load(Ordering::SeqCst), 5);
}

#[test]
fn cancelling_ends_a_request_that_waits() {
    let (slow, _server, client) = slow_stage();
    let cancel = CancelToken::new();
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| post_within(&client, "<q/>", Duration::from_secs(30), &cancel));
        while slow.waiting.load(Ordering::SeqCst) < 1 {
            std::thread::yield_now();
        }
        let start = Instant::now();
        cancel.cancel();
        let error = waiting.join().expect("no panic").expect_err("cancelled");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(10));
        slow.go.cancel();
    });
    let error = post_within(&client, "<q/>", Duration::from_secs(30), &cancel);
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Cancelled));
}

#[test]
fn an_answer_that_does_not_come_is_a_time_out() {
    let (slow, _server, client) = slow_stage();
    let patience = Duration::from_millis(300);
    let error = post_within(&client, "<q/>", patience, &CancelToken::new());
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::TimedOut));
    slow.go.cancel();
    post(&client, "<q/>").expect("afterwards it goes on");
}

#[test]
fn stopping_lets_a_request_end_and_says_when_one_does_not() {
    let (slow, server, client) = slow_stage();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| post(&client, "<q/>"));
        while slow.waiting.load(Ordering::SeqCst) < 1 {
            std::thread::yield_now();
        }
        let stopping = scope.spawn(|| server.stop(Duration::from_secs(30)));
        slow.go.cancel();
        assert_eq!(stopping.join().expect("no panic"), StopReport::Drained);
        assert_eq!(
            waiting.join().expect("no panic").map(|it| it.status).ok(),
            Some(200)
        );
    });
    let error = post(&client, "<q/>").expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Io);

    let (slow, server, client) = slow_stage();
    std::thread::scope(|scope| {
        scope.spawn(|| post(&client, "<q/>"));
        while slow.waiting.load(Ordering::SeqCst) < 1 {
            std::thread::yield_now();
        }
        assert_eq!(server.stop(Duration::from_millis(100)), StopReport::CutOff);
        slow.go.cancel();
    });
}

#[test]
fn an_answer_longer_than_allowed_is_refused() {
    let stage = Stage::new(server_options());
    let client = stage.client(Line::Plain, administrator());
    let body = "x".repeat(100_000);
    let post = |answer_max_bytes| {
        client.post(&Post {
            body: body.as_bytes(),
            timeout: Duration::from_secs(20),
            answer_max_bytes,
            cancel: &CancelToken::new(),
        })
    };
    assert_eq!(
        post(body.len() + 13).map(|it| it.body.len()).ok(),
        Some(body.len() + 13)
    );
    for limit in [body.len() + 12, 50_000, 0] {
        let error = post(limit).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
}

#[test]
fn a_request_longer_than_the_server_takes_is_said_to_be_so() {
    let mut options = server_options();
    options.request_max_bytes = 10_000;
    let stage = Stage::new(options);
    let client = stage.client(Line::Plain, administrator());
    let error = post(&client, &"x".repeat(20_000)).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    post(&client, "<q/>").expect("the next one is short enough");
}

#[test]
fn a_server_without_negotiate_says_what_it_offers() {
    let mut options = server_options();
    options.negotiate = None::<NegotiateOptions>;
    options.basic = BasicOffer::Offered;
    options.open_bodies = OpenBodies::Allowed;
    let stage = Stage::new(options);
    let error = post(&stage.client(Line::Plain, administrator()), "<q/>").expect_err("not offered");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("[Basic]"), "{error}");
}

#[test]
fn nobody_listening_is_an_error_of_the_connection() {
    let runtime = TransportRuntime::new().expect("threads");
    let port = listener().local_addr().expect("bound").port();
    let error = post(
        &client(&runtime, port, Line::Plain, administrator()),
        "<q/>",
    );
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Io));
}
