//! The master boot record and the chain of extended boot records.
//!
//! ```text
//!   boot record   440 code │ signature u32 │ 2 │ 4 × 16-byte entries │ 55 AA
//!   entry         active │ chs │ type │ chs │ first sector u32 │ sectors u32
//!
//!   extended partition ─► EBR at its first sector:  entry 0: logical partition, relative to this EBR
//!                                                   entry 1: next EBR, relative to the extended partition
//! ```

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

use super::{Finding, Partition, PartitionRole, PartitionTable, PartitionType, TableKind, bsd};
use crate::volume::pieces::read_head;
use crate::{Result, field};

/// More logical partitions than any system makes.
const MAX_LOGICAL: u32 = 256;

/// One of the four.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    flags: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    fn is_protective(&self) -> bool {
        self.kind == 0xEE
    }
}

/// The first sector of a disk that ends with 55 AA.
pub(super) struct BootRecord {
    entries: [Entry; 4],
    signature: u32,
    looks_like_volume: bool,
}

impl BootRecord {
    /// `None` when the sector does not end as it should.
    pub(super) fn parse(sector: &[u8]) -> Result<Option<Self>> {
        if field::u16_be(sector, 510)? != 0x55AA {
            return Ok(None);
        }
        let entry = |number: usize| -> Result<Entry> {
            let record = field::slice(sector, number.saturating_mul(16).saturating_add(446), 16)?;
            Ok(Entry {
                flags: field::u8_at(record, 0)?,
                kind: field::u8_at(record, 4)?,
                start: u64::from(field::u32_le(record, 8)?),
                sectors: u64::from(field::u32_le(record, 12)?),
            })
        };
        Ok(Some(Self {
            entries: [entry(0)?, entry(1)?, entry(2)?, entry(3)?],
            signature: field::u32_le(sector, 440)?,
            looks_like_volume: looks_like_volume(sector)?,
        }))
    }

    /// Whether it holds a table, and not a boot sector of a volume that ends with the same two bytes.
    pub(super) fn is_table(&self) -> bool {
        let sane = self
            .entries
            .iter()
            .all(|entry| matches!(entry.flags, 0 | 0x80));
        let used = self.entries.iter().any(Entry::is_used);
        sane && (used || !self.looks_like_volume)
            && !(self.looks_like_volume
                && self
                    .entries
                    .iter()
                    .any(|one| one.kind != 0 && one.start == 0))
    }

    /// Whether an entry covers the disk for programs that do not know the GUID partition table.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(Entry::is_protective)
    }

    /// Whether there are others besides the protective one.
    pub(super) fn is_hybrid(&self) -> bool {
        self.is_protective()
            && self
                .entries
                .iter()
                .any(|entry| entry.is_used() && !entry.is_protective())
    }
}

/// The boot sector of a FAT, exFAT, NTFS, ReFS or BitLocker volume ends with the same two bytes.
fn looks_like_volume(sector: &[u8]) -> Result<bool> {
    let name = field::slice(sector, 3, 8)?;
    if matches!(
        name,
        b"NTFS    " | b"EXFAT   " | b"-FVE-FS-" | b"ReFS\0\0\0\0"
    ) {
        return Ok(true);
    }
    let jumps = matches!(field::u8_at(sector, 0)?, 0xEB | 0xE9);
    let sector_bytes = field::u16_le(sector, 11)?;
    let cluster = field::u8_at(sector, 13)?;
    let fats = field::u8_at(sector, 16)?;
    let media = field::u8_at(sector, 21)?;
    Ok(jumps
        && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && matches!(fats, 1 | 2)
        && (media == 0xF0 || media >= 0xF8))
}

/// Reads the table and the chain behind it.
pub(super) fn read(disk: &dyn ReadAt, boot: &BootRecord) -> Result<PartitionTable> {
    let sector_bytes = sector_bytes(disk, boot)?;
    let mut table = PartitionTable::empty(if boot.is_protective() {
        TableKind::ProtectiveOnly
    } else {
        TableKind::Mbr
    });
    table.sector_bytes = sector_bytes;
    table.id = Some(format!("{:08x}", boot.signature));
    for (number, entry) in (1..).zip(&boot.entries) {
        if entry.is_used() {
            table
                .partitions
                .push(partition(number, entry, 0, sector_bytes));
        }
    }
    // Linux counts logical partitions from five, over all extended ones.
    let mut next = 5;
    for entry in boot
        .entries
        .iter()
        .filter(|entry| entry.is_used() && entry.is_extended())
    {
        next = follow(disk, entry, sector_bytes, next, &mut table)?;
    }
    for entry in &boot.entries {
        if entry.is_used() && matches!(entry.kind, 0xA5 | 0xA6 | 0xA9) {
            bsd::read(
                disk,
                entry.start.saturating_mul(u64::from(sector_bytes)),
                next,
                &mut table,
            )?;
            next = table
                .partitions
                .iter()
                .map(|one| one.number.saturating_add(1))
                .max()
                .unwrap_or(next);
        }
    }
    Ok(table)
}

/// Partitions besides the protective one, for the record of a hybrid table.
pub(super) fn others(boot: &BootRecord, sector_bytes: u32) -> Vec<Partition> {
    (1..)
        .zip(&boot.entries)
        .filter(|(_, entry)| entry.is_used() && !entry.is_protective())
        .map(|(number, entry)| partition(number, entry, 0, sector_bytes))
        .collect()
}

fn partition(number: u32, entry: &Entry, base: u64, sector_bytes: u32) -> Partition {
    let bytes = u64::from(sector_bytes);
    Partition {
        number,
        offset: base.saturating_add(entry.start).saturating_mul(bytes),
        size_bytes: entry.sectors.saturating_mul(bytes),
        kind: PartitionType::Mbr(entry.kind),
        role: if entry.is_protective() {
            PartitionRole::Protective
        } else if entry.is_extended() {
            PartitionRole::Container
        } else {
            PartitionRole::Data
        },
        id: None,
        name: String::new(),
        attributes: u64::from(entry.flags >> 7),
    }
}

/// A table cannot say how long its sectors are. With 4096, an extended boot record or the boot sector of a volume lies
/// where those sectors say, nothing where 512 say, and all partitions still end on the disk.
fn sector_bytes(disk: &dyn ReadAt, boot: &BootRecord) -> Result<u32> {
    let used = || {
        boot.entries
            .iter()
            .filter(|entry| entry.is_used() && !entry.is_protective())
    };
    for entry in used() {
        if signature_at(disk, entry.start.saturating_mul(512))? {
            return Ok(512);
        }
    }
    let fits = used().all(|entry| {
        let end = entry.start.saturating_add(entry.sectors);
        end.saturating_mul(4096) <= disk.size_bytes()
    });
    for entry in used().filter(|_| fits) {
        if signature_at(disk, entry.start.saturating_mul(4096))? {
            return Ok(4096);
        }
    }
    Ok(512)
}

fn signature_at(disk: &dyn ReadAt, offset: u64) -> Result<bool> {
    if offset == 0 {
        return Ok(false);
    }
    let sector = read_head(disk, offset, 2048)?;
    // A boot sector, or the magic of an ext file system, which leaves its first sector alone.
    Ok(field::u16_be(&sector, 510)? == 0x55AA
        || field::u16_le(&sector, 1024 + 56)? == 0xEF53
        || field::slice(&sector, 0, 4)? == b"XFSB"
        || field::slice(&sector, 512, 8)? == b"LABELONE")
}

/// Follows the chain of one extended partition; the next free number.
fn follow(
    disk: &dyn ReadAt,
    extended: &Entry,
    sector_bytes: u32,
    first: u32,
    table: &mut PartitionTable,
) -> Result<u32> {
    let bytes = u64::from(sector_bytes);
    let mut next_number = first;
    let mut base = extended.start;
    let mut visited = Vec::new();
    let broken = |base: u64, why: &str| Finding::BrokenChain {
        offset: base.saturating_mul(bytes),
        why: why.to_owned(),
    };
    loop {
        if visited.contains(&base) {
            table.findings.push(broken(base, "comes back to itself"));
            return Ok(next_number);
        }
        if next_number.saturating_sub(first) >= MAX_LOGICAL || visited.len() >= 1024 {
            table
                .findings
                .push(broken(base, "more than any system makes"));
            return Ok(next_number);
        }
        visited.push(base);
        let offset = base.saturating_mul(bytes);
        if offset >= disk.size_bytes() {
            table
                .findings
                .push(broken(base, "behind the end of the disk"));
            return Ok(next_number);
        }
        let Some(record) = BootRecord::parse(&read_head(disk, offset, 512)?)? else {
            table.findings.push(broken(base, "does not end with 55 AA"));
            return Ok(next_number);
        };
        let mut link = None;
        for entry in record.entries.iter().filter(|entry| entry.is_used()) {
            if entry.is_extended() {
                link = link.or(Some(extended.start.saturating_add(entry.start)));
            } else {
                let logical = partition(next_number, entry, base, sector_bytes);
                table.partitions.push(logical);
                next_number = next_number.saturating_add(1);
            }
        }
        match link {
            Some(next) => base = next,
            None => return Ok(next_number),
        }
    }
}
