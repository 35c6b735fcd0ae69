//! Which folders of this machine stand for the volumes that a host sees.
//!
//! **Invariant.** A path of the host lies below the folder of the longest prefix that fits: volumes, shared volumes and shares have
//! folders of their own, none inside another.

use std::path::PathBuf;

use super::ids::HostName;
use super::storage::VolumeKind;
use super::{Estate, VolumeId};
use crate::Result;

/// A folder of a host, and the one of this machine that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFolder {
    /// As the host calls it: `D:\`, `C:\ClusterStorage\Volume1`, `\\server\share`.
    pub windows: String,
    /// Here.
    pub local: PathBuf,
    /// The volume.
    pub volume: VolumeId,
}

impl Estate {
    /// All folders of a host: its volumes, its cluster's, and every share.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn folders_of(&self, host: &HostName) -> Result<Vec<HostFolder>> {
        let cluster = self.host(host)?.cluster.as_ref();
        let sees = |kind: &VolumeKind| match kind {
            VolumeKind::Local { host: owner, .. } => owner == host,
            VolumeKind::Csv { cluster: owner, .. } => cluster == Some(owner),
            VolumeKind::Share { .. } => true,
        };
        let volumes = self.storage.volumes().iter();
        let mut folders: Vec<HostFolder> = volumes
            .filter(|volume| sees(&volume.kind))
            .map(|volume| HostFolder {
                windows: match &volume.kind {
                    VolumeKind::Local { letter, .. } => format!("{letter}:\\"),
                    _ => volume.path(),
                },
                local: volume.backing.clone(),
                volume: volume.id,
            })
            .collect();
        folders.sort_by(|one, other| one.windows.cmp(&other.windows));
        Ok(folders)
    }
}
