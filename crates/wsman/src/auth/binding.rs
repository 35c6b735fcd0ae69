//! What ties a login to the TLS channel below it: the hash of the server's certificate (RFC 5929, `tls-server-end-point`).
//!
//! Somebody between the two who ends TLS himself has another certificate, and the login that is bound to his does not fit
//! the server's. `CbtHardeningLevel` of WinRM says whether a server insists.

use md5::{Digest, Md5};
use sha2::{Sha256, Sha384, Sha512};

use super::der::{self, DerReader};
use crate::Result;

const PREFIX: &[u8] = b"tls-server-end-point:";

/// Channel bindings of one TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelBinding {
    application_data: Vec<u8>,
}

impl ChannelBinding {
    /// The binding to a server that shows this certificate (DER).
    ///
    /// The hash is the one that the certificate is signed with; SHA-256 where that is MD5 or SHA-1, or says none (RFC 5929 4.1).
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when it is no certificate.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self> {
        let hash = match signature_hash(certificate)? {
            SignatureHash::Sha256 => Sha256::digest(certificate).to_vec(),
            SignatureHash::Sha384 => Sha384::digest(certificate).to_vec(),
            SignatureHash::Sha512 => Sha512::digest(certificate).to_vec(),
        };
        let mut application_data = PREFIX.to_vec();
        application_data.extend_from_slice(&hash);
        Ok(Self { application_data })
    }

    /// The octets that GSS-API takes as application data.
    pub fn application_data(&self) -> &[u8] {
        &self.application_data
    }

    /// MD5 over `gss_channel_bindings_struct` (no addresses), as NTLM carries it (MS-NLMP 2.2.2.1, RFC 4121 4.1.1.2).
    pub(super) fn ntlm_hash(&self) -> [u8; 16] {
        let mut hash = Md5::new();
        hash.update([0; 16]);
        let length = u32::try_from(self.application_data.len()).unwrap_or(u32::MAX);
        hash.update(length.to_le_bytes());
        hash.update(&self.application_data);
        hash.finalize().into()
    }
}

enum SignatureHash {
    Sha256,
    Sha384,
    Sha512,
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, … }, signature }`.
fn signature_hash(certificate: &[u8]) -> Result<SignatureHash> {
    const PKCS1_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c];
    const PKCS1_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
    const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
    const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
    let what = "certificate";
    let mut reader = DerReader::new(DerReader::new(certificate).expect(der::SEQUENCE, what)?);
    reader.expect(der::SEQUENCE, what)?;
    let mut algorithm = DerReader::new(reader.expect(der::SEQUENCE, what)?);
    Ok(match algorithm.expect(der::OID, what)? {
        PKCS1_SHA384 | ECDSA_SHA384 => SignatureHash::Sha384,
        PKCS1_SHA512 | ECDSA_SHA512 => SignatureHash::Sha512,
        _ => SignatureHash::Sha256,
    })
}
