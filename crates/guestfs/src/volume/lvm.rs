//! LVM2 of Linux.
//!
//! ```text
//!   physical volumes ─► labels ─► texts ─► the newest sound one per group ─► logical volumes ─► segments
//!
//!   striped (linear), mirror, raid0…raid10   areas on physical volumes or on hidden logical volumes
//!   thin ─► thin-pool ─► metadata (B-trees of device-mapper) and data
//!   snapshot                                 an origin, and a store of the chunks that changed since
//! ```
//!
//! A physical volume that is missing is named by every volume that needs it; what does not need it reads.
//!
//! **Not done, and refused by name:** caches (their write-back part holds the truth), VDO, integrity, snapshots that are
//! being merged, LVM1.
//!
//! Source: LVM2 `man lvm.conf`, `man lvmraid`, `lib/format_text`.

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

mod group;
pub mod label;
mod resolve;
mod snapshot;
mod text;
mod thin;

use std::collections::BTreeMap;

use group::VolumeGroup;
use label::{Label, PhysicalVolumeId};

use super::pieces::Source;
use super::{Candidate, LogicalVolume};
use crate::Result;

/// What was found over all candidates.
#[derive(Debug, Default)]
pub struct LvmVolumes {
    /// The visible volumes of all groups.
    pub volumes: Vec<LogicalVolume>,
    /// Damage that hides something, in words that name the place.
    pub findings: Vec<String>,
}

/// Puts together all groups of which a physical volume is among these.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a candidate cannot be read. Damage is a finding.
pub fn assemble(candidates: &[Candidate]) -> Result<LvmVolumes> {
    let mut found = LvmVolumes::default();
    let mut present: BTreeMap<PhysicalVolumeId, (Source, Label)> = BTreeMap::new();
    let mut groups: BTreeMap<String, VolumeGroup> = BTreeMap::new();
    for candidate in candidates {
        let label = match label::read_label(&*candidate.source) {
            Ok(Some(label)) => label,
            Ok(None) => continue,
            // A set of which too much is missing: nothing can be told of what stands on it.
            Err(error) if error.kind() == crate::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if present.contains_key(&label.id) {
            found.findings.push(format!(
                "{}: another physical volume has the same id {}",
                candidate.name, label.id
            ));
            continue;
        }
        let (texts, damage) = match label::read_texts(&*candidate.source, &label) {
            Ok(found) => found,
            Err(error) if error.kind() == crate::ErrorKind::NotFound => {
                (Vec::new(), vec![error.to_string()])
            }
            Err(error) => return Err(error),
        };
        for what in damage {
            found.findings.push(format!("{}: {what}", candidate.name));
        }
        for text in texts {
            match text::parse(&text).and_then(|root| VolumeGroup::parse(&root)) {
                Ok(group) => {
                    let known = groups.get(&group.id);
                    if known.is_none_or(|known| group.sequence > known.sequence) {
                        groups.insert(group.id.clone(), group);
                    }
                }
                Err(error) => found.findings.push(format!("{}: {error}", candidate.name)),
            }
        }
        present.insert(label.id.clone(), (candidate.source.clone(), label));
    }
    for group in groups.values() {
        found.volumes.extend(resolve::volumes(group, &present));
    }
    Ok(found)
}
