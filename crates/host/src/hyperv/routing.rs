//! Which node has a machine now.
//!
//! ```text
//!   hint ──► ask that node ──► there ─► done
//!     │            └─ not there, or silent ──► owner by the cluster ──► all nodes ──► there: moved
//!     │                                                                          └── nowhere: not found, or unreachable
//! ```

use std::sync::{Arc, PoisonError};

use super::HyperV;
use super::names::kind;
use super::node::Node;
use crate::clock::CancelToken;
use crate::facts::Location;
use crate::ids::{NodeName, VmId};
use crate::{Error, ErrorKind, Result};

/// How often a machine is followed that moves while it is worked on.
const MOST_MOVES: usize = 4;

impl HyperV {
    pub(super) fn hint(&self, vm: VmId) -> Option<NodeName> {
        let hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.get(&vm).cloned()
    }

    pub(super) fn remember(&self, vm: VmId, node: &NodeName) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.insert(vm, node.clone());
    }

    pub(super) fn forget(&self, vm: VmId) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.remove(&vm);
    }

    /// Where a machine is, asked of the nodes.
    pub(super) fn find_owner(
        &self,
        vm: VmId,
        cancel: &CancelToken,
    ) -> Result<(Arc<Node>, Location)> {
        let hint = self.hint(vm);
        let mut search = Search::default();
        if let Some(node) = hint.as_ref().and_then(|hint| self.node(hint).ok()) {
            if search.finds(&node, vm) {
                return Ok(self.found(node, vm, hint));
            }
            // It was there and is not any more: the cluster knows where it went, if there is one.
            let owner = self
                .cluster_owner(vm)
                .and_then(|name| self.node(&name).ok());
            if let Some(owner) = owner
                && search.finds(&owner, vm)
            {
                return Ok(self.found(owner, vm, hint));
            }
        }
        for node in self.connected() {
            cancel.check("looking for a machine")?;
            if search.finds(&node, vm) {
                return Ok(self.found(node, vm, hint));
            }
        }
        let asked: Vec<&str> = search.asked.iter().map(NodeName::as_str).collect();
        match search.silent {
            Some(error) => Err(Error::with_source(
                ErrorKind::Unreachable,
                format!("looking for machine {vm} on {}", asked.join(", ")),
                error,
            )),
            None => {
                self.forget(vm);
                Err(Error::new(
                    ErrorKind::NotFound,
                    format!("machine {vm} is not on {}", asked.join(", ")),
                ))
            }
        }
    }

    fn found(&self, node: Arc<Node>, vm: VmId, hint: Option<NodeName>) -> (Arc<Node>, Location) {
        let name = node.name().clone();
        self.remember(vm, &name);
        let location = Location {
            vm,
            moved_from: hint.filter(|hint| *hint != name),
            node: name,
        };
        (node, location)
    }

    /// The owner by any cluster that answers.
    fn cluster_owner(&self, vm: VmId) -> Option<NodeName> {
        self.connected()
            .iter()
            .find_map(|node| super::cluster::owner_of(node, vm).ok().flatten())
    }

    /// Does something on the node that has a machine, and again on another one when it moved meanwhile.
    ///
    /// `work` is done again after an error that means "not here", so it must not have done anything by then.
    pub(super) fn on_owner<T>(
        &self,
        vm: VmId,
        cancel: &CancelToken,
        mut work: impl FnMut(&Node) -> Result<T>,
    ) -> Result<(T, Location)> {
        let (mut node, mut location) = self.find_owner(vm, cancel)?;
        for _ in 0..MOST_MOVES {
            match work(&node) {
                Ok(value) => return Ok((value, location)),
                Err(error) if means_elsewhere(&error) => {
                    let was = location.node.clone();
                    let (next, now) = self.find_owner(vm, cancel)?;
                    if now.node == was {
                        return Err(error);
                    }
                    node = next;
                    location = Location {
                        moved_from: Some(was),
                        ..now
                    };
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("machine {vm} moved {MOST_MOVES} times while it was worked on"),
        ))
    }
}

/// Nodes that were asked for a machine, each once, and the last that did not answer.
#[derive(Default)]
struct Search {
    asked: Vec<NodeName>,
    silent: Option<Error>,
}

impl Search {
    fn finds(&mut self, node: &Node, vm: VmId) -> bool {
        if self.asked.contains(node.name()) {
            return false;
        }
        self.asked.push(node.name().clone());
        match is_realized_on(node, vm) {
            Ok(is_there) => is_there,
            Err(error) => {
                self.silent = Some(error);
                false
            }
        }
    }
}

fn means_elsewhere(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unreachable)
}

/// Whether a node has a machine, realized: the target of a migration shows it as planned before.
pub(super) fn is_realized_on(node: &Node, vm: VmId) -> Result<bool> {
    let Some(settings) = node.find(&node.settings(vm))? else {
        return Ok(false);
    };
    let is_realized = settings
        .text_ref("VirtualSystemType")
        .is_none_or(|text| text.eq_ignore_ascii_case(kind::REALIZED));
    if !is_realized {
        return Ok(false);
    }
    Ok(node.find(&node.machine(vm))?.is_some())
}

/// Something of a machine's on a node. `None` means that it is gone: a machine that is gone with it is an error instead, so that
/// nobody takes a migration for a removal.
pub(super) fn find_with_machine(
    node: &Node,
    vm: VmId,
    path: &wsman::cim::CimPath,
) -> Result<Option<wsman::cim::CimInstance>> {
    let found = node.find(path)?;
    if found.is_none() {
        must_be_on(node, vm)?;
    }
    Ok(found)
}

/// Not found, when a machine is not on a node (any more).
pub(super) fn must_be_on(node: &Node, vm: VmId) -> Result<()> {
    if is_realized_on(node, vm)? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("machine {vm} is not on {}", node.name()),
    ))
}
