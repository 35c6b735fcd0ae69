//! `hikae host show`: how one host is reached, what it is, and the cluster that it belongs to.

use host::boundary::ClusterMembership;
use host::cluster::{ClusterFacts, ClusterNode, SharedVolume};
use serde::Serialize;

use super::check::{self, HostReport, Outcome};
use super::connect::{Estate, Hosts, failed};
use super::registry::{HostEntry, Registry};
use crate::exit::Exit;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct Report<'a> {
    host: &'a HostEntry,
    check: HostReport,
    clusters: Vec<ClusterReport>,
}

/// A cluster without its roles: which machine has which is told by `vm show`, which knows how to tell them apart.
#[derive(Serialize)]
struct ClusterReport {
    name: String,
    nodes: Vec<ClusterNode>,
    volumes: Vec<SharedVolume>,
}

impl From<ClusterFacts> for ClusterReport {
    fn from(facts: ClusterFacts) -> Self {
        Self {
            name: facts.name,
            nodes: facts.nodes,
            volumes: facts.volumes,
        }
    }
}

/// Runs the verb.
pub fn run(registry: &Registry, name: &str, output: &Output) -> anyhow::Result<Exit> {
    let entry = registry.find(name)?;
    let check = check::check(&Hosts::of(vec![entry.clone()])?, entry);
    let clusters = if check.ok {
        let estate = Estate::over(registry, std::slice::from_ref(entry))?;
        let found = estate.driver.clusters(&estate.cancel).map_err(failed)?;
        found.into_iter().map(ClusterReport::from).collect()
    } else {
        Vec::new()
    };
    let is_good = check.ok;
    let report = Report {
        host: entry,
        check,
        clusters,
    };
    output.report(&report, text)?;
    Ok(if is_good { Exit::Done } else { Exit::Found })
}

/// A word of the boundary, as its JSON has it.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

fn text(report: &Report<'_>) -> String {
    let host = report.host;
    let mut text = format!(
        "{}\n  address   {}\n  account   {} ({})\n  believed  {}\n  way       {}\n",
        host.name,
        host.address,
        host.account_text(),
        host.proof_text(),
        host.trust_text(),
        host.files_text(),
    );
    for step in &report.check.steps {
        let mark = if step.outcome == Outcome::Failed {
            "FAILED: "
        } else {
            ""
        };
        if !matches!(step.step, "line" | "login") || step.outcome == Outcome::Failed {
            text.push_str(&format!("  {:<9} {mark}{}\n", step.step, step.found));
        }
    }
    for cluster in &report.clusters {
        text.push_str(&format!("\ncluster {}\n", cluster.name));
        let mut table = Table::new(&["node", "state", "build"], &[2]);
        for node in &cluster.nodes {
            let build = node.build.map_or(String::new(), |it| it.to_string());
            table.row(vec![node.name.to_string(), word(&node.state), build]);
        }
        text.push_str(&table.to_string());
        let mut table = Table::new(&["shared volume", "owner", "access"], &[]);
        for volume in &cluster.volumes {
            let owner = volume.owner.as_ref();
            table.row(vec![
                volume.path.to_string(),
                owner.map_or(String::new(), ToString::to_string),
                word(&volume.access),
            ]);
        }
        text.push_str(&table.to_string());
    }
    if !report.check.ok {
        text.push_str(&format!("Next: hikae host check {}\n", host.name));
    }
    text
}
