//! Keys and the few operations on them: derivation (BLAKE3), authenticated encryption (AES-256-GCM, ring).
//!
//! **Invariant.** A key is never printed. Every AEAD key is derived for one object, so that a nonce that counts from
//! zero is never used twice with it.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::format::TAG_BYTES;
use crate::{Error, ErrorKind, Random, Result};

/// Thirty-two secret bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretKey([u8; 32]);

impl SecretKey {
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn generate(random: &dyn Random) -> Result<Self> {
        let mut bytes = [0; 32];
        random.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// Derives a key: BLAKE3 derive-key of `context` over the parts, which have fixed lengths per context.
pub(crate) fn derive(context: &str, parts: &[&[u8]]) -> SecretKey {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    SecretKey(*hasher.finalize().as_bytes())
}

/// The first sixteen bytes of a derivation: for ids.
pub(crate) fn derive_id(context: &str, parts: &[&[u8]]) -> [u8; 16] {
    first_half(derive(context, parts).bytes())
}

/// The first sixteen of thirty-two bytes.
pub(crate) fn first_half(bytes: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(bytes) {
        *to = *from;
    }
    half
}

/// A key made ready for encryption.
pub(crate) struct AeadKey(LessSafeKey);

impl AeadKey {
    pub(crate) fn new(key: &SecretKey) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key.bytes())
            .map_err(|_| Error::new(ErrorKind::Local, "the cipher refused its key"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Encrypts in place and gives the tag.
    pub(crate) fn seal_in_place(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_BYTES]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
            .map_err(|_| Error::new(ErrorKind::Invalid, "too long to be encrypted"))?;
        tag.as_ref()
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Local, "the cipher gave a tag of another length"))
    }

    /// Decrypts text and tag in place; the length of the text, or `None` when it is not authentic.
    pub(crate) fn open_in_place(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text_and_tag: &mut [u8],
    ) -> Option<usize> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0
            .open_in_place(nonce, Aad::from(aad), text_and_tag)
            .ok()
            .map(|text| text.len())
    }
}
