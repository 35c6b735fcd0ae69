//! Counters against references, and the repair of what contradicts.
//!
//! | found | severity |
//! |---|---|
//! | a cluster counted more often than it is referred to (a leak) | note |
//! | a cluster counted less often; a wrong owned bit; the dirty mark | repairable |
//! | an entry that leads out of the file or nowhere; a table that shares its cluster; the corrupt mark | damage |
//!
//! **Invariants.** Checking writes nothing. Memory: one window of counters, 40 MiB at most; more windows mean more walks.

use block::{ReadAt, WriteAt};

use super::counters;
use super::entry::OWNED;
use super::header::{self, Qcow2Header, clusters_in_file};
use super::rebuild::{self, MAX_WINDOWS, OwnedBits, WINDOW_CLUSTERS};
use super::references::{self, Counters, Holder, Met, Reference};
use crate::field::{be64, index, is_zero};
use crate::{CheckReport, Error, ErrorKind, Finding, RepairMode, Result, Severity};

/// The cluster is a table or the header: nothing else may refer to it.
const EXCLUSIVE: u8 = 1;
/// The cluster is an L2 table, which snapshots may share.
const L2: u8 = 2;
/// The cluster holds guest data.
const DATA: u8 = 4;

/// References to the clusters of one window.
struct Window {
    start: u64,
    counts: Vec<u32>,
    uses: Vec<u8>,
}

impl Window {
    fn new(start: u64, end: u64) -> Self {
        let length = index(end.saturating_sub(start));
        Self {
            start,
            counts: vec![0; length],
            uses: vec![0; length],
        }
    }

    fn end(&self) -> u64 {
        self.start
            .saturating_add(u64::try_from(self.counts.len()).unwrap_or(0))
    }

    fn add(&mut self, first: u64, behind: u64, holder: Holder) {
        let from = index(first.max(self.start).saturating_sub(self.start));
        let to = index(behind.min(self.end()).saturating_sub(self.start));
        let used = match holder {
            Holder::L2Table => L2,
            Holder::Data | Holder::Compressed => DATA,
            _ => EXCLUSIVE,
        };
        for count in self.counts.get_mut(from..to).into_iter().flatten() {
            *count = count.saturating_add(1);
        }
        for uses in self.uses.get_mut(from..to).into_iter().flatten() {
            *uses |= used;
        }
    }

    /// The counts of a range inside the window.
    fn counts_of(&self, first: u64, behind: u64) -> &[u32] {
        let from = index(first.saturating_sub(self.start));
        let to = index(behind.saturating_sub(self.start));
        self.counts.get(from..to).unwrap_or_default()
    }

    fn count(&self, cluster: u64) -> Option<u32> {
        cluster
            .checked_sub(self.start)
            .and_then(|number| self.counts.get(index(number)).copied())
    }

    /// Whether a reference has to yield: guest data to any table, an L2 table only to what nothing may share.
    fn must_go(&self, cluster: u64, holder: Holder) -> bool {
        let number = cluster.checked_sub(self.start).map_or(usize::MAX, index);
        let uses = self.uses.get(number).copied().unwrap_or(0);
        match holder {
            Holder::Data | Holder::Compressed => uses & (EXCLUSIVE | L2) != 0,
            Holder::L2Table => uses & EXCLUSIVE != 0,
            _ => false,
        }
    }

    fn is_overlap(&self, cluster: u64) -> bool {
        let number = cluster.checked_sub(self.start).map_or(usize::MAX, index);
        let count = self.counts.get(number).copied().unwrap_or(0);
        let uses = self.uses.get(number).copied().unwrap_or(0);
        (uses & EXCLUSIVE != 0 && count > 1) || (uses & L2 != 0 && uses & DATA != 0)
    }
}

/// Holds the counters of an image against its references. The disk's bytes are not read.
///
/// # Errors
/// As [`Qcow2Header::read`]; `Corrupt` when the snapshot or bitmap tables cannot be followed at all, `Io` when reading fails.
pub fn check(file: &dyn ReadAt) -> Result<CheckReport> {
    let header = Qcow2Header::read(file)?;
    check_with(&header, file)
}

fn check_with(header: &Qcow2Header, file: &dyn ReadAt) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    if header.is_dirty() {
        report.add(
            Severity::Repairable,
            Some(72),
            "the image was not closed: counters may lag",
        );
    }
    if header.is_marked_corrupt() {
        report.add(
            Severity::Damage,
            Some(72),
            "a program marked the image corrupt",
        );
    }
    for start in windows(header, file, Counters::Included)? {
        let window = fill(header, file, start, (start == 0).then_some(&mut report))?;
        compare(header, file, &window, &mut report)?;
        judge_owned(header, file, &window, &mut report)?;
    }
    Ok(report)
}

/// The first clusters of the windows in which there is anything.
fn windows(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    counters: Counters,
) -> Result<impl Iterator<Item = u64>> {
    let total = clusters_in_file(header, file);
    let count = total.div_ceil(WINDOW_CLUSTERS);
    if count > MAX_WINDOWS {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "qcow2: a file of {} bytes is too large to check",
                file.size_bytes()
            ),
        ));
    }
    let found = references::windows(header, file, counters, (WINDOW_CLUSTERS, total))?;
    Ok(found
        .into_iter()
        .map(|number| number.saturating_mul(WINDOW_CLUSTERS)))
}

/// Counts the references of one window; broken ones are reported if a report is given.
fn fill(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    start: u64,
    mut report: Option<&mut CheckReport>,
) -> Result<Window> {
    let total = clusters_in_file(header, file);
    let mut window = Window::new(start, start.saturating_add(WINDOW_CLUSTERS).min(total));
    references::walk(header, file, Counters::Included, |met| {
        let (place, text) = match met {
            Met::Reference(reference) => match references::clusters(header, &reference, total) {
                Ok((first, behind)) => {
                    if behind > window.start && first < window.end() {
                        window.add(first, behind, reference.holder);
                    }
                    return Ok(());
                }
                Err(error) => (reference.entry.map(|(at, _)| at), error.to_string()),
            },
            Met::Broken { entry_at, text } => (entry_at, text),
        };
        if let Some(report) = &mut report {
            report.add(Severity::Damage, place, text);
        }
        Ok(())
    })?;
    Ok(window)
}

/// The stored counters of one block; zeros where there is no (readable) block.
fn load_block(header: &Qcow2Header, file: &dyn ReadAt, block: u64) -> Result<Option<Vec<u8>>> {
    let table_bytes =
        u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_bytes());
    let at = block.saturating_mul(8);
    if at.saturating_add(8) > table_bytes.min(header::MAX_REFCOUNT_TABLE_BYTES) {
        return Ok(None);
    }
    let mut word = [0u8; 8];
    block::read_padded(
        file,
        header.refcount_table_offset.saturating_add(at),
        &mut word,
    )?;
    let offset = be64(&word, 0, "refcount table")? & !511;
    if offset == 0 || !header.is_aligned(offset) || offset >= file.size_bytes() {
        return Ok(None);
    }
    let mut counters = vec![0u8; index(header.cluster_bytes())];
    block::read_padded(file, offset, &mut counters)?;
    Ok(Some(counters))
}

fn compare(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    window: &Window,
    report: &mut CheckReport,
) -> Result<()> {
    let per_block = counters::per_block(header.cluster_bytes(), header.refcount_order).max(1);
    let mut leak: Option<(u64, u64)> = None;
    let mut at = window.start;
    while at < window.end() {
        let block = at.checked_div(per_block).unwrap_or(0);
        let behind = block
            .saturating_add(1)
            .saturating_mul(per_block)
            .min(window.end());
        let counters = load_block(header, file, block)?;
        let counters = counters.as_deref().filter(|counters| !is_zero(counters));
        let counts = window.counts_of(at, behind);
        if counters.is_some() || counts.iter().any(|count| *count != 0) {
            let block = (at, counters, counts);
            compare_block(header, block, window, (&mut leak, report));
        }
        at = behind;
    }
    note_leak(header, leak, report);
    Ok(())
}

/// Compares the clusters from the first one on that one block counts. A run of leaks goes on from block to block.
fn compare_block(
    header: &Qcow2Header,
    (first, counters, counts): (u64, Option<&[u8]>, &[u32]),
    window: &Window,
    (leak, report): (&mut Option<(u64, u64)>, &mut CheckReport),
) {
    let per_block = counters::per_block(header.cluster_bytes(), header.refcount_order).max(1);
    for (cluster, count) in (first..).zip(counts) {
        let number = cluster.checked_rem(per_block).unwrap_or(0);
        let stored = counters.map_or(0, |block| {
            counters::get(block, header.refcount_order, number)
        });
        let offset = cluster.saturating_mul(header.cluster_bytes());
        let referred = u64::from(*count);
        if window.is_overlap(cluster) {
            let text = "a table shares its cluster with something else";
            report.add(Severity::Damage, Some(offset), text);
        }
        if stored < referred {
            let text = format!("counted {stored} times, referred to {referred} times");
            report.add(Severity::Repairable, Some(offset), text);
        }
        if stored > referred {
            *leak = match *leak {
                Some((first, behind)) if behind == cluster => {
                    Some((first, cluster.saturating_add(1)))
                }
                other => {
                    note_leak(header, other, report);
                    Some((cluster, cluster.saturating_add(1)))
                }
            };
        }
    }
}

fn note_leak(header: &Qcow2Header, leak: Option<(u64, u64)>, report: &mut CheckReport) {
    if let Some((first, behind)) = leak {
        let count = behind.saturating_sub(first);
        let offset = first.saturating_mul(header.cluster_bytes());
        let text = format!("{count} clusters are counted more often than referred to (leaked)");
        report.add(Severity::Note, Some(offset), text);
    }
}

/// Owned bits of active entries whose cluster lies in the window.
fn judge_owned(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    window: &Window,
    report: &mut CheckReport,
) -> Result<()> {
    references::walk(header, file, Counters::LeftOut, |met| {
        let Met::Reference(Reference {
            offset,
            entry: Some((at, word)),
            holder,
            is_active: true,
            ..
        }) = met
        else {
            return Ok(());
        };
        let Some(count) = window.count(header.cluster_of(offset)) else {
            return Ok(());
        };
        let should = count == 1 && holder != Holder::Compressed;
        if should != (word & OWNED != 0) {
            let text =
                format!("owned bit of {holder:?} at {offset:#x} contradicts {count} references");
            report.add(Severity::Repairable, Some(at), text);
        }
        Ok(())
    })
}

/// Makes the counters and owned bits right, gives leaked clusters back, and clears the dirty and corrupt marks.
/// Returns what [`check()`] found before; nothing is written if that is nothing.
///
/// With [`RepairMode::DataLoss`], L1 and L2 entries that cannot be true are dropped: their ranges then read as zeros or as the
/// parent's.
///
/// # Errors
/// `Corrupt` when there is damage and the mode is [`RepairMode::Lossless`], or damage outside L1 and L2 tables: counters are then
/// right, and the marks stay.
pub fn repair(file: &dyn WriteAt, mode: RepairMode) -> Result<CheckReport> {
    let mut header = Qcow2Header::read(file)?;
    let report = check_with(&header, file)?;
    if report.worst.is_none() {
        return Ok(report);
    }
    if has_real_damage(&report) {
        if mode == RepairMode::Lossless {
            return Err(Error::corrupt(
                "qcow2: there is damage whose repair drops data",
            ));
        }
        drop_impossible(&header, file)?;
    }
    rebuild::rebuild(file, &mut header, OwnedBits::Corrected)?;
    let after = check_with(&Qcow2Header::read(file)?, file)?;
    if has_real_damage(&after) {
        let left = after
            .findings
            .iter()
            .find(|finding| is_real_damage(finding));
        let text = left.map_or_else(|| "too many findings".to_owned(), ToString::to_string);
        return Err(Error::corrupt(format!(
            "qcow2: damage that no repair undoes: {text}"
        )));
    }
    set_incompatible(file, &mut header, !(header::DIRTY | header::CORRUPT))?;
    Ok(report)
}

/// Whether a report holds real damage; findings that are not listed count as such when the worst is damage.
fn has_real_damage(report: &CheckReport) -> bool {
    let unlisted = report.unlisted > 0 && report.worst == Some(Severity::Damage);
    unlisted || report.findings.iter().any(is_real_damage)
}

/// Damage other than the mark that says so, which lies in the header.
fn is_real_damage(finding: &Finding) -> bool {
    finding.severity == Severity::Damage && finding.offset != Some(72)
}

/// Keeps only the incompatible feature bits in `mask`, durably.
pub(super) fn set_incompatible(
    file: &dyn WriteAt,
    header: &mut Qcow2Header,
    mask: u64,
) -> Result<()> {
    let wanted = header.incompatible & mask;
    if wanted != header.incompatible {
        file.write_at(72, &wanted.to_be_bytes())?;
        file.flush()?;
        header.incompatible = wanted;
    }
    Ok(())
}

/// Clears every entry that leads out of the file or into a table. Counters are about to be made anew and do not matter.
fn drop_impossible(header: &Qcow2Header, file: &dyn WriteAt) -> Result<()> {
    let total = clusters_in_file(header, file);
    let reader: &dyn ReadAt = file;
    for start in windows(header, reader, Counters::LeftOut)? {
        let mut window = Window::new(start, start.saturating_add(WINDOW_CLUSTERS).min(total));
        references::walk(header, reader, Counters::LeftOut, |met| {
            if let Met::Reference(reference) = met
                && let Ok((first, behind)) = references::clusters(header, &reference, total)
                && behind > window.start
                && first < window.end()
            {
                window.add(first, behind, reference.holder);
            }
            Ok(())
        })?;
        references::walk(header, reader, Counters::LeftOut, |met| {
            let entry_at = match met {
                Met::Broken { entry_at, .. } => entry_at,
                Met::Reference(reference) => {
                    let touched = references::clusters(header, &reference, total);
                    let bad = touched.map_or(true, |(first, behind)| {
                        (first..behind).any(|cluster| window.must_go(cluster, reference.holder))
                    });
                    reference.entry.map(|(at, _)| at).filter(|_| bad)
                }
            };
            if let Some(at) = entry_at.filter(|at| *at >= header.cluster_bytes()) {
                let length = header.l2_entry_bytes();
                // An extended entry's bitmap goes with it, but an L1 entry has none.
                let is_l1 = at >= header.l1_offset
                    && at
                        < header
                            .l1_offset
                            .saturating_add(header.l1_entries.saturating_mul(8));
                let zeros = [0u8; 16];
                let length = if is_l1 { 8 } else { index(length) };
                file.write_at(at, zeros.get(..length).unwrap_or(&zeros))?;
            }
            Ok(())
        })?;
    }
    Ok(file.flush()?)
}
