//! Names of accounts, and what an answering side knows of them.

use std::collections::BTreeMap;
use std::fmt;

use super::{NtHash, Secret, equal};
use crate::server::AccountName;

/// A name with the place that it belongs to, as people write it: `DOMAIN\user`, `user@realm` or `user`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoginName {
    domain: Option<String>,
    user: String,
}

impl LoginName {
    /// Reads `DOMAIN\user`; anything else is a user without a domain (`user@realm` is one name to NTLM).
    pub fn parse(text: &str) -> Self {
        match text.split_once('\\') {
            Some((domain, user)) => Self::new(Some(domain), user),
            None => Self::new(None, text),
        }
    }

    /// From its parts; an empty domain or `.` is none.
    pub fn new(domain: Option<&str>, user: &str) -> Self {
        Self {
            domain: domain
                .filter(|it| !it.is_empty() && *it != ".")
                .map(str::to_owned),
            user: user.to_owned(),
        }
    }

    /// The domain or host, if one was named.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    fn folded(&self) -> (String, String) {
        let domain = self.domain.as_deref().unwrap_or_default();
        (domain.to_lowercase(), self.user.to_lowercase())
    }
}

impl fmt::Display for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.domain {
            Some(domain) => write!(f, "{domain}\\{}", self.user),
            None => f.write_str(&self.user),
        }
    }
}

/// A certificate that a client showed, and whose key it proved to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, DER.
    pub der: Vec<u8>,
}

/// What an answering side knows. Called from many threads at once.
pub trait Accounts: Send + Sync {
    /// The account that logs in by NTLM under this name, and the hash of its password.
    fn by_login(&self, login: &LoginName) -> Option<(AccountName, NtHash)>;

    /// The account with this name and password, for Basic: local accounts only.
    fn by_password(&self, login: &LoginName, password: &Secret) -> Option<AccountName>;

    /// The account of a Kerberos principal (`user@REALM`) that the KDC vouches for.
    fn by_principal(&self, principal: &str) -> Option<AccountName>;

    /// The local account that a client certificate stands for.
    fn by_certificate(&self, certificate: &ClientCertificate) -> Option<AccountName>;
}

struct Row {
    name: AccountName,
    hash: NtHash,
    is_local: bool,
}

/// Accounts in a table: local ones of a host, and ones of its domain.
#[derive(Default)]
pub struct AccountTable {
    host: String,
    rows: BTreeMap<(String, String), Row>,
    principals: BTreeMap<String, AccountName>,
    certificates: BTreeMap<Vec<u8>, AccountName>,
}

impl AccountTable {
    /// No accounts of the host with that NetBIOS name.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            ..Self::default()
        }
    }

    /// With a local account. It is found as `user`, `HOST\user` and `.\user`.
    #[must_use]
    pub fn with_local(mut self, user: &str, password: &Secret) -> Self {
        let login = LoginName::new(Some(&self.host), user);
        self.add(&login, password, true);
        self
    }

    /// With an account of a domain, found as `DOMAIN\user` and `user@domain.…`; by NTLM only, since Basic knows local accounts alone.
    #[must_use]
    pub fn with_domain(mut self, domain: &str, user: &str, password: &Secret) -> Self {
        let login = LoginName::new(Some(domain), user);
        self.add(&login, password, false);
        self
    }

    /// With the account that a Kerberos principal stands for.
    #[must_use]
    pub fn with_principal(mut self, principal: impl Into<String>, account: AccountName) -> Self {
        self.principals.insert(principal.into(), account);
        self
    }

    /// With the local account that a client certificate (DER) stands for.
    #[must_use]
    pub fn with_certificate(mut self, der: impl Into<Vec<u8>>, account: AccountName) -> Self {
        self.certificates.insert(der.into(), account);
        self
    }

    fn add(&mut self, login: &LoginName, password: &Secret, is_local: bool) {
        let row = Row {
            name: AccountName::new(login.to_string()),
            hash: NtHash::of(password),
            is_local,
        };
        self.rows.insert(login.folded(), row);
    }

    /// `user@corp.example` is `CORP\user`; a name without a domain is the host's.
    fn row(&self, login: &LoginName) -> Option<&Row> {
        let (domain, user) = login.folded();
        let key = match user.split_once('@') {
            Some((user, suffix)) if domain.is_empty() => {
                let domain = suffix.split('.').next().unwrap_or_default();
                (domain.to_owned(), user.to_owned())
            }
            _ if domain.is_empty() => (self.host.to_lowercase(), user),
            _ => (domain, user),
        };
        self.rows.get(&key)
    }
}

impl Accounts for AccountTable {
    fn by_login(&self, login: &LoginName) -> Option<(AccountName, NtHash)> {
        self.row(login)
            .map(|row| (row.name.clone(), row.hash.clone()))
    }

    fn by_password(&self, login: &LoginName, password: &Secret) -> Option<AccountName> {
        let hash = NtHash::of(password);
        self.row(login)
            .filter(|row| row.is_local && equal(row.hash.expose(), hash.expose()))
            .map(|row| row.name.clone())
    }

    fn by_principal(&self, principal: &str) -> Option<AccountName> {
        self.principals.get(principal).cloned()
    }

    fn by_certificate(&self, certificate: &ClientCertificate) -> Option<AccountName> {
        self.certificates.get(&certificate.der).cloned()
    }
}
