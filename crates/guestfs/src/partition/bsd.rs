//! The disk label of the BSDs inside a partition of a master boot record.
//!
//! ```text
//!   sector 1 of the partition:  magic u32 │ … │ magic u32 at 132 │ checksum │ count u16 at 138 │ … │ entries at 148
//!   entry (16 bytes):           sectors u32 │ first sector u32, of the disk │ fragment u32 │ type │ 3
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

use super::{Partition, PartitionRole, PartitionTable, PartitionType};
use crate::volume::pieces::read_head;
use crate::{Result, field};

const MAGIC: u32 = 0x8256_4557;

/// Adds the partitions of the label that begins at `offset`, numbered from `first` on.
pub(super) fn read(
    disk: &dyn ReadAt,
    offset: u64,
    first: u32,
    table: &mut PartitionTable,
) -> Result<()> {
    let label = read_head(disk, offset.saturating_add(512), 512)?;
    if field::u32_le(&label, 0)? != MAGIC || field::u32_le(&label, 132)? != MAGIC {
        return Ok(());
    }
    let count = usize::from(field::u16_le(&label, 138)?.min(16));
    let mut number = first;
    for at in 0..count {
        let entry = field::slice(&label, at.saturating_mul(16).saturating_add(148), 16)?;
        let sectors = u64::from(field::u32_le(entry, 0)?);
        let start = u64::from(field::u32_le(entry, 4)?);
        let kind = field::u8_at(entry, 12)?;
        let size_bytes = sectors.saturating_mul(512);
        let begin = start.saturating_mul(512);
        // Partition c covers the slice or the disk: it is no volume of its own.
        let whole = at == 2 || kind == 0 || sectors == 0;
        if whole {
            continue;
        }
        table.partitions.push(Partition {
            number,
            offset: begin,
            size_bytes,
            kind: PartitionType::Bsd(kind),
            role: PartitionRole::Data,
            id: None,
            name: String::new(),
            attributes: 0,
        });
        number = number.saturating_add(1);
    }
    if number > first {
        // The slice itself is then only their container.
        for slice in &mut table.partitions {
            if slice.offset == offset
                && matches!(slice.kind, PartitionType::Mbr(0xA5 | 0xA6 | 0xA9))
            {
                slice.role = PartitionRole::Container;
            }
        }
    }
    Ok(())
}
