//! `hikae vm …`: machines on the hosts that are written down.
//!
//! Each verb takes one look (the driver's inventory) and tells what it stands on: a host that did not answer is named, hides
//! nobody else's machines, and makes the verb end with 3.

mod backup;
mod checkpoint;
mod coverage;
pub mod custody;
mod drop;
mod eligibility;
mod leftovers;
mod list;
mod restore;
mod show;

use host::boundary::Inventory;
use host::facts::{InventoryReport, NodeProblem, VmFacts};
use host::ids::VmId;

use crate::args::{VmPlaceArgs, VmVerb};
use crate::exit::{Exit, misused_flag, not_possible};
use crate::host::connect::{Estate, failed};
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &VmVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        VmVerb::List { place } => list::run(&Look::at(place)?, output),
        VmVerb::Show { vm, place } => show::run(&Look::at(place)?, vm, output),
        VmVerb::Coverage { vm, place } => coverage::run(&Look::at(place)?, vm, output),
        VmVerb::Eligibility {
            vm,
            all_rules,
            place,
        } => {
            let shown = eligibility::Shown::of(*all_rules);
            eligibility::run(&Look::at(place)?, vm, shown, output)
        }
        VmVerb::Backup(arguments) => backup::run(arguments, output),
        VmVerb::Restore(arguments) => restore::run(arguments, output),
        VmVerb::Leftovers(arguments) => leftovers::run(arguments, output),
        VmVerb::Checkpoint { verb } => checkpoint::run(verb, output),
    }
}

/// What was found, and the driver that found it.
struct Look {
    estate: Estate,
    report: InventoryReport,
}

impl Look {
    fn at(place: &VmPlaceArgs) -> anyhow::Result<Self> {
        let estate = Estate::open(place)?;
        let mut report = estate.driver.inventory(&estate.cancel).map_err(failed)?;
        report.problems.extend(estate.problems.iter().cloned());
        Ok(Self { estate, report })
    }

    fn problems(&self) -> &[NodeProblem] {
        &self.report.problems
    }

    /// The exit when nothing worse is found.
    fn exit(&self) -> Exit {
        if self.problems().is_empty() {
            Exit::Done
        } else {
            Exit::Found
        }
    }

    /// A machine by its name, without case, or its id.
    fn machine(&self, text: &str) -> anyhow::Result<&VmFacts> {
        let id: Option<VmId> = text.parse().ok();
        let is_it =
            |it: &&VmFacts| Some(it.id) == id || it.name.to_lowercase() == text.to_lowercase();
        let found: Vec<&VmFacts> = self.report.machines.iter().filter(is_it).collect();
        match found.as_slice() {
            [machine] => Ok(machine),
            [] if self.problems().is_empty() => Err(misused_flag(format!(
                "no machine `{text}` is on the hosts that were asked"
            ))),
            [] => {
                let silent: Vec<&str> = self.problems().iter().map(|it| it.node.as_str()).collect();
                let error = engine::Error::new(
                    engine::ErrorKind::Unreachable,
                    format!(
                        "no machine `{text}` was seen, and not all could be asked ({})",
                        silent.join(", ")
                    ),
                );
                Err(anyhow::Error::new(error))
            }
            several => {
                let ids: Vec<String> = several
                    .iter()
                    .map(|it| format!("{} on {}", it.id, it.node))
                    .collect();
                Err(not_possible(format!(
                    "several machines are called `{text}`; give the id: {}",
                    ids.join(", ")
                )))
            }
        }
    }

    /// These machines, or all; in the order of their names.
    fn machines(&self, names: &[String]) -> anyhow::Result<Vec<&VmFacts>> {
        let mut chosen = if names.is_empty() {
            self.report.machines.iter().collect()
        } else {
            names
                .iter()
                .map(|it| self.machine(it))
                .collect::<anyhow::Result<Vec<_>>>()?
        };
        chosen.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        Ok(chosen)
    }

    /// What could not be asked, for people.
    fn problem_text(&self) -> String {
        let mut text = String::new();
        for problem in self.problems() {
            text.push_str(&format!("not asked: {}: {}\n", problem.node, problem.text));
        }
        if !text.is_empty() {
            text.push_str("Machines of these hosts may be missing. Next: hikae host check\n");
        }
        text
    }
}
