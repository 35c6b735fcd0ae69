//! Which ranges differ between two versions: a walk of two trees, no data read.

use std::sync::Arc;

use block::diff::BlockDifferences;
use repo::lease::LeaseKind;
use repo::{PointSelector, ReadProtection, Repository};
use serde::Serialize;

use super::{JobContext, choose_disk, protect};
use crate::Result;

/// What a comparison of two versions found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// The first version, as NAME@SEQUENCE.
    pub older: String,
    /// The second.
    pub newer: String,
    /// Length of the first.
    pub older_length_bytes: u64,
    /// Length of the second.
    pub newer_length_bytes: u64,
    /// Bytes in blocks that differ.
    pub differing_bytes: u64,
    /// How many ranges.
    pub ranges: u64,
    /// Whether a lease kept garbage collection off the versions meanwhile.
    pub protected_from_gc: bool,
}

/// Walks two versions and hands every range that differs to `found`: offset and length in bytes, ascending.
///
/// # Errors
/// What the repository answers, and what `found` answers.
pub fn diff_disks(
    repository: &Repository,
    (older, newer): (&PointSelector, &PointSelector),
    label: Option<&str>,
    context: JobContext<'_>,
    mut found: impl FnMut(u64, u64) -> Result<()>,
) -> Result<DiffReport> {
    let (a, b) = (
        repository.find_point(older)?.point,
        repository.find_point(newer)?.point,
    );
    let session = protect(repository, LeaseKind::Verify, &[&a, &b], context)?;
    let (one, two) = (choose_disk(&a, label)?, choose_disk(&b, label)?);
    let mut report = DiffReport {
        older: format!("{}@{}", a.name, a.sequence),
        newer: format!("{}@{}", b.name, b.sequence),
        older_length_bytes: one.length_bytes,
        newer_length_bytes: two.length_bytes,
        differing_bytes: 0,
        ranges: 0,
        protected_from_gc: session.protection() == ReadProtection::Lease,
    };
    for range in BlockDifferences::new(one.tree(), repository, two.tree(), repository)? {
        context.cancel.check()?;
        let range = range?;
        report.differing_bytes = report.differing_bytes.saturating_add(range.length_bytes);
        report.ranges += 1;
        found(range.offset, range.length_bytes)?;
    }
    if let Some(session) = Arc::into_inner(session) {
        session.finish()?;
    }
    Ok(report)
}
