//! The first pass: from the last checkpoint to the end of the log, what was open, dirty and going on when it ended.
//!
//! ```text
//!  checkpoint:  0 version │ 8 analysis begins behind this LSN │ tables at LSN: 16 open attributes, 24 names,
//!               32 dirty pages, 40 transactions │ their lengths: 48, 52, 56, 60; 0 for none
//! ```

use super::action::{Action, Operation};
use super::log::{Log, LogRecord};
use super::restart::RestartArea;
use super::tables::{
    DirtyPages, OpenAttribute, OpenAttributes, TableForm, TransactionState, Transactions,
};
use crate::{Error, ErrorKind, Result, field};

const CHANGE: u32 = 1;
const CHECKPOINT: u32 = 2;
/// More than Windows can write into a log of its usual size.
pub(super) const MAX_RECORDS: usize = 2 << 20;
/// Work, in bytes and entries looked at, that no honest log makes.
pub(super) const MAX_WORK: u64 = 8 << 30;

/// What the log says of the moment when it ended.
pub(super) struct Analysis {
    pub(super) open: OpenAttributes,
    pub(super) pages: DirtyPages,
    pub(super) transactions: Transactions,
    /// From where changes may have to be done again; `None` when there are none.
    pub(super) redo_lsn: Option<u64>,
    /// The last record of the log.
    pub(super) last_lsn: u64,
}

/// Whether a record holds a change of NTFS.
pub(super) fn is_change(record: &LogRecord) -> bool {
    record.kind == CHANGE
}

pub(super) fn missing(lsn: u64) -> Error {
    Error::corrupt(format!("no whole record with LSN {lsn:#x}"))
}

/// A limit on what a log may make us do.
pub(super) fn check_work(work: u64) -> Result<()> {
    if work > MAX_WORK {
        return Err(Error::new(ErrorKind::Limit, "it asks for too much work"));
    }
    Ok(())
}

impl Analysis {
    /// `None` when the log was never written to.
    pub(super) fn run(
        log: &mut Log<'_>,
        area: &RestartArea,
        cluster_bytes: u64,
    ) -> Result<Option<Self>> {
        if area.checkpoint_lsn == 0 {
            return Ok(None);
        }
        let checkpoint = log
            .record(area.checkpoint_lsn)?
            .filter(|record| record.kind == CHECKPOINT)
            .ok_or_else(|| missing(area.checkpoint_lsn).within("checkpoint"))?;
        let mut analysis = Self {
            open: OpenAttributes::default(),
            pages: DirtyPages::new(area.page_bytes, cluster_bytes),
            transactions: Transactions::default(),
            redo_lsn: None,
            last_lsn: 0,
        };
        let form = analysis.read_tables(log, &checkpoint.data)?;
        let start = match field::u64_le(&checkpoint.data, 8)? {
            0 => checkpoint,
            lsn => log.record(lsn)?.ok_or_else(|| missing(lsn))?,
        };
        analysis.walk(log, area, form, start)?;
        Ok(Some(analysis))
    }

    fn read_tables(&mut self, log: &mut Log<'_>, checkpoint: &[u8]) -> Result<TableForm> {
        let form = match field::u32_le(checkpoint, 0)? {
            0 => TableForm::Old,
            1 => TableForm::New,
            other => {
                return Err(Error::unsupported(format!(
                    "checkpoints of version {other}"
                )));
            }
        };
        let tables = [
            (40, 60, Operation::TransactionTableDump),
            (32, 56, Operation::DirtyPageTableDump),
            (16, 48, Operation::OpenAttributeTableDump),
            (24, 52, Operation::AttributeNamesDump),
        ];
        for (at, length_at, operation) in tables {
            let lsn = field::u64_le(checkpoint, at)?;
            if lsn == 0 || field::u32_le(checkpoint, length_at)? == 0 {
                continue;
            }
            let record = log.record(lsn)?.ok_or_else(|| missing(lsn))?;
            let action = Action::parse(&record)?;
            if action.redo != operation {
                return Err(Error::corrupt(format!(
                    "{:?} at LSN {lsn:#x}, where {operation:?} should be",
                    action.redo
                )));
            }
            let table = action.rest();
            match operation {
                Operation::TransactionTableDump => self.transactions.read(table),
                Operation::DirtyPageTableDump => self.pages.read(table, form),
                Operation::OpenAttributeTableDump => self.open.read(table, form),
                _ => self.open.read_names(table),
            }
            .map_err(|error| error.within(format!("{operation:?} at LSN {lsn:#x}")))?;
        }
        Ok(form)
    }

    fn walk(
        &mut self,
        log: &mut Log<'_>,
        area: &RestartArea,
        form: TableForm,
        start: LogRecord,
    ) -> Result<()> {
        let mut last = start;
        let mut first_lsn = None;
        let mut work = 0;
        for count in 0.. {
            let Some(record) = log.next(&last)? else {
                break;
            };
            if record.lsn <= last.lsn || count > MAX_RECORDS {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("too many records up to LSN {:#x}", record.lsn),
                ));
            }
            first_lsn.get_or_insert(record.lsn);
            if is_change(&record) {
                self.note(&record, form, &mut work)
                    .map_err(|error| error.within(format!("LSN {:#x}", record.lsn)))?;
                check_work(work)?;
            }
            last = record;
        }
        log.check_end(&last, area.newest_lsn)?;
        self.last_lsn = last.lsn;
        let oldest = self.transactions.iter().map(|entry| entry.first_lsn);
        self.redo_lsn = first_lsn
            .into_iter()
            .chain(self.pages.redo_lsn())
            .chain(oldest.filter(|lsn| *lsn != 0))
            .min();
        Ok(())
    }

    fn note(&mut self, record: &LogRecord, form: TableForm, work: &mut u64) -> Result<()> {
        let action = Action::parse(record)?;
        let number = record.transaction;
        let entry = self.transactions.entry(number, record.lsn)?;
        entry.undo_next = record.lsn;
        if action.undo == Operation::Compensation || action.redo == Operation::EndTopLevelAction {
            // What is behind was taken back already, or is never to be.
            entry.undo_next = record.undo_next;
        }
        match action.redo {
            Operation::PrepareTransaction => entry.state = TransactionState::Prepared,
            Operation::CommitTransaction => entry.state = TransactionState::Committed,
            Operation::ForgetTransaction => self.transactions.forget(number),
            Operation::OpenNonresidentAttribute => {
                let mut open = OpenAttribute::parse(action.rest(), form)?;
                open.name = super::super::record::utf16(action.name()?);
                self.open.insert(action.target, open)?;
            }
            Operation::DeleteDirtyClusters => {
                for (first, count) in action.ranges() {
                    *work = work.saturating_add(self.pages.delete(first, count));
                    check_work(*work)?;
                }
            }
            Operation::HotFix => {
                if let Some(place) = action.clusters.first() {
                    self.pages.hot_fix(action.target, action.vcn, *place);
                }
            }
            operation if operation.subject() != super::action::Subject::Nothing => {
                self.pages
                    .change(record.lsn, action.target, action.vcn, &action.clusters)?;
            }
            _ => {}
        }
        Ok(())
    }
}
