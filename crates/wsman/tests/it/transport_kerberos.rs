//! Kerberos against a real KDC: MIT's, with a realm of its own in a temporary folder, on the loopback.
//!
//! The library under test reads `KRB5_CONFIG` and the like from its process, so a test starts itself again with them set:
//!
//! ```text
//!   test ─► folder, realm, KDC, keytab ─► the same test in a child with KRB5_CONFIG, KRB5_KTNAME, KRB5CCNAME ─► its body
//! ```

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use wsman::ErrorKind;
use wsman::auth::Secret;
use wsman::auth::account::AccountTable;
use wsman::auth::kerberos::KerberosScheme;
use wsman::auth::negotiate::{KerberosOffer, NegotiateOptions};
use wsman::auth::ntlm::CbtHardening;
use wsman::server::AccountName;
use wsman::transport::{
    CertificateHash, Credentials, HttpServer, HttpServerOptions, Line, TlsServerOptions,
    TransportRuntime, Trust,
};

use crate::transport_python::{Measuring, lines, python, script};
use crate::transport_stage::{
    Certified, PASSWORD, Stage, account, accounts, administrator, listener, ntlm_options, post,
    server_options, text,
};

/// Set in the child.
const INSIDE: &str = "HIKAE_TEST_REALM";
const REALM: &str = "HIKAE.TEST";

/// A realm, until it is dropped.
struct Realm {
    folder: tempfile::TempDir,
    kdc: Child,
}

fn needs(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.map(|folder| Path::new(folder).join(program));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        let lack = format!("{program} is not installed");
        assert!(std::env::var_os("CI").is_none(), "{lack}");
        println!("SKIP: {lack}");
    }
    found
}

impl Realm {
    fn start() -> Option<Self> {
        let (kdc, admin) = (needs("krb5kdc")?, needs("kadmin.local")?);
        let util = needs("kdb5_util")?;
        needs("kinit")?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = listener().local_addr().expect("bound").port();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        write(
            "krb5.conf",
            format!(
                "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_lookup_realm = false\n\
                 rdns = false\ndns_canonicalize_hostname = false\nudp_preference_limit = 1\n\
                 [realms]\n{REALM} = {{\n kdc = 127.0.0.1:{port}\n}}\n[domain_realm]\nlocalhost = {REALM}\n"
            ),
        );
        write(
            "kdc.conf",
            format!(
                "[kdcdefaults]\nkdc_listen = \"\"\nkdc_tcp_listen = 127.0.0.1:{port}\n[realms]\n{REALM} = {{\n\
                 database_name = {}\nkey_stash_file = {}\nacl_file = {}\n}}\n[logging]\nkdc = FILE:{}\n",
                at("principal"),
                at("stash"),
                at("acl"),
                at("kdc.log")
            ),
        );
        let run = |program: &Path, arguments: &[&str]| {
            let output = Realm::command(program, folder.path())
                .args(arguments)
                .output()
                .expect("run a tool of Kerberos");
            assert!(
                output.status.success(),
                "{program:?} {arguments:?}: {output:?}"
            );
        };
        run(&util, &["create", "-s", "-r", REALM, "-P", "master"]);
        for principal in ["backup", "stranger"] {
            let query = format!("addprinc -pw \"{PASSWORD}\" {principal}");
            run(&admin, &["-r", REALM, "-q", &query]);
        }
        run(
            &admin,
            &["-r", REALM, "-q", "addprinc -randkey HTTP/localhost"],
        );
        let query = format!("ktadd -k {} HTTP/localhost", at("keytab"));
        run(&admin, &["-r", REALM, "-q", &query]);
        let mut kdc = Realm::command(&kdc, folder.path())
            .args(["-n", "-r", REALM])
            .stdout(Stdio::null())
            .spawn()
            .expect("run the KDC");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(kdc.try_wait().expect("a child").is_none(), "the KDC ended");
            std::thread::yield_now();
        }
        Some(Self { folder, kdc })
    }

    fn command(program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KRB5_CONFIG", folder.join("krb5.conf"))
            .env("KRB5_KDC_PROFILE", folder.join("kdc.conf"))
            .env("KRB5_KTNAME", folder.join("keytab"))
            .env(
                "KRB5CCNAME",
                format!("FILE:{}", folder.join("cache").display()),
            )
            .env("KRB5RCACHEDIR", folder);
        command
    }
}

impl Drop for Realm {
    fn drop(&mut self) {
        self.kdc.kill().expect("it lives until now");
        self.kdc.wait().expect("a child of ours");
    }
}

/// Runs a test's body in a process that lives in a realm.
fn in_realm(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    let Some(realm) = Realm::start() else { return };
    let this = std::env::current_exe().expect("this test");
    let output = Realm::command(&this, realm.folder.path())
        .args([
            "--exact",
            "--nocapture",
            &format!("transport_kerberos::{test}"),
        ])
        .env(INSIDE, "1")
        .output()
        .expect("run the test again");
    let out = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let skipped = out.lines().find(|line| line.starts_with("SKIP:"));
    if let Some(line) = skipped {
        println!("{line}");
    }
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{out}\n{errors}"
    );
}

fn kinit(principal: &str) {
    let mut child = Command::new("kinit")
        .arg(principal)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("run kinit");
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "{PASSWORD}").expect("it reads");
    drop(input);
    assert!(child.wait().expect("a child").success());
}

fn table() -> AccountTable {
    accounts().with_principal(format!("backup@{REALM}"), AccountName::new("CORP\\backup"))
}

fn options(hardening: CbtHardening) -> HttpServerOptions {
    let mut options = server_options();
    options.negotiate = Some(NegotiateOptions {
        ntlm: ntlm_options(hardening),
        kerberos: KerberosOffer::Keytab,
    });
    options
}

fn credentials(
    principal: Option<&str>,
    password: Option<&str>,
    scheme: KerberosScheme,
) -> Credentials {
    Credentials::Kerberos {
        principal: principal.map(|name| format!("{name}@{REALM}")),
        password: password.map(Secret::new),
        scheme,
    }
}

const SCHEMES: [KerberosScheme; 2] = [KerberosScheme::Negotiate, KerberosScheme::Kerberos];

#[test]
fn a_password_is_enough_and_bodies_are_sealed() {
    in_realm("a_password_is_enough_and_bodies_are_sealed", || {
        let stage = Stage::with_accounts(options(CbtHardening::Relaxed), table());
        for scheme in SCHEMES {
            let credentials = credentials(Some("backup"), Some(PASSWORD), scheme);
            let client = stage.client(Line::Plain, credentials);
            for size in [0, 1, 15, 16, 17, 50_000, 3] {
                let sent = format!("<q>{}</q>", "ü".repeat(size));
                let answer = post(&client, &sent).expect("an answer");
                assert_eq!(text(&answer), format!("<echo>{sent}</echo>"), "{scheme:?}");
            }
        }
        let asked = stage.service.asked();
        assert_eq!(asked.len(), 14);
        assert!(asked.iter().all(|it| it.caller == account("CORP\\backup")));
    });
}

#[test]
fn a_ticket_of_kinit_is_enough() {
    in_realm("a_ticket_of_kinit_is_enough", || {
        kinit("backup");
        let stage = Stage::with_accounts(options(CbtHardening::Relaxed), table());
        for scheme in SCHEMES {
            let client = stage.client(Line::Plain, credentials(None, None, scheme));
            post(&client, "<q/>").unwrap_or_else(|error| panic!("{scheme:?}: {error:?}"));
        }
    });
}

#[test]
fn kerberos_logins_over_https_are_bound_to_the_channel() {
    in_realm(
        "kerberos_logins_over_https_are_bound_to_the_channel",
        || {
            let certified = Certified::localhost();
            let mut options = options(CbtHardening::Strict);
            options.tls = Some(TlsServerOptions {
                identity: certified.identity(),
                client_authorities: None,
            });
            let stage = Stage::with_accounts(options, table());
            for scheme in SCHEMES {
                let line = Line::Tls(Trust::Pinned(CertificateHash::of(&certified.der)));
                let credentials = credentials(Some("backup"), Some(PASSWORD), scheme);
                let answer = post(&stage.client(line, credentials), "<q/>");
                let answer = answer.unwrap_or_else(|error| panic!("{scheme:?}: {error:?}"));
                assert_eq!(text(&answer), "<echo><q/></echo>");
            }
        },
    );
}

#[test]
fn who_is_not_known_to_kdc_or_host_is_unauthorized() {
    in_realm("who_is_not_known_to_kdc_or_host_is_unauthorized", || {
        let stage = Stage::with_accounts(options(CbtHardening::Relaxed), table());
        let strangers = [
            ("backup", Some("wrong")),
            ("nobody", Some(PASSWORD)),
            ("stranger", Some(PASSWORD)),
            ("backup", None),
        ];
        for (name, password) in strangers {
            for scheme in SCHEMES {
                let credentials = credentials(Some(name), password, scheme);
                let error = post(&stage.client(Line::Plain, credentials), "<q/>");
                let kind = error.map_err(|it| it.kind());
                assert_eq!(kind, Err(ErrorKind::Unauthorized), "{name} {scheme:?}");
            }
        }
        assert_eq!(stage.service.asked(), []);
    });
}

#[test]
fn ntlm_goes_on_beside_kerberos() {
    in_realm("ntlm_goes_on_beside_kerberos", || {
        let stage = Stage::with_accounts(options(CbtHardening::Relaxed), table());
        post(&stage.client(Line::Plain, administrator()), "<q/>").expect("an answer");
    });
}

#[test]
fn pywinrm_talks_sealed_kerberos_to_our_server() {
    in_realm("pywinrm_talks_sealed_kerberos_to_our_server", || {
        let Some(python) = python("winrm, kerberos") else {
            return;
        };
        kinit("backup");
        let server = HttpServer::start(
            listener(),
            options(CbtHardening::Relaxed),
            Arc::new(table()),
            Arc::new(Measuring),
            TransportRuntime::new().expect("threads"),
        )
        .expect("the server starts");
        let url = format!("http://localhost:{}/wsman", server.address().port());
        let user = format!("backup@{REALM}");
        let output = Command::new(python)
            .arg("-B")
            .arg(script("pywinrm_client.py"))
            .args([
                url.as_str(),
                "kerberos",
                &user,
                "",
                "always",
                "1",
                "20000",
                "5",
            ])
            .output()
            .expect("run a client");
        let answers = [1, 20_000, 5].map(|size| format!("CORP\\backup {size}"));
        assert_eq!(lines(&output), answers);
    });
}
