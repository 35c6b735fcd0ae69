//! What the tests of transports stand on: a service that remembers, accounts, certificates, dice.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use wsman::auth::account::AccountTable;
use wsman::auth::negotiate::{KerberosOffer, NegotiateOptions};
use wsman::auth::ntlm::{CbtHardening, NtlmServerOptions};
use wsman::auth::{Entropy, Secret};
use wsman::server::{AccountName, Caller, Reply, SoapService};
use wsman::transport::{
    Answer, Credentials, Endpoint, HttpServer, HttpServerOptions, HttpTransport,
    HttpTransportOptions, Line, Post, TlsIdentity, Transport, TransportRuntime,
};
use wsman::{CancelToken, Result};

pub(crate) const PASSWORD: &str = "Pässwörd 1!";
pub(crate) const SOAP: &str = "application/soap+xml;charset=UTF-8";

/// What a service was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) caller: Caller,
    pub(crate) charset: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Answers `<echo>…</echo>` around what it is asked, with status 500 where the question says so, and remembers.
#[derive(Default)]
pub(crate) struct Echo {
    asked: Mutex<Vec<Asked>>,
}

impl Echo {
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics inside").clone()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        let text = |asked: Asked| String::from_utf8_lossy(&asked.body).into_owned();
        self.asked().into_iter().map(text).collect()
    }
}

impl SoapService for Echo {
    fn serve(&self, caller: &Caller, charset: Option<&str>, request: &[u8]) -> Reply {
        self.asked
            .lock()
            .expect("no test panics inside")
            .push(Asked {
                caller: caller.clone(),
                charset: charset.map(str::to_owned),
                body: request.to_vec(),
            });
        let is_fault = request.windows(5).any(|it| it == b"fault");
        let mut body = b"<echo>".to_vec();
        body.extend_from_slice(request);
        body.extend_from_slice(b"</echo>");
        Reply {
            status: if is_fault { 500 } else { 200 },
            content_type: SOAP.to_owned(),
            body,
        }
    }
}

/// Randomness that is none, and a clock that stands.
pub(crate) struct Dice(AtomicU64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seed)))
    }
}

impl Entropy for Dice {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        for byte in bytes {
            let step = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let mixed = (step ^ (step >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = mixed.to_be_bytes()[0];
        }
        Ok(())
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }
}

pub(crate) fn account(name: &str) -> Caller {
    Caller::Account(AccountName::new(name))
}

pub(crate) fn accounts() -> AccountTable {
    let password = Secret::new(PASSWORD);
    AccountTable::new("HV01")
        .with_local("Administrator", &password)
        .with_domain("CORP", "backup", &password)
}

pub(crate) fn ntlm_options(hardening: CbtHardening) -> NtlmServerOptions {
    NtlmServerOptions {
        computer: "HV01".to_owned(),
        domain: "CORP".to_owned(),
        dns_computer: "hv01.corp.example".to_owned(),
        dns_domain: "corp.example".to_owned(),
        hardening,
    }
}

pub(crate) fn negotiate_options(hardening: CbtHardening) -> NegotiateOptions {
    NegotiateOptions {
        ntlm: ntlm_options(hardening),
        kerberos: KerberosOffer::Absent,
    }
}

pub(crate) fn server_options() -> HttpServerOptions {
    let mut options = HttpServerOptions::new(negotiate_options(CbtHardening::Relaxed));
    options.entropy = Dice::new(11);
    options
}

pub(crate) fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port of the loopback")
}

/// A server, its service, and the runtime that both halves share.
pub(crate) struct Stage {
    pub(crate) server: HttpServer,
    pub(crate) service: Arc<Echo>,
    pub(crate) runtime: TransportRuntime,
}

impl Stage {
    pub(crate) fn new(options: HttpServerOptions) -> Self {
        Self::with_accounts(options, accounts())
    }

    pub(crate) fn with_accounts(options: HttpServerOptions, accounts: AccountTable) -> Self {
        let runtime = TransportRuntime::new().expect("threads");
        let service = Arc::new(Echo::default());
        let server = HttpServer::start(
            listener(),
            options,
            Arc::new(accounts),
            service.clone(),
            runtime.clone(),
        )
        .expect("the server starts");
        Self {
            server,
            service,
            runtime,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.address().port()
    }

    pub(crate) fn client(&self, line: Line, credentials: Credentials) -> HttpTransport {
        client(&self.runtime, self.port(), line, credentials)
    }
}

pub(crate) fn client_options(
    port: u16,
    line: Line,
    credentials: Credentials,
) -> HttpTransportOptions {
    let endpoint = Endpoint {
        host: "localhost".to_owned(),
        port,
        line,
    };
    let mut options = HttpTransportOptions::new(endpoint, credentials);
    options.entropy = Dice::new(7);
    options
}

pub(crate) fn client(
    runtime: &TransportRuntime,
    port: u16,
    line: Line,
    credentials: Credentials,
) -> HttpTransport {
    HttpTransport::new(client_options(port, line, credentials), runtime.clone())
        .expect("the options are sound")
}

pub(crate) fn administrator() -> Credentials {
    Credentials::ntlm("Administrator", &Secret::new(PASSWORD))
}

pub(crate) fn post(transport: &HttpTransport, body: &str) -> Result<Answer> {
    post_within(
        transport,
        body,
        Duration::from_secs(20),
        &CancelToken::new(),
    )
}

pub(crate) fn post_within(
    transport: &HttpTransport,
    body: &str,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Answer> {
    transport.post(&Post {
        body: body.as_bytes(),
        timeout,
        answer_max_bytes: 1 << 20,
        cancel,
    })
}

pub(crate) fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// A certificate in PEM and DER, and its key in PEM.
pub(crate) struct Certified {
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
    pub(crate) key: String,
}

impl Certified {
    /// For the name `localhost`, signed by itself.
    pub(crate) fn localhost() -> Self {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        Self {
            pem: made.cert.pem(),
            der: made.cert.der().to_vec(),
            key: made.signing_key.serialize_pem(),
        }
    }

    pub(crate) fn identity(&self) -> TlsIdentity {
        TlsIdentity::from_pem(self.pem.as_bytes(), self.key.as_bytes()).expect("just made")
    }
}
