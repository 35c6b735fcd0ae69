//! `hikae vm checkpoint drop`: what a backup left on a host goes because an operator says so, whoever made it.
//!
//! The custodian names this command where it may not decide itself. What is dropped becomes ours for as long as that takes: the
//! driver removes nothing that no journal speaks of.
//!
//! **Invariants.** Checkpoints of operators are refused: for them there is `checkpoint delete`. The id must be exact.

use std::sync::Arc;

use host::boundary::{Checkpoints, Definition};
use host::checkpoint::{MergeState, Presence, Released};
use host::custody::{Custody, HeldKind, MemoryLog};
use host::facts::CheckpointKind;
use host::ids::{CheckpointRef, JobId, NodeName, OwnerId, TrackingPointRef, VmId};
use host::{Clock, SystemClock};
use serde::Serialize;

use super::Look;
use crate::exit::{Exit, misused_flag};
use crate::host::connect::{self, failed};
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    kind: HeldKind,
    id: String,
    #[serde(flatten)]
    released: Released,
}

/// What an id is.
enum Found {
    Checkpoint(CheckpointRef, NodeName),
    TrackingPoint(TrackingPointRef, NodeName),
    Planned(VmId, NodeName),
}

/// Runs the verb.
pub fn run(look: &Look, vm: &str, id: &str, output: &Output) -> anyhow::Result<Exit> {
    let found = find(look, vm, id)?;
    let job = JobId::from_bytes(connect::ids()?());
    let custody = Custody::new(
        Arc::new(MemoryLog::default()),
        OwnerId::new("operator")?,
        job,
    );
    let now = SystemClock::new().now();
    let (driver, cancel) = (&look.estate.driver, &look.estate.cancel);
    let take = |kind: HeldKind, vm: VmId, node: &NodeName| {
        let entry = custody.intend(kind, vm, node, now, Vec::new())?;
        custody.made(entry, id)
    };
    let (kind, released) = match &found {
        Found::Checkpoint(reference, node) => {
            take(HeldKind::Checkpoint, reference.vm, node)?;
            let released = driver.release(reference, &custody, cancel);
            (HeldKind::Checkpoint, released)
        }
        Found::TrackingPoint(point, node) => {
            take(HeldKind::TrackingPoint, point.vm, node)?;
            let released = driver.drop_tracking(point, &custody, cancel);
            (HeldKind::TrackingPoint, released)
        }
        Found::Planned(planned, node) => {
            take(HeldKind::PlannedMachine, *planned, node)?;
            let released = driver.discard_planned(node, *planned, &custody, cancel);
            (HeldKind::PlannedMachine, released)
        }
    };
    let report = Report {
        kind,
        id: id.to_owned(),
        released: released.map_err(failed)?,
    };
    output.report(&report, text)?;
    Ok(match report.released.merge {
        MergeState::Done => Exit::Done,
        MergeState::Running | MergeState::Stalled => Exit::Found,
    })
}

fn find(look: &Look, vm: &str, id: &str) -> anyhow::Result<Found> {
    let machines = &look.report.machines;
    let wanted: Option<VmId> = vm.parse().ok();
    let is_it = |name: &str, of: VmId| Some(of) == wanted || name.eq_ignore_ascii_case(vm);
    for machine in machines.iter().filter(|it| is_it(&it.name, it.id)) {
        if let Some(checkpoint) = machine.checkpoints.iter().find(|it| it.id.as_str() == id) {
            if checkpoint.kind == CheckpointKind::User && checkpoint.mark.is_none() {
                let what = format!("{id} is a checkpoint of an operator");
                let error = engine::Error::new(engine::ErrorKind::Refused, what);
                let next = format!("Delete it: hikae vm checkpoint delete {vm} \"{id}\"");
                return Err(anyhow::Error::new(error.advised(next)));
            }
            let reference = CheckpointRef {
                vm: machine.id,
                checkpoint: checkpoint.id.clone(),
            };
            return Ok(Found::Checkpoint(reference, machine.node.clone()));
        }
        if let Some(point) = machine
            .tracking_points
            .iter()
            .find(|it| it.id.as_str() == id)
        {
            let point = TrackingPointRef {
                vm: machine.id,
                point: point.id.clone(),
            };
            return Ok(Found::TrackingPoint(point, machine.node.clone()));
        }
    }
    let mut silent = None;
    if let Ok(planned) = id.parse::<VmId>() {
        for node in look.estate.driver.nodes() {
            match look.estate.driver.planned(&node, &look.estate.cancel) {
                Ok(there) if there.contains(&planned) => {
                    return Ok(Found::Planned(planned, node));
                }
                Ok(_) => {}
                Err(error) => silent = Some(error),
            }
        }
    }
    if let Some(error) = silent {
        return Err(failed(error));
    }
    Err(misused_flag(format!(
        "nothing of a backup with the id {id} is on {vm}; see hikae vm show {vm}"
    )))
}

fn text(report: &Report) -> String {
    let merged = match report.released.merge {
        MergeState::Done => "",
        MergeState::Running => "; disks are still being merged",
        MergeState::Stalled => "; the merge of its disks does not go on",
    };
    let was = match report.released.was {
        Presence::Removed => "is removed",
        Presence::Absent => "was gone already",
    };
    let mut text = format!("{} {} {was}{merged}\n", report.kind.name(), report.id);
    for warning in &report.released.warnings {
        text.push_str(&format!("warning: {}\n", warning.text));
    }
    text
}
