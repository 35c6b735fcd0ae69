//! The file with the hosts.
//!
//! ```text
//!   $XDG_CONFIG_HOME/hikae/hosts.json   { "format": 1, "hosts": [ { "name", "address", "user", "password_file", "login", "trust", "files" … } ] }
//!                          hosts.lock   held while the file is changed
//! ```
//!
//! **Invariants.** No password is in it, only the place of one. It is replaced whole, so that a crash leaves the old or the new one,
//! and only its owner may read it. What this program does not know in it is refused, not dropped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use host::path::HostPath;
use serde::{Deserialize, Serialize};

use crate::args::HostsFileArgs;
use crate::exit::{misused_flag, not_possible};

/// Longer files are none of ours.
const FILE_MAX_BYTES: u64 = 16 << 20;
const FORMAT: u32 = 1;

/// How an account proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoginEntry {
    /// NTLMv2.
    Negotiate,
    /// Kerberos.
    Kerberos,
    /// Basic over HTTPS.
    Basic,
    /// A client certificate over HTTPS.
    Certificate,
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateEntry {
    /// PEM, the chain behind it.
    pub file: PathBuf,
    /// PEM.
    pub key_file: PathBuf,
}

/// Where a server is that paths name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEntry {
    /// Name or address.
    pub address: String,
    /// Port.
    pub port: u16,
}

/// How a host's files are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum FilesEntry {
    /// Folders of the host lie in folders here.
    Local {
        /// Each: what the host calls it, and where it lies.
        roots: Vec<(HostPath, PathBuf)>,
    },
    /// Over SMB, with the host's account.
    Smb {
        /// The host's name or address; that of its address when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// Its port; 445 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// Other servers, by their names in lower case.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        share_servers: BTreeMap<String, ServerEntry>,
    },
}

impl Default for FilesEntry {
    fn default() -> Self {
        Self::Smb {
            server: None,
            port: None,
            share_servers: BTreeMap::new(),
        }
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum TrustEntry {
    /// The system's authorities.
    System,
    /// Authorities in a file.
    Authorities {
        /// PEM.
        file: PathBuf,
    },
    /// One certificate.
    Pinned {
        /// Its fingerprint.
        sha256: String,
    },
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// What it is called here.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// The account. None where a certificate or a ticket says who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the password is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// How to log in.
    pub login: LoginEntry,
    /// The client certificate to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateEntry>,
    /// Whom to believe.
    pub trust: TrustEntry,
    /// How its files are reached.
    #[serde(default)]
    pub files: FilesEntry,
}

impl HostEntry {
    /// Who logs in, for people.
    pub fn account_text(&self) -> String {
        match (&self.user, self.login) {
            (_, LoginEntry::Certificate) => "client certificate".to_owned(),
            (Some(user), _) => user.clone(),
            (None, _) => "whom the ticket is for".to_owned(),
        }
    }

    /// Where what it is known by lies, for people.
    pub fn proof_text(&self) -> String {
        match (&self.password_file, &self.certificate) {
            (_, Some(it)) => format!("certificate in {}", it.file.display()),
            (Some(file), None) => format!("password in {}", file.display()),
            (None, None) => "ticket of kinit".to_owned(),
        }
    }

    /// How its files are reached, for people.
    pub fn files_text(&self) -> String {
        match &self.files {
            FilesEntry::Local { roots } => {
                let roots: Vec<String> = roots
                    .iter()
                    .map(|(folder, here)| format!("{folder} at {}", here.display()))
                    .collect();
                roots.join(", ")
            }
            FilesEntry::Smb {
                server,
                port,
                share_servers,
            } => {
                let mut text = "SMB".to_owned();
                if let Some(server) = server {
                    text.push_str(&format!(", {server}"));
                }
                if let Some(port) = port {
                    text.push_str(&format!(", port {port}"));
                }
                for (name, at) in share_servers {
                    text.push_str(&format!(", {name} at {}:{}", at.address, at.port));
                }
                text
            }
        }
    }

    /// Whom to believe, for people.
    pub fn trust_text(&self) -> String {
        match &self.trust {
            _ if self.address.starts_with("http:") => match self.login {
                LoginEntry::Kerberos => "ticket, both ways (Kerberos)".to_owned(),
                _ => "password, both ways (NTLM)".to_owned(),
            },
            TrustEntry::System => "the system's authorities".to_owned(),
            TrustEntry::Authorities { file } => format!("authorities in {}", file.display()),
            TrustEntry::Pinned { sha256 } => format!("certificate {sha256}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    hosts: Vec<HostEntry>,
}

/// All hosts that are written down.
pub struct Registry {
    path: PathBuf,
    hosts: Vec<HostEntry>,
}

impl Registry {
    /// Reads the file; an absent one has no hosts.
    pub fn load(arguments: &HostsFileArgs) -> anyhow::Result<Self> {
        let path = match &arguments.hosts_file {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(FILE_MAX_BYTES)
                    .read_to_string(&mut text)
                    .with_context(|| format!("reading {}", path.display()))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let hosts = Vec::new();
                return Ok(Self { path, hosts });
            }
            Err(error) => {
                return Err(
                    anyhow::Error::new(error).context(format!("opening {}", path.display()))
                );
            }
        }
        let contents: Contents = serde_json::from_str(&text)
            .map_err(|error| not_possible(format!("{}: {error}", path.display())))?;
        if contents.format != FORMAT {
            return Err(not_possible(format!(
                "{}: format {}, and this program knows {FORMAT}",
                path.display(),
                contents.format
            )));
        }
        let hosts = contents.hosts;
        Ok(Self { path, hosts })
    }

    /// Changes the file, alone.
    pub fn change(
        arguments: &HostsFileArgs,
        act: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = match &arguments.hosts_file {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let lock = path.with_extension("lock");
        let lock = File::create(&lock).with_context(|| format!("opening {}", lock.display()))?;
        lock.lock().context("waiting for another command")?;
        let mut registry = Self::load(arguments)?;
        act(&mut registry)?;
        registry.save()
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.hosts.sort_by(|one, other| one.name.cmp(&other.name));
        let contents = Contents {
            format: FORMAT,
            hosts: self.hosts.clone(),
        };
        let mut text = serde_json::to_string_pretty(&contents)?;
        text.push('\n');
        let new = self.path.with_extension("new");
        let place = || format!("writing {}", new.display());
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new).with_context(place)?;
        file.write_all(text.as_bytes()).with_context(place)?;
        file.sync_all().with_context(place)?;
        fs::rename(&new, &self.path).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its hosts.
    pub fn hosts(&self) -> &[HostEntry] {
        &self.hosts
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        let is_it = |host: &HostEntry| host.name.eq_ignore_ascii_case(name);
        self.hosts.iter().position(is_it)
    }

    /// A host by its name, without case.
    pub fn find(&self, name: &str) -> anyhow::Result<&HostEntry> {
        let found = self.place_of(name).and_then(|place| self.hosts.get(place));
        found.ok_or_else(|| self.unknown(name))
    }

    /// These hosts, or all.
    pub fn select(&self, names: &[String]) -> anyhow::Result<Vec<HostEntry>> {
        if self.hosts.is_empty() {
            let error = engine::Error::new(
                engine::ErrorKind::NotFound,
                format!("no host is written down in {}", self.path.display()),
            );
            return Err(anyhow::Error::new(error.advised(super::connect::ADD)));
        }
        if names.is_empty() {
            return Ok(self.hosts.clone());
        }
        names.iter().map(|it| self.find(it).cloned()).collect()
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let known: Vec<&str> = self.hosts.iter().map(|it| it.name.as_str()).collect();
        misused_flag(format!(
            "no host `{name}` is written down; there are: {}",
            known.join(", ")
        ))
    }

    /// Takes one in.
    pub fn add(&mut self, entry: HostEntry, replaces: bool) -> anyhow::Result<()> {
        match self.place_of(&entry.name) {
            Some(place) if replaces => {
                self.hosts.remove(place);
            }
            Some(_) => {
                let error = engine::Error::new(
                    engine::ErrorKind::AlreadyExists,
                    format!("host {} is written down already", entry.name),
                );
                return Err(anyhow::Error::new(
                    error.advised("Give another name, or --replace"),
                ));
            }
            None => {}
        }
        self.hosts.push(entry);
        Ok(())
    }

    /// Strikes one out.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let place = self.place_of(name).ok_or_else(|| self.unknown(name))?;
        self.hosts.remove(place);
        Ok(())
    }
}

/// In the configuration folder, not among the caches: nothing rebuilds it.
fn default_path() -> anyhow::Result<PathBuf> {
    let given = |variable: &str| {
        std::env::var_os(variable)
            .filter(|it| !it.is_empty())
            .map(PathBuf::from)
    };
    let base = given("XDG_CONFIG_HOME").or_else(|| given("HOME").map(|it| it.join(".config")));
    let base = base.context("no home folder for the list of hosts: give --hosts-file FILE")?;
    Ok(base.join("hikae").join("hosts.json"))
}
