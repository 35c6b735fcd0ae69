//! Which volume of one version is which volume of another: disks are partitioned anew, volumes grow, numbers move.
//!
//! A volume is known by the id of its file system; where several have the same one (a clone beside its original), by its
//! name among them. Where no file system has that id any more it is known by the id that its table or volume manager gives
//! it (it was formatted anew), else by its name when nothing contradicts that.

use serde::{Deserialize, Serialize};

use super::{InsideDisks, VolumeNumber};

/// What a volume is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct VolumeIdentity {
    content_id: Option<String>,
    volume_id: Option<String>,
    name: String,
}

/// The id of what lies in a volume, from its signature or, where that tells none, from the opened file system.
fn content_id(inside: &InsideDisks, number: VolumeNumber) -> Option<String> {
    let volume = inside.volume(number).ok()?;
    if let Some(id) = &volume.content.id {
        return Some(id.clone());
    }
    let file_system = inside.file_system(number).ok()?;
    file_system.facts().id.clone()
}

impl VolumeIdentity {
    /// What a volume is known by.
    pub(super) fn of(inside: &InsideDisks, number: VolumeNumber) -> Option<Self> {
        let volume = inside.volume(number).ok()?;
        Some(Self {
            content_id: content_id(inside, number),
            volume_id: volume.id.clone(),
            name: volume.name.clone(),
        })
    }

    /// A text that tells volumes apart across versions: the id of the file system where it has one.
    pub(super) fn label(&self) -> &str {
        let id = self.content_id.as_deref().or(self.volume_id.as_deref());
        id.unwrap_or(&self.name)
    }

    /// Its name in its version.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same volume on other disks, or on these later.
    pub(super) fn find_in(&self, inside: &InsideDisks) -> Option<VolumeNumber> {
        let readable = || inside.readable();
        if self.content_id.is_some() {
            let same: Vec<_> = readable()
                .filter(|(number, _)| content_id(inside, *number) == self.content_id)
                .collect();
            let named = same.iter().find(|(_, volume)| volume.name == self.name);
            if let Some((number, _)) = named.or(same.first()) {
                return Some(*number);
            }
        }
        let by_table =
            readable().find(|(_, volume)| self.volume_id.is_some() && volume.id == self.volume_id);
        let by_name = || {
            readable().find(|(_, volume)| {
                volume.name == self.name && (volume.id.is_none() || self.volume_id.is_none())
            })
        };
        by_table.or_else(by_name).map(|(number, _)| number)
    }
}
