//! Reference points: moments that outlive their checkpoint.
//!
//! ```text
//!   recovery checkpoint ─ convert ─► reference point: the names of its disks' states     destroy ─► the names are unknown
//! ```
//!
//! **Invariants.** A name is known while its reference point or checkpoint exists. Disks without tracking are in none.

use super::Estate;
use super::checkpoint::{ConsistencyLevel, ReferencePoint, ReferencePointKind};
use super::checkpointing::invalid_state;
use super::fault::FaultKind;
use super::hardware::DiskSharing;
use super::ids::{CheckpointId, DriveAddress, HostName, ReferencePointId, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::vm::{Activity, ConfigurationVersion};
use super::work::{JobPlan, Outcome};
use crate::{Error, HResult, Result, ReturnCode};

impl Estate {
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
        let key = vm.key;
        let lasts = self.timings.convert;
        let plan = JobPlan::of_checkpoint(vm, id, 200, Activity::DeletingCheckpoint, lasts);
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
