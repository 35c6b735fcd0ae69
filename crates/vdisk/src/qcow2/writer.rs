//! Writing an existing image in place, so that a crash at any write leaves it readable, at worst with leaked clusters.
//!
//! **Invariants.** Opening checks every counter first and refuses an image whose counters contradict its references: a cluster that
//! is in use but counted as free would be overwritten. Internal snapshots and parents keep their bytes: shared clusters are
//! copied before they are changed. Unknown autoclear features are cleared before the first write.
//!
//! The dirty bit is never set: counters are kept ahead of references instead of being rebuilt later.

use std::sync::Arc;

use block::{Extent, ReadAt, WriteAt};

use super::check::{check, repair};
use super::editor::{Editor, State};
use super::header::Qcow2Header;
use super::rebuild::{self, OwnedBits};
use super::space::{CountedSpace, Space};
use super::tables::Tables;
use crate::field::{index, put};
use crate::{Error, ErrorKind, RepairMode, Result, Severity};

/// A qcow2 image, opened for reading and writing.
pub struct Qcow2Writer {
    editor: Editor<CountedSpace>,
}

impl Qcow2Writer {
    /// Opens an image for writing. `parent` is the content of its backing disk: writes that leave gaps in a cluster need it.
    /// An image that was not closed (lazy refcounts) gets its counters rebuilt first.
    ///
    /// # Errors
    /// `Corrupt` when the image is marked corrupt or its counters contradict its references ([`super::repair()`] may help),
    /// `Unsupported` for extended L2 entries and external data files, `Invalid` for a parent without a backing name.
    pub fn open(file: Arc<dyn WriteAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        Self::open_as(file, parent, None)
    }

    /// Opens an image as if its disk had the larger size already. Its L1 table has room for that.
    pub(super) fn open_larger(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        size_bytes: u64,
    ) -> Result<Self> {
        Self::open_as(file, parent, Some(size_bytes))
    }

    fn open_as(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        larger: Option<u64>,
    ) -> Result<Self> {
        let header = Qcow2Header::read(&file)?;
        if header.is_marked_corrupt() {
            return Err(Error::corrupt(
                "qcow2: the image is marked corrupt; repair it first",
            ));
        }
        if header.has_extended_l2() || header.needs_data_file() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "qcow2: writing to extended L2 entries or an external data file",
            ));
        }
        if parent.is_some() && header.backing.is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "qcow2: a parent was given for an image without a backing name",
            ));
        }
        if header.is_dirty() {
            repair(&*file, RepairMode::Lossless)?;
        }
        let report = check(&*file)?;
        if !report.is_clean() {
            // Beyond the listed findings there may be none but notes among those that are.
            let worst = report
                .findings
                .iter()
                .find(|finding| finding.severity > Severity::Note);
            let text = worst.map_or_else(|| "too many findings".to_owned(), ToString::to_string);
            return Err(Error::corrupt(format!(
                "qcow2: repair the image before writing: {text}"
            )));
        }
        let mut header = Qcow2Header::read(&file)?;
        if header.autoclear != 0 {
            file.write_at(88, &[0; 8])?;
            file.flush()?;
            header.autoclear = 0;
            header.bitmaps = None;
        }
        header.size_bytes = larger.unwrap_or(header.size_bytes);
        let tables = Tables::load(&header, &*file)?;
        let space = CountedSpace::load(&header, &*file)?;
        Ok(Self {
            editor: Editor::new(file, parent, header, tables, space),
        })
    }

    /// The header.
    pub fn header(&self) -> &Qcow2Header {
        &self.editor.header
    }

    /// Gives the image an L1 table of so many entries. The writer does not know it: only closing may follow.
    pub(super) fn lengthen_l1(&self, entries: u64) -> Result<()> {
        let editor = &self.editor;
        let mut state = editor.lock()?;
        editor.sync(&mut state)?;
        let header = &editor.header;
        let clusters = entries
            .saturating_mul(8)
            .div_ceil(header.cluster_bytes().max(1));
        let mut offset = state.space.allocate_run(&*editor.file, clusters)?;
        if offset.is_none() {
            grow(editor, &mut state)?;
            offset = state.space.allocate_run(&*editor.file, clusters)?;
        }
        let Some(offset) = offset else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "qcow2: the file has no room for a longer L1 table",
            ));
        };
        let mut table = state.tables.encode_l1();
        table.resize(index(clusters.saturating_mul(header.cluster_bytes())), 0);
        editor.file.write_at(offset, &table)?;
        state.space.publish(&*editor.file)?;
        editor.file.flush()?;
        let mut fields = [0u8; 12];
        put(
            &mut fields,
            0,
            &u32::try_from(entries).unwrap_or(u32::MAX).to_be_bytes(),
        );
        put(&mut fields, 4, &offset.to_be_bytes());
        editor.file.write_at(36, &fields)?;
        editor.file.flush()?;
        if header.l1_entries > 0 {
            state
                .space
                .release(header.l1_offset, header.l1_entries.saturating_mul(8));
        }
        // Released clusters are given back once nothing in the file refers to them.
        state.space.settle(&*editor.file)?;
        state.space.publish(&*editor.file)?;
        Ok(editor.file.flush()?)
    }

    /// Makes everything durable and gives back what was released. Dropping without this is a crash: harmless, but clusters leak.
    ///
    /// # Errors
    /// `Io` when writing fails.
    pub fn finish(self) -> Result<()> {
        let mut state = self.editor.lock()?;
        self.editor.sync(&mut state)?;
        // Lowers on disk what the first round lowered in memory.
        self.editor.sync(&mut state)
    }
}

/// A full counter table is replaced by one of twice the size.
fn grow(editor: &Editor<CountedSpace>, state: &mut State<CountedSpace>) -> Result<()> {
    let mut header = state.space.header().clone();
    rebuild::rebuild(&*editor.file, &mut header, OwnedBits::Trusted)?;
    state.space = CountedSpace::load(&header, &*editor.file)?;
    Ok(())
}

impl ReadAt for Qcow2Writer {
    fn size_bytes(&self) -> u64 {
        self.editor.header.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        Ok(self.editor.read(offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        Ok(self.editor.extent(offset, limit_bytes)?)
    }
}

impl WriteAt for Qcow2Writer {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        Ok(self.editor.write(offset, buffer, grow)?)
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        Ok(self.editor.zero(offset, length_bytes, grow)?)
    }

    fn flush(&self) -> block::Result<()> {
        let mut state = self.editor.lock()?;
        Ok(self.editor.sync(&mut state)?)
    }
}
