//! Clients and the driver for hosts that are written down.
//!
//! ```text
//!   HostEntry ─► WsmanClient (NTLM sealed over HTTP, or HTTPS) ─► NodeConnection, named as the host names itself ─► HyperV
//!                         other members of a cluster: as they are written down, else by their own name with the same account
//! ```
//!
//! **Invariants.** A password is read when it is needed, and overwritten afterwards. A host that cannot be asked hides no other.
//!
//! **What it does not do.** It opens no files of hosts: [`super::files`] makes the ways to them, and the driver goes them.

use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use host::access::NodeFiles;
use host::access::smb::SmbRuntime;
use host::facts::NodeProblem;
use host::hyperv::{Connector, HyperV, HyperVOptions, NodeConnection};
use host::ids::NodeName;
use host::{CancelToken, SystemClock};
use wsman::auth::{Entropy, Secret, SystemEntropy};
use wsman::cim::{ClassName, Namespace};
use wsman::client::{CimClient, ClientOptions, ClientSources, RetryOptions, WsmanClient};
use wsman::transport::{
    CertificateHash, CertificateProblem, Credentials, Endpoint, HttpTransport,
    HttpTransportOptions, Line, TlsIdentity, TransportRuntime, Trust,
};
use zeroize::Zeroizing;

use super::files;
use super::registry::{HostEntry, LoginEntry, Registry, TrustEntry};
use crate::args::VmPlaceArgs;
use crate::exit::not_possible;
use crate::progress::cancellation;

/// The command that writes a host down.
pub const ADD: &str = "hikae host add NAME --address URL --user USER --password-file FILE";

/// Classes of Hyper-V.
pub const VIRTUALIZATION: &str = "root/virtualization/v2";
/// The service that every Hyper-V host has one of.
pub const SERVICE: &str = "Msvm_VirtualSystemManagementService";
/// A password is not longer.
const PASSWORD_MAX_BYTES: u64 = 4096;
/// Certificates and keys are not longer.
const PEM_MAX_BYTES: u64 = 1 << 20;
/// Whether this build can log in with Kerberos.
pub const KNOWS_KERBEROS: bool = cfg!(feature = "kerberos");

/// HTTP or HTTPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// Where a host listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// Name or address, without brackets.
    pub host: String,
    pub port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong = || {
            not_possible(format!(
                "`{text}` is no address: write http://HOST:5985 or https://HOST:5986"
            ))
        };
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Http, text),
            Some((word, rest)) if word.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((word, rest)) if word.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some(_) => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let rest = rest.strip_suffix("/wsman").unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']').ok_or_else(wrong)?;
                let port = behind.strip_prefix(':');
                if port.is_none() && !behind.is_empty() {
                    return Err(wrong());
                }
                (host, port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || host.len() > 255 || !host.chars().all(is_plain) {
            return Err(wrong());
        }
        let port = match (port, scheme) {
            (Some(port), _) => port.parse().map_err(|_| wrong())?,
            (None, Scheme::Http) => 5985,
            (None, Scheme::Https) => 5986,
        };
        Ok(Self {
            scheme,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// 16 bytes that did not come before and that nobody guesses.
pub type IdSource = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;

/// Ids from a secret of this process and a counter.
pub fn ids() -> anyhow::Result<IdSource> {
    let mut key = Zeroizing::new([0; 32]);
    SystemEntropy.fill(key.as_mut_slice())?;
    let count = AtomicU64::new(0);
    Ok(Arc::new(move || {
        let number = count.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let mut id = [0; 16];
        let hash = blake3::keyed_hash(&key, &number);
        for (to, from) in id.iter_mut().zip(hash.as_bytes()) {
            *to = *from;
        }
        id
    }))
}

/// Hosts, and what is needed to talk to them.
#[derive(Clone)]
pub struct Hosts {
    known: Arc<Vec<HostEntry>>,
    runtime: TransportRuntime,
    smb: SmbRuntime,
    ids: IdSource,
    stop: wsman::CancelToken,
    cancel: CancelToken,
}

impl Hosts {
    /// For these hosts. From now on Ctrl-C stops what is asked of them.
    pub fn of(known: Vec<HostEntry>) -> anyhow::Result<Self> {
        let hosts = Self {
            known: Arc::new(known),
            runtime: TransportRuntime::new()?,
            smb: SmbRuntime::new()?,
            ids: ids()?,
            stop: wsman::CancelToken::new(),
            cancel: CancelToken::new(),
        };
        let (stop, cancel, switch) = (hosts.stop.clone(), hosts.cancel.clone(), cancellation());
        // Ends with the process; it holds nothing but the three switches.
        std::thread::spawn(move || {
            while !switch.is_cancelled() {
                std::thread::sleep(Duration::from_millis(50));
            }
            cancel.cancel();
            stop.cancel();
        });
        Ok(hosts)
    }

    /// A client for a host. Nothing is connected yet.
    pub fn client(&self, entry: &HostEntry) -> anyhow::Result<WsmanClient> {
        self.client_at(entry, &entry.address.parse()?)
    }

    /// Which certificate a host shows, whoever it is: asked with nothing given away, since the connection ends there.
    pub fn shown_certificate(&self, entry: &HostEntry) -> Option<CertificateHash> {
        let mut entry = entry.clone();
        entry.trust = TrustEntry::Pinned {
            sha256: "0".repeat(64),
        };
        let error = self.client(&entry).ok()?.identify().err()?;
        match CertificateProblem::of(&error) {
            Some(CertificateProblem::NotPinned { shown }) => Some(shown),
            _ => None,
        }
    }

    /// The way to a host's files. Nothing is connected yet.
    pub fn files(&self, entry: &HostEntry) -> anyhow::Result<Arc<dyn NodeFiles>> {
        files::open(entry, &entry.address.parse()?, &self.smb)
    }

    fn client_at(&self, entry: &HostEntry, address: &Address) -> anyhow::Result<WsmanClient> {
        let line = match address.scheme {
            Scheme::Http => Line::Plain,
            Scheme::Https => Line::Tls(trust(&entry.trust)?),
        };
        let credentials = credentials(entry)?;
        let endpoint = Endpoint {
            host: address.host.clone(),
            port: address.port,
            line,
        };
        let options = HttpTransportOptions::new(endpoint, credentials);
        let transport = HttpTransport::new(options, self.runtime.clone())
            .with_context(|| format!("host {}", entry.name))?;
        let options = ClientOptions {
            retry: RetryOptions {
                attempts: 1,
                ..RetryOptions::default()
            },
            ..ClientOptions::default()
        };
        let ids = Arc::clone(&self.ids);
        let sources = ClientSources::system(move || ids());
        let client = WsmanClient::new(Arc::new(transport), options, sources);
        Ok(client.with_cancel(self.stop.clone()))
    }

    /// A host as a node of the driver, under the name that it gives itself.
    fn node(&self, entry: &HostEntry) -> anyhow::Result<NodeConnection> {
        let client = self.client(entry)?;
        let name = match own_name(&client) {
            Ok(Some(name)) => name,
            // An account that is refused is not tried again and again, so that nobody locks it.
            Err(error) if is_denied(&error) => return Err(anyhow::Error::new(error)),
            // A host that says nothing is told of by the driver, under the name that it has here.
            Ok(None) | Err(_) => NodeName::new(&entry.name)?,
        };
        Ok(connection(name, client, self.files(entry)?))
    }
}

/// Who logs in.
fn credentials(entry: &HostEntry) -> anyhow::Result<Credentials> {
    let user = entry.user.clone().unwrap_or_default();
    Ok(match entry.login {
        LoginEntry::Negotiate => Credentials::ntlm(&user, &password(entry)?),
        LoginEntry::Basic => Credentials::Basic {
            user,
            password: password(entry)?,
        },
        LoginEntry::Certificate => {
            let Some(it) = &entry.certificate else {
                return Err(not_possible(format!(
                    "host {} logs in with a certificate, and none is written down",
                    entry.name
                )));
            };
            let chain = pem(&it.file)?;
            let key = Zeroizing::new(pem(&it.key_file)?);
            let identity = TlsIdentity::from_pem(&chain, &key).with_context(|| {
                format!(
                    "reading {} and {}",
                    it.file.display(),
                    it.key_file.display()
                )
            })?;
            Credentials::Certificate(identity)
        }
        LoginEntry::Kerberos => kerberos(entry)?,
    })
}

#[cfg(feature = "kerberos")]
fn kerberos(entry: &HostEntry) -> anyhow::Result<Credentials> {
    let password = match &entry.password_file {
        Some(_) => Some(password(entry)?),
        None => None,
    };
    Ok(Credentials::Kerberos {
        principal: entry.user.clone(),
        password,
        scheme: wsman::auth::kerberos::KerberosScheme::Negotiate,
    })
}

#[cfg(not(feature = "kerberos"))]
fn kerberos(entry: &HostEntry) -> anyhow::Result<Credentials> {
    Err(not_possible(format!(
        "host {} logs in with Kerberos, which this build does not know",
        entry.name
    )))
}

fn pem(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let place = || format!("reading {}", file.display());
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .with_context(place)?
        .take(PEM_MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(place)?;
    Ok(bytes)
}

/// Whether a host refused an account, or we the host.
fn is_denied(error: &wsman::Error) -> bool {
    matches!(
        error.kind(),
        wsman::ErrorKind::Unauthorized | wsman::ErrorKind::AccessDenied | wsman::ErrorKind::Refused
    )
}

/// The name that a host gives itself.
pub fn own_name(client: &dyn CimClient) -> wsman::Result<Option<NodeName>> {
    let rows = client.enumerate(&Namespace::new(VIRTUALIZATION), &ClassName::new(SERVICE))?;
    let name = rows.first().and_then(|row| row.text_ref("SystemName"));
    Ok(name.and_then(|name| NodeName::new(name).ok()))
}

fn connection(name: NodeName, client: WsmanClient, files: Arc<dyn NodeFiles>) -> NodeConnection {
    NodeConnection {
        name,
        client: Arc::new(client),
        files,
    }
}

fn trust(entry: &TrustEntry) -> anyhow::Result<Trust> {
    Ok(match entry {
        TrustEntry::System => Trust::SystemRoots,
        TrustEntry::Authorities { file } => Trust::Authorities(pem(file)?),
        TrustEntry::Pinned { sha256 } => Trust::Pinned(CertificateHash::parse(sha256)?),
    })
}

fn password(entry: &HostEntry) -> anyhow::Result<Secret> {
    Ok(Secret::new(password_text(entry)?.as_str()))
}

/// The first line of the password's file.
pub fn password_text(entry: &HostEntry) -> anyhow::Result<Zeroizing<String>> {
    let Some(path) = &entry.password_file else {
        return Err(not_possible(format!(
            "no password is written down for host {}",
            entry.name
        )));
    };
    let place = || {
        format!(
            "reading the password of host {}: {}",
            entry.name,
            path.display()
        )
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).with_context(place)?;
    file.take(PASSWORD_MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(place)?;
    let end = bytes.iter().position(|it| matches!(it, b'\r' | b'\n'));
    let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(&[]);
    let line = std::str::from_utf8(line).with_context(place)?;
    if line.is_empty() {
        return Err(not_possible(format!(
            "{}: the first line is empty",
            place()
        )));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// Connects members of a cluster that the driver learns of.
struct Peers {
    hosts: Hosts,
    /// Whose account is taken for a node that is not written down.
    like: HostEntry,
}

impl Connector for Peers {
    fn connect(&self, node: &NodeName) -> host::Result<NodeConnection> {
        self.connect_to(node).map_err(|error| {
            host::Error::with_source(
                host::ErrorKind::Unreachable,
                format!(
                    "connecting to {node}, a member of the cluster of {}",
                    self.like.name
                ),
                error.into_boxed_dyn_error(),
            )
        })
    }
}

impl Peers {
    fn connect_to(&self, node: &NodeName) -> anyhow::Result<NodeConnection> {
        for entry in self.hosts.known.iter() {
            if NodeName::new(&entry.name).is_ok_and(|name| name == *node) {
                let client = self.hosts.client(entry)?;
                let files = self.hosts.files(entry)?;
                return Ok(connection(node.clone(), client, files));
            }
        }
        let mut address: Address = self.like.address.parse()?;
        let is_number = address.host.parse::<std::net::IpAddr>().is_ok();
        address.host = match address.host.split_once('.') {
            Some((_, domain)) if !is_number && !node.as_str().contains('.') => {
                format!("{node}.{domain}")
            }
            _ => node.as_str().to_owned(),
        };
        let client = self.hosts.client_at(&self.like, &address)?;
        let like = files::for_peer(&self.like);
        let files = files::open(&like, &address, &self.hosts.smb)?;
        Ok(connection(node.clone(), client, files))
    }
}

/// The driver, over the hosts that were asked for.
pub struct Estate {
    pub driver: HyperV,
    /// Hosts that could not even be asked.
    pub problems: Vec<NodeProblem>,
    pub cancel: CancelToken,
}

impl Estate {
    /// Over the hosts of a command line.
    pub fn open(place: &VmPlaceArgs) -> anyhow::Result<Self> {
        let registry = Registry::load(&place.file)?;
        let chosen = registry.select(&place.hosts)?;
        Self::over(&registry, &chosen)
    }

    /// Over some hosts of a registry.
    pub fn over(registry: &Registry, chosen: &[HostEntry]) -> anyhow::Result<Self> {
        let hosts = Hosts::of(registry.hosts().to_vec())?;
        let mut nodes: Vec<NodeConnection> = Vec::new();
        let mut problems = Vec::new();
        let mut first = None;
        for entry in chosen {
            match hosts.node(entry) {
                Ok(node) => nodes.push(node),
                Err(error) => {
                    let below = error.downcast_ref::<wsman::Error>();
                    let kind = if below.is_some_and(is_denied) {
                        host::ErrorKind::Denied
                    } else {
                        host::ErrorKind::Invalid
                    };
                    let text = format!("{error:#}");
                    let node = NodeName::new(&entry.name)?;
                    problems.push(NodeProblem { node, kind, text });
                    first.get_or_insert((kind, error));
                }
            }
        }
        if let (true, Some((kind, error))) = (nodes.is_empty(), first) {
            if kind != host::ErrorKind::Denied {
                return Err(error);
            }
            let names: Vec<&str> = problems.iter().map(|it| it.node.as_str()).collect();
            let what = format!("no host lets us in ({})", names.join(", "));
            let problem = engine::Error::new(engine::ErrorKind::Denied, what);
            let below: Box<dyn std::error::Error + Send + Sync> = error.into();
            return Err(anyhow::Error::new(problem.caused_by(below)));
        }
        let like = chosen.first().context("no host was chosen")?.clone();
        let cancel = hosts.cancel.clone();
        let peers = Peers { hosts, like };
        let driver = HyperV::new(
            nodes,
            Some(Arc::new(peers)),
            Arc::new(SystemClock::new()),
            HyperVOptions::default(),
        )
        .map_err(failed)?;
        Ok(Self {
            driver,
            problems,
            cancel,
        })
    }
}

/// A failure of the hypervisor boundary, in the words of jobs.
pub fn failed(error: host::Error) -> anyhow::Error {
    anyhow::Error::new(engine::Error::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (typed, meant) in [
            ("hv01", "http://hv01:5985"),
            ("hv01:80", "http://hv01:80"),
            ("HTTPS://hv01.example.net", "https://hv01.example.net:5986"),
            ("http://127.0.0.1:41000/wsman", "http://127.0.0.1:41000"),
            ("https://[2001:db8::1]:443/", "https://[2001:db8::1]:443"),
            ("[::1]", "http://[::1]:5985"),
        ] {
            let address: Address = typed.parse().unwrap();
            assert_eq!(address.to_string(), meant);
            assert_eq!(meant.parse::<Address>().unwrap(), address);
        }
        for wrong in [
            "",
            "ftp://hv01",
            "http://",
            "hv01:port",
            "hv01:70000",
            "hv 01",
            "[::1",
            "[::1]5985",
            "a/b",
            "user@hv01",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
