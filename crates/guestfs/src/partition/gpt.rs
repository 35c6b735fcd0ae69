//! The GUID partition table, both copies of it.
//!
//! ```text
//!   header   "EFI PART" │ revision │ length │ crc │ 0 │ this LBA │ other LBA │ first, last usable LBA │ disk GUID
//!            │ entries' LBA │ count │ length of one │ crc of all
//!   entry    type GUID │ GUID │ first LBA │ last LBA │ attributes │ name, 36 UTF-16 units
//! ```
//!
//! The primary copy lies in sector 1, the backup in the last sector (or where the primary says, when a disk was
//! enlarged). Entries with a wrong checksum are shown, with a finding, when no copy is better. A sector of 512 bytes is tried before one of 4096. Source: UEFI 2.10, 5.3.

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

use super::mbr::{self, BootRecord};
use super::{
    Finding, GptCopy, Guid, Partition, PartitionRole, PartitionTable, PartitionType, TableKind,
};
use crate::volume::pieces::read_head;
use crate::{Error, Result, field};

/// Longest array of entries that is read: eight times the usual.
const MAX_ENTRIES: u32 = 1024;
const MAX_ENTRY_BYTES: u32 = 4096;
const MAX_ARRAY_BYTES: u64 = 1024 * 1024;

/// A header whose own checksum is right, with its entries.
struct Copy {
    /// The checksum of the entries is wrong: they are used where there is nothing better.
    is_flawed: bool,
    disk: Guid,
    other_lba: u64,
    partitions: Vec<Partition>,
    bad_entries: Vec<u32>,
}

/// What was found where the copies should be.
pub(super) struct Found {
    /// The table, if at least one header is right.
    pub(super) table: Option<PartitionTable>,
    /// What is wrong with headers that begin as such, when none is right.
    pub(super) findings: Vec<Finding>,
}

/// Looks for a table in both places with both sizes of a sector.
pub(super) fn read(disk: &dyn ReadAt, boot: Option<&BootRecord>) -> Result<Found> {
    let mut findings = Vec::new();
    for sector_bytes in [512_u32, 4096] {
        let primary = copy_at(disk, 1, sector_bytes);
        let last = last_lba(disk, sector_bytes);
        let told = primary.as_ref().ok().map(|copy| copy.other_lba);
        let mut backup = copy_at(disk, last, sector_bytes);
        if backup.is_err()
            && let Some(place) = told.filter(|place| *place != last)
        {
            backup = copy_at(disk, place, sector_bytes);
        }
        let begins = starts_at(disk, 1, sector_bytes)? || starts_at(disk, last, sector_bytes)?;
        if !begins && primary.is_err() && backup.is_err() {
            continue;
        }
        match combine(primary, backup, sector_bytes, boot)? {
            Ok(table) => {
                let table = Some(table);
                return Ok(Found { table, findings });
            }
            Err(mut damage) => findings.append(&mut damage),
        }
    }
    Ok(Found {
        table: None,
        findings,
    })
}

fn last_lba(disk: &dyn ReadAt, sector_bytes: u32) -> u64 {
    disk.size_bytes()
        .checked_div(u64::from(sector_bytes))
        .unwrap_or(0)
        .saturating_sub(1)
}

fn starts_at(disk: &dyn ReadAt, lba: u64, sector_bytes: u32) -> Result<bool> {
    let offset = lba.saturating_mul(u64::from(sector_bytes));
    Ok(read_head(disk, offset, 8)? == b"EFI PART")
}

fn combine(
    primary: Result<Copy>,
    backup: Result<Copy>,
    sector_bytes: u32,
    boot: Option<&BootRecord>,
) -> Result<std::result::Result<PartitionTable, Vec<Finding>>> {
    let mut table = PartitionTable::empty(TableKind::Gpt);
    table.sector_bytes = sector_bytes;
    let (primary, backup) = match (primary, backup) {
        (Ok(primary), backup) if primary.is_flawed && !backup.as_ref().is_ok_and(is_sound) => {
            (Ok(primary), Err(backup.err().unwrap_or_else(flaw)))
        }
        (Err(error), Ok(backup)) => (Err(error), Ok(backup)),
        (primary, backup) => (primary.and_then(sound), backup.and_then(sound)),
    };
    let chosen = match (primary, backup) {
        (Ok(primary), Ok(backup)) => {
            if primary.partitions != backup.partitions || primary.disk != backup.disk {
                table.findings.push(Finding::CopiesDiffer);
            }
            table.copy = Some(GptCopy::Primary);
            primary
        }
        (Ok(primary), Err(error)) => {
            table.findings.push(damaged(GptCopy::Backup, &error));
            table.copy = Some(GptCopy::Primary);
            primary
        }
        (Err(error), Ok(backup)) => {
            table.findings.push(damaged(GptCopy::Primary, &error));
            table.copy = Some(GptCopy::Backup);
            backup
        }
        (Err(first), Err(second)) => {
            if first.kind() == crate::ErrorKind::Io {
                return Err(first);
            }
            if second.kind() == crate::ErrorKind::Io {
                return Err(second);
            }
            let copies = [GptCopy::Primary, GptCopy::Backup];
            let damage = copies.into_iter().zip([first, second]);
            return Ok(Err(damage
                .map(|(copy, error)| damaged(copy, &error))
                .collect()));
        }
    };
    if let Some(copy) = table.copy.filter(|_| chosen.is_flawed) {
        table.findings.push(damaged(copy, &flaw()));
    }
    table.id = Some(chosen.disk.to_string());
    table.partitions = chosen.partitions;
    for entry in chosen.bad_entries {
        table.findings.push(Finding::BadEntry { entry });
    }
    match boot {
        None => table.findings.push(Finding::BootRecord {
            why: "none in front of the table".to_owned(),
        }),
        Some(boot) if boot.is_hybrid() => table.kind = TableKind::HybridGpt,
        Some(boot) if !boot.is_protective() => table.findings.push(Finding::BootRecord {
            why: "does not protect the table".to_owned(),
        }),
        Some(_) => {}
    }
    if let Some(boot) = boot.filter(|boot| boot.is_hybrid()) {
        hybrid(boot, &mut table);
    }
    Ok(Ok(table))
}

fn is_sound(copy: &Copy) -> bool {
    !copy.is_flawed
}

fn sound(copy: Copy) -> Result<Copy> {
    if copy.is_flawed {
        return Err(flaw());
    }
    Ok(copy)
}

fn flaw() -> Error {
    Error::corrupt("checksum of the entries is wrong")
}

fn damaged(copy: GptCopy, error: &Error) -> Finding {
    Finding::DamagedCopy {
        copy,
        why: error.to_string(),
    }
}

/// What the boot record of a hybrid table names and the table does not.
fn hybrid(boot: &BootRecord, table: &mut PartitionTable) {
    for other in mbr::others(boot, table.sector_bytes) {
        if !table
            .partitions
            .iter()
            .any(|one| one.offset == other.offset)
        {
            table.findings.push(Finding::BootRecord {
                why: format!(
                    "names a partition at {} that the table does not have",
                    other.offset
                ),
            });
        }
    }
}

fn copy_at(disk: &dyn ReadAt, lba: u64, sector_bytes: u32) -> Result<Copy> {
    let bytes = u64::from(sector_bytes);
    let header = read_head(disk, lba.saturating_mul(bytes), 512)?;
    if field::slice(&header, 0, 8)? != b"EFI PART" {
        return Err(Error::corrupt("has no signature"));
    }
    let length = field::u32_le(&header, 12)?;
    let told_crc = field::u32_le(&header, 16)?;
    let mut checked = field::slice(&header, 0, usize::try_from(length).unwrap_or(usize::MAX))
        .map_err(|_| Error::corrupt(format!("header of {length} bytes")))?
        .to_vec();
    let Some(place) = checked.get_mut(16..20).filter(|_| length >= 92) else {
        return Err(Error::corrupt(format!("header of {length} bytes")));
    };
    place.fill(0);
    if !field::sum_holds(crc32fast::hash(&checked), told_crc) {
        return Err(Error::corrupt("checksum of the header is wrong"));
    }
    if field::u64_le(&header, 24)? != lba {
        return Err(Error::corrupt("header says that it lies elsewhere"));
    }
    let count = field::u32_le(&header, 80)?;
    let entry_bytes = field::u32_le(&header, 84)?;
    let array_bytes = u64::from(count).saturating_mul(u64::from(entry_bytes));
    if count > MAX_ENTRIES
        || !(128..=MAX_ENTRY_BYTES).contains(&entry_bytes)
        || array_bytes > MAX_ARRAY_BYTES
    {
        return Err(Error::corrupt(format!(
            "{count} entries of {entry_bytes} bytes"
        )));
    }
    let offset = field::u64_le(&header, 72)?.saturating_mul(bytes);
    let array = read_head(disk, offset, usize::try_from(array_bytes).unwrap_or(0))?;
    let mut copy = Copy {
        is_flawed: !field::sum_holds(crc32fast::hash(&array), field::u32_le(&header, 88)?),
        disk: Guid::from_mixed(&header, 56)?,
        other_lba: field::u64_le(&header, 32)?,
        partitions: Vec::new(),
        bad_entries: Vec::new(),
    };
    let size = usize::try_from(entry_bytes).unwrap_or(usize::MAX);
    for (number, entry) in (1..).zip(array.chunks_exact(size)) {
        match parse_entry(entry, number, bytes)? {
            Parsed::Unused => {}
            Parsed::Bad => copy.bad_entries.push(number),
            Parsed::Partition(partition) => copy.partitions.push(partition),
        }
    }
    Ok(copy)
}

enum Parsed {
    Unused,
    Bad,
    Partition(Partition),
}

fn parse_entry(entry: &[u8], number: u32, sector_bytes: u64) -> Result<Parsed> {
    let kind = Guid::from_mixed(entry, 0)?;
    if kind.is_nil() {
        return Ok(Parsed::Unused);
    }
    let first = field::u64_le(entry, 32)?;
    let last = field::u64_le(entry, 40)?;
    let sectors = last.checked_sub(first).and_then(|gap| gap.checked_add(1));
    let offset = first.checked_mul(sector_bytes);
    let size = sectors.and_then(|count| count.checked_mul(sector_bytes));
    let (Some(offset), Some(size_bytes)) = (offset, size) else {
        return Ok(Parsed::Bad);
    };
    let units = field::slice(entry, 56, 72)?
        .chunks_exact(2)
        .map(|pair| field::u16_le(pair, 0).unwrap_or(0))
        .take_while(|unit| *unit != 0);
    let name = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    Ok(Parsed::Partition(Partition {
        number,
        offset,
        size_bytes,
        kind: PartitionType::Gpt(kind),
        role: PartitionRole::Data,
        id: Some(Guid::from_mixed(entry, 16)?),
        name,
        attributes: field::u64_le(entry, 48)?,
    }))
}
