//! Where files lie: volumes of hosts, shared volumes of clusters, shares; and which disks are in them.
//!
//! ```text
//!   (host, WindowsPath) ─► FilePlace (volume, parts without case) ─► a file below the volume's backing folder
//! ```
//!
//! **Invariants.** A path leads to at most one place; two paths that differ in case lead to the same. What stands in the
//! backing folder rules: a disk that somebody replaced there is seen as replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::disk::DiskFile;
use super::ids::{ClusterName, HostName};
use super::path::{PathRoot, WindowsPath};
use super::tracking::ChangeTracker;
use crate::{Error, Result, ReturnCode};

/// A volume of the estate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKind {
    /// A drive letter of one host.
    Local {
        /// The host.
        host: HostName,
        /// The letter, upper case.
        letter: char,
    },
    /// `C:\ClusterStorage\NAME` of every node.
    Csv {
        /// The cluster.
        cluster: ClusterName,
        /// The last part of its path.
        name: String,
        /// The node that coordinates it.
        owner: HostName,
    },
    /// A share of a file server.
    Share {
        /// Server.
        server: String,
        /// Share.
        share: String,
    },
}

/// How a volume can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeState {
    /// As it should be.
    Online,
    /// Through the coordinator (`FaultState` 1).
    Redirected,
    /// Not at all (`FaultState` 2).
    NoAccess,
    /// In maintenance (`FaultState` 4).
    Maintenance,
}

impl VolumeState {
    /// `MSCluster_ClusterSharedVolume.FaultState`.
    pub fn fault_state(self) -> u32 {
        match self {
            Self::Online => 0,
            Self::Redirected => 1,
            Self::NoAccess => 2,
            Self::Maintenance => 4,
        }
    }
}

/// A volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// What it is.
    pub kind: VolumeKind,
    /// The GUID of `\\?\Volume{…}\`.
    pub guid: Uuid,
    /// The folder that holds its files.
    pub backing: PathBuf,
    /// Bytes.
    pub capacity_bytes: u64,
    /// How it can be reached.
    pub state: VolumeState,
    /// Whether it is a share outside of the domain: computer accounts have no rights there.
    pub is_foreign: bool,
    /// Bytes that something else takes.
    pub filled_bytes: u64,
}

impl Volume {
    /// Its path as a host sees it.
    pub fn path(&self) -> String {
        match &self.kind {
            VolumeKind::Local { letter, .. } => format!("{letter}:"),
            VolumeKind::Csv { name, .. } => format!("C:\\ClusterStorage\\{name}"),
            VolumeKind::Share { server, share } => format!("\\\\{server}\\{share}"),
        }
    }
}

/// Where a file lies, however it was named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePlace {
    /// Its volume.
    pub volume: VolumeId,
    /// Its path there, lower case, parts between `/`.
    pub path: String,
}

/// Whether disks are files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataMode {
    /// Each disk is a real file from the beginning.
    Files,
    /// A disk is a file once somebody opens it: for thousands of VMs without data.
    Lazy,
}

/// All storage of an estate.
pub struct Storage {
    pub(super) volumes: Vec<Volume>,
    pub(super) disks: BTreeMap<FilePlace, DiskFile>,
    pub(super) trackers: BTreeMap<Uuid, ChangeTracker>,
    pub(super) mode: DataMode,
}

/// The folder of shared volumes.
const CLUSTER_STORAGE: &str = "ClusterStorage";

impl Storage {
    pub(super) fn new(mode: DataMode) -> Self {
        Self {
            volumes: Vec::new(),
            disks: BTreeMap::new(),
            trackers: BTreeMap::new(),
            mode,
        }
    }

    /// All volumes.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// A volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|it| it.id == id)
    }

    /// A disk that the estate knows.
    pub fn disk(&self, place: &FilePlace) -> Option<&DiskFile> {
        self.disks.get(place)
    }

    /// Every disk that the estate knows.
    pub fn disks(&self) -> impl Iterator<Item = (&FilePlace, &DiskFile)> {
        self.disks.iter()
    }

    /// The volume of a path as a host sees it, and the parts behind the volume's root.
    fn find<'p>(
        &self,
        host: &HostName,
        cluster: Option<&ClusterName>,
        path: &'p WindowsPath,
    ) -> Result<(&Volume, &'p [String])> {
        let is_csv = path
            .parts()
            .first()
            .is_some_and(|part| part.eq_ignore_ascii_case(CLUSTER_STORAGE));
        let found = self.volumes.iter().find_map(|volume| {
            let rest = match (&volume.kind, path.root()) {
                (
                    VolumeKind::Csv {
                        cluster: owner,
                        name,
                        ..
                    },
                    PathRoot::Drive('C'),
                ) if is_csv && cluster == Some(owner) => {
                    let named = path.parts().get(1)?;
                    named
                        .eq_ignore_ascii_case(name)
                        .then(|| path.parts().get(2..))?
                }
                (
                    VolumeKind::Local {
                        host: owner,
                        letter,
                    },
                    PathRoot::Drive(asked),
                ) if !(is_csv && *letter == 'C') && owner == host && letter == asked => {
                    Some(path.parts())
                }
                (
                    VolumeKind::Share { server, share },
                    PathRoot::Share {
                        server: s,
                        share: n,
                    },
                ) if server.eq_ignore_ascii_case(s) && share.eq_ignore_ascii_case(n) => {
                    Some(path.parts())
                }
                _ => None,
            }?;
            Some((volume, rest))
        });
        match found {
            Some((volume, _)) if volume.state == VolumeState::NoAccess => Err(Error::returned(
                ReturnCode::SystemNotAvailable,
                format!("the volume of {path} cannot be reached"),
            )),
            Some(found) => Ok(found),
            None => Err(Error::returned(
                ReturnCode::FileNotFound,
                format!("{host} has no volume for {path}"),
            )),
        }
    }

    /// Where a path of a host leads.
    ///
    /// # Errors
    /// `FileNotFound` when the host has no such volume; `SystemNotAvailable` when it cannot be reached.
    pub fn locate(
        &self,
        host: &HostName,
        cluster: Option<&ClusterName>,
        path: &WindowsPath,
    ) -> Result<FilePlace> {
        let (volume, parts) = self.find(host, cluster, path)?;
        let lower: Vec<String> = parts.iter().map(|part| part.to_lowercase()).collect();
        Ok(FilePlace {
            volume: volume.id,
            path: lower.join("/"),
        })
    }

    /// The file below the backing folder that a path of a host names, whether it is there or not.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub fn backing(
        &self,
        host: &HostName,
        cluster: Option<&ClusterName>,
        path: &WindowsPath,
    ) -> Result<PathBuf> {
        let (volume, parts) = self.find(host, cluster, path)?;
        let mut at = volume.backing.clone();
        for part in parts {
            at = spelled_below(&at, part);
        }
        Ok(at)
    }

    /// Bytes of files in a volume.
    pub fn used_bytes(&self, id: VolumeId) -> u64 {
        let Some(volume) = self.volume(id) else {
            return 0;
        };
        let disks = self.disks.iter().filter(|(place, _)| place.volume == id);
        let sum: u64 = disks.map(|(_, disk)| disk.file_bytes()).sum();
        sum.saturating_add(volume.filled_bytes)
    }

    /// Bytes left in a volume.
    pub fn free_bytes(&self, id: VolumeId) -> u64 {
        let capacity = self.volume(id).map_or(0, |volume| volume.capacity_bytes);
        capacity.saturating_sub(self.used_bytes(id))
    }
}

/// The entry of that name in a folder, as it is spelled there; the name as given when there is none.
fn spelled_below(folder: &Path, name: &str) -> PathBuf {
    let exact = folder.join(name);
    if exact.exists() {
        return exact;
    }
    let Ok(entries) = std::fs::read_dir(folder) else {
        return exact;
    };
    let wanted = name.to_lowercase();
    let mut found: Vec<PathBuf> = entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().to_lowercase() == wanted)
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.into_iter().next().unwrap_or(exact)
}
