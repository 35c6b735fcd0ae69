//! What is on a node: some twenty queries, however many machines there are, put together by id.
//!
//! ```text
//!   fetch: Rows (one list for each class) ──► Index (by machine, by setting) ──► VmFacts*
//!          a class that this generation lacks is an empty list; one that must be there and is not, fails the node
//! ```

mod assemble;
mod disks;
mod fetch;
mod guest;

use std::collections::{BTreeMap, BTreeSet};

use super::HyperV;
use super::cluster::{self, ClusterView};
use super::node::Node;
use crate::boundary::Inventory;
use crate::clock::CancelToken;
use crate::error::chain_text;
use crate::facts::{HostFacts, InventoryReport, Location, NodeProblem, VmFacts};
use crate::ids::{NodeName, VmId};
use crate::{Error, ErrorKind, Result};

pub(super) use assemble::checkpoint;
pub(super) use disks::{slot_of_tail, tail_of};
pub(super) use fetch::{Scope, clock_of};

impl Inventory for HyperV {
    fn inventory(&self, cancel: &CancelToken) -> Result<InventoryReport> {
        let mut report = InventoryReport::default();
        let mut clusters: BTreeMap<String, ClusterView> = BTreeMap::new();
        let mut seen: BTreeMap<VmId, VmFacts> = BTreeMap::new();
        let mut done: BTreeSet<NodeName> = BTreeSet::new();
        // Nodes are learned of on the way: those of a cluster, by its first member.
        let mut waiting: Vec<NodeName> = self.nodes();
        while let Some(name) = waiting.pop() {
            cancel.check("the inventory")?;
            if !done.insert(name.clone()) {
                continue;
            }
            match self.look_at_node(&name, &mut clusters, &mut report) {
                Ok(look) => {
                    waiting.extend(look.peers.into_iter().filter(|peer| !done.contains(peer)));
                    for machine in look.machines {
                        keep_once(&mut seen, machine);
                    }
                }
                Err(error) => report.problems.push(problem(&name, &error)),
            }
        }
        if report.hosts.is_empty() {
            let texts: Vec<String> = report
                .problems
                .iter()
                .map(|problem| format!("{}: {}", problem.node, problem.text))
                .collect();
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("no node answered ({})", texts.join("; ")),
            ));
        }
        for machine in seen.values() {
            self.remember(machine.id, &machine.node);
        }
        report.machines = seen.into_values().collect();
        report
            .hosts
            .sort_by(|left, right| left.node.cmp(&right.node));
        Ok(report)
    }

    fn machine(&self, vm: VmId, cancel: &CancelToken) -> Result<VmFacts> {
        let (facts, _) = self.on_owner(vm, cancel, |node| self.machine_on(node, vm))?;
        Ok(facts)
    }

    fn locate(&self, vm: VmId, cancel: &CancelToken) -> Result<Location> {
        self.find_owner(vm, cancel).map(|(_, location)| location)
    }
}

/// Display name of a machine, by the rows of its settings.
fn name_in(rows: &fetch::Rows, vm: VmId) -> String {
    let id = format!("Microsoft:{vm}");
    let settings = rows.settings.iter().find(|row| {
        row.text_ref("InstanceID")
            .is_some_and(|it| it.eq_ignore_ascii_case(&id))
    });
    settings
        .and_then(|row| super::decode::text(row, "ElementName"))
        .unwrap_or_default()
}

/// Disks of one machine on a node, planned machines included.
pub(super) fn disks_on(node: &Node, vm: VmId) -> Result<Vec<crate::facts::DiskFacts>> {
    let rows = fetch::fetch_disks(node, vm)?;
    Ok(disks::Disks::of(&rows, &super::names::virtualization()).take(vm))
}

struct Look {
    machines: Vec<VmFacts>,
    peers: Vec<NodeName>,
}

impl HyperV {
    fn look_at_node(
        &self,
        name: &NodeName,
        clusters: &mut BTreeMap<String, ClusterView>,
        report: &mut InventoryReport,
    ) -> Result<Look> {
        let node = self.node(name)?;
        let rows = fetch::fetch(&node, Scope::All)?;
        for error in &rows.problems {
            report.problems.push(problem(name, error));
        }
        let mut is_silent = false;
        let cluster_name = cluster::name_on(&node).unwrap_or_else(|error| {
            report.problems.push(problem(name, &error));
            is_silent = true;
            None
        });
        let mut peers = Vec::new();
        if let Some(cluster_name) = &cluster_name
            && !clusters.contains_key(cluster_name)
        {
            match ClusterView::fetch(&node, cluster_name) {
                Ok(view) => {
                    // Without a connector only the nodes that were given are looked at.
                    if self.connector.is_some() {
                        peers = view.up_nodes();
                    }
                    clusters.insert(cluster_name.clone(), view);
                }
                Err(error) => report.problems.push(problem(name, &error)),
            }
        }
        let view = cluster_name.as_ref().and_then(|it| clusters.get(it));
        let build = fetch::build_of(&node).or_else(|| view.and_then(|view| view.build_of(name)));
        let host = HostFacts {
            node: name.clone(),
            generation: build.and_then(crate::facts::HostGeneration::of_build),
            build,
            cluster: cluster_name.clone(),
        };
        let sight = match (view, &cluster_name) {
            (Some(view), _) => assemble::Sight::View(view),
            (None, None) if !is_silent => assemble::Sight::None,
            (None, _) => assemble::Sight::Silent,
        };
        let machines = assemble::machines(&host, &rows, sight, &mut |text| {
            report.problems.push(NodeProblem {
                node: name.clone(),
                kind: ErrorKind::Protocol,
                text,
            });
        });
        report.hosts.push(host);
        Ok(Look { machines, peers })
    }

    /// One machine on a node that has it.
    pub(super) fn machine_on(&self, node: &Node, vm: VmId) -> Result<VmFacts> {
        let rows = fetch::fetch(node, Scope::One(vm))?;
        // A cluster that is silent keeps nobody from a machine that is not.
        let cluster_name = cluster::name_on(node);
        let view = match &cluster_name {
            Ok(Some(name)) => ClusterView::fetch_one(node, name, vm, &name_in(&rows, vm)).map(Some),
            Ok(None) => Ok(None),
            Err(_) => Err(Error::new(ErrorKind::Unreachable, "the cluster is silent")),
        };
        let sight = match &view {
            Ok(Some(view)) => assemble::Sight::View(view),
            Ok(None) => assemble::Sight::None,
            Err(_) => assemble::Sight::Silent,
        };
        let build =
            fetch::build_of(node).or_else(|| view.as_ref().ok()?.as_ref()?.build_of(node.name()));
        let host = HostFacts {
            node: node.name().clone(),
            generation: build.and_then(crate::facts::HostGeneration::of_build),
            build,
            cluster: cluster_name.ok().flatten(),
        };
        let machines = assemble::machines(&host, &rows, sight, &mut |_| {});
        // What was asked last may have been asked of a node that the machine had left.
        super::routing::must_be_on(node, vm)?;
        machines
            .into_iter()
            .find(|machine| machine.id == vm)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("machine {vm} is not on {}", node.name()),
                )
            })
    }
}

/// A machine that two nodes show is being moved: its cluster's word counts, else the one that it runs on.
fn keep_once(seen: &mut BTreeMap<VmId, VmFacts>, machine: VmFacts) {
    match seen.get(&machine.id) {
        None => {
            seen.insert(machine.id, machine);
        }
        Some(other) => {
            let is_owner =
                |it: &VmFacts| it.role.as_ref().is_some_and(|role| role.owner == it.node);
            let is_better = match (is_owner(&machine), is_owner(other)) {
                (true, false) => true,
                (false, true) => false,
                _ => {
                    machine.power == crate::facts::PowerState::Running
                        && other.power != crate::facts::PowerState::Running
                }
            };
            if is_better {
                seen.insert(machine.id, machine);
            }
        }
    }
}

fn problem(node: &NodeName, error: &Error) -> NodeProblem {
    NodeProblem {
        node: node.clone(),
        kind: error.kind(),
        text: chain_text(error),
    }
}
