//! The superblock: where everything begins, and what a reader must be able to do.
//!
//! ```text
//!   device: 64 KiB ─ primary    64 MiB ─ copy    256 GiB ─ copy        each tells its own place and has a checksum
//! ```
//!
//! **Invariants.** The primary is believed when its checksum is right, as Linux does; else the newest sound copy.
//! Features that change how things are read and are not known are refused by name.

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

use block::ReadAt;

use super::checksum::ChecksumKind;
use crate::volume::pieces::read_exact;
use crate::{Error, ErrorKind, Result, field};

pub(super) const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
pub(super) const SUPERBLOCK_BYTES: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";

/// Features without which nothing can be read right, by bit.
const KNOWN: u64 = 0x1_0FFF;
const ZONED: u64 = 1 << 12;
const NAMES: [(u64, &str); 5] = [
    (ZONED, "zoned devices"),
    (1 << 13, "extent tree v2"),
    (1 << 14, "RAID stripe tree"),
    (1 << 15, "a feature that was never given a name (bit 15)"),
    (1 << 17, "remap tree"),
];

/// Which device of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub(super) [u8; 16]);

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::Uuid(self.0).fmt(f)
    }
}

/// What a superblock says.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) id: [u8; 16],
    pub(super) generation: u64,
    pub(super) root: u64,
    pub(super) root_level: u8,
    pub(super) chunk_root: u64,
    pub(super) chunk_root_level: u8,
    pub(super) chunk_root_generation: u64,
    pub(super) log_root: u64,
    pub(super) log_root_level: u8,
    pub(super) total_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) root_directory: u64,
    pub(super) device_count: u64,
    pub(super) sector_bytes: u32,
    pub(super) node_bytes: u32,
    pub(super) checksum: ChecksumKind,
    pub(super) device: DeviceId,
    pub(super) device_number: u64,
    pub(super) device_bytes: u64,
    pub(super) label: String,
    /// The chunks that hold the chunk tree: keys and items one behind the other.
    pub(super) system_chunks: Vec<u8>,
}

impl Superblock {
    /// The superblock of the device that begins at `base`; none when there is no trace of one.
    pub(super) fn read(volume: &dyn ReadAt, base: u64) -> Result<Option<Self>> {
        let mut trouble = None;
        let mut best: Option<Self> = None;
        for place in PLACES {
            let Some(at) = base.checked_add(place) else {
                continue;
            };
            let end = at.saturating_add(field::bytes(SUPERBLOCK_BYTES));
            if end > volume.size_bytes() {
                continue;
            }
            let bytes = match read_exact(volume, at, SUPERBLOCK_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    trouble.get_or_insert(error);
                    continue;
                }
            };
            if field::slice(&bytes, 64, 8)? != MAGIC || field::u64_le(&bytes, 48)? != place {
                continue;
            }
            // Only a superblock that is proved can say that it needs what is not done.
            let checksum = match proved(&bytes) {
                Ok(checksum) => checksum,
                Err(error) => {
                    trouble.get_or_insert(error.within(format!("superblock at {place}")));
                    continue;
                }
            };
            match Self::parse(&bytes, checksum) {
                Ok(found) if place == PLACES[0] => return Ok(Some(found)),
                Ok(found) => {
                    if (best.as_ref()).is_none_or(|best| best.generation < found.generation) {
                        best = Some(found);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
                Err(error) => {
                    trouble.get_or_insert(error.within(format!("superblock at {place}")));
                }
            }
        }
        match (best, trouble) {
            (Some(best), _) => Ok(Some(best)),
            (None, Some(trouble)) => Err(trouble),
            (None, None) => Ok(None),
        }
    }

    fn parse(bytes: &[u8], checksum: ChecksumKind) -> Result<Self> {
        check_features(field::u64_le(bytes, 188)?, field::u64_le(bytes, 56)?)?;
        let (sector_bytes, node_bytes) = (field::u32_le(bytes, 144)?, field::u32_le(bytes, 148)?);
        let is_size = |size: u32| size.is_power_of_two() && (512..=65_536).contains(&size);
        if !is_size(sector_bytes) || !is_size(node_bytes) || sector_bytes > node_bytes {
            return Err(Error::corrupt(format!(
                "sectors of {sector_bytes} and nodes of {node_bytes} bytes"
            )));
        }
        let system_bytes = usize::try_from(field::u32_le(bytes, 160)?).unwrap_or(usize::MAX);
        if system_bytes > 2048 {
            return Err(Error::corrupt(format!(
                "{system_bytes} bytes of system chunks"
            )));
        }
        let label = field::slice(bytes, 299, 256)?;
        let end = label.iter().position(|byte| *byte == 0).unwrap_or(256);
        let level = |at| match field::u8_at(bytes, at)? {
            level @ 0..=7 => Ok(level),
            level => Err(Error::corrupt(format!("a tree of {level} levels"))),
        };
        Ok(Self {
            id: uuid(bytes, 32)?,
            generation: field::u64_le(bytes, 72)?,
            root: field::u64_le(bytes, 80)?,
            root_level: level(198)?,
            chunk_root: field::u64_le(bytes, 88)?,
            chunk_root_level: level(199)?,
            chunk_root_generation: field::u64_le(bytes, 164)?,
            log_root: field::u64_le(bytes, 96)?,
            log_root_level: level(200)?,
            total_bytes: field::u64_le(bytes, 112)?,
            used_bytes: field::u64_le(bytes, 120)?,
            root_directory: field::u64_le(bytes, 128)?,
            device_count: field::u64_le(bytes, 136)?,
            sector_bytes,
            node_bytes,
            checksum,
            device_number: field::u64_le(bytes, 201)?,
            device_bytes: field::u64_le(bytes, 209)?,
            device: DeviceId(uuid(bytes, 267)?),
            label: String::from_utf8_lossy(label.get(..end).unwrap_or_default()).into_owned(),
            system_chunks: field::slice(bytes, 811, system_bytes)?.to_vec(),
        })
    }
}

/// The kind of checksum that proves a superblock.
fn proved(bytes: &[u8]) -> Result<ChecksumKind> {
    let checksum = ChecksumKind::of(field::u16_le(bytes, 196)?)?;
    let summed = field::slice(bytes, 32, SUPERBLOCK_BYTES.saturating_sub(32))?;
    if !checksum.proves(summed, bytes) {
        return Err(Error::corrupt("its checksum is wrong"));
    }
    Ok(checksum)
}

fn check_features(features: u64, flags: u64) -> Result<()> {
    const IS_DUMP: u64 = 3 << 33;
    if flags & IS_DUMP != 0 {
        return Err(Error::unsupported(
            "this is a dump of metadata (btrfs-image): it holds no contents",
        ));
    }
    let unknown = features & !KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let mut names: Vec<String> = NAMES
        .iter()
        .filter(|(bit, _)| unknown & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let nameless = NAMES.iter().fold(unknown, |rest, (bit, _)| rest & !bit);
    if nameless != 0 {
        names.push(format!("unknown features {nameless:#x}"));
    }
    Err(Error::unsupported(format!(
        "Btrfs with {}",
        names.join(", ")
    )))
}

pub(super) fn uuid(bytes: &[u8], at: usize) -> Result<[u8; 16]> {
    field::slice(bytes, at, 16)?
        .try_into()
        .map_err(|_| Error::corrupt("an id"))
}
