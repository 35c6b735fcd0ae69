//! The machine that is there now makes way for the restored one, and comes back when that fails.
//!
//! ```text
//!   off ─► tracking points of ours dropped ─► its configuration exported ─► taken out of its host
//!                                                       ▲                             │
//!                                                       └── on failure: imported again ┘      its role in a cluster stays
//! ```
//!
//! **Invariants.** Its configuration is exported before it is taken out: there is always one to bring it back from. Its images
//! stay where they are.

use host::CancelToken;
use host::boundary::StopMode;
use host::checkpoint::Presence;
use host::definition::{
    ExportRequest, ExportStorage, Identity, ImportRequest, NicConnection, SavedState,
};
use host::facts::{DiskSlot, PowerState, VmFacts};
use host::ids::{NodeName, TrackingPointRef};
use host::path::HostPath;

use super::{Job, VmRestorePlan, patiently};
use crate::job::Steps;
use crate::job::leftovers::committed_tracking;
use crate::{Error, ErrorKind, Result};

/// Takes the machine out. Its role in a cluster stays: it is of the id that comes back.
pub(super) fn take_out<'a>(
    job: &Job<'a>,
    plan: &VmRestorePlan,
    now: &VmFacts,
    steps: &mut Steps<'a>,
) -> Result<()> {
    let (host, cancel, vm) = (job.tools.host, job.tools.cancel, now.id);
    let clock = job.tools.clock;
    let shown = now.name.clone();
    if now.power != PowerState::Off {
        if now.power == PowerState::Running {
            steps.on_failure("turn off", &shown, move || {
                patiently(clock, || host.start(vm, &CancelToken::new()))
            });
        }
        steps.step("turn off", &shown, || {
            Ok(host.stop(vm, StopMode::TurnOff, cancel)?)
        })?;
    }
    steps.step("drop tracking", &shown, || {
        drop_tracking(job, now)?;
        host.watch_merge(vm, cancel)?;
        Ok(())
    })?;
    let undo = undo_folder(plan)?;
    steps.step("export", &shown, || {
        clear(job, &now.node, &undo)?;
        host.create_folder(&now.node, &undo)?;
        let request = ExportRequest {
            folder: undo.clone(),
            storage: ExportStorage::Leave,
        };
        Ok(host.export(vm, &request, cancel)?)
    })?;
    let exported = steps.step("find the export", &shown, || {
        configuration_below(job, &now.node, &undo)
    })?;
    let back = put_back(now, exported);
    let custody = job.tools.custody;
    // Registered before: when the answer is lost, it may be out all the same.
    steps.on_failure("take out", &shown, move || {
        let calm = CancelToken::new();
        patiently(clock, || match host.machine(vm, &calm) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == host::ErrorKind::NotFound => {
                host.import(&back, custody, &calm).map(drop)
            }
            Err(error) => Err(error),
        })
    });
    steps.step("take out", &shown, || {
        // A host keeps a machine whose disks are being merged.
        host.watch_merge(vm, cancel)?;
        Ok(host.unregister(vm, cancel)?)
    })
}

/// What an interrupted run has left where the export goes.
fn clear(job: &Job<'_>, node: &NodeName, folder: &HostPath) -> Result<()> {
    match remove_below(job, node, folder, 4) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How the machine comes back as it was.
fn put_back(now: &VmFacts, configuration: HostPath) -> ImportRequest {
    let disks: Vec<(DiskSlot, HostPath)> = now
        .disks
        .iter()
        .filter_map(|disk| Some((disk.slot?, disk.path()?.clone())))
        .collect();
    ImportRequest {
        node: now.node.clone(),
        configuration,
        identity: Identity::Keep,
        name: Some(now.name.clone()),
        disks,
        nics: NicConnection::AsStored,
        saved_state: SavedState::Drop,
    }
}

/// What tracking says about the disks that go is not true of those that come.
fn drop_tracking(job: &Job<'_>, now: &VmFacts) -> Result<()> {
    let committed = committed_tracking(job.tools.repository)?;
    for point in &now.tracking_points {
        let reference = TrackingPointRef {
            vm: now.id,
            point: point.id.clone(),
        };
        let is_ours =
            committed.needed.contains(&reference) || committed.outlived.contains(&reference);
        if is_ours {
            job.tools
                .host
                .drop_tracking(&reference, job.tools.custody, job.tools.cancel)?;
        }
    }
    Ok(())
}

/// Machines may share a folder: each has its own below it.
fn undo_folder(plan: &VmRestorePlan) -> Result<HostPath> {
    Ok(plan.folder.join(&format!("hikae-undo-{}", plan.vm))?)
}

/// The configuration in an export: `FOLDER\NAME\Virtual Machines\ID.vmcx`.
fn configuration_below(job: &Job<'_>, node: &NodeName, folder: &HostPath) -> Result<HostPath> {
    let host = job.tools.host;
    let mut found = None;
    for entry in host.list(node, folder)? {
        let below = folder.join(&entry.name)?.join("Virtual Machines")?;
        let files = match host.list(node, &below) {
            Ok(files) => files,
            Err(error) if error.kind() == host::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        for file in files {
            let path = below.join(&file.name)?;
            if matches!(path.extension().as_deref(), Some("vmcx" | "xml")) {
                found = Some(path);
            }
        }
    }
    found.ok_or_else(|| {
        let what = format!("the export in {folder} on {node} holds no configuration");
        Error::new(ErrorKind::HostFailed, what)
    })
}

/// The restored machine is there: what could have brought the old one back goes.
pub(super) fn forget_undo(job: &Job<'_>, plan: &VmRestorePlan, notes: &mut Vec<String>) {
    if plan.now.is_none() {
        return;
    }
    let removed = undo_folder(plan).and_then(|folder| remove_below(job, &plan.node, &folder, 4));
    if let Err(error) = removed {
        notes.push(format!(
            "the export of the machine that was replaced is left: {}",
            crate::transfer::explained(&error)
        ));
    }
}

/// Removes a folder that this job made, with what is in it.
fn remove_below(job: &Job<'_>, node: &NodeName, folder: &HostPath, depth: u32) -> Result<()> {
    let host = job.tools.host;
    for entry in host.list(node, folder)? {
        let path = folder.join(&entry.name)?;
        match entry.kind {
            host::boundary::EntryKind::Folder if depth > 0 => {
                remove_below(job, node, &path, depth.saturating_sub(1))?;
            }
            _ => {
                host.remove(node, &path)?;
            }
        }
    }
    match host.remove(node, folder)? {
        Presence::Removed | Presence::Absent => Ok(()),
    }
}
