//! Sectors decrypted: block ciphers under the modes and initial vectors that Linux and Windows use for disks.
//!
//! ```text
//!   "aes-xts-plain64"        cipher ─ mode ─ initial vector from the number of the sector
//!   "aes-cbc-essiv:sha256"                    └ encrypted with the hash of the key
//! ```
//!
//! The block ciphers are those of the RustCrypto project; a mode is a few lines over them, since the cipher is chosen
//! at run time and all blocks of a sector are to go through the processor at once.
//!
//! Sources: the kernel's documentation of dm-crypt; IEEE 1619 (XTS); N. Ferguson, "AES-CBC + Elephant diffuser" (2006).

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

use aes::cipher::consts::U16;
use aes::cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, InvalidLength, KeyInit,
};
use aes::{Aes128, Aes192, Aes256};
use serpent::Serpent;
use twofish::Twofish;

use super::derive::Digester;
use crate::{Error, Result};

/// Longest sector.
pub(super) const SECTOR_BYTES_MAX: usize = 4096;

type Unit = Array<u8, U16>;

/// A block cipher with its key.
trait Blocks: Send + Sync {
    fn decrypt(&self, units: &mut [Unit]);
    fn encrypt_one(&self, unit: &mut Unit);
}

impl<C> Blocks for C
where
    C: BlockCipherDecrypt + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn decrypt(&self, units: &mut [Unit]) {
        self.decrypt_blocks(units);
    }

    fn encrypt_one(&self, unit: &mut Unit) {
        self.encrypt_block(unit);
    }
}

/// The cipher of that name with this key.
fn blocks(name: &str, key: &[u8]) -> Result<Box<dyn Blocks>> {
    fn boxed<C>(made: std::result::Result<C, InvalidLength>) -> Option<Box<dyn Blocks>>
    where
        C: Blocks + 'static,
    {
        made.ok()
            .map(|cipher| -> Box<dyn Blocks> { Box::new(cipher) })
    }
    let made = match (name, key.len()) {
        ("aes", 16) => boxed(Aes128::new_from_slice(key)),
        ("aes", 24) => boxed(Aes192::new_from_slice(key)),
        ("aes", 32) => boxed(Aes256::new_from_slice(key)),
        ("serpent", 16 | 24 | 32) => boxed(Serpent::new_from_slice(key)),
        ("twofish", 16 | 24 | 32) => boxed(Twofish::new_from_slice(key)),
        ("aes" | "serpent" | "twofish", _) => None,
        _ => return Err(Error::unsupported(format!("the cipher {name} is not read"))),
    };
    made.ok_or_else(|| Error::corrupt(format!("{name} with a key of {} bytes", key.len())))
}

enum Mode {
    Ecb,
    Cbc,
    /// With the cipher of the tweak.
    Xts(Box<dyn Blocks>),
    /// CBC, then the diffuser of Windows Vista, with the cipher of its key.
    Elephant(Box<dyn Blocks>),
}

enum Vector {
    Null,
    Plain32,
    Plain64,
    Plain64Big,
    /// The number, encrypted.
    Encrypted(Box<dyn Blocks>),
}

/// What decrypts the sectors of one volume.
pub(super) struct SectorCipher {
    blocks: Box<dyn Blocks>,
    mode: Mode,
    vector: Vector,
}

impl SectorCipher {
    /// From the way in which Linux writes it: `aes-xts-plain64`, `aes-cbc-essiv:sha256`, `aes-ecb`.
    pub(super) fn of_linux(specification: &str, key: &[u8]) -> Result<Self> {
        let unknown = || Error::unsupported(format!("encryption with {specification} is not read"));
        if specification.len() > 64 || specification.starts_with("capi:") {
            return Err(unknown());
        }
        let mut parts = specification.splitn(3, '-');
        let name = parts.next().unwrap_or_default();
        // What the first versions wrote: only the vector, and CBC was meant.
        let (mode, vector) = match (parts.next(), parts.next()) {
            (Some(vector @ "plain"), None) => ("cbc", vector),
            (Some(mode), vector) => (mode, vector.unwrap_or_default()),
            (None, _) => return Err(unknown()),
        };
        let half = key.len().checked_div(2).unwrap_or(0);
        let (data_key, mode) = match mode {
            "ecb" => (key, Mode::Ecb),
            "cbc" => (key, Mode::Cbc),
            "xts" => {
                let (data_key, tweak_key) = key
                    .split_at_checked(half)
                    .filter(|(data_key, tweak_key)| data_key.len() == tweak_key.len())
                    .ok_or_else(|| Error::corrupt("a key of XTS in two uneven halves"))?;
                (data_key, Mode::Xts(blocks(name, tweak_key)?))
            }
            _ => return Err(unknown()),
        };
        let vector = match vector.split_once(':').unwrap_or((vector, "")) {
            ("plain", "") => Vector::Plain32,
            ("plain64", "") => Vector::Plain64,
            ("plain64be", "") => Vector::Plain64Big,
            ("null", "") => Vector::Null,
            ("", "") if matches!(mode, Mode::Ecb) => Vector::Null,
            ("essiv", hash) => {
                let salt = Digester::of(hash)?.digest(&[data_key]);
                Vector::Encrypted(blocks(name, &salt)?)
            }
            _ => return Err(unknown()),
        };
        Ok(Self {
            blocks: blocks(name, data_key)?,
            mode,
            vector,
        })
    }

    /// XTS as BitLocker has it: numbered by sectors.
    pub(super) fn bitlocker_xts(data_key: &[u8], tweak_key: &[u8]) -> Result<Self> {
        Ok(Self {
            blocks: blocks("aes", data_key)?,
            mode: Mode::Xts(blocks("aes", tweak_key)?),
            vector: Vector::Plain64,
        })
    }

    /// CBC as BitLocker has it: numbered by bytes, with or without the diffuser.
    pub(super) fn bitlocker_cbc(data_key: &[u8], diffuser_key: Option<&[u8]>) -> Result<Self> {
        let mode = match diffuser_key {
            Some(key) => Mode::Elephant(blocks("aes", key)?),
            None => Mode::Cbc,
        };
        Ok(Self {
            blocks: blocks("aes", data_key)?,
            mode,
            vector: Vector::Encrypted(blocks("aes", data_key)?),
        })
    }

    /// Decrypts one sector: a multiple of 16 bytes, at most [`SECTOR_BYTES_MAX`].
    pub(super) fn decrypt(&self, number: u64, sector: &mut [u8]) {
        match &self.mode {
            Mode::Ecb => self.blocks.decrypt(Array::slice_as_chunks_mut(sector).0),
            Mode::Cbc => self.decrypt_cbc(number, sector),
            Mode::Xts(tweaks) => self.decrypt_xts(&**tweaks, number, sector),
            Mode::Elephant(keys) => {
                self.decrypt_cbc(number, sector);
                elephant(&**keys, number, sector);
            }
        }
    }

    fn vector(&self, number: u64) -> Unit {
        let mut unit = Unit::default();
        match &self.vector {
            Vector::Null => {}
            Vector::Plain32 => unit = wide(u128::from(number & 0xFFFF_FFFF)),
            Vector::Plain64 => unit = wide(u128::from(number)),
            Vector::Plain64Big => unit = Array(u128::from(number).to_be_bytes()),
            Vector::Encrypted(keyed) => {
                unit = wide(u128::from(number));
                keyed.encrypt_one(&mut unit);
            }
        }
        unit
    }

    fn decrypt_cbc(&self, number: u64, sector: &mut [u8]) {
        let mut before = [Unit::default(); SECTOR_BYTES_MAX / 16];
        let units = Array::slice_as_chunks_mut(sector).0;
        let mut last = self.vector(number);
        for (unit, keep) in units.iter().zip(&mut before) {
            *keep = last;
            last = *unit;
        }
        self.blocks.decrypt(units);
        for (unit, keep) in units.iter_mut().zip(&before) {
            *unit = wide(narrow(unit) ^ narrow(keep));
        }
    }

    fn decrypt_xts(&self, tweaks: &dyn Blocks, number: u64, sector: &mut [u8]) {
        let mut first = self.vector(number);
        tweaks.encrypt_one(&mut first);
        let units = Array::slice_as_chunks_mut(sector).0;
        whiten(&first, units);
        self.blocks.decrypt(units);
        whiten(&first, units);
    }
}

fn wide(number: u128) -> Unit {
    Array(number.to_le_bytes())
}

fn narrow(unit: &Unit) -> u128 {
    u128::from_le_bytes(unit.0)
}

/// Adds the tweaks, each the one before times x in the field of 2^128 elements.
fn whiten(first: &Unit, units: &mut [Unit]) {
    let mut tweak = narrow(first);
    for unit in units {
        *unit = wide(narrow(unit) ^ tweak);
        let carry = if tweak >> 127 == 1 { 0x87 } else { 0 };
        tweak = (tweak << 1) ^ carry;
    }
}

/// Takes the diffuser of BitLocker back: B, then A, then the key of the sector.
fn elephant(keys: &dyn Blocks, number: u64, sector: &mut [u8]) {
    let mut words: Vec<u32> = sector
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect();
    for _ in 0..3 {
        diffuse(&mut words, [0, 10, 0, 25], |at, distance, count| {
            at.saturating_add(distance).checked_rem(count)
        });
    }
    for _ in 0..5 {
        diffuse(&mut words, [9, 0, 13, 0], |at, distance, count| {
            at.saturating_add(count)
                .saturating_sub(distance)
                .checked_rem(count)
        });
    }
    let mut low = wide(u128::from(number));
    let mut high = wide(u128::from(number) | 0x80 << 120);
    keys.encrypt_one(&mut low);
    keys.encrypt_one(&mut high);
    let key: Vec<u32> = [low, high]
        .iter()
        .flat_map(|unit| unit.as_chunks::<4>().0)
        .map(|word| u32::from_le_bytes(*word))
        .collect();
    let places = sector.as_chunks_mut::<4>().0;
    for ((place, word), key) in places.iter_mut().zip(&words).zip(key.iter().cycle()) {
        *place = (word ^ key).to_le_bytes();
    }
}

/// One round: each word gets the word two away, mixed with the one five away.
fn diffuse(
    words: &mut [u32],
    turns: [u32; 4],
    place: impl Fn(usize, usize, usize) -> Option<usize>,
) {
    let count = words.len();
    for (at, turn) in (0..count).zip(turns.into_iter().cycle()) {
        let other = |distance| {
            place(at, distance, count)
                .and_then(|from| words.get(from))
                .copied()
                .unwrap_or(0)
        };
        let mixed = other(2) ^ other(5).rotate_left(turn);
        if let Some(word) = words.get_mut(at) {
            *word = word.wrapping_add(mixed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).expect("hex"))
            .collect()
    }

    #[test]
    fn xts_is_as_the_standard_says() {
        // IEEE 1619-2007, vectors 1 and 2.
        let cipher = SectorCipher::of_linux("aes-xts-plain64", &[0; 32]).expect("known");
        let mut sector = hex("917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e");
        cipher.decrypt(0, &mut sector);
        assert_eq!(sector, [0; 32]);
        let mut key = [0x11; 32];
        key[16..].fill(0x22);
        let cipher = SectorCipher::of_linux("aes-xts-plain64", &key).expect("known");
        let mut sector = hex("c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0");
        cipher.decrypt(0x33_3333_3333, &mut sector);
        assert_eq!(sector, [0x44; 32]);
    }

    #[test]
    fn serpent_counts_its_bytes_as_linux_does() {
        // From the kernel's own tests: a key and a block of 0, 1, 2…
        let key: Vec<u8> = (0..16).collect();
        let cipher = SectorCipher::of_linux("serpent-ecb", &key).expect("known");
        let mut block = hex("4c7d8a328072a22c823e4a1f3acda16d");
        cipher.decrypt(0, &mut block);
        assert_eq!(block, key);
    }

    #[test]
    fn what_is_not_read_is_named() {
        for (text, key_bytes) in [
            ("aes-lrw-benbi", 32),
            ("aes-gcm-random", 32),
            ("xchacha12,aes-adiantum-plain64", 32),
            ("capi:xts(aes)-plain64", 64),
            ("camellia-xts-plain64", 64),
            ("aes-xts-random", 64),
            ("aes-cbc-essiv:md5", 32),
            ("aes", 32),
            ("", 32),
        ] {
            let error = SectorCipher::of_linux(text, &vec![0; key_bytes])
                .err()
                .expect("not read");
            assert_eq!(
                error.kind(),
                crate::ErrorKind::Unsupported,
                "{text}: {error}"
            );
        }
        for (text, key_bytes) in [
            ("aes-xts-plain64", 33),
            ("aes-xts-plain64", 16),
            ("aes-ecb", 5),
        ] {
            let error = SectorCipher::of_linux(text, &vec![0; key_bytes])
                .err()
                .expect("no such key");
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "{text}: {error}");
        }
    }
}
