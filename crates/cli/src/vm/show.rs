//! `hikae vm show`: all that is known of one machine.

use host::facts::{CheckpointKind, DiskBacking, ServiceState, VmFacts};
use serde::Serialize;

use super::Look;
use super::checkpoint::tree;
use crate::exit::Exit;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a VmFacts,
    problems: &'a [host::facts::NodeProblem],
}

/// Runs the verb.
pub fn run(look: &Look, vm: &str, output: &Output) -> anyhow::Result<Exit> {
    let report = Report {
        machine: look.machine(vm)?,
        problems: look.problems(),
    };
    output.report(&report, |report| {
        format!("{}{}", text(report.machine), look.problem_text())
    })?;
    Ok(look.exit())
}

/// A fact, or that it is not known.
fn told<T: ToString>(fact: Option<T>) -> String {
    fact.map_or("unknown".to_owned(), |it| it.to_string())
}

fn service(state: Option<ServiceState>) -> &'static str {
    match state {
        None => "unknown",
        Some(ServiceState::Disabled) => "switched off",
        Some(ServiceState::Ok) => "ok",
        Some(ServiceState::NoContact) => "no answer",
        Some(ServiceState::Incompatible) => "incompatible",
        Some(ServiceState::Enabled) => "switched on",
    }
}

fn facts(machine: &VmFacts) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("id", machine.id.to_string()),
        (
            "node",
            match machine.host_generation {
                Some(generation) => format!("{} (Windows Server {generation})", machine.node),
                None => machine.node.to_string(),
            },
        ),
        ("state", machine.power.to_string()),
        (
            "generation",
            format!(
                "{}, configuration {}",
                told(machine.generation),
                told(machine.version)
            ),
        ),
        (
            "memory",
            machine
                .sizing
                .memory_mib
                .map_or("unknown".to_owned(), |it| format!("{it} MiB")),
        ),
        ("processors", told(machine.sizing.processors)),
    ];
    if !machine.activities.is_empty() {
        let words: Vec<String> = machine.activities.iter().map(ToString::to_string).collect();
        facts.push(("busy", words.join(", ")));
    }
    if let Some(role) = &machine.role {
        let text = format!("{} in {}, on {}", role.group, role.cluster, role.owner);
        facts.push(("role", text));
    }
    facts.push((
        "guest",
        format!(
            "{} {}",
            told(machine.guest.os_name.as_ref()),
            machine.guest.os_version.clone().unwrap_or_default()
        )
        .trim_end()
        .to_owned(),
    ));
    facts.push((
        "services",
        format!(
            "backup {}, exchange {}, shutdown {}, heartbeat {}",
            service(machine.integration.backup),
            service(machine.integration.exchange),
            service(machine.integration.shutdown),
            service(machine.integration.heartbeat)
        ),
    ));
    if machine.security.has_tpm == Some(true) || machine.security.is_shielded == Some(true) {
        let text = "virtual TPM: its key protector is needed to start it elsewhere";
        facts.push(("security", text.to_owned()));
    }
    facts
}

fn backing(backing: &DiskBacking) -> String {
    match backing {
        DiskBacking::Image { path, .. } => path.to_string(),
        DiskBacking::PassThrough { device } => format!("pass-through: {device}"),
        DiskBacking::FibreChannel => "virtual Fibre Channel".to_owned(),
        DiskBacking::GuestIscsi { target } => format!("iSCSI in the guest: {target}"),
        DiskBacking::Empty => "no medium".to_owned(),
        DiskBacking::Unknown { subtype } => format!("not understood: {subtype}"),
    }
}

fn text(machine: &VmFacts) -> String {
    let mut text = format!("{}\n", machine.name);
    for (name, fact) in facts(machine) {
        text.push_str(&format!("  {name:<11} {fact}\n"));
    }
    let mut disks = Table::new(&["disk", "what"], &[]);
    for disk in &machine.disks {
        disks.row(vec![
            disk.slot.map_or("–".to_owned(), |slot| slot.to_string()),
            backing(&disk.backing),
        ]);
    }
    text.push_str(&format!("\n{disks}"));
    if !machine.nics.is_empty() {
        let mut nics = Table::new(&["adapter", "address", "switch"], &[]);
        for nic in &machine.nics {
            nics.row(vec![
                nic.name.clone(),
                nic.mac.clone().unwrap_or_default(),
                nic.switch.clone().unwrap_or_default(),
            ]);
        }
        text.push_str(&format!("\n{nics}"));
    }
    if !machine.checkpoints.is_empty() {
        text.push_str(&format!("\n{}", tree(machine)));
        let foreign = machine
            .checkpoints
            .iter()
            .filter(|it| it.kind == CheckpointKind::Recovery && it.mark.is_none())
            .count();
        if foreign > 0 {
            text.push_str(&format!(
                "{foreign} recovery checkpoints carry no mark of Hikae: another product's, or a left-over\n"
            ));
        }
    }
    text
}
