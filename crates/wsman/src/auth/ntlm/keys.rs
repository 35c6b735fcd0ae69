//! What NTLMv2 computes from passwords and challenges (MS-NLMP 3.3.2, 3.4.5).

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};
use zeroize::Zeroizing;

use crate::auth::NtHash;
use crate::auth::secret::utf16;

/// A key of sixteen bytes.
pub(super) type Key = Zeroizing<[u8; 16]>;

pub(super) fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = mac(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

pub(super) fn is_hmac_md5(key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    let mut mac = mac(key);
    for part in parts {
        mac.update(part);
    }
    mac.verify_truncated_left(expected).is_ok()
}

fn mac(key: &[u8]) -> Hmac<Md5> {
    Hmac::<Md5>::new_from_slice(key).expect("HMAC takes keys of every length")
}

/// NTOWFv2: what stands for a password from here on.
pub(super) fn response_key(hash: &NtHash, user: &str, domain: &str) -> Key {
    let user = utf16(&user.to_uppercase());
    Zeroizing::new(hmac_md5(hash.expose(), &[&user, &utf16(domain)]))
}

/// RC4 in one go.
pub(super) fn rc4(key: &[u8; 16], data: &mut [u8]) {
    cipher(key).apply_keystream(data);
}

pub(super) fn cipher(key: &[u8; 16]) -> Rc4 {
    Rc4::new_from_slice(key).expect("RC4 takes keys of 16 bytes")
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToServer,
    ToClient,
}

pub(super) fn sign_key(session: &[u8; 16], direction: Direction) -> Key {
    derived(
        session,
        match direction {
            Direction::ToServer => b"session key to client-to-server signing key magic constant\0",
            Direction::ToClient => b"session key to server-to-client signing key magic constant\0",
        },
    )
}

/// For 128 bits, the only strength that is taken.
pub(super) fn seal_key(session: &[u8; 16], direction: Direction) -> Key {
    derived(
        session,
        match direction {
            Direction::ToServer => b"session key to client-to-server sealing key magic constant\0",
            Direction::ToClient => b"session key to server-to-client sealing key magic constant\0",
        },
    )
}

fn derived(session: &[u8; 16], constant: &[u8]) -> Key {
    let mut hash = Md5::new();
    hash.update(session);
    hash.update(constant);
    Zeroizing::new(hash.finalize().into())
}
