//! Sparse extents: hosted ("KDMV", also stream-optimized), ESX redo logs ("COWD") and seSparse.
//!
//! ```text
//! hosted header (512 bytes)                           grain directory ─► grain table ─► grain
//!   0 "KDMV"   12 capacity     44 GTEs per table      u32 sector         u32 sector     64 KiB usually
//!   4 version  20 grain size   48 redundant directory 0: nothing         0: nothing, 1: zeros (if flag 2 is set)
//!   8 flags    28 descriptor   56 directory           compressed grain: u64 LBA ‖ u32 length ‖ zlib stream
//!              36 … length     64 overhead  72 unclean  77 compression
//! ```
//! A directory at `0xffff_ffff_ffff_ffff` means: the real header is the footer, 1024 bytes before the end of the file.
//!
//! **Invariants.** Grain size is a power of two of at most 1 GiB (16 MiB when compressed); the directory has at most 32 Mi
//! entries and lies inside the file; tables are paged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;
use flate2::{Decompress, FlushDecompress};

use super::SECTOR_BYTES;
use crate::field::{array, bytes, index, le16, le32, le64};
use crate::pages::Pages;
use crate::{Error, ErrorKind, Result};

const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const DIRECTORY_IN_FOOTER: u64 = u64::MAX;
const MARKER_FOOTER: u32 = 3;
const MAX_GRAIN_SECTORS: u64 = 0x20_0000;
const MAX_COMPRESSED_GRAIN_BYTES: u64 = 16 << 20;
const MAX_DIRECTORY_ENTRIES: u64 = 32 << 20;
const TABLE_PAGE_BYTES: u64 = 64 * 1024;
/// Inflated grains kept for small sequential reads.
const KEPT_GRAINS: usize = 8;

/// What a sparse file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SparseMagic {
    Hosted,
    Cowd,
    SeSparse,
}

impl SparseMagic {
    pub fn of(first: &[u8]) -> Option<Self> {
        match array::<4>(first, 0, "magic").ok()? {
            [b'K', b'D', b'M', b'V'] => Some(Self::Hosted),
            [b'C', b'O', b'W', b'D'] => Some(Self::Cowd),
            _ if le64(first, 0, "magic").ok()? == 0xcafe_babe => Some(Self::SeSparse),
            _ => None,
        }
    }
}

/// What holds a run of an extent's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Unallocated,
    Zero,
    Data {
        host: u64,
    },
    /// The compressed grain at `host`, which begins at extent offset `grain`.
    Compressed {
        host: u64,
        grain: u64,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub length: u64,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Hosted {
        zero_grains: bool,
        compressed: bool,
        markers: bool,
    },
    Cowd,
    SeSparse {
        tables_at: u64,
        grains_at: u64,
    },
}

/// One sparse extent.
pub(super) struct SparseExtent {
    file: Arc<dyn ReadAt>,
    layout: Layout,
    pub capacity_bytes: u64,
    pub grain_bytes: u64,
    entries_per_table: u64,
    directory_at: u64,
    pages: Pages,
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
    /// Where the embedded descriptor lies, and its length; both 0 without one.
    pub descriptor: (u64, u64),
    pub is_unclean: bool,
    pub is_compressed: bool,
}

/// The numbers that the three headers have in common.
struct Shape {
    layout: Layout,
    capacity_sectors: u64,
    grain_sectors: u64,
    entries_per_table: u64,
    directory_sector: u64,
    directory_entries: Option<u64>,
    descriptor: (u64, u64),
    is_unclean: bool,
}

fn sectors(count: u64, what: &str) -> Result<u64> {
    count
        .checked_mul(SECTOR_BYTES)
        .filter(|bytes| *bytes <= i64::MAX.unsigned_abs())
        .ok_or_else(|| Error::corrupt(format!("vmdk {what}: {count} sectors")))
}

impl SparseExtent {
    /// Opens a sparse file of whichever kind its magic says.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let mut first = [0u8; 512];
        block::read_padded(&file, 0, &mut first)?;
        let shape = match SparseMagic::of(&first) {
            Some(SparseMagic::Hosted) => hosted_shape(&*file, &first)?,
            Some(SparseMagic::Cowd) => cowd_shape(&first)?,
            Some(SparseMagic::SeSparse) => sesparse_shape(&*file, &first)?,
            None => return Err(Error::corrupt("vmdk sparse extent: unknown magic")),
        };
        Self::with_shape(file, shape)
    }

    fn with_shape(file: Arc<dyn ReadAt>, shape: Shape) -> Result<Self> {
        let what = "sparse header";
        if !shape.grain_sectors.is_power_of_two() || shape.grain_sectors > MAX_GRAIN_SECTORS {
            return Err(Error::corrupt(format!(
                "vmdk {what}: grain of {} sectors",
                shape.grain_sectors
            )));
        }
        let capacity_bytes = sectors(shape.capacity_sectors, "capacity")?;
        let grain_bytes = sectors(shape.grain_sectors, "grain size")?;
        let per_table = shape.entries_per_table.saturating_mul(grain_bytes).max(1);
        let needed = capacity_bytes.div_ceil(per_table);
        if needed > MAX_DIRECTORY_ENTRIES {
            return Err(Error::corrupt(format!(
                "vmdk {what}: a grain directory of {needed} entries is too big"
            )));
        }
        if shape
            .directory_entries
            .is_some_and(|entries| entries < needed)
        {
            return Err(Error::corrupt(format!(
                "vmdk {what}: the grain directory does not cover the disk"
            )));
        }
        let directory_at = sectors(shape.directory_sector, "grain directory")?;
        let entry_bytes = entry_bytes(shape.layout);
        let end = directory_at.saturating_add(needed.saturating_mul(entry_bytes));
        if end > file.size_bytes() {
            return Err(Error::corrupt(format!(
                "vmdk {what}: grain directory at {directory_at:#x} reaches out of the file"
            )));
        }
        let is_compressed = matches!(
            shape.layout,
            Layout::Hosted {
                compressed: true,
                ..
            }
        );
        if is_compressed && grain_bytes > MAX_COMPRESSED_GRAIN_BYTES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("vmdk {what}: compressed grains of {grain_bytes} bytes"),
            ));
        }
        Ok(Self {
            file,
            layout: shape.layout,
            capacity_bytes,
            grain_bytes,
            entries_per_table: shape.entries_per_table,
            directory_at,
            pages: Pages::new(TABLE_PAGE_BYTES),
            kept: Mutex::default(),
            descriptor: shape.descriptor,
            is_unclean: shape.is_unclean,
            is_compressed,
        })
    }

    fn entry(&self, at: u64, what: &str) -> Result<u64> {
        let page = self.pages.get(&*self.file, at)?;
        if entry_bytes(self.layout) == 8 {
            page.array(at, what).map(u64::from_le_bytes)
        } else {
            page.array(at, what)
                .map(|raw| u64::from(u32::from_le_bytes(raw)))
        }
    }

    /// Where the grain table of a directory entry lies.
    fn table_at(&self, directory_index: u64) -> Result<Option<u64>> {
        let size = entry_bytes(self.layout);
        let at = self
            .directory_at
            .saturating_add(directory_index.saturating_mul(size));
        let entry = self.entry(at, "vmdk grain directory")?;
        match self.layout {
            Layout::SeSparse { tables_at, .. } => {
                if entry == 0 {
                    return Ok(None);
                }
                if entry >> 32 != 0x1000_0000 {
                    return Err(Error::corrupt(format!(
                        "vmdk grain directory entry {directory_index}: {entry:#018x}"
                    )));
                }
                let table =
                    (entry & 0xffff_ffff).saturating_mul(self.entries_per_table.saturating_mul(8));
                Ok(Some(tables_at.saturating_add(table)))
            }
            _ => Ok((entry != 0).then(|| entry.saturating_mul(SECTOR_BYTES))),
        }
    }

    fn place_of(&self, entry: u64, grain: u64) -> Result<Place> {
        match self.layout {
            Layout::Hosted {
                zero_grains: true, ..
            } if entry == 1 => Ok(Place::Zero),
            Layout::Hosted {
                compressed: true, ..
            } if entry != 0 => Ok(Place::Compressed {
                host: entry.saturating_mul(SECTOR_BYTES),
                grain,
            }),
            Layout::Hosted { .. } | Layout::Cowd if entry != 0 => Ok(Place::Data {
                host: entry.saturating_mul(SECTOR_BYTES),
            }),
            Layout::Hosted { .. } | Layout::Cowd => Ok(Place::Unallocated),
            Layout::SeSparse { grains_at, .. } => match entry >> 60 {
                0 if entry == 0 => Ok(Place::Unallocated),
                1 | 2 => Ok(Place::Zero),
                3 => {
                    let number = ((entry & 0x0fff_0000_0000_0000) >> 48)
                        | ((entry & 0x0000_ffff_ffff_ffff) << 12);
                    let host = number
                        .checked_mul(self.grain_bytes)
                        .and_then(|bytes| bytes.checked_add(grains_at))
                        .ok_or_else(|| Error::corrupt(format!("vmdk grain entry {entry:#018x}")))?;
                    Ok(Place::Data { host })
                }
                _ => Err(Error::corrupt(format!(
                    "vmdk grain table entry of extent offset {grain:#x}: {entry:#018x}"
                ))),
            },
        }
    }

    /// The longest run from `offset` on that one page of a grain table (or one empty directory entry) describes.
    pub fn run_at(&self, offset: u64, limit: u64) -> Result<Run> {
        let per_table = self
            .entries_per_table
            .saturating_mul(self.grain_bytes)
            .max(1);
        let directory_index = offset.checked_div(per_table).unwrap_or(0);
        let table_end = directory_index.saturating_add(1).saturating_mul(per_table);
        let Some(table_at) = self.table_at(directory_index)? else {
            let length = table_end.saturating_sub(offset).min(limit);
            return Ok(Run {
                length,
                place: Place::Unallocated,
            });
        };
        let size = entry_bytes(self.layout);
        let mut grain = offset & !self.grain_bytes.saturating_sub(1);
        let in_table = grain.checked_rem(per_table).unwrap_or(0);
        let number = in_table.checked_div(self.grain_bytes).unwrap_or(0);
        let mut at = table_at.saturating_add(number.saturating_mul(size));
        let page_end = self.pages.page_end(at);
        let mut found: Option<Run> = None;
        while at < page_end && grain < table_end {
            let place = self.place_of(self.entry(at, "vmdk grain table")?, grain)?;
            let within = offset.max(grain).saturating_sub(grain);
            let next = Run {
                length: self.grain_bytes.saturating_sub(within),
                place: match place {
                    Place::Data { host } => Place::Data {
                        host: host.saturating_add(within),
                    },
                    other => other,
                },
            };
            match join(found, next) {
                Some(joined) => found = Some(joined),
                None => break,
            }
            if found.is_some_and(|run| run.length >= limit) {
                break;
            }
            at = at.saturating_add(size);
            grain = grain.saturating_add(self.grain_bytes);
        }
        let run = found.unwrap_or(Run {
            length: 0,
            place: Place::Unallocated,
        });
        Ok(Run {
            length: run.length.min(limit),
            place: run.place,
        })
    }

    /// Fills `buffer` with data of a `Data` run that begins at `host`.
    pub fn read_data(&self, host: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = self.file.size_bytes();
        let last = host.saturating_add(bytes(buffer.len())).saturating_sub(1);
        // Only the grain that the file ends in may be short.
        if last >= length.saturating_add(self.grain_bytes) || host >= length {
            return Err(Error::corrupt(format!(
                "vmdk grain of extent offset {offset:#x}: {host:#x} is outside the file of {length} bytes"
            )));
        }
        Ok(block::read_padded(&self.file, host, buffer)?)
    }

    /// Fills `buffer` from the compressed grain at `host`, `offset` lying inside it.
    pub fn read_compressed(
        &self,
        (host, grain): (u64, u64),
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let kept = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter()
                .find(|(at, _)| *at == grain)
                .map(|(_, content)| Arc::clone(content))
        };
        let content = match kept {
            Some(content) => content,
            None => {
                let content: Arc<[u8]> = self.inflate(host, grain)?.into();
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.truncate(KEPT_GRAINS.saturating_sub(1));
                kept.push_front((grain, Arc::clone(&content)));
                content
            }
        };
        let from = index(offset.saturating_sub(grain));
        let source = content
            .get(from..from.saturating_add(buffer.len()))
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "vmdk compressed grain of extent offset {grain:#x} is short"
                ))
            })?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn inflate(&self, host: u64, grain: u64) -> Result<Vec<u8>> {
        let fail = |detail: String| {
            Error::corrupt(format!(
                "vmdk compressed grain of extent offset {grain:#x}: {detail}"
            ))
        };
        let greatest = self.grain_bytes.saturating_mul(2);
        let (body_at, length) = if matches!(self.layout, Layout::Hosted { markers: true, .. }) {
            let mut marker = [0u8; 12];
            let file_length = self.file.size_bytes();
            if host.saturating_add(12) > file_length {
                return Err(fail(format!("marker at {host:#x} is outside the file")));
            }
            self.file.read_at(host, &mut marker)?;
            let sector = le64(&marker, 0, "grain marker")?;
            if sector != grain / SECTOR_BYTES {
                return Err(fail(format!("its marker says sector {sector}")));
            }
            (
                host.saturating_add(12),
                u64::from(le32(&marker, 8, "grain marker")?),
            )
        } else {
            (
                host,
                greatest.min(self.file.size_bytes().saturating_sub(host)),
            )
        };
        let inside = body_at
            .checked_add(length)
            .is_some_and(|end| end <= self.file.size_bytes());
        if length > greatest || !inside {
            return Err(fail(format!("{length} bytes at {body_at:#x}")));
        }
        let mut input = vec![0u8; index(length)];
        self.file.read_at(body_at, &mut input)?;
        let mut output = vec![0u8; index(self.grain_bytes)];
        let mut inflate = Decompress::new(true);
        inflate
            .decompress(&input, &mut output, FlushDecompress::Finish)
            .map_err(|error| fail(error.to_string()))?;
        let needed = self
            .capacity_bytes
            .saturating_sub(grain)
            .min(self.grain_bytes);
        if inflate.total_out() < needed {
            return Err(fail(format!(
                "{} bytes came out instead of {needed}",
                inflate.total_out()
            )));
        }
        Ok(output)
    }
}

fn join(run: Option<Run>, next: Run) -> Option<Run> {
    let Some(run) = run else { return Some(next) };
    let fits = match (run.place, next.place) {
        (Place::Data { host }, Place::Data { host: next_host }) => {
            host.checked_add(run.length) == Some(next_host)
        }
        (Place::Compressed { .. }, _) => false,
        (one, other) => one == other,
    };
    fits.then(|| Run {
        length: run.length.saturating_add(next.length),
        place: run.place,
    })
}

fn entry_bytes(layout: Layout) -> u64 {
    if matches!(layout, Layout::SeSparse { .. }) {
        8
    } else {
        4
    }
}

fn hosted_shape(file: &dyn ReadAt, first: &[u8; 512]) -> Result<Shape> {
    let mut header = *first;
    if le64(first, 56, "sparse header")? == DIRECTORY_IN_FOOTER {
        header = read_footer(file)?;
    }
    let what = "sparse header";
    let version = le32(&header, 4, what)?;
    if !(1..=3).contains(&version) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("vmdk {what}: version {version}"),
        ));
    }
    let flags = le32(&header, 8, what)?;
    let algorithm = le16(&header, 77, what)?;
    if algorithm > 1 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("vmdk {what}: compression algorithm {algorithm}"),
        ));
    }
    let compressed = flags & FLAG_COMPRESSED != 0 || algorithm == 1;
    let entries_per_table = u64::from(le32(&header, 44, what)?);
    if !(1..=512).contains(&entries_per_table) {
        return Err(Error::corrupt(format!(
            "vmdk {what}: {entries_per_table} entries per grain table"
        )));
    }
    let overhead = sectors(le64(&header, 64, what)?, "overhead")?;
    if overhead > file.size_bytes() {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!(
                "vmdk {what}: the file has {} bytes, its tables alone {overhead}",
                file.size_bytes()
            ),
        ));
    }
    Ok(Shape {
        layout: Layout::Hosted {
            zero_grains: flags & FLAG_ZERO_GRAINS != 0,
            compressed,
            markers: flags & FLAG_MARKERS != 0,
        },
        capacity_sectors: le64(&header, 12, what)?,
        grain_sectors: le64(&header, 20, what)?,
        entries_per_table,
        directory_sector: le64(&header, 56, what)?,
        directory_entries: None,
        // The footer may leave these out; the header at the front has them.
        descriptor: (
            sectors(le64(first, 28, what)?, "descriptor offset")?,
            sectors(le64(first, 36, what)?, "descriptor length")?,
        ),
        is_unclean: header.get(72).copied().unwrap_or(0) != 0,
    })
}

fn read_footer(file: &dyn ReadAt) -> Result<[u8; 512]> {
    let incomplete = |detail: &str| {
        Error::new(
            ErrorKind::Incomplete,
            format!("vmdk stream-optimized footer: {detail}"),
        )
    };
    let end = file.size_bytes() & !511;
    let start = end
        .checked_sub(3 * SECTOR_BYTES)
        .ok_or_else(|| incomplete("the file is too short"))?;
    let mut tail = [0u8; 1536];
    file.read_at(start, &mut tail)?;
    let what = "footer";
    if le32(&tail, 8, what)? != 0 || le32(&tail, 12, what)? != MARKER_FOOTER {
        return Err(incomplete(
            "no footer marker before the end of the file: it was cut short",
        ));
    }
    let footer: [u8; 512] = array(&tail, 512, what)?;
    if SparseMagic::of(&footer) != Some(SparseMagic::Hosted) {
        return Err(incomplete("no header in it"));
    }
    if le64(&tail, 1024, what)? != 0 || le64(&tail, 1032, what)? != 0 {
        return Err(incomplete("no end-of-stream marker behind it"));
    }
    if le64(&footer, 56, what)? == DIRECTORY_IN_FOOTER {
        return Err(Error::corrupt(
            "vmdk stream-optimized footer: names no grain directory",
        ));
    }
    Ok(footer)
}

fn cowd_shape(header: &[u8]) -> Result<Shape> {
    let what = "COWD header";
    let field = |at| le32(header, at, what).map(u64::from);
    Ok(Shape {
        layout: Layout::Cowd,
        capacity_sectors: field(12)?,
        grain_sectors: field(16)?,
        entries_per_table: 4096,
        directory_sector: field(20)?,
        directory_entries: Some(field(24)?),
        descriptor: (0, 0),
        is_unclean: false,
    })
}

fn sesparse_shape(file: &dyn ReadAt, header: &[u8]) -> Result<Shape> {
    let what = "seSparse header";
    let unsupported =
        |detail: String| Error::new(ErrorKind::Unsupported, format!("vmdk {what}: {detail}"));
    let field = |at| le64(header, at, what);
    if field(8)? != 0x2_0000_0001 {
        return Err(unsupported(format!("version {:#x}", field(8)?)));
    }
    if field(24)? != 8 || field(32)? != 64 || field(40)? != 0 {
        return Err(unsupported(
            "grains, tables or flags of another kind".to_owned(),
        ));
    }
    let mut volatile = [0u8; 512];
    let volatile_at = sectors(field(80)?, "seSparse volatile header")?;
    block::read_padded(file, volatile_at, &mut volatile)?;
    if le64(&volatile, 0, what)? != 0xcafe_cafe {
        return Err(Error::corrupt(format!(
            "vmdk {what}: no volatile header at {volatile_at:#x}"
        )));
    }
    if le64(&volatile, 24, what)? != 0 {
        return Err(unsupported("its journal waits to be replayed".to_owned()));
    }
    let directory_bytes = sectors(field(136)?, "grain directory length")?;
    Ok(Shape {
        layout: Layout::SeSparse {
            tables_at: sectors(field(144)?, "grain tables")?,
            grains_at: sectors(field(192)?, "grains")?,
        },
        capacity_sectors: field(16)?,
        grain_sectors: field(24)?,
        entries_per_table: 4096,
        directory_sector: field(128)?,
        directory_entries: Some(directory_bytes / 8),
        descriptor: (0, 0),
        is_unclean: false,
    })
}
