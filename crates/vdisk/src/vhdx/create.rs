//! Making an empty VHDX, laid out as Windows does.
//!
//! ```text
//!   0 header section │ 1 MiB log │ 2 MiB metadata │ 3 MiB BAT, in whole mebibytes │ payload
//!   write order: size ─► identifier, regions, metadata, BAT ─► flush ─► both headers ─► flush
//! ```
//!
//! **Invariants.** The headers are last, so that an interrupted creation leaves no image. A BAT without entries is never
//! written: in the host file it stays a hole. The BAT of a fixed image is written in pieces.
//! The block sizes that Windows chooses: 32 MiB for dynamic, 2 MiB for fixed and differencing.

use std::sync::Arc;

use block::WriteAt;
use uuid::Uuid;

use super::bytes::to_u64;
use super::entry::{PayloadEntry, PayloadState};
use super::geometry::{BAT_ENTRY_BYTES, Geometry, Slot};
use super::header::{self, Header, HeaderSlot, MIB};
use super::info::{IdSource, WriteId};
use super::locator::ParentLocator;
use super::metadata::{Completion, Metadata};
use super::region::{self, Span, TABLE_OFFSETS};
use crate::{DiskId, Error, ErrorKind, Result, Subformat};

const LOG: Span = Span {
    offset: MIB,
    length: MIB,
};
const METADATA: Span = Span {
    offset: 2 * MIB,
    length: MIB,
};
pub(super) const BAT_OFFSET: u64 = 3 * MIB;
/// What Windows gives a dynamic image.
const DYNAMIC_BLOCK_BYTES: u32 = 32 << 20;
/// What Windows gives any other.
const OTHER_BLOCK_BYTES: u32 = 2 << 20;
/// Entries written at once.
const BAT_PIECE_ENTRIES: u64 = 128 * 1024;

/// How a new image takes its space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// All of it from the start.
    Fixed,
    /// Block by block, as they are written.
    Dynamic,
    /// Block by block, on a parent.
    Differencing(ParentLocator),
}

/// What a new image shall be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the disk: a multiple of the logical sector, at most 64 TiB.
    pub size_bytes: u64,
    /// How it takes its space.
    pub allocation: Allocation,
    /// Bytes of a block: a power of two from 1 to 256 MiB; what Windows uses when `None`.
    pub block_bytes: Option<u32>,
    /// 512 or 4096; a child must have its parent's.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Identity of the virtual disk. A child has its parent's.
    pub disk_id: DiskId,
    /// Data write id to begin with; a new one when `None`. Only a bit-for-bit replacement of an image that has children
    /// keeps the old one.
    pub data_write_id: Option<WriteId>,
    /// Who makes it: shown to people, cut to 255 UTF-16 units.
    pub creator: String,
    /// Where new ids come from.
    pub ids: IdSource,
}

impl CreateOptions {
    /// A dynamic image with the sectors and block size that Windows chooses.
    pub fn new(size_bytes: u64, disk_id: DiskId, ids: IdSource) -> Self {
        Self {
            size_bytes,
            allocation: Allocation::Dynamic,
            block_bytes: None,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            disk_id,
            data_write_id: None,
            creator: "Hikae".into(),
            ids,
        }
    }

    fn metadata(&self, completion: Completion) -> Metadata {
        let (subformat, locator, default_block) = match &self.allocation {
            Allocation::Fixed => (Subformat::Fixed, None, OTHER_BLOCK_BYTES),
            Allocation::Dynamic => (Subformat::Dynamic, None, DYNAMIC_BLOCK_BYTES),
            Allocation::Differencing(locator) => (
                Subformat::Differencing,
                Some(locator.clone()),
                OTHER_BLOCK_BYTES,
            ),
        };
        Metadata {
            completion,
            subformat,
            block_size: self.block_bytes.unwrap_or(default_block),
            size: self.size_bytes,
            disk_id: self.disk_id,
            logical_sector: self.logical_sector_bytes,
            physical_sector: self.physical_sector_bytes,
            locator,
        }
    }
}

/// Makes an empty image in a file; whatever the file held is gone.
///
/// # Errors
/// `Invalid` when the options contradict the format; `Io`.
pub fn create(file: &Arc<dyn WriteAt>, options: &CreateOptions) -> Result<()> {
    lay_out(file.as_ref(), options, Completion::Finished)
}

/// Writes everything of an image but payload.
pub(super) fn lay_out(
    file: &dyn WriteAt,
    options: &CreateOptions,
    completion: Completion,
) -> Result<()> {
    let metadata = options.metadata(completion);
    let geometry = metadata.geometry()?;
    if metadata.physical_sector != 512 && metadata.physical_sector != 4096 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "vhdx: physical sector of {} bytes",
                metadata.physical_sector
            ),
        ));
    }
    let encoded = metadata.encode()?;
    if to_u64(encoded.len()) > METADATA.length {
        return Err(Error::new(
            ErrorKind::Invalid,
            "vhdx: the parent locator is too long",
        ));
    }
    let bat_bytes = geometry.entry_count().saturating_mul(BAT_ENTRY_BYTES);
    let bat = Span {
        offset: BAT_OFFSET,
        length: bat_bytes.div_ceil(MIB).saturating_mul(MIB),
    };
    let payload = match metadata.subformat {
        Subformat::Fixed => geometry.block_count().saturating_mul(geometry.block_size),
        _ => 0,
    };
    file.set_size(0)?;
    file.set_size(bat.end().saturating_add(payload))?;
    file.write_at(0, &header::encode_identifier(&options.creator))?;
    let table = region::encode(bat, METADATA);
    for offset in TABLE_OFFSETS {
        file.write_at(offset, &table)?;
    }
    file.write_at(METADATA.offset, &encoded)?;
    if metadata.subformat == Subformat::Fixed {
        write_fixed_bat(file, &geometry, bat)?;
    }
    file.flush()?;
    let mut header = Header {
        sequence: 1,
        file_write: options.ids.next(),
        data_write: options
            .data_write_id
            .map_or_else(|| options.ids.next(), |id| id.0),
        log: Uuid::nil(),
        log_version: 0,
        version: 1,
        log_length: u32::try_from(LOG.length).unwrap_or(u32::MAX),
        log_offset: LOG.offset,
    };
    for slot in HeaderSlot::BOTH {
        file.write_at(slot.offset(), &header.encode())?;
        header.sequence = header.sequence.saturating_add(1);
    }
    Ok(file.flush()?)
}

fn write_fixed_bat(file: &dyn WriteAt, geometry: &Geometry, bat: Span) -> Result<()> {
    let count = geometry.entry_count();
    let mut first = 0;
    while first < count {
        let end = count.min(first.saturating_add(BAT_PIECE_ENTRIES));
        let bytes: Vec<u8> = (first..end)
            .flat_map(|index| {
                let raw = match geometry.slot(index) {
                    Some(Slot::Payload(block)) => PayloadEntry {
                        state: PayloadState::Full,
                        offset: bat.end().saturating_add(geometry.block_start(block)),
                    }
                    .encode(),
                    _ => 0,
                };
                raw.to_le_bytes()
            })
            .collect();
        file.write_at(
            bat.offset
                .saturating_add(first.saturating_mul(BAT_ENTRY_BYTES)),
            &bytes,
        )?;
        first = end;
    }
    Ok(())
}
