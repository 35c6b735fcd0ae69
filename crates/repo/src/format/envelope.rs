//! The frame around every small object: a flip, a cut or a swap is seen even by a site without keys.
//!
//! ```text
//!   0   magic "HIKAEOBJ"                       8
//!   8   format version                         2
//!   10  kind                                   1   see ObjectKind
//!   11  cipher                                 1   0 plain, 1 AES-256-GCM
//!   12  length of the text that follows        4   without the tag
//!   16  key id                                16   zeros when plain
//!   32  salt                                  32   random; zeros when plain
//!   64  reserved, zeros                       16
//!   80  text (ciphertext when encrypted)       length
//!       tag                                   16   only when encrypted
//!       checksum                              32   BLAKE3 derive-key "hikae v1 object checksum" over
//!                                                  name length u32 ‖ name ‖ everything before
//! ```
//!
//! The key is derived from the key that the id names and the salt, so that it encrypts this object alone and the nonce
//! can be zeros. Associated data: the 80 header bytes ‖ the object's name.
//!
//! **Invariant.** What [`open`] returns was written under exactly this name and as exactly this kind.

use store::ObjectName;

use super::cursor::Cursor;
use super::{
    CHECKSUM_BYTES, Cipher, ENVELOPE_HEADER_BYTES, ENVELOPE_MAGIC, FORMAT_VERSION,
    MAX_ENVELOPE_TEXT_BYTES, ObjectKind, TAG_BYTES, context,
};
use crate::crypto::{self, SecretKey};
use crate::{Error, ErrorKind, KeyId, Random, Result};

/// Longest object that can be an envelope.
pub(crate) const MAX_ENVELOPE_BYTES: usize =
    MAX_ENVELOPE_TEXT_BYTES.saturating_add(ENVELOPE_HEADER_BYTES + TAG_BYTES + CHECKSUM_BYTES);

/// What to encrypt with.
pub(crate) enum SealKey<'a> {
    Plain,
    Key { id: KeyId, key: &'a SecretKey },
}

/// What an envelope says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EnvelopeHeader {
    pub(crate) kind: ObjectKind,
    pub(crate) cipher: Cipher,
    pub(crate) key_id: KeyId,
    pub(crate) salt: [u8; 32],
}

fn object_key(key: &SecretKey, salt: &[u8; 32]) -> SecretKey {
    crypto::derive(context::OBJECT_KEY, &[key.bytes(), salt])
}

fn checksum(name: &ObjectName, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(context::OBJECT_CHECKSUM);
    let text = name.as_str().as_bytes();
    hasher.update(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    hasher.update(text);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

/// Wraps `text` so that it can only be read back as this kind under this name.
pub(crate) fn seal(
    name: &ObjectName,
    kind: ObjectKind,
    key: &SealKey<'_>,
    random: &dyn Random,
    text: &[u8],
) -> Result<Vec<u8>> {
    let length = match u32::try_from(text.len()) {
        Ok(length) if text.len() <= MAX_ENVELOPE_TEXT_BYTES => length,
        _ => {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{name}: too long to be written"),
            ));
        }
    };
    let mut salt = [0u8; 32];
    let (cipher, key_id) = match key {
        SealKey::Plain => (Cipher::Plain, KeyId::PLAIN),
        SealKey::Key { id, .. } => {
            random.fill(&mut salt)?;
            (Cipher::Aes256Gcm, *id)
        }
    };
    let mut bytes = Vec::with_capacity(
        ENVELOPE_HEADER_BYTES
            .saturating_add(text.len())
            .saturating_add(TAG_BYTES + CHECKSUM_BYTES),
    );
    bytes.extend_from_slice(&ENVELOPE_MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[kind.byte(), cipher.byte()]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(key_id.as_bytes());
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(&[0; 16]);
    let aad = [bytes.as_slice(), name.as_str().as_bytes()].concat();
    bytes.extend_from_slice(text);
    if let SealKey::Key { key, .. } = key {
        let sealing = crypto::AeadKey::new(&object_key(key, &salt))?;
        let (_, body) = bytes.split_at_mut(ENVELOPE_HEADER_BYTES);
        let tag = sealing.seal_in_place([0; 12], &aad, body)?;
        bytes.extend_from_slice(&tag);
    }
    let sum = checksum(name, &bytes);
    bytes.extend_from_slice(&sum);
    Ok(bytes)
}

/// Everything that can be checked without a key; gives the header and the text with its tag.
pub(crate) fn check<'a>(name: &ObjectName, bytes: &'a [u8]) -> Result<(EnvelopeHeader, &'a [u8])> {
    let corrupt = |what: &str| Error::corrupt(name, what);
    let (body, sum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or_else(|| corrupt("shorter than a checksum"))?;
    let mut cursor = Cursor::new(body);
    let short = || corrupt("shorter than its header");
    if cursor.array::<8>().ok_or_else(short)? != ENVELOPE_MAGIC {
        return Err(corrupt("not an object of a repository"));
    }
    if checksum(name, body) != *sum {
        return Err(corrupt(
            "its checksum does not fit its bytes under this name",
        ));
    }
    let version = cursor.u16().ok_or_else(short)?;
    if version != FORMAT_VERSION {
        let what = format!("{name}: format version {version}, this program reads {FORMAT_VERSION}");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let kind = cursor.u8().ok_or_else(short)?;
    let kind = ObjectKind::from_byte(kind).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("{name}: unknown object kind {kind}"),
        )
    })?;
    let cipher = cursor.u8().ok_or_else(short)?;
    let cipher = Cipher::from_byte(cipher).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("{name}: unknown cipher {cipher}"),
        )
    })?;
    let length = cursor.u32().ok_or_else(short)?;
    let key_id = KeyId::from_bytes(cursor.array().ok_or_else(short)?);
    let salt = cursor.array().ok_or_else(short)?;
    cursor.array::<16>().ok_or_else(short)?;
    let wanted = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(cipher.overhead_bytes()))
        .ok_or_else(|| corrupt("its length overflows"))?;
    if cursor.rest().len() != wanted {
        return Err(corrupt("its length is not what its header says"));
    }
    Ok((
        EnvelopeHeader {
            kind,
            cipher,
            key_id,
            salt,
        },
        cursor.rest(),
    ))
}

/// Checks and decrypts; `find_key` gives the key of an id.
pub(crate) fn open(
    name: &ObjectName,
    bytes: &[u8],
    find_key: &dyn Fn(KeyId) -> Option<SecretKey>,
) -> Result<(EnvelopeHeader, Vec<u8>)> {
    let (header, body) = check(name, bytes)?;
    if header.cipher == Cipher::Plain {
        return Ok((header, body.to_vec()));
    }
    let key = find_key(header.key_id).ok_or_else(|| {
        let what = format!(
            "{name}: encrypted with key {}, which is not here",
            header.key_id
        );
        Error::new(ErrorKind::WrongKey, what)
    })?;
    let (head, _) = bytes
        .split_at_checked(ENVELOPE_HEADER_BYTES)
        .ok_or_else(|| Error::corrupt(name, "shorter than its header"))?;
    let aad = [head, name.as_str().as_bytes()].concat();
    let opening = crypto::AeadKey::new(&object_key(&key, &header.salt))?;
    let mut text = body.to_vec();
    let length = opening
        .open_in_place([0; 12], &aad, &mut text)
        .ok_or_else(|| Error::corrupt(name, "its contents were not written with this key"))?;
    text.truncate(length);
    Ok((header, text))
}
