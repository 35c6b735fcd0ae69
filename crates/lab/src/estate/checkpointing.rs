//! Making, deleting, applying and converting checkpoints; reference points.
//!
//! ```text
//!   request ─► hold the guest still ─► close its disks ─► a child for every live file ─► name the moments ─► go on
//!                     └ refused or timed out: job exception, nothing happened (a user's checkpoint may fall back)
//! ```
//!
//! **Invariants.** All disks of a checkpoint are of one moment. A checkpoint that failed leaves no file and no name.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checkpoint::{
    Checkpoint, CheckpointKind, ConsistencyLevel, ReferencePoint, ReferencePointKind, TrackedState,
};
use super::fault::FaultKind;
use super::hardware::{DiskSharing, Drive};
use super::ids::{CheckpointId, DriveAddress, HostName, ReferencePointId, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::storage::FilePlace;
use super::switch::Switch;
use super::vm::{
    Activity, ConfigurationVersion, PowerState, ReplicationMode, UserCheckpointType, VirtualMachine,
};
use super::work::{Event, JobPlan, Outcome};
use super::{DiskFormat, Estate, VmSettings, WindowsGeneration, WindowsPath};
use crate::guest::{GuestOs, Quiesced, WriterState};
use crate::{Error, HResult, Result, ReturnCode};

/// A VM has at most so many checkpoints.
const MAX_CHECKPOINTS: usize = 50;
/// What a new leaf takes of a volume at least.
const LEAF_BYTES: u64 = 4 << 20;

/// `SnapshotType` of `CreateSnapshot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotType {
    /// 2: a user's, as the VM's settings say.
    Full,
    /// 3: not modelled, refused.
    Disk,
    /// 32768: a backup's.
    Recovery,
}

/// `GuestBackupType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestBackupType {
    /// 0.
    Undefined,
    /// 1: applications truncate their logs.
    Full,
    /// 2: they do not.
    Copy,
}

/// What happens about disks that no checkpoint of the VM can freeze (`IgnoreNonSnapshottableDisks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NonSnapshottable {
    /// The checkpoint fails.
    Refuse,
    /// They are left out.
    LeaveOut,
}

/// What `CreateSnapshot` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckpointRequest {
    /// A user's or a backup's.
    pub snapshot_type: SnapshotType,
    /// `None`: not said (0), which is taken as application.
    pub consistency: Option<ConsistencyLevel>,
    /// `None`: not in the settings.
    pub backup_type: Option<GuestBackupType>,
    /// About pass-through and shared disks.
    pub non_snapshottable: NonSnapshottable,
}

impl CheckpointRequest {
    /// A recovery checkpoint as backup products ask for it.
    pub fn recovery(consistency: ConsistencyLevel) -> Self {
        Self {
            snapshot_type: SnapshotType::Recovery,
            consistency: Some(consistency),
            backup_type: None,
            non_snapshottable: NonSnapshottable::LeaveOut,
        }
    }

    /// A user's checkpoint.
    pub fn user() -> Self {
        Self {
            snapshot_type: SnapshotType::Full,
            consistency: None,
            backup_type: None,
            non_snapshottable: NonSnapshottable::Refuse,
        }
    }
}

/// How the moment is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Freeze {
    kind: CheckpointKind,
    wants_guest: bool,
    falls_back: bool,
    backup_type: Option<GuestBackupType>,
    writers: Option<WriterState>,
    non_snapshottable: NonSnapshottable,
}

/// A disk on its way into a checkpoint.
struct Rolled {
    address: DriveAddress,
    frozen: FilePlace,
    frozen_path: WindowsPath,
    leaf: FilePlace,
    leaf_path: WindowsPath,
}

fn invalid_state<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::returned(ReturnCode::InvalidState, why))
}

impl Estate {
    /// `Msvm_VirtualSystemSnapshotService.CreateSnapshot`.
    ///
    /// # Errors
    /// `SystemInUse` while another is made, `InvalidState` while anything else goes on or merges, in a transitional state and
    /// with 50 checkpoints; `NotSupported` on hosts and for configurations that know none; `InvalidParameter` for
    /// `GuestBackupType` where it is not known. What the guest or the disks refuse is told by the job.
    pub fn create_checkpoint(
        &mut self,
        host: &HostName,
        id: VmId,
        request: CheckpointRequest,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let key = vm.key;
        let windows = self.host(host)?.windows;
        self.check_checkpoint(vm, windows, request)?;
        let writers = self.writers_now(key, id, host)?;
        let vm = self.vm_of(key)?;
        let freeze = match request.snapshot_type {
            SnapshotType::Recovery => Freeze {
                kind: CheckpointKind::Recovery,
                wants_guest: request.consistency != Some(ConsistencyLevel::Crash),
                falls_back: false,
                backup_type: request.backup_type,
                writers,
                non_snapshottable: request.non_snapshottable,
            },
            SnapshotType::Full | SnapshotType::Disk => {
                let user = vm.settings.user_checkpoints;
                let is_standard =
                    user == UserCheckpointType::Standard || windows < WindowsGeneration::Server2016;
                Freeze {
                    kind: if is_standard {
                        CheckpointKind::Standard
                    } else {
                        CheckpointKind::Production
                    },
                    wants_guest: !is_standard,
                    falls_back: user == UserCheckpointType::ProductionFallback,
                    backup_type: None,
                    writers,
                    non_snapshottable: NonSnapshottable::Refuse,
                }
            }
        };
        let hangs = freeze.wants_guest && writers == Some(WriterState::TimesOut);
        let lasts = if hangs && vm.is_running() {
            self.timings.writer_timeout
        } else {
            self.timings.checkpoint
        };
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 70,
            system: Some(key),
            activity: Some(Activity::CreatingCheckpoint),
            lasts,
            affected: vec![Affected::System(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.make_checkpoint(key, freeze)))
    }

    fn check_checkpoint(
        &self,
        vm: &VirtualMachine,
        windows: WindowsGeneration,
        request: CheckpointRequest,
    ) -> Result<()> {
        if vm.merging.is_some() {
            return invalid_state("its disks are being merged");
        }
        let is_steady = matches!(
            vm.power,
            PowerState::Running | PowerState::Off | PowerState::Saved | PowerState::Paused
        );
        if !is_steady {
            return invalid_state(format!("its state is changing: {:?}", vm.power));
        }
        if vm.checkpoints.len() >= MAX_CHECKPOINTS {
            return invalid_state("it has 50 checkpoints");
        }
        if matches!(
            vm.replication,
            ReplicationMode::Replica | ReplicationMode::ExtendedReplica
        ) {
            return Err(Error::returned(ReturnCode::SystemInUse, "it is a replica"));
        }
        let not_supported = |why: &str| Err(Error::returned(ReturnCode::NotSupported, why));
        match request.snapshot_type {
            SnapshotType::Disk => not_supported("checkpoints of disks only are not modelled"),
            SnapshotType::Full if vm.settings.user_checkpoints == UserCheckpointType::Disabled => {
                invalid_state("checkpoints are disabled")
            }
            SnapshotType::Full => Ok(()),
            SnapshotType::Recovery if !windows.has_tracking() => {
                not_supported("this Windows has no recovery checkpoints")
            }
            SnapshotType::Recovery
                if vm.settings.version < ConfigurationVersion::FIRST_WITH_TRACKING =>
            {
                not_supported("the configuration version has no recovery checkpoints")
            }
            SnapshotType::Recovery => {
                let says_type = request.backup_type.is_some();
                let refuses = windows == WindowsGeneration::Server2016
                    && !self.switches.is_kind(Switch::GuestBackupTypeOn2016);
                if says_type && refuses {
                    return Err(Error::returned(
                        ReturnCode::InvalidParameter,
                        "this Windows knows no GuestBackupType",
                    ));
                }
                Ok(())
            }
        }
    }

    /// How the writers behave this time, with faults.
    fn writers_now(
        &mut self,
        key: SystemKey,
        id: VmId,
        host: &HostName,
    ) -> Result<Option<WriterState>> {
        for (kind, state) in [
            (FaultKind::WriterFails, WriterState::Fails),
            (FaultKind::WriterTimesOut, WriterState::TimesOut),
            (FaultKind::WriterLies, WriterState::Lies),
        ] {
            if self.strikes(kind, Some(id), host) {
                return Ok(Some(state));
            }
        }
        Ok(self
            .vm_of(key)?
            .guest
            .as_ref()
            .map(crate::guest::Guest::writers))
    }

    fn make_checkpoint(&mut self, key: SystemKey, mut freeze: Freeze) -> Outcome {
        let vm = self.vm_of(key)?;
        let (id, host) = (vm.id, vm.host.clone());
        if self.strikes(FaultKind::CheckpointFails, Some(id), &host) {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the checkpoint could not be created",
            ));
        }
        if self.strikes(FaultKind::TrackingLost, Some(id), &host) {
            self.lose_tracking(&host, id)?;
        }
        self.check_disks(key, freeze)?;
        let vm = self.vm_of(key)?;
        let is_running = vm.is_running();
        let mut held = false;
        if freeze.wants_guest && matches!(vm.power, PowerState::Running | PowerState::Paused) {
            match self.hold_guest(key, freeze.writers) {
                Ok(()) => held = true,
                Err(_) if freeze.falls_back => {
                    freeze.kind = CheckpointKind::Standard;
                    freeze.wants_guest = false;
                }
                Err(failure) => return Err(failure),
            }
        }
        let recovery = self.recovery_of(key, freeze, held);
        let memory = (freeze.kind == CheckpointKind::Standard)
            .then(|| {
                self.systems
                    .get(&key)?
                    .guest
                    .as_ref()
                    .map(|guest| guest.memory())
            })
            .flatten();
        let has_memory = freeze.kind == CheckpointKind::Standard
            && (is_running || self.vm_of(key)?.power != PowerState::Off);
        let was_open = self.vm_of(key)?.session.is_some();
        self.close_session(key)?;
        let made = self.roll_leaves(key, freeze, recovery, |checkpoint| {
            checkpoint.has_memory = has_memory;
            checkpoint.memory = memory;
        });
        if was_open {
            self.reopen_session(key)?;
        }
        if held {
            self.with_guest(key, |guest, disks| guest.thaw(disks))?;
        }
        let made = made?;
        self.write_checkpoint_configuration(key, made)?;
        Ok(vec![Affected::Checkpoint(made)])
    }

    /// Whether a checkpoint can freeze what the VM has, and whether there is room.
    fn check_disks(
        &mut self,
        key: SystemKey,
        freeze: Freeze,
    ) -> std::result::Result<(), JobFailure> {
        let vm = self.vm_of(key)?;
        let (id, host) = (vm.id, vm.host.clone());
        let hardware = &vm.settings.hardware;
        let stays_out = hardware.fibre_channel.len()
            + hardware
                .drives()
                .filter(|(_, drive)| match drive {
                    Drive::PassThrough(_) => true,
                    Drive::VirtualDisk(Some(medium)) => medium.sharing != DiskSharing::Private,
                    _ => false,
                })
                .count();
        if stays_out > 0 && freeze.non_snapshottable == NonSnapshottable::Refuse {
            let text =
                format!("{stays_out} disks of the virtual machine cannot be in a checkpoint");
            return Err(JobFailure::new(ReturnCode::Failed, text));
        }
        let paths: Vec<WindowsPath> = hardware
            .own_disks()
            .map(|(_, it)| it.path.clone())
            .collect();
        let full = JobFailure::new(ReturnCode::Failed, "there is not enough space on the disk")
            .caused_by(HResult::DISK_FULL);
        if self.strikes(FaultKind::DiskFull, Some(id), &host) {
            return Err(full);
        }
        for path in &paths {
            self.adopt(&host, path)?;
            let volume = self.locate(&host, path)?.volume;
            if self.storage.free_bytes(volume) < LEAF_BYTES {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Asks the guest to hold still.
    fn hold_guest(
        &mut self,
        key: SystemKey,
        writers: Option<WriterState>,
    ) -> std::result::Result<(), JobFailure> {
        let vm = self.vm_of(key)?;
        let cannot = |why: &str| Err(JobFailure::new(ReturnCode::Failed, why));
        if !vm.is_running() {
            return cannot("a paused virtual machine cannot take part in a production checkpoint");
        }
        if !vm.service_status(vm.integration.vss).answers() {
            return cannot("production checkpoints cannot be created: the guest does not answer");
        }
        let quiesced = self.with_guest(key, |guest, disks| {
            let usual = guest.writers();
            if let Some(writers) = writers {
                guest.set_writers(writers);
            }
            let quiesced = guest.quiesce(disks);
            guest.set_writers(usual);
            quiesced
        })?;
        let without_guest = match writers {
            Some(WriterState::Fails) => Quiesced::Refused,
            Some(WriterState::TimesOut) => Quiesced::TimedOut,
            _ => Quiesced::Held,
        };
        match quiesced.unwrap_or(without_guest) {
            Quiesced::Held => Ok(()),
            Quiesced::Refused => cannot("a writer of the guest reported an error"),
            Quiesced::TimedOut => Err(JobFailure::new(
                ReturnCode::Timeout,
                "the writers of the guest did not answer in time",
            )),
        }
    }

    /// What the guest's writers write into the frozen disks, where they do.
    fn recovery_of(
        &self,
        key: SystemKey,
        freeze: Freeze,
        held: bool,
    ) -> Option<Vec<(usize, u64, Vec<u8>)>> {
        let guest = self.systems.get(&key)?.guest.as_ref()?;
        let applies = held
            && freeze.kind == CheckpointKind::Recovery
            && guest.os() == GuestOs::Windows
            && !self.switches.is_kind(Switch::NoAutoRecoveryFile);
        applies.then(|| {
            let writes = guest.recovery_writes().into_iter();
            writes
                .map(|(place, bytes)| (place.disk, place.offset, bytes))
                .collect()
        })
    }

    /// Freezes the live files and puts a leaf on each.
    fn roll_leaves(
        &mut self,
        key: SystemKey,
        freeze: Freeze,
        recovery: Option<Vec<(usize, u64, Vec<u8>)>>,
        fill: impl FnOnce(&mut Checkpoint),
    ) -> std::result::Result<CheckpointId, JobFailure> {
        let vm = self.vm_of(key)?;
        let (vm_name, version) = (vm.settings.name.clone(), vm.settings.version);
        let mut rolled = Vec::new();
        if let Err(error) = self.make_leaves(key, &mut rolled) {
            for disk in &rolled {
                self.storage.remove(&disk.leaf)?;
            }
            return Err(error.into());
        }
        let may_track = freeze.kind == CheckpointKind::Recovery
            && version >= ConfigurationVersion::FIRST_WITH_TRACKING;
        let mut tracked = BTreeMap::new();
        let mut epochs = BTreeMap::new();
        for disk in &rolled {
            let is_tracked = self.storage.known(&disk.frozen)?.tracked.is_some();
            if is_tracked || may_track {
                let tracker = self.random.uuid();
                self.storage.track(&disk.frozen, tracker)?;
            }
            if let Some((epoch, id)) = self.storage.freeze(&disk.frozen)? {
                epochs.insert(disk.address, epoch);
                if may_track {
                    tracked.insert(disk.address, TrackedState { id });
                } else {
                    self.storage.forget_moment(&id);
                }
            }
            let below = self.storage.known(&disk.frozen)?.tracked;
            if let Some(leaf) = self.storage.disks.get_mut(&disk.leaf) {
                leaf.tracked = below.map(|it| super::disk::Tracked { frozen: None, ..it });
            }
        }
        let mut named: BTreeMap<DriveAddress, WindowsPath> = BTreeMap::new();
        for (index, disk) in rolled.iter().enumerate() {
            let path = match &recovery {
                Some(writes) => {
                    let own: Vec<_> = writes.iter().filter(|(of, _, _)| *of == index).collect();
                    self.make_auto_recovery(key, disk, &own, epochs.get(&disk.address).copied())?
                }
                None => disk.frozen_path.clone(),
            };
            named.insert(disk.address, path);
        }
        let id = CheckpointId(self.random.uuid());
        let now = self.now();
        let vm = self.vm_mut(key)?;
        let mut settings = vm.settings.clone();
        settings.name = format!("{vm_name} - ({now})");
        point_at(&mut settings, &named);
        let leaves = rolled.iter().map(|it| (it.address, it.leaf_path.clone()));
        point_at(&mut vm.settings, &leaves.collect());
        let mut checkpoint = Checkpoint {
            id,
            kind: freeze.kind,
            created: now,
            parent: vm.current_parent,
            settings,
            has_memory: false,
            consistency: if freeze.wants_guest {
                ConsistencyLevel::Application
            } else {
                ConsistencyLevel::Crash
            },
            backup_type: freeze.backup_type,
            tracked,
            is_missing: false,
            memory: None,
        };
        fill(&mut checkpoint);
        if checkpoint.kind.is_user() {
            vm.current_parent = Some(id);
        }
        vm.checkpoints.insert(id, checkpoint);
        vm.configuration_changed = now;
        self.touch();
        Ok(id)
    }

    fn make_leaves(&mut self, key: SystemKey, rolled: &mut Vec<Rolled>) -> Result<()> {
        let vm = self.vm_of(key)?;
        let host = vm.host.clone();
        let live: Vec<(DriveAddress, WindowsPath)> = vm
            .settings
            .hardware
            .own_disks()
            .map(|(address, medium)| (address, medium.path.clone()))
            .collect();
        let (ids, now) = (self.disk_ids.clone(), self.now());
        for (address, path) in live {
            let frozen = self.locate(&host, &path)?;
            let format = self.storage.known(&frozen)?.facts.format;
            let extension = if format == DiskFormat::Vhd {
                "avhd"
            } else {
                "avhdx"
            };
            let guid = CheckpointId(self.random.uuid());
            let name = format!("{}_{guid}.{extension}", stem_of_disk(&path));
            let leaf_path = path.with_file_name(&name);
            let spot = self.spot(&host, &leaf_path)?;
            let leaf = spot.place.clone();
            self.storage.create_child(spot, &frozen, &ids, now)?;
            rolled.push(Rolled {
                address,
                frozen,
                frozen_path: path,
                leaf,
                leaf_path,
            });
        }
        Ok(())
    }

    /// The file that the guest's writers finish the frozen disk in.
    fn make_auto_recovery(
        &mut self,
        key: SystemKey,
        disk: &Rolled,
        writes: &[&(usize, u64, Vec<u8>)],
        epoch: Option<u64>,
    ) -> Result<WindowsPath> {
        let host = self.vm_of(key)?.host.clone();
        if self.storage.known(&disk.frozen)?.facts.format == DiskFormat::Vhd {
            return Ok(disk.frozen_path.clone());
        }
        let name = format!("{}-AutoRecovery.avhdx", disk.frozen_path.stem());
        let path = disk.frozen_path.with_file_name(&name);
        let spot = self.spot(&host, &path)?;
        let place = spot.place.clone();
        let (ids, now) = (self.disk_ids.clone(), self.now());
        self.storage.create_child(spot, &disk.frozen, &ids, now)?;
        let below = self.storage.known(&disk.frozen)?.tracked;
        if let Some(file) = self.storage.disks.get_mut(&place) {
            file.tracked = below;
        }
        if writes.is_empty() {
            return Ok(path);
        }
        let editor = self.storage.open_live(&place, &ids)?;
        for (_, offset, bytes) in writes {
            block::WriteAt::write_at(&editor, *offset, bytes)
                .map_err(|error| Error::io(format!("writing {path}"), error))?;
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let tracker = below.and_then(|it| self.storage.trackers.get_mut(&it.tracker));
            if let (Some(tracker), Some(epoch)) = (tracker, epoch) {
                tracker.note_around(epoch, *offset, length);
            }
        }
        self.storage.close_live(&place, editor)?;
        Ok(path)
    }

    /// `DestroySnapshot`.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while anything goes on, and for recovery checkpoints where the switch says so.
    pub fn destroy_checkpoint(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        let is_recovery = vm.checkpoint(id).is_some_and(|it| !it.kind.is_user());
        if is_recovery && !self.switches.is_kind(Switch::DestroyRecoveryCheckpoint) {
            return invalid_state("a recovery checkpoint is converted, not destroyed");
        }
        self.begin_destroying(host, vec![id])
    }

    /// `DestroySnapshotTree`.
    ///
    /// # Errors
    /// As [`Self::destroy_checkpoint`]; `NotSupported` for recovery checkpoints.
    pub fn destroy_checkpoint_tree(
        &mut self,
        host: &HostName,
        id: CheckpointId,
    ) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        if vm.checkpoint(id).is_some_and(|it| !it.kind.is_user()) {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "a recovery checkpoint has no tree",
            ));
        }
        let mut tree = vec![id];
        let mut at = 0;
        while let Some(of) = tree.get(at).copied() {
            let children = vm.checkpoints.values().filter(|it| it.parent == Some(of));
            tree.extend(children.filter(|it| it.kind.is_user()).map(|it| it.id));
            at += 1;
        }
        self.begin_destroying(host, tree)
    }

    fn begin_destroying(&mut self, host: &HostName, ids: Vec<CheckpointId>) -> Result<Started> {
        let first = ids.first().copied();
        let vm = first
            .map(|id| self.vm_of_checkpoint(host, id))
            .transpose()?;
        let Some(vm) = vm else {
            return Err(Error::invalid("no checkpoint to destroy"));
        };
        let (key, id) = (vm.key, vm.id);
        let mut affected = vec![Affected::System(id)];
        affected.extend(ids.iter().copied().map(Affected::Checkpoint));
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 72,
            system: Some(key),
            activity: Some(Activity::DeletingCheckpoint),
            lasts: self.timings.destroy_checkpoint,
            affected,
            destination: None,
        };
        Ok(self.begin(plan, move |estate| {
            for id in &ids {
                if let Some(gone) = estate.take_checkpoint(key, *id)? {
                    for state in gone.tracked.values() {
                        estate.storage.forget_moment(&state.id);
                    }
                }
            }
            Ok(Vec::new())
        }))
    }

    /// Takes a checkpoint out of its VM; its files may be merged.
    pub(super) fn take_checkpoint(
        &mut self,
        key: SystemKey,
        id: CheckpointId,
    ) -> Result<Option<Checkpoint>> {
        let now = self.now();
        let vm = self.vm_mut(key)?;
        let host = vm.host.clone();
        let Some(gone) = vm.checkpoints.remove(&id) else {
            return Ok(None);
        };
        for other in vm.checkpoints.values_mut() {
            if other.parent == Some(id) {
                other.parent = gone.parent;
            }
        }
        if vm.current_parent == Some(id) {
            vm.current_parent = gone.parent;
        }
        if vm.last_applied == Some(id) {
            vm.last_applied = None;
        }
        vm.configuration_changed = now;
        let files: Vec<FilePlace> = gone
            .settings
            .hardware
            .own_disks()
            .filter_map(|(_, medium)| self.locate(&host, &medium.path).ok())
            .collect();
        // What an auto-recovery file stands on was frozen by the same checkpoint.
        let below: Vec<FilePlace> = files
            .iter()
            .filter_map(|place| self.storage.disk(place)?.parent.clone())
            .filter(|place| self.was_frozen_with(place, &files))
            .collect();
        self.release_files(files.into_iter().chain(below));
        self.remove_checkpoint_configuration(key, id, &gone)?;
        self.timeline
            .schedule_in(Duration::ZERO, Event::LookForMerges(key));
        self.touch();
        Ok(Some(gone))
    }

    fn was_frozen_with(&self, place: &FilePlace, files: &[FilePlace]) -> bool {
        files.iter().any(|file| {
            let is_child = self
                .storage
                .disk(file)
                .is_some_and(|it| it.parent.as_ref() == Some(place));
            is_child && file.path.ends_with("-autorecovery.avhdx")
        })
    }

    /// `ApplySnapshot`: the VM goes back to a checkpoint.
    ///
    /// # Errors
    /// `InvalidState` unless the VM is off or saved; `NotSupported` for recovery checkpoints.
    pub fn apply_checkpoint(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        if !matches!(vm.power, PowerState::Off | PowerState::Saved) {
            return invalid_state("only a VM that is off or saved goes back to a checkpoint");
        }
        if vm.checkpoint(id).is_some_and(|it| !it.kind.is_user()) {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "a recovery checkpoint is not applied",
            ));
        }
        let (key, vm_id) = (vm.key, vm.id);
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 71,
            system: Some(key),
            activity: Some(Activity::ApplyingCheckpoint),
            lasts: self.timings.apply,
            affected: vec![Affected::System(vm_id), Affected::Checkpoint(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.go_back(key, id)))
    }

    fn go_back(&mut self, key: SystemKey, id: CheckpointId) -> Outcome {
        let vm = self.vm_of(key)?;
        let host = vm.host.clone();
        let Some(checkpoint) = vm.checkpoint(id).cloned() else {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the checkpoint is gone",
            ));
        };
        let abandoned: Vec<(DriveAddress, FilePlace, DiskSharing)> = self.disk_places(key)?;
        let name = vm.settings.name.clone();
        let mut settings = checkpoint.settings.clone();
        settings.name = name;
        for (_, place, _) in &abandoned {
            self.storage.lose_tracking(place);
        }
        let mut leaves = BTreeMap::new();
        let (ids, now) = (self.disk_ids.clone(), self.now());
        let frozen: Vec<(DriveAddress, WindowsPath)> = settings
            .hardware
            .own_disks()
            .map(|(address, medium)| (address, medium.path.clone()))
            .collect();
        for (address, path) in frozen {
            let below = self.locate(&host, &path)?;
            self.storage.lose_tracking(&below);
            let guid = CheckpointId(self.random.uuid());
            let format = self.storage.known(&below)?.facts.format;
            let extension = if format == DiskFormat::Vhd {
                "avhd"
            } else {
                "avhdx"
            };
            let leaf = path.with_file_name(&format!("{}_{guid}.{extension}", stem_of_disk(&path)));
            let spot = self.spot(&host, &leaf)?;
            self.storage.create_child(spot, &below, &ids, now)?;
            leaves.insert(address, leaf);
        }
        point_at(&mut settings, &leaves);
        self.drop_saved_state(key)?;
        let vm = self.vm_mut(key)?;
        vm.settings = settings;
        vm.current_parent = Some(id);
        vm.last_applied = Some(id);
        vm.configuration_changed = now;
        if let (Some(guest), Some(memory)) = (&mut vm.guest, checkpoint.memory.clone()) {
            guest.resume(memory);
        } else if let Some(guest) = &mut vm.guest {
            guest.lose_power();
        }
        let after = if checkpoint.has_memory {
            PowerState::Saved
        } else {
            PowerState::Off
        };
        self.set_power(key, after)?;
        if checkpoint.has_memory {
            self.write_saved_state(key)?;
        }
        self.release_files(abandoned.into_iter().map(|(_, place, _)| place));
        self.timeline
            .schedule_in(Duration::ZERO, Event::LookForMerges(key));
        self.write_configuration(key)?;
        Ok(Vec::new())
    }

    /// `ClearSnapshotState`: the memory of a checkpoint is dropped.
    ///
    /// # Errors
    /// `NotFound`, `InvalidState`.
    pub fn clear_checkpoint_state(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        let key = vm.key;
        if let Some(checkpoint) = self.vm_mut(key)?.checkpoints.get_mut(&id) {
            checkpoint.has_memory = false;
            checkpoint.memory = None;
        }
        self.touch();
        Ok(Started::Done(Vec::new()))
    }

    /// Renames a checkpoint (`ModifySystemSettings` with its InstanceID and a new `ElementName`).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rename_checkpoint(
        &mut self,
        host: &HostName,
        id: CheckpointId,
        name: &str,
    ) -> Result<Started> {
        self.live_host(host)?;
        let key = self.vm_of_checkpoint(host, id)?.key;
        if let Some(checkpoint) = self.vm_mut(key)?.checkpoints.get_mut(&id) {
            name.clone_into(&mut checkpoint.settings.name);
        }
        self.write_checkpoint_configuration(key, id)?;
        self.touch();
        Ok(Started::Done(Vec::new()))
    }

    /// `ConvertToReferencePoint`: the checkpoint goes, its moment stays.
    ///
    /// # Errors
    /// `InvalidParameter` for other than recovery checkpoints; `InvalidState` while anything goes on.
    pub fn convert_to_reference_point(
        &mut self,
        host: &HostName,
        id: CheckpointId,
    ) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        if vm.checkpoint(id).is_some_and(|it| it.kind.is_user()) {
            return Err(Error::returned(
                ReturnCode::InvalidParameter,
                "only recovery checkpoints are converted",
            ));
        }
        let (key, vm_id) = (vm.key, vm.id);
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 200,
            system: Some(key),
            activity: Some(Activity::DeletingCheckpoint),
            lasts: self.timings.convert,
            affected: vec![Affected::System(vm_id), Affected::Checkpoint(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.convert(key, id)))
    }

    fn convert(&mut self, key: SystemKey, id: CheckpointId) -> Outcome {
        let vm = self.vm_of(key)?;
        let (vm_id, host) = (vm.id, vm.host.clone());
        if self.strikes(FaultKind::ConversionFails, Some(vm_id), &host) {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the checkpoint could not be converted",
            ));
        }
        if self.strikes(FaultKind::LogonRightMissing, Some(vm_id), &host) {
            let text = "the account of the virtual machine has not been granted the logon type";
            return Err(JobFailure::new(ReturnCode::Failed, text)
                .caused_by(HResult::LOGON_TYPE_NOT_GRANTED));
        }
        let Some(gone) = self.take_checkpoint(key, id)? else {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the checkpoint is gone",
            ));
        };
        let known = |storage: &super::Storage, id: &super::RctId| {
            storage
                .trackers
                .values()
                .any(|it| it.epoch_of(id).is_some())
        };
        let disks = gone
            .tracked
            .iter()
            .filter(|(_, state)| known(&self.storage, &state.id))
            .map(|(address, state)| (*address, state.id.clone()))
            .collect();
        let point = self.insert_reference_point(key, gone.consistency, disks)?;
        Ok(vec![Affected::ReferencePoint(vm_id, point)])
    }

    fn insert_reference_point(
        &mut self,
        key: SystemKey,
        consistency: ConsistencyLevel,
        disks: Vec<(DriveAddress, super::RctId)>,
    ) -> Result<ReferencePointId> {
        let id = ReferencePointId(self.random.uuid());
        let now = self.now();
        let point = ReferencePoint {
            id,
            kind: ReferencePointKind::Rct,
            consistency,
            created: now,
            disks,
        };
        let vm = self.vm_mut(key)?;
        vm.reference_points.insert(id, point);
        vm.configuration_changed = now;
        self.write_configuration(key)?;
        self.touch();
        Ok(id)
    }

    /// `CreateReferencePoint`.
    ///
    /// # Errors
    /// `NotSupported` for logs and where there is no tracking; `InvalidState`, `SystemInUse`.
    pub fn create_reference_point(
        &mut self,
        host: &HostName,
        id: VmId,
        kind: ReferencePointKind,
        consistency: ConsistencyLevel,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let has_tracking = self.host(host)?.windows.has_tracking()
            && vm.settings.version >= ConfigurationVersion::FIRST_WITH_TRACKING;
        if kind == ReferencePointKind::Log || !has_tracking {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "no such reference points here",
            ));
        }
        if vm.merging.is_some() {
            return invalid_state("its disks are being merged");
        }
        let key = vm.key;
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 201,
            system: Some(key),
            activity: Some(Activity::CreatingCheckpoint),
            lasts: self.timings.checkpoint,
            affected: vec![Affected::System(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.name_moments(key, consistency)))
    }

    fn name_moments(&mut self, key: SystemKey, consistency: ConsistencyLevel) -> Outcome {
        let id = self.vm_of(key)?.id;
        let asks_guest =
            consistency == ConsistencyLevel::Application && self.vm_of(key)?.is_running();
        if asks_guest {
            let writers = self
                .vm_of(key)?
                .guest
                .as_ref()
                .map(crate::guest::Guest::writers);
            self.hold_guest(key, writers)?;
        }
        let mut disks = Vec::new();
        for (address, place, sharing) in self.disk_places(key)? {
            let tracker = self.random.uuid();
            if sharing == DiskSharing::Private
                && self.storage.track(&place, tracker)?.is_some()
                && let Some(name) = self.storage.name_moment(&place)?
            {
                disks.push((address, name));
            }
        }
        if asks_guest {
            self.with_guest(key, |guest, disks| guest.thaw(disks))?;
        }
        let point = self.insert_reference_point(key, consistency, disks)?;
        Ok(vec![Affected::ReferencePoint(id, point)])
    }

    /// `DestroyReferencePoint`.
    ///
    /// # Errors
    /// `NotFound`, `InvalidState`, `SystemInUse`.
    pub fn destroy_reference_point(
        &mut self,
        host: &HostName,
        id: VmId,
        point: ReferencePointId,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let key = vm.key;
        if !vm.reference_points.contains_key(&point) {
            return Err(Error::not_found(format!(
                "VM {id} has no reference point {point}"
            )));
        }
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 202,
            system: Some(key),
            activity: Some(Activity::Modifying),
            lasts: self.timings.modify,
            affected: vec![Affected::System(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| {
            if let Some(gone) = estate.vm_mut(key)?.reference_points.remove(&point) {
                for (_, name) in &gone.disks {
                    estate.storage.forget_moment(name);
                }
            }
            estate.write_configuration(key)?;
            Ok(Vec::new())
        }))
    }

    /// Tracking of all disks of a VM is gone, as after a storage migration.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn lose_tracking(&mut self, host: &HostName, id: VmId) -> Result<()> {
        let key = self.vm(host, id)?.key;
        for (_, place, _) in self.disk_places(key)? {
            self.storage.lose_tracking(&place);
        }
        self.touch();
        Ok(())
    }
}

/// Points media of settings at other files.
pub(super) fn point_at(settings: &mut VmSettings, files: &BTreeMap<DriveAddress, WindowsPath>) {
    for (address, medium) in settings.hardware.disks_mut() {
        if let Some(path) = files.get(&address) {
            medium.path = path.clone();
        }
    }
}

/// The name of a disk without extension and without the GUIDs of checkpoints.
fn stem_of_disk(path: &WindowsPath) -> String {
    let stem = path.stem();
    match stem.rsplit_once('_') {
        Some((head, tail)) if uuid::Uuid::try_parse(tail).is_ok() => head.to_owned(),
        _ => stem.to_owned(),
    }
}
