//! Reading a VHD.
//!
//! ```text
//!   offset ──► block ──► table ──┬─ absent ───────────────► zeros, or the parent
//!                                └─ sector s ─► dynamic ──► file at s + bitmap
//!                                             └ differencing ─► bit 1: file, bit 0: parent
//! ```
//!
//! **Invariants.** Opening reads the footers, the header and, once, the table, and refuses blocks that lie outside the
//! file or over one another. Memory is bounded: pages of the table, some bitmaps, and while opening four bytes for each
//! allocated block up to a cap. A differencing image without its parent never answers with zeros: it refuses.

use std::sync::Arc;

use block::{Extent, ExtentKind, ReadAt};

use super::format::{
    self, DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, HEADER_SIZE, Header, SECTOR_BYTES,
    UNUSED_BLOCK, VhdTime, length_u64,
};
use super::placement::Placement;
use super::table::{Bitmaps, BlockTable, bit_run};
use crate::{DiskId, Error, ErrorKind, Format, ImageInfo, Result, Subformat};

/// Smallest and greatest block that is believed; Windows writes 512 KiB and 2 MiB.
const BLOCK_BYTES_RANGE: std::ops::RangeInclusive<u32> = 4096..=256 << 20;
/// The longest parent path that is read.
const MAX_LOCATOR_BYTES: u32 = 64 * 1024;

/// Where a footer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FooterPlace {
    /// The last 512 bytes.
    End,
    /// The last 511 bytes, as tools before 2004 wrote it.
    ShortEnd,
    /// The copy at the beginning: the end is damaged or missing.
    Copy,
}

/// What a differencing image knows of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentIdentity {
    /// The parent's unique id: must match.
    pub id: DiskId,
    /// The parent's time of last change: advisory, tools change it freely.
    pub time: VhdTime,
    /// Where the parent is said to lie, relative paths first.
    pub paths: Vec<String>,
}

/// The parts of an image that has blocks.
pub(super) struct Blocks {
    pub header: Header,
    pub table: BlockTable,
    pub block_bytes: u64,
    /// Bytes of a block's bitmap: whole sectors in front of its data.
    pub bitmap_bytes: u64,
    pub bitmaps: Bitmaps,
}

/// A VHD opened for reading.
pub struct VhdReader {
    file: Arc<dyn ReadAt>,
    footer: Footer,
    place: FooterPlace,
    blocks: Option<Blocks>,
    parent_identity: Option<ParentIdentity>,
    parent: Option<Arc<dyn ReadAt>>,
}

/// A piece of a read: where its bytes come from.
enum Piece {
    File { offset: u64 },
    Parent,
    Zero,
}

impl VhdReader {
    /// Opens an image. `parent` is what a differencing image lies on; without it only its own sectors can be read.
    pub fn open(file: Arc<dyn ReadAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let (footer, place) = find_footer(&*file)?;
        Self::open_with(file, footer, place, parent)
    }

    /// The same when the footer is known.
    pub(super) fn open_with(
        file: Arc<dyn ReadAt>,
        footer: Footer,
        place: FooterPlace,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        let mut reader = Self {
            file,
            footer,
            place,
            blocks: None,
            parent_identity: None,
            parent: None,
        };
        if let Some(header_offset) = reader.footer.header_offset {
            let blocks = open_blocks(&reader.file, &reader.footer, header_offset)?;
            if reader.footer.disk_type == DiskType::Differencing {
                reader.parent_identity = Some(ParentIdentity {
                    id: blocks.header.parent_id,
                    time: blocks.header.parent_time,
                    paths: parent_paths(&*reader.file, &blocks.header)?,
                });
            }
            refuse_misplaced_blocks(&blocks, reader.file.size_bytes(), reader.size_bytes())?;
            reader.blocks = Some(blocks);
        } else if reader.footer.current_size_bytes > reader.data_end() {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "vhd fixed disk of {} bytes in a file with room for {}",
                    reader.footer.current_size_bytes,
                    reader.data_end()
                ),
            ));
        }
        Ok(match parent {
            Some(parent) => reader.with_parent(parent),
            None => reader,
        })
    }

    /// Reads through this parent from now on; an image that is not differencing has no use for one and ignores it.
    #[must_use]
    pub fn with_parent(mut self, parent: Arc<dyn ReadAt>) -> Self {
        if self.parent_identity.is_some() {
            self.parent = Some(parent);
        }
        self
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Vhd,
            subformat: match self.footer.disk_type {
                DiskType::Fixed => Subformat::Fixed,
                DiskType::Dynamic => Subformat::Dynamic,
                DiskType::Differencing => Subformat::Differencing,
            },
            size_bytes: self.size_bytes(),
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            allocation_unit_bytes: self.blocks.as_ref().map(|blocks| blocks.block_bytes),
            disk_id: Some(self.footer.unique_id),
            parent_paths: self
                .parent_identity
                .as_ref()
                .map(|it| it.paths.clone())
                .unwrap_or_default(),
            has_pending_log: false,
            creator: self.footer.creator_name(),
        }
    }

    /// Identity of this image, which its children name.
    pub fn unique_id(&self) -> DiskId {
        self.footer.unique_id
    }

    /// When this image was made or, for what its children remember, last changed.
    pub fn time(&self) -> VhdTime {
        self.footer.time
    }

    /// What a differencing image knows of its parent; `None` for the others.
    pub fn parent_identity(&self) -> Option<&ParentIdentity> {
        self.parent_identity.as_ref()
    }

    pub(super) fn footer(&self) -> &Footer {
        &self.footer
    }

    pub(super) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// The end of what may hold data: the footer's offset, or the end of the file where the footer is lost.
    pub(super) fn data_end(&self) -> u64 {
        let footer_bytes = match self.place {
            FooterPlace::End => 512,
            FooterPlace::ShortEnd => 511,
            FooterPlace::Copy => 0,
        };
        self.file.size_bytes().saturating_sub(footer_bytes)
    }

    /// What answers at `offset`, and for how many bytes, at most `limit`.
    fn piece_at(&self, offset: u64, limit: u64) -> Result<(Piece, u64)> {
        let Some(blocks) = &self.blocks else {
            return Ok((Piece::File { offset }, limit));
        };
        let index = offset.checked_div(blocks.block_bytes).unwrap_or(0);
        let within = offset.checked_rem(blocks.block_bytes).unwrap_or(0);
        let left_in_block = blocks.block_bytes.saturating_sub(within);
        let Some(block_start) = blocks.start_of(index)? else {
            let more = limit
                .saturating_sub(left_in_block)
                .div_ceil(blocks.block_bytes);
            let run = blocks.table.absent_run(index.saturating_add(1), more)?;
            let length = left_in_block.saturating_add(run.saturating_mul(blocks.block_bytes));
            let piece = if self.parent_identity.is_some() {
                Piece::Parent
            } else {
                Piece::Zero
            };
            return Ok((piece, length.min(limit)));
        };
        let data_start = block_start.saturating_add(blocks.bitmap_bytes);
        let in_file = Piece::File {
            offset: data_start.saturating_add(within),
        };
        let limit = limit.min(left_in_block);
        if self.parent_identity.is_none() {
            return Ok((in_file, limit));
        }
        let bitmap = blocks.bitmaps.get(index, block_start)?;
        let first = within / SECTOR_BYTES;
        let skipped = within % SECTOR_BYTES;
        let sectors = limit.saturating_add(skipped).div_ceil(SECTOR_BYTES);
        let (in_child, run) = bit_run(&bitmap, first, sectors);
        let length = run
            .saturating_mul(SECTOR_BYTES)
            .saturating_sub(skipped)
            .min(limit);
        Ok((if in_child { in_file } else { Piece::Parent }, length))
    }

    fn read_parent(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            return Err(Error::new(
                ErrorKind::ParentNotFound,
                format!(
                    "vhd: {} bytes at {offset} lie in the parent, which was not opened",
                    buffer.len()
                ),
            ));
        };
        Ok(block::read_padded(parent, offset, buffer)?)
    }

    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.size_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("vhd: {length} bytes at {offset} of a disk of {size}"),
            )),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_range(offset, length_u64(buffer))?;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (piece, length) = self.piece_at(at, length_u64(rest))?;
            let (now, later) = rest.split_at_mut(
                usize::try_from(length)
                    .unwrap_or(usize::MAX)
                    .min(rest.len()),
            );
            match piece {
                Piece::File { offset } => self.file.read_at(offset, now)?,
                Piece::Parent => self.read_parent(at, now)?,
                Piece::Zero => now.fill(0),
            }
            at = at.saturating_add(length);
            rest = later;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let limit = self.size_bytes().saturating_sub(offset).min(limit_bytes);
        self.check_range(offset, limit_bytes.min(1))?;
        if limit == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("vhd: extent at {offset}"),
            ));
        }
        let (piece, length) = self.piece_at(offset, limit)?;
        let whole = |kind| Extent {
            offset,
            length_bytes: length,
            kind,
        };
        match (piece, &self.parent) {
            (Piece::Zero, _) => Ok(whole(ExtentKind::Unallocated)),
            (Piece::File { offset: at }, _) => {
                // A hole of the host file inside an allocated block is written space that holds zeros.
                let below = self.file.extent_at(at, length)?;
                let kind = if !below.kind.is_zero() {
                    ExtentKind::Data
                } else if self.blocks.is_some() {
                    ExtentKind::Zero
                } else {
                    below.kind
                };
                Ok(Extent {
                    offset,
                    length_bytes: below.length_bytes.clamp(1, length),
                    kind,
                })
            }
            (Piece::Parent, None) => Ok(whole(ExtentKind::InParent)),
            (Piece::Parent, Some(parent)) if offset >= parent.size_bytes() => {
                Ok(whole(ExtentKind::Unallocated))
            }
            (Piece::Parent, Some(parent)) => Ok(parent.extent_at(offset, length)?),
        }
    }
}

impl Blocks {
    /// Where a block begins in the file, if it is there.
    pub fn start_of(&self, index: u64) -> Result<Option<u64>> {
        let sector = self.table.get(index)?;
        Ok((sector != UNUSED_BLOCK).then(|| u64::from(sector).saturating_mul(SECTOR_BYTES)))
    }
}

impl ReadAt for VhdReader {
    fn size_bytes(&self) -> u64 {
        self.footer.current_size_bytes
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        Ok(self.read(offset, buffer)?)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        Ok(self.extent(offset, limit_bytes)?)
    }
}

/// The footer that rules: the end's, or the copy's when the end is damaged.
pub(super) fn find_footer(file: &dyn ReadAt) -> Result<(Footer, FooterPlace)> {
    let size = file.size_bytes();
    let mut reasons = Vec::new();
    for (place, bytes) in [(FooterPlace::End, 512_u64), (FooterPlace::ShortEnd, 511)] {
        match read_footer(file, size.checked_sub(bytes), bytes, "at the end") {
            Ok(footer) => return Ok((footer, place)),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => reasons.push(error),
        }
    }
    match read_footer(file, Some(0), 512, "at the beginning") {
        // A fixed disk has no copy: what looks like one is the disk's own first sector.
        Ok(footer) if footer.disk_type == DiskType::Fixed => {}
        Ok(footer) => return Ok((footer, FooterPlace::Copy)),
        Err(error) => reasons.push(error),
    }
    let by_kind = |kind| {
        reasons
            .iter()
            .any(|error: &Error| error.kind() == kind)
            .then_some(kind)
    };
    let kind = by_kind(ErrorKind::Incomplete)
        .or(by_kind(ErrorKind::Io))
        .or(by_kind(ErrorKind::Unsupported))
        .unwrap_or(ErrorKind::Corrupt);
    let mut texts: Vec<String> = reasons.iter().map(Error::to_string).collect();
    texts.dedup();
    Err(Error::new(
        kind,
        format!("no valid footer: {}", texts.join("; ")),
    ))
}

/// One candidate, decoded and verified.
fn read_footer(file: &dyn ReadAt, offset: Option<u64>, bytes: u64, place: &str) -> Result<Footer> {
    let Some(offset) = offset.filter(|at| at.saturating_add(bytes) <= file.size_bytes()) else {
        let context = format!("vhd: a file of {} bytes has no footer", file.size_bytes());
        return Err(Error::new(ErrorKind::Incomplete, context));
    };
    let mut footer = [0; FOOTER_BYTES];
    let (wanted, _) = footer.split_at_mut(usize::try_from(bytes).unwrap_or(0).min(FOOTER_BYTES));
    file.read_at(offset, wanted)?;
    Footer::decode(&footer, place)
}

/// Reads the header and refuses what cannot be true before anything is computed from it.
pub(super) fn open_blocks(
    file: &Arc<dyn ReadAt>,
    footer: &Footer,
    header_offset: u64,
) -> Result<Blocks> {
    let mut bytes = [0; HEADER_BYTES];
    let header_end = header_offset.checked_add(HEADER_SIZE);
    if header_end.is_none_or(|end| end > file.size_bytes()) {
        return Err(Error::corrupt(format!(
            "vhd dynamic header at {header_offset} lies outside the file"
        )));
    }
    file.read_at(header_offset, &mut bytes)?;
    let header = Header::decode(&bytes, header_offset)?;
    if !header.block_bytes.is_power_of_two() || !BLOCK_BYTES_RANGE.contains(&header.block_bytes) {
        return Err(Error::corrupt(format!(
            "vhd block of {} bytes",
            header.block_bytes
        )));
    }
    let block_bytes = u64::from(header.block_bytes);
    let needed = footer.current_size_bytes.div_ceil(block_bytes);
    if needed > u64::from(header.table_entries) {
        return Err(Error::corrupt(format!(
            "vhd table of {} entries for a disk of {needed} blocks",
            header.table_entries
        )));
    }
    let table_end = header.table_offset.checked_add(needed.saturating_mul(4));
    if table_end.is_none_or(|end| end > file.size_bytes()) {
        return Err(Error::corrupt(format!(
            "vhd table of {needed} entries at {} lies outside the file",
            header.table_offset
        )));
    }
    let table = BlockTable::new(Arc::clone(file), header.table_offset, needed);
    let bitmap_bytes = (block_bytes / SECTOR_BYTES)
        .div_ceil(8)
        .next_multiple_of(SECTOR_BYTES);
    Ok(Blocks {
        header,
        table,
        block_bytes,
        bitmap_bytes,
        bitmaps: Bitmaps::new(Arc::clone(file), usize::try_from(bitmap_bytes).unwrap_or(0)),
    })
}

/// Refuses blocks that reach behind the end of the file or lie over one another.
fn refuse_misplaced_blocks(blocks: &Blocks, file_bytes: u64, disk_bytes: u64) -> Result<()> {
    let mut placement = Placement::new(blocks, file_bytes, disk_bytes);
    blocks
        .table
        .for_each_allocated(|index, sector| placement.add(index, sector))?;
    match placement.overlaps().next() {
        Some((one, next)) => Err(Error::corrupt(format!(
            "vhd blocks at sectors {one} and {next} overlap"
        ))),
        None => Ok(()),
    }
}

/// Every path that the image gives for its parent: relative first, then absolute, then the bare name.
///
/// | code | path | who writes it |
/// |---|---|---|
/// | `W2ru`, `W2ku` | UTF-16LE, relative, absolute | Windows, and everybody else |
/// | `Wi2r`, `Wi2k` | single bytes, relative, absolute | before 2004 |
/// | `MacX` | a `file:` URL in UTF-8 | Virtual PC for Mac, Xen |
fn parent_paths(file: &dyn ReadAt, header: &Header) -> Result<Vec<String>> {
    let mut found: Vec<(u8, String)> = Vec::new();
    for locator in header.locators {
        type Decode = fn(&[u8]) -> String;
        let (rank, decode): (u8, Decode) = match &locator.platform {
            b"W2ru" => (0, format::decode_locator_path),
            b"W2ku" => (1, format::decode_locator_path),
            b"Wi2r" => (2, format::decode_narrow_path),
            b"Wi2k" => (3, format::decode_narrow_path),
            b"MacX" => (4, format::decode_url_path),
            _ => continue,
        };
        let end = locator.offset.checked_add(u64::from(locator.length_bytes));
        if locator.length_bytes > MAX_LOCATOR_BYTES || end.is_none_or(|end| end > file.size_bytes())
        {
            if rank > 1 {
                // The ones that nobody reads may be left over from anything.
                continue;
            }
            return Err(Error::corrupt(format!(
                "vhd parent path of {} bytes at {}",
                locator.length_bytes, locator.offset
            )));
        }
        let mut bytes = vec![0; usize::try_from(locator.length_bytes).unwrap_or(0)];
        file.read_at(locator.offset, &mut bytes)?;
        found.push((rank, decode(&bytes)));
    }
    found.push((5, header.parent_name.clone()));
    found.retain(|(_, path)| !path.is_empty());
    found.sort_by_key(|(rank, _)| *rank);
    let mut paths: Vec<String> = Vec::new();
    for (_, path) in found {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}
