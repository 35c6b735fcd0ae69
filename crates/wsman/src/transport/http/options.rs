//! Where to, who as, how many, how long.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::super::tls::{TlsIdentity, Trust};
use crate::auth::account::LoginName;
#[cfg(feature = "kerberos")]
use crate::auth::kerberos::KerberosScheme;
use crate::auth::{Entropy, NtHash, Secret, SystemEntropy};
use crate::{Error, ErrorKind, Result};

/// What lies between the two.
#[derive(Debug, Clone)]
pub enum Line {
    /// HTTP, where bodies are sealed.
    Plain,
    /// HTTPS.
    Tls(Trust),
}

/// Where a host listens.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Name or address. Kerberos and certificates need the name.
    pub host: String,
    /// 5985 or 5986 by custom.
    pub port: u16,
    /// HTTP or HTTPS.
    pub line: Line,
}

impl Endpoint {
    /// What goes into `a:To`.
    pub(super) fn address(&self) -> String {
        let word = match self.line {
            Line::Plain => "http",
            Line::Tls(_) => "https",
        };
        format!("{word}://{}/wsman", self.authority())
    }

    /// Host and port as URIs and `Host` have them.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// NTLM with a password's hash: sealed over HTTP, bound to the channel over HTTPS.
    Ntlm {
        /// The account.
        login: LoginName,
        /// Its password's hash.
        hash: NtHash,
    },
    /// Kerberos: sealed over HTTP, bound to the channel over HTTPS.
    #[cfg(feature = "kerberos")]
    Kerberos {
        /// `user@REALM`, or whom the credential cache is for.
        principal: Option<String>,
        /// The password, or what the credential cache holds.
        password: Option<Secret>,
        /// In SPNEGO or bare.
        scheme: KerberosScheme,
    },
    /// Basic, over HTTPS alone.
    Basic {
        /// A local account.
        user: String,
        /// Its password.
        password: Secret,
    },
    /// A client certificate, over HTTPS alone.
    Certificate(TlsIdentity),
}

impl Credentials {
    /// NTLM with a password; `name` is `DOMAIN\user`, `user@realm` or `user`.
    pub fn ntlm(name: &str, password: &Secret) -> Self {
        Self::Ntlm {
            login: LoginName::parse(name),
            hash: NtHash::of(password),
        }
    }
}

/// Everything that an [`HttpTransport`](super::HttpTransport) is made from.
#[derive(Clone)]
pub struct HttpTransportOptions {
    /// Where to.
    pub endpoint: Endpoint,
    /// Who as.
    pub credentials: Credentials,
    /// Connections at once; each carries one request at a time.
    pub connections_max: NonZeroUsize,
    /// For the TCP connection and the TLS handshake.
    pub connect_timeout: Duration,
    /// The longest silence inside an answer that has begun.
    pub read_timeout: Duration,
    /// A connection that rested for longer is not used again.
    pub idle_timeout: Duration,
    /// Randomness and time for logins.
    pub entropy: Arc<dyn Entropy>,
}

impl HttpTransportOptions {
    /// Five connections, ten seconds to connect, thirty of silence, fifty at rest.
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Self {
        Self {
            endpoint,
            credentials,
            connections_max: NonZeroUsize::MIN.saturating_add(4),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(50),
            entropy: Arc::new(SystemEntropy),
        }
    }

    pub(super) fn identity(&self) -> Option<&TlsIdentity> {
        match &self.credentials {
            Credentials::Certificate(identity) => Some(identity),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let needs_tls = matches!(
            self.credentials,
            Credentials::Basic { .. } | Credentials::Certificate(_)
        );
        if needs_tls && matches!(self.endpoint.line, Line::Plain) {
            return Err(Error::new(
                ErrorKind::Refused,
                "basic credentials and client certificates go over HTTPS only",
            ));
        }
        let host = &self.endpoint.host;
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(is_sound) {
            return Err(Error::invalid(format!("host name {host:?}")));
        }
        Ok(())
    }
}
