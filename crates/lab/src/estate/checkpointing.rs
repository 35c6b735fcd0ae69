//! Making, deleting, applying and converting checkpoints; reference points.
//!
//! ```text
//!   request ─► hold the guest still ─► close its disks ─► a child for every live file ─► name the moments ─► go on
//!                     └ refused or timed out: job exception, nothing happened (a user's checkpoint may fall back)
//! ```
//!
//! **Invariants.** All disks of a checkpoint are of one moment. A checkpoint that failed leaves no file and no name.

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, CheckpointKind, ConsistencyLevel, TrackedState};
use super::fault::FaultKind;
use super::hardware::{DiskSharing, Drive};
use super::ids::{CheckpointId, DriveAddress, HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::storage::FilePlace;
use super::switch::Switch;
use super::vm::{
    Activity, ConfigurationVersion, PowerState, ReplicationMode, UserCheckpointType, VirtualMachine,
};
use super::work::{JobPlan, Outcome};
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

/// Names of states, and the epochs that they end.
type NamedStates = (
    BTreeMap<DriveAddress, TrackedState>,
    BTreeMap<DriveAddress, u64>,
);

/// A disk on its way into a checkpoint.
struct Rolled {
    address: DriveAddress,
    frozen: FilePlace,
    frozen_path: WindowsPath,
    leaf: FilePlace,
    leaf_path: WindowsPath,
}

pub(super) fn invalid_state<T>(why: impl Into<String>) -> Result<T> {
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
    pub(super) fn hold_guest(
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
        let (tracked, epochs) = self.name_states(&rolled, may_track)?;
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

    /// Ends the epochs of frozen files and names their states; leaves go on in the next.
    fn name_states(&mut self, rolled: &[Rolled], may_track: bool) -> Result<NamedStates> {
        let mut tracked = BTreeMap::new();
        let mut epochs = BTreeMap::new();
        for disk in rolled {
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
        Ok((tracked, epochs))
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
pub(super) fn stem_of_disk(path: &WindowsPath) -> String {
    let stem = path.stem();
    match stem.rsplit_once('_') {
        Some((head, tail)) if uuid::Uuid::try_parse(tail).is_ok() => head.to_owned(),
        _ => stem.to_owned(),
    }
}
