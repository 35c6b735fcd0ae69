//! The header of LUKS 2: two copies of a block of fields and a text in JSON, each with a checksum.
//!
//! ```text
//!   0          "LUKS\xBA\xBE"  version 2  length  sequence number … name of the hash [72]  id [168]  checksum [448]
//!   4096       JSON: keyslots, digests, segments, tokens, config
//!   length     "SKUL\xBA\xBE" …: the second copy
//! ```
//!
//! Of the copies whose checksum fits, the one with the higher sequence number counts. The text is at most 4 MiB, and it
//! is read into what is needed of it only; at most 64 entries of a kind.

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

use std::fmt;
use std::marker::PhantomData;

use base64ct::{Base64, Encoding};
use block::ReadAt;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::{Derivation, Header, KeyDigest, KeySlot, Segment};
use crate::encrypted::derive::Digester;
use crate::volume::pieces::read_head;
use crate::{Error, ErrorKind, Result, field};

const FIELDS_BYTES: usize = 4096;
/// The lengths that the format allows, which are also where second copies may lie.
const LENGTHS: [u64; 9] = [
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];
const ENTRIES_MAX: usize = 64;

/// A copy whose checksum fits.
struct Copy {
    sequence: u64,
    json: Vec<u8>,
    length: u64,
}

/// Reads the newer sound copy.
pub(super) fn read(volume: &dyn ReadAt) -> Result<Header> {
    let mut findings = Vec::new();
    let first = copy(volume, 0, *b"LUKS\xBA\xBE");
    let second = match &first {
        Ok(first) => copy(volume, first.length, *b"SKUL\xBA\xBE"),
        // Without the first nobody knows where the second lies.
        Err(_) => LENGTHS
            .iter()
            .map(|at| copy(volume, *at, *b"SKUL\xBA\xBE"))
            .find(|found| !matches!(found, Err(error) if error.kind() == ErrorKind::Corrupt))
            .unwrap_or_else(|| Err(Error::corrupt("no second copy is sound"))),
    };
    let newest = match (first, second) {
        (Ok(first), Ok(second)) if second.sequence > first.sequence => {
            findings.push("the first copy of the LUKS header is out of date".to_owned());
            second
        }
        (Ok(first), Ok(_)) => first,
        (Ok(first), Err(error)) if error.kind() == ErrorKind::Corrupt => {
            findings.push(format!("the second copy of the LUKS header: {error}"));
            first
        }
        (Err(error), Ok(second)) if error.kind() == ErrorKind::Corrupt => {
            findings.push(format!("the first copy of the LUKS header: {error}"));
            second
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let text = trimmed(&newest.json);
    let metadata: Metadata = serde_json::from_slice(text)
        .map_err(|error| Error::corrupt("its JSON").caused_by(error))?;
    let mut header = model(metadata, newest.length)?;
    header.findings.extend(findings);
    Ok(header)
}

/// Up to the zeros that fill the area.
fn trimmed(json: &[u8]) -> &[u8] {
    let end = json
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(json.len());
    json.get(..end).unwrap_or_default()
}

fn copy(volume: &dyn ReadAt, offset: u64, magic: [u8; 6]) -> Result<Copy> {
    let fields = read_head(volume, offset, FIELDS_BYTES)?;
    if field::slice(&fields, 0, 6)? != magic || field::u16_be(&fields, 6)? != 2 {
        return Err(Error::corrupt(format!("no header lies at {offset}")));
    }
    let length = field::u64_be(&fields, 8)?;
    let own_place = field::u64_be(&fields, 256)?;
    let bytes = usize::try_from(length)
        .ok()
        .filter(|_| LENGTHS.contains(&length) && own_place == offset)
        .ok_or_else(|| Error::corrupt(format!("the fields at {offset} contradict themselves")))?;
    let mut whole = read_head(volume, offset, bytes)?;
    let said = field::slice(&fields, 448, 64)?;
    let name = field::slice(&fields, 72, 32)?;
    let name = String::from_utf8_lossy(trimmed(name)).into_owned();
    if let Some(place) = whole.get_mut(448..512) {
        place.fill(0);
    }
    let sum = Digester::of(&name)?.digest(&[&whole]);
    if !field::sum_holds(said.get(..sum.len()), Some(sum.as_slice())) {
        return Err(Error::corrupt(format!(
            "the checksum of the copy at {offset} does not fit"
        )));
    }
    Ok(Copy {
        sequence: field::u64_be(&fields, 16)?,
        json: whole.split_off(FIELDS_BYTES.min(whole.len())),
        length,
    })
}

/// An object with at most [`ENTRIES_MAX`] entries, in their order.
struct Entries<T>(Vec<(String, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Look<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Look<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {ENTRIES_MAX} entries")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() >= ENTRIES_MAX {
                        return Err(A::Error::custom("too many entries"));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Look(PhantomData))
    }
}

#[derive(serde::Deserialize)]
struct Metadata {
    keyslots: Entries<JsonSlot>,
    segments: Entries<JsonSegment>,
    digests: Entries<JsonDigest>,
    #[serde(default)]
    tokens: Entries<JsonToken>,
    #[serde(default)]
    config: JsonConfig,
}

#[derive(serde::Deserialize)]
struct JsonSlot {
    #[serde(rename = "type")]
    kind: String,
    key_size: Option<u32>,
    priority: Option<u8>,
    af: Option<JsonSplit>,
    area: Option<JsonArea>,
    kdf: Option<JsonKdf>,
}

#[derive(serde::Deserialize)]
struct JsonSplit {
    #[serde(rename = "type")]
    kind: String,
    stripes: Option<u32>,
    hash: Option<String>,
}

#[derive(serde::Deserialize)]
struct JsonArea {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    encryption: Option<String>,
    key_size: Option<u32>,
}

#[derive(serde::Deserialize)]
struct JsonKdf {
    #[serde(rename = "type")]
    kind: String,
    salt: String,
    hash: Option<String>,
    iterations: Option<u32>,
    time: Option<u32>,
    memory: Option<u32>,
    cpus: Option<u32>,
}

#[derive(serde::Deserialize)]
struct JsonSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    iv_tweak: Option<String>,
    encryption: Option<String>,
    sector_size: Option<u32>,
    integrity: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(serde::Deserialize)]
struct JsonDigest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: Option<String>,
    iterations: Option<u32>,
    salt: String,
    digest: String,
}

#[derive(serde::Deserialize)]
struct JsonToken {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(serde::Deserialize, Default)]
struct JsonConfig {
    #[serde(default)]
    requirements: JsonRequirements,
}

#[derive(serde::Deserialize, Default)]
struct JsonRequirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

/// A text of a header in a message: not longer than a name.
fn short(text: &str) -> String {
    text.chars().take(48).filter(|c| !c.is_control()).collect()
}

fn number(text: &str, what: &str) -> Result<u64> {
    text.parse()
        .map_err(|error| Error::corrupt(format!("{what} {}", short(text))).caused_by(error))
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    let is_short = text.len() <= 4096;
    is_short
        .then(|| Base64::decode_vec(text).ok())
        .flatten()
        .ok_or_else(|| Error::corrupt("bytes that are no Base64"))
}

fn model(metadata: Metadata, header_bytes: u64) -> Result<Header> {
    refuse_requirements(&metadata.config.requirements.mandatory)?;
    let (segment_name, segment) = segment(&metadata, header_bytes)?;
    let mut digests = Vec::new();
    // Which slots prove their key with which digest.
    let mut proofs: Vec<(String, usize)> = Vec::new();
    for (_, digest) in metadata.digests.0 {
        if digest.kind != "pbkdf2" || !digest.segments.contains(&segment_name) {
            continue;
        }
        let index = digests.len();
        proofs.extend(digest.keyslots.into_iter().map(|slot| (slot, index)));
        digests.push(KeyDigest {
            derivation: Derivation::Pbkdf2 {
                hash: digest.hash.unwrap_or_default(),
                iterations: digest.iterations.unwrap_or(0),
                salt: bytes(&digest.salt)?,
            },
            digest: bytes(&digest.digest)?,
        });
    }
    let mut slots = Vec::new();
    let mut findings = Vec::new();
    for (name, slot) in metadata.keyslots.0 {
        let Some((_, digest)) = proofs.iter().find(|(slot, _)| *slot == name) else {
            continue;
        };
        match key_slot(&name, slot, *digest) {
            Ok(slot) => slots.push(slot),
            Err(error) => findings.push(format!("key slot {}: {error}", short(&name))),
        }
    }
    let mut tokens: Vec<String> = metadata
        .tokens
        .0
        .iter()
        .map(|(_, token)| short(&token.kind))
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    Ok(Header {
        version: 2,
        slots,
        digests,
        segment,
        tokens,
        findings,
    })
}

fn refuse_requirements(mandatory: &[String]) -> Result<()> {
    let Some(first) = mandatory.first() else {
        return Ok(());
    };
    if mandatory.iter().any(|one| one.contains("reencrypt")) {
        return Err(Error::unsupported(
            "a re-encryption is under way: finish it with `cryptsetup reencrypt`",
        ));
    }
    Err(Error::unsupported(format!(
        "it needs {}, which is not done",
        short(first)
    )))
}

/// The one segment of data, and its name.
fn segment(metadata: &Metadata, header_bytes: u64) -> Result<(String, Segment)> {
    let mut data = metadata
        .segments
        .0
        .iter()
        .filter(|(_, segment)| !segment.flags.iter().any(|flag| flag.starts_with("backup")));
    let (Some((name, one)), None) = (data.next(), data.next()) else {
        return Err(Error::unsupported(
            "its data does not lie in one segment: is a re-encryption under way?",
        ));
    };
    if one.integrity.is_some() {
        return Err(Error::unsupported(
            "authenticated encryption (integrity) is not read",
        ));
    }
    if one.kind != "crypt" {
        let what = format!("a segment of kind {} is not read", short(&one.kind));
        return Err(Error::unsupported(what));
    }
    let offset = number(&one.offset, "its data at")?;
    if offset < header_bytes.saturating_mul(2) {
        return Err(Error::unsupported(
            "it is detached: the data lies on another volume",
        ));
    }
    let size_bytes = match one.size.as_str() {
        "dynamic" => None,
        size => Some(number(size, "data of length")?),
    };
    let sector_bytes = one.sector_size.unwrap_or(512);
    let segment = Segment {
        offset,
        size_bytes,
        vector_offset: number(one.iv_tweak.as_deref().unwrap_or("0"), "sectors from")?,
        cipher: short(one.encryption.as_deref().unwrap_or_default()),
        sector_bytes: usize::try_from(sector_bytes).unwrap_or(usize::MAX),
    };
    Ok((name.clone(), segment))
}

fn key_slot(name: &str, slot: JsonSlot, digest: usize) -> Result<KeySlot> {
    let missing = || Error::corrupt("it lacks what its kind needs");
    let unsupported = |what: &str, kind: &str| {
        Error::unsupported(format!("{what} of kind {} is not read", short(kind)))
    };
    if slot.kind != "luks2" {
        return Err(unsupported("a slot", &slot.kind));
    }
    let (af, area, kdf) = match (slot.af, slot.area, slot.kdf) {
        (Some(af), Some(area), Some(kdf)) => (af, area, kdf),
        _ => return Err(missing()),
    };
    if af.kind != "luks1" {
        return Err(unsupported("a split key", &af.kind));
    }
    if area.kind != "raw" {
        return Err(unsupported("an area", &area.kind));
    }
    let salt = bytes(&kdf.salt)?;
    let derivation = match kdf.kind.as_str() {
        "pbkdf2" => Derivation::Pbkdf2 {
            hash: kdf.hash.ok_or_else(missing)?,
            iterations: kdf.iterations.ok_or_else(missing)?,
            salt,
        },
        _ => Derivation::Argon2 {
            kind: kdf.kind,
            time: kdf.time.ok_or_else(missing)?,
            memory_kib: kdf.memory.ok_or_else(missing)?,
            lanes: kdf.cpus.ok_or_else(missing)?,
            salt,
        },
    };
    let size = |value: Option<u32>| {
        let value = value.ok_or_else(missing)?;
        Ok::<usize, Error>(usize::try_from(value).unwrap_or(usize::MAX))
    };
    Ok(KeySlot {
        number: name
            .parse()
            .map_err(|error| Error::corrupt("its name is no number").caused_by(error))?,
        priority: slot.priority.unwrap_or(1),
        key_bytes: size(slot.key_size)?,
        stripes: size(af.stripes)?,
        split_hash: af.hash.ok_or_else(missing)?,
        area_offset: number(&area.offset, "an area at")?,
        area_cipher: area.encryption.ok_or_else(missing)?,
        area_key_bytes: size(area.key_size)?,
        derivation,
        digest,
    })
}
