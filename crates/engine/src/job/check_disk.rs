//! Consistency check: a source read again and compared with a version, by hashes. The repository's data is not read.

use block::sync::LeftOut;
use block::{ByteRange, ChangedRanges, ReadAt};
use repo::lease::LeaseKind;
use repo::{PointSelector, ReadProtection, Repository};
use serde::Serialize;

use super::{JobContext, choose_disk, protect};
use crate::Result;
use crate::compare::{LeafWindow, compare_with_tree, slot_ranges};

/// Most differing ranges that a report names.
pub const MAX_REPORTED_RANGES: usize = 10_000;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckDiskReport {
    /// The version, as NAME@SEQUENCE.
    pub version: String,
    /// Its disk.
    pub label: String,
    /// Length of the version's disk.
    pub version_length_bytes: u64,
    /// Length of the disk that was read.
    pub disk_length_bytes: u64,
    /// Whether both are the same, byte for byte and in length, but for what the version left out on purpose.
    pub is_equal: bool,
    /// Bytes in blocks that differ.
    pub differing_bytes: u64,
    /// The first of the ranges that differ: offset and length, in whole blocks.
    pub ranges: Vec<(u64, u64)>,
    /// Whether there are more ranges than are named.
    pub more_ranges: bool,
    /// Bytes that the version left out on purpose, which are not compared.
    pub left_out_bytes: u64,
    /// Bytes read from the disk.
    pub read_bytes: u64,
    /// Whether a lease kept garbage collection off the version meanwhile.
    pub protected_from_gc: bool,
}

/// Compares a disk with a version.
///
/// # Errors
/// What reading the disk or the version's tree answers.
pub fn check_disk(
    repository: &Repository,
    selector: &PointSelector,
    label: Option<&str>,
    disk: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<CheckDiskReport> {
    let point = repository.find_point(selector)?.point;
    let version = choose_disk(&point, label)?;
    let session = protect(repository, LeaseKind::Verify, &[&point], context)?;
    // What the version leaves out on purpose is no difference.
    let left_out = version
        .omissions
        .iter()
        .flat_map(|omissions| &omissions.ranges);
    let left_out = ChangedRanges::new(left_out.map(|range| ByteRange {
        offset: range.offset,
        length_bytes: range.length_bytes,
    }))?;
    let left_out_bytes = left_out.total_bytes();
    let disk = LeftOut::new(disk, left_out);
    let longer = version.length_bytes.max(disk.size_bytes());
    let mut report = CheckDiskReport {
        version: format!("{}@{}", point.name, point.sequence),
        label: version.label.clone(),
        version_length_bytes: version.length_bytes,
        disk_length_bytes: disk.size_bytes(),
        is_equal: version.length_bytes == disk.size_bytes(),
        differing_bytes: 0,
        ranges: Vec::new(),
        more_ranges: false,
        left_out_bytes,
        read_bytes: 0,
        protected_from_gc: session.protection() == ReadProtection::Lease,
    };
    context.progress.begin("comparing", Some(longer));
    let compared = compare_with_tree(
        &disk,
        version.tree(),
        repository,
        LeafWindow::ALL,
        context,
        |leaf| {
            for range in slot_ranges(leaf.leaf, leaf.slots, longer) {
                note(&mut report, range);
            }
            Ok(())
        },
    );
    context.progress.end();
    let finished = session_end(session);
    report.read_bytes = compared?.read_bytes;
    finished?;
    Ok(report)
}

fn note(report: &mut CheckDiskReport, range: ByteRange) {
    report.is_equal = false;
    report.differing_bytes = report.differing_bytes.saturating_add(range.length_bytes);
    let room = report.ranges.len() < MAX_REPORTED_RANGES;
    match report.ranges.last_mut() {
        Some((offset, length)) if offset.saturating_add(*length) == range.offset => {
            *length = length.saturating_add(range.length_bytes);
        }
        _ if room => report.ranges.push((range.offset, range.length_bytes)),
        _ => report.more_ranges = true,
    }
}

fn session_end(session: std::sync::Arc<repo::ReadSession>) -> Result<()> {
    match std::sync::Arc::into_inner(session) {
        Some(session) => Ok(session.finish()?),
        None => Ok(()),
    }
}
