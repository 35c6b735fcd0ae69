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
use std::sync::Arc;

use block::WriteAt;
use uuid::Uuid;
use vdisk::convert::NoProgress;
use vdisk::file::{FileAccess, HostFile};
use vdisk::image::{ChainMode, FormatHint, Image, ImageEditor, ImageReader, OpenOptions};
use vdisk::vhdx::{IdSource, ParentLocator};
use vdisk::{DiskId, Format, Subformat, merge, vhd, vhdx};

use super::clock::VirtualTime;
use super::ids::{RctId, SystemKey};
use super::path::WindowsPath;
use super::storage::{DataMode, FilePlace, Storage};
use super::tracking::ChangeTracker;
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

    fn options(&self) -> OpenOptions {
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

fn not_found(place: &FilePlace) -> Error {
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

    fn known_mut(&mut self, place: &FilePlace) -> Result<&mut DiskFile> {
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

    /// Begins to track a disk if it is not tracked yet; `None` when it cannot be.
    pub(super) fn track(&mut self, place: &FilePlace, id: Uuid) -> Result<Option<Uuid>> {
        let disk = self.known(place)?;
        if disk.facts.format == DiskFormat::Vhd {
            return Ok(None);
        }
        if let Some(tracked) = disk.tracked {
            if self.tracking_files_are_there(place)? {
                return Ok(Some(tracked.tracker));
            }
            self.lose_tracking(place);
        }
        let size = self.known(place)?.facts.size_bytes;
        self.trackers.insert(id, ChangeTracker::new(id, size));
        self.known_mut(place)?.tracked = Some(Tracked {
            tracker: id,
            frozen: None,
        });
        self.write_tracking_files(place)?;
        Ok(Some(id))
    }

    /// The bottom of a chain: tracking files lie beside it.
    pub(super) fn root_of(&self, place: &FilePlace) -> FilePlace {
        let mut at = place.clone();
        for _ in 0..vdisk::chain::MAX_DEPTH {
            match self.disks.get(&at).and_then(|disk| disk.parent.clone()) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        at
    }

    /// `.rct` and `.mrt` hold the tracker's id: whoever takes them away takes the tracking away.
    fn write_tracking_files(&self, place: &FilePlace) -> Result<()> {
        let disk = self.known(place)?;
        let root = self.known(&self.root_of(place))?;
        let Some(tracked) = disk.tracked.filter(|_| root.is_file) else {
            return Ok(());
        };
        for extension in ["rct", "mrt"] {
            let file = beside(&root.backing, extension);
            let mut bytes = format!("HIKAE-LAB {extension} ").into_bytes();
            bytes.extend_from_slice(tracked.tracker.as_bytes());
            bytes.resize(4096, 0);
            std::fs::write(&file, bytes)
                .map_err(|error| Error::io(format!("writing {}", file.display()), error))?;
        }
        Ok(())
    }

    fn tracking_files_are_there(&self, place: &FilePlace) -> Result<bool> {
        let disk = self.known(place)?;
        let root = self.known(&self.root_of(place))?;
        let Some(tracked) = disk.tracked.filter(|_| root.is_file) else {
            return Ok(true);
        };
        let holds = |extension: &str| {
            std::fs::read(beside(&root.backing, extension)).is_ok_and(|bytes| {
                let head = format!("HIKAE-LAB {extension} ");
                bytes.get(head.len()..head.len() + 16) == Some(tracked.tracker.as_bytes())
            })
        };
        Ok(holds("rct") && holds("mrt"))
    }

    /// The tracker of a disk and the epoch that the file shows, if it is tracked.
    pub(super) fn tracker_of(&self, place: &FilePlace) -> Result<Option<(&ChangeTracker, u64)>> {
        let Some(tracked) = self.known(place)?.tracked else {
            return Ok(None);
        };
        if !self.tracking_files_are_there(place)? {
            return Ok(None);
        }
        Ok(self.trackers.get(&tracked.tracker).map(|tracker| {
            let until = tracked.frozen.unwrap_or(tracker.open_epoch());
            (tracker, until)
        }))
    }

    /// Ends the epoch of a live disk.
    pub(super) fn freeze(&mut self, place: &FilePlace) -> Result<Option<(u64, RctId)>> {
        let Some(tracked) = self.known(place)?.tracked else {
            return Ok(None);
        };
        let Some(tracker) = self.trackers.get_mut(&tracked.tracker) else {
            return Ok(None);
        };
        let (epoch, id) = tracker.freeze();
        self.known_mut(place)?.tracked = Some(Tracked {
            frozen: Some(epoch),
            ..tracked
        });
        Ok(Some((epoch, id)))
    }

    /// Names the moment of a live disk, which goes on being live.
    pub(super) fn name_moment(&mut self, place: &FilePlace) -> Result<Option<RctId>> {
        let tracked = self.known(place)?.tracked;
        let tracker = tracked.and_then(|it| self.trackers.get_mut(&it.tracker));
        Ok(tracker.map(|tracker| tracker.freeze().1))
    }

    /// Forgets the name of a moment, whichever tracker gave it.
    pub(super) fn forget_moment(&mut self, id: &RctId) {
        for tracker in self.trackers.values_mut() {
            if tracker.epoch_of(id).is_some() {
                tracker.forget(id);
            }
        }
    }

    /// Forgets all tracking of the chain that a disk belongs to.
    pub(super) fn lose_tracking(&mut self, place: &FilePlace) {
        let Some(tracked) = self.disks.get(place).and_then(|disk| disk.tracked) else {
            return;
        };
        self.trackers.remove(&tracked.tracker);
        for disk in self.disks.values_mut() {
            if disk.tracked.is_some_and(|it| it.tracker == tracked.tracker) {
                disk.tracked = None;
            }
        }
    }
}

pub(super) fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    file.with_file_name(name)
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn make_file(
    disk: &DiskFile,
    parent: Option<&DiskFile>,
    ids: &IdSource,
    now: VirtualTime,
) -> Result<DiskFacts> {
    let facts = &disk.facts;
    let wrong = |error| at_disk("making", &disk.path)(error);
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::create_new(&disk.backing).map_err(wrong)?);
    let relative = parent.map(|it| relative_path(&disk.backing, &it.backing));
    let reader = parent.map(leaf_reader).transpose()?;
    match facts.format {
        DiskFormat::Vhd => {
            let allocation = match (facts.disk_type, reader.as_deref(), parent) {
                (DiskType::Fixed, _, _) => vhd::Allocation::Fixed,
                (_, Some(ImageReader::Vhd(below)), Some(parent)) => {
                    vhd::Allocation::Differencing(vhd::ParentLink {
                        id: below.unique_id(),
                        time: below.time(),
                        relative_path: relative,
                        absolute_path: Some(parent.path.to_string()),
                    })
                }
                _ => vhd::Allocation::Dynamic,
            };
            let unique_id = match parent {
                Some(_) => ids.disk_id(),
                None => DiskId(facts.disk_id),
            };
            let options = vhd::CreateOptions {
                size_bytes: facts.size_bytes,
                allocation,
                block_bytes: facts.block_bytes,
                unique_id,
                time: vhd::VhdTime::from_unix_seconds(now.unix_seconds()),
            };
            vhd::create(&*file, &options).map_err(wrong)?;
            Ok(DiskFacts {
                disk_id: unique_id.0,
                ..facts.clone()
            })
        }
        DiskFormat::Vhdx | DiskFormat::VhdSet => {
            let mut options =
                vhdx::CreateOptions::new(facts.size_bytes, DiskId(facts.disk_id), ids.clone());
            options.block_bytes = Some(facts.block_bytes);
            options.logical_sector_bytes = facts.logical_sector_bytes;
            options.physical_sector_bytes = facts.physical_sector_bytes;
            options.allocation = match (facts.disk_type, reader.as_deref(), parent) {
                (DiskType::Fixed, _, _) => vhdx::Allocation::Fixed,
                (_, Some(ImageReader::Vhdx(below)), Some(parent)) => {
                    let link =
                        locator(below.data_write_id(), &relative.unwrap_or_default(), parent);
                    vhdx::Allocation::Differencing(link)
                }
                _ => vhdx::Allocation::Dynamic,
            };
            vhdx::create(&file, &options).map_err(wrong)?;
            Ok(facts.clone())
        }
    }
}

fn locator(write_id: vhdx::WriteId, relative: &str, parent: &DiskFile) -> ParentLocator {
    ParentLocator::new(write_id)
        .with(vhdx::RELATIVE_PATH, relative)
        .with(vhdx::ABSOLUTE_WIN32_PATH, parent.path.to_string())
}

fn leaf_reader(disk: &DiskFile) -> Result<Arc<ImageReader>> {
    let options = OpenOptions {
        chain: ChainMode::LeafOnly,
        ..disk.options()
    };
    let image = Image::open(&disk.backing, &options).map_err(at_disk("opening", &disk.path))?;
    image
        .chain()
        .first()
        .map(|layer| Arc::clone(layer.reader()))
        .ok_or_else(|| Error::invalid(format!("{} has no layer", disk.path)))
}

/// What changes whenever the bytes of the disk may have changed.
fn stamp(disk: &DiskFile) -> Result<Option<Uuid>> {
    Ok(match &*leaf_reader(disk)? {
        ImageReader::Vhdx(reader) => Some(reader.data_write_id().0),
        ImageReader::Vhd(reader) => Some(reader.unique_id().0),
        _ => None,
    })
}

fn facts_of(info: &vdisk::ImageInfo, path: &WindowsPath) -> Result<DiskFacts> {
    let format = match info.format {
        Format::Vhd => DiskFormat::Vhd,
        Format::Vhdx if path.extension() == "vhds" => DiskFormat::VhdSet,
        Format::Vhdx => DiskFormat::Vhdx,
        _ => {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                format!("{path} is no VHD or VHDX"),
            ));
        }
    };
    let disk_type = match info.subformat {
        Subformat::Fixed => DiskType::Fixed,
        Subformat::Differencing => DiskType::Differencing,
        _ => DiskType::Dynamic,
    };
    let unit = info.allocation_unit_bytes.unwrap_or(0);
    Ok(DiskFacts {
        format,
        disk_type,
        size_bytes: info.size_bytes,
        block_bytes: u32::try_from(unit).unwrap_or(u32::MAX),
        logical_sector_bytes: info.logical_sector_bytes,
        physical_sector_bytes: info.physical_sector_bytes,
        disk_id: info.disk_id.map_or(Uuid::nil(), |id| id.0),
    })
}

/// The parent as seen from the child's folder, in Windows' form.
fn relative_path(child: &Path, parent: &Path) -> String {
    let empty = Path::new("");
    let mut from = child.parent().unwrap_or(empty).components().peekable();
    let mut to = parent.components().peekable();
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    let mut parts: Vec<String> = from.map(|_| "..".to_owned()).collect();
    parts.extend(to.map(|part| part.as_os_str().to_string_lossy().into_owned()));
    format!(".\\{}", parts.join("\\"))
}

/// Makes a child name its parent anew. A VHDX has a place for that; a VHD is written again under its name.
fn relink(child: &DiskFile, parent: &DiskFile, ids: &IdSource) -> Result<()> {
    let wrong = |error| at_disk("relinking", &child.path)(error);
    let relative = relative_path(&child.backing, &parent.backing);
    match &*leaf_reader(parent)? {
        ImageReader::Vhdx(below) => {
            let file: Arc<dyn WriteAt> =
                Arc::new(HostFile::open(&child.backing, FileAccess::ReadWrite).map_err(wrong)?);
            vhdx::relink(
                &file,
                &locator(below.data_write_id(), &relative, parent),
                ids,
            )
            .map_err(wrong)
        }
        ImageReader::Vhd(below) => {
            let own = leaf_reader(child)?;
            let ImageReader::Vhd(old) = &*own else {
                return Err(Error::invalid(format!("{} is no VHD", child.path)));
            };
            let fresh = beside(&child.backing, "relinked");
            remove_file(&fresh)?;
            let file: Arc<dyn WriteAt> = Arc::new(HostFile::create_new(&fresh).map_err(wrong)?);
            let options = vhd::CreateOptions {
                size_bytes: child.facts.size_bytes,
                allocation: vhd::Allocation::Differencing(vhd::ParentLink {
                    id: below.unique_id(),
                    time: below.time(),
                    relative_path: Some(relative),
                    absolute_path: Some(parent.path.to_string()),
                }),
                block_bytes: child.facts.block_bytes,
                unique_id: old.unique_id(),
                time: old.time(),
            };
            vhd::create(&*file, &options).map_err(wrong)?;
            let below: Arc<dyn block::ReadAt> = Arc::new(
                Image::open(&parent.backing, &parent.options())
                    .map_err(at_disk("opening", &parent.path))?,
            );
            let writer = vhd::VhdWriter::open(file, Some(below)).map_err(wrong)?;
            merge::copy_own(&*own, &writer, 0, &NoProgress).map_err(wrong)?;
            writer.finish().map_err(wrong)?;
            std::fs::rename(&fresh, &child.backing)
                .map_err(|error| Error::io(format!("renaming to {}", child.path), error))
        }
        _ => Err(Error::invalid(format!("{} has no children", parent.path))),
    }
}
