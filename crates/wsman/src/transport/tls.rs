//! TLS for both halves: whom a client trusts, what a server shows.
//!
//! **Invariants.** A client verifies, always: against the system's authorities, against given ones, or one pinned certificate.
//! There is no switch that turns it off. With a client certificate TLS stays at 1.2, since Windows asks for it late.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{Error, ErrorKind, Result};

/// SHA-256 of a certificate (DER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateHash([u8; 32]);

impl std::fmt::Display for CertificateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl CertificateHash {
    /// The hash of a certificate (DER).
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// A hash as `openssl x509 -fingerprint -sha256` and Windows show it: 64 hexadecimal digits, colons or blanks between allowed.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|character| *character != ':' && !character.is_whitespace())
            .map(|character| {
                let digit = character.to_digit(16).and_then(|it| u8::try_from(it).ok());
                digit.ok_or_else(|| Error::invalid("certificate hash: not hexadecimal"))
            })
            .collect::<Result<_>>()?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| (high << 4) | low).collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(hash) if rest.is_empty() => Ok(Self(hash)),
            _ => Err(Error::invalid("certificate hash: not 64 digits")),
        }
    }
}

/// Why a server's certificate was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is no longer valid.
    Expired,
    /// It is not valid yet, or one of the two clocks is wrong.
    NotYetValid,
    /// It is another name's.
    WrongName,
    /// None of the authorities that are believed vouches for it.
    UnknownAuthority,
    /// It is not the one that was pinned.
    NotPinned {
        /// The one that was shown.
        shown: CertificateHash,
    },
    /// Something else: its purpose, its signature, its form.
    Other,
}

impl CertificateProblem {
    /// What an error of a connection says about the certificate, if that was the reason.
    pub fn of(error: &Error) -> Option<Self> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = next {
            // What TLS says travels inside of an error of the connection, which hides it from `source`.
            let inner = cause
                .downcast_ref::<std::io::Error>()
                .and_then(|it| it.get_ref())
                .and_then(|it| it.downcast_ref::<rustls::Error>());
            if let Some(rustls::Error::InvalidCertificate(problem)) =
                inner.or_else(|| cause.downcast_ref())
            {
                return Some(Self::from(problem));
            }
            next = cause.source();
        }
        None
    }
}

impl From<&CertificateError> for CertificateProblem {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::Other(OtherError(other)) => match other.downcast_ref::<NotPinned>() {
                Some(NotPinned(shown)) => Self::NotPinned { shown: *shown },
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The certificate that was shown is not the pinned one.
#[derive(Debug)]
struct NotPinned(CertificateHash);

impl std::fmt::Display for NotPinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it is {}, and another one is pinned", self.0)
    }
}

impl std::error::Error for NotPinned {}

/// Which servers a client believes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Those that an authority of the operating system vouches for, by name.
    SystemRoots,
    /// Those that one of these authorities (PEM) vouches for, by name.
    Authorities(Vec<u8>),
    /// The one that shows this certificate, whatever it says.
    Pinned(CertificateHash),
}

/// A certificate and its key.
#[derive(Clone)]
pub struct TlsIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
}

impl TlsIdentity {
    /// From PEM texts: the chain, its own certificate first, and the private key.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when there is no certificate or no key in them.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|cause| {
            Error::new(ErrorKind::Invalid, "private key in PEM").caused_by(cause.to_string())
        })?;
        Ok(Self {
            chain,
            key: Zeroizing::new(key.secret_der().to_vec()),
        })
    }

    /// The certificate itself, DER.
    pub fn certificate(&self) -> &[u8] {
        self.chain.first().map_or(&[], |first| first.as_ref())
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.key.to_vec())
            .map_err(|cause| Error::new(ErrorKind::Invalid, "private key").caused_by(cause))
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("certificate", &CertificateHash::of(self.certificate()))
            .finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |cause: rustls::pki_types::pem::Error| {
        Error::new(ErrorKind::Invalid, "certificates in PEM").caused_by(cause.to_string())
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(bad)?;
    if found.is_empty() {
        return Err(Error::invalid("certificates in PEM: there is none"));
    }
    Ok(found)
}

fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|cause| {
            Error::new(ErrorKind::Invalid, "certificate of an authority").caused_by(cause)
        })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Error::invalid("the operating system has no authorities"));
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn bad_tls(cause: rustls::Error) -> Error {
    Error::new(ErrorKind::Invalid, "settings of TLS").caused_by(cause)
}

/// What a client needs to connect.
pub(super) fn client_config(
    trust: &Trust,
    identity: Option<&TlsIdentity>,
) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let versions: &[&rustls::SupportedProtocolVersion] = match identity {
        Some(_) => &[&rustls::version::TLS12],
        None => rustls::DEFAULT_VERSIONS,
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(bad_tls)?;
    let builder = match trust {
        Trust::SystemRoots => builder.with_root_certificates(system_roots()?),
        Trust::Authorities(pem) => builder.with_root_certificates(roots(pem)?),
        Trust::Pinned(hash) => {
            let verifier = PinnedVerifier {
                hash: *hash,
                provider,
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key()?)
            .map_err(bad_tls)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// What a server needs to accept. Client certificates are asked for where there is an authority (PEM) that vouches for them.
pub(super) fn server_config(
    identity: &TlsIdentity,
    client_authorities: Option<&[u8]>,
) -> Result<Arc<ServerConfig>> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(bad_tls)?;
    let builder = match client_authorities {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(roots(pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|cause| {
                    Error::new(ErrorKind::Invalid, "authorities of clients").caused_by(cause)
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(identity.chain.clone(), identity.key()?)
        .map_err(bad_tls)?;
    Ok(Arc::new(config))
}

/// Believes one certificate, and that its owner is at the other end.
#[derive(Debug)]
struct PinnedVerifier {
    hash: CertificateHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let shown = CertificateHash::of(end_entity);
        if shown == self.hash {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(NotPinned(shown)))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
