//! `hikae vm restore`: a machine comes back over itself, onto a host, or as files.
//!
//! The JSON object is the job's report, with `seconds`; with `--dry-run` it is the plan.

use std::path::Path;
use std::time::Instant;

use engine::Progress;
use engine::job::restore_disk::Proof;
use engine::job::restore_vm::{
    AfterRestore, FolderReport, FolderRequest, IfRunning, RoleWish, VmRestorePlan, VmRestoreReport,
    VmRestoreRequest, VmRestoreTarget, VmRestoreTools, plan_restore_vm, restore_vm,
    restore_vm_to_folder,
};
use engine::job::{JobContext, NoJournal};
use host::custody::Custody;
use host::definition::{Identity, NicConnection, SavedState};
use host::ids::NodeName;
use host::path::HostPath;
use repo::{PointSelector, Repository};
use serde::Serialize;

use super::custody::Keeping;
use crate::args::{RestoreTo, VmRestoreArgs};
use crate::exit::{Exit, misused_flag};
use crate::host::connect::{self, Estate};
use crate::keys;
use crate::output::{Output, bytes, seconds};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct Timed<T> {
    #[serde(flatten)]
    report: T,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &VmRestoreArgs, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(&arguments.repo)?;
    let selector: PointSelector = arguments.selector.parse()?;
    match arguments.to {
        RestoreTo::Folder => to_folder(arguments, &repository, selector, output),
        RestoreTo::Host | RestoreTo::Original => to_host(arguments, &repository, selector, output),
    }
}

fn proof(arguments: &VmRestoreArgs) -> Proof {
    if arguments.no_proof {
        Proof::BeforeWriting
    } else {
        Proof::ReadBack
    }
}

fn to_folder(
    arguments: &VmRestoreArgs,
    repository: &Repository,
    selector: PointSelector,
    output: &Output,
) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let Some(folder) = arguments.folder.clone() else {
        return Err(misused_flag("--to folder needs --folder FOLDER"));
    };
    let ids = connect::ids()?;
    let request = FolderRequest {
        selector,
        folder,
        format: arguments.format.map(crate::image::format_of),
        proof: proof(arguments),
        ids: vdisk::vhdx::IdSource::new(move || ids()),
    };
    if arguments.dry_run {
        let point = repository.find_point(&request.selector)?.point;
        let labels: Vec<&str> = point.disks.iter().map(|it| it.label.as_str()).collect();
        output.report(&labels, |labels| {
            format!(
                "Would write {} into {}\n",
                labels.join(", "),
                request.folder.display()
            )
        })?;
        return Ok(Exit::Done);
    }
    let (bars, cancel) = (Bars::new(output), cancellation());
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = restore_vm_to_folder(repository, &request, context);
    bars.end();
    let report = Timed {
        report: result?,
        seconds: started.elapsed().as_secs_f64(),
    };
    output.report(&report, folder_text)?;
    Ok(Exit::Done)
}

fn folder_text(timed: &Timed<FolderReport>) -> String {
    let report = &timed.report;
    let mut text = format!(
        "{} ({}) restored into {} in {}\n",
        report.version,
        report.machine,
        report.folder.display(),
        seconds(timed.seconds)
    );
    for disk in &report.disks {
        text.push_str(&format!(
            "  {}  {} of disk, {} written{}\n",
            disk.plan.target.display(),
            bytes(disk.plan.length_bytes),
            bytes(disk.written_bytes),
            if disk.is_proved {
                ", read back and equal"
            } else {
                ""
            }
        ));
    }
    text.push_str(&format!(
        "  {} configuration files in configuration/; what the machine was: machine.json\n",
        report.configuration.len()
    ));
    for line in &report.not_protected {
        text.push_str(&format!("  NOT IN IT: {line}\n"));
    }
    text
}

fn target(arguments: &VmRestoreArgs) -> anyhow::Result<VmRestoreTarget> {
    if arguments.to == RestoreTo::Original {
        let running = if arguments.turn_off {
            IfRunning::TurnOff
        } else {
            IfRunning::Refuse
        };
        return Ok(VmRestoreTarget::Original { running });
    }
    let (Some(node), Some(folder)) = (&arguments.node, &arguments.folder) else {
        return Err(misused_flag(
            "--to host needs --node NODE and --folder FOLDER",
        ));
    };
    Ok(VmRestoreTarget::Host {
        node: NodeName::new(node)?,
        folder: windows_folder(folder)?,
        identity: if arguments.keep_id {
            Identity::Keep
        } else {
            Identity::New
        },
        name: arguments.rename.clone(),
        nics: match &arguments.switch {
            Some(switch) => NicConnection::Switch(switch.clone()),
            None => NicConnection::Disconnected,
        },
        role: if arguments.role {
            RoleWish::Make
        } else {
            RoleWish::None
        },
    })
}

fn windows_folder(path: &Path) -> anyhow::Result<HostPath> {
    let text = path.to_str().unwrap_or_default();
    Ok(HostPath::new(text)?)
}

fn to_host(
    arguments: &VmRestoreArgs,
    repository: &Repository,
    selector: PointSelector,
    output: &Output,
) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let target = target(arguments)?;
    let estate = Estate::open(&arguments.place)?;
    let ids = connect::ids()?;
    let request = VmRestoreRequest {
        selector,
        target,
        saved_state: SavedState::Drop,
        after: if arguments.start {
            AfterRestore::Start
        } else {
            AfterRestore::StayOff
        },
        proof: proof(arguments),
        workers: None,
        ids: vdisk::vhdx::IdSource::new(move || ids()),
    };
    let keeping = Keeping::of(repository)?;
    let job = keeping.job();
    let journal = keeping.journals.begin(job)?;
    let custody = Custody::new(journal.log(), keeping.owner.clone(), job);
    let tools = VmRestoreTools {
        host: &estate.driver,
        repository,
        custody: &custody,
        cancel: &estate.cancel,
        clock: &keeping.clock,
    };
    let plan = match plan_restore_vm(tools, &request) {
        Ok(plan) => plan,
        Err(error) => {
            drop(custody);
            journal.finish()?;
            return Err(error.into());
        }
    };
    if arguments.dry_run {
        drop(custody);
        journal.finish()?;
        output.report(&plan, |plan: &VmRestorePlan| format!("Would {plan}"))?;
        return Ok(Exit::Done);
    }
    let held = keeping.hold(plan.vm)?;
    let (bars, cancel) = (Bars::new(output), cancellation());
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = restore_vm(tools, &request, context);
    bars.end();
    drop(held);
    drop(custody);
    if journal.finish()? > 0 {
        bars.warn(
            "something of this restore may still be on a host; next: hikae vm leftovers --wait 300",
        );
    }
    let report = Timed {
        report: result?,
        seconds: started.elapsed().as_secs_f64(),
    };
    output.report(&report, host_text)?;
    Ok(if report.report.is_complete {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn host_text(timed: &Timed<VmRestoreReport>) -> String {
    let report = &timed.report;
    let plan = &report.plan;
    let mut text = format!(
        "{} restored as {} ({}) on {} in {}\n",
        plan.version,
        plan.machine,
        report.made,
        plan.node,
        seconds(timed.seconds)
    );
    for image in &plan.images {
        text.push_str(&format!("  {}  {}\n", image.slot, image.path));
    }
    text.push_str(&format!(
        "  {} written, every block checked before{}\n",
        bytes(report.written_bytes),
        if report.is_proved {
            ", read back and equal"
        } else {
            ""
        }
    ));
    if report.has_role {
        text.push_str("  highly available\n");
    }
    text.push_str(if report.is_started {
        "  it runs\n"
    } else {
        "  it is off\n"
    });
    for path in &report.kept {
        text.push_str(&format!(
            "  replaced and kept, remove it when you are sure: {path}\n"
        ));
    }
    for note in plan.notes.iter().chain(&report.notes) {
        text.push_str(&format!("  note: {note}\n"));
    }
    text
}
