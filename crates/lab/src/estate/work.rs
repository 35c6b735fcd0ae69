//! How work gets done: jobs begin, take their time, and do what they do at their end.
//!
//! ```text
//!   begin ─► Running … ends ─► work runs: Completed with what it made, or Exception ─► five minutes ─► gone
//!                └─ cancel ─► Terminated, nothing done
//! ```
//!
//! **Invariants.** Work is done whole or not at all. Whatever ends a job, its VM is free afterwards.

use std::time::Duration;

use super::fault::FaultKind;
use super::ids::{CheckpointId, GroupName, HostName, JobId, SystemKey, VmId};
use super::job::{Affected, Job, JobClass, JobFailure, JobState, Started, TIME_BEFORE_REMOVAL};
use super::switch::Switch;
use super::vm::{Activity, VirtualMachine};
use super::{ClusterName, Estate, HostState};
use crate::{Error, ErrorKind, HResult, Result, ReturnCode};

/// What happens without being asked.
#[derive(Debug, Clone)]
pub(super) enum Event {
    JobEnds(JobId),
    JobVanishes(JobId),
    /// The guest of a VM works; stale when the serial is an older one.
    Tick(SystemKey, u64),
    /// Files of a VM may be merged now.
    LookForMerges(SystemKey),
    /// A guest that was told to shut down has done so.
    GuestIsDown(SystemKey, u64),
    /// A group whose node is gone starts elsewhere.
    Failover(ClusterName, GroupName),
    /// A host loses power.
    Crash(HostName),
    /// A host that was started answers.
    HostIsUp(HostName),
}

/// What came of a job.
pub(super) type Outcome = std::result::Result<Vec<Affected>, JobFailure>;

/// What a job does at its end.
pub(super) struct Work {
    run: Box<dyn FnOnce(&mut Estate) -> Outcome + Send + Sync>,
}

/// What a job is, before it begins.
pub(super) struct JobPlan {
    pub host: HostName,
    pub class: JobClass,
    pub job_type: u16,
    pub system: Option<SystemKey>,
    pub activity: Option<Activity>,
    pub lasts: Duration,
    pub affected: Vec<Affected>,
    pub destination: Option<HostName>,
}

impl JobPlan {
    /// A job of one of a VM's checkpoints.
    pub(super) fn of_checkpoint(
        vm: &VirtualMachine,
        id: CheckpointId,
        job_type: u16,
        activity: Activity,
        lasts: Duration,
    ) -> Self {
        Self {
            host: vm.host.clone(),
            class: JobClass::Concrete,
            job_type,
            system: Some(vm.key),
            activity: Some(activity),
            lasts,
            affected: vec![Affected::System(vm.id), Affected::Checkpoint(id)],
            destination: None,
        }
    }
}

impl From<Error> for JobFailure {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        match error.kind() {
            ErrorKind::Returned(ReturnCode::FileNotFound) => {
                Self::new(ReturnCode::FileNotFound, text).caused_by(HResult::FILE_NOT_FOUND)
            }
            ErrorKind::Returned(code) => Self::new(code, text),
            ErrorKind::Wmi(code) => Self::new(ReturnCode::Failed, text).caused_by(code),
            _ => Self::new(ReturnCode::Failed, text),
        }
    }
}

impl Estate {
    /// Begins a job for the wire; what it does is done when its time is over.
    pub(super) fn begin(
        &mut self,
        plan: JobPlan,
        run: impl FnOnce(&mut Self) -> Outcome + Send + Sync + 'static,
    ) -> Started {
        let host = plan.host.clone();
        let vm = plan
            .system
            .and_then(|key| self.systems.get(&key))
            .map(|vm| vm.id);
        let id = self.begin_job(plan, run);
        if self.strikes(FaultKind::JobIsNotNamed, vm, &host) {
            Started::UnnamedJob
        } else {
            Started::Job(id)
        }
    }

    /// Begins a job.
    pub(super) fn begin_job(
        &mut self,
        plan: JobPlan,
        run: impl FnOnce(&mut Self) -> Outcome + Send + Sync + 'static,
    ) -> JobId {
        let id = JobId(self.random.uuid());
        let now = self.now();
        let vm = plan
            .system
            .and_then(|key| self.systems.get(&key))
            .map(|vm| vm.id);
        let is_slow = self.strikes(FaultKind::JobIsSlow, vm, &plan.host);
        let lasts = if is_slow { plan.lasts * 20 } else { plan.lasts };
        let is_checkpoint = matches!(
            plan.activity,
            Some(Activity::CreatingCheckpoint | Activity::DeletingCheckpoint)
        );
        let owner = plan.system.and_then(|key| self.systems.get_mut(&key));
        if let (Some(vm), Some(activity)) = (owner, plan.activity) {
            vm.activity = Some((activity, id));
        }
        let changes_state = plan.activity == Some(Activity::ChangingState);
        let is_cancellable = !changes_state
            && (!is_checkpoint || self.switches.is_kind(Switch::CancelCheckpointJobs));
        let job = Job {
            id,
            class: plan.class,
            job_type: plan.job_type,
            host: plan.host,
            system: plan.system,
            state: JobState::Running,
            started: now,
            ends: now.after(lasts),
            is_cancellable,
            affected: plan.affected,
            created: Vec::new(),
            failure: None,
            destination: plan.destination,
        };
        if self.strikes(FaultKind::NodeCrashes, vm, &job.host) {
            // In the middle of what was begun.
            self.timeline
                .schedule_in(lasts / 2, Event::Crash(job.host.clone()));
        }
        self.timeline.schedule(job.ends, Event::JobEnds(id));
        self.jobs.insert(id, job);
        self.works.insert(id, Work { run: Box::new(run) });
        self.touch();
        id
    }

    /// Cancels a job (`RequestStateChange` 4 or 5 of the job).
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is over or cannot be cancelled.
    pub fn cancel_job(&mut self, host: &HostName, id: JobId) -> Result<()> {
        self.live_host(host)?;
        let job = self.job(host, id)?;
        if job.state.is_over() || !job.is_cancellable {
            return Err(Error::returned(
                ReturnCode::InvalidState,
                format!("job {id} cannot be cancelled"),
            ));
        }
        let failure = JobFailure::new(ReturnCode::Failed, "the job was cancelled");
        self.end_job(id, JobState::Terminated, Err(failure));
        Ok(())
    }

    /// Ends a job without doing its work.
    pub(super) fn kill_job(&mut self, id: JobId, why: &str) {
        self.end_job(
            id,
            JobState::Killed,
            Err(JobFailure::new(ReturnCode::Failed, why)),
        );
    }

    fn end_job(&mut self, id: JobId, state: JobState, outcome: Outcome) {
        let now = self.now();
        self.works.remove(&id);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.ends = now;
        job.state = state;
        match outcome {
            Ok(created) => job.created = created,
            Err(failure) => job.failure = Some(failure),
        }
        let (host, system) = (job.host.clone(), job.system);
        self.end_migration_of(system);
        let vm = system.and_then(|key| self.systems.get_mut(&key)).map(|vm| {
            if vm.activity.is_some_and(|(_, of)| of == id) {
                vm.activity = None;
            }
            if vm.merging == Some(id) {
                vm.merging = None;
            }
            vm.requested = 12;
            vm.id
        });
        if let Some(vm) = vm {
            self.follow_in_cluster(vm);
        }
        let vanishes_in = if self.strikes(FaultKind::JobVanishes, vm, &host) {
            Duration::ZERO
        } else {
            TIME_BEFORE_REMOVAL
        };
        self.timeline
            .schedule_in(vanishes_in, Event::JobVanishes(id));
        self.touch();
    }

    /// However a migration ended: its planned system on the destination is gone.
    fn end_migration_of(&mut self, system: Option<SystemKey>) {
        let vm = system.and_then(|key| self.systems.get(&key));
        let Some(vm) = vm.filter(|vm| matches!(vm.activity, Some((Activity::Migrating, _)))) else {
            return;
        };
        let is_target =
            |it: &&VirtualMachine| it.id == vm.id && it.key != vm.key && it.migrates_from.is_some();
        let planned: Vec<SystemKey> = self
            .systems
            .values()
            .filter(is_target)
            .map(|it| it.key)
            .collect();
        for key in planned {
            self.forget_system(key);
        }
    }

    pub(super) fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::JobEnds(id) => {
                let Some(work) = self.works.remove(&id) else {
                    return Ok(());
                };
                let outcome = (work.run)(self);
                let state = if outcome.is_ok() {
                    JobState::Completed
                } else {
                    JobState::Exception
                };
                self.end_job(id, state, outcome);
                Ok(())
            }
            Event::JobVanishes(id) => {
                self.jobs.remove(&id);
                self.touch();
                Ok(())
            }
            Event::Tick(key, serial) => self.tick_guest(key, serial),
            Event::LookForMerges(key) => {
                self.look_for_merges(key);
                Ok(())
            }
            Event::GuestIsDown(key, serial) => self.guest_is_down(key, serial),
            Event::Failover(cluster, group) => {
                self.fail_over(&cluster, &group);
                Ok(())
            }
            Event::Crash(host) => match self.host(&host)?.state {
                HostState::Up => self.crash_host(&host),
                HostState::Down => Ok(()),
            },
            Event::HostIsUp(host) => {
                self.host_is_up(&host);
                Ok(())
            }
        }
    }

    /// Whether a fault strikes now.
    pub(super) fn strikes(&mut self, kind: FaultKind, vm: Option<VmId>, host: &HostName) -> bool {
        let now = self.now();
        self.faults.strikes(kind, vm, host, now)
    }

    pub(super) fn vm_mut(&mut self, key: SystemKey) -> Result<&mut VirtualMachine> {
        self.systems
            .get_mut(&key)
            .ok_or_else(|| Error::not_found("the system is gone"))
    }

    pub(super) fn vm_of(&self, key: SystemKey) -> Result<&VirtualMachine> {
        self.systems
            .get(&key)
            .ok_or_else(|| Error::not_found("the system is gone"))
    }

    /// A VM of a host that answers and that nothing is done to.
    ///
    /// # Errors
    /// `SystemInUse` while a checkpoint is made, `InvalidState` while anything else goes on.
    pub(super) fn idle_vm(&self, host: &HostName, id: VmId) -> Result<&VirtualMachine> {
        self.live_host(host)?;
        let vm = self.vm(host, id)?;
        self.check_idle(vm)?;
        Ok(vm)
    }

    pub(super) fn check_idle(&self, vm: &VirtualMachine) -> Result<()> {
        match vm.activity {
            None => Ok(()),
            Some((Activity::CreatingCheckpoint, _)) => Err(Error::returned(
                ReturnCode::SystemInUse,
                format!("a checkpoint of {} is being made", vm.settings.name),
            )),
            Some((activity, _)) => Err(Error::returned(
                ReturnCode::InvalidState,
                format!("{} is busy: {activity:?}", vm.settings.name),
            )),
        }
    }

    /// How long moving so many bytes takes, and a little more.
    pub(super) fn moving(&self, at_least: Duration, bytes: u64) -> Duration {
        let seconds = bytes / self.timings.bytes_per_second.max(1);
        at_least + Duration::from_secs(seconds)
    }
}
