//! Restore of a machine onto a host: in its original place, or as another one.
//!
//! ```text
//!   plan       version + what is there now ──► where each image goes, what is replaced, what stands against it
//!   execute    images beside their places (.hikae-new), proved ─► [the machine there now is taken out] ─► names changed
//!                  ─► configuration ─► import ─► [role] ─► [start] ─► report
//!              any failure: names back ─► [the machine is put back] ─► what was written is removed
//! ```
//!
//! Until every image is written and proved, nothing that is there is touched. What is replaced is not destroyed: it keeps lying
//! beside, under a name that says so, until an operator removes it.
//!
//! **Invariants.** Never two machines of one id. Change tracking of the machine that is replaced starts anew: its tracking
//! points go before its disks do, so that no later run believes what they say. Every block is hashed before it is written.

mod folder;
mod images;
mod replace;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use host::boundary::{Checkpoints, ClusterMembership, Definition, HostFiles, Inventory, Power};
use host::cluster::RoleSpec;
use host::custody::Custody;
use host::definition::{Identity, ImportRequest, NicConnection, SavedState};
use host::facts::{DiskSlot, PowerState, VmFacts};
use host::ids::{NodeName, VmId};
use host::path::HostPath;
use host::{CancelToken, Clock};
use repo::lease::LeaseKind;
use repo::{PointSelector, ReadSession, RecoveryPoint, Repository};
use serde::Serialize;
use vdisk::vhdx::IdSource;

pub use self::folder::{FolderReport, FolderRequest, restore_vm_to_folder};

use super::backup_vm::MachineRecord;
use super::restore_disk::Proof;
use super::{JobContext, Steps, protect};
use crate::{Error, ErrorKind, Result};

/// What this job needs of a driver.
pub trait RestoreHost:
    Inventory + Checkpoints + Power + Definition + ClusterMembership + HostFiles
{
}

impl<T> RestoreHost for T where
    T: Inventory + Checkpoints + Power + Definition + ClusterMembership + HostFiles + ?Sized
{
}

/// What becomes of the original when it is there and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IfRunning {
    /// Nothing is done.
    Refuse,
    /// It is turned off, as by pulling the plug: it is replaced anyway.
    TurnOff,
}

/// Where a machine goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmRestoreTarget {
    /// Over the machine itself, wherever it is now; in its old place when it is gone. With its own id, name and role.
    Original {
        /// What becomes of it when it runs.
        running: IfRunning,
    },
    /// Onto a host.
    Host {
        /// The node that is to run it.
        node: NodeName,
        /// Folder for its files; a folder of its name is made below it.
        folder: HostPath,
        /// Whether it keeps its id.
        identity: Identity,
        /// Another name.
        name: Option<String>,
        /// What its adapters are connected to.
        nics: NicConnection,
        /// Whether it becomes highly available.
        role: RoleWish,
    },
}

/// Whether a machine becomes highly available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleWish {
    /// It does.
    Make,
    /// It does not.
    None,
}

/// What happens to it when all is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterRestore {
    /// It stays off.
    StayOff,
    /// It is started.
    Start,
}

/// What is to be restored, and where to.
#[derive(Clone)]
pub struct VmRestoreRequest {
    /// The version.
    pub selector: PointSelector,
    /// Where it goes.
    pub target: VmRestoreTarget,
    /// Whether a stored memory is kept.
    pub saved_state: SavedState,
    /// What happens to it when all is done.
    pub after: AfterRestore,
    /// Whether written images are read again.
    pub proof: Proof,
    /// Threads; chosen when absent.
    pub workers: Option<usize>,
    /// Where new ids come from.
    pub ids: IdSource,
}

/// What a restore works with.
#[derive(Clone, Copy)]
pub struct VmRestoreTools<'a> {
    /// The driver.
    pub host: &'a dyn RestoreHost,
    /// The repository.
    pub repository: &'a Repository,
    /// The job's hand on the journal.
    pub custody: &'a Custody,
    /// Stops what is asked of hosts; to be set together with the context's own switch.
    pub cancel: &'a CancelToken,
    /// For pauses between tries.
    pub clock: &'a dyn Clock,
}

/// One image of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedImage {
    /// What the disk is called in the repository.
    pub label: String,
    /// Where it will be plugged in.
    pub slot: DiskSlot,
    /// Where its image goes.
    pub path: HostPath,
    /// Where it is written first.
    pub new: HostPath,
    /// Under which name what has the name now goes on lying there.
    pub replaced: HostPath,
    /// Length of the disk.
    pub length_bytes: u64,
}

/// What a restore onto a host will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmRestorePlan {
    /// The version, as NAME@SEQUENCE.
    pub version: String,
    /// The machine of the version.
    pub vm: VmId,
    /// Its name afterwards.
    pub machine: String,
    /// The node.
    pub node: NodeName,
    /// Folder of its configuration.
    pub folder: HostPath,
    /// Its images.
    pub images: Vec<PlannedImage>,
    /// Whether a machine is taken out for it.
    pub replaces: Option<String>,
    /// What an operator should know before.
    #[serde(rename = "notes_before")]
    pub notes: Vec<String>,
    #[serde(skip)]
    now: Option<Box<VmFacts>>,
    #[serde(skip)]
    record: Box<MachineRecord>,
}

impl fmt::Display for VmRestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "restore {} as machine {} on {}",
            self.version, self.machine, self.node
        )?;
        if let Some(replaces) = &self.replaces {
            writeln!(f, "  in place of {replaces}")?;
        }
        for image in &self.images {
            writeln!(
                f,
                "  {}  {}  {} bytes",
                image.slot, image.path, image.length_bytes
            )?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

/// What a restore onto a host did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmRestoreReport {
    /// What was done.
    #[serde(flatten)]
    pub plan: VmRestorePlan,
    /// Id of the machine that was made.
    pub made: VmId,
    /// Bytes of the version written into images.
    pub written_bytes: u64,
    /// Whether each image was read again and compared with the version's tree.
    pub is_proved: bool,
    /// Whether it has a role in the cluster.
    pub has_role: bool,
    /// Whether all was done that was asked for: role and start too.
    pub is_complete: bool,
    /// Whether it runs.
    pub is_started: bool,
    /// Files that were replaced and lie there still.
    pub kept: Vec<HostPath>,
    /// What differs from the version, and what is left to do.
    pub notes: Vec<String>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Works out what a restore onto a host would do; looks, and changes nothing.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such version, [`ErrorKind::Refused`] when what is there stands against it,
/// [`ErrorKind::Unsupported`] when the version is not of a machine.
pub fn plan_restore_vm(
    tools: VmRestoreTools<'_>,
    request: &VmRestoreRequest,
) -> Result<VmRestorePlan> {
    let point = tools.repository.find_point(&request.selector)?.point;
    plan_on(tools, request, &point)
}

fn plan_on(
    tools: VmRestoreTools<'_>,
    request: &VmRestoreRequest,
    point: &RecoveryPoint,
) -> Result<VmRestorePlan> {
    let record = record_of(point)?;
    let now = match tools.host.machine(record.vm, tools.cancel) {
        Ok(now) => Some(Box::new(now)),
        Err(error) if error.kind() == host::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let mut plan = VmRestorePlan {
        version: format!("{}@{}", point.name, point.sequence),
        vm: record.vm,
        machine: record.name.clone(),
        node: record.node.clone(),
        folder: HostPath::new("C:\\")?,
        images: Vec::new(),
        replaces: None,
        notes: record.not_protected.clone(),
        now: None,
        record: Box::new(record),
    };
    match &request.target {
        VmRestoreTarget::Original { running } => original(&mut plan, now, *running)?,
        VmRestoreTarget::Host {
            node,
            folder,
            identity,
            name,
            ..
        } => {
            if let (Identity::Keep, Some(now)) = (identity, &now) {
                let what = format!("machine {} is on {} already", plan.vm, now.node);
                return Err(Error::new(ErrorKind::Refused, what).advised(
                    "Leave --keep-id away for a copy beside it, or restore over it: --to original",
                ));
            }
            plan.node = node.clone();
            plan.machine = name.clone().unwrap_or_else(|| plan.machine.clone());
            plan.folder = folder.join(&file_safe(&plan.machine))?;
        }
    }
    plan_images(
        &mut plan,
        point,
        matches!(request.target, VmRestoreTarget::Host { .. }),
    )?;
    find_free_names(tools, &mut plan)?;
    if plan.record.needs_key_protector {
        plan.notes.push(
            "the machine has a virtual TPM or is shielded: without its key protector it starts on no other host".to_owned(),
        );
    }
    check_paths(&plan)?;
    Ok(plan)
}

fn record_of(point: &RecoveryPoint) -> Result<MachineRecord> {
    MachineRecord::of_point(point)?.ok_or_else(|| {
        let what = format!("{}@{} is of a disk image", point.name, point.sequence);
        Error::new(ErrorKind::Unsupported, what)
            .advised("Bring the disk back: hikae disk restore NAME@VERSION FILE")
    })
}

/// Fills in where the original goes.
fn original(plan: &mut VmRestorePlan, now: Option<Box<VmFacts>>, running: IfRunning) -> Result<()> {
    let record = &plan.record;
    let Some(now) = now else {
        let root = record.root.clone().or_else(|| {
            let first = record.disks.first()?;
            first.home.folder()
        });
        plan.folder = root.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "nobody knows where the machine's files lay",
            )
            .advised("Say where: --to host --node NODE --folder FOLDER")
        })?;
        plan.notes
            .push("the machine is gone: it is made again with its id".to_owned());
        return Ok(());
    };
    if let Some(checkpoint) = now.user_checkpoints().next() {
        let what = format!(
            "{} has checkpoints (\"{}\"), which would be lost",
            now.name, checkpoint.name
        );
        return Err(Error::new(ErrorKind::Refused, what).advised(
            "Delete or export them first: hikae vm checkpoint list VM; or restore beside it: --to host",
        ));
    }
    match now.power {
        PowerState::Off => {}
        PowerState::Running | PowerState::Paused | PowerState::Saved
            if running == IfRunning::TurnOff => {}
        state => {
            let what = format!("{} is {state}", now.name);
            return Err(Error::new(ErrorKind::Refused, what)
                .advised("Shut it down first, or let it be turned off: --turn-off"));
        }
    }
    plan.node = now.node.clone();
    let root = now.files.root.clone().or_else(|| plan.record.root.clone());
    plan.folder = root.ok_or_else(|| {
        Error::new(
            ErrorKind::HostFailed,
            "the host does not tell where the machine's files lie",
        )
    })?;
    plan.replaces = Some(format!("{} ({}, {})", now.name, now.id, now.power));
    plan.now = Some(now);
    Ok(())
}

fn plan_images(plan: &mut VmRestorePlan, point: &RecoveryPoint, is_elsewhere: bool) -> Result<()> {
    let tag = point.point.to_string().chars().take(8).collect::<String>();
    for disk in &point.disks {
        let record = plan.record.disk(&disk.label).ok_or_else(|| {
            let what = format!("nobody knows where {} was plugged in", disk.label);
            Error::new(ErrorKind::Unsupported, what)
        })?;
        let path = if is_elsewhere {
            let name = record.home.file_name();
            let is_taken = plan.images.iter().any(|it| it.path.file_name() == name);
            let name = match is_taken {
                true => format!("{}-{name}", disk.label),
                false => name.to_owned(),
            };
            plan.folder.join(&format!("Virtual Hard Disks\\{name}"))?
        } else {
            // Where the disk at that slot is now, when the machine is there.
            let now = plan.now.as_ref().and_then(|now| {
                let disk = now.disks.iter().find(|it| it.slot == Some(record.slot));
                disk.and_then(|disk| disk.path()).cloned()
            });
            now.unwrap_or_else(|| record.home.clone())
        };
        plan.images.push(PlannedImage {
            label: disk.label.clone(),
            slot: record.slot,
            new: HostPath::new(format!("{path}.hikae-new-{tag}"))?,
            replaced: HostPath::new(format!("{path}.before-{tag}"))?,
            path,
            length_bytes: disk.length_bytes,
        });
    }
    Ok(())
}

/// What was replaced before goes on lying there too: each time has a name of its own.
fn find_free_names(tools: VmRestoreTools<'_>, plan: &mut VmRestorePlan) -> Result<()> {
    const MOST: u32 = 1000;
    for image in &mut plan.images {
        let first = image.replaced.clone();
        for number in 2..MOST {
            let found = tools.host.size_bytes(&plan.node, &image.replaced);
            // A folder that is not there yet holds nothing.
            if !matches!(found, Ok(Some(_))) {
                break;
            }
            image.replaced = HostPath::new(format!("{first}-{number}"))?;
        }
    }
    Ok(())
}

/// Tries again and again what must not stay undone, while a line may be cut: for about a minute.
fn patiently<T>(clock: &dyn Clock, mut act: impl FnMut() -> host::Result<T>) -> Result<T> {
    const TRIES: u32 = 6;
    let mut pause = std::time::Duration::from_secs(1);
    let mut tried = 1;
    loop {
        match act() {
            Ok(done) => return Ok(done),
            Err(error)
                if tried < TRIES
                    && matches!(
                        error.kind(),
                        host::ErrorKind::Unreachable
                            | host::ErrorKind::TimedOut
                            | host::ErrorKind::Io
                            | host::ErrorKind::Busy
                    ) => {}
            Err(error) => return Err(error.into()),
        }
        clock.pause(pause, &CancelToken::new());
        pause = pause.saturating_mul(2);
        tried = tried.saturating_add(1);
    }
}

/// A display name as a folder's name.
fn file_safe(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| {
            if "<>:\"/\\|?*".contains(c) || c.is_control() {
                '_'
            } else {
                c
            }
        })
        .collect();
    let safe = safe.trim_matches(['.', ' ']);
    if safe.is_empty() {
        "machine".to_owned()
    } else {
        safe.to_owned()
    }
}

/// Names that Windows would not take are refused before anything is written.
fn check_paths(plan: &VmRestorePlan) -> Result<()> {
    for image in &plan.images {
        for path in [&image.new, &image.replaced] {
            path.check_new()?;
        }
    }
    Ok(())
}

/// Restores a machine onto a host.
///
/// # Errors
/// As [`plan_restore_vm`]; what host and repository answer. After an error what was there is as it was, or the error and the
/// warnings say what is not.
pub fn restore_vm(
    tools: VmRestoreTools<'_>,
    request: &VmRestoreRequest,
    context: JobContext<'_>,
) -> Result<VmRestoreReport> {
    let clock = tools.repository.environment().clock.clone();
    let started_ms = clock.monotonic_ms();
    let point = tools.repository.find_point(&request.selector)?.point;
    let plan = plan_on(tools, request, &point)?;
    let session = protect(tools.repository, LeaseKind::Restore, &[&point], context)?;
    let mut steps = Steps::new(context, format!("restore of {}", plan.version));
    let job = Job {
        tools,
        request,
        context,
        point: &point,
        session: &session,
    };
    let result = job.run(plan, &mut steps);
    let mut report = steps.finish(result)?;
    if let Some(session) = Arc::into_inner(session) {
        session.finish()?;
    }
    report.elapsed_ms = clock.monotonic_ms().saturating_sub(started_ms);
    Ok(report)
}

struct Job<'a> {
    tools: VmRestoreTools<'a>,
    request: &'a VmRestoreRequest,
    context: JobContext<'a>,
    point: &'a RecoveryPoint,
    session: &'a Arc<ReadSession>,
}

impl<'a> Job<'a> {
    fn run(&self, plan: VmRestorePlan, steps: &mut Steps<'a>) -> Result<VmRestoreReport> {
        let written = images::write_all(self, &plan, steps)?;
        let mut notes = Vec::new();
        if let Some(now) = &plan.now {
            replace::take_out(self, &plan, now, steps)?;
        }
        let kept = images::take_places(self, &plan, steps)?;
        let configuration = images::put_configuration(self, &plan, steps)?;
        let defined = steps.step("import", plan.machine.as_str(), || {
            let request = self.import_request(&plan, &configuration);
            let (custody, cancel) = (self.tools.custody, self.tools.cancel);
            Ok(self.tools.host.import(&request, custody, cancel)?)
        })?;
        // From here on the machine is whole: what fails is told, and not taken back.
        notes.extend(defined.notes.iter().cloned());
        images::remove_configuration(self, &plan.node, &configuration, &mut notes);
        replace::forget_undo(self, &plan, &mut notes);
        let has_role = self.make_role(&plan, defined.vm, &mut notes);
        let is_started = self.start(defined.vm, &mut notes);
        let lacks_role = self.wants_role(&plan) && !has_role;
        let lacks_start = self.request.after == AfterRestore::Start && !is_started;
        Ok(VmRestoreReport {
            made: defined.vm,
            written_bytes: written,
            is_proved: self.request.proof == Proof::ReadBack,
            has_role,
            is_complete: !lacks_role && !lacks_start,
            is_started,
            kept,
            notes,
            elapsed_ms: 0,
            plan,
        })
    }

    fn import_request(&self, plan: &VmRestorePlan, files: &[HostPath]) -> ImportRequest {
        let (identity, name, nics) = match &self.request.target {
            VmRestoreTarget::Original { .. } => (
                Identity::Keep,
                Some(plan.machine.clone()),
                NicConnection::AsStored,
            ),
            VmRestoreTarget::Host { identity, nics, .. } => {
                (*identity, Some(plan.machine.clone()), nics.clone())
            }
        };
        let is_configuration =
            |path: &&HostPath| matches!(path.extension().as_deref(), Some("vmcx" | "xml"));
        ImportRequest {
            node: plan.node.clone(),
            configuration: files
                .iter()
                .find(is_configuration)
                .unwrap_or(&plan.folder)
                .clone(),
            identity,
            name,
            disks: plan
                .images
                .iter()
                .map(|image| (image.slot, image.path.clone()))
                .collect(),
            nics,
            saved_state: self.request.saved_state,
        }
    }

    fn wants_role(&self, plan: &VmRestorePlan) -> bool {
        match &self.request.target {
            VmRestoreTarget::Original { .. } => plan.record.role.is_some(),
            VmRestoreTarget::Host { role, .. } => *role == RoleWish::Make,
        }
    }

    fn make_role(&self, plan: &VmRestorePlan, vm: VmId, notes: &mut Vec<String>) -> bool {
        if !self.wants_role(plan) {
            return false;
        }
        let spec = RoleSpec {
            possible_owners: Vec::new(),
            priority: plan.record.role.as_ref().and_then(|role| role.priority),
        };
        match self.tools.host.add_role(vm, &spec, self.tools.cancel) {
            Ok(()) => true,
            Err(error) => {
                let text = crate::transfer::explained(&error.into());
                notes.push(format!(
                    "it has no role in the cluster: {text}. Next, on {}: Add-ClusterVirtualMachineRole -VMId {vm}",
                    plan.node
                ));
                false
            }
        }
    }

    fn start(&self, vm: VmId, notes: &mut Vec<String>) -> bool {
        if self.request.after == AfterRestore::StayOff {
            return false;
        }
        match self.tools.host.start(vm, self.tools.cancel) {
            Ok(()) => true,
            Err(error) => {
                let text = crate::transfer::explained(&error.into());
                notes.push(format!("it could not be started: {text}"));
                false
            }
        }
    }
}

/// A folder of this system for a restored machine.
pub(super) fn new_folder(path: &PathBuf) -> Result<()> {
    let failed = |verb: &str, error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("{verb} {}", path.display())).caused_by(error)
    };
    std::fs::create_dir_all(path).map_err(|error| failed("making", error))?;
    let mut entries = std::fs::read_dir(path).map_err(|error| failed("listing", error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            let what = format!("{} is not empty", path.display());
            Err(Error::new(ErrorKind::AlreadyExists, what))
        }
    }
}
