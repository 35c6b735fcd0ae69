//! The metadata region: what the virtual disk is.
//!
//! ```text
//!   64 KiB table: "metadata" 0:2 count:2 0:20 │ item:16 offset:4 length:4 flags:4 0:4 │ …
//!   items behind it, in any order, at most 1 MiB each; flags: 1 user, 2 of the virtual disk, 4 required
//! ```
//! Source: MS-VHDX 2.6. The item that marks a file whose creation was interrupted is not in the document.
//!
//! **Invariants.** An unknown required item is refused, an unknown optional one ignored and left in place. A file that
//! carries the incomplete-file marker is no image, except to who goes on building it.

use block::ReadAt;
use uuid::{Uuid, uuid};

use super::bytes::{Encoder, Fields, to_u64, to_usize};
use super::geometry::{Geometry, Lineage};
use super::locator::ParentLocator;
use super::region::Span;
use crate::{DiskId, Error, ErrorKind, Result, Subformat};

const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const PAGE_83: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
const INCOMPLETE_FILE: Uuid = uuid!("71cc85f0-1b69-4e28-9558-c3bf83ae75d3");

/// Bytes of the table; items lie behind it.
pub(super) const TABLE_BYTES: usize = 64 * 1024;
const MAX_ENTRIES: u16 = 2047;
const ENTRY_BYTES: usize = 32;
const MAX_ITEM_BYTES: u32 = 1 << 20;
const FLAG_USER: u32 = 1;
const FLAG_DISK: u32 = 2;
const FLAG_REQUIRED: u32 = 4;
const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// Whether building the file has been finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    Finished,
    /// Carries the incomplete-file marker.
    Unfinished,
}

/// Everything that the region says and this build understands.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) completion: Completion,
    pub(super) subformat: Subformat,
    pub(super) block_size: u32,
    pub(super) size: u64,
    pub(super) disk_id: DiskId,
    pub(super) logical_sector: u32,
    pub(super) physical_sector: u32,
    pub(super) locator: Option<ParentLocator>,
}

/// Known items as they lie in the file.
#[derive(Default)]
struct Items {
    parameters: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    disk_id: Option<Vec<u8>>,
    logical: Option<Vec<u8>>,
    physical: Option<Vec<u8>>,
    locator: Option<Vec<u8>>,
    marker: Option<Vec<u8>>,
}

impl Items {
    fn slot(&mut self, item: Uuid) -> Option<&mut Option<Vec<u8>>> {
        Some(match item {
            FILE_PARAMETERS => &mut self.parameters,
            DISK_SIZE => &mut self.size,
            PAGE_83 => &mut self.disk_id,
            LOGICAL_SECTOR => &mut self.logical,
            PHYSICAL_SECTOR => &mut self.physical,
            PARENT_LOCATOR => &mut self.locator,
            INCOMPLETE_FILE => &mut self.marker,
            _ => return None,
        })
    }
}

/// Reads the region.
pub(super) fn read(file: &dyn ReadAt, region: Span) -> Result<Metadata> {
    let mut table = vec![0; TABLE_BYTES];
    file.read_at(region.offset, &mut table)?;
    let fields = Fields::new(&table, "vhdx metadata table");
    if fields.slice(0, 8)? != b"metadata" {
        return Err(Error::corrupt("vhdx metadata table: signature missing"));
    }
    let count = fields.u16(10)?;
    if count > MAX_ENTRIES {
        return Err(Error::corrupt(format!(
            "vhdx metadata table: {count} entries"
        )));
    }
    let mut items = Items::default();
    let mut unknown = None;
    for index in 1..=usize::from(count) {
        let at = index.saturating_mul(ENTRY_BYTES);
        let entry = Fields::new(fields.slice(at, ENTRY_BYTES)?, "vhdx metadata entry");
        let item = entry.guid(0)?;
        let flags = entry.u32(24)?;
        let slot = if flags & FLAG_USER == 0 {
            items.slot(item)
        } else {
            None
        };
        let Some(slot) = slot else {
            if flags & FLAG_REQUIRED != 0 {
                unknown = Some(item);
            }
            continue;
        };
        let bytes = read_item(file, region, item, entry.u32(16)?, entry.u32(20)?)?;
        if slot.replace(bytes).is_some() {
            return Err(Error::corrupt(format!(
                "vhdx metadata item {item}: listed twice"
            )));
        }
    }
    if let (Some(item), None) = (unknown, &items.marker) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("vhdx metadata item {item}: unknown and required"),
        ));
    }
    decode(items)
}

fn read_item(
    file: &dyn ReadAt,
    region: Span,
    item: Uuid,
    offset: u32,
    length: u32,
) -> Result<Vec<u8>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let end = u64::from(offset).saturating_add(u64::from(length));
    let behind_table = usize::try_from(offset).is_ok_and(|offset| offset >= TABLE_BYTES);
    if length > MAX_ITEM_BYTES || end > region.length || !behind_table {
        return Err(Error::corrupt(format!(
            "vhdx metadata item {item}: {length} bytes at {offset:#x} of a region of {:#x}",
            region.length
        )));
    }
    let mut bytes = vec![0; to_usize(u64::from(length))];
    file.read_at(region.offset.saturating_add(u64::from(offset)), &mut bytes)?;
    Ok(bytes)
}

fn decode(items: Items) -> Result<Metadata> {
    let need = |bytes: Option<Vec<u8>>, name: &'static str| {
        bytes.ok_or_else(|| Error::corrupt(format!("vhdx metadata: no {name}")))
    };
    let parameters = need(items.parameters, "file parameters")?;
    let parameters = Fields::new(&parameters, "vhdx file parameters");
    let flags = parameters.u32(4)?;
    let subformat = match (flags & HAS_PARENT != 0, flags & LEAVE_BLOCKS_ALLOCATED != 0) {
        (true, _) => Subformat::Differencing,
        (false, true) => Subformat::Fixed,
        (false, false) => Subformat::Dynamic,
    };
    let locator = match (subformat, items.locator) {
        (Subformat::Differencing, None) => {
            return Err(Error::corrupt(
                "vhdx metadata: it has a parent, but no parent locator",
            ));
        }
        (Subformat::Differencing, Some(bytes)) => Some(ParentLocator::decode(&bytes)?),
        _ => None,
    };
    let physical_sector = Fields::new(
        &need(items.physical, "physical sector size")?,
        "vhdx physical sector size",
    )
    .u32(0)?;
    if physical_sector != 512 && physical_sector != 4096 {
        return Err(Error::corrupt(format!(
            "vhdx metadata: physical sector of {physical_sector}"
        )));
    }
    let metadata = Metadata {
        completion: match items.marker {
            Some(_) => Completion::Unfinished,
            None => Completion::Finished,
        },
        subformat,
        block_size: parameters.u32(0)?,
        size: Fields::new(&need(items.size, "disk size")?, "vhdx disk size").u64(0)?,
        disk_id: DiskId(
            Fields::new(&need(items.disk_id, "disk id (page 83)")?, "vhdx disk id").guid(0)?,
        ),
        logical_sector: Fields::new(&need(items.logical, "logical sector size")?, "vhdx sector")
            .u32(0)?,
        physical_sector,
        locator,
    };
    // What a caller may not ask for is, when a file says it, damage.
    metadata
        .geometry()
        .map_err(|fault| Error::corrupt(fault.to_string()))?;
    Ok(metadata)
}

impl Metadata {
    pub(super) fn geometry(&self) -> Result<Geometry> {
        let lineage = match self.subformat {
            Subformat::Differencing => Lineage::Differencing,
            _ => Lineage::Standalone,
        };
        Geometry::new(self.size, self.block_size, self.logical_sector, lineage)
    }

    /// Table and items as Windows orders them, in one piece that begins the region. The table proper lies in the first
    /// 512 bytes, so that adding or removing the marker is one sector's write.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let parameters_flags = match self.subformat {
            Subformat::Fixed => LEAVE_BLOCKS_ALLOCATED,
            Subformat::Differencing => HAS_PARENT,
            _ => 0,
        };
        let mut parameters = self.block_size.to_le_bytes().to_vec();
        parameters.extend_from_slice(&parameters_flags.to_le_bytes());
        let mut items = vec![
            (FILE_PARAMETERS, FLAG_REQUIRED, parameters),
            (
                DISK_SIZE,
                FLAG_REQUIRED | FLAG_DISK,
                self.size.to_le_bytes().to_vec(),
            ),
            (
                LOGICAL_SECTOR,
                FLAG_REQUIRED | FLAG_DISK,
                self.logical_sector.to_le_bytes().to_vec(),
            ),
            (
                PHYSICAL_SECTOR,
                FLAG_REQUIRED | FLAG_DISK,
                self.physical_sector.to_le_bytes().to_vec(),
            ),
            (
                PAGE_83,
                FLAG_REQUIRED | FLAG_DISK,
                self.disk_id.0.to_bytes_le().to_vec(),
            ),
        ];
        if let Some(locator) = &self.locator {
            items.push((PARENT_LOCATOR, FLAG_REQUIRED, locator.encode()?));
        }
        if self.completion == Completion::Unfinished {
            items.push((INCOMPLETE_FILE, FLAG_REQUIRED, Vec::new()));
        }
        let mut bytes = Encoder::new(TABLE_BYTES);
        bytes.put(0, b"metadata");
        bytes.u16(10, u16::try_from(items.len()).unwrap_or(u16::MAX));
        let mut at = ENTRY_BYTES;
        let mut item_at = TABLE_BYTES;
        for (item, flags, content) in items {
            bytes.guid(at, item);
            if !content.is_empty() {
                bytes.u32(
                    at.saturating_add(16),
                    u32::try_from(item_at).unwrap_or(u32::MAX),
                );
            }
            bytes.u32(
                at.saturating_add(20),
                u32::try_from(content.len()).unwrap_or(u32::MAX),
            );
            bytes.u32(at.saturating_add(24), flags);
            bytes.put(item_at, &content);
            item_at = item_at.saturating_add(content.len());
            at = at.saturating_add(ENTRY_BYTES);
        }
        Ok(bytes.finish())
    }
}

/// The table of a finished file, made of the one that lies there by taking the marker out: every other entry, ours or
/// not, stays as it is.
pub(super) fn without_marker(table: &[u8]) -> Result<Vec<u8>> {
    let fields = Fields::new(table, "vhdx metadata table");
    let count = usize::from(fields.u16(10)?.min(MAX_ENTRIES));
    let mut bytes = Encoder::new(table.len());
    bytes.put(0, fields.slice(0, ENTRY_BYTES)?);
    let mut kept = 0u16;
    let mut at = ENTRY_BYTES;
    for index in 1..=count {
        let entry = fields.slice(index.saturating_mul(ENTRY_BYTES), ENTRY_BYTES)?;
        if Fields::new(entry, "vhdx metadata entry").guid(0)? != INCOMPLETE_FILE {
            bytes.put(at, entry);
            at = at.saturating_add(ENTRY_BYTES);
            kept = kept.saturating_add(1);
        }
    }
    bytes.u16(10, kept);
    Ok(bytes.finish())
}

/// Where items lie in the region.
pub(super) struct ItemPlaces {
    /// Every item's place, counted from the region's start.
    pub(super) spans: Vec<Span>,
    /// Where the table's entry for the parent locator begins.
    pub(super) locator_entry: u64,
}

/// Reads the places of all items, known or not.
pub(super) fn item_places(table: &[u8]) -> Result<ItemPlaces> {
    let fields = Fields::new(table, "vhdx metadata table");
    let mut spans = Vec::new();
    let mut locator_entry = None;
    for index in 1..=usize::from(fields.u16(10)?.min(MAX_ENTRIES)) {
        let at = index.saturating_mul(ENTRY_BYTES);
        let entry = Fields::new(fields.slice(at, ENTRY_BYTES)?, "vhdx metadata entry");
        spans.push(Span {
            offset: u64::from(entry.u32(16)?),
            length: u64::from(entry.u32(20)?),
        });
        if entry.guid(0)? == PARENT_LOCATOR && entry.u32(24)? & FLAG_USER == 0 {
            locator_entry = Some(to_u64(at));
        }
    }
    let locator_entry =
        locator_entry.ok_or_else(|| Error::corrupt("vhdx metadata: no parent locator"))?;
    Ok(ItemPlaces {
        spans,
        locator_entry,
    })
}

/// Where the disk size lies, counted from the region's start.
pub(super) fn disk_size_place(table: &[u8]) -> Result<u64> {
    let fields = Fields::new(table, "vhdx metadata table");
    for index in 1..=usize::from(fields.u16(10)?.min(MAX_ENTRIES)) {
        let at = index.saturating_mul(ENTRY_BYTES);
        let entry = Fields::new(fields.slice(at, ENTRY_BYTES)?, "vhdx metadata entry");
        if entry.guid(0)? == DISK_SIZE && entry.u32(24)? & FLAG_USER == 0 {
            return Ok(u64::from(entry.u32(16)?));
        }
    }
    Err(Error::corrupt("vhdx metadata: no disk size"))
}
