//! Virtual disks of the estate: what is known of each, and the real file behind it.
//!
//! ```text
//!   Lazy: facts only ── materialize (parents first) ──► a real VHDX or VHD file
//!   frozen: named by a checkpoint      live: opened by a worker process (holder)
//! ```
//!
//! **Invariants.** Facts and file agree; where somebody else changed the file, the file is believed and its tracking is gone.
//! A file is removed only when nothing names it.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use vdisk::convert::NoProgress;
use vdisk::image::{FormatHint, Image, ImageEditor, OpenOptions};
use vdisk::vhdx::IdSource;
use vdisk::{Format, merge};

use super::clock::VirtualTime;
use super::disk_file::{beside, facts_of, make_file, relink, remove_file, stamp};
use super::ids::SystemKey;
use super::path::WindowsPath;
use super::storage::{DataMode, FilePlace, Storage};
use crate::{Error, Result, ReturnCode};

/// File formats of Hyper-V.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// 2.
    Vhd,
    /// 3.
    Vhdx,
    /// 4: a VHD set. Modelled as a fact; its file is a VHDX.
    VhdSet,
}

impl DiskFormat {
    /// `Format` of `Msvm_VirtualHardDiskSettingData`.
    pub fn value(self) -> u16 {
        match self {
            Self::Vhd => 2,
            Self::Vhdx => 3,
            Self::VhdSet => 4,
        }
    }

    fn image(self) -> Format {
        match self {
            Self::Vhd => Format::Vhd,
            Self::Vhdx | Self::VhdSet => Format::Vhdx,
        }
    }
}

/// How a disk takes its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// 2.
    Fixed,
    /// 3.
    Dynamic,
    /// 4.
    Differencing,
}

impl DiskType {
    /// `Type` of `Msvm_VirtualHardDiskSettingData`.
    pub fn value(self) -> u16 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// File format.
    pub format: DiskFormat,
    /// How it takes its space.
    pub disk_type: DiskType,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Unit of allocation.
    pub block_bytes: u32,
    /// Smallest unit the guest addresses.
    pub logical_sector_bytes: u32,
    /// Smallest unit the guest believes the medium writes.
    pub physical_sector_bytes: u32,
    /// `VirtualDiskId`: shared by all files of a VHDX chain.
    pub disk_id: Uuid,
}

impl DiskFacts {
    /// A new disk as Windows makes it.
    pub fn new(format: DiskFormat, disk_type: DiskType, size_bytes: u64, disk_id: Uuid) -> Self {
        let (block_bytes, physical_sector_bytes) = match format {
            DiskFormat::Vhd => (2 << 20, 512),
            DiskFormat::Vhdx | DiskFormat::VhdSet => (32 << 20, 4096),
        };
        Self {
            format,
            disk_type,
            size_bytes,
            block_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes,
            disk_id,
        }
    }
}

/// How a file is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tracked {
    pub tracker: Uuid,
    /// The epoch that this file ended; open while the file is live.
    pub frozen: Option<u64>,
}

/// A disk of the estate.
#[derive(Debug, Clone)]
pub struct DiskFile {
    /// Its path as it was named first.
    pub path: WindowsPath,
    /// What it is.
    pub facts: DiskFacts,
    /// Its parent.
    pub parent: Option<FilePlace>,
    pub(super) backing: PathBuf,
    pub(super) is_file: bool,
    pub(super) stamp: Option<Uuid>,
    pub(super) tracked: Option<Tracked>,
    pub(super) holder: Option<SystemKey>,
    pub(super) is_released: bool,
}

impl DiskFile {
    /// Bytes that the file takes; 0 while there is none.
    pub fn file_bytes(&self) -> u64 {
        if !self.is_file {
            return 0;
        }
        std::fs::metadata(&self.backing).map_or(0, |it| it.len())
    }

    /// Where the file lies on this machine.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// Whether a worker process has it open for writing.
    pub fn is_in_use(&self) -> bool {
        self.holder.is_some()
    }

    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions {
            format: FormatHint::Exactly(self.facts.format.image()),
            ..OpenOptions::default()
        }
    }
}

pub(super) fn at_disk(
    what: &str,
    path: &impl std::fmt::Display,
) -> impl FnOnce(vdisk::Error) -> Error {
    let context = format!("{what} {path}");
    move |error| Error::io(context, error)
}

pub(super) fn not_found(place: &FilePlace) -> Error {
    Error::returned(
        ReturnCode::FileNotFound,
        format!("there is no disk {}", place.path),
    )
}

/// Where and by which name a disk is made.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub place: FilePlace,
    pub path: WindowsPath,
    pub backing: PathBuf,
}

impl Storage {
    pub(super) fn known(&self, place: &FilePlace) -> Result<&DiskFile> {
        self.disks.get(place).ok_or_else(|| not_found(place))
    }

    pub(super) fn known_mut(&mut self, place: &FilePlace) -> Result<&mut DiskFile> {
        self.disks.get_mut(place).ok_or_else(|| not_found(place))
    }

    /// A new, empty disk.
    pub(super) fn create_disk(
        &mut self,
        spot: Spot,
        facts: DiskFacts,
        ids: &IdSource,
        now: VirtualTime,
    ) -> Result<()> {
        self.refuse_existing(&spot)?;
        let disk = DiskFile {
            path: spot.path,
            facts,
            parent: None,
            backing: spot.backing,
            is_file: false,
            stamp: None,
            tracked: None,
            holder: None,
            is_released: false,
        };
        self.disks.insert(spot.place.clone(), disk);
        self.make_now(&spot.place, ids, now)
    }

    /// A new, empty child of a disk; tracking goes on in it.
    pub(super) fn create_child(
        &mut self,
        spot: Spot,
        parent: &FilePlace,
        ids: &IdSource,
        now: VirtualTime,
    ) -> Result<()> {
        self.refuse_existing(&spot)?;
        let below = self.known(parent)?;
        let facts = DiskFacts {
            disk_type: DiskType::Differencing,
            block_bytes: 2 << 20,
            ..below.facts.clone()
        };
        let has_file = below.is_file;
        let tracked = below.tracked.map(|it| Tracked { frozen: None, ..it });
        let disk = DiskFile {
            path: spot.path,
            facts,
            parent: Some(parent.clone()),
            backing: spot.backing,
            is_file: false,
            stamp: None,
            tracked,
            holder: None,
            is_released: false,
        };
        self.disks.insert(spot.place.clone(), disk);
        if has_file {
            self.materialize(&spot.place, ids, now)
        } else {
            Ok(())
        }
    }

    fn make_now(&mut self, place: &FilePlace, ids: &IdSource, now: VirtualTime) -> Result<()> {
        match self.mode {
            DataMode::Files => self.materialize(place, ids, now),
            DataMode::Lazy => Ok(()),
        }
    }

    fn refuse_existing(&self, spot: &Spot) -> Result<()> {
        if self.disks.contains_key(&spot.place) || spot.backing.exists() {
            return Err(Error::returned(
                ReturnCode::InvalidParameter,
                format!("{} is already there", spot.path),
            ));
        }
        Ok(())
    }

    /// Makes the file of a disk, and of its parents first, if there is none yet.
    pub(super) fn materialize(
        &mut self,
        place: &FilePlace,
        ids: &IdSource,
        now: VirtualTime,
    ) -> Result<()> {
        let mut chain = vec![place.clone()];
        while let Some(parent) = chain
            .last()
            .and_then(|at| self.known(at).ok()?.parent.clone())
        {
            if chain.len() > vdisk::chain::MAX_DEPTH {
                return Err(Error::invalid(format!(
                    "{} has too many parents",
                    place.path
                )));
            }
            chain.push(parent);
        }
        let was_lazy = chain
            .iter()
            .any(|at| !self.disks.get(at).is_some_and(|it| it.is_file));
        for at in chain.iter().rev() {
            if self.known(at)?.is_file {
                continue;
            }
            let parent = match &self.known(at)?.parent {
                Some(parent) => Some(self.known(parent)?.clone()),
                None => None,
            };
            let disk = self.known_mut(at)?;
            if let Some(folder) = disk.backing.parent() {
                std::fs::create_dir_all(folder).map_err(|error| {
                    Error::io(format!("making the folder of {}", disk.path), error)
                })?;
            }
            let facts = make_file(disk, parent.as_ref(), ids, now)?;
            disk.facts = facts;
            disk.is_file = true;
            disk.stamp = stamp(disk)?;
        }
        if was_lazy {
            self.write_tracking_files(place)?;
        }
        Ok(())
    }

    /// Takes over a file that somebody put there; a disk that is known already is looked at again.
    pub(super) fn adopt(
        &mut self,
        spot: &Spot,
        parents: &[(PathBuf, FilePlace, WindowsPath)],
    ) -> Result<()> {
        if let Some(disk) = self.disks.get(&spot.place) {
            if !disk.is_file || disk.holder.is_some() {
                return Ok(());
            }
            if !disk.backing.exists() {
                self.disks.remove(&spot.place);
                return Err(not_found(&spot.place));
            }
            let seen = stamp(disk)?;
            if seen == disk.stamp {
                return Ok(());
            }
            self.disks.remove(&spot.place);
        }
        if !spot.backing.is_file() {
            return Err(not_found(&spot.place));
        }
        let whole = Image::open(&spot.backing, &OpenOptions::default())
            .map_err(at_disk("opening", &spot.path))?;
        let layers: Vec<PathBuf> = whole
            .chain()
            .iter()
            .map(|it| it.path().to_owned())
            .collect();
        let info = whole.info();
        drop(whole);
        let parent = layers.get(1).and_then(|above| {
            let above = above.canonicalize().ok()?;
            parents.iter().find(|(known, _, _)| *known == above)
        });
        let facts = facts_of(&info, &spot.path)?;
        let mut disk = DiskFile {
            path: spot.path.clone(),
            facts,
            parent: parent.map(|(_, place, _)| place.clone()),
            backing: spot.backing.clone(),
            is_file: true,
            stamp: None,
            tracked: None,
            holder: None,
            is_released: false,
        };
        disk.stamp = stamp(&disk)?;
        self.disks.insert(spot.place.clone(), disk);
        Ok(())
    }

    /// Opens a disk for the worker process of a VM.
    pub(super) fn open_live(&mut self, place: &FilePlace, ids: &IdSource) -> Result<ImageEditor> {
        let disk = self.known(place)?;
        ImageEditor::open(&disk.backing, &disk.options(), ids.clone())
            .map_err(at_disk("opening", &disk.path))
    }

    /// Closes what [`Self::open_live`] opened.
    pub(super) fn close_live(&mut self, place: &FilePlace, editor: ImageEditor) -> Result<()> {
        let disk = self.known_mut(place)?;
        editor.finish().map_err(at_disk("closing", &disk.path))?;
        disk.stamp = stamp(disk)?;
        Ok(())
    }

    /// A disk with its whole chain, for reading. A disk without a file gets one.
    pub(super) fn open_frozen(
        &mut self,
        place: &FilePlace,
        ids: &IdSource,
        now: VirtualTime,
    ) -> Result<Image> {
        self.materialize(place, ids, now)?;
        let disk = self.known(place)?;
        Image::open(&disk.backing, &disk.options()).map_err(at_disk("opening", &disk.path))
    }

    /// Makes a disk larger.
    pub(super) fn grow(
        &mut self,
        place: &FilePlace,
        size_bytes: u64,
        ids: &IdSource,
    ) -> Result<()> {
        let disk = self.known_mut(place)?;
        if disk.is_file {
            let options = disk.options();
            let plan = vdisk::image::plan_resize(&disk.backing, size_bytes, &options)
                .map_err(at_disk("resizing", &disk.path))?;
            vdisk::image::resize(&plan, &options, ids).map_err(at_disk("resizing", &disk.path))?;
            disk.stamp = stamp(disk)?;
        }
        disk.facts.size_bytes = size_bytes;
        Ok(())
    }

    /// Files whose parent this is.
    pub(super) fn children(&self, place: &FilePlace) -> Vec<FilePlace> {
        let is_child = |(_, disk): &(&FilePlace, &DiskFile)| disk.parent.as_ref() == Some(place);
        self.disks
            .iter()
            .filter(is_child)
            .map(|(at, _)| at.clone())
            .collect()
    }

    /// Merges a child into its parent, takes the child away, and puts the child's children on the parent.
    pub(super) fn merge(&mut self, child: &FilePlace, ids: &IdSource) -> Result<()> {
        let above = self.known(child)?.clone();
        let Some(parent) = above.parent.clone() else {
            return Err(Error::invalid(format!("{} has no parent", above.path)));
        };
        let below = self.known(&parent)?.clone();
        if above.is_file && below.is_file {
            merge::merge(
                &above.backing,
                &below.backing,
                merge::MergeStart::Begin,
                &above.options(),
                ids.clone(),
                &NoProgress,
            )
            .map_err(at_disk("merging", &above.path))?;
        }
        let orphans = self.children(child);
        {
            let below = self.known_mut(&parent)?;
            below.tracked = above.tracked;
            below.facts.size_bytes = above.facts.size_bytes.max(below.facts.size_bytes);
            if below.is_file {
                below.stamp = stamp(below)?;
            }
        }
        for orphan in &orphans {
            self.put_on(orphan, &parent, ids)?;
        }
        self.remove(child)
    }

    /// Gives a child another parent with the same bytes.
    pub(super) fn put_on(
        &mut self,
        child: &FilePlace,
        parent: &FilePlace,
        ids: &IdSource,
    ) -> Result<()> {
        let below = self.known(parent)?.clone();
        let above = self.known_mut(child)?;
        above.parent = Some(parent.clone());
        if above.is_file && below.is_file {
            relink(above, &below, ids)?;
            above.stamp = stamp(above)?;
        }
        Ok(())
    }

    /// Takes a disk away, with its tracking files.
    pub(super) fn remove(&mut self, place: &FilePlace) -> Result<()> {
        let Some(disk) = self.disks.remove(place) else {
            return Ok(());
        };
        if disk.is_file {
            remove_file(&disk.backing)?;
            for extension in ["rct", "mrt"] {
                remove_file(&beside(&disk.backing, extension))?;
            }
        }
        Ok(())
    }
}
