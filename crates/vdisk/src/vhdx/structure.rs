//! Opening: from a file to a validated description of the image, and one streaming pass over its BAT.
//!
//! ```text
//!   identifier ─► headers ─► log (replayed into memory) ─► regions ─► metadata ─► geometry ─► survey of the BAT
//! ```
//!
//! **Invariants.** Whatever is read behind the headers is read through the replayed view. The survey reads the BAT once,
//! in pieces, skipping what the host file knows to be holes; it keeps one bit per mebibyte of file, not the BAT.

use std::sync::Arc;

use block::{ReadAt, WriteAt};

use super::bytes::to_usize;
use super::entry::{PayloadEntry, decode_bitmap};
use super::geometry::{BAT_ENTRY_BYTES, BITMAP_BLOCK_BYTES, Geometry, Slot};
use super::header::{self, HEADER_SECTION_BYTES, Header, MIB};
use super::log;
use super::metadata::{self, Completion, Metadata};
use super::overlay::{MAX_FILE_BYTES, ReplayedFile};
use super::region::{self, Regions, Span};
use super::space::{Claim, SpaceMap};
use crate::{Error, ErrorKind, Format, ImageInfo, Result};

const SCAN_BYTES: u64 = MIB;

/// Whether an image whose building was interrupted is welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accept {
    Finished,
    Unfinished,
}

/// What a survey does with space that an entry owns without using it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchors {
    /// Nobody is going to allocate: they do not matter.
    Ignored,
    /// They count as taken.
    Kept,
}

/// A described image.
pub(super) struct Structure {
    /// The file as it is once its log has been replayed.
    pub(super) file: Arc<dyn ReadAt>,
    pub(super) header: Header,
    pub(super) creator: Option<String>,
    pub(super) has_pending_log: bool,
    pub(super) regions: Regions,
    pub(super) metadata: Metadata,
    pub(super) geometry: Geometry,
}

/// The same file, for reading.
pub(super) fn read_view(file: &Arc<dyn WriteAt>) -> Arc<dyn ReadAt> {
    Arc::<dyn WriteAt>::clone(file)
}

/// The log's place, if the header gives it one.
pub(super) fn log_span(header: &Header) -> Option<Span> {
    (header.log_length > 0).then_some(Span {
        offset: header.log_offset,
        length: u64::from(header.log_length),
    })
}

/// Refuses a file that lost its end after the log was written.
pub(super) fn check_not_cut(file: &dyn ReadAt, active: &log::ActiveSequence) -> Result<()> {
    let size = file.size_bytes();
    if size < active.flushed_file_bytes {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!(
                "vhdx: the file is {size} bytes, its log saw {} of them flushed",
                active.flushed_file_bytes
            ),
        ));
    }
    if active.last_file_bytes > MAX_FILE_BYTES {
        return Err(Error::corrupt(format!(
            "vhdx log: asks for a file of {} bytes, more than any disk needs",
            active.last_file_bytes
        )));
    }
    Ok(())
}

/// Reads everything up to the BAT.
pub(super) fn open(file: Arc<dyn ReadAt>, accept: Accept) -> Result<Structure> {
    let creator = header::read_identifier(file.as_ref())?;
    let (header, _) = header::select(file.as_ref())?;
    let has_pending_log = !header.log.is_nil();
    let file = if has_pending_log {
        let active = log::find_active(file.as_ref(), &header)?;
        check_not_cut(file.as_ref(), &active)?;
        Arc::new(ReplayedFile::new(file, &active)?)
    } else {
        file
    };
    let regions = region::read(file.as_ref(), log_span(&header))?;
    let metadata = metadata::read(file.as_ref(), regions.metadata)?;
    if metadata.completion == Completion::Unfinished && accept == Accept::Finished {
        return Err(Error::new(
            ErrorKind::Incomplete,
            "vhdx: carries the mark of a creation that was interrupted",
        ));
    }
    let geometry = metadata.geometry()?;
    let structure = Structure {
        file,
        header,
        creator,
        has_pending_log,
        regions,
        metadata,
        geometry,
    };
    structure.check_table_length()?;
    Ok(structure)
}

impl Structure {
    fn check_table_length(&self) -> Result<()> {
        let needed = self.geometry.entry_count().saturating_mul(BAT_ENTRY_BYTES);
        if needed > self.regions.bat.length {
            return Err(Error::corrupt(format!(
                "vhdx BAT: its region has {} bytes, the disk needs {needed}",
                self.regions.bat.length
            )));
        }
        Ok(())
    }

    /// The same image with a larger disk, for which its BAT must have room already.
    pub(super) fn enlarged(mut self, size_bytes: u64) -> Result<Self> {
        self.metadata.size = size_bytes;
        self.geometry = self.metadata.geometry()?;
        self.check_table_length()?;
        Ok(self)
    }

    /// What the image says about itself.
    pub(super) fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Vhdx,
            subformat: self.metadata.subformat,
            size_bytes: self.metadata.size,
            logical_sector_bytes: self.metadata.logical_sector,
            physical_sector_bytes: self.metadata.physical_sector,
            allocation_unit_bytes: Some(u64::from(self.metadata.block_size)),
            disk_id: Some(self.metadata.disk_id),
            parent_paths: self
                .metadata
                .locator
                .as_ref()
                .map(|l| l.paths())
                .unwrap_or_default(),
            has_pending_log: self.has_pending_log,
            creator: self.creator.clone(),
        }
    }

    /// Everything that is neither payload nor bitmap.
    pub(super) fn fixed_spans(&self) -> Vec<Span> {
        let mut spans = vec![
            Span {
                offset: 0,
                length: HEADER_SECTION_BYTES,
            },
            self.regions.bat,
            self.regions.metadata,
        ];
        spans.extend(log_span(&self.header));
        spans.extend(self.regions.foreign.iter().copied());
        spans
    }

    /// Calls `visit` for every BAT entry in use that is not all zeros.
    pub(super) fn scan_bat(&self, visit: &mut dyn FnMut(Slot, u64) -> Result<()>) -> Result<()> {
        let end = self.geometry.entry_count().saturating_mul(BAT_ENTRY_BYTES);
        let mut at = 0;
        let mut buffer = vec![0; to_usize(SCAN_BYTES.min(end))];
        while at < end {
            let place = self.regions.bat.offset.saturating_add(at);
            let left = end.saturating_sub(at);
            let extent = self.file.extent_at(place, left)?;
            let known = extent.length_bytes.clamp(1, left);
            // A hole may end inside an entry; that entry is read.
            let whole = known.saturating_sub(known % BAT_ENTRY_BYTES);
            if extent.kind.is_zero() && whole > 0 {
                at = at.saturating_add(whole);
                continue;
            }
            let count = SCAN_BYTES.min(left).min(whole.max(BAT_ENTRY_BYTES));
            let piece = buffer.get_mut(..to_usize(count)).unwrap_or_default();
            self.file.read_at(place, piece)?;
            let first = at / BAT_ENTRY_BYTES;
            for (index, word) in (first..).zip(piece.as_chunks::<8>().0) {
                let raw = u64::from_le_bytes(*word);
                if raw != 0
                    && let Some(slot) = self.geometry.slot(index)
                {
                    visit(slot, raw)?;
                }
            }
            at = at.saturating_add(count);
        }
        Ok(())
    }

    /// Checks every entry against the format, the file's end and every other entry, and answers what is taken.
    ///
    /// # Errors
    /// At the first entry that is wrong.
    pub(super) fn survey(&self, anchors: Anchors) -> Result<SpaceMap> {
        let mut space = SpaceMap::default();
        for span in self.fixed_spans() {
            space
                .claim(span, Claim::Exclusive)
                .map_err(|at| Error::corrupt(format!("vhdx: regions overlap at {at:#x}")))?;
        }
        let mut has_anchors = false;
        self.scan_bat(&mut |slot, raw| {
            match self.place(slot, raw)? {
                Some((span, Claim::Exclusive)) => {
                    space.claim(span, Claim::Exclusive).map_err(|at| {
                        Error::corrupt(format!("vhdx BAT: {slot:?} overlaps something at {at:#x}"))
                    })?;
                }
                Some((_, Claim::Lenient)) => has_anchors = true,
                None => {}
            }
            Ok(())
        })?;
        // Anchors are marked when all used blocks are known, so that a wrong anchor never makes a right block a fault.
        if has_anchors && anchors == Anchors::Kept {
            self.scan_bat(&mut |slot, raw| {
                if let Some((span, Claim::Lenient)) = self.place(slot, raw)?
                    && span.end() <= self.file.size_bytes()
                {
                    let claimed = space.claim(span, Claim::Lenient);
                    debug_assert!(claimed.is_ok());
                }
                Ok(())
            })?;
        }
        Ok(space)
    }

    /// The space of an entry, and whether it must be its own.
    ///
    /// # Errors
    /// The entry is wrong, or reaches behind the file.
    pub(super) fn place(&self, slot: Slot, raw: u64) -> Result<Option<(Span, Claim)>> {
        let fault = |what: String| Error::corrupt(format!("vhdx BAT: {slot:?}: {what}"));
        let (span, used, claim) = match slot {
            Slot::Payload(block) => {
                let entry = PayloadEntry::decode(raw, self.geometry.lineage)
                    .map_err(|why| fault(why.to_string()))?;
                if !entry.owns_space() {
                    return Ok(None);
                }
                let span = Span {
                    offset: entry.offset,
                    length: self.geometry.block_size,
                };
                let claim = if entry.is_used() {
                    Claim::Exclusive
                } else {
                    Claim::Lenient
                };
                (span, self.geometry.block_length(block), claim)
            }
            Slot::Bitmap(_) => match decode_bitmap(raw).map_err(|why| fault(why.to_string()))? {
                None => return Ok(None),
                Some(offset) => {
                    let span = Span {
                        offset,
                        length: BITMAP_BLOCK_BYTES,
                    };
                    (span, BITMAP_BLOCK_BYTES, Claim::Exclusive)
                }
            },
        };
        let end = span.offset.saturating_add(used);
        if claim == Claim::Exclusive && end > self.file.size_bytes() {
            return Err(fault(format!(
                "ends at {end:#x}, the file at {:#x}",
                self.file.size_bytes()
            )));
        }
        Ok(Some((span, claim)))
    }
}
