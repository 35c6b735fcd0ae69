//! Network adapters of a planned machine: to which switch, or to none.

use std::collections::BTreeMap;

use wsman::cim::{CimInstance, CimPath};

use super::super::HyperV;
use super::super::decode::text;
use super::super::names::{CONNECTION, resource_settings, virtualization};
use super::super::node::{Node, Realm};
use super::rows_of;
use crate::clock::CancelToken;
use crate::definition::NicConnection;
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

/// Values of `EnabledState` of a connection.
const CONNECTED: u64 = 2;
const DISCONNECTED: u64 = 3;

/// Switches of a node: path text by name, and names by id, both in lower case.
pub(super) struct Switches {
    by_name: BTreeMap<String, String>,
    ids: BTreeMap<String, String>,
}

impl Switches {
    pub(super) fn of(node: &Node) -> Result<Self> {
        const CLASS: &str = "Msvm_VirtualEthernetSwitch";
        let rows = node.rows(Realm::Virtualization, CLASS, None)?;
        let mut switches = Self {
            by_name: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        for row in &rows {
            let (Some(id), Some(name)) = (text(row, "Name"), text(row, "ElementName")) else {
                continue;
            };
            let path = node
                .path(CLASS)
                .with("CreationClassName", CLASS)
                .with("Name", id.as_str());
            switches.ids.insert(id.to_lowercase(), name.clone());
            switches
                .by_name
                .insert(name.to_lowercase(), path.to_text(None));
        }
        Ok(switches)
    }

    pub(super) fn path_of(&self, name: &str) -> Option<&String> {
        self.by_name.get(&name.to_lowercase())
    }

    fn has(&self, id: &str) -> bool {
        self.ids.contains_key(&id.to_lowercase())
    }
}

impl HyperV {
    pub(super) fn connect_adapters(
        &self,
        node: &Node,
        planned: VmId,
        wanted: &NicConnection,
        notes: &mut Vec<String>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let switches = Switches::of(node)?;
        let namespace = virtualization();
        for row in rows_of(node, CONNECTION, planned)? {
            let Some(id) = text(&row, "InstanceID") else {
                continue;
            };
            let stored = row
                .texts("HostResource")
                .unwrap_or_default()
                .into_iter()
                .next();
            let stored_id = stored
                .and_then(|it| CimPath::parse(&it, &namespace).ok())
                .and_then(|path| path.key("Name"));
            let name = text(&row, "LastKnownSwitchName");
            let target = match wanted {
                NicConnection::Disconnected => None,
                NicConnection::Switch(name) => {
                    let path = switches.path_of(name);
                    let path = path.ok_or_else(|| {
                        Error::new(
                            ErrorKind::Invalid,
                            format!("{} has no switch {name:?}", node.name()),
                        )
                    })?;
                    Some(path.clone())
                }
                // A switch is known by its id on its own host, and by its name on another one.
                NicConnection::AsStored => {
                    if stored_id.as_deref().is_some_and(|it| switches.has(it)) {
                        continue;
                    }
                    name.as_deref().and_then(|it| switches.path_of(it)).cloned()
                }
            };
            if target.is_none() {
                let was = name.unwrap_or_else(|| "a switch that is not here".to_owned());
                notes.push(format!("an adapter is not connected (it was to {was})"));
            }
            let mut settings = CimInstance::new(CONNECTION).with("InstanceID", id).with(
                "EnabledState",
                if target.is_some() {
                    CONNECTED
                } else {
                    DISCONNECTED
                },
            );
            if let Some(target) = target {
                settings.set("HostResource", vec![target]);
            }
            self.modify_resource(node, &settings, &resource_settings(CONNECTION), cancel)?;
        }
        Ok(())
    }
}
