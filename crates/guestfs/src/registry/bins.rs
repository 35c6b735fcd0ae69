//! The bytes of a hive: its base block, and cells as the logs leave them.
//!
//! ```text
//!   cell(offset) ─► size:i32 (negative: in use) data …      at 4096 + offset of the primary file
//!   page 512 B   ─► changed by a log? ─ yes ─► the log's bytes
//!                                      └ no ──► the primary file, through a small cache
//! ```
//!
//! **Invariants.** No cell reaches behind the bins; a cell above [`MAX_CELL_BYTES`] is refused before it is allocated.

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

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block::ReadAt;

use crate::cache::BlockCache;
use crate::filesystem::Timestamp;
use crate::{Error, ErrorKind, FileName, Result, field};

/// Bytes of the base block.
pub(super) const BASE_BYTES: usize = 4096;
/// The unit in which logs change bins.
pub(super) const PAGE_BYTES: usize = 512;
/// The largest cell that is read. Windows splits what is above 16,344 bytes; older versions do not, up to a megabyte.
const MAX_CELL_BYTES: u32 = 32 << 20;
/// 1 MiB of a hive is kept.
const CACHED_PAGES: usize = 256;

/// Where a cell lies, counted from the first bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CellOffset(pub u32);

impl CellOffset {
    /// Whether it says that there is nothing.
    pub(super) fn is_none(self) -> bool {
        self.0 == u32::MAX
    }
}

impl fmt::Display for CellOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a base block says.
#[derive(Debug, Clone)]
pub(super) struct BaseBlock {
    pub(super) primary_sequence: u32,
    pub(super) secondary_sequence: u32,
    pub(super) written_raw: u64,
    pub(super) last_written: Option<Timestamp>,
    pub(super) minor_version: u32,
    pub(super) file_type: u32,
    pub(super) root: CellOffset,
    pub(super) bins_bytes: u32,
    pub(super) file_name: FileName,
}

impl BaseBlock {
    /// Reads the first 512 bytes of a primary file or of a log.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if field::slice(bytes, 0, 4)? != b"regf" {
            return Err(Error::corrupt("base block: no regf signature"));
        }
        let mut sum = 0_u32;
        for at in (0..508).step_by(4) {
            sum ^= field::u32_le(bytes, at)?;
        }
        // The two sums that mean something else are never written.
        let sum = match sum {
            u32::MAX => u32::MAX.wrapping_sub(1),
            0 => 1,
            other => other,
        };
        if !field::sum_holds(sum, field::u32_le(bytes, 508)?) {
            return Err(Error::corrupt("base block: wrong checksum"));
        }
        let (major, minor) = (field::u32_le(bytes, 20)?, field::u32_le(bytes, 24)?);
        if major != 1 || !(2..=6).contains(&minor) {
            return Err(Error::unsupported(format!(
                "base block: hive version {major}.{minor}"
            )));
        }
        let format = field::u32_le(bytes, 32)?;
        if format != 1 {
            return Err(Error::unsupported(format!("base block: format {format}")));
        }
        let units: Vec<u16> = field::slice(bytes, 48, 64)?
            .chunks_exact(2)
            .filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes))
            .take_while(|unit| *unit != 0)
            .collect();
        let written_raw = field::u64_le(bytes, 12)?;
        Ok(Self {
            primary_sequence: field::u32_le(bytes, 4)?,
            secondary_sequence: field::u32_le(bytes, 8)?,
            written_raw,
            last_written: file_time(written_raw),
            minor_version: minor,
            file_type: field::u32_le(bytes, 28)?,
            root: CellOffset(field::u32_le(bytes, 36)?),
            bins_bytes: field::u32_le(bytes, 40)?,
            file_name: FileName::from_utf16(units),
        })
    }
}

/// Where a changed page's bytes are: which log, and where in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangedPage {
    pub(super) log: usize,
    pub(super) at: usize,
}

/// The bins of a hive.
pub(super) struct Bins {
    primary: BlockCache,
    logs: Vec<Vec<u8>>,
    /// Page number counted from the first bin.
    changed: BTreeMap<u32, ChangedPage>,
    length_bytes: u32,
}

impl Bins {
    pub(super) fn new(
        primary: Arc<dyn ReadAt>,
        logs: Vec<Vec<u8>>,
        changed: BTreeMap<u32, ChangedPage>,
        length_bytes: u32,
    ) -> Self {
        Self {
            primary: BlockCache::new(primary, 4096, CACHED_PAGES),
            logs,
            changed,
            length_bytes,
        }
    }

    /// How many cells of at least `least_bytes` fit.
    pub(super) fn most_cells(&self, least_bytes: usize) -> usize {
        usize::try_from(self.length_bytes)
            .unwrap_or(usize::MAX)
            .checked_div(least_bytes)
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The data of a cell in use.
    pub(super) fn cell(&self, offset: CellOffset) -> Result<Vec<u8>> {
        let damaged = |what: &str| Error::corrupt(format!("cell {offset}: {what}"));
        let mut size = [0; 4];
        self.read(offset.0, &mut size)
            .map_err(|error| error.within(format!("cell {offset}")))?;
        let size = i32::from_le_bytes(size);
        if size >= 0 {
            return Err(damaged("not in use"));
        }
        let Some(length) = size.unsigned_abs().checked_sub(4) else {
            return Err(damaged("shorter than its own length"));
        };
        let start = offset.0.checked_add(4);
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(damaged("reaches behind the hive"));
        };
        if end > self.length_bytes {
            return Err(damaged("reaches behind the last bin"));
        }
        if length > MAX_CELL_BYTES {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("cell {offset}: {length} bytes"),
            ));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
        self.read(start, &mut data)
            .map_err(|error| error.within(format!("cell {offset}")))?;
        Ok(data)
    }

    fn read(&self, offset: u32, buffer: &mut [u8]) -> Result<()> {
        let mut position = u64::from(offset);
        let mut rest = buffer;
        let page_bytes = field::bytes(PAGE_BYTES);
        while !rest.is_empty() {
            let page = u32::try_from(position.checked_div(page_bytes).unwrap_or(0));
            let within = usize::try_from(position.checked_rem(page_bytes).unwrap_or(0));
            let (Ok(page), Ok(within)) = (page, within) else {
                return Err(Error::corrupt("behind the end of a hive"));
            };
            let count = PAGE_BYTES.saturating_sub(within).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            match self.changed.get(&page) {
                Some(changed) => {
                    let log = self.logs.get(changed.log).map_or(&[][..], Vec::as_slice);
                    head.copy_from_slice(field::slice(
                        log,
                        changed.at.saturating_add(within),
                        count,
                    )?);
                }
                None => {
                    let at = position.saturating_add(field::bytes(BASE_BYTES));
                    self.primary.read(at, head)?;
                }
            }
            position = position.saturating_add(field::bytes(count));
            rest = tail;
        }
        Ok(())
    }
}

/// A name as a hive holds it.
pub(super) fn name(bytes: &[u8], is_latin1: bool) -> FileName {
    if is_latin1 {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        return FileName::from(text.as_str());
    }
    FileName::from_utf16(
        bytes
            .chunks_exact(2)
            .filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes)),
    )
}

/// Whether two names are the same to Windows.
pub(super) fn same_name(name: &FileName, wanted: &str) -> bool {
    let Ok(name) = std::str::from_utf8(name.as_bytes()) else {
        return false;
    };
    name.chars().map(upper).eq(wanted.chars().map(upper))
}

/// One capital per character, as Windows compares.
fn upper(character: char) -> char {
    let mut capitals = character.to_uppercase();
    match (capitals.next(), capitals.next()) {
        (Some(capital), None) => capital,
        _ => character,
    }
}

/// A FILETIME: units of 100 ns since 1601.
pub(super) fn file_time(raw: u64) -> Option<Timestamp> {
    const UNITS_PER_SECOND: u64 = 10_000_000;
    const SECONDS_1601_TO_1970: i64 = 11_644_473_600;
    if raw == 0 {
        return None;
    }
    let seconds = i64::try_from(raw.checked_div(UNITS_PER_SECOND)?).ok()?;
    let units = u32::try_from(raw.checked_rem(UNITS_PER_SECOND)?).ok()?;
    Some(Timestamp {
        seconds: seconds.checked_sub(SECONDS_1601_TO_1970)?,
        nanoseconds: units.checked_mul(100)?,
    })
}
