//! Making and unmaking machines. Everything is built as a *planned* machine and realized at the end, so that what is only halfway
//! there never runs, and the custodian can tell it from a machine.
//!
//! ```text
//!   intend ─► ImportSystemDefinition │ DefinePlannedSystem ─► planned id ─► made
//!          ─► name, disks, adapters ─► ValidatePlannedSystem ─► RealizePlannedSystem ─► entry closed
//!   any error ─► DestroySystem(planned) ─► entry closed
//! ```

mod adapters;
mod build;
mod import;

use wsman::cim::{CimInstance, CimValue};

use super::HyperV;
use super::decode::text;
use super::jobs::Ended;
use super::names::{
    PLANNED, RESOURCE, SETTINGS, STORAGE, SYSTEM_SERVICE, embed, resource_settings,
};
use super::node::{Node, Realm};
use super::power::state_of;
use crate::boundary::Definition;
use crate::checkpoint::{MergeState, Presence, Released};
use crate::clock::CancelToken;
use crate::custody::{Closing, Custody, HeldKind};
use crate::definition::{Defined, ExportRequest, ImportRequest, MachineSpec};
use crate::facts::PowerState;
use crate::ids::{NodeName, VmId};
use crate::{Error, ErrorKind, Result};

impl Definition for HyperV {
    fn import(
        &self,
        request: &ImportRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined> {
        let node = self.node(&request.node)?;
        self.import_on(&node, request, custody, cancel)
    }

    fn define(
        &self,
        node: &NodeName,
        spec: &MachineSpec,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined> {
        let faults = crate::definition::spec_faults(spec);
        if !faults.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, faults.join("; ")));
        }
        let node = self.node(node)?;
        self.define_on(&node, spec, custody, cancel)
    }

    fn planned(&self, node: &NodeName, cancel: &CancelToken) -> Result<Vec<VmId>> {
        cancel.check("listing planned machines")?;
        let node = self.node(node)?;
        planned_on(&node)
    }

    fn discard_planned(
        &self,
        node: &NodeName,
        vm: VmId,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released> {
        let node = self.node(node)?;
        let was = self.discard(&node, vm, cancel)?;
        let closing = match was {
            Presence::Removed => Closing::Removed,
            Presence::Absent => Closing::Gone,
        };
        let id = vm.to_string();
        for entry in custody.log().open_entries()? {
            let is_it = entry.intent.kind == HeldKind::PlannedMachine
                && entry.made.as_deref() == Some(id.as_str());
            if is_it {
                custody.close(entry.id, closing)?;
            }
        }
        Ok(Released {
            was,
            merge: MergeState::Done,
            warnings: Vec::new(),
        })
    }

    fn unregister(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        self.on_owner(vm, cancel, |node| {
            let state = state_of(node, vm)?;
            if state != PowerState::Off {
                return Err(Error::new(
                    ErrorKind::State,
                    format!("machine {vm} is {state}: turn it off before it is taken out"),
                ));
            }
            let path = node.machine(vm);
            let inputs = [("AffectedSystem", CimValue::from(path.clone()))];
            let service = node.service(SYSTEM_SERVICE);
            self.run(node, &service, "DestroySystem", &inputs, cancel)?;
            if node.find(&path)?.is_some() {
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!("machine {vm} is still on {}", node.name()),
                ));
            }
            Ok(())
        })?;
        self.forget(vm);
        Ok(())
    }

    fn export(&self, vm: VmId, request: &ExportRequest, cancel: &CancelToken) -> Result<()> {
        self.on_owner(vm, cancel, |node| {
            self.export_on(node, vm, request, Self::whole_export(), cancel)
        })
        .map(drop)
    }
}

/// Planned machines of a node.
fn planned_on(node: &Node) -> Result<Vec<VmId>> {
    let rows = node.rows(Realm::Virtualization, PLANNED, None)?;
    Ok(rows
        .iter()
        .filter_map(|row| row.text_ref("Name")?.parse().ok())
        .collect())
}

/// Path of a planned machine.
fn planned_path(node: &Node, vm: VmId) -> wsman::cim::CimPath {
    node.path(PLANNED)
        .with("CreationClassName", PLANNED)
        .with("Name", vm.to_string())
}

impl HyperV {
    fn discard(&self, node: &Node, vm: VmId, cancel: &CancelToken) -> Result<Presence> {
        let path = planned_path(node, vm);
        if node.find(&path)?.is_none() {
            return Ok(Presence::Absent);
        }
        let inputs = [("AffectedSystem", CimValue::from(path.clone()))];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, "DestroySystem", &inputs, cancel)?;
        match node.find(&path)? {
            None => Ok(Presence::Removed),
            Some(_) => Err(Error::new(
                ErrorKind::Failed,
                format!("planned machine {vm} is still on {}", node.name()),
            )),
        }
    }

    /// Makes a planned machine by `make`, has `shape` work on it, and realizes it; takes it away when anything fails.
    fn through_planned(
        &self,
        node: &Node,
        expected: VmId,
        custody: &Custody,
        cancel: &CancelToken,
        make: &dyn Fn() -> Result<(Ended, &'static str)>,
        shape: &dyn Fn(VmId) -> Result<Vec<String>>,
    ) -> Result<Defined> {
        let before = planned_on(node)?;
        let texts = before.iter().map(ToString::to_string).collect();
        let entry = custody.intend(
            HeldKind::PlannedMachine,
            expected,
            node.name(),
            self.moment(node),
            texts,
        )?;
        let planned = make().and_then(|(ended, output)| {
            let named = ended.output.opt_reference(output).ok().flatten();
            let named = named.and_then(|path| path.key("Name")?.parse::<VmId>().ok());
            named.map_or_else(|| sole_new(node, &before), Ok)
        });
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => {
                if super::recovery::is_definite(&error) {
                    custody.close(entry, Closing::NeverMade)?;
                }
                return Err(error);
            }
        };
        custody.made(entry, &planned.to_string())?;
        let shaped = shape(planned).and_then(|notes| {
            let vm = self.realize(node, planned, cancel)?;
            Ok(Defined {
                vm,
                node: node.name().clone(),
                notes,
            })
        });
        match shaped {
            Ok(defined) => {
                custody.close(entry, Closing::Gone)?;
                self.remember(defined.vm, node.name());
                Ok(defined)
            }
            Err(error) => {
                // Told to stop or not: half a machine is ours to take away. When that fails, the entry stays open.
                if let Ok(was) = self.discard(node, planned, &CancelToken::new()) {
                    let closing = match was {
                        Presence::Removed => Closing::Removed,
                        Presence::Absent => Closing::Gone,
                    };
                    custody.close(entry, closing)?;
                }
                Err(error)
            }
        }
    }

    fn realize(&self, node: &Node, planned: VmId, cancel: &CancelToken) -> Result<VmId> {
        let service = node.service(SYSTEM_SERVICE);
        let inputs = [("PlannedSystem", CimValue::from(planned_path(node, planned)))];
        self.run(node, &service, "ValidatePlannedSystem", &inputs, cancel)?;
        let ended = match self.run(node, &service, "RealizePlannedSystem", &inputs, cancel) {
            // Only the answer was lost: half a machine is whole.
            Err(error)
                if !super::recovery::is_definite(&error)
                    && super::routing::is_realized_on(node, planned).unwrap_or(false) =>
            {
                return Ok(planned);
            }
            ended => ended?,
        };
        let named = ended.output.opt_reference("ResultingSystem").ok().flatten();
        let vm = named
            .and_then(|path| path.key("Name")?.parse::<VmId>().ok())
            .unwrap_or(planned);
        if super::routing::is_realized_on(node, vm)? {
            return Ok(vm);
        }
        Err(Error::new(
            ErrorKind::Failed,
            format!(
                "machine {vm} is not on {} after it was realized",
                node.name()
            ),
        ))
    }

    /// Adds one resource and gives its `InstanceID`.
    fn add_resource(
        &self,
        node: &Node,
        vm: VmId,
        settings: &CimInstance,
        cancel: &CancelToken,
    ) -> Result<String> {
        let class = settings.class.as_str().to_owned();
        let before = ids_of(node, &class, vm)?;
        let inputs = [
            ("AffectedConfiguration", CimValue::from(node.settings(vm))),
            (
                "ResourceSettings",
                CimValue::Array(vec![embed(settings, &resource_settings(&class))?]),
            ),
        ];
        let service = node.service(SYSTEM_SERVICE);
        let ended = self.run(node, &service, "AddResourceSettings", &inputs, cancel)?;
        let named = ended.output.references("ResultingResourceSettings");
        if let Ok([only]) = named.as_deref()
            && let Some(id) = only.key("InstanceID")
        {
            return Ok(id);
        }
        let after = ids_of(node, &class, vm)?;
        let mut new = after.into_iter().filter(|id| !before.contains(id));
        match (new.next(), new.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(Error::new(
                ErrorKind::Failed,
                format!("no new {class} on machine {vm} after it was added"),
            )),
            (Some(_), Some(_)) => Err(Error::new(
                ErrorKind::Protocol,
                format!("several new {class} on machine {vm} after one was added"),
            )),
        }
    }

    fn modify_resource(
        &self,
        node: &Node,
        settings: &CimInstance,
        schema: &wsman::schema::ClassSchema,
        cancel: &CancelToken,
    ) -> Result<()> {
        let inputs = [(
            "ResourceSettings",
            CimValue::Array(vec![embed(settings, schema)?]),
        )];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, "ModifyResourceSettings", &inputs, cancel)
            .map(drop)
    }

    fn remove_resource(
        &self,
        node: &Node,
        class: &str,
        id: &str,
        cancel: &CancelToken,
    ) -> Result<()> {
        let inputs = [(
            "ResourceSettings",
            CimValue::Array(vec![CimValue::from(node.instance(class, id))]),
        )];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, "RemoveResourceSettings", &inputs, cancel)
            .map(drop)
    }

    fn modify_settings(
        &self,
        node: &Node,
        settings: &CimInstance,
        cancel: &CancelToken,
    ) -> Result<()> {
        let embedded = embed(settings, &super::names::system_settings())?;
        let service = node.service(SYSTEM_SERVICE);
        let inputs = [("SystemSettings", embedded)];
        self.run(node, &service, "ModifySystemSettings", &inputs, cancel)
            .map(drop)
    }
}

fn sole_new(node: &Node, before: &[VmId]) -> Result<VmId> {
    let mut new = planned_on(node)?
        .into_iter()
        .filter(|vm| !before.contains(vm));
    match (new.next(), new.next()) {
        (Some(vm), None) => Ok(vm),
        (None, _) => Err(Error::new(
            ErrorKind::Protocol,
            format!(
                "no new planned machine on {} after it was made",
                node.name()
            ),
        )),
        (Some(_), Some(_)) => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "several new planned machines on {}: which one is ours cannot be told",
                node.name()
            ),
        )),
    }
}

/// Rows of a class that belong to a machine.
fn rows_of(node: &Node, class: &str, vm: VmId) -> Result<Vec<CimInstance>> {
    let condition = format!("InstanceID LIKE 'Microsoft:{vm}%'");
    let rows = node.rows(Realm::Virtualization, class, Some(&condition))?;
    Ok(rows
        .into_iter()
        .filter(|row| {
            row.text_ref("InstanceID")
                .and_then(super::decode::owner_of_id)
                .is_some_and(|(owner, _)| owner == vm)
        })
        .collect())
}

fn ids_of(node: &Node, class: &str, vm: VmId) -> Result<Vec<String>> {
    let rows = rows_of(node, class, vm)?;
    Ok(rows
        .iter()
        .filter_map(|row| text(row, "InstanceID"))
        .collect())
}

/// Text by which settings name others.
fn path_text(node: &Node, class: &str, id: &str) -> String {
    node.instance(class, id).to_text(None)
}

/// A disk's medium and its drive by their ids.
struct Plugged {
    medium: String,
    drive: Option<String>,
}

fn plugged(node: &Node, vm: VmId, medium: &str) -> Result<Plugged> {
    let namespace = super::names::virtualization();
    let row = node.find(&node.instance(STORAGE, medium))?;
    let parent = row.and_then(|row| {
        let path = wsman::cim::CimPath::parse(row.text_ref("Parent")?, &namespace).ok()?;
        path.key("InstanceID")
    });
    let drives = ids_of(node, RESOURCE, vm)?;
    // The path doubles backslashes that the id has single.
    let drive = parent.and_then(|parent| {
        let wanted = super::decode::id_key(&parent);
        drives
            .into_iter()
            .find(|id| super::decode::id_key(id) == wanted)
    });
    Ok(Plugged {
        medium: medium.to_owned(),
        drive,
    })
}

/// A name or a folder of a machine, as its settings.
fn renamed(vm: VmId, name: &str) -> CimInstance {
    CimInstance::new(SETTINGS)
        .with("InstanceID", format!("Microsoft:{vm}"))
        .with("ElementName", name)
}
