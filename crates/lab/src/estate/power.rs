//! States of a VM: start, turn off, save, pause, shut down; and the session that a running VM holds.
//!
//! ```text
//!   request ─► checked ─► job, transitional state ─► state; on failure the state it had
//! ```
//!
//! **Invariants.** The disks of a running VM are open by its session and by nobody else for writing. A guest works only while
//! its VM runs.

use super::clock::VirtualTime;
use super::fault::FaultKind;
use super::ids::{HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::running::{OpenDisk, Session, SessionDisks};
use super::storage::FilePlace;
use super::switch::Switch;
use super::vm::{Activity, PowerState, Realm};
use super::work::{Event, JobPlan, Outcome};
use super::{DiskSharing, DriveAddress, Estate};
use crate::guest::{Guest, WriterState};
use crate::{Error, HResult, Result, ReturnCode};

/// What a state change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Start,
    Resume,
    TurnOff,
    Save,
    Pause,
    Reboot,
    Reset,
}

impl Change {
    /// What a request means in a state.
    fn of(requested: u16, power: PowerState) -> Result<Self> {
        let refuse = |code, why: &str| {
            Err(Error::returned(
                code,
                format!("state {requested} from {power:?}: {why}"),
            ))
        };
        match (requested, power) {
            (2, PowerState::Off | PowerState::Saved) => Ok(Self::Start),
            (2, PowerState::Paused) => Ok(Self::Resume),
            (3, PowerState::Running | PowerState::Paused | PowerState::Saved) => Ok(Self::TurnOff),
            (6, PowerState::Running | PowerState::Paused) => Ok(Self::Save),
            (9, PowerState::Running) => Ok(Self::Pause),
            (10, PowerState::Running) => Ok(Self::Reboot),
            (11, PowerState::Running | PowerState::Paused) => Ok(Self::Reset),
            (2 | 3 | 6 | 9 | 10 | 11, _) => refuse(ReturnCode::InvalidState, "not from this state"),
            (4 | 32779 | 32780, _) => refuse(ReturnCode::NotSupported, "not in this namespace"),
            _ => refuse(ReturnCode::InvalidParameter, "there is no such state"),
        }
    }

    /// The state while it goes on, and `JobType`.
    fn transition(self) -> (PowerState, u16) {
        match self {
            Self::Start => (PowerState::Starting, 12),
            Self::Resume => (PowerState::Resuming, 27),
            Self::TurnOff => (PowerState::Stopping, 13),
            Self::Save => (PowerState::Saving, 14),
            Self::Pause => (PowerState::Pausing, 26),
            Self::Reboot => (PowerState::Stopping, 29),
            Self::Reset => (PowerState::Stopping, 28),
        }
    }
}

impl Estate {
    /// `Msvm_ComputerSystem.RequestStateChange`.
    ///
    /// # Errors
    /// `InvalidState` (32775), `NotSupported`, `InvalidParameter`, `SystemInUse`.
    pub fn request_state_change(
        &mut self,
        host: &HostName,
        id: VmId,
        requested: u16,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let (key, before) = (vm.key, vm.power);
        let change = Change::of(requested, before)?;
        let (transitional, job_type) = change.transition();
        let timings = &self.timings;
        let lasts = match change {
            Change::Start => timings.start,
            Change::Resume | Change::Pause => timings.pause,
            Change::TurnOff => timings.turn_off,
            Change::Save => timings.save,
            Change::Reboot => timings.shut_down + timings.start,
            Change::Reset => timings.turn_off + timings.start,
        };
        self.set_power(key, transitional)?;
        self.vm_mut(key)?.requested = requested;
        self.follow_in_cluster(id);
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type,
            system: Some(key),
            activity: Some(Activity::ChangingState),
            lasts,
            affected: vec![Affected::System(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.change_state(key, before, change)))
    }

    fn change_state(&mut self, key: SystemKey, before: PowerState, change: Change) -> Outcome {
        let vm = self.vm_of(key)?;
        let (id, host) = (vm.id, vm.host.clone());
        let outcome = if self.strikes(FaultKind::StateChangeFails, Some(id), &host) {
            Err(JobFailure::new(
                ReturnCode::Failed,
                "the virtual machine could not change its state",
            ))
        } else {
            self.do_change(key, before, change)
        };
        if outcome.is_err() {
            // Where a start or a restart failed after the stop, it stays off.
            let after = match change {
                Change::Reboot | Change::Reset => PowerState::Off,
                _ => before,
            };
            self.set_power(key, after)?;
        }
        self.follow_in_cluster(id);
        outcome.map(|()| Vec::new())
    }

    fn do_change(
        &mut self,
        key: SystemKey,
        before: PowerState,
        change: Change,
    ) -> std::result::Result<(), JobFailure> {
        match change {
            Change::Start => {
                self.power_on(key, before)?;
            }
            Change::Resume => {
                self.set_power(key, PowerState::Running)?;
                self.begin_ticking(key)?;
            }
            Change::Pause => self.set_power(key, PowerState::Paused)?,
            Change::TurnOff => {
                self.cut_power(key)?;
                self.drop_saved_state(key)?;
            }
            Change::Save => {
                self.close_session(key)?;
                self.write_saved_state(key)?;
                self.set_power(key, PowerState::Saved)?;
            }
            Change::Reboot => {
                self.shut_guest_down(key)?;
                self.set_power(key, PowerState::Off)?;
                self.power_on(key, PowerState::Off)?;
            }
            Change::Reset => {
                self.cut_power(key)?;
                self.power_on(key, PowerState::Off)?;
            }
        }
        Ok(())
    }

    /// `Msvm_ShutdownComponent.InitiateShutdown`. No job: the VM is off some time after.
    ///
    /// # Errors
    /// `InvalidState` when it does not run; `NotSupported` (32770) when the component is disabled, `Failed` when the guest
    /// does not answer.
    pub fn initiate_shutdown(&mut self, host: &HostName, id: VmId) -> Result<()> {
        let vm = self.idle_vm(host, id)?;
        if !vm.is_running() {
            return Err(Error::returned(
                ReturnCode::InvalidState,
                "the VM does not run",
            ));
        }
        let shutdown = vm.integration.shutdown;
        if !shutdown.is_enabled {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "the component is disabled",
            ));
        }
        if !vm.service_status(shutdown).answers() {
            return Err(Error::returned(
                ReturnCode::Failed,
                "the guest does not answer",
            ));
        }
        let (key, serial, lasts) = (vm.key, vm.tick_serial, self.timings.shut_down);
        self.timeline
            .schedule_in(lasts, Event::GuestIsDown(key, serial));
        self.touch();
        Ok(())
    }

    pub(super) fn guest_is_down(&mut self, key: SystemKey, serial: u64) -> Result<()> {
        let concerns = |estate: &Self| {
            estate
                .systems
                .get(&key)
                .is_some_and(|vm| vm.is_running() && vm.tick_serial == serial)
        };
        if !concerns(self) {
            return Ok(());
        }
        if self
            .systems
            .get(&key)
            .is_some_and(|vm| vm.activity.is_some())
        {
            // Something holds the VM: the guest goes on shutting down behind it.
            let again = self.timings.guest_tick;
            self.timeline
                .schedule_in(again, Event::GuestIsDown(key, serial));
            return Ok(());
        }
        self.shut_guest_down(key)?;
        self.set_power(key, PowerState::Off)?;
        let id = self.vm_of(key)?.id;
        self.follow_in_cluster(id);
        Ok(())
    }

    /// Sets how the guest's writers behave.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when no guest writes.
    pub fn set_writers(&mut self, host: &HostName, id: VmId, state: WriterState) -> Result<()> {
        let key = self.vm(host, id)?.key;
        match &mut self.vm_mut(key)?.guest {
            Some(guest) => guest.set_writers(state),
            None => return Err(Error::invalid(format!("no guest writes in VM {id}"))),
        }
        self.touch();
        Ok(())
    }

    pub(super) fn set_power(&mut self, key: SystemKey, power: PowerState) -> Result<()> {
        let now: VirtualTime = self.now();
        let vm = self.vm_mut(key)?;
        vm.power = power;
        vm.state_changed = now;
        match power {
            PowerState::Running => {
                vm.running_since.get_or_insert(now);
            }
            PowerState::Off | PowerState::Saved => vm.running_since = None,
            _ => {}
        }
        self.touch();
        Ok(())
    }

    /// The places of all disks of a VM, sharing included.
    pub(super) fn disk_places(
        &self,
        key: SystemKey,
    ) -> Result<Vec<(DriveAddress, FilePlace, DiskSharing)>> {
        let vm = self.vm_of(key)?;
        vm.settings
            .hardware
            .disks()
            .map(|(address, medium)| {
                let place = self.locate(&vm.host, &medium.path)?;
                Ok((address, place, medium.sharing))
            })
            .collect()
    }

    /// Starts a VM that is off or saved.
    pub(super) fn power_on(
        &mut self,
        key: SystemKey,
        before: PowerState,
    ) -> std::result::Result<(), JobFailure> {
        let vm = self.vm_of(key)?;
        let (id, host, realm) = (vm.id, vm.host.clone(), vm.realm);
        if realm == Realm::Planned {
            return Err(JobFailure::new(
                ReturnCode::InvalidState,
                "a planned system does not start",
            ));
        }
        if self.strikes(FaultKind::LogonRightMissing, Some(id), &host) {
            let text = "the account of the virtual machine has not been granted the logon type";
            return Err(JobFailure::new(ReturnCode::Failed, text)
                .caused_by(HResult::LOGON_TYPE_NOT_GRANTED));
        }
        self.open_session(key)?;
        let booted = if before == PowerState::Saved {
            self.drop_saved_state(key)
        } else {
            self.with_guest(key, |guest, disks| guest.boot(disks))
                .map(|_| ())
        };
        if let Err(error) = booted {
            self.close_session(key)?;
            return Err(error.into());
        }
        self.set_power(key, PowerState::Running)?;
        self.begin_ticking(key)?;
        Ok(())
    }

    /// Opens the disks of a VM for its worker process.
    pub(super) fn open_session(&mut self, key: SystemKey) -> std::result::Result<(), JobFailure> {
        let paths: Vec<_> = {
            let vm = self.vm_of(key)?;
            let host = vm.host.clone();
            vm.settings
                .hardware
                .disks()
                .map(|(_, medium)| (host.clone(), medium.path.clone()))
                .collect()
        };
        for (host, path) in &paths {
            self.adopt(host, path)?;
        }
        let places = self.disk_places(key)?;
        let allows_foreign = self.switches.is_kind(Switch::ForeignShares);
        for (_, place, sharing) in &places {
            let is_foreign = self
                .storage
                .volume(place.volume)
                .is_some_and(|it| it.is_foreign);
            if is_foreign && !allows_foreign {
                let text = format!("the computer account has no access to {}", place.path);
                return Err(JobFailure::new(ReturnCode::AccessDenied, text));
            }
            let holder = self.storage.known(place)?.holder;
            if holder.is_some_and(|it| it != key) && *sharing == DiskSharing::Private {
                let text = format!("{} is used by another process", place.path);
                return Err(
                    JobFailure::new(ReturnCode::Failed, text).caused_by(HResult::SHARING_VIOLATION)
                );
            }
        }
        let has_guest = self.vm_of(key)?.guest.is_some();
        let mut session = Session::default();
        let (ids, now) = (self.disk_ids.clone(), self.now());
        for (address, place, sharing) in places {
            if has_guest && sharing == DiskSharing::Private {
                self.storage.materialize(&place, &ids, now)?;
                let editor = self.storage.open_live(&place, &ids)?;
                session.disks.push(OpenDisk {
                    address,
                    place: place.clone(),
                    editor,
                });
            }
            if let Some(disk) = self.storage.disks.get_mut(&place) {
                disk.holder = Some(key);
            }
        }
        self.vm_mut(key)?.session = Some(session);
        Ok(())
    }

    /// Closes the disks of a VM; not an error when none is open.
    pub(super) fn close_session(&mut self, key: SystemKey) -> Result<()> {
        let Some(session) = self.vm_mut(key)?.session.take() else {
            return Ok(());
        };
        let mut first = None;
        for disk in session.disks {
            if let Err(error) = self.storage.close_live(&disk.place, disk.editor) {
                first.get_or_insert(error);
            }
        }
        for disk in self.storage.disks.values_mut() {
            if disk.holder == Some(key) {
                disk.holder = None;
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Does something with the guest of a VM whose disks are open; `None` when no guest writes.
    pub(super) fn with_guest<T>(
        &mut self,
        key: SystemKey,
        act: impl FnOnce(&mut Guest, &mut SessionDisks<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let vm = self
            .systems
            .get_mut(&key)
            .ok_or_else(|| Error::not_found("the system is gone"))?;
        let (Some(guest), Some(session)) = (&mut vm.guest, &vm.session) else {
            return Ok(None);
        };
        let mut disks = SessionDisks {
            session,
            storage: &mut self.storage,
        };
        act(guest, &mut disks).map(Some)
    }

    fn begin_ticking(&mut self, key: SystemKey) -> Result<()> {
        let vm = self.vm_mut(key)?;
        vm.tick_serial += 1;
        let serial = vm.tick_serial;
        if vm.guest.is_some() {
            let tick = self.timings.guest_tick;
            self.timeline.schedule_in(tick, Event::Tick(key, serial));
        }
        Ok(())
    }

    pub(super) fn tick_guest(&mut self, key: SystemKey, serial: u64) -> Result<()> {
        let Some(vm) = self.systems.get(&key) else {
            return Ok(());
        };
        if vm.tick_serial != serial || !vm.is_running() {
            return Ok(());
        }
        self.with_guest(key, |guest, disks| guest.tick(disks))?;
        let tick = self.timings.guest_tick;
        self.timeline.schedule_in(tick, Event::Tick(key, serial));
        Ok(())
    }

    /// A guest that shuts down in good order; its disks are closed.
    pub(super) fn shut_guest_down(&mut self, key: SystemKey) -> Result<()> {
        self.with_guest(key, |guest, disks| guest.shut_down(disks))?;
        self.close_session(key)
    }

    /// The plug is pulled: what the guest had in memory only is gone.
    pub(super) fn cut_power(&mut self, key: SystemKey) -> Result<()> {
        self.close_session(key)?;
        if let Some(guest) = &mut self.vm_mut(key)?.guest {
            guest.lose_power();
        }
        self.set_power(key, PowerState::Off)
    }
}
