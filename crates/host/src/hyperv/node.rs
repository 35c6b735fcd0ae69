//! One node: its connection, and CIM operations with paths built from class and keys.

use std::sync::Arc;

use wsman::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};

use super::cim::{CimClient, told};
use super::names::{self, SETTINGS, SYSTEM, virtualization};
use crate::access::{DiskAccess, NodeFiles};
use crate::error::HostCode;
use crate::ids::{CheckpointId, NodeName, TrackingPointRef, VmId};
use crate::{Error, ErrorKind, Result};

/// How a node is reached.
#[derive(Clone)]
pub struct NodeConnection {
    /// Its name.
    pub name: NodeName,
    /// Its management.
    pub client: Arc<dyn CimClient>,
    /// Its files, for reading and writing.
    pub files: Arc<dyn NodeFiles>,
}

/// A connected node.
pub(super) struct Node {
    connection: NodeConnection,
    namespaces: Namespaces,
}

/// Namespaces, made once: they stand in every path.
struct Namespaces {
    virtualization: Namespace,
    clustering: Namespace,
    windows: Namespace,
}

/// Which namespace is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Realm {
    Virtualization,
    Clustering,
    Windows,
}

impl Node {
    pub(super) fn new(connection: NodeConnection) -> Self {
        Self {
            connection,
            namespaces: Namespaces {
                virtualization: virtualization(),
                clustering: names::clustering(),
                windows: names::windows(),
            },
        }
    }

    pub(super) fn name(&self) -> &NodeName {
        &self.connection.name
    }

    pub(super) fn files(&self) -> Arc<dyn DiskAccess> {
        self.node_files()
    }

    pub(super) fn node_files(&self) -> Arc<dyn NodeFiles> {
        Arc::clone(&self.connection.files)
    }

    pub(super) fn client(&self) -> &dyn CimClient {
        self.connection.client.as_ref()
    }

    fn namespace(&self, realm: Realm) -> &Namespace {
        match realm {
            Realm::Virtualization => &self.namespaces.virtualization,
            Realm::Clustering => &self.namespaces.clustering,
            Realm::Windows => &self.namespaces.windows,
        }
    }

    /// Rows of a query.
    pub(super) fn query(&self, realm: Realm, wql: &str) -> Result<Vec<CimInstance>> {
        self.client()
            .query(self.namespace(realm), wql)
            .map_err(|error| told(error, format!("asking {}: {wql}", self.name())))
    }

    /// All rows of a class, with a condition where there is one.
    pub(super) fn rows(
        &self,
        realm: Realm,
        class: &str,
        condition: Option<&str>,
    ) -> Result<Vec<CimInstance>> {
        match condition {
            Some(condition) => {
                self.query(realm, &format!("SELECT * FROM {class} WHERE {condition}"))
            }
            None => self.query(realm, &format!("SELECT * FROM {class}")),
        }
    }

    /// One instance; `None` when the node has none of this path.
    pub(super) fn find(&self, path: &CimPath) -> Result<Option<CimInstance>> {
        match self.client().get(path) {
            Ok(instance) => Ok(Some(instance)),
            Err(error) if error.kind() == wsman::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(told(
                error,
                format!("getting {} from {}", path.to_relative_text(), self.name()),
            )),
        }
    }

    /// Calls a method and gives its output, whatever it returned.
    pub(super) fn call(
        &self,
        target: &CimPath,
        method: &str,
        inputs: &[(&str, CimValue)],
    ) -> Result<CimInstance> {
        self.client()
            .invoke(target, method, inputs)
            .map_err(|error| told(error, self.place(target, method)))
    }

    /// What an error of a call is told of.
    pub(super) fn place(&self, target: &CimPath, method: &str) -> String {
        format!("{}.{method} on {}", target.class, self.name())
    }

    /// Path of a class in the virtualization namespace, without keys yet.
    pub(super) fn path(&self, class: &str) -> CimPath {
        CimPath::new(
            self.namespaces.virtualization.clone(),
            ClassName::new(class),
        )
    }

    /// Path of a class in the cluster's namespace.
    pub(super) fn cluster_path(&self, class: &str, name: &str) -> CimPath {
        CimPath::new(self.namespaces.clustering.clone(), ClassName::new(class)).with("Name", name)
    }

    /// Path of a service, which is the only instance of its class.
    pub(super) fn service(&self, class: &str) -> CimPath {
        self.path(class).with("CreationClassName", class)
    }

    /// Path of a machine.
    pub(super) fn machine(&self, vm: VmId) -> CimPath {
        self.path(SYSTEM)
            .with("CreationClassName", SYSTEM)
            .with("Name", vm.to_string())
    }

    /// Path of a machine's settings.
    pub(super) fn settings(&self, vm: VmId) -> CimPath {
        self.path(SETTINGS)
            .with("InstanceID", format!("Microsoft:{vm}"))
    }

    /// Path of a checkpoint's settings.
    pub(super) fn checkpoint(&self, checkpoint: &CheckpointId) -> CimPath {
        self.path(SETTINGS).with("InstanceID", checkpoint.as_str())
    }

    /// Path of a reference point.
    pub(super) fn reference_point(&self, point: &TrackingPointRef) -> CimPath {
        self.path(names::REFERENCE_POINT)
            .with("InstanceID", point.point.as_str())
            .with("VirtualSystemIdentifier", point.vm.to_string())
    }

    /// Path of settings of any class by their `InstanceID`.
    pub(super) fn instance(&self, class: &str, id: &str) -> CimPath {
        self.path(class).with("InstanceID", id)
    }
}

/// What a return value of a method says, by the service's own list.
pub(super) fn return_error(code: u32, context: String) -> Error {
    let kind = match code {
        1 | 32_770 => ErrorKind::Unsupported,
        3 | 32_772 => ErrorKind::TimedOut,
        4 | 6 | 32_773 | 32_776 => ErrorKind::Invalid,
        5 | 32_775 => ErrorKind::State,
        32_769 => ErrorKind::Denied,
        32_774 => ErrorKind::Busy,
        32_779 => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, context).coded(HostCode(code))
}

/// A text in a condition: quotes and backslashes doubled as WQL wants them.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for letter in text.chars() {
        if matches!(letter, '\'' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('\'');
    quoted
}
