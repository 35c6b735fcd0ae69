//! `hikae host …`: which Hyper-V hosts there are, and how they are reached.
//!
//! ```text
//!   registry: hosts.json (names, addresses, accounts, places of passwords) ──► connect: clients, the driver ──► check, show; `vm …`
//! ```

mod check;
pub mod connect;
mod files;
pub mod registry;
mod show;

use anyhow::Context;
use serde::Serialize;

use self::registry::{CertificateEntry, HostEntry, LoginEntry, Registry, TrustEntry};
use crate::args::{HostAddArgs, HostVerb, LoginArg};
use crate::exit::{Exit, misused_flag, not_possible};
use crate::output::{Output, Table};

/// Runs one verb.
pub fn run(verb: &HostVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        HostVerb::Add(arguments) => add(arguments, output),
        HostVerb::List { file } => list(&Registry::load(file)?, output),
        HostVerb::Show { name, file } => show::run(&Registry::load(file)?, name, output),
        HostVerb::Check { names, file } => {
            let registry = Registry::load(file)?;
            check::run(registry.select(names)?, output)
        }
        HostVerb::Remove { name, file } => {
            Registry::change(file, |registry| registry.remove(name))?;
            #[derive(Serialize)]
            struct Removed<'a> {
                removed: &'a str,
            }
            output.report(&Removed { removed: name }, |it| {
                format!("{} is struck out. Nothing on it changed.\n", it.removed)
            })?;
            Ok(Exit::Done)
        }
    }
}

fn add(arguments: &HostAddArgs, output: &Output) -> anyhow::Result<Exit> {
    let entry = entry(arguments)?;
    // Refused now rather than when it is used.
    let hosts = connect::Hosts::of(vec![entry.clone()])?;
    hosts.client(&entry)?;
    hosts.files(&entry)?;
    Registry::change(&arguments.file, |registry| {
        registry.add(entry.clone(), arguments.replace)
    })?;
    check::run(vec![entry], output)
}

fn entry(arguments: &HostAddArgs) -> anyhow::Result<HostEntry> {
    let name = &arguments.name;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
        return Err(not_possible(format!(
            "`{name}` is no name for a host: letters, digits, hyphens, underscores and dots, at most 64"
        )));
    }
    let address = arguments.address.parse::<connect::Address>()?;
    let trust = match (&arguments.ca, &arguments.pin) {
        (Some(file), _) => TrustEntry::Authorities {
            file: absolute(file)?,
        },
        (None, Some(hash)) => {
            wsman::transport::CertificateHash::parse(hash)
                .map_err(|error| misused_flag(format!("--pin: {error}")))?;
            TrustEntry::Pinned {
                sha256: hash.clone(),
            }
        }
        (None, None) => TrustEntry::System,
    };
    let login = login(arguments);
    let is_plain_line = address.scheme == connect::Scheme::Http;
    if is_plain_line && trust != TrustEntry::System {
        return Err(misused_flag(format!(
            "--ca and --pin are for https, and the address is {address}"
        )));
    }
    refuse_login(arguments, login, &address)?;
    let certificate = match (&arguments.certificate, &arguments.key) {
        (Some(file), Some(key)) => Some(CertificateEntry {
            file: absolute(file)?,
            key_file: absolute(key)?,
        }),
        _ => None,
    };
    let password_file = arguments.password_file.as_deref();
    let entry = HostEntry {
        name: name.clone(),
        address: address.to_string(),
        user: arguments.user.clone(),
        password_file: password_file.map(absolute).transpose()?,
        login,
        certificate,
        trust,
        files: files::entry(&arguments.files)?,
    };
    files::refuse(&entry)?;
    Ok(entry)
}

fn login(arguments: &HostAddArgs) -> LoginEntry {
    match arguments.login {
        Some(LoginArg::Negotiate) => LoginEntry::Negotiate,
        Some(LoginArg::Kerberos) => LoginEntry::Kerberos,
        Some(LoginArg::Basic) => LoginEntry::Basic,
        Some(LoginArg::Certificate) => LoginEntry::Certificate,
        None if arguments.certificate.is_some() => LoginEntry::Certificate,
        None => LoginEntry::Negotiate,
    }
}

/// Refuses logins that cannot be, or that would give something away.
fn refuse_login(
    arguments: &HostAddArgs,
    login: LoginEntry,
    address: &connect::Address,
) -> anyhow::Result<()> {
    let is_plain_line = address.scheme == connect::Scheme::Http;
    let has_certificate = arguments.certificate.is_some();
    let has_password = arguments.password_file.is_some();
    match login {
        LoginEntry::Basic if is_plain_line => Err(misused_flag(format!(
            "--login basic would send the password in clear to {address}: use https, or --login negotiate"
        ))),
        LoginEntry::Certificate if is_plain_line => Err(misused_flag(format!(
            "client certificates are for https, and the address is {address}"
        ))),
        LoginEntry::Certificate if !has_certificate => Err(misused_flag(
            "--login certificate needs --certificate FILE and --key FILE",
        )),
        LoginEntry::Negotiate | LoginEntry::Basic | LoginEntry::Kerberos if has_certificate => Err(
            misused_flag("--certificate is a login of its own: leave --login away"),
        ),
        LoginEntry::Negotiate | LoginEntry::Basic if !has_password => Err(misused_flag(
            "--user USER and --password-file FILE say who logs in",
        )),
        LoginEntry::Kerberos if !connect::KNOWS_KERBEROS => Err(not_possible(
            "this build knows no Kerberos: build it with `--features kerberos` (needs MIT krb5), or use --login negotiate",
        )),
        LoginEntry::Kerberos if address.host.parse::<std::net::IpAddr>().is_ok() => {
            Err(not_possible(format!(
                "Kerberos needs the host's full name, and the address is {address}"
            )))
        }
        _ => Ok(()),
    }
}

/// The file as it is found from anywhere.
fn absolute(file: &std::path::Path) -> anyhow::Result<std::path::PathBuf> {
    file.canonicalize()
        .with_context(|| format!("looking for {}", file.display()))
}

#[derive(Serialize)]
struct ListReport<'a> {
    file: &'a std::path::Path,
    hosts: &'a [HostEntry],
}

fn list(registry: &Registry, output: &Output) -> anyhow::Result<Exit> {
    let report = ListReport {
        file: registry.path(),
        hosts: registry.hosts(),
    };
    output.report(&report, |report| {
        if report.hosts.is_empty() {
            return format!("No host is written down yet. Next: {}\n", connect::ADD);
        }
        let mut table = Table::new(&["host", "address", "account", "believed by", "files"], &[]);
        for host in report.hosts {
            table.row(vec![
                host.name.clone(),
                host.address.clone(),
                host.account_text(),
                host.trust_text(),
                host.files_text(),
            ]);
        }
        table.to_string()
    })?;
    Ok(Exit::Done)
}
