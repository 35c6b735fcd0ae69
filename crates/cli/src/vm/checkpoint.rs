//! `hikae vm checkpoint …`: checkpoints of operators, made and deleted; those of backups are shown, and left to their makers.

use std::collections::BTreeMap;

use host::boundary::UserCheckpoints;
use host::checkpoint::{
    DeleteScope, MergeState, Released, UserCheckpoint, UserCheckpointKind, UserCheckpointRequest,
};
use host::facts::{CheckpointFacts, CheckpointKind, VmFacts};
use host::ids::{CheckpointId, CheckpointRef};
use serde::Serialize;

use super::Look;
use crate::args::{CheckpointKindArg, VmCheckpointVerb};
use crate::exit::{Exit, misused_flag, not_possible};
use crate::host::connect::failed;
use crate::output::{Output, Table};

/// Runs one verb.
pub fn run(verb: &VmCheckpointVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        VmCheckpointVerb::List { vm, place } => list(&Look::at(place)?, vm, output),
        VmCheckpointVerb::Create {
            vm,
            name,
            kind,
            place,
        } => create(&Look::at(place)?, (vm, name), *kind, output),
        VmCheckpointVerb::Drop { vm, id, place } => {
            super::drop::run(&Look::at(place)?, vm, id, output)
        }
        VmCheckpointVerb::Delete {
            vm,
            checkpoint,
            tree,
            place,
        } => {
            let scope = if *tree {
                DeleteScope::Tree
            } else {
                DeleteScope::One
            };
            delete(&Look::at(place)?, (vm, checkpoint), scope, output)
        }
    }
}

#[derive(Serialize)]
struct ListReport<'a> {
    machine: &'a str,
    checkpoints: &'a [CheckpointFacts],
}

fn list(look: &Look, vm: &str, output: &Output) -> anyhow::Result<Exit> {
    let machine = look.machine(vm)?;
    let report = ListReport {
        machine: &machine.name,
        checkpoints: &machine.checkpoints,
    };
    output.report(&report, |report| {
        if report.checkpoints.is_empty() {
            return format!("{} has no checkpoints.\n", report.machine);
        }
        tree(machine).to_string()
    })?;
    Ok(look.exit())
}

fn kind(kind: CheckpointKind) -> &'static str {
    match kind {
        CheckpointKind::User => "operator",
        CheckpointKind::Recovery => "backup",
        CheckpointKind::Replica => "replica",
        CheckpointKind::Other => "other",
    }
}

/// The checkpoints of a machine, each below the one that it is based on.
pub fn tree(machine: &VmFacts) -> Table {
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    let mut table = Table::new(&["checkpoint", "of", "made", "id"], &[]);
    for checkpoint in &machine.checkpoints {
        // Parents stand before children.
        let parent = checkpoint.parent.as_ref();
        let depth = parent
            .and_then(|it| depths.get(it.as_str()))
            .map_or(0, |it| it.saturating_add(1));
        depths.insert(checkpoint.id.as_str(), depth);
        let ours = match &checkpoint.mark {
            Some(_) => "backup (Hikae)",
            None => kind(checkpoint.kind),
        };
        table.row(vec![
            format!("{}{}", "  ".repeat(depth.min(20)), checkpoint.name),
            ours.to_owned(),
            checkpoint
                .created
                .map_or(String::new(), |it| it.to_string().replace('T', " ")),
            checkpoint.id.to_string(),
        ]);
    }
    table
}

fn create(
    look: &Look,
    (vm, name): (&str, &str),
    kind: CheckpointKindArg,
    output: &Output,
) -> anyhow::Result<Exit> {
    if name.trim().is_empty() || name.chars().count() > 100 {
        return Err(not_possible(
            "a checkpoint's name has 1 to 100 characters".to_owned(),
        ));
    }
    let request = UserCheckpointRequest {
        vm: look.machine(vm)?.id,
        name: name.to_owned(),
        kind: match kind {
            CheckpointKindArg::AsSet => UserCheckpointKind::AsSet,
            CheckpointKindArg::Standard => UserCheckpointKind::Standard,
            CheckpointKindArg::Production => UserCheckpointKind::Production,
        },
    };
    let estate = &look.estate;
    let made = estate.driver.create_checkpoint(&request, &estate.cancel);
    let made: UserCheckpoint = made.map_err(failed)?;
    output.report(&made, |made| {
        format!("{}: {} was made\n", made.name, made.reference.checkpoint)
    })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct DeleteReport {
    checkpoint: CheckpointId,
    name: String,
    #[serde(flatten)]
    released: Released,
}

fn delete(
    look: &Look,
    (vm, text): (&str, &str),
    scope: DeleteScope,
    output: &Output,
) -> anyhow::Result<Exit> {
    let machine = look.machine(vm)?;
    let is_it =
        |it: &&CheckpointFacts| it.name == text || it.id.as_str().eq_ignore_ascii_case(text);
    let found: Vec<&CheckpointFacts> = machine.checkpoints.iter().filter(is_it).collect();
    let checkpoint = match found.as_slice() {
        [checkpoint] => *checkpoint,
        [] => {
            return Err(misused_flag(format!(
                "{} has no checkpoint `{text}`",
                machine.name
            )));
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|it| it.id.as_str()).collect();
            return Err(not_possible(format!(
                "several checkpoints are called `{text}`; give the id: {}",
                ids.join(", ")
            )));
        }
    };
    if checkpoint.kind != CheckpointKind::User {
        let error = engine::Error::new(
            engine::ErrorKind::Refused,
            format!(
                "checkpoint {} of {} was made for a backup",
                checkpoint.id, machine.name
            ),
        );
        return Err(anyhow::Error::new(error.advised(
            "Leave it to the product that made it; a left-over that nobody needs goes with: hikae vm checkpoint drop VM ID",
        )));
    }
    let reference = CheckpointRef {
        vm: machine.id,
        checkpoint: checkpoint.id.clone(),
    };
    let estate = &look.estate;
    let released = estate
        .driver
        .delete_checkpoint(&reference, scope, &estate.cancel)
        .map_err(failed)?;
    let is_merged = released.merge == MergeState::Done;
    let report = DeleteReport {
        checkpoint: checkpoint.id.clone(),
        name: checkpoint.name.clone(),
        released,
    };
    output.report(&report, |report| {
        let merged = match report.released.merge {
            MergeState::Done => "its disks are merged",
            MergeState::Running => "its disks are still being merged",
            MergeState::Stalled => "the merge of its disks does not go on",
        };
        let mut text = format!("{} is deleted; {merged}\n", report.name);
        for warning in &report.released.warnings {
            text.push_str(&format!("warning: {}\n", warning.text));
        }
        text
    })?;
    Ok(if is_merged { Exit::Done } else { Exit::Found })
}
