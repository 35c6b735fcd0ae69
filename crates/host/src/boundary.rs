//! The traits of a place where machines run. Each driver implements what its place can do; the conformance suite holds it to this.
//!
//! **Every method.** A driver **must** follow a machine by its id to the node where it lives by then, tell a move as a fact
//! of its answer, end within bounded time and memory whatever the host answers, and stop soon after `cancel` says so. It **may
//! rely on** nothing that a host, guest or file says about lengths, counts and states: everything is checked. It must
//! **never** touch what it cannot prove to be ours, never take localized text for a fact, never leave a guest paused, frozen or
//! saved because of an error, and never tell a failure of one machine as a failure of its neighbours.
//!
//! | trait | Hyper-V | KVM (QEMU, QMP) |
//! |---|---|---|
//! | [`Inventory`] | CIM queries, some twenty for each node | `query-*`, domain XML |
//! | [`Checkpoints`] | recovery checkpoint → reference point | freeze, `transaction` of bitmap and fleecing overlay, thaw |
//! | [`DiskReads`] | frozen VHDX chain over SMB3 or locally | NBD export of the overlay |
//! | [`HostFiles`] | SMB3 or locally | locally |
//! | [`UserCheckpoints`] | `Msvm_VirtualSystemSnapshotService` | internal or external snapshots |
//! | [`Power`] | `RequestStateChange` | `stop`, `cont`, `migrate exec:`, `-incoming` |
//! | [`Definition`] | `ImportSystemDefinition`, `DefineSystem` | domain XML |
//! | [`Mobility`] | migration service, cluster groups | `migrate` |
//! | [`ClusterMembership`] | `root/MSCluster` | – (absent) |

use std::sync::Arc;

use block::{ReadAt, WriteAt};
use serde::Serialize;

use crate::Result;
use crate::checkpoint::{
    Changes, Checkpoint, CheckpointRequest, ConfigurationFile, DeleteScope, FrozenDisk, MergeState,
    Presence, Released, Settled, UserCheckpoint, UserCheckpointRequest,
};
use crate::clock::CancelToken;
use crate::cluster::{ClusterFacts, MigrationRequest, Move, RoleSpec, RoleTarget};
use crate::custody::{Custody, MachineMark};
use crate::definition::{Defined, ExportRequest, ImportRequest, MachineSpec};
use crate::facts::{InventoryReport, Location, PowerState, VmFacts};
use crate::ids::{CheckpointRef, NodeName, TrackingPointRef, TrackingToken, VmId};
use crate::path::HostPath;

/// What is there.
pub trait Inventory: Send + Sync {
    /// Every machine on every node.
    ///
    /// **Must** ask each node a number of times that does not depend on how many machines it has; tell a node that does not
    /// answer in [`InventoryReport::problems`] and go on; tell each machine once, on the node where it is realized.
    /// **May rely on** machines moving while it looks: one that is seen twice is told where its cluster says it is.
    /// **Never** fails because of one node, one machine or one odd value.
    fn inventory(&self, cancel: &CancelToken) -> Result<InventoryReport>;

    /// One machine, where it is now.
    ///
    /// **Must** look on every node before it says [`crate::ErrorKind::NotFound`], and say
    /// [`crate::ErrorKind::Unreachable`] when a node that may run it did not answer.
    fn machine(&self, vm: VmId, cancel: &CancelToken) -> Result<VmFacts>;

    /// Where a machine is now. As [`Inventory::machine`], without the facts.
    fn locate(&self, vm: VmId, cancel: &CancelToken) -> Result<Location>;
}

/// Checkpoints for backups, with everything that must not be left behind.
pub trait Checkpoints: Send + Sync {
    /// Makes a checkpoint of the level that is wanted, or the next one that the policy allows.
    ///
    /// **Must** write what it is about to make into the journal of `custody` before it asks the host, with what was there
    /// before; mark what it made with the job; have started again, or handed to the custodian, whatever it saved. When it
    /// returns an error, nothing is left, or the journal says what is. **May rely on** the journal being durable when its calls
    /// return. **Never** makes a checkpoint when the journal could not be written, never takes a level that the policy does
    /// not name, and never waits for a busy machine longer than its own bound.
    fn create(
        &self,
        request: &CheckpointRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Checkpoint>;

    /// The checkpoint as it is now: the machine may live elsewhere, and the disks under other paths.
    ///
    /// **Must** say [`crate::ErrorKind::NotFound`] when the machine is there and the checkpoint is not.
    fn open(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Result<Checkpoint>;

    /// What changed on a frozen disk since the version that `since` belongs to.
    ///
    /// **Must** name at least everything that changed, or say [`Changes::Lost`]: with a token of another disk, another size,
    /// another tracker, or one that the host does not know any more. **Never** answers less than the truth knowingly, and
    /// never fails where reading the whole disk would do.
    fn changed_ranges(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        since: &TrackingToken,
        cancel: &CancelToken,
    ) -> Result<Changes>;

    /// Turns a checkpoint that was read into a point from which changes are tracked. The checkpoint is gone afterwards.
    ///
    /// **Must** journal the point before it exists. Where the host cannot track, it releases the checkpoint and says so by
    /// `point: None`. **Never** destroys an older point: that is for after the commit.
    fn settle(
        &self,
        checkpoint: &Checkpoint,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Settled>;

    /// Destroys a checkpoint of ours and lets the disks merge.
    ///
    /// **Must** do nothing, successfully, when it is gone; switch merging on again where it finds it suspended, before; take
    /// it out of the journal only when it is seen to be gone.
    fn release(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released>;

    /// Destroys a tracking point of ours that no committed version needs any more. As [`Checkpoints::release`].
    fn drop_tracking(
        &self,
        point: &TrackingPointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released>;

    /// Marks a version's tracking point as kept: it belongs to a committed version and is no left-over from now on.
    fn keep_tracking(&self, point: &TrackingPointRef, custody: &Custody) -> Result<()>;

    /// Takes a mark of ours beside a machine away. **Must** succeed when it is gone.
    fn unmark(&self, vm: VmId, mark: &MachineMark, cancel: &CancelToken) -> Result<()>;

    /// Ends a freeze of the guest's file systems that a job left behind.
    ///
    /// **Must** do nothing, successfully, when nothing is frozen. Where the host itself freezes and thaws, nothing ever is.
    fn thaw(&self, vm: VmId, cancel: &CancelToken) -> Result<Presence> {
        let _ = (vm, cancel);
        Ok(Presence::Absent)
    }

    /// How far the machine's disks are merged, watched until they are or until `cancel`, in bounded time.
    fn watch_merge(&self, vm: VmId, cancel: &CancelToken) -> Result<MergeState>;

    /// Bytes that the difference files of a checkpoint hold; `None` where the host does not tell.
    ///
    /// **Never** changes anything: it is asked about checkpoints of others too.
    fn checkpoint_size(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Option<u64>;
}

/// One range of a batch.
#[derive(Debug)]
pub struct RangeRead<'a> {
    /// First byte on the disk.
    pub offset: u64,
    /// Filled whole.
    pub buffer: &'a mut [u8],
}

/// A disk readable by position, and in batches that a network can keep under way together.
///
/// **Must** answer like [`ReadAt`]; a batch is as good as its reads one after the other, in any order. **Never** reads
/// what the checkpoint does not freeze.
pub trait BatchRead: ReadAt {
    /// Fills every buffer, or fails. What was filled before a failure is not told.
    fn read_batch(&self, reads: &mut [RangeRead<'_>]) -> block::Result<()> {
        for read in reads {
            self.read_at(read.offset, read.buffer)?;
        }
        Ok(())
    }

    /// The shape of the image that the disk was made as (the last of its chain); `None` where there is no image.
    fn shape(&self) -> Option<vdisk::ImageInfo> {
        None
    }

    /// Where the image lies that the disk was made as (the last of its chain); `None` where there is no image.
    fn home(&self) -> Option<HostPath> {
        None
    }
}

/// Bytes of frozen disks and configuration files.
pub trait DiskReads: Send + Sync {
    /// Opens a frozen disk where its machine lives now.
    ///
    /// **Must** follow the chain that the frozen image names, and refuse a chain whose parents do not fit. **May rely on**
    /// the files not changing while the checkpoint exists, and on nothing after it was settled or released.
    fn open_disk(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        cancel: &CancelToken,
    ) -> Result<Arc<dyn BatchRead>>;

    /// Reads a configuration file whole; files beyond 64 MiB are refused unless they are memory of a saved state, which
    /// is read by [`DiskReads::open_configuration`].
    fn read_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        cancel: &CancelToken,
    ) -> Result<Vec<u8>>;

    /// Opens a configuration file of any size.
    fn open_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        cancel: &CancelToken,
    ) -> Result<Arc<dyn ReadAt>>;
}

/// A file of a host that is open for writing: made by [`HostFiles::create_file`] or opened by
/// [`HostFiles::open_file_for_update`].
///
/// **Must** take reads and writes at any position from several threads at once; grow when written behind its end, the gap
/// reading as zeros; take [`WriteAt::set_size`]; and have bytes, size and the file's name durable on the host when
/// [`WriteAt::flush`] has returned. **May rely on** nobody else writing the file. **Never** fills up a hole of its own accord where the
/// place has holes, and never hides a lost connection behind success: what was not flushed by then is an error of a later
/// call at the latest, and of every call after it.
pub trait HostFileWriter: WriteAt {}

/// What a folder has an entry for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// Something else: a link, a device.
    Other,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FolderEntry {
    /// Its name, without the folder's.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// Most entries that [`HostFiles::list`] tells.
pub const LIST_MOST: usize = 10_000;

/// Files on nodes, for writing: where restored disks and configuration go.
///
/// **Every method must** find names as the host would (without case on Windows), refuse a path that climbs (`..`) or leaves what
/// the way to the files was given ([`crate::ErrorKind::Invalid`], [`crate::ErrorKind::Refused`]) also by links, and say
/// [`crate::ErrorKind::Unsupported`] where no way leads. **May rely on** nobody changing the folders that it makes meanwhile.
/// **Never** replaces or shortens what is there without being asked to.
pub trait HostFiles: Send + Sync {
    /// Makes a folder and those above it. Fine when it is there.
    ///
    /// **Must** refuse names that the host's file system does not take ([`crate::ErrorKind::Invalid`]), and a file that has the
    /// name ([`crate::ErrorKind::AlreadyExists`]).
    fn create_folder(&self, node: &NodeName, folder: &HostPath) -> Result<()>;

    /// Makes an empty file and opens it. The folder must be there.
    ///
    /// **Must** say [`crate::ErrorKind::AlreadyExists`] when anything has the name, in any case, and decide that together with making
    /// the file: of two callers one succeeds.
    fn create_file(&self, node: &NodeName, path: &HostPath) -> Result<Arc<dyn HostFileWriter>>;

    /// Opens a file that is there, to go on writing it. **Must** say [`crate::ErrorKind::NotFound`] when it is not.
    fn open_file_for_update(
        &self,
        node: &NodeName,
        path: &HostPath,
    ) -> Result<Arc<dyn HostFileWriter>>;

    /// Gives a file another name on the same volume. Durable when it returns, where the host can say so.
    ///
    /// **Must** say [`crate::ErrorKind::AlreadyExists`] when anything has that name. **Never** replaces it, also not one
    /// that somebody makes at the same moment.
    fn rename(&self, node: &NodeName, from: &HostPath, to: &HostPath) -> Result<()>;

    /// Removes a file, or a folder that is empty. Absent is success. **Never** removes what a folder holds.
    fn remove(&self, node: &NodeName, path: &HostPath) -> Result<Presence>;

    /// Bytes of a file; `None` when no file has the name.
    fn size_bytes(&self, node: &NodeName, path: &HostPath) -> Result<Option<u64>>;

    /// What a folder holds, by name. **Must** say [`crate::ErrorKind::NotFound`] when it is not there, and fail with
    /// [`crate::ErrorKind::Failed`] rather than tell a part of more than [`LIST_MOST`] entries.
    fn list(&self, node: &NodeName, folder: &HostPath) -> Result<Vec<FolderEntry>>;

    /// Bytes that may still be written where a folder lies; `None` where the host does not tell.
    fn free_bytes(&self, node: &NodeName, folder: &HostPath) -> Result<Option<u64>>;
}

/// Checkpoints of operators.
pub trait UserCheckpoints: Send + Sync {
    /// Makes one.
    fn create_checkpoint(
        &self,
        request: &UserCheckpointRequest,
        cancel: &CancelToken,
    ) -> Result<UserCheckpoint>;

    /// Takes the machine back to one. **Must** refuse with [`crate::ErrorKind::State`] while the machine runs.
    fn apply_checkpoint(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Result<()>;

    /// Gives one another name.
    fn rename_checkpoint(
        &self,
        reference: &CheckpointRef,
        name: &str,
        cancel: &CancelToken,
    ) -> Result<()>;

    /// Writes one as a machine of its own into a folder on the host.
    fn export_checkpoint(
        &self,
        reference: &CheckpointRef,
        request: &ExportRequest,
        cancel: &CancelToken,
    ) -> Result<()>;

    /// Deletes one, or it and all that is based on it, and watches the merge to its end.
    fn delete_checkpoint(
        &self,
        reference: &CheckpointRef,
        scope: DeleteScope,
        cancel: &CancelToken,
    ) -> Result<Released>;
}

/// How a machine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopMode {
    /// The guest shuts down.
    Shutdown,
    /// As pulling the plug.
    TurnOff,
    /// Memory goes into files.
    Save,
    /// Memory stays, nothing runs.
    Pause,
}

/// Starting and stopping. A state that is reached already is success.
pub trait Power: Send + Sync {
    /// What a machine is doing.
    fn power_state(&self, vm: VmId, cancel: &CancelToken) -> Result<PowerState>;

    /// Starts it, also out of a saved or paused state, and waits until it runs.
    fn start(&self, vm: VmId, cancel: &CancelToken) -> Result<()>;

    /// Stops it, and waits until it stands.
    ///
    /// **Never** turns off when asked to shut down: a guest that does not is [`crate::ErrorKind::TimedOut`].
    fn stop(&self, vm: VmId, mode: StopMode, cancel: &CancelToken) -> Result<()>;
}

/// Making and unmaking machines.
pub trait Definition: Send + Sync {
    /// Registers a machine from stored configuration.
    ///
    /// **Must** leave nothing when it fails, and journal what exists only halfway. **Never** makes a second machine of an
    /// id that exists on that host or in its cluster: that is [`crate::ErrorKind::Refused`].
    fn import(
        &self,
        request: &ImportRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined>;

    /// Makes a machine from a description. As [`Definition::import`].
    fn define(
        &self,
        node: &NodeName,
        spec: &MachineSpec,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined>;

    /// Machines that exist halfway on a node.
    fn planned(&self, node: &NodeName, cancel: &CancelToken) -> Result<Vec<VmId>>;

    /// Takes away a machine that exists halfway. As [`Checkpoints::release`].
    fn discard_planned(
        &self,
        node: &NodeName,
        vm: VmId,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released>;

    /// Takes a machine out of its host. Its disks' images stay. **Must** refuse with [`crate::ErrorKind::State`] while it runs.
    fn unregister(&self, vm: VmId, cancel: &CancelToken) -> Result<()>;

    /// Writes a machine into a folder on its host.
    fn export(&self, vm: VmId, request: &ExportRequest, cancel: &CancelToken) -> Result<()>;
}

/// Machines on the move.
pub trait Mobility: Send + Sync {
    /// Who is elsewhere than `known` says. Cheap: one question for each node or cluster.
    fn moves(&self, known: &[(VmId, NodeName)], cancel: &CancelToken) -> Result<Vec<Move>>;

    /// Migrates, and waits for the end.
    fn migrate(&self, request: &MigrationRequest, cancel: &CancelToken) -> Result<Location>;
}

/// Failover clusters.
pub trait ClusterMembership: Send + Sync {
    /// The clusters of all nodes. Empty where there is none.
    fn clusters(&self, cancel: &CancelToken) -> Result<Vec<ClusterFacts>>;

    /// Makes a machine highly available on the cluster of its node.
    fn add_role(&self, vm: VmId, spec: &RoleSpec, cancel: &CancelToken) -> Result<()>;

    /// Takes a machine's role away; the machine stays.
    fn remove_role(&self, vm: VmId, cancel: &CancelToken) -> Result<()>;

    /// Takes a role online or offline, and waits.
    fn set_role(&self, vm: VmId, target: RoleTarget, cancel: &CancelToken) -> Result<()>;
}
