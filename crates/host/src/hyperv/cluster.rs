//! Failover clusters: who owns what, by the cluster's own namespace, and roles of machines.
//!
//! ```text
//!   MSCluster_Resource "Virtual Machine x" ── PrivateProperties.VmID ─► machine
//!        └ OwnerGroup ─► MSCluster_ResourceGroup: OwnerNode, State, Priority
//! ```
//!
//! The private properties may be missing from what a host sends; then a resource belongs to the machine of its name on the node
//! that owns it, and to nobody when two have that name. Methods of clusters return nothing: their effect is looked for.

use std::collections::{BTreeSet, HashMap};

use wsman::cim::{CimInstance, CimValue};

use super::HyperV;
use super::decode::text;
use super::jobs::is_passing;
use super::names;
use super::node::{Node, Realm, quoted};
use crate::boundary::ClusterMembership;
use crate::clock::CancelToken;
use crate::cluster::{
    ClusterFacts, ClusterNode, NodeState, RoleSpec, RoleTarget, SharedVolume, VolumeAccess,
    group_state,
};
use crate::facts::{RoleFacts, RoleState};
use crate::ids::{NodeName, VmId};
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

const GROUP: &str = "MSCluster_ResourceGroup";
const RESOURCE: &str = "MSCluster_Resource";
const VM_TYPE: &str = "Virtual Machine";
/// `OfflineAction` of a machine that is saved when its resource goes offline.
const OFFLINE_SAVES: u64 = 1;
/// Codes by which a host says that it has no such namespace: it is in no cluster.
const NO_NAMESPACE: [u32; 2] = [0x8004_100E, 2_150_858_778];
/// More resources of one machine are not looked into.
const MOST_ROLES: usize = 4;
/// More nodes than a cluster can have are a lie.
const MOST_NODES: usize = 256;
/// "Overlapped I/O is in progress": begun, and to be watched.
const IO_PENDING: u32 = 997;
const IO_PENDING_HRESULT: u32 = 0x8007_03E5;

/// One cluster, as one of its nodes tells it.
pub(super) struct ClusterView {
    name: String,
    nodes: Vec<ClusterNode>,
    volumes: Vec<SharedVolume>,
    roles: HashMap<VmId, RoleFacts>,
    /// Roles whose machine is not told: by the machine's name in lower case.
    unnamed: HashMap<String, Vec<RoleFacts>>,
}

/// Name of the cluster that a node belongs to; `None` when it belongs to none.
pub(super) fn name_on(node: &Node) -> Result<Option<String>> {
    match node.rows(Realm::Clustering, "MSCluster_Cluster", None) {
        Ok(rows) => Ok(rows.first().and_then(|row| text(row, "Name"))),
        Err(error) if is_no_cluster(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_no_cluster(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported)
        || error
            .code()
            .is_some_and(|code| NO_NAMESPACE.contains(&code.0))
}

/// Node that owns a machine's resource; `None` when the node's cluster does not know it, or it is in none.
pub(super) fn owner_of(node: &Node, vm: VmId) -> Result<Option<NodeName>> {
    let rows = match machines_of(node) {
        Ok(rows) => rows,
        Err(error) if is_no_cluster(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let row = rows.iter().find(|row| machine_of(row) == Some(vm));
    Ok(row
        .and_then(|row| text(row, "OwnerNode"))
        .and_then(|name| NodeName::new(name).ok()))
}

fn machines_of(node: &Node) -> Result<Vec<CimInstance>> {
    let rows = node.rows(
        Realm::Clustering,
        RESOURCE,
        Some(&format!("Type = '{VM_TYPE}'")),
    )?;
    Ok(rows
        .into_iter()
        .filter(|row| {
            row.text_ref("Type")
                .is_none_or(|kind| kind.eq_ignore_ascii_case(VM_TYPE))
        })
        .collect())
}

fn machine_of(row: &CimInstance) -> Option<VmId> {
    let private = row.opt_instance("PrivateProperties").ok().flatten()?;
    let id = private
        .text_ref("VmID")
        .or_else(|| private.text_ref("VmId"))?;
    id.parse().ok()
}

impl ClusterView {
    pub(super) fn fetch(node: &Node, name: &str) -> Result<Self> {
        let groups = node.rows(Realm::Clustering, GROUP, None)?;
        let groups: HashMap<String, &CimInstance> = groups
            .iter()
            .filter_map(|row| Some((row.text_ref("Name")?.to_lowercase(), row)))
            .collect();
        let mut view = Self {
            name: name.to_owned(),
            nodes: nodes_of(node)?,
            volumes: volumes_of(node)?,
            roles: HashMap::new(),
            unnamed: HashMap::new(),
        };
        for row in machines_of(node)? {
            view.add(&row, &groups);
        }
        Ok(view)
    }

    /// The role of one machine alone, in three questions however many there are.
    pub(super) fn fetch_one(node: &Node, name: &str, vm: VmId, machine: &str) -> Result<Self> {
        let nodes = nodes_of(node)?;
        let mut view = Self {
            name: name.to_owned(),
            nodes,
            volumes: Vec::new(),
            roles: HashMap::new(),
            unnamed: HashMap::new(),
        };
        // By the id where the host lets its private properties be asked for, else by the name that the cluster gave.
        let by_id = format!(
            "Type = '{VM_TYPE}' AND PrivateProperties.VmID = '{}'",
            vm.to_string().to_lowercase()
        );
        let mut found = node
            .rows(Realm::Clustering, RESOURCE, Some(&by_id))
            .unwrap_or_default();
        if found.is_empty() && !machine.is_empty() {
            let by_name = format!("Name = {}", quoted(&format!("{VM_TYPE} {machine}")));
            found = node.rows(Realm::Clustering, RESOURCE, Some(&by_name))?;
        }
        // A machine has one. Each costs a question, so that a host does not choose how many are asked.
        for row in found.iter().take(MOST_ROLES) {
            let Some(group) = text(row, "OwnerGroup") else {
                continue;
            };
            let condition = format!("Name = {}", quoted(&group));
            let groups = node.rows(Realm::Clustering, GROUP, Some(&condition))?;
            let groups: HashMap<String, &CimInstance> = groups
                .iter()
                .filter_map(|row| Some((row.text_ref("Name")?.to_lowercase(), row)))
                .collect();
            view.add(row, &groups);
        }
        Ok(view)
    }

    fn add(&mut self, row: &CimInstance, groups: &HashMap<String, &CimInstance>) {
        let Some(role) = role(row, groups, &self.name) else {
            return;
        };
        if let Some(vm) = machine_of(row) {
            self.roles.insert(vm, role);
        } else if let Some(machine) = machine_name(row) {
            self.unnamed.entry(machine).or_default().push(role);
        }
    }

    /// Nodes that can be asked.
    pub(super) fn up_nodes(&self) -> Vec<NodeName> {
        self.nodes
            .iter()
            .filter(|node| matches!(node.state, NodeState::Up | NodeState::Paused))
            .map(|node| node.name.clone())
            .collect()
    }

    pub(super) fn has_node(&self, node: &NodeName) -> bool {
        self.nodes.iter().any(|it| it.name == *node)
    }

    pub(super) fn build_of(&self, node: &NodeName) -> Option<u32> {
        self.nodes.iter().find(|it| it.name == *node)?.build
    }

    /// The role of a machine: by its id, else by its name where that names one role alone.
    pub(super) fn role_of(&self, vm: VmId, name: &str, node: &NodeName) -> Option<RoleFacts> {
        if let Some(role) = self.roles.get(&vm) {
            return Some(role.clone());
        }
        match self.unnamed.get(&name.to_lowercase())?.as_slice() {
            [only] if only.owner == *node => Some(only.clone()),
            _ => None,
        }
    }

    /// Nodes that own roles whose machine is not told.
    fn unnamed_owners(&self) -> BTreeSet<NodeName> {
        let unnamed = self.unnamed.values().flatten();
        let owners = unnamed.map(|role| &role.owner);
        owners.filter(|it| self.has_node(it)).cloned().collect()
    }

    /// Tells roles by their machines' names, as the node that owns them knows those. Who shares his name on that node gets none.
    fn name_roles(&mut self, owner: &NodeName, machines: &[(VmId, String)]) {
        let mut by_name: HashMap<&str, Vec<VmId>> = HashMap::new();
        for (vm, name) in machines {
            by_name.entry(name).or_default().push(*vm);
        }
        for (name, machines) in by_name {
            if let [only] = machines.as_slice()
                && let Some(role) = self.role_of(*only, name, owner)
            {
                self.roles.insert(*only, role);
            }
        }
    }

    fn into_facts(self) -> ClusterFacts {
        let mut roles: Vec<(VmId, RoleFacts)> = self.roles.into_iter().collect();
        roles.sort_by_key(|(vm, _)| *vm);
        ClusterFacts {
            name: self.name,
            nodes: self.nodes,
            volumes: self.volumes,
            roles,
        }
    }
}

fn nodes_of(node: &Node) -> Result<Vec<ClusterNode>> {
    let rows = node.rows(Realm::Clustering, "MSCluster_Node", None)?;
    Ok(rows
        .iter()
        .take(MOST_NODES)
        .filter_map(|row| {
            Some(ClusterNode {
                name: NodeName::new(text(row, "Name")?).ok()?,
                // Some hosts write -1 as an unsigned number.
                state: match row.opt_i64("State").ok().flatten() {
                    Some(0) => NodeState::Up,
                    Some(1) => NodeState::Down,
                    Some(2) => NodeState::Paused,
                    Some(3) => NodeState::Joining,
                    _ => NodeState::Unknown,
                },
                build: row.opt_u32("BuildNumber").ok().flatten(),
            })
        })
        .collect())
}

/// The node that owns the shared volume of a path, if that is on one and its owner is told.
pub(super) fn volume_owner(node: &Node, path: &HostPath) -> Option<NodeName> {
    let volumes = volumes_of(node).ok()?;
    let volume = volumes.into_iter().find(|it| path.is_below(&it.path))?;
    volume.owner
}

fn volumes_of(node: &Node) -> Result<Vec<SharedVolume>> {
    let rows = match node.rows(Realm::Clustering, "MSCluster_ClusterSharedVolume", None) {
        Ok(rows) => rows,
        Err(error) if is_no_cluster(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // A volume does not name its owner: the association does, by path.
    let owners: HashMap<String, NodeName> = node
        .rows(
            Realm::Clustering,
            "MSCluster_ClusterSharedVolumeToNode",
            None,
        )
        .unwrap_or_default()
        .iter()
        .filter_map(|row| {
            let volume = row.opt_reference("GroupComponent").ok().flatten()?;
            let owner = row.opt_reference("PartComponent").ok().flatten()?;
            Some((
                volume.key("Name")?.to_lowercase(),
                NodeName::new(owner.key("Name")?).ok()?,
            ))
        })
        .collect();
    Ok(rows
        .iter()
        .filter_map(|row| {
            let name = text(row, "Name")?;
            Some(SharedVolume {
                owner: owners.get(&name.to_lowercase()).cloned(),
                access: match row.opt_i64("FaultState").ok().flatten() {
                    Some(0) => VolumeAccess::Direct,
                    Some(1) => VolumeAccess::Redirected,
                    Some(2) => VolumeAccess::None,
                    Some(4) => VolumeAccess::Maintenance,
                    _ => VolumeAccess::Unknown,
                },
                path: HostPath::new(name).ok()?,
            })
        })
        .collect())
}

fn role(
    row: &CimInstance,
    groups: &HashMap<String, &CimInstance>,
    cluster: &str,
) -> Option<RoleFacts> {
    let group_name = text(row, "OwnerGroup")?;
    let group = groups.get(&group_name.to_lowercase());
    let owner = text(row, "OwnerNode").or_else(|| group.and_then(|it| text(it, "OwnerNode")))?;
    Some(RoleFacts {
        cluster: cluster.to_owned(),
        owner: NodeName::new(owner).ok()?,
        state: group
            .and_then(|it| it.opt_i64("State").ok().flatten())
            .map_or(RoleState::Unknown, group_state),
        saves_when_offline: row
            .opt_instance("PrivateProperties")
            .ok()
            .flatten()
            .and_then(|it| it.opt_u64("OfflineAction").ok().flatten())
            .map(|action| action == OFFLINE_SAVES),
        priority: group.and_then(|it| it.opt_u32("Priority").ok().flatten()),
        group: group_name,
    })
}

/// The machine's name in a resource's name, `Virtual Machine x`.
fn machine_name(row: &CimInstance) -> Option<String> {
    let name = row.text_ref("Name")?;
    let head = name.get(..VM_TYPE.len())?;
    if !head.eq_ignore_ascii_case(VM_TYPE) {
        return None;
    }
    let rest = name.get(VM_TYPE.len()..)?.trim();
    (!rest.is_empty()).then(|| rest.to_lowercase())
}

impl ClusterMembership for HyperV {
    fn clusters(&self, cancel: &CancelToken) -> Result<Vec<ClusterFacts>> {
        let mut found: Vec<ClusterFacts> = Vec::new();
        let mut silent: Option<Error> = None;
        let nodes = self.connected();
        for node in &nodes {
            cancel.check("asking clusters")?;
            match name_on(node) {
                Ok(Some(name)) if found.iter().all(|it| it.name != name) => {
                    match ClusterView::fetch(node, &name) {
                        Ok(mut view) => {
                            self.name_roles(&mut view);
                            found.push(view.into_facts());
                        }
                        Err(error) => silent = Some(error),
                    }
                }
                Ok(_) => {}
                Err(error) => silent = Some(error),
            }
        }
        match silent {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    fn add_role(&self, vm: VmId, spec: &RoleSpec, cancel: &CancelToken) -> Result<()> {
        let (node, _) = self.find_owner(vm, cancel)?;
        let cluster = name_on(&node)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{} is in no cluster", node.name()),
            )
        })?;
        let machine = self.machine_on(&node, vm)?;
        let view = ClusterView::fetch(&node, &cluster)?;
        if view.role_of(vm, &machine.name, node.name()).is_some() {
            return self.set_spec(&node, &cluster, vm, spec);
        }
        let target = node.cluster_path("MSCluster_Cluster", &cluster);
        let inputs = [("VirtualMachine", CimValue::Text(vm.to_string()))];
        node.call(&target, "AddVirtualMachine", &inputs)?;
        self.set_spec(&node, &cluster, vm, spec)
    }

    fn remove_role(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        /// The group goes with its resources; the machine stays.
        const WITH_RESOURCES: u64 = 1;
        let (node, role) = self.role_on(vm, cancel)?;
        let target = node.cluster_path(GROUP, &role.group);
        let inputs = [("Options", CimValue::Uint(WITH_RESOURCES))];
        node.call(&target, "DestroyGroup", &inputs).map(drop)
    }

    fn set_role(&self, vm: VmId, target: RoleTarget, cancel: &CancelToken) -> Result<()> {
        let (node, role) = self.role_on(vm, cancel)?;
        let (method, wanted) = match target {
            RoleTarget::Online => ("BringOnline", RoleState::Online),
            RoleTarget::Offline => ("TakeOffline", RoleState::Offline),
        };
        if role.state == wanted {
            return Ok(());
        }
        let path = node.cluster_path(GROUP, &role.group);
        begin(node.call(&path, method, &[("TimeOut", CimValue::Uint(0))]))?;
        let what = format!("taking role {} {wanted:?}", role.group);
        let reached = self.poll(self.options.job_timeout, &what, cancel, || {
            match node.find(&path) {
                Ok(Some(row)) => {
                    let state = row.opt_i64("State").ok().flatten().map(group_state);
                    match state {
                        Some(state) if state == wanted => Ok(Some(())),
                        Some(RoleState::Failed) => Err(Error::new(
                            ErrorKind::Failed,
                            format!("role {} failed", role.group),
                        )),
                        _ => Ok(None),
                    }
                }
                Ok(None) => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("role {} is gone", role.group),
                )),
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        reached.ok_or_else(|| {
            Error::new(
                ErrorKind::TimedOut,
                format!("role {} did not become {wanted:?}", role.group),
            )
        })
    }
}

/// A method of a cluster that was begun and goes on is no error.
pub(super) fn begin(called: Result<CimInstance>) -> Result<()> {
    match called {
        Ok(_) => Ok(()),
        Err(error) => {
            let is_pending = error
                .code()
                .is_some_and(|code| matches!(code.0, IO_PENDING | IO_PENDING_HRESULT));
            if is_pending { Ok(()) } else { Err(error) }
        }
    }
}

/// Machines that are realized on a node, by id, with their names in lower case.
fn machine_names(node: &Node) -> Result<Vec<(VmId, String)>> {
    let rows = node.rows(Realm::Virtualization, names::SYSTEM, None)?;
    Ok(rows
        .iter()
        // The node itself has its name where a machine has its id.
        .filter_map(|row| {
            let vm = row.text_ref("Name")?.parse().ok()?;
            Some((vm, row.text_ref("ElementName")?.to_lowercase()))
        })
        .collect())
}

impl HyperV {
    /// Finds the machines of roles that a cluster does not tell, by asking the nodes that own them.
    ///
    /// A node that does not answer leaves its roles without a machine: the cluster's other facts stand.
    fn name_roles(&self, view: &mut ClusterView) {
        for owner in view.unnamed_owners() {
            let machines = self.node(&owner).and_then(|node| machine_names(&node));
            view.name_roles(&owner, &machines.unwrap_or_default());
        }
    }

    /// The role of a machine, and a node of its cluster to ask: its owner.
    pub(super) fn role_on(
        &self,
        vm: VmId,
        cancel: &CancelToken,
    ) -> Result<(std::sync::Arc<Node>, RoleFacts)> {
        let (node, _) = self.find_owner(vm, cancel)?;
        let machine = self.machine_on(&node, vm)?;
        let role = machine.role.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("machine {vm} on {} has no role in a cluster", node.name()),
            )
        })?;
        Ok((node, role))
    }

    fn set_spec(&self, node: &Node, cluster: &str, vm: VmId, spec: &RoleSpec) -> Result<()> {
        let view = ClusterView::fetch(node, cluster)?;
        let role = view.roles.get(&vm).cloned().or_else(|| {
            let machine = self.machine_on(node, vm).ok()?;
            view.role_of(vm, &machine.name, node.name())
        });
        let role = role.ok_or_else(|| {
            Error::new(
                ErrorKind::Failed,
                format!("cluster {cluster} shows no role of machine {vm} after it was added"),
            )
        })?;
        if let Some(priority) = spec.priority {
            let path = node.cluster_path(GROUP, &role.group);
            let changed = CimInstance::new(GROUP).with("Priority", u64::from(priority));
            node.client().put(&path, &changed).map_err(|error| {
                super::cim::told(error, format!("setting the priority of {}", role.group))
            })?;
        }
        if spec.possible_owners.is_empty() {
            return Ok(());
        }
        let resource = machines_of(node)?
            .into_iter()
            .find(|row| {
                machine_of(row) == Some(vm)
                    || text(row, "OwnerGroup").as_deref() == Some(role.group.as_str())
            })
            .and_then(|row| text(&row, "Name"))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("group {} has no resource of a machine", role.group),
                )
            })?;
        let path = node.cluster_path(RESOURCE, &resource);
        for member in &view.nodes {
            let method = if spec.possible_owners.contains(&member.name) {
                "AddPossibleOwner"
            } else {
                "RemovePossibleOwner"
            };
            let inputs = [("NodeName", CimValue::Text(member.name.to_string()))];
            match node.call(&path, method, &inputs) {
                Ok(_) => {}
                // A node that may own it already cannot be added again.
                Err(_) if method == "AddPossibleOwner" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
