//! The estate on sockets: one WS-Management server for each host, on loopback, on ports that the system chooses.
//!
//! ```text
//!   LabWire ─┬ HV01: HttpServer 127.0.0.1:p ─► WsmanService ─► HostProvider ─┐
//!            ├ HV02: HttpServer 127.0.0.1:q ─► WsmanService ─► HostProvider ─┼─► SharedEstate
//!            └ …                                                             ┘
//! ```
//!
//! **Invariants.** What a real host demands is demanded: a login, sealed bodies over HTTP unless it was told otherwise. A host
//! that is down closes every connection without an answer. Clock and ids come from the caller.
//!
//! **What it does not do.** No disk bytes: those lie in the volumes' backing folders.

mod faults;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use wsman::auth::Secret;
use wsman::auth::account::AccountTable;
use wsman::auth::negotiate::{KerberosOffer, NegotiateOptions};
use wsman::auth::ntlm::{CbtHardening, NtlmServerOptions};
use wsman::message::Identity;
use wsman::server::{AccountName, ServiceOptions, ServiceSources, WsmanService};
use wsman::transport::{
    BasicOffer, HttpServer, HttpServerOptions, OpenBodies, TlsServerOptions, TransportRuntime,
};

pub use faults::WirePlan;

use crate::estate::{Host, HostName};
use crate::provider::{HostProvider, Language, ProviderOptions, Role, Roles, SharedEstate};
use crate::{Error, Result};

/// An account that every host of the lab knows.
#[derive(Clone)]
pub struct LabAccount {
    /// Of each host, or of a domain.
    pub domain: Option<String>,
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// What it is on the hosts.
    pub role: Role,
}

/// How the hosts are reached.
#[derive(Clone)]
pub struct WireOptions {
    /// Who there is.
    pub accounts: Vec<LabAccount>,
    /// Whether Basic is taken.
    pub basic: BasicOffer,
    /// Whether bodies may be open over HTTP.
    pub open_bodies: OpenBodies,
    /// HTTPS instead of HTTP.
    pub tls: Option<TlsServerOptions>,
    /// Whether Kerberos is taken, with the keys of the process's default keytab.
    pub kerberos: KerberosOffer,
    /// The hosts' language.
    pub language: Language,
    /// What the service allows: sizes, counts, times.
    pub service: ServiceOptions,
    /// Time and ids of enumerations.
    pub sources: ServiceSources,
}

impl WireOptions {
    /// What a freshly installed Windows Server offers, to one local administrator.
    pub fn new(administrator: &str, password: &Secret, sources: ServiceSources) -> Self {
        Self {
            accounts: vec![LabAccount {
                domain: None,
                user: administrator.to_owned(),
                password: password.clone(),
                role: Role::Administrator,
            }],
            basic: BasicOffer::Absent,
            open_bodies: OpenBodies::Refused,
            tls: None,
            kerberos: KerberosOffer::Absent,
            language: Language::English,
            service: ServiceOptions::default(),
            sources,
        }
    }

    /// With another account.
    #[must_use]
    pub fn with_account(mut self, account: LabAccount) -> Self {
        self.accounts.push(account);
        self
    }
}

/// A host on the wire.
struct HostWire {
    server: HttpServer,
    provider: Arc<HostProvider>,
    plan: Arc<WirePlan>,
}

/// All hosts of an estate, listening.
pub struct LabWire {
    hosts: BTreeMap<HostName, HostWire>,
}

impl LabWire {
    /// Makes every host of an estate listen.
    ///
    /// # Errors
    /// `Io` when there is no port or no thread; `Invalid` for options that make no sense.
    pub fn start(estate: &Arc<SharedEstate>, options: &WireOptions) -> Result<Self> {
        let runtime =
            TransportRuntime::new().map_err(|error| Error::io("the lab's runtime", error))?;
        let names: Vec<HostName> =
            estate.read(|it| it.hosts().map(|host| host.name.clone()).collect());
        let mut hosts = BTreeMap::new();
        for name in names {
            let wire = HostWire::start(estate, &name, options, &runtime)?;
            hosts.insert(name, wire);
        }
        Ok(Self { hosts })
    }

    /// Where a host listens.
    pub fn address(&self, host: &HostName) -> Option<SocketAddr> {
        self.hosts.get(host).map(|it| it.server.address())
    }

    /// Every host with where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = (&HostName, SocketAddr)> {
        self.hosts
            .iter()
            .map(|(name, it)| (name, it.server.address()))
    }

    /// What goes wrong on the way to a host.
    pub fn plan(&self, host: &HostName) -> Option<&Arc<WirePlan>> {
        self.hosts.get(host).map(|it| &it.plan)
    }

    /// Every host with what goes wrong on the way to it.
    pub fn plans(&self) -> impl Iterator<Item = (&HostName, &Arc<WirePlan>)> {
        self.hosts.iter().map(|(name, it)| (name, &it.plan))
    }

    /// What a host answers with.
    pub fn provider(&self, host: &HostName) -> Option<&Arc<HostProvider>> {
        self.hosts.get(host).map(|it| &it.provider)
    }

    /// Stops listening; requests under way end within a time.
    pub fn stop(self, timeout: Duration) {
        for host in self.hosts.into_values() {
            host.server.stop(timeout);
        }
    }
}

impl HostWire {
    fn start(
        estate: &Arc<SharedEstate>,
        name: &HostName,
        options: &WireOptions,
        runtime: &TransportRuntime,
    ) -> Result<Self> {
        let host = estate.read(|it| it.host(name).cloned())?;
        let (accounts, roles) = accounts_of(&host, options);
        let provider = HostProvider::new(
            estate.clone(),
            name,
            ProviderOptions {
                language: options.language,
                roles,
            },
        )?;
        let provider = Arc::new(provider);
        let service_options = ServiceOptions {
            identity: Identity {
                product_version: format!(
                    "OS: {}.{} SP: 0.0 Stack: 3.0",
                    host.windows.version(),
                    host.windows.build()
                ),
                ..options.service.identity.clone()
            },
            language: options.language.tag().to_owned(),
            ..options.service.clone()
        };
        let service = WsmanService::new(provider.clone(), service_options, options.sources.clone());
        let plan = Arc::new(WirePlan::new(estate.clone(), name.clone()));
        let mut http = HttpServerOptions::new(negotiate(&host, options));
        http.basic = options.basic;
        http.open_bodies = options.open_bodies;
        http.tls.clone_from(&options.tls);
        http.faults = Some(plan.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(|error| Error::io(format!("a port for {name}"), error))?;
        let server = HttpServer::start(
            listener,
            http,
            Arc::new(accounts),
            Arc::new(service),
            runtime.clone(),
        )
        .map_err(|error| Error::io(format!("the server of {name}"), error))?;
        Ok(Self {
            server,
            provider,
            plan,
        })
    }
}

fn negotiate(host: &Host, options: &WireOptions) -> NegotiateOptions {
    let computer = host.name.to_string();
    let short = host.domain.split('.').next().unwrap_or("").to_uppercase();
    NegotiateOptions {
        ntlm: NtlmServerOptions {
            domain: if short.is_empty() {
                computer.clone()
            } else {
                short
            },
            dns_computer: host.full_name(),
            dns_domain: host.domain.clone(),
            computer,
            hardening: CbtHardening::default(),
        },
        kerberos: options.kerberos,
    }
}

/// The accounts of a host, and what they are there.
fn accounts_of(host: &Host, options: &WireOptions) -> (AccountTable, Roles) {
    let mut table = AccountTable::new(host.name.as_str());
    let mut roles = Roles::new();
    for account in &options.accounts {
        let (owner, user) = (account.domain.as_deref(), account.user.as_str());
        table = match owner {
            None => table.with_local(user, &account.password),
            Some(domain) => table.with_domain(domain, user, &account.password),
        };
        let owner = owner.unwrap_or(host.name.as_str());
        let name = AccountName::new(format!("{owner}\\{user}"));
        roles = roles.with(&name, account.role);
        if let Some(domain) = &account.domain {
            // Kerberos spells the same account otherwise.
            let principal = format!("{user}@{}", domain.to_uppercase());
            table = table.with_principal(principal, name);
        }
    }
    (table, roles)
}
