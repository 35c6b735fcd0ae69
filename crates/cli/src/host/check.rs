//! `hikae host check`: a host tried step by step, and for each step that fails what to do.
//!
//! ```text
//!   password file ─► line ─► login ─► Hyper-V (rights, role) ─► Windows ─► cluster ─► machines ─► files
//!                      └ what fails leaves the rest untried ┘    └──────── each tried for itself ────────┘
//! ```

mod certificate;
mod files;

use std::path::Path;

use serde::Serialize;
use wsman::ErrorKind;
use wsman::cim::{ClassName, Namespace};
use wsman::client::{CimClient, WsmanClient};

use super::connect::{Hosts, SERVICE, VIRTUALIZATION};
use super::registry::{HostEntry, LoginEntry};
use crate::exit::Exit;
use crate::output::{Output, Table};
use crate::serving::chain;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    /// It works, and something is to be known.
    Warning,
    Failed,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
        }
    }
}

/// One step.
#[derive(Debug, Serialize)]
pub struct Step {
    pub step: &'static str,
    pub outcome: Outcome,
    /// What was found, or what went wrong.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One host.
#[derive(Debug, Serialize)]
pub struct HostReport {
    pub name: String,
    pub address: String,
    pub ok: bool,
    pub steps: Vec<Step>,
}

#[derive(Serialize)]
struct Report {
    hosts: Vec<HostReport>,
}

/// Runs the verb.
pub fn run(entries: Vec<HostEntry>, output: &Output) -> anyhow::Result<Exit> {
    let hosts = Hosts::of(entries.clone())?;
    let mut report = Report { hosts: Vec::new() };
    for entry in &entries {
        crate::progress::cancellation().check()?;
        report.hosts.push(check(&hosts, entry));
    }
    let is_good = report.hosts.iter().all(|host| host.ok);
    output.report(&report, text)?;
    Ok(if is_good { Exit::Done } else { Exit::Found })
}

/// Tries one host.
pub fn check(hosts: &Hosts, entry: &HostEntry) -> HostReport {
    let mut steps = Vec::new();
    let certificate = entry.certificate.as_ref();
    steps.extend(secrecy("password file", entry.password_file.as_deref()));
    steps.extend(secrecy(
        "key file",
        certificate.map(|it| it.key_file.as_path()),
    ));
    match hosts.client(entry) {
        Ok(client) => try_all(hosts, entry, &client, &mut steps),
        Err(error) => steps.push(Step {
            step: "settings",
            outcome: Outcome::Failed,
            found: format!("{error:#}"),
            next: Some(format!(
                "Write it down again: hikae host add {} … --replace",
                entry.name
            )),
        }),
    }
    HostReport {
        name: entry.name.clone(),
        address: entry.address.clone(),
        ok: steps.iter().all(|step| step.outcome != Outcome::Failed),
        steps,
    }
}

/// Whether others may read a secret.
#[cfg(unix)]
fn secrecy(step: &'static str, file: Option<&Path>) -> Option<Step> {
    use std::os::unix::fs::PermissionsExt;

    let file = file?;
    let mode = std::fs::metadata(file).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| Step {
        step,
        outcome: Outcome::Warning,
        found: format!(
            "others than its owner may read {} (mode {:03o})",
            file.display(),
            mode & 0o777
        ),
        next: Some(format!("chmod 600 {}", file.display())),
    })
}

/// Other systems have rights of another kind, which are not looked at.
#[cfg(not(unix))]
fn secrecy(_step: &'static str, _file: Option<&Path>) -> Option<Step> {
    None
}

fn ok(step: &'static str, found: impl Into<String>) -> Step {
    Step {
        step,
        outcome: Outcome::Ok,
        found: found.into(),
        next: None,
    }
}

fn failed(step: &'static str, error: &wsman::Error, next: impl Into<String>) -> Step {
    Step {
        step,
        outcome: Outcome::Failed,
        found: chain(error),
        next: Some(next.into()),
    }
}

fn try_all(hosts: &Hosts, entry: &HostEntry, client: &WsmanClient, steps: &mut Vec<Step>) {
    match client.identify() {
        Ok(identity) => {
            steps.push(ok("line", entry.address.clone()));
            let who = format!("{}, {}", identity.product_vendor, identity.product_version);
            steps.push(ok("login", format!("{}: {who}", entry.account_text())));
        }
        Err(error) => {
            steps.extend(no_entry(hosts, entry, &error));
            return;
        }
    }
    let hyperv = hyperv(entry, client);
    let works = hyperv.outcome == Outcome::Ok;
    steps.push(hyperv);
    steps.push(windows(client));
    steps.push(cluster(client));
    if works {
        steps.push(machines(client));
        steps.extend(files::steps(hosts, entry, client));
    }
}

/// Why nobody was let in.
fn no_entry(hosts: &Hosts, entry: &HostEntry, error: &wsman::Error) -> Vec<Step> {
    let is_https = entry.address.starts_with("https:");
    if let Some(step) = certificate::step(hosts, entry, error) {
        return vec![step];
    }
    match error.kind() {
        ErrorKind::Unauthorized | ErrorKind::AccessDenied => {
            vec![
                ok("line", entry.address.clone()),
                failed("login", error, refused_login(entry)),
            ]
        }
        ErrorKind::Refused => {
            let next = if is_https {
                "The host proves itself or encrypts not as it should: look at its HTTPS listener and its certificate"
            } else {
                "The host proves itself or encrypts not as it should: reach it over https"
            };
            vec![failed("line", error, next)]
        }
        ErrorKind::Malformed | ErrorKind::NotFound => vec![failed(
            "line",
            error,
            "Something else than WS-Management seems to listen there: look at host and port",
        )],
        _ if is_https => vec![failed(
            "line",
            error,
            "Look at name and port (5986), the certificate (--ca, --pin), the firewall; on the host: \
             `winrm enumerate winrm/config/listener` must show an HTTPS listener",
        )],
        _ => vec![failed(
            "line",
            error,
            "Look at name and port (5985) and the firewall; on the host: `winrm quickconfig`",
        )],
    }
}

/// What to look at when an account is refused.
fn refused_login(entry: &HostEntry) -> String {
    match entry.login {
        LoginEntry::Certificate => {
            "On the host, map the certificate to a local account (New-Item WSMan:\\localhost\\ClientCertificate …); \
             `winrm get winrm/config/service/auth` must say Certificate = true; and the certificate must not have expired"
                .to_owned()
        }
        LoginEntry::Kerberos => format!(
            "Look at the ticket (klist) or the password of {}, the clock, and the name: the host must be asked by the full name that the domain knows",
            entry.account_text()
        ),
        LoginEntry::Negotiate | LoginEntry::Basic => {
            let word = if entry.login == LoginEntry::Basic { "Basic" } else { "Negotiate" };
            format!(
                "Look at the name {} (DOMAIN\\user, or user for an account of the host) and the first line of the password's file ({}); \
                 on the host, `winrm get winrm/config/service/auth` must say {word} = true",
                entry.account_text(),
                entry.proof_text()
            )
        }
    }
}

fn hyperv(entry: &HostEntry, client: &WsmanClient) -> Step {
    let namespace = Namespace::new(VIRTUALIZATION);
    match client.enumerate(&namespace, &ClassName::new(SERVICE)) {
        Ok(rows) => match rows.first() {
            Some(row) => {
                let name = row.text_ref("SystemName").unwrap_or("no name").to_owned();
                ok("hyper-v", format!("{name} answers in {VIRTUALIZATION}"))
            }
            None => Step {
                step: "hyper-v",
                outcome: Outcome::Failed,
                found: format!("no {SERVICE} is shown to {}", entry.account_text()),
                next: Some(rights(entry)),
            },
        },
        Err(error) if error.kind() == ErrorKind::AccessDenied => {
            failed("hyper-v", &error, rights(entry))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => failed(
            "hyper-v",
            &error,
            "The host has no role Hyper-V, or its service (vmms) does not run",
        ),
        Err(error) => failed("hyper-v", &error, "Look at the host's service vmms"),
    }
}

fn rights(entry: &HostEntry) -> String {
    format!(
        "On the host, make {} a member of Administrators, or of both Hyper-V Administrators and Remote Management Users",
        entry.account_text()
    )
}

fn windows(client: &WsmanClient) -> Step {
    let namespace = Namespace::new("root/cimv2");
    match client.enumerate(&namespace, &ClassName::new("Win32_OperatingSystem")) {
        Ok(rows) => {
            let row = rows.first();
            let text = |name| row.and_then(|it| it.text_ref(name)).unwrap_or("unknown");
            let build = text("BuildNumber");
            let found = format!("{}, build {build}", text("Caption"));
            let is_old = build.parse().is_ok_and(|build: u32| build < 14_393);
            Step {
                step: "windows",
                outcome: if is_old { Outcome::Warning } else { Outcome::Ok },
                found,
                next: is_old.then(|| {
                    "Before Windows Server 2016 machines are backed up by saved state alone".to_owned()
                }),
            }
        }
        Err(error) => Step {
            step: "windows",
            outcome: Outcome::Warning,
            found: chain(&error),
            next: Some(
                "The generation of the host stays unknown, and rules that depend on it too: let the account read root/cimv2"
                    .to_owned(),
            ),
        },
    }
}

fn cluster(client: &WsmanClient) -> Step {
    let namespace = Namespace::new("root/MSCluster");
    match client.enumerate(&namespace, &ClassName::new("MSCluster_Cluster")) {
        Ok(rows) => match rows.first().and_then(|row| row.text_ref("Name")) {
            Some(name) => ok("cluster", format!("a node of {name}")),
            None => ok("cluster", "a host of its own"),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => ok("cluster", "a host of its own"),
        Err(error) => Step {
            step: "cluster",
            outcome: Outcome::Warning,
            found: chain(&error),
            next: Some(
                "If the host is in a cluster, let the account read it (Grant-ClusterAccess -ReadOnly); roles stay unknown until then"
                    .to_owned(),
            ),
        },
    }
}

fn machines(client: &WsmanClient) -> Step {
    let query = "SELECT Name FROM Msvm_ComputerSystem WHERE ProcessID IS NOT NULL";
    let namespace = Namespace::new(VIRTUALIZATION);
    match client.query(&namespace, query) {
        Ok(rows) => {
            let is_machine = |text: &str| text.parse::<host::ids::VmId>().is_ok();
            let count = rows
                .iter()
                .filter_map(|row| row.text_ref("Name"))
                .filter(|name| is_machine(name))
                .count();
            ok("machines", count.to_string())
        }
        Err(error) => failed("machines", &error, "Look at the host's service vmms"),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for host in &report.hosts {
        text.push_str(&format!("{} ({})\n", host.name, host.address));
        let mut table = Table::new(&["step", "", "found"], &[]);
        for step in &host.steps {
            table.row(vec![
                step.step.to_owned(),
                step.outcome.name().to_owned(),
                step.found.clone(),
            ]);
        }
        text.push_str(&table.to_string());
        let mut said = Vec::new();
        for step in &host.steps {
            // What is to be done for several steps is said once.
            if let Some(next) = &step.next
                && !said.contains(&next)
            {
                text.push_str(&format!("next, {}: {next}\n", step.step));
                said.push(next);
            }
        }
        text.push('\n');
    }
    if report.hosts.iter().all(|host| host.ok) {
        text.push_str("All is well. Next: hikae vm list\n");
    }
    text
}
