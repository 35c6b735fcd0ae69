//! What lies inside disks, and the files in it, without mounting anything: images and versions alike.
//!
//! ```text
//!   image(s) ─────────────┐
//!   version in a repository ┴─► InsideDisks ─┬─ inspect ─► InspectReport   disks, volumes, file systems, systems
//!                                            ├─ locate ──► Place           a path as an operator types it
//!                                            ├─ select ──► Place, Place…   a path with `*` and `?`
//!                                            └─ list ────► ListedFile…     in bounded memory
//! ```
//!
//! **Invariants.** Nothing is read that the question does not need: a file system is opened when somebody asks for it.
//! Volumes are numbered from one in the order in which [`InspectReport`] shows them. Damage in one place hides nothing
//! elsewhere: it is told beside what could be read.

mod chain;
mod contents;
mod diff_files;
pub mod eligibility;
mod find;
mod history;
mod identity;
mod inspect;
mod list;
mod names;
mod place;
mod read_ahead;
mod recorded;
mod select;
mod system;
mod version;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::disk::{DiskLayout, Lock, Volume};
use guestfs::encrypted::UnlockKey;
use guestfs::filesystem::FileSystemKind;
use guestfs::probe::ContentKind;

pub use chain::{ChainScope, LookCost, VersionStamp, is_absence};
pub use contents::ContentHash;
pub use diff_files::{ChangedFile, DiffFilesReport, Doubt, FileChange, diff_files};
pub use find::{FindReport, FindRequest, FoundFile, FoundKind, NamePattern, VersionRange, find};
pub use history::{
    HistoryReport, HistoryRun, PathEvent, PathState, SeenFile, history, newest_with,
};
pub use inspect::{
    DiskReport, FileSystemReport, InspectReport, PartitionReport, VolumeReport, inspect,
};
pub use list::{Depth, Detail, ListedFile, ListedTimes, list, read_file};
pub use place::{LastLink, Place, Separators};
pub use system::SystemReport;
pub use version::VersionInside;

pub(crate) use read_ahead::ReadAhead;

use crate::{Error, ErrorKind, Result};

/// Which volume, as [`InspectReport`] numbers them: from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeNumber(pub usize);

impl std::fmt::Display for VolumeNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The disks of one machine, looked into together.
pub struct InsideDisks {
    layout: DiskLayout,
    opened: Mutex<HashMap<VolumeNumber, OpenedVolume>>,
}

/// A file system, and what it reads.
struct OpenedVolume {
    file_system: Arc<dyn FileSystem>,
    ahead: Arc<ReadAhead>,
}

impl InsideDisks {
    /// Looks at the tables and volumes of disks; no file system is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a disk cannot be read.
    pub fn open(disks: &[Arc<dyn ReadAt>]) -> Result<Self> {
        Self::open_with_keys(disks, &[])
    }

    /// The same, with keys for encrypted volumes: what one of them opens is a volume, too.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a disk cannot be read. A volume that no key opens says so when it is asked for.
    pub fn open_with_keys(disks: &[Arc<dyn ReadAt>], keys: &[UnlockKey]) -> Result<Self> {
        Ok(Self {
            layout: guestfs::disk::inspect_with_keys(disks, keys)?,
            opened: Mutex::default(),
        })
    }

    /// What was found.
    pub fn layout(&self) -> &DiskLayout {
        &self.layout
    }

    /// The volumes with their numbers.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeNumber, &Volume)> {
        self.layout
            .volumes
            .iter()
            .enumerate()
            .map(|(index, volume)| (VolumeNumber(index.saturating_add(1)), volume))
    }

    /// Those with a file system that files can be read from.
    pub fn readable(&self) -> impl Iterator<Item = (VolumeNumber, &Volume)> {
        self.volumes().filter(|(_, volume)| {
            volume.reader.is_ok() && matches!(volume.content.kind, ContentKind::FileSystem(_))
        })
    }

    /// A volume by its number.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn volume(&self, number: VolumeNumber) -> Result<&Volume> {
        let index = number.0.checked_sub(1);
        index
            .and_then(|index| self.layout.volumes.get(index))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no volume {number}")))
    }

    /// The file system of a volume, opened once.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with what lies there instead; [`ErrorKind::Corrupt`].
    pub fn file_system(&self, number: VolumeNumber) -> Result<Arc<dyn FileSystem>> {
        let volume = self.volume(number)?;
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = opened().get(&number) {
            return Ok(Arc::clone(&found.file_system));
        }
        let place = format!("volume {number} ({})", volume.name);
        let source = match &volume.reader {
            Ok(source) => Arc::clone(source),
            Err(obstacle) => {
                let what = format!("{place}: {}", obstacle.why);
                return Err(Error::from(guestfs::Error::new(obstacle.kind, what)));
            }
        };
        match &volume.lock {
            Some(Lock::Closed(obstacle)) => {
                let what = format!("{place}: {}", obstacle.why);
                return Err(Error::from(guestfs::Error::new(obstacle.kind, what)));
            }
            Some(Lock::Opened { volume: inner }) => {
                let number = self.volumes().find(|(_, one)| one.name == *inner);
                let number = number.map_or(String::new(), |(number, _)| number.to_string());
                let what = format!("{place} is encrypted: its files are on volume {number}");
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            None => {}
        }
        let ContentKind::FileSystem(kind) = volume.content.kind else {
            let what = format!("{place} holds {}: no files", volume.content.kind.name());
            return Err(Error::new(ErrorKind::Unsupported, what));
        };
        let ahead = Arc::new(ReadAhead::new(source));
        let source = Arc::clone(&ahead) as Arc<dyn ReadAt>;
        let found = open_file_system(kind, source).map_err(|error| error.within(place))?;
        let file_system = Arc::clone(&found);
        opened().insert(number, OpenedVolume { file_system, ahead });
        Ok(found)
    }

    /// What the opened file system of a volume reads; from now on it keeps blocks for those who read on.
    pub(crate) fn read_ahead(&self, number: VolumeNumber) -> Option<Arc<ReadAhead>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = opened.get(&number).map(|found| Arc::clone(&found.ahead))?;
        ahead.begin();
        Some(ahead)
    }
}

fn open_file_system(
    kind: FileSystemKind,
    volume: Arc<dyn ReadAt>,
) -> guestfs::Result<Arc<dyn FileSystem>> {
    use FileSystemKind as Kind;
    Ok(match kind {
        Kind::Ntfs => Arc::new(guestfs::ntfs::open(volume)?),
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => Arc::new(guestfs::ext::open(volume)?),
        Kind::Fat12 | Kind::Fat16 | Kind::Fat32 => Arc::new(guestfs::fat::open(volume)?),
        Kind::Xfs => Arc::new(guestfs::xfs::open(volume)?),
        Kind::Btrfs => Arc::new(guestfs::btrfs::open(volume)?),
        Kind::ExFat => Arc::new(guestfs::fat::exfat::open(volume)?),
        other => {
            let what = format!("{} is known, but its files are not read yet", other.name());
            return Err(guestfs::Error::unsupported(what));
        }
    })
}

/// Whether names and paths of this file system follow the rules of Windows.
fn is_of_windows(kind: FileSystemKind) -> bool {
    use FileSystemKind as Kind;
    matches!(
        kind,
        Kind::Ntfs | Kind::Fat12 | Kind::Fat16 | Kind::Fat32 | Kind::ExFat
    )
}
