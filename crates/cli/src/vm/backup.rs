//! `hikae vm backup`: machines become recovery points, each by itself: what happens to one does not concern the next.
//!
//! ```text
//!   one look ─► what dead jobs left is removed ─► machine by machine (so many at once, within limits): job ─► point
//! ```
//!
//! The JSON object has `machines` (a report for each that was backed up), `failed` (machine and problem), `leftovers` (what was
//! found of earlier runs) and `seconds`; with `--dry-run` it has `plans`.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use block::sync::Unreadable;
use engine::job::backup_vm::{
    VmBackupPlan, VmBackupReport, VmBackupRequest, VmBackupTools, backup_vm, newest_point,
    plan_backup_vm,
};
use engine::job::{JobContext, NoJournal};
use engine::{Cancellation, Problem, Progress};
use host::consistency::{Consistency, ConsistencyPolicy, GuestBackupType};
use host::coverage::{DiskSelector, Exclusion};
use host::custody::{Custody, SweepReport};
use host::facts::{ControllerKind, DiskSlot, VmFacts};
use host::limits::{Admission, Demand, Limits, Permit};
use host::path::HostPath;
use repo::{ProtectedName, Repository};
use serde::Serialize;

use super::Look;
use super::custody::Keeping;
use crate::args::{ConsistencyArg, VmBackupArgs};
use crate::audit::{per_million, random_seed};
use crate::exit::{Exit, misused_flag, not_possible};
use crate::keys;
use crate::output::{Output, bytes, seconds};
use crate::progress::{Bars, cancellation};

/// Between two looks whether a machine may be begun.
const BETWEEN: Duration = Duration::from_millis(100);
/// More at once is a typing error.
const MOST_AT_ONCE: usize = 64;

#[derive(Serialize)]
struct Report {
    machines: Vec<VmBackupReport>,
    failed: Vec<Failure>,
    leftovers: SweepReport,
    seconds: f64,
}

#[derive(Serialize)]
struct Failure {
    machine: String,
    problem: Problem,
    #[serde(skip)]
    exit: Option<Exit>,
}

#[derive(Serialize)]
struct DryRun {
    plans: Vec<VmBackupPlan>,
    failed: Vec<Failure>,
}

/// Runs the verb.
pub fn run(arguments: &VmBackupArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let repository = keys::open(&arguments.repo)?;
    let look = Look::at(&arguments.place)?;
    let machines = if arguments.all {
        look.machines(&[])?
    } else {
        look.machines(&arguments.vm)?
    };
    if arguments.name.is_some() && machines.len() != 1 {
        return Err(misused_flag("--name goes with one machine"));
    }
    let choices = Choices::of(arguments)?;
    let mut wanted: Waiting<'_> = Vec::new();
    let mut failed = Vec::new();
    for machine in machines {
        // A name that cannot be one is that machine's trouble alone.
        match choices.request(arguments, machine) {
            Ok(request) => wanted.push((machine, request)),
            Err(error) => failed.push(failure(machine, &error)),
        }
    }
    if arguments.dry_run {
        return dry_run(&repository, &wanted, failed, output);
    }
    let keeping = Keeping::of(&repository)?;
    let leftovers = keeping.sweep(&look.estate, &repository)?;
    let run = Run {
        repository: &repository,
        look: &look,
        keeping: &keeping,
        output,
        cancel: cancellation(),
        is_alone: arguments.parallel <= 1 || wanted.len() == 1,
    };
    let (done, broken) = run.all(wanted, arguments.parallel);
    failed.extend(broken);
    let report = Report {
        machines: done,
        failed,
        leftovers,
        seconds: started.elapsed().as_secs_f64(),
    };
    output.report(&report, text)?;
    Ok(exit(&report, &look))
}

fn exit(report: &Report, look: &Look) -> Exit {
    match report.failed.as_slice() {
        [] => {}
        [only] if report.machines.is_empty() => return only.exit.unwrap_or(Exit::Failed),
        _ => return Exit::Failed,
    }
    let has_findings = report.machines.iter().any(|machine| {
        let is_partial = !machine.not_protected.is_empty();
        let has_damage = machine
            .disks
            .iter()
            .any(|disk| !disk.lies.is_empty() || !disk.unreadable.is_empty());
        is_partial || has_damage
    });
    if has_findings {
        Exit::Found
    } else {
        look.exit()
    }
}

fn dry_run(
    repository: &Repository,
    wanted: &Waiting<'_>,
    mut failed: Vec<Failure>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let mut plans = Vec::new();
    for (machine, request) in wanted {
        let parent = newest_point(repository, &request.name)?;
        match plan_backup_vm(request, machine, parent.as_ref()) {
            Ok(plan) => plans.push(plan),
            Err(error) => failed.push(failure(machine, &error.into())),
        }
    }
    let exit = if failed.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    };
    output.report(&DryRun { plans, failed }, |dry| {
        let plans = dry.plans.iter().map(|plan| format!("Would {plan}"));
        plans.chain(dry.failed.iter().map(failure_text)).collect()
    })?;
    Ok(exit)
}

/// What holds for every machine of a command line.
struct Choices {
    policy: ConsistencyPolicy,
    exclusions: Vec<Exclusion>,
    audit_per_million: u32,
    audit_seed: u64,
}

impl Choices {
    fn of(arguments: &VmBackupArgs) -> anyhow::Result<Self> {
        let exclusion = |text: &String| {
            Ok(Exclusion {
                selects: selector(text)?,
                by: "--exclude".to_owned(),
                reason: None,
            })
        };
        let exclusions: anyhow::Result<Vec<Exclusion>> =
            arguments.exclude.iter().map(exclusion).collect();
        Ok(Self {
            policy: policy(arguments),
            exclusions: exclusions?,
            audit_per_million: per_million(arguments.audit)?,
            audit_seed: match arguments.audit_seed {
                Some(seed) => seed,
                None => random_seed()?,
            },
        })
    }

    fn request(
        &self,
        arguments: &VmBackupArgs,
        machine: &VmFacts,
    ) -> anyhow::Result<VmBackupRequest> {
        let name = arguments.name.as_ref().unwrap_or(&machine.name);
        let name = ProtectedName::new(name.clone())?;
        let mut request = VmBackupRequest::new(name, machine.id);
        request.checkpoint.policy = self.policy.clone();
        if arguments.full {
            request.checkpoint.backup_type = GuestBackupType::Full;
        }
        request.exclusions.clone_from(&self.exclusions);
        request.audit_per_million = self.audit_per_million;
        request.audit_seed = self.audit_seed;
        if arguments.tolerate_unreadable {
            request.unreadable = Unreadable::Record;
        }
        request.workers = arguments.threads;
        request.session.threads = arguments.threads;
        Ok(request)
    }
}

fn level(argument: ConsistencyArg) -> Consistency {
    match argument {
        ConsistencyArg::Application => Consistency::Application,
        ConsistencyArg::FileSystem => Consistency::FileSystem,
        ConsistencyArg::Crash => Consistency::Crash,
        ConsistencyArg::SavedState => Consistency::SavedState,
    }
}

fn policy(arguments: &VmBackupArgs) -> ConsistencyPolicy {
    let wanted = level(arguments.want);
    if arguments.require {
        return ConsistencyPolicy::only(wanted);
    }
    let otherwise = if arguments.otherwise.is_empty() {
        // Less than what was wanted, and never a pause that nobody asked for.
        match wanted {
            Consistency::Application => vec![Consistency::FileSystem, Consistency::Crash],
            Consistency::FileSystem => vec![Consistency::Crash],
            Consistency::Crash | Consistency::SavedState => Vec::new(),
        }
    } else {
        arguments.otherwise.iter().copied().map(level).collect()
    };
    ConsistencyPolicy { wanted, otherwise }
}

/// `SCSI 0:1` or `scsi-0-1`, a path, or a folder that ends with a separator.
fn selector(text: &str) -> anyhow::Result<DiskSelector> {
    if let Some(slot) = slot(text) {
        return Ok(DiskSelector::Slot(slot));
    }
    let path = HostPath::new(text.trim_end_matches(['\\', '/'])).map_err(|error| {
        not_possible(format!(
            "--exclude {text}: neither a slot such as \"SCSI 0:1\" nor a path: {error}"
        ))
    })?;
    Ok(if text.ends_with(['\\', '/']) {
        DiskSelector::Below(path)
    } else {
        DiskSelector::Path(path)
    })
}

fn slot(text: &str) -> Option<DiskSlot> {
    let mut parts = text.split([' ', ':', '-']);
    let controller = match parts.next()?.to_lowercase().as_str() {
        "ide" => ControllerKind::Ide,
        "scsi" => ControllerKind::Scsi,
        "pmem" => ControllerKind::Pmem,
        "virtio" => ControllerKind::Virtio,
        _ => return None,
    };
    let slot = DiskSlot {
        controller,
        number: parts.next()?.parse().ok()?,
        location: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(slot)
}

/// Tells warnings with the machine that they are about; no bars, because several run at once.
struct Named<'a>(&'a str);

impl Progress for Named<'_> {
    fn begin(&self, _step: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn warn(&self, text: &str) {
        eprintln!("warning: {}: {text}", self.0);
    }
    fn end(&self) {}
}

struct Run<'a> {
    repository: &'a Repository,
    look: &'a Look,
    keeping: &'a Keeping,
    output: &'a Output,
    cancel: Cancellation,
    is_alone: bool,
}

type Waiting<'m> = Vec<(&'m VmFacts, VmBackupRequest)>;

impl Run<'_> {
    fn all(&self, waiting: Waiting<'_>, at_once: usize) -> (Vec<VmBackupReport>, Vec<Failure>) {
        let admission = Admission::new(Limits::default());
        let waiting = Mutex::new(waiting);
        let (done, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let work = || {
            while let Some((machine, request, permit)) = self.next(&waiting, &admission) {
                match self.one(machine, &request) {
                    Ok(report) => lock(&done).push(report),
                    Err(error) => lock(&failed).push(failure(machine, &error)),
                }
                drop(permit);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..at_once.clamp(1, MOST_AT_ONCE) {
                scope.spawn(work);
            }
            work();
        });
        for (machine, _) in lock(&waiting).drain(..) {
            let error = engine::Error::new(engine::ErrorKind::Cancelled, "not begun");
            lock(&failed).push(failure(machine, &anyhow::Error::new(error)));
        }
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by(|one: &VmBackupReport, other| one.name.cmp(&other.name));
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        (done, failed)
    }

    /// The first machine that limits admit; `None` when none is left, or all was told to stop.
    fn next<'m>(
        &self,
        waiting: &Mutex<Waiting<'m>>,
        admission: &Admission,
    ) -> Option<(&'m VmFacts, VmBackupRequest, Permit)> {
        while !self.cancel.is_cancelled() {
            let mut waiting = lock(waiting);
            if waiting.is_empty() {
                return None;
            }
            let admitted = waiting
                .iter()
                .enumerate()
                .find_map(|(index, (machine, _))| {
                    let permit = admission.try_admit(&Demand::of(machine)).ok()?;
                    Some((index, permit))
                });
            if let Some((index, permit)) = admitted {
                let (machine, request) = waiting.remove(index);
                return Some((machine, request, permit));
            }
            drop(waiting);
            std::thread::sleep(BETWEEN);
        }
        None
    }

    fn one(&self, machine: &VmFacts, request: &VmBackupRequest) -> anyhow::Result<VmBackupReport> {
        let job = self.keeping.job();
        let journal = self.keeping.journals.begin(job)?;
        let custody = Custody::new(journal.log(), self.keeping.owner.clone(), job);
        let tools = VmBackupTools {
            host: &self.look.estate.driver,
            repository: self.repository,
            custody: &custody,
            cancel: &self.look.estate.cancel,
            clock: &self.keeping.clock,
        };
        let (bars, named) = (Bars::new(self.output), Named(&machine.name));
        let progress: &dyn Progress = if self.is_alone { &bars } else { &named };
        let context = JobContext {
            progress,
            cancel: &self.cancel,
            journal: &NoJournal,
        };
        let result = backup_vm(tools, request, context);
        progress.end();
        drop(custody);
        let open = journal.finish()?;
        if open > 0 {
            progress.warn(&format!(
                "{open} things of this backup may still be on a host; next: hikae vm leftovers --wait 300"
            ));
        }
        Ok(result?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(machine: &VmFacts, error: &anyhow::Error) -> Failure {
    Failure {
        machine: machine.name.clone(),
        problem: Problem::of(error.as_ref()),
        exit: Some(Exit::of(error.as_ref())),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for machine in &report.machines {
        text.push_str(&machine_text(machine));
    }
    for failed in &report.failed {
        text.push_str(&failure_text(failed));
    }
    let found = report.leftovers.done.len();
    if found > 0 {
        text.push_str(&format!(
            "{found} left-overs of earlier runs were removed from hosts first\n"
        ));
    }
    if !report.leftovers.alerts.is_empty() || !report.leftovers.waiting.is_empty() {
        text.push_str("Something of earlier runs is still on hosts: hikae vm leftovers\n");
    }
    text
}

fn failure_text(failed: &Failure) -> String {
    let problem = &failed.problem;
    let mut text = format!(
        "{} FAILED: {} {}\n",
        failed.machine, problem.code, problem.summary
    );
    for line in &problem.evidence {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!("  next: {}\n", problem.action));
    text
}

fn machine_text(machine: &VmBackupReport) -> String {
    let mut text = format!(
        "{}@{}: {} on {}, {}-consistent\n",
        machine.name, machine.sequence, machine.machine, machine.node, machine.consistency
    );
    for disk in &machine.disks {
        text.push_str(&format!(
            "  {:<10} {} of disk, {} read, {} changed blocks{}\n",
            disk.label,
            bytes(disk.length_bytes),
            bytes(disk.read.read_bytes),
            disk.read.changed_blocks,
            match &disk.untracked_because {
                Some(reason) => format!("; read whole: {reason}"),
                None => String::new(),
            }
        ));
        if !disk.lies.is_empty() {
            text.push_str(
                "             CHANGE TRACKING LIED: everything was compared, the point is whole\n",
            );
        }
        if !disk.unreadable.is_empty() {
            text.push_str(&format!(
                "             {} ranges could not be read and are zeros in the point\n",
                disk.unreadable.len()
            ));
        }
    }
    let still = match (machine.still.downtime_ms, machine.still.frozen_at_most_ms) {
        (Some(ms), _) => format!("the guest stood still for {}", seconds(to_seconds(ms))),
        (None, Some(ms)) => format!("frozen for at most {}", seconds(to_seconds(ms))),
        (None, None) => "the guest was not running".to_owned(),
    };
    text.push_str(&format!(
        "  {} configuration files; {still}; {} stored in {}\n",
        machine.configuration.len(),
        bytes(machine.stored_bytes),
        seconds(to_seconds(machine.elapsed_ms))
    ));
    for line in &machine.not_protected {
        text.push_str(&format!("  NOT IN IT: {line}\n"));
    }
    for warning in &machine.warnings {
        text.push_str(&format!("  note: {}\n", warning.text));
    }
    text
}

fn to_seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_to_leave_out_are_read_as_they_are_shown() {
        let at = |number, location| {
            DiskSelector::Slot(DiskSlot {
                controller: ControllerKind::Scsi,
                number,
                location,
            })
        };
        assert_eq!(selector("SCSI 0:1").unwrap(), at(0, 1));
        assert_eq!(selector("scsi-1-2").unwrap(), at(1, 2));
        let path = HostPath::new("D:\\vm\\page.vhdx").unwrap();
        assert_eq!(
            selector("D:\\vm\\page.vhdx").unwrap(),
            DiskSelector::Path(path)
        );
        let folder = HostPath::new("D:\\scratch").unwrap();
        assert_eq!(
            selector("D:\\scratch\\").unwrap(),
            DiskSelector::Below(folder)
        );
        assert!(selector("").is_err());
    }
}
