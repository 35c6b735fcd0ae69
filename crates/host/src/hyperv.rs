//! The driver for Hyper-V: Windows Server hosts and failover clusters, over CIM on WS-Management, with no code of ours on them.
//!
//! ```text
//!   HyperV ── routing: which node has this machine now ──► Node* ── CimClient ──► root/virtualization/v2, root/MSCluster
//!     │                                                      └── NodeFiles ──► frozen VHDX chains, restored files
//!     ├ inventory  rows of some twenty queries per node ──► VmFacts
//!     ├ recovery   CreateSnapshot(32768) → read → ConvertToReferencePoint → DestroyReferencePoint(old), after the commit
//!     ├ changes    GetVirtualDiskChanges in windows
//!     ├ offline    save → checkpoint → start, downtime measured
//!     ├ user, power, definition, cluster, mobility
//!     └ jobs       every method's job polled by the injected clock; a job that vanished is judged by its effect
//! ```
//!
//! **Invariants.** Machines are found by id on whatever node has them; an answer of "not found" makes the driver look again before
//! it believes it. Host texts are shown to people and compared with nothing: codes, class names and subtypes decide. No
//! reference from a host is stored: paths are built from class and keys. What a host says about sizes and counts bounds nothing
//! until it was checked.
//!
//! **What it does not do.** No PowerShell, no events, no VSS on the host, no shared VHDX. It keeps no state but a hint of where each
//! machine was seen last.
//!
//! Facts of Hyper-V are from Microsoft's documentation of `root/virtualization/v2` and `root/MSCluster`; what is not verified on
//! real hosts is listed in RFD 21.

mod changes;
mod cim;
mod cluster;
mod decode;
mod definition;
mod inventory;
mod jobs;
mod marks;
mod mobility;
mod names;
mod node;
mod offline;
mod power;
mod recovery;
mod routing;
mod user;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use cim::CimClient;
pub use node::NodeConnection;

use crate::access::NodeFiles;
use crate::clock::Clock;
use crate::ids::{NodeName, VmId};
use crate::{Error, ErrorKind, Result};
use node::Node;

/// Makes connections to nodes that the driver learns of: the other members of a cluster.
///
/// **Must** be quick, or fail: it is asked again and again for a node that is down.
pub trait Connector: Send + Sync {
    /// A connection to a node.
    fn connect(&self, node: &NodeName) -> Result<NodeConnection>;
}

/// Bounds and habits of the driver.
#[derive(Debug, Clone)]
pub struct HyperVOptions {
    /// Longest that a job of the host is waited for.
    pub job_timeout: Duration,
    /// Longest that a busy machine (merge, migration) is waited for.
    pub busy_timeout: Duration,
    /// Longest that a merge is watched.
    pub merge_timeout: Duration,
    /// Longest that a guest may take to shut down.
    pub shutdown_timeout: Duration,
    /// First pause between two looks at a job; each next one is longer, up to `poll_most`.
    pub poll_first: Duration,
    /// Longest pause between two looks.
    pub poll_most: Duration,
    /// How much of a disk is asked for at once when changes are asked for.
    pub change_window_bytes: u64,
    /// Ranges of changes kept for one disk; beyond it neighbours are taken together.
    pub most_changes: usize,
    /// Whether marks are written beside machines (key-value items that the guest does not see), the second place of custody for
    /// what has no name.
    pub machine_marks: MachineMarks,
}

/// Whether marks are written beside machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineMarks {
    /// They are.
    Write,
    /// They are not: the journal alone knows of tracking points and saved states.
    Leave,
}

impl Default for HyperVOptions {
    fn default() -> Self {
        Self {
            job_timeout: Duration::from_secs(30 * 60),
            busy_timeout: Duration::from_secs(10 * 60),
            merge_timeout: Duration::from_secs(60 * 60),
            shutdown_timeout: Duration::from_secs(10 * 60),
            poll_first: Duration::from_millis(250),
            poll_most: Duration::from_secs(4),
            change_window_bytes: 8 << 30,
            most_changes: 1 << 20,
            machine_marks: MachineMarks::Write,
        }
    }
}

/// The driver, for one host, several, or a cluster.
pub struct HyperV {
    nodes: Mutex<BTreeMap<NodeName, Arc<Node>>>,
    hints: Mutex<HashMap<VmId, NodeName>>,
    connector: Option<Arc<dyn Connector>>,
    clock: Arc<dyn Clock>,
    options: HyperVOptions,
}

impl HyperV {
    /// For these nodes. With a connector, members of their clusters are connected when the driver learns of them.
    pub fn new(
        nodes: impl IntoIterator<Item = NodeConnection>,
        connector: Option<Arc<dyn Connector>>,
        clock: Arc<dyn Clock>,
        options: HyperVOptions,
    ) -> Result<Self> {
        let nodes: BTreeMap<NodeName, Arc<Node>> = nodes
            .into_iter()
            .map(|connection| (connection.name.clone(), Arc::new(Node::new(connection))))
            .collect();
        if nodes.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "no node was given"));
        }
        Ok(Self {
            nodes: Mutex::new(nodes),
            hints: Mutex::new(HashMap::new()),
            connector,
            clock,
            options,
        })
    }

    /// The nodes that are connected.
    pub fn nodes(&self) -> Vec<NodeName> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.keys().cloned().collect()
    }

    fn connected(&self) -> Vec<Arc<Node>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.values().cloned().collect()
    }

    /// The way to the files of a node.
    pub(crate) fn files_of(&self, node: &NodeName) -> Result<Arc<dyn NodeFiles>> {
        Ok(self.node(node)?.node_files())
    }

    /// The node of this name, connected if it is not.
    fn node(&self, name: &NodeName) -> Result<Arc<Node>> {
        {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(node) = nodes.get(name) {
                return Ok(Arc::clone(node));
            }
        }
        let connector = self.connector.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unreachable,
                format!("no connection to {name} was given"),
            )
        })?;
        // Not under the lock: connecting may take its time.
        let node = Arc::new(Node::new(connector.connect(name)?));
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(nodes.entry(name.clone()).or_insert(node)))
    }
}
