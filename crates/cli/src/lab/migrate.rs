//! `hikae lab migrate`: a machine moves, as an operator would move it.

use lab::control::{MigrateReport, MigrateRequest, Request};

use super::{place, status};
use crate::args::LabMigrateArgs;
use crate::exit::Exit;
use crate::output::Output;

/// Runs the verb.
pub fn run(arguments: &LabMigrateArgs, output: &Output) -> anyhow::Result<Exit> {
    let request = Request::Migrate(MigrateRequest {
        vm: arguments.vm.clone(),
        node: arguments.node.clone(),
        storage: arguments.storage.clone(),
        as_role: arguments.as_role,
        no_wait: arguments.no_wait,
    });
    let report: MigrateReport = place::ask(&arguments.place, &request, place::LATER)?;
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn text(report: &MigrateReport) -> String {
    let vm = &report.vm;
    let mut text = report.told.join("\n");
    text.push_str(&if report.under_way {
        format!("\n{} is on its way from {}.\n", vm.name, report.from)
    } else {
        format!("\n{} is {} on {}.\n", vm.name, vm.state, vm.node)
    });
    let points = status::points(vm);
    if !points.is_empty() {
        text.push_str(&format!("It has {points}.\n"));
    }
    text
}
