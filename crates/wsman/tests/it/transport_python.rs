//! Clients and a server that are not ours: pypsrp and pywinrm against our listener, our client against pyspnego's.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use wsman::ErrorKind;
use wsman::auth::Secret;
use wsman::auth::ntlm::CbtHardening;
use wsman::server::{Caller, Reply, SoapService};
use wsman::transport::{
    BasicOffer, Credentials, HttpServer, HttpServerOptions, Line, OpenBodies, TlsServerOptions,
    TransportRuntime,
};

use crate::transport_stage::{
    Certified, PASSWORD, SOAP, accounts, client, listener, negotiate_options, post, server_options,
    text,
};

/// A Python that has these modules: `HIKAE_PYTHON`, or the one that `cargo xtask test` sets up.
pub(crate) fn python(modules: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("HIKAE_PYTHON").map_or_else(
        || workspace.join("target/python/bin/python3"),
        PathBuf::from,
    );
    let works = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if works {
        return Some(python);
    }
    let lack = format!("{} lacks one of {modules}", python.display());
    assert!(std::env::var_os("CI").is_none(), "{lack}");
    println!("SKIP: {lack}");
    None
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

/// Answers an envelope that RelatesTo the question and says how long the selector in it was.
pub(crate) struct Measuring;

impl SoapService for Measuring {
    fn serve(&self, caller: &Caller, charset: Option<&str>, request: &[u8]) -> Reply {
        assert_eq!(charset, Some("utf-8"));
        let request = String::from_utf8(request.to_vec()).expect("UTF-8");
        let between = |start: &str, end: &str| {
            let (_, rest) = request.split_once(start)?;
            let (_, rest) = rest.split_once('>')?;
            rest.split_once(end).map(|(found, _)| found.to_owned())
        };
        let id = between("MessageID", "</").expect("a MessageID");
        let length = between(":Selector ", "</")
            .or_else(|| between("<Selector", "</"))
            .map_or(0, |it| it.chars().count());
        let who = match caller {
            Caller::Account(name) => name.as_str(),
            Caller::Anonymous => "nobody",
        };
        let padding = "€".repeat(length);
        let body = format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
             xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\"><s:Header>\
             <a:RelatesTo>{id}</a:RelatesTo></s:Header><s:Body><length>{who} {length}</length>\
             <padding>{padding}</padding></s:Body></s:Envelope>"
        );
        Reply {
            status: 200,
            content_type: SOAP.to_owned(),
            body: body.into_bytes(),
        }
    }
}

fn start(options: HttpServerOptions) -> HttpServer {
    let runtime = TransportRuntime::new().expect("threads");
    let accounts = Arc::new(accounts());
    HttpServer::start(listener(), options, accounts, Arc::new(Measuring), runtime)
        .expect("the server starts")
}

fn over_tls(hardening: CbtHardening) -> HttpServerOptions {
    let mut options = server_options();
    options.negotiate = Some(negotiate_options(hardening));
    options.basic = BasicOffer::Offered;
    options.tls = Some(TlsServerOptions {
        identity: Certified::localhost().identity(),
        client_authorities: None,
    });
    options
}

pub(crate) fn lines(output: &Output) -> Vec<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// What a client printed that was started with these arguments and three sizes.
fn run(python: &Path, name: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(python)
        .arg("-B")
        .arg(script(name))
        .args(arguments)
        .args(["1", "20000", "5"])
        .output()
        .expect("run a client");
    lines(&output)
}

fn answers(name: &str) -> Vec<String> {
    [1, 20_000, 5].map(|size| format!("{name} {size}")).to_vec()
}

#[test]
fn pypsrp_talks_sealed_ntlm_to_our_server() {
    let Some(python) = python("pypsrp") else {
        return;
    };
    let server = start(server_options());
    let port = server.address().port().to_string();
    for (user, name) in [
        ("HV01\\Administrator", "HV01\\Administrator"),
        ("CORP\\backup", "CORP\\backup"),
    ] {
        let asked = [&port, user, PASSWORD, "negotiate", "always", "http"];
        assert_eq!(run(&python, "pypsrp_client.py", &asked), answers(name));
        let asked = [&port, user, PASSWORD, "ntlm", "always", "http"];
        assert_eq!(run(&python, "pypsrp_client.py", &asked), answers(name));
    }
    let asked = [
        &port,
        "Administrator",
        "wrong",
        "negotiate",
        "always",
        "http",
    ];
    assert_eq!(
        run(&python, "pypsrp_client.py", &asked),
        ["error: AuthenticationError"]
    );
}

#[test]
fn pypsrp_binds_its_login_to_the_channel() {
    let Some(python) = python("pypsrp") else {
        return;
    };
    let server = start(over_tls(CbtHardening::Strict));
    let port = server.address().port().to_string();
    for encryption in ["never", "always"] {
        let asked = [
            &port,
            "Administrator",
            PASSWORD,
            "negotiate",
            encryption,
            "https",
        ];
        assert_eq!(
            run(&python, "pypsrp_client.py", &asked),
            answers("HV01\\Administrator")
        );
    }
}

#[test]
fn pypsrp_uses_basic_where_it_is_offered() {
    let Some(python) = python("pypsrp") else {
        return;
    };
    let server = start(over_tls(CbtHardening::Relaxed));
    let port = server.address().port().to_string();
    let asked = [&port, "Administrator", PASSWORD, "basic", "never", "https"];
    assert_eq!(
        run(&python, "pypsrp_client.py", &asked),
        answers("HV01\\Administrator")
    );
    let mut options = server_options();
    options.basic = BasicOffer::Offered;
    options.open_bodies = OpenBodies::Allowed;
    let server = start(options);
    let port = server.address().port().to_string();
    let asked = [&port, "Administrator", PASSWORD, "basic", "never", "http"];
    assert_eq!(
        run(&python, "pypsrp_client.py", &asked),
        answers("HV01\\Administrator")
    );
    let server = start(server_options());
    let port = server.address().port().to_string();
    let asked = [&port, "Administrator", PASSWORD, "basic", "never", "http"];
    assert_eq!(
        run(&python, "pypsrp_client.py", &asked),
        ["error: AuthenticationError"]
    );
}

#[test]
fn pywinrm_talks_to_our_server() {
    let Some(python) = python("winrm") else {
        return;
    };
    let plain = start(server_options());
    let secure = start(over_tls(CbtHardening::Strict));
    let http = format!("http://localhost:{}/wsman", plain.address().port());
    let https = format!("https://localhost:{}/wsman", secure.address().port());
    for (url, encryption) in [(&http, "always"), (&https, "never"), (&https, "auto")] {
        let asked = [
            url.as_str(),
            "ntlm",
            "HV01\\Administrator",
            PASSWORD,
            encryption,
        ];
        assert_eq!(
            run(&python, "pywinrm_client.py", &asked),
            answers("HV01\\Administrator"),
            "{url} {encryption}"
        );
    }
    let asked = [https.as_str(), "basic", "Administrator", PASSWORD, "never"];
    assert_eq!(
        run(&python, "pywinrm_client.py", &asked),
        answers("HV01\\Administrator")
    );
}

#[test]
fn an_open_body_over_http_is_refused_with_500() {
    let Some(python) = python("winrm") else {
        return;
    };
    let server = start(server_options());
    let url = format!("http://localhost:{}/wsman", server.address().port());
    let asked = [url.as_str(), "ntlm", "Administrator", PASSWORD, "never"];
    assert_eq!(
        run(&python, "pywinrm_client.py", &asked),
        ["error: WinRMTransportError"]
    );
}

/// pyspnego's listener, ended with the test.
struct Listener {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Listener {
    fn start(python: &Path, mode: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let users = folder.path().join("users");
        std::fs::write(&users, format!("HV01:Administrator:{PASSWORD}\n")).expect("a file");
        let mut child = Command::new(python)
            .arg("-B")
            .arg(script("spnego_server.py"))
            .arg(mode)
            .env("NTLM_USER_FILE", users)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run the listener");
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("its port");
        Self {
            port: line.trim().parse().expect("a port"),
            child,
            _folder: folder,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.child.kill().expect("it lives until now");
        self.child.wait().expect("a child of ours");
    }
}

fn local() -> Credentials {
    Credentials::ntlm("HV01\\Administrator", &Secret::new(PASSWORD))
}

#[test]
fn our_client_talks_to_a_server_of_pyspnego_however_it_frames() {
    let Some(python) = python("spnego") else {
        return;
    };
    let runtime = TransportRuntime::new().expect("threads");
    for mode in ["exact", "plain-lines", "spaced", "chunked", "forgetful"] {
        let listener = Listener::start(&python, mode);
        let client = client(&runtime, listener.port, Line::Plain, local());
        for size in [0, 1, 3, 50_000, 2, 2, 2] {
            let sent = format!("<q>{}</q>", "ü".repeat(size));
            let answer = post(&client, &sent).unwrap_or_else(|error| panic!("{mode}: {error}"));
            assert_eq!(text(&answer), format!("<echo>{sent}</echo>"), "{mode}");
        }
    }
}

#[test]
fn our_client_believes_no_answer_that_is_not_sealed_right() {
    let Some(python) = python("spnego") else {
        return;
    };
    let runtime = TransportRuntime::new().expect("threads");
    for mode in ["forged", "open"] {
        let listener = Listener::start(&python, mode);
        let client = client(&runtime, listener.port, Line::Plain, local());
        let error = post(&client, "<q/>").expect_err("not sealed right");
        assert_eq!(error.kind(), ErrorKind::Refused, "{mode}: {error}");
    }
}

#[test]
fn a_wrong_password_is_unauthorized_to_pyspnego_too() {
    let Some(python) = python("spnego") else {
        return;
    };
    let runtime = TransportRuntime::new().expect("threads");
    let listener = Listener::start(&python, "exact");
    let wrong = Credentials::ntlm("HV01\\Administrator", &Secret::new("wrong"));
    let error = post(&client(&runtime, listener.port, Line::Plain, wrong), "<q/>");
    assert_eq!(error.map_err(|it| it.kind()), Err(ErrorKind::Unauthorized));
}

#[test]
fn ntlm_as_second_choice_needs_a_signed_list_of_choices() {
    let Some(python) = python("spnego") else {
        return;
    };
    let server = start(server_options());
    let port = server.address().port().to_string();
    for (mode, start) in [("signed", "200 <s:Envelope"), ("unsigned", "401")] {
        let output = Command::new(&python)
            .arg("-B")
            .arg(script("spnego_fallback.py"))
            .args([&port, "HV01\\Administrator", PASSWORD, mode])
            .output()
            .expect("run a client");
        let printed = lines(&output).join("\n");
        assert!(printed.starts_with(start), "{mode}: {printed}");
    }
}
