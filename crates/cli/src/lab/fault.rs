//! `hikae lab fault …`: what goes wrong, on request.

use lab::control::{ClearReport, FaultRequest, FaultsReport, InjectReport, Request};

use super::{place, status};
use crate::args::{LabFaultVerb, LabInjectArgs};
use crate::exit::{Exit, not_possible};
use crate::output::{Output, Table};

/// Struck faults that are shown where people read.
const SHOWN: usize = 20;

/// Runs the verb.
pub fn run(verb: &LabFaultVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LabFaultVerb::List { place } => {
            let report: FaultsReport = place::ask(place, &Request::Faults {}, place::SOON)?;
            output.report(&report, list)?;
        }
        LabFaultVerb::Inject(arguments) => {
            let request = Request::Inject(fault(arguments)?);
            let report: InjectReport = place::ask(&arguments.place, &request, place::SOON)?;
            output.report(&report, |report| {
                let mut text = format!("{}: {}\n", report.kind, report.told);
                if !report.armed.is_empty() {
                    text.push_str(&format!(
                        "\nFaults to come:\n{}",
                        status::armed(&report.armed)
                    ));
                }
                text
            })?;
        }
        LabFaultVerb::Clear { place } => {
            let report: ClearReport = place::ask(place, &Request::Clear {}, place::SOON)?;
            output.report(&report, clear)?;
        }
    }
    Ok(Exit::Done)
}

fn fault(arguments: &LabInjectArgs) -> anyhow::Result<FaultRequest> {
    let leave = arguments.leave.map(|mib| mib.checked_mul(1 << 20));
    let leave_bytes = match leave {
        None => None,
        Some(Some(bytes)) => Some(bytes),
        Some(None) => return Err(not_possible("--leave: more than there is")),
    };
    Ok(FaultRequest {
        kind: arguments.kind.clone(),
        vm: arguments.vm.clone(),
        node: arguments.node.clone(),
        volume: arguments.volume.clone(),
        after: arguments.after,
        in_ms: arguments.within.map(|it| it.milliseconds()),
        times: if arguments.always {
            Some(0)
        } else {
            arguments.times.map(std::num::NonZeroU32::get)
        },
        lasts_ms: arguments.lasts.map(|it| it.milliseconds()),
        leave_bytes,
        fault: arguments.fault.clone(),
    })
}

fn list(report: &FaultsReport) -> String {
    let mut kinds = Table::new(&["kind", "takes", "what happens"], &[]);
    for kind in &report.kinds {
        let takes: Vec<String> = kind.takes.iter().map(|it| format!("--{it}")).collect();
        kinds.row(vec![kind.kind.clone(), takes.join(" "), kind.help.clone()]);
    }
    let mut text = kinds.to_string();
    text.push_str(&match report.armed.as_slice() {
        [] => "\nNone is to come.\n".to_owned(),
        armed => format!("\nTo come:\n{}", status::armed(armed)),
    });
    if !report.struck.is_empty() {
        let mut struck = Table::new(&["time", "fault"], &[]);
        let first = report.struck.len().saturating_sub(SHOWN);
        for fault in report.struck.iter().skip(first) {
            struck.row(vec![fault.time.clone(), fault.kind.clone()]);
        }
        text.push_str(&format!("\nStruck, the newest last:\n{struck}"));
    }
    text
}

fn clear(report: &ClearReport) -> String {
    let mut text = format!(
        "Taken back: {} of the estate, {} of the wire.\n",
        report.estate, report.wire
    );
    if !report.volumes.is_empty() {
        text.push_str(&format!(
            "As they should be again: {}.\n",
            report.volumes.join(", ")
        ));
    }
    for node in &report.nodes_away {
        text.push_str(&format!(
            "{node} is not up: hikae lab fault inject node-on (or node-resume) --node {node}\n"
        ));
    }
    text
}
