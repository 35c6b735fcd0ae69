//! `hikae lab status`: how everything is.

use lab::control::{ArmedFault, Request, StatusReport, VmStatus};

use super::place;
use crate::args::LabPlaceArgs;
use crate::exit::Exit;
use crate::output::{Output, Table, bytes};

/// More machines than this are counted, not shown, where people read.
const SHOWN: usize = 200;

/// Runs the verb.
pub fn run(place: &LabPlaceArgs, output: &Output) -> anyhow::Result<Exit> {
    let report: StatusReport = place::ask(place, &Request::Status {}, place::SOON)?;
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn text(report: &StatusReport) -> String {
    let pace = match report.speed {
        1 => "as fast as ours".to_owned(),
        factor => format!("{factor} times as fast as ours"),
    };
    let mut text = format!(
        "A LAB, simulated, in {} (process {}).\nIts clock: {}, {pace}.\n\n",
        report.folder, report.process, report.time
    );
    text.push_str(&format!(
        "{}\n{}\n{}",
        hosts(report),
        volumes(report),
        machines(report)
    ));
    let failed: Vec<String> = report
        .clusters
        .iter()
        .flat_map(|cluster| &cluster.roles)
        .filter(|role| role.state != "online" && role.state != "offline")
        .map(|role| format!("{} on {}: {}", role.name, role.owner, role.state))
        .collect();
    if !failed.is_empty() {
        text.push_str(&format!("\nRoles not online: {}\n", failed.join("; ")));
    }
    if !report.jobs.is_empty() {
        text.push_str(&format!("\n{}", jobs(report)));
    }
    if !report.armed.is_empty() {
        text.push_str(&format!("\nFaults to come:\n{}", armed(&report.armed)));
    }
    text
}

fn hosts(report: &StatusReport) -> Table {
    let mut hosts = Table::new(
        &[
            "host",
            "state",
            "in cluster",
            "windows",
            "machines",
            "address",
        ],
        &[4],
    );
    for host in &report.hosts {
        let cluster = match (&host.cluster, &host.in_cluster) {
            (Some(cluster), Some(state)) => format!("{cluster}: {state}"),
            _ => String::new(),
        };
        let smb = host.smb_port.map(|port| format!(", SMB port {port}"));
        hosts.row(vec![
            host.name.clone(),
            host.state.clone(),
            cluster,
            host.windows.clone(),
            host.vms.to_string(),
            format!(
                "{}{}",
                host.address.clone().unwrap_or_default(),
                smb.unwrap_or_default()
            ),
        ]);
    }
    hosts
}

fn volumes(report: &StatusReport) -> Table {
    let mut volumes = Table::new(
        &["volume", "of", "owner", "state", "free", "files here"],
        &[4],
    );
    for volume in &report.volumes {
        volumes.row(vec![
            volume.path.clone(),
            volume.of.clone().unwrap_or_default(),
            volume.owner.clone().unwrap_or_default(),
            volume.state.clone(),
            bytes(volume.free_bytes),
            volume.folder.clone(),
        ]);
    }
    volumes
}

fn jobs(report: &StatusReport) -> Table {
    let mut jobs = Table::new(&["job", "host", "machine", "done", "left"], &[3, 4]);
    for job in &report.jobs {
        jobs.row(vec![
            job.doing.clone().unwrap_or_else(|| "working".to_owned()),
            job.host.clone(),
            job.vm.clone().unwrap_or_default(),
            format!("{} %", job.percent),
            format!(
                "{:.1} s",
                std::time::Duration::from_millis(job.left_ms).as_secs_f64()
            ),
        ]);
    }
    jobs
}

fn machines(report: &StatusReport) -> Table {
    let mut machines = Table::new(
        &["machine", "state", "node", "role", "points", "doing"],
        &[],
    );
    for vm in report.vms.iter().take(SHOWN) {
        machines.row(vec![
            vm.name.clone(),
            vm.state.clone(),
            vm.node.clone(),
            vm.role.clone().unwrap_or_default(),
            points(vm),
            doing(vm),
        ]);
    }
    let more = report.vms.len().saturating_sub(SHOWN);
    if more > 0 {
        machines.row(vec![format!("… and {more} more")]);
    }
    machines
}

/// Checkpoints and reference points, where there are any.
pub fn points(vm: &VmStatus) -> String {
    let parts = [
        (vm.checkpoints, "checkpoint"),
        (vm.recovery_checkpoints, "recovery checkpoint"),
        (vm.reference_points, "reference point"),
    ];
    let told: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        })
        .collect();
    told.join(", ")
}

fn doing(vm: &VmStatus) -> String {
    let suspended = vm.merges_suspended.then_some("merges suspended");
    let parts: Vec<&str> = vm.doing.as_deref().into_iter().chain(suspended).collect();
    parts.join(", ")
}

/// Faults to come, as a table.
pub fn armed(faults: &[ArmedFault]) -> Table {
    let mut table = Table::new(&["fault", "machine", "node", "times", "when"], &[3]);
    for fault in faults {
        table.row(vec![
            fault.kind.clone(),
            fault.vm.clone().unwrap_or_default(),
            fault.node.clone().unwrap_or_default(),
            match fault.times {
                0 => "always".to_owned(),
                times => times.to_string(),
            },
            fault.when.clone(),
        ]);
    }
    table
}
