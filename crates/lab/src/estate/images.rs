//! `Msvm_ImageManagementService`: what is asked of disks by path.
//!
//! **Invariants.** A disk that a worker process holds is neither changed nor merged by these calls. A file that somebody put in
//! place of another is seen as the other file that it is.

use std::path::PathBuf;

use block::ByteRange;

use super::disk::{DiskFacts, DiskFile, DiskFormat, DiskType};
use super::fault::FaultKind;
use super::ids::{HostName, RctId, VmId};
use super::job::{Affected, JobClass, Started};
use super::storage::{FilePlace, VolumeKind};
use super::switch::Switch;
use super::tracking::Honesty;
use super::work::JobPlan;
use super::{Estate, WindowsPath};
use crate::{Error, ErrorKind, HResult, Result, ReturnCode};

/// At most so many runs in one answer: the rest is for the next call.
const MAX_RUNS: usize = 2048;

/// What `GetVirtualDiskChanges` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChanges {
    /// `ProcessedByteLength`.
    pub processed_bytes: u64,
    /// Ranges of the virtual disk.
    pub ranges: Vec<ByteRange>,
}

/// What `GetVirtualHardDiskState` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskState {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Whether a worker process holds it.
    pub is_in_use: bool,
    /// What it is.
    pub facts: DiskFacts,
}

/// Whether somebody may open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileLock {
    /// Nobody has it open.
    Free,
    /// Open for reading by a worker process: a parent of a live disk. Reading is allowed.
    ReadShared,
    /// Open for writing by a worker process: opening it is a sharing violation.
    Exclusive,
}

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::returned(ReturnCode::InvalidParameter, why))
}

impl Estate {
    /// Makes sure that the estate knows the disk at a path as it is now.
    ///
    /// # Errors
    /// `FileNotFound`; `Io` when it is no disk.
    pub fn adopt(&mut self, host: &HostName, path: &WindowsPath) -> Result<FilePlace> {
        let spot = self.spot(host, path)?;
        let known: Vec<(PathBuf, FilePlace, WindowsPath)> = match self.storage.disk(&spot.place) {
            // Looking at the whole store is only needed for a file that is new.
            Some(_) => Vec::new(),
            None => self
                .storage
                .disks()
                .filter(|(_, disk)| disk.is_file)
                .map(|(place, disk)| (disk.backing.clone(), place.clone(), disk.path.clone()))
                .collect(),
        };
        let before = self.storage.disk(&spot.place).map(|disk| disk.stamp);
        self.storage.adopt(&spot, &known)?;
        if before.is_some() && self.storage.disk(&spot.place).map(|disk| disk.stamp) != before {
            self.touch();
        }
        Ok(spot.place)
    }

    /// Makes the file of a lazy disk, and returns where it lies on this machine.
    ///
    /// # Errors
    /// `FileNotFound`, `Io`.
    pub fn materialize(&mut self, host: &HostName, path: &WindowsPath) -> Result<PathBuf> {
        let place = self.adopt(host, path)?;
        let (ids, now) = (self.disk_ids.clone(), self.now());
        self.storage.materialize(&place, &ids, now)?;
        Ok(self.storage.known(&place)?.backing.clone())
    }

    /// `GetVirtualHardDiskSettingData`.
    ///
    /// # Errors
    /// `FileNotFound`.
    pub fn disk_file(&mut self, host: &HostName, path: &WindowsPath) -> Result<&DiskFile> {
        self.live_host(host)?;
        let place = self.adopt(host, path)?;
        self.storage.known(&place)
    }

    /// The path of a disk's parent, if it has one.
    pub fn parent_path(&self, disk: &DiskFile) -> Option<WindowsPath> {
        let parent = self.storage.disk(disk.parent.as_ref()?)?;
        Some(parent.path.clone())
    }

    /// `GetVirtualHardDiskState`.
    ///
    /// # Errors
    /// `FileNotFound`.
    pub fn disk_state(&mut self, host: &HostName, path: &WindowsPath) -> Result<DiskState> {
        let disk = self.disk_file(host, path)?;
        Ok(DiskState {
            file_bytes: disk.file_bytes(),
            is_in_use: disk.is_in_use(),
            facts: disk.facts.clone(),
        })
    }

    /// Whether the file at a path may be opened from outside.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub fn file_lock(&self, host: &HostName, path: &WindowsPath) -> Result<FileLock> {
        let place = self.locate(host, path)?;
        let Some(disk) = self.storage.disk(&place) else {
            return Ok(FileLock::Free);
        };
        if disk.is_in_use() {
            return Ok(FileLock::Exclusive);
        }
        let mut waiting = self.storage.children(&place);
        while let Some(child) = waiting.pop() {
            if self.storage.disk(&child).is_some_and(DiskFile::is_in_use) {
                return Ok(FileLock::ReadShared);
            }
            waiting.extend(self.storage.children(&child));
        }
        Ok(FileLock::Free)
    }

    /// Whether the file at a path may be read by somebody who comes to a host from outside, over SMB or as an agent.
    ///
    /// # Errors
    /// As [`Self::locate`]; a sharing violation for a disk that a running VM writes; access denied for a frozen file on a shared
    /// volume that another node owns, where the switch says so.
    pub fn check_readable(&self, host: &HostName, path: &WindowsPath) -> Result<()> {
        self.live_host(host)?;
        match self.file_lock(host, path)? {
            FileLock::Free => return Ok(()),
            FileLock::Exclusive => {
                let why = format!("{path} is in use");
                return Err(Error::new(ErrorKind::Wmi(HResult::SHARING_VIOLATION), why));
            }
            FileLock::ReadShared => {}
        }
        let place = self.locate(host, path)?;
        let volume = self.storage.volume(place.volume);
        let is_elsewhere = volume
            .is_some_and(|it| matches!(&it.kind, VolumeKind::Csv { owner, .. } if owner != host));
        if is_elsewhere && !self.switches.is_kind(Switch::FrozenFilesFromEveryNode) {
            let why = format!("{path} is frozen on a volume that another node owns");
            return Err(Error::returned(ReturnCode::AccessDenied, why));
        }
        Ok(())
    }

    /// `GetVirtualDiskChanges`.
    ///
    /// # Errors
    /// `FileNotFound`; `InvalidParameter` for an id that is unknown or lost, for a range outside of the disk, and where the
    /// switches say so.
    pub fn disk_changes(
        &mut self,
        host: &HostName,
        path: &WindowsPath,
        limit: &RctId,
        offset: u64,
        length_bytes: u64,
    ) -> Result<DiskChanges> {
        self.live_host(host)?;
        if !self.host(host)?.windows.has_tracking() {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "no change tracking here",
            ));
        }
        let place = self.adopt(host, path)?;
        let size = self.storage.known(&place)?.facts.size_bytes;
        let fits = offset
            .checked_add(length_bytes)
            .is_some_and(|end| end <= size);
        if !fits || length_bytes == 0 {
            return invalid(format!(
                "{length_bytes} bytes at {offset} of a disk of {size}"
            ));
        }
        if length_bytes == size && !self.switches.is_kind(Switch::FullByteLength) {
            return invalid("the length must be less than the size of the disk");
        }
        let (vm, has_user_checkpoints) = self.owner_of_file(host, &place);
        if has_user_checkpoints && !self.switches.is_kind(Switch::LimitIdAcrossUserCheckpoints) {
            return invalid("the chain holds checkpoints of a user");
        }
        if self.strikes(FaultKind::TrackingLost, vm, host) {
            self.storage.lose_tracking(&place);
        }
        if self.strikes(FaultKind::TrackingLies, vm, host) {
            let rest = self.random.below(3);
            let tracked = self.storage.known(&place)?.tracked;
            if let Some(tracker) = tracked.and_then(|it| self.storage.trackers.get_mut(&it.tracker))
            {
                tracker.honesty = Honesty::LeavesOut(rest);
            }
        }
        let Some((tracker, until)) = self.storage.tracker_of(&place)? else {
            return invalid("the disk is not tracked");
        };
        let from = tracker.epoch_of(limit).filter(|from| *from <= until);
        let Some(from) = from else {
            return invalid(format!("{limit} names no state of this disk"));
        };
        let window = ByteRange {
            offset,
            length_bytes,
        };
        let mut ranges = tracker.changed(from, until, window);
        let processed_bytes = match ranges.get(MAX_RUNS) {
            Some(next) => next.offset - offset,
            None => length_bytes,
        };
        ranges.truncate(MAX_RUNS);
        Ok(DiskChanges {
            processed_bytes,
            ranges,
        })
    }

    /// The VM of a host that a file belongs to, and whether it has checkpoints of a user.
    fn owner_of_file(&self, host: &HostName, place: &FilePlace) -> (Option<VmId>, bool) {
        let root = self.storage.root_of(place);
        let owner = self.vms_on(host).find(|vm| {
            let now = std::iter::once(&vm.settings);
            let all = now.chain(vm.checkpoints.values().map(|it| &it.settings));
            all.flat_map(|it| it.hardware.own_disks())
                .any(|(_, medium)| {
                    self.locate(host, &medium.path)
                        .is_ok_and(|it| self.storage.root_of(&it) == root)
                })
        });
        let has_user = owner.is_some_and(|vm| vm.checkpoints.values().any(|it| it.kind.is_user()));
        (owner.map(|vm| vm.id), has_user)
    }

    fn storage_job(&self, host: &HostName, job_type: u16, path: &WindowsPath) -> JobPlan {
        JobPlan {
            host: host.clone(),
            class: JobClass::Storage,
            job_type,
            system: None,
            activity: None,
            lasts: self.timings.define,
            affected: vec![Affected::File(path.clone())],
            destination: None,
        }
    }

    /// A disk that no worker process holds, nor any above it.
    fn free_disk(&mut self, host: &HostName, path: &WindowsPath) -> Result<FilePlace> {
        self.live_host(host)?;
        let place = self.adopt(host, path)?;
        match self.file_lock(host, path)? {
            FileLock::Free => Ok(place),
            _ => Err(Error::returned(
                ReturnCode::SystemInUse,
                format!("{path} is used by another process"),
            )),
        }
    }

    /// `CreateVirtualHardDisk`.
    ///
    /// # Errors
    /// `InvalidParameter` when there is such a file, or what is asked contradicts itself; `AccessDenied` for shares where the
    /// switch says so.
    pub fn create_disk(
        &mut self,
        host: &HostName,
        path: &WindowsPath,
        facts: DiskFacts,
        parent: Option<&WindowsPath>,
    ) -> Result<Started> {
        self.live_host(host)?;
        if path.is_share() && !self.switches.is_kind(Switch::ComputerAccountForShares) {
            return Err(Error::returned(
                ReturnCode::AccessDenied,
                "the caller has no credentials for the share",
            ));
        }
        let spot = self.spot(host, path)?;
        if spot.backing.exists() || self.storage.disk(&spot.place).is_some() {
            return invalid(format!("{path} is already there"));
        }
        let wants_parent = facts.disk_type == DiskType::Differencing;
        if wants_parent != parent.is_some() || facts.size_bytes == 0 && parent.is_none() {
            return invalid("a parent for other than a differencing disk, or none for one");
        }
        let extension = path.extension();
        let fits = match facts.format {
            DiskFormat::Vhd => matches!(extension.as_str(), "vhd" | "avhd"),
            DiskFormat::Vhdx => matches!(extension.as_str(), "vhdx" | "avhdx"),
            DiskFormat::VhdSet => extension == "vhds",
        };
        if !fits {
            return invalid(format!("{path} does not fit its format"));
        }
        let parent = parent.map(|parent| self.adopt(host, parent)).transpose()?;
        let plan = self.storage_job(host, 1, path);
        Ok(self.begin(plan, move |estate| {
            let (ids, now) = (estate.disk_ids.clone(), estate.now());
            match &parent {
                Some(parent) => estate.storage.create_child(spot, parent, &ids, now)?,
                None => estate.storage.create_disk(spot, facts, &ids, now)?,
            }
            Ok(Vec::new())
        }))
    }

    /// `MergeVirtualHardDisk`: a chain that nobody uses.
    ///
    /// # Errors
    /// `SystemInUse`; `InvalidParameter` when the destination is not the parent.
    pub fn merge_disk(
        &mut self,
        host: &HostName,
        child: &WindowsPath,
        ancestor: &WindowsPath,
    ) -> Result<Started> {
        let place = self.free_disk(host, child)?;
        let below = self.adopt(host, ancestor)?;
        if self.storage.known(&place)?.parent.as_ref() != Some(&below) {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "only a merge into the parent is modelled",
            ));
        }
        let plan = self.storage_job(host, 5, child);
        Ok(self.begin(plan, move |estate| {
            let ids = estate.disk_ids.clone();
            estate.storage.merge(&place, &ids)?;
            Ok(Vec::new())
        }))
    }

    /// `SetParentVirtualHardDisk`: a child whose parent lies elsewhere now.
    ///
    /// # Errors
    /// `SystemInUse`, `FileNotFound`.
    pub fn set_parent(
        &mut self,
        host: &HostName,
        child: &WindowsPath,
        parent: &WindowsPath,
    ) -> Result<Started> {
        let below = self.adopt(host, parent)?;
        let place = self.free_disk(host, child)?;
        let plan = self.storage_job(host, 1, child);
        Ok(self.begin(plan, move |estate| {
            let ids = estate.disk_ids.clone();
            estate.storage.put_on(&place, &below, &ids)?;
            Ok(Vec::new())
        }))
    }

    /// `ResizeVirtualHardDisk`: larger only.
    ///
    /// # Errors
    /// `SystemInUse`, `InvalidParameter`, `NotSupported` for making it smaller.
    pub fn resize_disk(
        &mut self,
        host: &HostName,
        path: &WindowsPath,
        size_bytes: u64,
    ) -> Result<Started> {
        let place = self.free_disk(host, path)?;
        let disk = self.storage.known(&place)?;
        if !self.storage.children(&place).is_empty()
            || disk.facts.disk_type == DiskType::Differencing
        {
            return invalid("a disk of a chain is not resized");
        }
        if size_bytes < disk.facts.size_bytes {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "making a disk smaller is not modelled",
            ));
        }
        let plan = self.storage_job(host, 4, path);
        Ok(self.begin(plan, move |estate| {
            estate.grow(&place, size_bytes)?;
            Ok(Vec::new())
        }))
    }

    fn grow(&mut self, place: &FilePlace, size_bytes: u64) -> Result<()> {
        self.storage.lose_tracking(place);
        let ids = self.disk_ids.clone();
        self.storage.grow(place, size_bytes, &ids)?;
        self.touch();
        Ok(())
    }

    /// `ValidateVirtualHardDisk`: the job fails when the disk or its chain is damaged.
    ///
    /// # Errors
    /// `FileNotFound`.
    pub fn validate_disk(&mut self, host: &HostName, path: &WindowsPath) -> Result<Started> {
        self.live_host(host)?;
        let place = self.locate(host, path)?;
        let is_there = self.storage.disk(&place).is_some() || self.backing(host, path)?.is_file();
        if !is_there {
            return Err(Error::returned(
                ReturnCode::FileNotFound,
                format!("there is no {path}"),
            ));
        }
        let plan = self.storage_job(host, 9, path);
        let (host, path) = (host.clone(), path.clone());
        Ok(self.begin(plan, move |estate| {
            let place = estate.adopt(&host, &path)?;
            if !estate.storage.known(&place)?.is_in_use() {
                let (ids, now) = (estate.disk_ids.clone(), estate.now());
                estate.storage.open_frozen(&place, &ids, now)?;
            }
            Ok(Vec::new())
        }))
    }

    /// The bytes of a disk with its chain, as a reader of its files sees them. For tests.
    ///
    /// # Errors
    /// `FileNotFound`, `Io`.
    pub fn read_disk(&mut self, host: &HostName, path: &WindowsPath) -> Result<vdisk::Image> {
        let place = self.adopt(host, path)?;
        let (ids, now) = (self.disk_ids.clone(), self.now());
        self.storage.open_frozen(&place, &ids, now)
    }
}
