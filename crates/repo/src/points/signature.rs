//! Who vouches for a point: an Ed25519 key of the writer, certified by the repository's root signing key.
//!
//! ```text
//!   keyring: signing seed ──► root key ──certifies──► writer key (drawn when the repository is opened)
//!   config: root public key                              └── signs: "hikae v1 point" ‖ 0 ‖ body
//!   certificate = root signature over "hikae v1 writer" ‖ 0 ‖ writer public key
//! ```

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::crypto::SecretKey;
use crate::ids::{hex, unhex};
use crate::{Error, ErrorKind, Random, Result};

const POINT_PREFIX: &[u8] = b"hikae v1 point\0";
const WRITER_PREFIX: &[u8] = b"hikae v1 writer\0";

/// A signature with what is needed to check it against the root key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointSignature {
    /// The writer's public key, 64 hexadecimal digits.
    pub writer: String,
    /// The root key's signature over it, 128 digits.
    pub certificate: String,
    /// The writer's signature over the body, 128 digits.
    pub signature: String,
}

/// What is known of a point's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SignatureState {
    /// The repository is not encrypted: nothing is signed.
    #[default]
    Absent,
    /// Signed by a writer that the root key certifies.
    Good,
}

/// Signs points for as long as a repository is open.
pub(crate) struct Signer {
    writer: Ed25519KeyPair,
    certificate: String,
}

fn key_pair(seed: &SecretKey) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(seed.bytes())
        .map_err(|_| Error::new(ErrorKind::Local, "the signing key was refused"))
}

/// The public key of a root seed, as it stands in the configuration.
pub(crate) fn root_public_key(seed: &SecretKey) -> Result<String> {
    Ok(hex(key_pair(seed)?.public_key().as_ref()))
}

impl Signer {
    pub(crate) fn new(root_seed: &SecretKey, random: &dyn Random) -> Result<Self> {
        let writer = key_pair(&SecretKey::generate(random)?)?;
        let certified = [WRITER_PREFIX, writer.public_key().as_ref()].concat();
        let certificate = hex(key_pair(root_seed)?.sign(&certified).as_ref());
        Ok(Self {
            writer,
            certificate,
        })
    }

    pub(crate) fn sign(&self, body: &str) -> PointSignature {
        let message = [POINT_PREFIX, body.as_bytes()].concat();
        PointSignature {
            writer: hex(self.writer.public_key().as_ref()),
            certificate: self.certificate.clone(),
            signature: hex(self.writer.sign(&message).as_ref()),
        }
    }
}

/// Whether a body was signed by a writer that this root key certifies.
pub(crate) fn verify_signature(
    root_public_key: &str,
    body: &str,
    signature: &PointSignature,
) -> bool {
    let parts = (
        unhex::<32>(root_public_key),
        unhex::<32>(&signature.writer),
        unhex::<64>(&signature.certificate),
        unhex::<64>(&signature.signature),
    );
    let (Some(root), Some(writer), Some(certificate), Some(signed)) = parts else {
        return false;
    };
    let certified = [WRITER_PREFIX, &writer].concat();
    let message = [POINT_PREFIX, body.as_bytes()].concat();
    UnparsedPublicKey::new(&ED25519, root)
        .verify(&certified, &certificate)
        .is_ok()
        && UnparsedPublicKey::new(&ED25519, writer)
            .verify(&message, &signed)
            .is_ok()
}
