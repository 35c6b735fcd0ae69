//! Kerberos through the system's GSS-API (MIT krb5), both halves.
//!
//! ```text
//!   asking:     credentials (password, or what kinit and the keytab left) ─► AP-REQ ─► ◄─ AP-REP: both are proved
//!   answering:  default keytab (KRB5_KTNAME) ◄─ AP-REQ; AP-REP ─►
//!   bodies:     gss_wrap_iov HEADER | DATA | PADDING, the trailer rotated into the header
//! ```
//!
//! Realms, KDCs, encryption types, credential caches and keytabs are what `krb5.conf` and the environment (`KRB5_CONFIG`,
//! `KRB5CCNAME`, `KRB5_KTNAME`) say, as for every program on the machine.
//!
//! **Invariants.** Mutual: the other side has proved itself when a login ends. Confidentiality is asked for and checked.
//!
//! **What it does not do.** No delegation, no keytab by path: the library knows the process's default one.

use std::sync::Arc;

use libgssapi::context::{ClientCtx, CtxFlags, SecurityContext, ServerCtx};
use libgssapi::credential::{Cred, CredUsage};
use libgssapi::name::Name;
use libgssapi::oid::{
    GSS_MECH_KRB5, GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE, GSS_NT_KRB5_PRINCIPAL, Oid, OidSet,
};
use libgssapi::util::{GssIov, GssIovType};

use super::account::Accounts;
use super::binding::ChannelBinding;
use super::negotiate::NEGOTIATE;
use super::ntlm::CbtHardening;
use super::{Accepted, Acceptor, Initiator, Proof, Seal, Sealed, Secret, TOKEN_MAX_BYTES};
use crate::{Error, ErrorKind, Result};

/// What the library says of a login that carried the right channel bindings (MIT krb5 1.19, `gssapi_ext.h`).
const CHANNEL_BOUND: CtxFlags = CtxFlags::from_bits_retain(0x800);

/// The word of the scheme without SPNEGO.
pub const KERBEROS: &str = "Kerberos";

/// Whether Kerberos' tokens travel in SPNEGO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KerberosScheme {
    /// `Negotiate`: in SPNEGO.
    #[default]
    Negotiate,
    /// `Kerberos`: bare.
    Kerberos,
}

impl KerberosScheme {
    fn mechanism(self) -> Oid<'static> {
        match self {
            Self::Negotiate => GSS_MECH_SPNEGO,
            Self::Kerberos => GSS_MECH_KRB5,
        }
    }
}

/// Whose login, and to whom.
#[derive(Debug, Clone)]
pub struct KerberosClientOptions {
    /// `user@REALM`; the default principal of the credential cache when absent.
    pub principal: Option<String>,
    /// Its password; without one the credential cache has to hold a ticket.
    pub password: Option<Secret>,
    /// The service, such as `HTTP`.
    pub service: String,
    /// Full name of the host: never an address.
    pub host: String,
    /// In SPNEGO or bare.
    pub scheme: KerberosScheme,
    /// Over TLS: the channel.
    pub binding: Option<ChannelBinding>,
}

/// The asking half. Steps may talk to a KDC, and wait for it.
pub struct KerberosInitiator {
    context: ClientCtx,
    scheme: KerberosScheme,
    binding: Option<ChannelBinding>,
}

fn failed(what: &'static str) -> impl FnOnce(libgssapi::error::Error) -> Error {
    move |cause| Error::new(ErrorKind::Unauthorized, format!("kerberos: {what}")).caused_by(cause)
}

impl KerberosInitiator {
    /// Gets credentials; with a password this asks the KDC.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`], with what the library says.
    pub fn new(options: &KerberosClientOptions) -> Result<Self> {
        let mechanism = options.scheme.mechanism();
        let mut mechanisms = OidSet::new();
        mechanisms
            .add(mechanism)
            .map_err(failed("the mechanism is not there"))?;
        let name = match &options.principal {
            Some(principal) => Some(
                Name::new(principal.as_bytes(), Some(GSS_NT_KRB5_PRINCIPAL))
                    .map_err(failed("the principal's name"))?,
            ),
            None => None,
        };
        let credentials = match &options.password {
            Some(password) => Cred::acquire_with_password(
                name.as_ref(),
                password.expose(),
                None,
                CredUsage::Initiate,
                Some(&mechanisms),
            ),
            None => Cred::acquire(name.as_ref(), None, CredUsage::Initiate, Some(&mechanisms)),
        };
        let credentials = credentials.map_err(failed("credentials"))?;
        let target = format!("{}@{}", options.service, options.host);
        let target = Name::new(target.as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE))
            .map_err(failed("the service's name"))?;
        let flags = CtxFlags::GSS_C_MUTUAL_FLAG
            | CtxFlags::GSS_C_CONF_FLAG
            | CtxFlags::GSS_C_INTEG_FLAG
            | CtxFlags::GSS_C_REPLAY_FLAG
            | CtxFlags::GSS_C_SEQUENCE_FLAG;
        Ok(Self {
            context: ClientCtx::new(Some(credentials), target, flags, Some(mechanism)),
            scheme: options.scheme,
            binding: options.binding.clone(),
        })
    }

    fn advance(&mut self, token: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        check_size(token.unwrap_or(&[]))?;
        let binding = self.binding.as_ref().map(ChannelBinding::application_data);
        let next = self
            .context
            .step(token, binding)
            .map_err(failed("the login"))?;
        Ok(next.map(|token| token.to_vec()))
    }
}

fn check_size(token: &[u8]) -> Result<()> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(Error::limit("kerberos: the token is too long"));
    }
    Ok(())
}

impl Initiator for KerberosInitiator {
    fn scheme(&self) -> &'static str {
        match self.scheme {
            KerberosScheme::Negotiate => NEGOTIATE,
            KerberosScheme::Kerberos => KERBEROS,
        }
    }

    fn step(&mut self, token: Option<&[u8]>) -> Result<Vec<u8>> {
        self.advance(token)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unauthorized,
                "kerberos: the server does not take the credentials",
            )
        })
    }

    fn finish(mut self: Box<Self>, token: Option<&[u8]>) -> Result<Box<dyn Seal>> {
        if let Some(token) = token {
            self.advance(Some(token))?;
        }
        sealing(&self.context, "the server has not proved itself")?;
        Ok(Box::new(GssSeal {
            context: self.context,
        }))
    }
}

fn sealing(context: &impl SecurityContext, incomplete: &'static str) -> Result<()> {
    if !context.is_complete() {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("kerberos: {incomplete}"),
        ));
    }
    let flags = context.flags().map_err(failed("the context"))?;
    if !flags.contains(CtxFlags::GSS_C_CONF_FLAG | CtxFlags::GSS_C_INTEG_FLAG) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "kerberos: the two sides agree on no sealing",
        ));
    }
    Ok(())
}

/// The answering half.
pub struct KerberosAcceptor {
    context: Option<ServerCtx>,
    accounts: Arc<dyn Accounts>,
    binding: Option<ChannelBinding>,
    hardening: CbtHardening,
}

impl KerberosAcceptor {
    /// With the keys of the default keytab; `binding` is the TLS channel's, where there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] when there is no keytab with a key in it.
    pub fn new(
        accounts: Arc<dyn Accounts>,
        binding: Option<ChannelBinding>,
        hardening: CbtHardening,
    ) -> Result<Self> {
        let credentials = Cred::acquire(None, None, CredUsage::Accept, None)
            .map_err(failed("the keys of the service"))?;
        Ok(Self {
            context: Some(ServerCtx::new(Some(credentials))),
            accounts,
            binding: binding.filter(|_| hardening != CbtHardening::None),
            hardening,
        })
    }
}

impl Acceptor for KerberosAcceptor {
    fn step(&mut self, token: &[u8]) -> Result<Accepted> {
        check_size(token)?;
        let mut context = self
            .context
            .take()
            .ok_or_else(|| Error::malformed("kerberos: a token after the end"))?;
        let binding = self.binding.as_ref().map(ChannelBinding::application_data);
        let token = context.step(token, binding).map_err(failed("the login"))?;
        let token = token.map(|token| token.to_vec());
        if !context.is_complete() {
            self.context = Some(context);
            return Ok(Accepted::Continue(token.unwrap_or_default()));
        }
        let name = context
            .source_name()
            .and_then(|name| name.display_name())
            .map_err(failed("the client's name"))?;
        let name = std::str::from_utf8(&name)
            .map_err(|cause| Error::malformed("kerberos: the client's name").caused_by(cause))?;
        let account = self.accounts.by_principal(name).ok_or_else(|| {
            Error::new(
                ErrorKind::Unauthorized,
                format!("kerberos: {name} has no account here"),
            )
        })?;
        let flags = context.flags().map_err(failed("the context"))?;
        let must_be_bound = self.hardening == CbtHardening::Strict && self.binding.is_some();
        if must_be_bound && !flags.contains(CHANNEL_BOUND) {
            return Err(Error::new(
                ErrorKind::Unauthorized,
                format!("kerberos: the login of {name} is not bound to this TLS channel"),
            ));
        }
        let seals = flags.contains(CtxFlags::GSS_C_CONF_FLAG | CtxFlags::GSS_C_INTEG_FLAG);
        Ok(Accepted::Done(Proof {
            token,
            account,
            seal: seals.then(|| -> Box<dyn Seal> { Box::new(GssSeal { context }) }),
        }))
    }
}

struct GssSeal<C> {
    context: C,
}

impl<C: SecurityContext + Send> Seal for GssSeal<C> {
    fn seal(&mut self, plain: &[u8]) -> Result<Sealed> {
        let mut data = plain.to_vec();
        let (header, padding) = {
            let mut parts = [
                GssIov::new_alloc(GssIovType::Header),
                GssIov::new(GssIovType::Data, &mut data),
                GssIov::new_alloc(GssIovType::Padding),
            ];
            self.context.wrap_iov(true, &mut parts).map_err(|cause| {
                Error::new(ErrorKind::Invalid, "kerberos: sealing a body").caused_by(cause)
            })?;
            let [header, _, padding] = &parts;
            (header.to_vec(), padding.to_vec())
        };
        data.extend_from_slice(&padding);
        Ok(Sealed { header, data })
    }

    fn open(&mut self, header: &[u8], mut data: Vec<u8>) -> Result<Vec<u8>> {
        let mut header = header.to_vec();
        {
            let mut parts = [
                GssIov::new(GssIovType::Header, &mut header),
                GssIov::new(GssIovType::Data, &mut data),
            ];
            self.context.unwrap_iov(&mut parts).map_err(|cause| {
                Error::new(
                    ErrorKind::Refused,
                    "kerberos: the signature of a sealed body is wrong",
                )
                .caused_by(cause)
            })?;
        }
        Ok(data)
    }
}
