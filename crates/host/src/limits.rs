//! How much is done at once: limits by node, by storage and by machine, so that backups do not bring down what they protect.
//!
//! ```text
//!   Demand (machine, node, storages) ──try_admit──► Permit (given back when dropped) │ Refusal (which limit is in the way)
//! ```
//!
//! **Invariants.** A demand is admitted whole or not at all: nobody holds one limit while waiting for another, so nobody waits for
//! ever in a circle. A machine is worked on by one job at a time. A permit that is dropped, by a panic too, is given back.
//!
//! **What it does not do.** It does not wait and knows no order of jobs: who comes next is the scheduler's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::facts::{StorageKind, VmFacts};
use crate::ids::{NodeName, VmId};

/// How much may be done at once; zero counts as one, because a limit that admits nothing is a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Machines of one node.
    pub per_node: usize,
    /// Machines with disks on one storage: a drive of a node, a shared volume, a share.
    pub per_storage: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_node: 4,
            per_storage: 4,
        }
    }
}

/// What a job is going to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The machine.
    pub vm: VmId,
    /// The node that runs it.
    pub node: NodeName,
    /// Storages of its disks, each once.
    pub storages: Vec<StorageKind>,
}

impl Demand {
    /// Of a machine, by its facts.
    pub fn of(machine: &VmFacts) -> Self {
        let mut storages: Vec<StorageKind> = machine
            .disks
            .iter()
            .filter_map(|disk| disk.path())
            .map(StorageKind::of_path)
            .collect();
        storages.sort();
        storages.dedup();
        Self {
            vm: machine.id,
            node: machine.node.clone(),
            storages,
        }
    }

    fn places(&self) -> Vec<Place> {
        let mut places = vec![Place::Machine(self.vm), Place::Node(self.node.clone())];
        places.extend(self.storages.iter().map(|storage| match storage {
            // The drive D of one node is not that of another.
            StorageKind::Local { .. } | StorageKind::Posix | StorageKind::MountPoint => {
                Place::OfNode(self.node.clone(), storage.clone())
            }
            _ => Place::Storage(storage.clone()),
        }));
        places
    }
}

/// What a limit counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Machine(VmId),
    Node(NodeName),
    OfNode(NodeName, StorageKind),
    Storage(StorageKind),
}

/// Which limit is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another job works on the machine.
    Machine,
    /// Enough is being done on the node.
    Node,
    /// Enough is being done on one of the storages.
    Storage(StorageKind),
}

/// Counts what is being done.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: Limits,
    counts: Arc<Mutex<HashMap<Place, usize>>>,
}

/// Leave to work; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Mutex<HashMap<Place, usize>>>,
    places: Vec<Place>,
}

impl Admission {
    /// Nothing is being done yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Arc::default(),
        }
    }

    /// Admits a demand whole, or says which limit is in the way.
    pub fn try_admit(&self, demand: &Demand) -> std::result::Result<Permit, Refusal> {
        let places = demand.places();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for place in &places {
            let (limit, refusal) = match place {
                Place::Machine(_) => (1, Refusal::Machine),
                Place::Node(_) => (self.limits.per_node, Refusal::Node),
                Place::OfNode(_, storage) | Place::Storage(storage) => {
                    (self.limits.per_storage, Refusal::Storage(storage.clone()))
                }
            };
            if counts.get(place).copied().unwrap_or(0) >= limit.max(1) {
                return Err(refusal);
            }
        }
        for place in &places {
            let count = counts.entry(place.clone()).or_default();
            *count = count.saturating_add(1);
        }
        Ok(Permit {
            counts: Arc::clone(&self.counts),
            places,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for place in &self.places {
            if let Some(count) = counts.get_mut(place) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    counts.remove(place);
                }
            }
        }
    }
}
