//! `hikae repo lease …`: what runs on the repository, and how to end what does not run any more.

use anyhow::Context;
use repo::lease::{BreakOutcome, ProcessState, probe_process};
use serde::Serialize;

use crate::args::LeaseVerb;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct LeaseReport {
    lease: String,
    kind: Option<String>,
    host: Option<String>,
    pid: Option<u32>,
    program: Option<String>,
    beat: u64,
    started: Option<String>,
    reserved_version: Option<u64>,
    process: &'static str,
    error: Option<String>,
}

#[derive(Serialize)]
struct Report {
    leases: Vec<LeaseReport>,
}

/// Runs one verb.
pub fn run(verb: &LeaseVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LeaseVerb::List { target } => {
            let repository = keys::open(&target.to_repo_args())?;
            let here = repository.environment().host.clone();
            let leases = repository
                .leases()?
                .iter()
                .map(|view| match &view.body {
                    Ok(body) => LeaseReport {
                        lease: view.id.to_string(),
                        kind: Some(body.kind.to_string()),
                        host: Some(body.owner.host.clone()),
                        pid: Some(body.owner.pid),
                        program: Some(body.owner.program.clone()),
                        beat: view.beat,
                        started: Some(repo::rfc3339(body.started_unix_ms)),
                        reserved_version: body.reserved.map(|key| key.sequence),
                        process: match probe_process(&here, &body.owner) {
                            ProcessState::Gone => "gone",
                            ProcessState::MayRun => "may run",
                        },
                        error: None,
                    },
                    Err(error) => LeaseReport {
                        lease: view.id.to_string(),
                        kind: None,
                        host: None,
                        pid: None,
                        program: None,
                        beat: view.beat,
                        started: None,
                        reserved_version: None,
                        process: "unknown",
                        error: Some(error.to_string()),
                    },
                })
                .collect();
            output.report(&Report { leases }, text)?;
            Ok(Exit::Done)
        }
        LeaseVerb::Break { target, lease } => {
            let repository = keys::open(&target.to_repo_args())?;
            let id = lease
                .parse()
                .with_context(|| format!("`{lease}` is not a lease id"))?;
            let outcome = repository.break_lease(id)?;
            #[derive(Serialize)]
            struct Broken {
                lease: String,
                outcome: &'static str,
            }
            let outcome = match outcome {
                BreakOutcome::Fenced => "it can never commit any more",
                BreakOutcome::AlreadyDecided => "it had committed already, or was fenced before",
                BreakOutcome::Removed => "it is removed; its owner will notice",
            };
            output.report(
                &Broken {
                    lease: lease.clone(),
                    outcome,
                },
                |broken| format!("Lease {}: {}.\n", broken.lease, broken.outcome),
            )?;
            Ok(Exit::Done)
        }
    }
}

fn text(report: &Report) -> String {
    if report.leases.is_empty() {
        return "Nothing runs on the repository.\n".to_owned();
    }
    let mut table = Table::new(
        &["lease", "what", "beat", "process", "owner", "since"],
        &[2],
    );
    for lease in &report.leases {
        table.row(vec![
            lease.lease.clone(),
            lease
                .kind
                .clone()
                .or_else(|| lease.error.clone())
                .unwrap_or_default(),
            lease.beat.to_string(),
            lease.process.to_owned(),
            format!(
                "{} {}",
                lease.host.clone().unwrap_or_default(),
                lease.pid.map_or(String::new(), |pid| pid.to_string())
            ),
            lease.started.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}
