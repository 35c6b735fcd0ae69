//! Hosts over HTTPS: certificates that are believed or not, and why not; logins by certificate; what is refused unasked.
//!
//! The servers are `wsman`'s, in this process, each with the lab's provider behind it and a certificate of the test's choosing.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::provider::{HostProvider, Language, Pace, ProviderOptions, Role, Roles, SharedEstate};
use lab::scenario::Scenario;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::Value;
use wsman::auth::Secret;
use wsman::auth::account::AccountTable;
use wsman::auth::negotiate::{KerberosOffer, NegotiateOptions};
use wsman::auth::ntlm::{CbtHardening, NtlmServerOptions};
use wsman::server::{AccountName, ServiceOptions, ServiceSources, WsmanService};
use wsman::transport::{
    BasicOffer, CertificateHash, HttpServer, HttpServerOptions, TlsIdentity, TlsServerOptions,
    TransportRuntime,
};

use super::site::{Outcome, Site, text};

const PASSWORD: &str = "correct horse";

/// A certificate and its key, PEM.
struct Certified {
    pem: String,
    key: String,
    hash: CertificateHash,
}

impl Certified {
    fn of(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self {
            pem: certificate.pem(),
            key: key.serialize_pem(),
            hash: CertificateHash::of(certificate.der()),
        }
    }

    fn by_itself(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        Self::of(&made.cert, &made.signing_key)
    }

    fn identity(&self) -> TlsIdentity {
        TlsIdentity::from_pem(self.pem.as_bytes(), self.key.as_bytes()).expect("just made")
    }
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
enum Validity {
    Now,
    Over,
    NotYet,
}

/// An authority that signs what it is told to.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "Authority of the test";
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn sign(&self, name: &str, validity: Validity) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(4000, 1, 1)),
            Validity::Over => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
            Validity::NotYet => (date_time_ymd(3999, 1, 1), date_time_ymd(4000, 1, 1)),
        };
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Certified::of(&certificate, &key)
    }
}

/// The lab's lone host, behind HTTPS servers of the test's making.
struct Stage {
    site: Site,
    estate: Arc<SharedEstate>,
    runtime: TransportRuntime,
    begun: Instant,
}

impl Stage {
    fn new() -> Self {
        let site = Site::new();
        let scenario = Scenario::quickstart().expect("a scenario");
        let mut estate = scenario.build(&site.path("estate")).expect("an estate");
        estate
            .advance(Duration::from_secs(30))
            .expect("machines start");
        fs::write(site.path("password"), format!("{PASSWORD}\n")).expect("a file");
        Self {
            estate: SharedEstate::new(estate, Pace::Manual),
            runtime: TransportRuntime::new().expect("threads"),
            begun: Instant::now(),
            site,
        }
    }

    fn serve(&self, shown: &Certified, client: Option<(&Authority, &Certified)>) -> HttpServer {
        let name = self.estate.read(|it| {
            let alone = it.hosts().find(|host| host.cluster.is_none());
            alone.expect("a host of its own").name.clone()
        });
        let account = AccountName::new(format!("{name}\\admin"));
        let roles = Roles::new().with(&account, Role::Administrator);
        let language = Language::English;
        let options = ProviderOptions { language, roles };
        let provider = HostProvider::new(Arc::clone(&self.estate), &name, options);
        let begun = self.begun;
        let count = AtomicU64::new(1);
        let sources = ServiceSources {
            clock: Arc::new(move || begun.elapsed()),
            ids: Arc::new(move || {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let mut id = [7; 16];
                id[..8].copy_from_slice(&number.to_le_bytes());
                id
            }),
        };
        let provider = Arc::new(provider.expect("a provider"));
        let service = WsmanService::new(provider, ServiceOptions::default(), sources);
        let mut accounts =
            AccountTable::new(name.as_str()).with_local("admin", &Secret::new(PASSWORD));
        let mut options = HttpServerOptions::new(NegotiateOptions {
            ntlm: NtlmServerOptions {
                computer: name.to_string(),
                domain: name.to_string(),
                dns_computer: "localhost".to_owned(),
                dns_domain: String::new(),
                hardening: CbtHardening::Strict,
            },
            kerberos: KerberosOffer::Absent,
        });
        options.basic = BasicOffer::Offered;
        options.tls = Some(TlsServerOptions {
            identity: shown.identity(),
            client_authorities: client.map(|(authority, _)| authority.pem.clone().into_bytes()),
        });
        if let Some((_, known)) = client {
            let identity = known.identity();
            accounts = accounts.with_certificate(identity.certificate(), account);
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        HttpServer::start(
            listener,
            options,
            Arc::new(accounts),
            Arc::new(service),
            self.runtime.clone(),
        )
        .expect("a server")
    }

    /// The words that say where the host's files lie here.
    fn files(&self) -> Vec<String> {
        let folders = self.estate.read(|it| {
            let alone = it.hosts().find(|host| host.cluster.is_none());
            let name = alone.expect("a host of its own").name.clone();
            it.folders_of(&name).expect("folders")
        });
        let word = |windows: &str, local: &PathBuf| format!("{windows}={}", text(local));
        folders
            .iter()
            .flat_map(|it| ["--files-at".to_owned(), word(&it.windows, &it.local)])
            .collect()
    }

    fn add_as(&self, server: &HttpServer, account: &[&str], more: &[&str]) -> Outcome {
        let address = format!("https://localhost:{}", server.address().port());
        let mut words = vec!["host", "add", "hv", "--replace", "--address", &address];
        words.extend(account);
        words.extend(more);
        let files = self.files();
        words.extend(files.iter().map(String::as_str));
        self.site.run(words)
    }

    fn add(&self, server: &HttpServer, more: &[&str]) -> Outcome {
        self.add_as(
            server,
            &["--user", "admin", "--password-file", "password"],
            more,
        )
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.site.path(name), content).expect("a file");
    }
}

/// The only step that failed: its name, what was found, what is next.
#[track_caller]
fn failed(report: &Value) -> (String, String, String) {
    let steps = report["hosts"][0]["steps"].as_array().expect("steps");
    let failed: Vec<&Value> = steps
        .iter()
        .filter(|it| it["outcome"] == "failed")
        .collect();
    let [step] = failed.as_slice() else {
        panic!("{report:#}");
    };
    let word = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
    (word("step"), word("found"), word("next"))
}

#[test]
fn a_certificate_that_is_not_believed_is_told_with_its_reason_and_its_fingerprint() {
    let stage = Stage::new();
    let authority = Authority::new();
    stage.write("ca.pem", &authority.pem);
    let shown = Certified::by_itself("localhost");
    let server = stage.serve(&shown, None);
    let pin = shown.hash.to_string();

    let (step, found, next) = failed(&stage.add(&server, &[]).expect(3).json());
    assert_eq!(step, "line");
    assert!(found.contains("nobody who is believed vouches"), "{found}");
    assert!(next.contains(&format!("--pin {pin}")), "{next}");
    let (_, found, _) = failed(&stage.add(&server, &["--ca", "ca.pem"]).expect(3).json());
    assert!(found.contains("nobody who is believed vouches"), "{found}");
    let other = "00".repeat(32);
    let (step, found, next) = failed(&stage.add(&server, &["--pin", &other]).expect(3).json());
    assert_eq!(step, "line");
    assert!(found.contains("another certificate than the pinned one") && found.contains(&pin));
    assert!(next.contains(&format!("--pin {pin}")), "{next}");
    // The fingerprint that was told is the one that works; nothing of the login was given to anybody before.
    let report = stage.add(&server, &["--pin", &pin]).expect(0).json();
    assert_eq!(report["hosts"][0]["ok"], true, "{report}");
    stage
        .add(&server, &["--pin", &pin, "--login", "basic"])
        .expect(0);
    let listed = stage.site.run(["vm", "list"]).expect(0).json();
    assert!(
        listed["machines"]
            .as_array()
            .is_some_and(|it| !it.is_empty()),
        "{listed}"
    );

    for (name, validity, reason) in [
        ("localhost", Validity::Over, "has expired"),
        ("localhost", Validity::NotYet, "is not valid yet"),
        ("hv01.example.net", Validity::Now, "is for another name"),
    ] {
        let shown = authority.sign(name, validity);
        let server = stage.serve(&shown, None);
        let (step, found, _) = failed(&stage.add(&server, &["--ca", "ca.pem"]).expect(3).json());
        assert_eq!(step, "line");
        assert!(found.contains(reason), "{found}");
        assert!(found.contains(&shown.hash.to_string()), "{found}");
    }
    let good = stage.serve(&authority.sign("localhost", Validity::Now), None);
    stage.add(&good, &["--ca", "ca.pem"]).expect(0);
    let (step, _, _) = failed(&stage.add(&good, &[]).expect(3).json());
    assert_eq!(step, "line");
}

#[test]
fn a_client_certificate_logs_in_and_another_does_not() {
    let stage = Stage::new();
    let clients = Authority::new();
    let known = clients.sign("backup", Validity::Now);
    let unknown = clients.sign("somebody", Validity::Now);
    let shown = Certified::by_itself("localhost");
    let server = stage.serve(&shown, Some((&clients, &known)));
    let pin = shown.hash.to_string();
    for (name, certified) in [("known", &known), ("unknown", &unknown)] {
        stage.write(&format!("{name}.pem"), &certified.pem);
        stage.write(&format!("{name}.key"), &certified.key);
    }
    let as_known = [
        "--certificate",
        "known.pem",
        "--key",
        "known.key",
        "--pin",
        &pin,
    ];
    let report = stage.add_as(&server, &as_known, &[]).expect(0).json();
    let warned = report["hosts"][0]["steps"][0].clone();
    assert_eq!(warned["step"], "key file", "others may read it: {report}");
    let listed = stage.site.run(["vm", "list"]).expect(0).json();
    assert!(
        listed["machines"]
            .as_array()
            .is_some_and(|it| !it.is_empty()),
        "{listed}"
    );
    let kept = fs::read_to_string(stage.site.path("home/config/hikae/hosts.json")).expect("kept");
    assert!(
        kept.contains("known.key") && !kept.contains("PRIVATE"),
        "{kept}"
    );

    let as_unknown = [
        "--certificate",
        "unknown.pem",
        "--key",
        "unknown.key",
        "--pin",
        &pin,
    ];
    let (step, _, next) = failed(&stage.add_as(&server, &as_unknown, &[]).expect(3).json());
    assert_eq!(step, "login");
    assert!(next.contains("Certificate = true"), "{next}");
    let swapped = [
        "--certificate",
        "known.pem",
        "--key",
        "unknown.key",
        "--pin",
        &pin,
    ];
    stage.add_as(&server, &swapped, &[]).expect(1);
    let no_key = [
        "--certificate",
        "known.pem",
        "--key",
        "known.pem",
        "--pin",
        &pin,
    ];
    stage.add_as(&server, &no_key, &[]).expect(1);
}

#[test]
fn a_domain_account_is_written_as_windows_writes_it_and_files_are_tried() {
    let stage = Stage::new();
    let shown = Certified::by_itself("localhost");
    let server = stage.serve(&shown, None);
    let pin = shown.hash.to_string();
    let host = stage.estate.read(|it| {
        let alone = it.hosts().find(|host| host.cluster.is_none());
        alone.expect("a host of its own").name.to_string()
    });
    let user = format!("{host}\\admin");
    let account = [
        "--user",
        &user,
        "--password-file",
        "password",
        "--pin",
        &pin,
    ];
    stage.add_as(&server, &account, &[]).expect(0);

    // Where nothing is mapped, and where something else lies, each volume says so for itself.
    let address = format!("https://localhost:{}", server.address().port());
    fs::create_dir(stage.site.path("empty")).expect("a folder");
    let mut words = vec!["host", "add", "hv", "--replace", "--address", &address];
    words.extend(account);
    words.extend(["--files-at", "C:=empty"]);
    let report = stage.site.run(words).expect(3).json();
    let steps = report["hosts"][0]["steps"].as_array().expect("steps");
    let files: Vec<&Value> = steps.iter().filter(|it| it["step"] == "files").collect();
    assert!(files.len() >= 2, "{report}");
    let unmapped = files.iter().find(|it| {
        let found = it["found"].as_str().unwrap_or_default();
        found.contains("no folder here stands for")
    });
    let next = unmapped.expect("a volume that is not mapped")["next"].as_str();
    assert!(
        next.is_some_and(|it| it.contains("--files-at WINDOWS=LOCAL")),
        "{report}"
    );
}

#[test]
fn logins_and_files_that_cannot_be_are_refused_before_anything_is_written() {
    let site = Site::new();
    fs::write(site.path("password"), "secret\n").expect("a file");
    let account = ["--user", "u", "--password-file", "password"];
    let add = |address: &str, more: &[&str]| {
        let mut words = vec!["host", "add", "hv", "--address", address];
        words.extend(more);
        site.run(words)
    };
    let here = ["--files-at", "D:=."];
    add("http://hv", &here).expect(2);
    add("http://hv", &["--user", "u"]).expect(2);
    add("http://hv", &["--password-file", "password"]).expect(2);
    add("https://hv", &["--certificate", "password"]).expect(2);
    add(
        "http://hv",
        &["--certificate", "password", "--key", "password"],
    )
    .expect(2);
    add("https://hv", &["--login", "certificate"]).expect(2);
    let both = [
        "--certificate",
        "password",
        "--key",
        "password",
        "--login",
        "basic",
    ];
    add("https://hv", &both).expect(2);
    let with = |more: &[&'static str]| {
        let mut words = account.to_vec();
        words.extend(more);
        add("http://127.0.0.1:1", &words)
    };
    with(&["--files-at", "D:"]).expect(2);
    with(&["--files-at", "D:=nowhere"]).expect(1);
    with(&["--files-at", "D:=password"]).expect(2);
    with(&["--files-at", "/var=."]).expect(2);
    with(&["--files-at", "D:=.", "--files-smb"]).expect(2);
    with(&["--files-smb-server", "a b"]).expect(2);
    with(&["--files-smb-port", "70000"]).expect(2);
    if !cfg!(feature = "kerberos") {
        let problem = with(&["--login", "kerberos"]).expect(1).json();
        let said = problem.to_string();
        assert!(said.contains("--features kerberos"), "{said}");
    }
    let listed = site.run(["host", "list"]).expect(0).json();
    assert_eq!(
        listed["hosts"].as_array().map(Vec::len),
        Some(0),
        "{listed}"
    );
}
