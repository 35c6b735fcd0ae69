//! Migration: a VM moves between hosts while it runs, its files move, or both.
//!
//! ```text
//!   begin: a planned system of the same id on the destination ─► end: realized there, gone here
//!          jobs of the source stay with the source; the guest does not notice
//! ```
//!
//! **Invariants.** At every moment a VM is realized on one host only. A migration that fails leaves the VM as it was. Files that
//! moved are not tracked any more.

use std::collections::BTreeMap;

use super::fault::FaultKind;
use super::ids::{HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::storage::{DataMode, FilePlace};
use super::switch::Switch;
use super::vm::{Activity, PowerState, Realm};
use super::work::{Event, JobPlan, Outcome};
use super::{DiskFile, Estate, WindowsPath};
use crate::{Error, Result, ReturnCode};

/// `MigrationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrationKind {
    /// 32768.
    Vm,
    /// 32769.
    Storage,
    /// 32771.
    VmAndStorage,
}

/// What `MigrateVirtualSystemToHost` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRequest {
    /// Where to; `None` for storage alone.
    pub destination: Option<HostName>,
    /// What moves.
    pub kind: MigrationKind,
    /// The folder that all files go to, as the destination sees it.
    pub folder: Option<WindowsPath>,
}

impl Estate {
    /// `Msvm_VirtualSystemMigrationService.MigrateVirtualSystemToHost`.
    ///
    /// # Errors
    /// `InvalidState`, `SystemInUse`; `InvalidState` for a VM that is a role of a cluster (the cluster moves it);
    /// `InvalidParameter` for a destination that is not there; `AccessDenied` where a host allows none.
    pub fn migrate(
        &mut self,
        host: &HostName,
        id: VmId,
        request: MigrationRequest,
    ) -> Result<Started> {
        self.live_host(host)?;
        let is_role = self
            .cluster_of(host)
            .is_some_and(|it| it.group_of(id).is_some());
        if is_role && request.kind != MigrationKind::Storage {
            return Err(Error::returned(
                ReturnCode::InvalidState,
                "a role of a cluster is moved by the cluster",
            ));
        }
        self.begin_migration(host, id, request)
    }

    pub(super) fn begin_migration(
        &mut self,
        host: &HostName,
        id: VmId,
        request: MigrationRequest,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let key = vm.key;
        let refuse = |code, why: &str| Err(Error::returned(code, why));
        if matches!(
            vm.power,
            PowerState::Starting | PowerState::Stopping | PowerState::Saving
        ) {
            return refuse(ReturnCode::InvalidState, "its state is changing");
        }
        let moves_vm = request.kind != MigrationKind::Storage;
        let moves_files = request.kind != MigrationKind::Vm;
        if moves_files && request.folder.is_none() {
            return refuse(ReturnCode::InvalidParameter, "no place for the files");
        }
        if moves_vm {
            self.plan_destination(host, key, request.destination.as_ref())?;
        }
        let bytes: u64 = if moves_files {
            let places = self.named_files(self.vm_of(key)?);
            places
                .iter()
                .filter_map(|it| self.storage.disk(it))
                .map(DiskFile::file_bytes)
                .sum()
        } else {
            0
        };
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Migration,
            job_type: match request.kind {
                MigrationKind::Vm => 305,
                MigrationKind::VmAndStorage => 306,
                MigrationKind::Storage => 307,
            },
            system: Some(key),
            activity: Some(Activity::Migrating),
            lasts: self.moving(self.timings.migrate, bytes),
            affected: vec![Affected::System(id)],
            destination: request.destination.clone(),
        };
        Ok(self.begin(plan, move |estate| estate.finish_migration(key, &request)))
    }

    /// A planned system of the VM's id on the destination, if the VM may move there.
    fn plan_destination(
        &mut self,
        host: &HostName,
        key: SystemKey,
        destination: Option<&HostName>,
    ) -> Result<()> {
        let refuse = |code, why: &str| Err(Error::returned(code, why));
        let vm = self.vm_of(key)?;
        let (id, settings) = (vm.id, vm.settings.clone());
        let Some(destination) = destination else {
            return refuse(ReturnCode::InvalidParameter, "no destination");
        };
        let Ok(target) = self.live_host(destination) else {
            return refuse(
                ReturnCode::InvalidParameter,
                "the destination cannot be reached",
            );
        };
        if destination == host
            || target.realized.contains_key(&id)
            || target.planned.contains_key(&id)
        {
            return refuse(
                ReturnCode::InvalidState,
                "the destination has the VM already",
            );
        }
        if !target.allows_migration || !self.host(host)?.allows_migration {
            return refuse(ReturnCode::AccessDenied, "migration is not enabled");
        }
        if settings.version > target.windows.configuration_version() {
            return refuse(
                ReturnCode::NotSupported,
                "the destination is too old for the VM",
            );
        }
        let planned = self.insert_system(destination, id, Realm::Planned, settings)?;
        self.vm_mut(planned)?.migrates_from = Some(host.clone());
        Ok(())
    }

    fn finish_migration(&mut self, key: SystemKey, request: &MigrationRequest) -> Outcome {
        let vm = self.vm_of(key)?;
        let (id, source) = (vm.id, vm.host.clone());
        let target = match request.kind {
            MigrationKind::Storage => source.clone(),
            _ => request
                .destination
                .clone()
                .unwrap_or_else(|| source.clone()),
        };
        let planned = self
            .hosts
            .get(&target)
            .and_then(|it| it.planned.get(&id))
            .copied();
        let moved = self.carry_over(key, &source, &target, request);
        if let Some(planned) = planned.filter(|_| request.kind != MigrationKind::Storage) {
            self.forget_system(planned);
        }
        let state = self
            .cluster_of(&source)
            .and_then(|it| it.group_of(id))
            .map(|it| it.name.clone());
        if moved.is_ok() && target != source {
            self.move_system(key, &target);
            self.lose_reference_points_of(key, Switch::ReferencePointsMigrate);
            if let Some(group) = &state {
                for cluster in self.clusters.values_mut() {
                    if let Some(role) = cluster.groups.get_mut(group).filter(|it| it.vm == Some(id))
                    {
                        role.owner = target.clone();
                    }
                }
            }
            // Merges of the source go on at the destination.
            let merging = self.vm_mut(key)?.merging.take();
            if let Some(job) = merging {
                self.kill_job(job, "the virtual machine has moved");
            }
            self.timeline
                .schedule_in(self.timings.guest_tick, Event::LookForMerges(key));
        }
        self.follow_in_cluster(id);
        moved?;
        self.write_all_configuration(key)?;
        Ok(Vec::new())
    }

    /// Everything that can fail, before anything is seen to move.
    fn carry_over(
        &mut self,
        key: SystemKey,
        source: &HostName,
        target: &HostName,
        request: &MigrationRequest,
    ) -> std::result::Result<(), JobFailure> {
        let id = self.vm_of(key)?.id;
        if self.strikes(FaultKind::MigrationFails, Some(id), source) {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the migration did not succeed",
            ));
        }
        self.live_host(target)?;
        if request.kind == MigrationKind::Vm {
            for place in self.named_files(self.vm_of(key)?) {
                let path = self.storage.known(&place)?.path.clone();
                if self.locate(target, &path).ok().as_ref() != Some(&place) {
                    let text = format!("{target} has no access to {path}");
                    return Err(JobFailure::new(ReturnCode::Failed, text));
                }
            }
            return Ok(());
        }
        let Some(folder) = &request.folder else {
            return Err(JobFailure::new(
                ReturnCode::InvalidParameter,
                "no place for the files",
            ));
        };
        let was_open = self.vm_of(key)?.session.is_some();
        self.close_session(key)?;
        let moved = self.move_files(key, target, folder);
        if was_open && (moved.is_err() || target == source) {
            self.reopen_session(key)?;
        } else if was_open {
            // The paths are the destination's now: the session is opened there.
            self.move_system(key, target);
            self.reopen_session(key)?;
        }
        moved.map_err(JobFailure::from)
    }

    /// Copies every file of a VM's chains into a folder and points everything at the copies.
    fn move_files(
        &mut self,
        key: SystemKey,
        target: &HostName,
        folder: &WindowsPath,
    ) -> Result<()> {
        let vm = self.vm_of(key)?;
        let mut chain: Vec<FilePlace> = Vec::new();
        for place in self.named_files(vm) {
            let mut at = Some(place);
            while let Some(place) = at.filter(|it| !chain.contains(it)) {
                at = self.storage.disk(&place).and_then(|it| it.parent.clone());
                chain.push(place);
            }
        }
        let mut moved: BTreeMap<FilePlace, (FilePlace, WindowsPath)> = BTreeMap::new();
        for place in &chain {
            let disk = self.storage.known(place)?.clone();
            let path = folder.join(disk.path.file_name());
            let spot = self.spot(target, &path)?;
            if self.storage.disks.contains_key(&spot.place) || spot.backing.exists() {
                return Err(Error::returned(
                    ReturnCode::InvalidParameter,
                    format!("{path} is already there"),
                ));
            }
            moved.insert(place.clone(), (spot.place, path));
        }
        let mut copies = Vec::new();
        for place in &chain {
            let disk = self.storage.known(place)?.clone();
            let Some((new, path)) = moved.get(place).cloned() else {
                continue;
            };
            let backing = self.backing(target, &path)?;
            if disk.is_file {
                if let Some(folder) = backing.parent() {
                    std::fs::create_dir_all(folder).map_err(|error| {
                        Error::io(format!("making the folder of {path}"), error)
                    })?;
                }
                std::fs::copy(&disk.backing, &backing)
                    .map_err(|error| Error::io(format!("copying to {path}"), error))?;
            }
            let copy = DiskFile {
                path,
                parent: disk
                    .parent
                    .as_ref()
                    .and_then(|it| moved.get(it))
                    .map(|(it, _)| it.clone()),
                backing,
                tracked: None,
                ..disk
            };
            copies.push((new, copy));
        }
        for place in &chain {
            self.storage.lose_tracking(place);
        }
        self.storage.disks.extend(copies);
        self.point_at_moved(key, &moved, folder)?;
        for place in &chain {
            self.storage.remove(place)?;
        }
        Ok(())
    }

    fn point_at_moved(
        &mut self,
        key: SystemKey,
        moved: &BTreeMap<FilePlace, (FilePlace, WindowsPath)>,
        folder: &WindowsPath,
    ) -> Result<()> {
        let vm = self.vm_of(key)?;
        let (host, old) = (vm.host.clone(), vm.configuration_file());
        let cluster = self.host(&host)?.cluster.clone();
        let Self {
            systems, storage, ..
        } = self;
        let Some(vm) = systems.get_mut(&key) else {
            return Ok(());
        };
        let now = std::iter::once(&mut vm.settings);
        for settings in now.chain(vm.checkpoints.values_mut().map(|it| &mut it.settings)) {
            for (_, medium) in settings.hardware.disks_mut() {
                let place = storage.locate(&host, cluster.as_ref(), &medium.path)?;
                if let Some((_, path)) = moved.get(&place) {
                    medium.path = path.clone();
                }
            }
            settings.configuration_root = folder.clone();
            settings.checkpoint_root = folder.clone();
        }
        if self.storage.mode == DataMode::Files {
            super::disk_file::remove_file(&self.backing(&host, &old)?)?;
        }
        Ok(())
    }

    /// A system is on another host from now on.
    pub(super) fn move_system(&mut self, key: SystemKey, target: &HostName) {
        let Some(vm) = self.systems.get_mut(&key) else {
            return;
        };
        if let Some(source) = self.hosts.get_mut(&vm.host) {
            source.realized.remove(&vm.id);
        }
        if let Some(host) = self.hosts.get_mut(target) {
            host.realized.insert(vm.id, key);
        }
        vm.host = target.clone();
        self.touch();
    }

    /// A system is gone, with nothing else done to it.
    pub(super) fn forget_system(&mut self, key: SystemKey) {
        let Some(vm) = self.systems.remove(&key) else {
            return;
        };
        if let Some(host) = self.hosts.get_mut(&vm.host) {
            match vm.realm {
                Realm::Realized => host.realized.remove(&vm.id),
                Realm::Planned => host.planned.remove(&vm.id),
            };
        }
        self.touch();
    }

    /// Reference points stay behind, where the switch says so.
    pub(super) fn lose_reference_points_of(&mut self, key: SystemKey, switch: Switch) {
        if self.switches.is_kind(switch) {
            return;
        }
        let points = self
            .systems
            .get_mut(&key)
            .map(|vm| std::mem::take(&mut vm.reference_points));
        for (_, point) in points.into_iter().flatten() {
            for (_, name) in point.disks {
                self.storage.forget_moment(&name);
            }
        }
    }
}
