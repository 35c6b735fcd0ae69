//! Keys from passphrases: hashes, PBKDF2, Argon2, and the splitter that makes key material hard to leave behind.
//!
//! ```text
//!   passphrase ─► PBKDF2 or Argon2 (slow on purpose) ─► key of the slot ─► split key, decrypted ─► merged: the volume key
//! ```
//!
//! **Bounds.** How slow is what the header says, and a header may lie. One derivation takes at most 1 GiB of memory
//! (the most that cryptsetup chooses by itself) and 64 million steps, all of a volume together 256 million: a
//! step is one round of PBKDF2 for one block of output, or half a block of Argon2, which is about half a microsecond.
//! A header that asks for more gets [`crate::ErrorKind::Limit`].
//!
//! Sources: RFC 8018 (PBKDF2), RFC 9106 (Argon2), the LUKS on-disk formats (AF splitter).

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use argon2::{Algorithm, Argon2, Block, Params, Version};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use whirlpool::Whirlpool;
use zeroize::Zeroizing;

use super::Secret;
use crate::{Error, ErrorKind, Result, field};

const ONE_STEPS_MAX: u64 = 64 << 20;
const ALL_STEPS_MAX: u64 = 256 << 20;
const ARGON2_KIB_MAX: u32 = 1 << 20;
/// Longest key of a slot.
pub(super) const SLOT_KEY_BYTES_MAX: usize = 256;
const STRIPES_MAX: usize = 1 << 16;

/// How many steps are left for a volume.
pub(super) struct Effort {
    steps_left: u64,
}

impl Effort {
    /// For one volume.
    pub(super) fn new() -> Self {
        Self {
            steps_left: ALL_STEPS_MAX,
        }
    }

    fn take(&mut self, steps: u64) -> Result<()> {
        let too_much = || {
            Error::new(
                ErrorKind::Limit,
                format!("the header asks for {steps} steps to derive a key"),
            )
        };
        if steps > ONE_STEPS_MAX {
            return Err(too_much());
        }
        self.steps_left = self.steps_left.checked_sub(steps).ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                "the key slots ask for more steps than one volume gets: give fewer keys at once",
            )
        })?;
        Ok(())
    }
}

/// A hash function by its name in Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digester {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Whirlpool,
}

/// Does the same with whichever function it is.
macro_rules! with_digest {
    ($which:expr, $type:ident => $body:expr) => {
        match $which {
            Digester::Sha1 => {
                type $type = Sha1;
                $body
            }
            Digester::Sha224 => {
                type $type = Sha224;
                $body
            }
            Digester::Sha256 => {
                type $type = Sha256;
                $body
            }
            Digester::Sha384 => {
                type $type = Sha384;
                $body
            }
            Digester::Sha512 => {
                type $type = Sha512;
                $body
            }
            Digester::Ripemd160 => {
                type $type = Ripemd160;
                $body
            }
            Digester::Whirlpool => {
                type $type = Whirlpool;
                $body
            }
        }
    };
}

impl Digester {
    /// By its name.
    pub(super) fn of(name: &str) -> Result<Self> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "ripemd160" | "rmd160" => Self::Ripemd160,
            "whirlpool" => Self::Whirlpool,
            _ => {
                let name: String = name.chars().take(32).collect();
                return Err(Error::unsupported(format!(
                    "the hash function {name} is not read"
                )));
            }
        })
    }

    /// The hash of parts, one behind the other.
    pub(super) fn digest(self, parts: &[&[u8]]) -> Secret {
        with_digest!(self, Kind => {
            let mut hasher = Kind::new();
            for part in parts {
                hasher.update(part);
            }
            Zeroizing::new(hasher.finalize().to_vec())
        })
    }

    fn output_bytes(self) -> usize {
        with_digest!(self, Kind => <Kind as Digest>::output_size())
    }
}

/// How a key is derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Derivation {
    Pbkdf2 {
        hash: String,
        iterations: u32,
        salt: Vec<u8>,
    },
    Argon2 {
        kind: String,
        time: u32,
        memory_kib: u32,
        lanes: u32,
        salt: Vec<u8>,
    },
}

/// Derives `length` bytes.
pub(super) fn derive(
    how: &Derivation,
    secret: &[u8],
    length: usize,
    effort: &mut Effort,
) -> Result<Secret> {
    if length == 0 || length > SLOT_KEY_BYTES_MAX {
        return Err(Error::corrupt(format!("a derived key of {length} bytes")));
    }
    let mut key = Zeroizing::new(vec![0; length]);
    match how {
        Derivation::Pbkdf2 {
            hash,
            iterations,
            salt,
        } => pbkdf2(hash, *iterations, salt, secret, &mut key, effort)?,
        Derivation::Argon2 {
            kind,
            time,
            memory_kib,
            lanes,
            salt,
        } => {
            let algorithm = match kind.as_str() {
                "argon2i" => Algorithm::Argon2i,
                "argon2id" => Algorithm::Argon2id,
                other => {
                    let other: String = other.chars().take(32).collect();
                    return Err(Error::unsupported(format!("keys by {other}")));
                }
            };
            let asked = Params::new(*memory_kib, *time, *lanes, Some(length));
            let params = asked.map_err(|error| {
                Error::corrupt("the costs of Argon2").caused_by(error.to_string())
            })?;
            argon2(algorithm, params, salt, secret, &mut key, effort)?;
        }
    }
    Ok(key)
}

fn pbkdf2(
    hash: &str,
    iterations: u32,
    salt: &[u8],
    secret: &[u8],
    key: &mut [u8],
    effort: &mut Effort,
) -> Result<()> {
    let hash = Digester::of(hash)?;
    if iterations == 0 {
        return Err(Error::corrupt("a key derived in no rounds"));
    }
    let blocks = key.len().div_ceil(hash.output_bytes().max(1));
    effort.take(u64::from(iterations).saturating_mul(field::bytes(blocks)))?;
    let iterations = if cfg!(fuzzing) { 1 } else { iterations };
    with_digest!(hash, Kind => ::pbkdf2::pbkdf2_hmac::<Kind>(secret, salt, iterations, key));
    Ok(())
}

fn argon2(
    algorithm: Algorithm,
    params: Params,
    salt: &[u8],
    secret: &[u8],
    key: &mut [u8],
    effort: &mut Effort,
) -> Result<()> {
    if params.m_cost() > ARGON2_KIB_MAX {
        return Err(Error::new(
            ErrorKind::Limit,
            format!(
                "the header asks for {} MiB of memory to derive a key; at most {} are given",
                params.m_cost() >> 10,
                ARGON2_KIB_MAX >> 10
            ),
        ));
    }
    let blocks = params.block_count();
    let steps = field::bytes(blocks)
        .saturating_mul(u64::from(params.t_cost()))
        .saturating_mul(2);
    effort.take(steps)?;
    if cfg!(fuzzing) {
        return Ok(());
    }
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(blocks).map_err(|error| {
        let what = format!("{blocks} KiB of memory to derive a key");
        Error::new(ErrorKind::Limit, what).caused_by(error)
    })?;
    memory.resize(blocks, Block::default());
    Argon2::new(algorithm, Version::V0x13, params)
        .hash_password_into_with_memory(secret, salt, key, &mut memory)
        .map_err(|error| Error::corrupt("the costs of Argon2").caused_by(error.to_string()))
}

/// How many bytes a key takes when it is split, if that is allowed at all.
pub(super) fn split_bytes(key_bytes: usize, stripes: usize) -> Result<usize> {
    let is_sound =
        (1..=SLOT_KEY_BYTES_MAX).contains(&key_bytes) && (1..=STRIPES_MAX).contains(&stripes);
    key_bytes
        .checked_mul(stripes)
        .filter(|_| is_sound)
        .ok_or_else(|| Error::corrupt(format!("a key of {key_bytes} bytes in {stripes} stripes")))
}

/// Merges a key that was split for forensic safety.
pub(super) fn merge(split: &[u8], key_bytes: usize, hash: Digester) -> Secret {
    let mut key = Zeroizing::new(vec![0_u8; key_bytes]);
    let mut stripes = split.chunks_exact(key_bytes.max(1)).peekable();
    while let Some(stripe) = stripes.next() {
        for (byte, other) in key.iter_mut().zip(stripe) {
            *byte ^= other;
        }
        if stripes.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Replaces each piece as long as a hash by the hash of its number and itself.
fn diffuse(key: &mut [u8], hash: Digester) {
    for (number, piece) in (0_u32..).zip(key.chunks_mut(hash.output_bytes().max(1))) {
        let digest = hash.digest(&[&number.to_be_bytes(), piece]);
        for (byte, new) in piece.iter_mut().zip(digest.iter()) {
            *byte = *new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_beyond_the_bounds_are_refused_before_anything_is_done() {
        let argon = |memory_kib, time| Derivation::Argon2 {
            kind: "argon2id".to_owned(),
            time,
            memory_kib,
            lanes: 4,
            salt: vec![1; 32],
        };
        let rounds = |iterations| Derivation::Pbkdf2 {
            hash: "sha1".to_owned(),
            iterations,
            salt: vec![1; 32],
        };
        for how in [
            argon(4 << 20, 1),
            argon(1 << 20, 40),
            rounds(u32::MAX),
            rounds(17 << 20),
        ] {
            let error = derive(&how, b"x", 64, &mut Effort::new()).expect_err("too much");
            assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        }
        for how in [argon(1, 1), argon(u32::MAX, 0), rounds(0)] {
            let error = derive(&how, b"x", 64, &mut Effort::new()).expect_err("nonsense");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let mut effort = Effort::new();
        for _ in 0..4 {
            effort.take(ONE_STEPS_MAX).expect("four times");
        }
        assert_eq!(
            effort.take(1).expect_err("used up").kind(),
            ErrorKind::Limit
        );
    }
}
