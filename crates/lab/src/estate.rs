//! The estate: one model of hosts, clusters, storage and virtual machines, moved by calls and by a virtual clock.
//!
//! ```text
//!   a call ─► checked at once: refused with Windows' code, or Started::Job ─┐
//!   advance(time) ─► events in order: jobs end (work is done then), guests tick, groups fail over
//! ```
//!
//! A call names the host it was sent to: another host does not know the VM. Everything is readable through shared
//! references; [`Estate::revision`] tells whether anything changed since one looked.
//!
//! **Invariants.** The same seed and the same calls give the same estate, ids and bytes included. What a job does, it does
//! at its end, whole or not at all.

mod build;
mod checkpoint;
mod checkpointing;
mod clock;
mod cluster;
mod clustering;
mod configuration;
mod container;
mod defining;
mod disk;
mod disk_file;
mod disk_tracking;
mod exporting;
mod failover;
mod fault;
mod folders;
mod guest_work;
mod hardware;
mod host;
mod ids;
mod images;
mod job;
mod merging;
mod migrating;
mod path;
mod power;
mod random;
mod reference_points;
mod resources;
mod reverting;
mod running;
mod specs;
mod storage;
mod stored_settings;
mod switch;
mod timings;
mod tracking;
mod vm;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use vdisk::vhdx::IdSource;

pub use checkpoint::{
    Checkpoint, CheckpointKind, ConsistencyLevel, ReferencePoint, ReferencePointKind, TrackedState,
};
pub use checkpointing::{CheckpointRequest, GuestBackupType, NonSnapshottable, SnapshotType};
pub use clock::VirtualTime;
pub use cluster::{
    Cluster, Group, GroupState, GroupType, Node, NodeState, Resource, ResourceState, ResourceType,
};
pub use clustering::Drain;
pub use defining::{ImportId, SystemChange, SystemDefinition, SystemTarget};
pub use disk::{DiskFacts, DiskFile, DiskFormat, DiskType};
pub use exporting::{ExportFolder, ExportRequest, ExportStorage};
pub use fault::{Fault, FaultKind, Faults, Repeat, Trigger};
pub use folders::HostFolder;
pub use hardware::{
    AdapterKind, Controller, ControllerKind, DiskSharing, Drive, FibreChannelPort, Hardware,
    IDE_CONTROLLER, Medium, Memory, NetworkAdapter, PhysicalDisk, Security,
};
pub use host::{Host, HostState, VirtualSwitch, WindowsGeneration};
pub use ids::{
    CheckpointId, ClusterName, ClusterObjectId, DeviceId, DriveAddress, GroupName, HostName, JobId,
    RctId, ReferencePointId, ResourceName, SwitchName, SystemKey, VmId,
};
pub use images::{DiskChanges, DiskState, FileLock};
pub use job::{Affected, Job, JobClass, JobFailure, JobState, Started, TIME_BEFORE_REMOVAL};
pub use migrating::{MigrationKind, MigrationRequest};
pub use path::{PathRoot, WindowsPath};
pub use random::Random;
pub use resources::{
    DriveSpec, ResourceChange, ResourceRef, ResourceSpec, ServiceName, ServiceSwitch,
};
pub use specs::{DiskSource, DiskSpec, GuestSpec, VmSpec};
pub use storage::{DataMode, FilePlace, Storage, Volume, VolumeId, VolumeKind, VolumeState};
pub use switch::{Answer, Switch, Switches};
pub use timings::Timings;
pub use tracking::{ChangeTracker, GRANULARITY_BYTES};
pub use vm::{
    Activity, ConfigurationVersion, IntegrationService, IntegrationServices, MergeState,
    PowerState, Realm, ReplicationMode, ServiceStatus, StartAction, UserCheckpointType,
    VirtualMachine, VmGeneration, VmSettings,
};

use self::clock::Timeline;
use self::disk::Spot;
use self::work::{Event, Work};
use crate::{Error, ErrorKind, Result};

/// What an estate is made from.
#[derive(Debug, Clone)]
pub struct EstateOptions {
    /// Everything follows from it.
    pub seed: u64,
    /// Where the clock begins.
    pub start: VirtualTime,
    /// Whether disks are files.
    pub data: DataMode,
    /// Answers to what is unverified.
    pub switches: Switches,
    /// How long things take.
    pub timings: Timings,
}

impl EstateOptions {
    /// The usual estate of a seed: real files, pessimistic answers.
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            start: VirtualTime::START,
            data: DataMode::Files,
            switches: Switches::default(),
            timings: Timings::default(),
        }
    }
}

// Servers share an estate between threads.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Estate>();
};

/// A Hyper-V estate.
pub struct Estate {
    random: Random,
    disk_ids: IdSource,
    switches: Switches,
    timings: Timings,
    faults: Faults,
    timeline: Timeline<Event>,
    hosts: BTreeMap<HostName, Host>,
    clusters: BTreeMap<ClusterName, Cluster>,
    storage: Storage,
    systems: BTreeMap<SystemKey, VirtualMachine>,
    jobs: BTreeMap<JobId, Job>,
    works: BTreeMap<JobId, Work>,
    next_system: u64,
    revision: u64,
}

impl Estate {
    /// An estate without hosts.
    pub fn new(options: EstateOptions) -> Self {
        let mut random = Random::seeded(options.seed);
        let disk_ids = random.id_source();
        Self {
            random,
            disk_ids,
            switches: options.switches,
            timings: options.timings,
            faults: Faults::default(),
            timeline: Timeline::starting_at(options.start),
            hosts: BTreeMap::new(),
            clusters: BTreeMap::new(),
            storage: Storage::new(options.data),
            systems: BTreeMap::new(),
            jobs: BTreeMap::new(),
            works: BTreeMap::new(),
            next_system: 1,
            revision: 0,
        }
    }

    /// The time.
    pub fn now(&self) -> VirtualTime {
        self.timeline.now()
    }

    /// A number that grows whenever anything may have changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When something happens next without being asked.
    pub fn next_event_at(&self) -> Option<VirtualTime> {
        self.timeline.next_at()
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// `Io` when a file of the estate cannot be read or written; what goes wrong in the estate itself is told in jobs.
    pub fn advance(&mut self, duration: Duration) -> Result<()> {
        self.advance_to(self.now().after(duration))
    }

    /// Lets time pass until a moment; nothing happens when that is past.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn advance_to(&mut self, until: VirtualTime) -> Result<()> {
        if until < self.now() {
            return Ok(());
        }
        while let Some(event) = self.timeline.next_due(until) {
            self.happen(event)?;
        }
        Ok(())
    }

    /// The switches.
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// Sets a switch.
    pub fn set_switch(&mut self, switch: Switch, answer: Answer) {
        self.switches.set(switch, answer);
        self.touch();
    }

    /// How long things take.
    pub fn timings_mut(&mut self) -> &mut Timings {
        &mut self.timings
    }

    /// Faults to come, and those that struck.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Plans a fault. The crash of a node at a moment happens then; any other fault waits for an operation to strike.
    pub fn inject(&mut self, fault: Fault) {
        if let (FaultKind::NodeCrashes, Trigger::At(at), Some(host)) =
            (fault.kind, fault.trigger, &fault.host)
        {
            // Power does not wait for an operation.
            self.timeline.schedule(at, Event::Crash(host.clone()));
            return;
        }
        self.faults.add(fault);
    }

    /// Takes back all faults that did not strike yet.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// A host, up or down.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn host(&self, name: &HostName) -> Result<&Host> {
        self.hosts
            .get(name)
            .ok_or_else(|| Error::not_found(format!("there is no host {name}")))
    }

    /// A host that answers.
    ///
    /// # Errors
    /// `NotFound`, `Unreachable`.
    pub fn live_host(&self, name: &HostName) -> Result<&Host> {
        let host = self.host(name)?;
        match host.state {
            HostState::Up => Ok(host),
            HostState::Down => Err(Error::new(
                ErrorKind::Unreachable,
                format!("host {name} is down"),
            )),
        }
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.values()
    }

    /// A cluster.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn cluster(&self, name: &ClusterName) -> Result<&Cluster> {
        self.clusters
            .get(name)
            .ok_or_else(|| Error::not_found(format!("there is no cluster {name}")))
    }

    /// The cluster that a host is a node of.
    pub fn cluster_of(&self, host: &HostName) -> Option<&Cluster> {
        self.clusters.get(self.hosts.get(host)?.cluster.as_ref()?)
    }

    /// All storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// VMs of a host; planned systems are not among them.
    pub fn vms_on(&self, host: &HostName) -> impl Iterator<Item = &VirtualMachine> {
        self.hosts
            .get(host)
            .into_iter()
            .flat_map(|host| host.realized.values())
            .filter_map(|key| self.systems.get(key))
    }

    /// Planned systems of a host.
    pub fn planned_on(&self, host: &HostName) -> impl Iterator<Item = &VirtualMachine> {
        self.hosts
            .get(host)
            .into_iter()
            .flat_map(|host| host.planned.values())
            .filter_map(|key| self.systems.get(key))
    }

    /// Every VM of the estate, by key.
    pub fn systems(&self) -> impl Iterator<Item = &VirtualMachine> {
        self.systems.values()
    }

    /// A system by key: wherever it is now.
    pub fn system(&self, key: SystemKey) -> Option<&VirtualMachine> {
        self.systems.get(&key)
    }

    /// A VM of a host.
    ///
    /// # Errors
    /// `NotFound`: the VM may be elsewhere.
    pub fn vm(&self, host: &HostName, id: VmId) -> Result<&VirtualMachine> {
        let found = self.host(host)?.realized.get(&id);
        found
            .and_then(|key| self.systems.get(key))
            .ok_or_else(|| Error::not_found(format!("{host} has no VM {id}")))
    }

    /// A planned system of a host.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn planned(&self, host: &HostName, id: VmId) -> Result<&VirtualMachine> {
        let found = self.host(host)?.planned.get(&id);
        found
            .and_then(|key| self.systems.get(key))
            .ok_or_else(|| Error::not_found(format!("{host} has no planned system {id}")))
    }

    /// The VMs of a name, on every host.
    pub fn vms_named<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n VirtualMachine> {
        self.systems.values().filter(move |vm| {
            vm.realm == Realm::Realized && vm.settings.name.eq_ignore_ascii_case(name)
        })
    }

    /// The VM of a host that has a checkpoint.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn vm_of_checkpoint(&self, host: &HostName, id: CheckpointId) -> Result<&VirtualMachine> {
        self.vms_on(host)
            .chain(self.planned_on(host))
            .find(|vm| vm.checkpoints.contains_key(&id))
            .ok_or_else(|| Error::not_found(format!("{host} has no checkpoint {id}")))
    }

    /// A job of a host.
    ///
    /// # Errors
    /// `NotFound`: it never was, is gone, or is another host's.
    pub fn job(&self, host: &HostName, id: JobId) -> Result<&Job> {
        self.jobs
            .get(&id)
            .filter(|job| job.host == *host)
            .ok_or_else(|| Error::not_found(format!("{host} has no job {id}")))
    }

    /// Jobs of a host.
    pub fn jobs_on<'h>(&'h self, host: &'h HostName) -> impl Iterator<Item = &'h Job> {
        self.jobs.values().filter(move |job| job.host == *host)
    }

    /// Where a path of a host leads.
    ///
    /// # Errors
    /// `NotFound` for the host; as [`Storage::locate`].
    pub fn locate(&self, host: &HostName, path: &WindowsPath) -> Result<FilePlace> {
        let cluster = self.host(host)?.cluster.as_ref();
        self.storage.locate(host, cluster, path)
    }

    /// The file of this machine that a path of a host names, whether it is there or not.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub fn backing(&self, host: &HostName, path: &WindowsPath) -> Result<PathBuf> {
        let cluster = self.host(host)?.cluster.as_ref();
        self.storage.backing(host, cluster, path)
    }

    fn spot(&self, host: &HostName, path: &WindowsPath) -> Result<Spot> {
        Ok(Spot {
            place: self.locate(host, path)?,
            path: path.clone(),
            backing: self.backing(host, path)?,
        })
    }

    fn touch(&mut self) {
        self.revision += 1;
    }
}
