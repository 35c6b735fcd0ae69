//! Partition tables: where on a disk what begins.
//!
//! ```text
//!   sector 0            1            2 …                                   last
//!   ┌──────────────┬────────────┬─────────┐                    ┌─────────┬────────────┐
//!   │ MBR          │ GPT header │ entries │  partitions …      │ entries │ GPT header │
//!   │ 4 entries,   └────────────┴─────────┘                    └─────────┴────────────┘
//!   │ 55 AA        │  a sector has 512 or 4096 bytes: where the header lies tells which
//!   └──┬───────────┘
//!      └─ type 05/0F/85 ─► EBR ─► EBR ─► …   one logical partition each
//! ```
//!
//! [`read`] says which table a disk has, in what state, and what it names. What is wrong is named in
//! [`PartitionTable::findings`] and never hides what can still be read: a partition that reaches behind the end of a
//! shortened disk is listed all the same.
//!
//! **Not done.** Tables of Sun, SGI, Atari and Apple are named and not followed. Nothing is repaired.
//!
//! Sources: UEFI 2.10 chapter 5; util-linux `libfdisk` for what is met in practice.

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

mod bsd;
mod gpt;
mod guid;
mod mbr;

use block::ReadAt;

pub use guid::Guid;

use crate::volume::pieces::read_head;
use crate::{Result, field};

/// Which table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TableKind {
    /// None: one volume begins at the first byte, or nothing does.
    None,
    /// The master boot record.
    Mbr,
    /// The GUID partition table.
    Gpt,
    /// A GUID partition table whose master boot record names partitions of its own besides the protective one.
    HybridGpt,
    /// A protective master boot record, and no readable GUID partition table behind it.
    ProtectiveOnly,
    /// Sun's disk label; named, not followed.
    Sun,
    /// SGI's volume header; named, not followed.
    Sgi,
    /// Atari's root sector; named, not followed.
    Atari,
    /// Apple's partition map; named, not followed.
    Apple,
}

impl TableKind {
    /// Its usual name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
            Self::HybridGpt => "hybrid gpt",
            Self::ProtectiveOnly => "protective mbr without gpt",
            Self::Sun => "sun",
            Self::Sgi => "sgi",
            Self::Atari => "atari",
            Self::Apple => "apple",
        }
    }
}

/// Which copy of a GUID partition table was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GptCopy {
    /// The one at the beginning.
    Primary,
    /// The one at the end, since the one at the beginning is damaged.
    Backup,
}

/// What a partition says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// The byte of a master boot record.
    Mbr(u8),
    /// The type of a GUID partition table.
    Gpt(Guid),
    /// The byte of a BSD disk label.
    Bsd(u8),
}

/// The role of a partition in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionRole {
    /// Holds a volume.
    Data,
    /// An extended partition: holds logical ones.
    Container,
    /// Covers the disk for programs that do not know the real table.
    Protective,
}

/// An entry of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts: entry number from one; logical ones of an MBR from five.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// How many bytes the table gives it, even if the disk ends before.
    pub size_bytes: u64,
    /// What it says it is for.
    pub kind: PartitionType,
    /// Whether it holds a volume.
    pub role: PartitionRole,
    /// Its own id.
    pub id: Option<Guid>,
    /// Its name in a GUID partition table; empty where there is none.
    pub name: String,
    /// Attribute bits of a GUID partition table; bit 0 of others is the boot flag.
    pub attributes: u64,
}

impl Partition {
    /// First byte behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size_bytes)
    }
}

/// Something about a table that is not as it should be, in words that name the place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// One copy of the table is damaged or gone; which, and why.
    DamagedCopy {
        /// Which of the two.
        copy: GptCopy,
        /// What is wrong with it.
        why: String,
    },
    /// Both copies are sound and say different things.
    CopiesDiffer,
    /// The entries are not in the order of their places.
    OutOfOrder,
    /// Two partitions share bytes.
    Overlap {
        /// Number of the one that begins first.
        first: u32,
        /// Number of the other.
        second: u32,
    },
    /// A partition ends behind the disk.
    BehindEnd {
        /// Its number.
        partition: u32,
    },
    /// An entry says it ends before it begins, or cannot be addressed; it is left out.
    BadEntry {
        /// Its number.
        entry: u32,
    },
    /// The chain of extended boot records comes back to itself, breaks off, or is too long.
    BrokenChain {
        /// Where on the disk.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// The boot record besides the table is not what it should be.
    BootRecord {
        /// What is wrong.
        why: String,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DamagedCopy { copy, why } => {
                let which = match copy {
                    GptCopy::Primary => "primary",
                    GptCopy::Backup => "backup",
                };
                write!(f, "{which} table: {why}")
            }
            Self::CopiesDiffer => f.write_str("the two copies of the table differ"),
            Self::OutOfOrder => f.write_str("entries are not in the order of their places"),
            Self::Overlap { first, second } => write!(f, "partitions {first} and {second} overlap"),
            Self::BehindEnd { partition } => {
                write!(f, "partition {partition} ends behind the disk")
            }
            Self::BadEntry { entry } => write!(f, "entry {entry} is impossible"),
            Self::BrokenChain { offset, why } => {
                write!(f, "extended boot record at {offset}: {why}")
            }
            Self::BootRecord { why } => write!(f, "boot record: {why}"),
        }
    }
}

/// What a disk says about its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Which table.
    pub kind: TableKind,
    /// Bytes of a sector, as the table counts.
    pub sector_bytes: u32,
    /// Which copy was read, of a GUID partition table.
    pub copy: Option<GptCopy>,
    /// The disk's id: a GUID, or the signature of a master boot record in eight hexadecimal digits.
    pub id: Option<String>,
    /// In the order of the table.
    pub partitions: Vec<Partition>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl PartitionTable {
    fn empty(kind: TableKind) -> Self {
        Self {
            kind,
            sector_bytes: 512,
            copy: None,
            id: None,
            partitions: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Partitions that hold a volume.
    pub fn data_partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions
            .iter()
            .filter(|partition| partition.role == PartitionRole::Data)
    }

    /// Whether the table hands the disk over to the logical disk manager of Windows.
    pub fn is_ldm(&self) -> bool {
        self.partitions.iter().any(|partition| {
            matches!(partition.kind, PartitionType::Mbr(0x42))
                || partition.kind == PartitionType::Gpt(Guid::LDM_METADATA)
        })
    }

    /// Names what shares bytes, is out of order, or reaches behind the disk.
    fn examine(&mut self, disk_bytes: u64) {
        let data: Vec<&Partition> = self
            .partitions
            .iter()
            .filter(|partition| partition.role == PartitionRole::Data)
            .collect();
        let mut found = Vec::new();
        if data.windows(2).any(|pair| match pair {
            [left, right] => left.offset > right.offset,
            _ => false,
        }) {
            found.push(Finding::OutOfOrder);
        }
        let mut sorted = data.clone();
        sorted.sort_by_key(|partition| (partition.offset, partition.number));
        let mut furthest: Option<&Partition> = None;
        for partition in sorted {
            if let Some(before) = furthest
                && before.end() > partition.offset
            {
                found.push(Finding::Overlap {
                    first: before.number,
                    second: partition.number,
                });
            }
            if furthest.is_none_or(|before| partition.end() > before.end()) {
                furthest = Some(partition);
            }
        }
        for partition in data {
            if partition.end() > disk_bytes {
                found.push(Finding::BehindEnd {
                    partition: partition.number,
                });
            }
        }
        self.findings.append(&mut found);
    }
}

/// Reads the table of a disk.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when the disk cannot be read. Damage is no error: it is named in the findings.
pub fn read(disk: &dyn ReadAt) -> Result<PartitionTable> {
    let sector = read_head(disk, 0, 512)?;
    let boot = mbr::BootRecord::parse(&sector)?;
    let mut found = gpt::read(disk, boot.as_ref())?;
    let mut table = match found.table {
        Some(table) => table,
        None => match boot {
            Some(boot) if boot.is_table() => mbr::read(disk, &boot)?,
            _ => PartitionTable::empty(foreign(disk, &sector)?),
        },
    };
    table.findings.append(&mut found.findings);
    table.examine(disk.size_bytes());
    Ok(table)
}

/// Tables of other worlds.
fn foreign(disk: &dyn ReadAt, sector: &[u8]) -> Result<TableKind> {
    if field::u16_be(sector, 508)? == 0xDABE && sun_checksum(sector)? == 0 {
        return Ok(TableKind::Sun);
    }
    if field::u32_be(sector, 0)? == 0x0BE5_A941 {
        return Ok(TableKind::Sgi);
    }
    let second = read_head(disk, 512, 512)?;
    if field::slice(sector, 0, 2)? == b"ER" && field::slice(&second, 0, 2)? == b"PM" {
        return Ok(TableKind::Apple);
    }
    if looks_like_atari(disk, sector)? {
        return Ok(TableKind::Atari);
    }
    Ok(TableKind::None)
}

fn sun_checksum(sector: &[u8]) -> Result<u16> {
    (0..256_usize).try_fold(0, |sum, word| {
        Ok(sum ^ field::u16_be(sector, word.saturating_mul(2))?)
    })
}

/// Atari's root sector has no signature: four entries at 0x1C6 whose flags, three-letter ids and places make sense.
fn looks_like_atari(disk: &dyn ReadAt, sector: &[u8]) -> Result<bool> {
    let sectors = disk.size_bytes() / 512;
    let told = u64::from(field::u32_be(sector, 0x1C2)?);
    if told == 0 || told > sectors {
        return Ok(false);
    }
    let mut count = 0_u32;
    for number in 0..4_usize {
        let at = 0x1C6_usize.saturating_add(number.saturating_mul(12));
        let flags = field::u8_at(sector, at)?;
        if flags & 1 == 0 {
            continue;
        }
        let id = field::slice(sector, at.saturating_add(1), 3)?;
        let start = u64::from(field::u32_be(sector, at.saturating_add(4))?);
        let length = u64::from(field::u32_be(sector, at.saturating_add(8))?);
        let is_sound = id.iter().all(u8::is_ascii_alphanumeric)
            && start > 0
            && length > 0
            && start.saturating_add(length) <= sectors;
        if !is_sound {
            return Ok(false);
        }
        count = count.saturating_add(1);
    }
    Ok(count > 0)
}
