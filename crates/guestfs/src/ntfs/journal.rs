//! The journal `$LogFile`: whether it was closed, and if not, what it holds is put over the volume, in memory.
//!
//! ```text
//!  restart pages ─► last checkpoint ─► analysis: open attributes, dirty pages, transactions
//!                                       └► redo: every change since the oldest dirty page ─► overlay
//!                                           └► undo: changes of unfinished transactions   ─► overlay
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `restart`, `log` | where the log begins, its pages and records |
//! | `action`, `tables` | what NTFS writes into them |
//! | `analysis`, `replay` | the three passes |
//! | `block`, `file_record`, `index_block` | changes of structures |
//!
//! Clean is: no client in use, or the flag that says so; or a journal of nothing but 0xFF, as `mkntfs` and `ntfsfix` leave it.
//!
//! **Invariants.** All or nothing: a log that holds something that is not understood, or is damaged where it matters, is not
//! replayed at all, and says why.
//!
//! **Not done.** Versions of the log other than 1.0, 1.1 and 2.0, log pages of another size than the system's, operations 35 and 36,
//! transactions that another system decides upon.
//!
//! Sources: the Linux kernel's `fs/ntfs3/fslog.c`, `ntfsrecover` of ntfs-3g, the notes of the crate `rust-fs-ntfs` on what Windows
//! itself made of interrupted volumes (RFD 17).

mod action;
mod analysis;
mod block;
mod file_record;
mod index_block;
mod log;
mod replay;
mod restart;
mod tables;

use std::sync::Arc;

use ::block::ReadAt;

use self::analysis::Analysis;
use self::log::Log;
use self::replay::Replay;
use self::restart::LogHead;
use super::boot::BootSector;
use super::device::Device;
use super::overlay::Overlay;
use super::record::DATA;
use super::table::FileTable;
use crate::{Error, Result};

const JOURNAL_RECORD: u64 = 2;

/// What the journal asks for.
pub(super) enum Journal {
    /// Nothing.
    Closed,
    /// The volume with all that it held.
    Replayed(Box<Replayed>),
    /// More than was done here; why.
    Pending(String),
}

/// A volume after its journal was replayed.
pub(super) struct Replayed {
    pub(super) table: FileTable,
    /// File records that the replay changed.
    pub(super) records: Vec<u64>,
    /// Where the volume would have been written to: offsets and lengths.
    pub(super) places: Vec<(u64, u64)>,
}

/// Looks at the journal of a volume whose file table is open, and replays it if need be.
pub(super) fn open(volume: &Arc<dyn ReadAt>, table: &FileTable, boot: &BootSector) -> Journal {
    match replay(volume, table, boot) {
        Ok(journal) => journal,
        Err(error) => Journal::Pending(format!(
            "it was in use, and its journal could not be replayed, so that the latest changes may be missing: {error}"
        )),
    }
}

fn replay(volume: &Arc<dyn ReadAt>, table: &FileTable, boot: &BootSector) -> Result<Journal> {
    let file = table.file(JOURNAL_RECORD)?;
    let reader = table.reader(&file, DATA, &[])?;
    let area = match restart::read(&reader)? {
        LogHead::Empty => return Ok(Journal::Closed),
        LogHead::Checked => {
            return Ok(Journal::Pending(
                "chkdsk wrote to its journal and did not end".to_owned(),
            ));
        }
        LogHead::Restart(area) if area.is_clean => return Ok(Journal::Closed),
        LogHead::Restart(area) => area,
    };
    let mut log = Log::open(&reader, &area)?;
    let Some(analysis) = Analysis::run(&mut log, &area, boot.cluster_bytes)? else {
        return Ok(Journal::Closed);
    };
    let mut replay = Replay::new(table, boot, analysis, Overlay::new(Arc::clone(volume)));
    replay.run(&mut log)?;
    let (overlay, records) = (replay.overlay, replay.records);
    let places = overlay.places().collect();
    let volume: Arc<dyn ReadAt> = if overlay.is_empty() {
        Arc::clone(volume)
    } else {
        Arc::new(overlay)
    };
    let table = FileTable::open(&Arc::new(Device::new(volume)), boot)
        .map_err(|error| error.within("file table after the replay"))?;
    for (number, pieces) in &records {
        let expected = table.places(*number)?;
        // A record behind the end of the table belongs to growth that was taken back.
        if expected.as_ref().is_some_and(|expected| expected != pieces) {
            return Err(Error::corrupt(format!(
                "file record {number} at {pieces:?}, where the table has it at {expected:?}"
            )));
        }
        if expected.is_some() {
            table.check(*number)?;
        }
    }
    Ok(Journal::Replayed(Box::new(Replayed {
        table,
        records: records.into_keys().collect(),
        places,
    })))
}
