//! `hikae vm list`: all machines.

use host::facts::{DiskBacking, InventoryReport, VmFacts};

use super::Look;
use crate::exit::Exit;
use crate::output::{Output, Table};

/// Runs the verb. The JSON is the inventory as the driver gives it.
pub fn run(look: &Look, output: &Output) -> anyhow::Result<Exit> {
    output.report(&look.report, |report| text(look, report))?;
    Ok(look.exit())
}

fn text(look: &Look, report: &InventoryReport) -> String {
    let mut machines: Vec<&VmFacts> = report.machines.iter().collect();
    machines.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    let mut table = Table::new(
        &[
            "machine",
            "state",
            "node",
            "cluster",
            "disks",
            "checkpoints",
            "guest",
        ],
        &[4, 5],
    );
    for machine in machines {
        let disks = machine
            .disks
            .iter()
            .filter(|disk| disk.backing != DiskBacking::Empty)
            .count();
        table.row(vec![
            machine.name.clone(),
            machine.power.to_string(),
            machine.node.to_string(),
            machine
                .role
                .as_ref()
                .map_or(String::new(), |role| role.cluster.clone()),
            disks.to_string(),
            machine.checkpoints.len().to_string(),
            machine.guest.os_name.clone().unwrap_or_default(),
        ]);
    }
    let mut text = if report.machines.is_empty() {
        "No machines.\n".to_owned()
    } else {
        table.to_string()
    };
    text.push_str(&look.problem_text());
    text
}
