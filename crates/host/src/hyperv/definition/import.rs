//! A machine from stored configuration: its disks put where they lie now, its adapters where there are switches.

use wsman::cim::{CimInstance, CimValue};

use super::super::HyperV;
use super::super::decode::text;
use super::super::names::{RESOURCE, STORAGE, SYSTEM_SERVICE, resource_settings};
use super::super::node::Node;
use super::super::power::state_of;
use super::{plugged, renamed};
use crate::boundary::{Power, StopMode};
use crate::clock::CancelToken;
use crate::custody::Custody;
use crate::definition::{Defined, Identity, ImportRequest, SavedState};
use crate::facts::{DiskBacking, DiskFacts, PowerState};
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

impl HyperV {
    pub(super) fn import_on(
        &self,
        node: &Node,
        request: &ImportRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined> {
        // The file is called after the machine; where it is not, the id is known when the planned machine is.
        let stem = request
            .configuration
            .file_name()
            .rsplit_once('.')
            .map_or("", |(stem, _)| stem);
        let stored: Option<VmId> = stem.parse().ok();
        if let (Identity::Keep, Some(vm)) = (request.identity, stored) {
            self.refuse_twin(vm, cancel)?;
        }
        let expected = stored.unwrap_or(VmId::from_bytes([0; 16]));
        let make = || {
            let service = node.service(SYSTEM_SERVICE);
            let inputs = [
                (
                    "SystemDefinitionFile",
                    CimValue::Text(request.configuration.to_string()),
                ),
                ("SnapshotFolder", CimValue::Text(String::new())),
                (
                    "GenerateNewSystemIdentifier",
                    CimValue::Boolean(request.identity == Identity::New),
                ),
            ];
            self.run(node, &service, "ImportSystemDefinition", &inputs, cancel)
                .map(|ended| (ended, "ImportedSystem"))
        };
        let shape = |planned: VmId| {
            if request.identity == Identity::Keep {
                self.refuse_twin(planned, cancel)?;
            }
            self.shape_import(node, planned, request, cancel)
        };
        let defined = self.through_planned(node, expected, custody, cancel, &make, &shape)?;
        self.after_import(node, request, defined, cancel)
    }

    /// Two machines of one id are never made.
    fn refuse_twin(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        self.forget(vm);
        match self.find_owner(vm, cancel) {
            Ok((node, _)) => Err(Error::new(
                ErrorKind::Refused,
                format!("machine {vm} exists on {} already", node.name()),
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn shape_import(
        &self,
        node: &Node,
        planned: VmId,
        request: &ImportRequest,
        cancel: &CancelToken,
    ) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if let Some(name) = &request.name {
            self.modify_settings(node, &renamed(planned, name), cancel)?;
        }
        for disk in super::super::inventory::disks_on(node, planned)? {
            self.place_disk(node, planned, &disk, request, &mut notes, cancel)?;
        }
        for (slot, path) in &request.disks {
            let is_placed = super::super::inventory::disks_on(node, planned)?
                .iter()
                .any(|disk| disk.slot == Some(*slot));
            if !is_placed {
                notes.push(format!(
                    "{path} is not attached: the configuration has no disk at {slot}"
                ));
            }
        }
        self.connect_adapters(node, planned, &request.nics, &mut notes, cancel)?;
        Ok(notes)
    }

    fn place_disk(
        &self,
        node: &Node,
        planned: VmId,
        disk: &DiskFacts,
        request: &ImportRequest,
        notes: &mut Vec<String>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let Some(device) = &disk.device else {
            return Ok(());
        };
        let what = disk
            .slot
            .map_or_else(|| "a disk".to_owned(), |slot| slot.to_string());
        let place = disk.slot.and_then(|slot| {
            let found = request.disks.iter().find(|(it, _)| *it == slot);
            found.map(|(_, path)| path)
        });
        match (&disk.backing, place) {
            (DiskBacking::Image { path: stored, .. }, Some(place)) => {
                if stored == place {
                    return Ok(());
                }
                let row = node.find(&node.instance(STORAGE, device.as_str()))?;
                let mut settings = CimInstance::new(STORAGE)
                    .with("InstanceID", device.as_str())
                    .with("HostResource", vec![place.to_string()]);
                if let Some(parent) = row.as_ref().and_then(|row| text(row, "Parent")) {
                    settings.set("Parent", parent);
                }
                self.modify_resource(node, &settings, &resource_settings(STORAGE), cancel)
            }
            (DiskBacking::Image { path, .. }, None) => {
                let plugged = plugged(node, planned, device.as_str())?;
                self.remove_resource(node, STORAGE, &plugged.medium, cancel)?;
                if let Some(drive) = &plugged.drive {
                    self.remove_resource(node, RESOURCE, drive, cancel)?;
                }
                notes.push(format!("{what} ({path}) was removed: it is not restored"));
                Ok(())
            }
            (DiskBacking::PassThrough { device: physical }, _) => {
                self.remove_resource(node, RESOURCE, device.as_str(), cancel)?;
                notes.push(format!(
                    "{what} was removed: a disk of the host was passed through ({physical})"
                ));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A machine whose stored memory is not wanted starts as after a power cut.
    fn after_import(
        &self,
        node: &Node,
        request: &ImportRequest,
        mut defined: Defined,
        cancel: &CancelToken,
    ) -> Result<Defined> {
        let is_saved = state_of(node, defined.vm)? == PowerState::Saved;
        if is_saved && request.saved_state == SavedState::Drop {
            self.stop(defined.vm, StopMode::TurnOff, cancel)?;
            defined
                .notes
                .push("the stored memory was dropped: it starts as after a power cut".to_owned());
        }
        Ok(defined)
    }
}
